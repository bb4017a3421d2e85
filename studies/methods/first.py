"""The first picture of the README, first.svg: accuracy within the budget, method by method.

    python studies/methods/first.py

Reads committed rows (five seeds a method, 4096 test prompts each, budget 0.8 nats) and draws the
seeds, their mean and its 95% t-interval *over seeds*: prompts of one run are no independent runs.
The default is that of studies/default: it begins with the teacher's completions and is brought to
its rate at the end, which no other method has; `cmdp-rate` is its method with neither.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib.pyplot as plt
import pandas as pd

from cmdp_nbdev.task import chain_dataset, chain_frontier
from studies.lab import groups, half_width

HERE = Path(__file__).resolve().parent
BUDGET, DEFAULT, TOLD = 0.8, "default", "supervised"
NAMES = {
    DEFAULT: "the default",
    "cmdp-rate": "its method alone",
    "cmdp": "cmdp, the paper's",
    "soft": "best fixed λ, in hindsight",
}
LEFT = 0.28  # of the axis; methods that diverged are at 0
OURS, OTHERS, OPTIMUM, TEXT = "#007A5A", "#2F4B6E", "#B5480B", "#444444"
COLUMNS = {1.07: "accuracy", 1.17: "satisfaction_rate"}  # where on the axis they stand
ALT = (
    "Accuracy within the budget for each method, five seeds with mean and 95% t-interval: "
    "the default has 0.93, its method alone 0.90, the best fixed λ 0.89, hinge, told Sauté, the "
    "paper's method and KDRL "
    "about 0.85, distillation alone 0.78, GRPO 0.72; Sauté's constant penalty and the weakest link "
    "diverge. A student that is told the optimum has 0.93, the exact optimum is 0.99."
)


def mean(runs: pd.DataFrame) -> float:
    "What the picture is about, averaged over seeds."
    return runs["accuracy_within_budget"].mean()


def five_seeds() -> dict[str, pd.DataFrame]:
    "The runs of each method, the best last; of the fixed λ with five seeds that which is best."
    methods = dict(list(pd.read_csv(HERE / "report.csv").groupby("name")))
    fixed = pd.read_csv(HERE.parent / "foundation" / "report.csv").query("method == 'soft'")
    methods["soft"] = max(groups(fixed).values(), key=mean)
    methods[DEFAULT] = of_default(DEFAULT)
    return dict(sorted(methods.items(), key=lambda named: mean(named[1])))


def of_default(name: str) -> pd.DataFrame:
    "The runs of studies/default at this budget, of the default's length."
    runs = pd.read_csv(HERE.parent / "default" / "runs.csv")
    short = ~runs["config"].str.contains("max_steps")
    return runs[(runs["name"] == name) & (runs["budget"] == BUDGET) & short]


def draw_method(axes: plt.Axes, y: int, name: str, runs: pd.DataFrame) -> None:
    "One line of the picture, and beside it what the mean is made of."
    ours = name == DEFAULT
    look = {"color": OURS if ours else OTHERS, "va": "center"}
    axes.text(
        LEFT - 0.02, y, NAMES.get(name, name), weight="bold" if ours else None, ha="right", **look
    )
    for at, column in COLUMNS.items():
        axes.text(at, y, f"{runs[column].mean():.2f}", ha="center", **look)
    if mean(runs) < LEFT:
        axes.text(LEFT + 0.01, y, "diverged, all five seeds at 0", style="italic", **look)
    else:
        draw_seeds(axes, y, runs["accuracy_within_budget"], look["color"])


def draw_seeds(axes: plt.Axes, y: int, x: pd.Series, color: str) -> None:
    "The mean with its interval, and the seeds below it."
    interval = {"fmt": "o", "markersize": 6, "capsize": 3, "linewidth": 1.6}
    axes.errorbar(x.mean(), y, xerr=half_width(x), color=color, **interval)
    axes.plot(x, [y - 0.3] * len(x), "o", color=color, alpha=0.5, markersize=3, markeredgewidth=0)


def draw_optimum(axes: plt.Axes, top: float) -> None:
    "What the stated teacher allows at this budget, and what a student that is told it reaches."
    prompts = chain_dataset(4096, "test")["prompt"][:]
    optimum = float(chain_frontier(prompts, [BUDGET])[0])  # dynamic programming, nbs/06_task
    told = mean(of_default(TOLD))
    lines = (("exact", optimum, (4, 3), 0.75), ("told the", told, (1, 2), 0.0))
    for name, at, dashes, above in lines:
        axes.axvline(at, color=OPTIMUM, linewidth=1.2, linestyle=(0, dashes), zorder=1)
        axes.text(at, top + above, f"{name} optimum {at:.2f}", color=OPTIMUM, ha="right")


def style(axes: plt.Axes, lines: int) -> None:
    "A light grid, shares below, and heads over the two columns."
    axes.set(xlim=(LEFT, 1.0), ylim=(-0.8, lines), yticks=[])
    axes.set_xlabel(f"share of completions that are right and within {BUDGET:g} nats", color=TEXT)
    axes.xaxis.labelpad = 8
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=TEXT)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    for at, head in zip(COLUMNS, ("right", "within\nbudget")):
        axes.text(at, lines - 0.2, head, color=TEXT, ha="center", va="bottom", fontsize=10)


def main() -> None:
    "Draw and save, on white: it reads on a light page and on a dark one."
    plt.rcParams |= {"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "first"}
    methods = five_seeds()
    figure, axes = plt.subplots(figsize=(8.6, 5.4))
    figure.subplots_adjust(left=0.26, right=0.83, top=0.91, bottom=0.11)
    for y, (name, runs) in enumerate(methods.items()):
        draw_method(axes, y, name, runs)
    draw_optimum(axes, len(methods) - 0.2)
    style(axes, len(methods))
    figure.savefig(HERE / "first.svg", metadata={"Title": ALT, "Date": None})


if __name__ == "__main__":
    main()
