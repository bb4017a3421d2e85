"""Make docs/index.html: the idea and its numbers in one file that needs no Python to be read.

    python tools/page.py            write docs/index.html from committed files
    python tools/page.py --check    exit 1 if it is not what it would be
    python tools/page.py --start    measure the student before training anew (page/start.csv)

The page is page/page.html with page/page.css, page/page.js, the drawing functions of the widgets
(cmdp_nbdev/data/widget.js) and the data below in it: it fetches nothing, and opens from a folder.
Completions before and after training are those of 400 test prompts (page/start.csv, which
`--start` writes, and cmdp_nbdev/data/traces.npz); the comparison of methods is
studies/methods/*.csv.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from cmdp_nbdev import __version__
from cmdp_nbdev.evaluate import envelope
from cmdp_nbdev.methods import METHODS
from cmdp_nbdev.model import DATA
from cmdp_nbdev.widgets.chart import plain
from cmdp_nbdev.widgets.panel import intervals, load_traces

ROOT = Path(__file__).resolve().parents[1]
HERE, TARGET = ROOT / "tools" / "page", ROOT / "docs" / "index.html"
START, STUDY = HERE / "start.csv", ROOT / "studies" / "methods"
MAX_BYTES = 1_000_000
BUDGETS, SEED = (0.4, 0.8, 1.0), 2  # nats; the seed whose completions the panel shows
WORDS = {  # what a method is, for somebody who knows none of them
    "cmdp-rate": "the default: finds its price by itself",
    "cmdp": "the paper's: a modified reward",
    "soft": "a fixed price λ per nat",
    "hinge": "a price beyond the limit only",
    "saute-augmented": "Sauté, told what is left",
    "saute": "Sauté, a constant penalty",
    "kdrl": "a fixed price, as a loss (KDRL)",
    "grpo": "reward alone (GRPO)",
    "gkd": "imitation of the teacher (GKD)",
    "gkd off-policy": "imitation of the teacher's texts",
    "minillm": "imitation, whole sequences (MiniLLM)",
    "dual": "a price that follows the mean",
    "pid": "the same with a PID controller",
    "chance-dual": "a price that follows violations",
    "weakest-link": "a limit on every prefix",
}
PANEL = ("cmdp-rate", "cmdp", "soft", "gkd", "grpo")  # students that the panel offers
RATES = ("accuracy", "satisfaction_rate", "accuracy_within_budget")
LINKS = {  # where the page leads from docs/ of a checkout; the site has others
    "readme": "../README.md",
    "course": "../tutorials/README.md",
    "methods": "../studies/methods/README.md",
    "theory": "../nbs/theory/02_guarantees.ipynb",
}

# ---- the budget panel ---------------------------------------------------------------------


def packed(x, scale: float) -> str:
    "Numbers >= 0 as base64 of 16-bit integers, in units of 1/scale; the largest stands for more."
    whole = np.minimum(np.round(np.asarray(x, float) * scale), 65535).astype("<u2")
    return base64.b64encode(whole.tobytes()).decode()


def student(name: str, budget: float | None, spent, correct) -> dict:
    "What the panel shows of one student; `spent` in thousandths of a nat."
    shown = {"name": name, "budget": budget}
    return shown | {"spent": packed(spent, 1000), "correct": packed(correct, 1)}


def read_start() -> dict:
    "The student before training."
    rows = pd.read_csv(START)
    return student("start", None, rows["spent"], rows["correct"])


def panel() -> dict:
    "Completions of the student before training, and of those that the panel offers after it."
    traces = [t for t in load_traces() if t["label"] in PANEL and t["seed"] == SEED]
    traces.sort(key=lambda t: (PANEL.index(t["label"]), t["budget"] or 0))
    after = [student(t["label"], t["budget"], t["spent"], t["correct"]) for t in traces]
    n = len(traces[0]["spent"])
    low, high = ([round(float(v), 4) for v in end] for end in intervals(n))
    return {"n": n, "start": read_start(), "after": after, "low": low, "high": high}


def measure_start() -> None:
    "Write what the student spends and gets right before training, on the panel's prompts."
    from cmdp_nbdev.budget import Budget
    from cmdp_nbdev.evaluate import evaluate_records
    from cmdp_nbdev.model import default_pair
    from cmdp_nbdev.task import chain_dataset, chain_reward

    model, teacher, tokenizer = default_pair()
    n = len(load_traces()[0]["spent"])
    prompts = chain_dataset(4096, "test").select(range(n))
    records = evaluate_records(model, teacher, prompts, tokenizer, chain_reward, Budget(0.8))
    with open(START, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["spent", "correct"])
        writer.writerows([f"{r['spent']:.3f}", int(r["correct"])] for r in records)


# ---- the comparison -----------------------------------------------------------------------


def points(runs: pd.DataFrame, d: float) -> list[list[float]]:
    "Accuracy, satisfaction and both of every run, judged at the budget d."
    columns = ["accuracy", f"satisfaction_at_{d}", f"within_at_{d}"]
    return runs.sort_values("seed")[columns].round(4).to_numpy().tolist()


def fixed_prices(d: float) -> dict[str, list]:
    "λ -> the points of its seeds, for advantages scaled as by default."
    runs = pd.read_csv(STUDY / "lambdas.csv").dropna(subset=f"satisfaction_at_{d}")
    found = {}
    for text, group in runs.groupby("settings"):
        settings = json.loads(text)
        if "scale_rewards" not in settings:
            found[f"λ = {settings['lam']:g}"] = points(group, d)
    return dict(sorted(found.items(), key=lambda item: float(item[0][4:])))


def mixtures(prices: dict[str, list]) -> list[list[float]]:
    "The line that mixtures of fixed prices reach: pairs (satisfaction, accuracy)."
    means = [np.mean(seeds, 0) for seeds in prices.values()]
    rows = [{"accuracy": m[0], "satisfaction_rate": m[1]} for m in means]
    at = np.linspace(0, max(m[1] for m in means), 60)
    return np.stack([at, envelope(rows, at)], 1).round(4).tolist()


def compared(d: float) -> dict:
    """Every method at the budget d. Those that read it were trained for it, the others once.

    At another budget than the study's first, only the seeds that were trained for it.
    """
    report, others = pd.read_csv(STUDY / "report.csv"), pd.read_csv(STUDY / "budgets.csv")
    trained = {d: report} | {b: runs for b, runs in others.groupby("budget")}
    readers = set(others["name"])
    runs = {
        name: points(trained[d].query("name == @name") if name in readers else group, d)
        for name, group in report.groupby("name")
        if not (name == "saute-augmented" and d != 0.8)  # told d, and trained for one
        and not (name == "saute" and d != 0.8)
    }
    prices = fixed_prices(d)
    return {"methods": runs, "prices": prices, "mixtures": mixtures(prices)}


def optimum() -> list[list[float]]:
    "Budgets and the exact best accuracies of the task."
    with np.load(DATA / "traces.npz") as f:
        return np.stack([f["curve_budget"], f["curve_optimum"]], 1).round(4).tolist()


def methods() -> dict[str, dict]:
    "Words and look of every method, in the order of WORDS."
    looks = {name: METHODS[name.split()[0]].look for name in WORDS}
    return {
        name: {"words": WORDS[name], "color": look.color, "symbol": look.symbol}
        for name, look in looks.items()
    }


def data() -> dict:
    "All that the page computes with."
    found = {"panel": panel(), "methods": methods(), "optimum": optimum()}
    return plain(found | {"compared": {str(d): compared(d) for d in BUDGETS}})


# ---- the page -----------------------------------------------------------------------------


def said() -> dict[str, str]:
    "The numbers that stand in the page's sentences, from the same files."
    runs = pd.read_csv(STUDY / "report.csv").query("name == 'cmdp-rate'")
    start = pd.read_csv(START)
    best = dict(optimum())[0.8]
    numbers = {
        "default_accuracy": f"{runs['accuracy'].mean():.2f}",
        "default_satisfaction": f"{runs['satisfaction_rate'].mean():.2f}",
        "default_both": f"{runs['accuracy_within_budget'].mean():.2f}",
        "start_accuracy": f"{start['correct'].mean():.2f}",
        "start_satisfaction": f"{(start['spent'] <= 0.8).mean():.2f}",
        "optimum": f"{best:.2f}",
    }
    return numbers | {"version": __version__, "log2": f"{math.log(2):.3f}"}


def script() -> str:
    "The drawing functions of the widgets, and what this page does with them."
    drawing = (DATA / "widget.js").read_text(encoding="utf-8")
    own = (HERE / "page.js").read_text(encoding="utf-8")
    return drawing.replace("export default {render};", "") + own


def render(links: dict[str, str] = LINKS) -> str:
    "The page as text. Raises ValueError if it has become too large or a place is left open."
    style = (DATA / "widget.css").read_text(encoding="utf-8")
    style += (HERE / "page.css").read_text(encoding="utf-8")
    text = json.dumps(data(), allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    places = said() | {f"link_{name}": to for name, to in links.items()}
    places |= {"style": style, "data": text, "script": script()}
    page = (HERE / "page.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: places[place[1]], page)
    if len(page.encode()) > MAX_BYTES:
        raise ValueError(f"the page has {len(page.encode())} bytes, more than {MAX_BYTES}")
    return page


def main() -> int:
    "See the top of this file; the exit status."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("--start", action="store_true", help="measure page/start.csv anew first")
    args = parser.parse_args()
    if args.start:
        measure_start()
    page = render()
    if args.check:
        same = TARGET.exists() and TARGET.read_text(encoding="utf-8") == page
        told = "is up to date" if same else "is not: run python tools/page.py"
        print(f"{TARGET.relative_to(ROOT)} {told}")
        return int(not same)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page, encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {len(page.encode()) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
