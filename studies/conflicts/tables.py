"The picture, the table and the paper's claims of README.md, from runs.csv; see study.py."

import json
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cmdp_nbdev.evaluate import compare
from studies.conflicts import gap, study
from studies.conflicts.pairs import CONFLICTS, OF_CHAINS, PAIRS
from studies.lab import half_width, markdown, plus_minus, put_between

PAGE, PICTURE = study.HERE / "README.md", study.HERE / "conflicts.svg"
MARKS = {
    "size": ("<!-- size: study.py readme -->\n", "\n<!-- end of size -->"),
    "verdicts": ("<!-- verdicts: study.py readme -->\n", "\n<!-- end of verdicts -->"),
    "claims": ("<!-- claims: study.py readme -->\n", "\n<!-- end of claims -->"),
    "table": ("<!-- table: study.py readme -->\n", "\n<!-- end of table -->"),
    "trials": ("<!-- trials: study.py readme -->\n", "\n<!-- end of trials -->"),
    "gap": ("<!-- gap: study.py readme -->\n", "\n<!-- end of gap -->"),
    "needs": ("<!-- needs: study.py readme -->\n", "\n<!-- end of needs -->"),
    "elsewhere": ("<!-- elsewhere: study.py readme -->\n", "\n<!-- end of elsewhere -->"),
}
BOTH = "accuracy_within_budget"
BUDGETS = (study.DEFAULT, "cmdp", "hinge", "chance-dual")
RIVALS = {"grpo": "GRPO", "gkd": "distillation", "soft": "best fixed λ of validation"}
NAMES = {
    "start": "student before",
    "teacher": "the teacher",
    study.YARDSTICK: "told the optimum",
    study.DEFAULT: "default",
    "cmdp": "the paper's",
    "soft": "fixed λ",
    "grpo": "GRPO",
    "gkd": "distillation (GKD)",
    "hinge": "hinge",
    "chance-dual": "chance-dual",
    "saute": "constant penalty",
}
EQUAL = 0.02  # accuracies, and steps left out, that differ by less are called equal

# ---- rows -----------------------------------------------------------------------------------


@cache
def every_run() -> pd.DataFrame:
    "All runs, on test prompts and on validation prompts."
    return study.Runs(study.HERE / "runs.csv", study.KEY).read()


@cache
def rows() -> pd.DataFrame:
    "The runs on test prompts."
    return every_run().query("split == 'test'")


def forget() -> None:
    "Read the rows anew."
    every_run.cache_clear()
    rows.cache_clear()
    difference.cache_clear()


def conflicts() -> list[str]:
    "The conflicts in which something was trained, in their order."
    trained = rows()[rows()["name"].isin(study.METHODS)]
    return [name for name in CONFLICTS if name in set(trained["conflict"])]


def runs_of(conflict: str, name: str) -> pd.DataFrame:
    "The seeds of a method under a conflict, in their order."
    found = rows().query("conflict == @conflict and name == @name")
    return found.sort_values("seed").reset_index(drop=True)


def methods_of(conflict: str) -> list[str]:
    "The names that have runs under a conflict, in the order of the tables."
    return [name for name in NAMES if len(runs_of(conflict, name))]


def records_of(run: pd.Series) -> list[dict]:
    "What is known of every completion of a run."
    each = {name: study.unpack(run[f"each_{name}"]) for name in study.OUTCOMES}
    columns = zip(*each.values())
    return [{"prompt": str(i), **dict(zip(each, values))} for i, values in enumerate(columns)]


def valid(run: pd.Series) -> np.ndarray:
    "Whether the reasoning of each completion is valid."
    return study.unpack(run["each_reasoning_validity"])


@cache
def difference(conflict: str, ours: str, theirs: str, metric: str) -> dict:
    "Metric of one method minus that of another, paired by seed and prompt, with its interval."
    a, b = (runs_of(conflict, name).set_index("seed") for name in (ours, theirs))
    shared = a.index.intersection(b.index)
    runs = [[records_of(x.loc[seed]) for seed in shared] for x in (a, b)]
    return compare(*runs, metric, resamples=200)


def has(conflict: str, *names: str) -> bool:
    "Whether all of these methods have runs under a conflict."
    return all(len(runs_of(conflict, name)) for name in names)


# ---- when a budget pays ---------------------------------------------------------------------


def verdict(conflict: str, ours: str, theirs: str) -> str:
    """What a method has over another, measured: intervals over seeds and prompts exclude 0.

    'more of both', or 'less left out' where accuracy is equal or better; 'less of both'; 'level'.
    """
    both = difference(conflict, ours, theirs, BOTH)
    if both["low"] > 0:
        return "more of both"
    left = difference(conflict, ours, theirs, "left_out")
    right = difference(conflict, ours, theirs, "accuracy")
    if left["high"] < -EQUAL and right["low"] > -EQUAL:
        return "less left out"
    return "less of both" if both["high"] < 0 else "level"


def pays(conflict: str, ours: str) -> bool:
    "Whether a budget has more of both, or leaves out less, than each of the three rivals."
    found = [verdict(conflict, ours, theirs) for theirs in RIVALS]
    return all(text in ("more of both", "less left out") for text in found)


def verdicts() -> str:
    "For every way to keep a budget: what each has over each rival, conflict by conflict."
    head = ["conflict", "budget by", *(f"against {name}" for name in RIVALS.values()), "pays"]
    lines = []
    for conflict in conflicts():
        for ours in BUDGETS:
            if not has(conflict, ours, *RIVALS):
                continue
            cells = [
                f"{verdict(conflict, ours, theirs)} {interval(conflict, ours, theirs, BOTH)}"
                for theirs in RIVALS
            ]
            answer = "**yes**" if pays(conflict, ours) else "no"
            lines.append([described(conflict), NAMES[ours], *cells, answer])
    return markdown(head, lines)


def interval(conflict: str, ours: str, theirs: str, metric: str) -> str:
    "A difference with its interval, `+0.012 [+0.003, +0.021]`."
    found = difference(conflict, ours, theirs, metric)
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def described(conflict: str) -> str:
    "A conflict in a table: where, which kind, what it is."
    about = CONFLICTS[conflict]
    return f"{about.pair} ({about.kind}): {about.title}"


# ---- the table ------------------------------------------------------------------------------


def table() -> str:
    "One line a conflict and method: what was measured on test prompts, mean over seeds."
    head = "conflict|method|seeds|right|within|both|valid|left out|tokens|wins|losses|nats, right"
    head += "|nats, wrong|KL mean|KL 95%|reward|seconds"
    heads = head.split("|") + ["both: default minus this", "left out: default minus this"]
    lines = [line_of(conflict, name) for conflict in conflicts() for name in methods_of(conflict)]
    return markdown(heads, lines)


def line_of(conflict: str, name: str) -> list[str]:
    "The cells of one method under one conflict."
    runs = runs_of(conflict, name)
    mean = runs.mean(numeric_only=True)
    won, lost = against_teacher(conflict, runs)
    cells = [conflict, called(name, runs), str(len(runs))]
    cells += [f"{mean[column]:.3f}" for column in ("accuracy", "satisfaction_rate")]
    cells += [plus_minus(runs[BOTH]), f"{mean['reasoning_validity']:.3f}"]
    cells += [f"{mean['left_out']:.3f}", f"{mean['length_mean']:.1f}"]
    cells += [f"{won:.3f}", f"{lost:.3f}"]
    cells += [number(mean[c]) for c in ("nats_right", "nats_wrong", "kl_mean", "kl_p95")]
    cells += [f"{mean['reward_mean']:.3f}", f"{mean['seconds']:.0f}"]
    ours, metrics = study.DEFAULT, (BOTH, "left_out")
    compared = name not in (ours, *study.AS_THEY_ARE) and has(conflict, ours)
    others = [interval(conflict, ours, name, m) if compared else "" for m in metrics]
    return cells + others


def number(x: float) -> str:
    "Nats in a cell; nothing where there is no such completion."
    return "" if np.isnan(x) else f"{x:.2f}"


def called(name: str, runs: pd.DataFrame) -> str:
    "A method in a table, with what it was given; the default's settings are its recipe's."
    silent = (study.DEFAULT, study.YARDSTICK)
    given = {} if name in silent else json.loads(runs["settings"][0])
    return " ".join([NAMES[name], *(f"{k}={v:g}" for k, v in given.items())])


def against_teacher(conflict: str, runs: pd.DataFrame) -> tuple[float, float]:
    "How often a completion is valid where the teacher's own is not, and the reverse."
    theirs = valid(runs_of(conflict, "teacher").loc[0])
    ours = np.array([valid(run) for _, run in runs.iterrows()])
    return float((ours > theirs).mean()), float((ours < theirs).mean())


# ---- the trials -----------------------------------------------------------------------------


def trials() -> str:
    "The trials of fixed λs on validation prompts: both (right, within)."
    lines = []
    for name in CONFLICTS:
        mine = trials_of(name)
        cells = [
            f"λ = {run['lam']:g}: {run[BOTH]:.3f} "
            f"({run['accuracy']:.3f}, {run['satisfaction_rate']:.3f})"
            for _, run in mine.iterrows()
        ]
        if cells:
            lines.append([name, "; ".join(cells)])
    return markdown(["conflict", "both (right, within)"], lines)


def trials_of(conflict: str) -> pd.DataFrame:
    "The trials of fixed λs under a conflict, from the smallest."
    tried = study.trials(every_run(), conflict)
    lams = [json.loads(text)["lam"] for text in tried["settings"]]
    return tried.assign(lam=lams).sort_values("lam")


def on_validation(conflict: str) -> float | None:
    "Both of the default on the prompts of the trials; None if it was not run there."
    asked = "conflict == @conflict and split == 'validation' and name == @study.DEFAULT"
    found = every_run().query(asked)[BOTH]
    return float(found.iloc[0]) if len(found) else None


def elsewhere() -> str:
    "Both under every conflict of the λ that the trials of another one chose; the default below."
    whole = [c for c in CONFLICTS if len(trials_of(c)) and on_validation(c) is not None]
    both = {c: trials_of(c).set_index("lam")[BOTH] for c in whole}
    lines = []
    for tuned in whole:
        lam = both[tuned].idxmax()
        cells = [f"{both[c][lam]:.3f}" if lam in both[c] else "" for c in whole]
        lines.append([f"λ = {lam:g}, chosen under {tuned}", *cells])
    lines.append(["default, as in its recipe", *(f"{on_validation(c):.3f}" for c in whole)])
    return markdown(["", *whole], lines)


# ---- what a prompt needs ---------------------------------------------------------------------

LOOKED_INTO = (study.YARDSTICK, *BUDGETS[:2], "soft", "grpo")


def needs() -> str:
    "Both by the number of flawed steps of a prompt, mean over seeds: chains alone."
    of_chains = [c for c in conflicts() if CONFLICTS[c].pair in OF_CHAINS]
    lines = [
        [conflict, NAMES[name], *by_need(conflict, name)]
        for conflict in of_chains
        for name in LOOKED_INTO
        if has(conflict, name)
    ]
    head = ["none flawed", "one", "two", "three"]
    return markdown(["conflict", "method", *head], lines)


def by_need(conflict: str, name: str) -> list[str]:
    "Both where none, one, two and three steps are flawed; empty where no prompt is like that."
    flawed = flawed_steps(CONFLICTS[conflict].pair)
    runs = [both_of(run) for _, run in runs_of(conflict, name).iterrows()]
    kinds = [flawed == k for k in range(4)]
    return [f"{np.mean([both[k].mean() for both in runs]):.3f}" if k.any() else "" for k in kinds]


@cache
def flawed_steps(pair: str) -> np.ndarray:
    "Flawed steps of every test prompt of a pair of chains, in their order."
    return np.array(PAIRS[pair].dataset(PAIRS[pair].num_test, "test")["num_flawed"][:])


def both_of(run: pd.Series) -> np.ndarray:
    "1 where a completion is right and within the budget."
    return study.unpack(run["each_correct"]) * study.unpack(run["each_within_budget"])


# ---- the paper's claims ---------------------------------------------------------------------

COMPARED = ("grpo", "gkd", "soft", "cmdp", "hinge", "chance-dual")


def means(conflict: str, column: str) -> pd.Series:
    "A column of the compared methods, averaged over seeds."
    names = [*COMPARED, study.DEFAULT]
    found = {n: runs_of(conflict, n)[column].mean() for n in names if has(conflict, n)}
    return pd.Series(found)


def grpo_is_accurate_and_unbound(conflict: str) -> str:
    "GRPO is most accurate and satisfies least."
    right, within = means(conflict, "accuracy"), means(conflict, "satisfaction_rate")
    found = int(right["grpo"] >= right.max() - 0.005) + int(within["grpo"] <= within.min())
    answer = ("no", "half", "yes")[found]
    return (
        f"{answer}: {right['grpo']:.2f} right, best {right.max():.2f}; {within['grpo']:.2f} within"
    )


def paper_satisfies_most(conflict: str) -> str:
    "Their method satisfies most among methods of at least its accuracy, less .02."
    right, within = means(conflict, "accuracy"), means(conflict, "satisfaction_rate")
    rivals = within[right >= right["cmdp"] - EQUAL].drop(["cmdp", study.DEFAULT], errors="ignore")
    answer = "yes" if rivals.empty or within["cmdp"] >= rivals.max() else "no"
    best = "" if rivals.empty else f", {NAMES[rivals.idxmax()]} {rivals.max():.2f}"
    return f"{answer}: {within['cmdp']:.2f}{best} (default {within[study.DEFAULT]:.2f})"


def better_reasoning(conflict: str) -> str:
    "Better reasoning than the soft baseline at equal accuracy."
    gained = difference(conflict, "cmdp", "soft", "reasoning_validity")
    equal = abs(difference(conflict, "cmdp", "soft", "accuracy")["difference"]) < EQUAL
    answer = "yes" if gained["low"] > 0 and equal else "no"
    return (
        f"{answer}: valid {interval(conflict, 'cmdp', 'soft', 'reasoning_validity')}, "
        f"right {interval(conflict, 'cmdp', 'soft', 'accuracy')}"
    )


def constant_penalty_diverges(conflict: str) -> str:
    "A constant penalty diverges: less right, or less of both, than before training."
    if not has(conflict, "saute", "start"):
        return "not run"
    after, before = (runs_of(conflict, name).mean(numeric_only=True) for name in ("saute", "start"))
    less = after["accuracy"] < before["accuracy"] or after[BOTH] < before[BOTH]
    answer = "yes" if less else "no"
    return f"{answer}: {after['accuracy']:.2f} right, {after['satisfaction_rate']:.2f} within"


def nothing_to_tune(conflict: str) -> str:
    "No λ has to be tuned: one setting is nowhere behind the λ that was tuned."
    chosen = json.loads(runs_of(conflict, "soft")["settings"][0])["lam"]
    texts = [
        f"{NAMES[ours]}: {verdict(conflict, ours, 'soft')}" for ours in (study.DEFAULT, "cmdp")
    ]
    return f"λ = {chosen:g} chosen; {', '.join(texts)}"


CLAIMS = (
    grpo_is_accurate_and_unbound,
    paper_satisfies_most,
    better_reasoning,
    constant_penalty_diverges,
    nothing_to_tune,
)


def claims() -> str:
    "The paper's five claims against every conflict."
    whole = [c for c in conflicts() if has(c, "cmdp", *RIVALS, study.DEFAULT)]
    lines = [[claim.__doc__.rstrip("."), *map(claim, whole)] for claim in CLAIMS]
    return markdown(["claim", *whole], lines)


# ---- the picture ----------------------------------------------------------------------------

DRAWN = (
    study.DEFAULT,
    "cmdp",
    "soft",
    "hinge",
    "chance-dual",
    "gkd",
    "grpo",
    "start",
)
OURS, OTHERS, RIGHT, TEXT = "#007A5A", "#2F4B6E", "#B5480B", "#444444"
LEFT = 0.0


def alt() -> str:
    "The picture in words."
    texts = []
    for conflict in conflicts():
        found = [f"{NAMES[n]} {runs_of(conflict, n)[BOTH].mean():.2f}" for n in drawn(conflict)]
        texts.append(f"{conflict}: {', '.join(found)}")
    return "Right and within the budget, by conflict and method. " + "; ".join(texts) + "."


def drawn(conflict: str) -> list[str]:
    "The methods of a panel, from the top."
    return [name for name in DRAWN if has(conflict, name)]


def draw(conflict: str, axes: plt.Axes) -> None:
    "One conflict: a line a method, with both, right alone, and steps left out."
    methods = drawn(conflict)
    for y, name in zip(range(len(methods), 0, -1), methods):
        runs = runs_of(conflict, name)
        color = OURS if name in BUDGETS else OTHERS
        x = runs[BOTH]
        error = half_width(x) if len(x) > 1 else 0
        axes.errorbar(x.mean(), y, xerr=error, fmt="o", color=color, capsize=2.5, markersize=5)
        axes.plot(runs["accuracy"].mean(), y, "D", color=RIGHT, markersize=4, fillstyle="none")
        axes.text(1.04, y, f"{runs['left_out'].mean():.2f}", va="center", color=color)
    draw_yardsticks(conflict, axes)
    axes.set_yticks(range(len(methods), 0, -1), [NAMES[name] for name in methods])
    about = CONFLICTS[conflict]
    axes.set_title(f"({about.kind}) {about.title}\n{about.pair}", fontsize=10, loc="left")
    axes.set(xlim=(LEFT, 1.02), ylim=(0.4, len(methods) + 0.6))
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=TEXT, labelsize=9)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.text(1.04, len(methods) + 0.75, "left\nout", fontsize=8, color=TEXT)


def draw_yardsticks(conflict: str, axes: plt.Axes) -> None:
    "Lines for the student that is told the optimum, and for the optimum itself."
    if CONFLICTS[conflict].pair in OF_CHAINS:
        axes.axvline(gap.known(CONFLICTS[conflict].pair)["optimum"], color=TEXT, linestyle=":")
    if has(conflict, study.YARDSTICK):
        told = runs_of(conflict, study.YARDSTICK)[BOTH].mean()
        axes.axvline(told, color=TEXT, linestyle="--", linewidth=1)


def draw_all() -> None:
    "Draw and save the picture."
    plt.rcParams |= {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "conflicts"}
    shown = conflicts()
    height = (len(shown) + 1) // 2
    figure, grid = plt.subplots(
        height, 2, figsize=(9.6, 0.7 + 2.6 * height), squeeze=False, layout="constrained"
    )
    for axes, conflict in zip(grid.flat, shown):
        draw(conflict, axes)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    about = "● right and within the budget, with the 95% interval over seeds;   ◇ right;   "
    about += "dashed: the same student, told the optimum;   dotted: the optimum"
    figure.supxlabel(about, fontsize=9, color=TEXT)
    figure.savefig(PICTURE, metadata={"Title": alt(), "Date": None})
    plt.close(figure)


# ---- the page -------------------------------------------------------------------------------


def size() -> str:
    "How many runs there are, how long they took, and what is missing."
    runs = study.Runs(study.HERE / "runs.csv", study.KEY)
    trained = runs.read().query("name in @study.METHODS.keys()")
    minutes = trained["seconds"].sum() / 60
    settled = [study.settle(job, runs) for job in study.plan(list(CONFLICTS))]
    missing = settled.count(None) + len(runs.missing([job for job in settled if job]))
    return (
        f"{len(trained)} students, {minutes:.0f} minutes of training, one thread each, on machines "
        f"that were shared; {missing} of {len(settled)} planned runs are still to be done."
    )


def parts() -> dict[str, str]:
    "What stands between the marks of README.md."
    return {
        "size": size(),
        "verdicts": verdicts(),
        "claims": claims(),
        "table": table(),
        "trials": trials(),
        "needs": needs(),
        "gap": gap.table(),
        "elsewhere": elsewhere(),
    }


def write_readme() -> None:
    "The picture, and everything between the marks."
    draw_all()
    for name, text in parts().items():
        put_between(PAGE, MARKS[name], text)
