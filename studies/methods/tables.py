"""Tables and figures of studies/methods from its CSV files. `python studies/methods/tables.py` prints the tables and draws the figures."""
import json
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

import study
from cmdp_nbdev.evaluate import envelope

HERE = Path(__file__).parent
MAIN = 0.8


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    "Rows by name and settings, the seeds of one setting together."
    out: dict[str, list[dict]] = {}
    for r in rows:
        more = {**json.loads(r["settings"]), **json.loads(r["config"])}
        out.setdefault(" ".join([r["name"], *(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in more.items())]), []).append(r)
    return out


def mean(rows: list[dict], name: str) -> float:
    "Mean of a column over seeds."
    return float(np.mean([r[name] for r in rows]))


def half(rows: list[dict], name: str) -> str:
    "Half-width of the 95% t-interval over seeds, as text; empty for one seed."
    if len(rows) < 2: return "      "
    x = np.array([r[name] for r in rows])
    return f"±{student_t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)):.3f}"


def table(rows: list[dict], budget: float | None = None) -> str:
    "One line per setting; `budget`: judge students that do not use the budget at this one."
    sat, within = ("satisfaction_rate", "accuracy_within_budget") if budget is None else (f"satisfaction_at_{budget}", f"within_at_{budget}")
    lines = [f"{'':46}{'accuracy':>14}{'satisfaction':>14}{'both':>14}{'KL mean':>9}{'KL p95':>8}{'valid':>7}{'win':>6}{'loss':>6}{'passes':>8}{'s':>5}{'seeds':>6}"]
    for name, g in sorted(groups(rows).items(), key=lambda x: -mean(x[1], within)):
        lines.append(f"{name[:46]:46}{mean(g, 'accuracy'):8.3f}{half(g, 'accuracy')}{mean(g, sat):8.3f}{half(g, sat)}{mean(g, within):8.3f}{half(g, within)}{mean(g, 'kl_mean'):9.2f}{mean(g, 'kl_p95'):8.2f}"
                     f"{mean(g, 'reasoning_validity'):7.3f}{mean(g, 'win_rate'):6.2f}{mean(g, 'loss_rate'):6.2f}{mean(g, 'teacher_passes') / 1000:7.0f}k{mean(g, 'seconds'):5.0f}{len(g):6}")
    return "\n".join(lines)


def targets(rows: list[dict]) -> str:
    "Asked and achieved satisfaction, and accuracy, for every budget; * = the multiplier sits at its minimum."
    lines = ["budget  target  achieved (mean of seeds, 95% t-interval)   accuracy   both   multiplier   seeds"]
    by: dict = {}
    for r in rows: by.setdefault((r["budget"], json.loads(r["settings"])["target"]), []).append(r)
    for (d, target), g in sorted(by.items()):
        gap = mean(g, "satisfaction_rate") - target
        verdict = "ok" if abs(gap) <= 0.02 else "above, at the minimum *" if gap > 0 and mean(g, "at_minimum") > 0.5 else "above" if gap > 0 else "BELOW"
        lines.append(f"{d:6.1f}{target:8.2f}{mean(g, 'satisfaction_rate'):10.3f} {half(g, 'satisfaction_rate')}  {verdict:24}{mean(g, 'accuracy'):9.3f}{mean(g, 'accuracy_within_budget'):8.3f}{mean(g, 'multiplier_mean'):10.2f}{len(g):10}")
    return "\n".join(lines)


def against_lambdas(ours: list[dict], soft: list[dict], budget: float, target: float = 0.95) -> str:
    "Ours against the upper envelope of the fixed lambdas at the same satisfaction, and against the best lambda that reaches the target with hindsight."
    sat, within = f"satisfaction_at_{budget}", f"within_at_{budget}"
    points = [{"satisfaction_rate": mean(g, sat), "accuracy": mean(g, "accuracy"), "within": mean(g, within), "name": n} for n, g in groups(soft).items()]
    x, y = mean(ours, "satisfaction_rate"), mean(ours, "accuracy")
    at = float(envelope(points, [x])[0])
    safe = [p for p in points if p["satisfaction_rate"] >= target]
    best = max(safe, key=lambda p: p["accuracy"]) if safe else None
    return (f"budget {budget}: ours {y:.3f} at satisfaction {x:.3f} (both {mean(ours, 'accuracy_within_budget'):.3f}); fixed lambdas at that satisfaction {at:.3f} (envelope); "
            + (f"best lambda with satisfaction >= {target}: {best['name']}, {best['accuracy']:.3f} at {best['satisfaction_rate']:.3f} (both {best['within']:.3f})" if best else f"no lambda reaches {target}"))


def show() -> None:
    "Print every table for which there are rows."
    for stage in ("report", "lambdas", "budgets", "second", "ablate", "scale", "both"):
        if rows := study.read(stage): print(f"\n== {stage}\n{table(rows)}")
    if rows := study.read("targets"):
        print(f"\n== targets\n{targets(rows)}\n")
        for d in study.BUDGETS:
            ours = [r for r in rows if r["budget"] == d and json.loads(r["settings"])["target"] == 0.95]
            if ours and study.read("lambdas"): print(against_lambdas(ours, study.read("lambdas"), d))


if __name__ == "__main__": show()
