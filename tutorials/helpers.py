"""What the lessons use and do not teach.

How to draw, what to compare with, and where the studies are.
"""

from pathlib import Path

import plotly.graph_objects as go

import cmdp_nbdev
from cmdp_nbdev.plot import BLUE, GREEN, GREY, ORANGE, RED, running_mean
from cmdp_nbdev.task import Flaw, chain_frontier, parse_prompt
from cmdp_nbdev.widgets.chart import Chart, axis
from cmdp_nbdev.widgets.panel import judge, load_traces
from cmdp_nbdev.widgets.shootout import read_rows
from cmdp_nbdev.widgets.view import View

COLORS = (BLUE, ORANGE, GREEN, RED, GREY)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SIZE = dict(template="plotly_white", font_size=14, height=380)


def line(k: int, **more) -> dict:
    "The look of the k-th line of a picture: told apart by its dash as well."
    return dict(color=COLORS[k], dash=DASHES[k], width=3, **more)


def curves_figure(curves, x_title, y_title, *, x=None, shape="linear", **layout):
    """A line for each curve, `curves`: name -> heights, or name -> (x, heights).

    `x` serves all curves that bring none; `layout`: further settings of plotly.
    """
    fig = go.Figure()
    for k, (name, y) in enumerate(curves.items()):
        at, y = y if isinstance(y, tuple) else (x, y)
        fig.add_scatter(x=at, y=y, name=name, mode="lines", line=line(k, shape=shape))
    fig.update_layout(**SIZE, xaxis_title=x_title, yaxis_title=y_title)
    return fig.update_layout(margin_t=50 if "title" in layout else 20, **layout)


def slider_figure(views, label, x_title, y_title, *, start=0, mode="lines", **layout):
    """One view at a time, chosen by a slider, `views`: its value -> {name: (x, y)}.

    `label` stands before the value of the slider, `start` is its first position.
    """
    fig, owner = go.Figure(), []
    for value, curves in views.items():
        for k, (name, (x, y)) in enumerate(curves.items()):
            fig.add_scatter(x=x, y=y, name=name, mode=mode, line=line(k))
            fig.data[-1].update(marker_size=13, opacity=0.8)
            owner.append(value)
    values = list(views)
    steps = []
    for value in values:
        visible = [v == value for v in owner]
        step = dict(label=str(value), method="update", args=[{"visible": visible}])
        steps.append(step)
    for trace, value in zip(fig.data, owner):
        trace.visible = value == values[start]
    slider = dict(active=start, steps=steps, currentvalue_prefix=label, pad=dict(t=60))
    fig.update_layout(**SIZE, xaxis_title=x_title, yaxis_title=y_title)
    margin = 50 if "title" in layout else 20
    return fig.update_layout(height=430, margin_t=margin, sliders=[slider], **layout)


def reaches_a_flaw(record: dict) -> bool:
    "Does the completion write out a step at which the teacher wavers?"
    steps = parse_prompt(record["prompt"])[1]
    flawed = [f"{op}{digit}=" for op, digit in steps if Flaw().hits(op, digit)]
    return any(step in record["completion"] for step in flawed)


def yardsticks(prompts: list[str], budget) -> dict[str, float]:
    "Accuracies: the best within the budget, the teacher's, and an imitator's."
    teacher, best = chain_frontier(prompts, [0.0, budget.limit])
    imitator = next(t for t in load_traces() if t["method"] == "gkd")
    imitation = float(judge(imitator, budget.limit)["accuracy"])
    best_name = f"best within {budget.limit}"
    return {best_name: float(best), "teacher": float(teacher), "imitation": imitation}


class LearningCurve(View):
    """Accuracy and satisfaction rate of a training while it runs: `add` each update.

    updates: how many there will be. lines: name -> a share to compare with.
    imitates: how many of them learn from what the teacher wrote; these are not drawn.
    """

    def __init__(self, updates: int, lines: dict[str, float], imitates: int = 0):
        super().__init__("updates, lines")
        self.updates, self.lines, self.imitates = updates, lines, imitates
        self.rows = []
        self._refresh()

    def add(self, metrics: dict) -> None:
        "One more update; the picture is drawn anew at every fifth and at the last."
        self.rows.append(metrics)
        if len(self.rows) % 5 == 0 or len(self.rows) == self.updates:
            self._refresh()

    def _controls(self, values: dict) -> list[dict]:
        return []

    def _blocks(self, values: dict) -> list[dict]:
        x, y = axis("update", 0, self.updates), axis("share", 0.4, 1, format="%")
        alt = "Accuracy and satisfaction rate by update, beside lines to compare with."
        chart = Chart("Training under a budget", x, y, alt, height=330)
        for name, share in self.lines.items():
            dash = "dot" if name == "imitation" else "longdash"
            dash = "solid" if name.startswith("best") else dash
            look = {"color": "fg", "width": 1, "dash": dash}
            chart.line(
                [0, self.updates], [share] * 2, name=f"{name} {share:.2f}", **look
            )
        if self.imitates:
            chart.band(x0=0, x1=self.imitates, color=ORANGE)
            chart.text([self.imitates / 2], [0.43], ["imitates the teacher"])
        own = self.rows[self.imitates :]
        steps = [m["step"] for m in own]
        kinds = ("accuracy", BLUE, "solid"), ("satisfaction_rate", GREEN, "dash")
        for key, color, dash in kinds:
            mean = running_mean([m[key] for m in own], 20)
            look = {"name": key.replace("_", " "), "color": color, "dash": dash}
            chart.line(steps, mean, width=3, **look)
        return [chart]


def study_rows(name: str, methods, budget: float) -> list[dict]:
    """The runs of `studies/<name>` of these methods at this budget, in nats.

    Advantages divided as usual only; empty where there is no checkout of the studies.
    """
    here, package = Path.cwd(), Path(cmdp_nbdev.__file__).parents[1]
    places = [p / "studies" / name for p in (here, *here.parents, package)]
    path = next((p for p in places if p.exists()), None)
    rows = read_rows(path) if path else []
    rows = [r for r in rows if r["budget"] == budget and r["method"] in methods]
    return [r for r in rows if "scale_rewards" not in r["settings"]]
