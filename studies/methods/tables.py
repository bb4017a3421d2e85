"The tables of README.md from the CSV files of study.py, which prints and stores them."

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd

from cmdp_nbdev.evaluate import envelope
from studies import lab
from studies.lab import groups, paired, plus_minus, put_between, with_interval
from studies.methods import two_budgets
from studies.methods.study import BUDGETS, DEFAULT, HERE, read

FOUNDATION = HERE.parent / "foundation" / "report.csv"
MARKS = "<!-- tables: study.py readme -->\n```\n", "\n```\n<!-- end of tables -->"

# ---- one line per setting -----------------------------------------------------------------

MEANS = {
    "KL mean": ("kl_mean", 2),
    "KL p95": ("kl_p95", 2),
    "valid": ("reasoning_validity", 3),
    "win": ("win_rate", 2),
    "loss": ("loss_rate", 2),
}


def table(runs: pd.DataFrame, budget: float | None = None) -> str:
    """One line per setting, the one with most of both first.

    `budget`: judge all students at this budget instead of their own.
    """
    kept, both = "satisfaction_rate", "accuracy_within_budget"
    if budget is not None:
        kept, both = f"satisfaction_at_{budget}", f"within_at_{budget}"
    settings = groups(runs, "name").items()
    best_first = dict(sorted(settings, key=lambda setting: -setting[1][both].mean()))
    rates = {"accuracy": "accuracy", "satisfaction": kept, "both": both}
    return lab.table(best_first, rates, MEANS)


# ---- the default asked for a rate ---------------------------------------------------------


def setting(runs: pd.DataFrame, name: str) -> pd.Series:
    "A setting of the method, for every run."
    return runs["settings"].map(lambda text: json.loads(text)[name])


def verdict(runs: pd.DataFrame, target: float) -> str:
    "Whether the seeds keep on average the rate that was asked for."
    gap = runs["satisfaction_rate"].mean() - target
    if abs(gap) <= 0.02:
        return "ok"
    if gap < 0:
        return "BELOW"
    return "above, at the minimum *" if runs["at_minimum"].mean() > 0.5 else "above"


def targets(runs: pd.DataFrame) -> str:
    "Asked and achieved satisfaction, and accuracy; * = the multiplier sits at its minimum."
    lines = [
        "budget  target  achieved (mean of seeds, 95% t-interval)   "
        "accuracy   both   multiplier   seeds"
    ]
    for (d, target), seeds in runs.groupby(["budget", setting(runs, "target")]):
        achieved = plus_minus(seeds["satisfaction_rate"]).replace("±", " ±")
        means = seeds[["accuracy", "accuracy_within_budget", "multiplier_mean"]].mean()
        lines.append(
            f"{d:6.1f}{target:8.2f}     {achieved}  {verdict(seeds, target):24}"
            "{:9.3f}{:8.3f}{:10.2f}".format(*means)
            + f"{len(seeds):10}"
        )
    return "\n".join(lines)


def fixed_lambdas() -> pd.DataFrame:
    """Fixed lambdas, advantages divided by the group's deviation.

    Runs of studies/foundation (same settings, same numbers) complete the seeds at d = 0.8.
    """
    mine, old = read("lambdas"), pd.read_csv(FOUNDATION).query("method == 'soft'")
    old = old.assign(name="soft")
    old["satisfaction_at_0.8"] = old["satisfaction_rate"]
    old["within_at_0.8"] = old["accuracy_within_budget"]
    both = pd.concat([mine, old]).drop_duplicates(["settings", "seed"])
    return both[~both["settings"].str.contains("scale_rewards")]


def against_lambdas(ours: pd.DataFrame, fixed: pd.DataFrame, d: float, target: float) -> str:
    """Ours at budget `d` against the fixed lambdas, judged there.

    First against their upper envelope at the same satisfaction, then against the best one that
    reaches the target, with hindsight.
    """
    points = [
        {
            "name": name,
            "satisfaction_rate": runs[f"satisfaction_at_{d}"].mean(),
            "accuracy": runs["accuracy"].mean(),
            "within": runs[f"within_at_{d}"].mean(),
        }
        for name, runs in groups(fixed, "name").items()
    ]
    columns = ["satisfaction_rate", "accuracy", "accuracy_within_budget"]
    kept, right, both = ours[columns].mean()
    at = float(envelope(points, [kept])[0])
    texts = [f"budget {d}: ours {right:.3f} at satisfaction {kept:.3f} (both {both:.3f})"]
    if not np.isnan(at):
        texts.append(f"fixed lambdas at that satisfaction {at:.3f} (envelope)")
    texts.append(_best_of([p for p in points if p["satisfaction_rate"] >= target], target))
    return "; ".join(texts)


def _best_of(safe: list[dict], target: float) -> str:
    "The most accurate of the fixed lambdas that reach the target."
    if not safe:
        return f"no lambda reaches {target:.3f}"
    best = max(safe, key=lambda point: point["accuracy"])
    return (
        f"best lambda with satisfaction >= {target:.3f}: {best['name']}, {best['accuracy']:.3f} "
        f"at {best['satisfaction_rate']:.3f} (both {best['within']:.3f})"
    )


def against_sweep(runs: pd.DataFrame, fixed: pd.DataFrame) -> str:
    "At every budget: the default asked for 95% and for 99% against all fixed lambdas."
    lines = []
    for d in BUDGETS:
        judged = fixed.dropna(subset=f"satisfaction_at_{d}")
        for target in (0.95, 0.99):
            ours = runs[(runs["budget"] == d) & (setting(runs, "target") == target)]
            reached = min(target, ours["satisfaction_rate"].mean())
            lines.append(f"asked {target:.0%}, {against_lambdas(ours, judged, d, reached)}")
    return "\n".join(lines)


# ---- the page -----------------------------------------------------------------------------


def differences() -> str:
    "The default minus the method that follows it, and minus the fixed lambda of most of both."
    report, fixed = groups(read("report"), "name"), groups(fixed_lambdas(), "name")
    others = {"hinge": report["hinge coef=1"], "fixed λ=1": fixed["soft lam=1"]}
    lines = ["difference, 95% t-interval over paired seeds"]
    for name, theirs in others.items():
        texts = []
        for column in ("accuracy", "satisfaction_rate", "accuracy_within_budget"):
            x = paired(report[DEFAULT], theirs, column, column)
            texts.append(f"{column} {with_interval(x)} ({len(x)} seeds)")
        lines.append(f"{f'default - {name}:':21}{'; '.join(texts)}")
    return "\n".join(lines)


def second_table() -> str:
    "The second teacher: the default at both budgets, and the other students judged at each."
    runs = read("second")
    at = {d: runs.query("name != @DEFAULT or budget == @d") for d in (0.4, 0.8)}
    return "\n".join(f"budget {d}\n{table(judged, d)}" for d, judged in at.items())


def tables() -> str:
    "All tables, each under its title."
    asked = read("targets")
    parts = {
        "All methods, d = 0.8, five seeds": table(read("report")) + "\n\n" + differences(),
        "The default asked for four rates at three budgets": targets(asked)
        + "\n\n"
        + against_sweep(asked, fixed_lambdas()),
        "Fixed lambdas, judged at d = 0.8": table(read("lambdas")),
        "Methods that use d at two other budgets": table(read("budgets")),
        "The default without one of its parts, d = 0.8": table(read("ablate")),
        "Rewards divided by ten, as they are, times ten": table(read("scale")),
        "Tuning trials (200 updates, one seed, validation prompts)": table(read("tune")),
        "A second teacher": second_table(),
        "Two budgets at once": two_budgets.table(two_budgets.RUNS.read()),
    }
    return "\n\n\n".join(f"{title}\n\n{text}" for title, text in parts.items())


def write_readme() -> None:
    "Put the tables between the marks of README.md."
    put_between(HERE / "README.md", MARKS, tables())
