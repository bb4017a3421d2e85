"""The pictures of README.md from the CSV files of study.py.

    python studies/methods/plots.py          needs plotly's image export, kaleido

budgets.svg: for each budget, fixed lambdas (one student judged at every budget) against the default
asked for four rates (the percentages). methods.svg: every method at d = 0.8. Small marks are runs,
large ones their means over seeds. frontier.svg: what the default and two others reach at every
budget, below the exact optimum; intervals are over five seeds. The first picture of the repository
is made by first.py.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cmdp_nbdev.plot import BLACK, frontier_figure, method_look
from cmdp_nbdev.task import chain_dataset, chain_frontier
from studies.lab import groups, half_width
from studies.methods.study import BUDGETS, DEFAULT, HERE, N_EVAL, read
from studies.methods.tables import fixed_lambdas, setting

GRID = "#E5E5E5"


def draw(figure: go.Figure, panel: int, runs: pd.DataFrame, x: str, label: Callable) -> None:
    """The settings of one method in a panel: every run small, the mean of every setting large.

    `x`: the column that is its satisfaction rate; `label(settings)` is written beside a mean.
    """
    runs = runs.dropna(subset=x)  # some were judged at one budget only
    method = runs["method"].iloc[0]
    drawn = method_look(method)
    look = {"color": drawn.color, "symbol": drawn.symbol}
    place = {"row": 1, "col": panel}
    small, large = {**look, "size": 4, "opacity": 0.45}, {**look, "size": 10}
    seeds = go.Scatter(x=runs[x], y=runs["accuracy"], mode="markers", marker=small)
    figure.add_trace(seeds.update(showlegend=False), **place)
    settings = groups(runs, "name").values()
    means = pd.DataFrame(
        {
            "x": [seeds[x].mean() for seeds in settings],
            "y": [seeds["accuracy"].mean() for seeds in settings],
            "text": [label(json.loads(seeds["settings"].iloc[0])) for seeds in settings],
        }
    ).sort_values("x")
    figure.add_scatter(
        **means.to_dict("list"),
        mode="lines+markers+text" if len(settings) > 1 else "markers+text",
        textposition="bottom left" if method == "soft" else "top right",
        marker=large,
        line={"color": look["color"], "width": 1, "dash": "dash"},
        name=method,
        legendgroup=method,
        showlegend=not any(trace.name == method for trace in figure.data),
        textfont={"size": 10},
        **place,
    )


def style(figure: go.Figure, height: int, ranges: list[tuple]) -> go.Figure:
    "White, with shares on both axes."
    for panel, (x, y) in enumerate(ranges, 1):
        place = {"row": 1, "col": panel}
        axis = {"tickformat": ".0%", "gridcolor": GRID, **place}
        figure.update_xaxes(title="satisfaction rate", range=x, **axis)
        figure.update_yaxes(range=y, **axis)
        figure.add_vline(x=0.95, line={"color": BLACK, "dash": "dot", "width": 1}, **place)
    figure.update_yaxes(title="accuracy", row=1, col=1)
    return figure.update_layout(
        template="plotly_white",
        width=1000,
        height=height,
        margin={"l": 60, "r": 10, "t": 50, "b": 60},
        font={"size": 12},
        legend={"orientation": "h", "y": -0.22},
    )


def lam(settings: dict) -> str:
    "A fixed lambda, of those that do not crowd."
    value = settings["lam"]
    return f"λ={value:g}" if value in (0.75, 1.0, 1.35, 2.0, 3.0) else ""


def target(settings: dict) -> str:
    "The rate that the default was asked for."
    return f"{settings['target']:.0%}"


def draw_budgets() -> go.Figure:
    "A panel for each budget."
    titles = [f"budget {d:g} nats" for d in BUDGETS]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.05)
    fixed, ours = fixed_lambdas(), read("targets")
    for panel, d in enumerate(BUDGETS, 1):
        draw(figure, panel, fixed, f"satisfaction_at_{d}", lam)
        asked = ours[ours["budget"] == d]
        draw(figure, panel, asked, "satisfaction_rate", target)
    return style(figure, 430, [((0.72, 1.04), (0.78, 1.01))] * 3)


def draw_methods() -> go.Figure:
    "All methods, and the upper right corner of the same, where they have names."
    titles = ["all methods", "the upper right corner"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.08)
    fixed, report = fixed_lambdas(), read("report")
    for panel in (1, 2):
        corner = panel == 2
        draw(figure, panel, fixed, "satisfaction_at_0.8", lam if corner else unnamed)
        for name, runs in report.groupby("name", sort=False):
            named = corner or name in ("grpo", "saute")
            draw(figure, panel, runs, "satisfaction_rate", lambda _, n=name * named: n)
    return style(figure, 520, [((-0.03, 1.03), (-0.03, 1.03)), ((0.88, 1.004), (0.78, 1.0))])


def unnamed(settings: dict) -> str:
    "No label."
    return ""


def over_seeds(seeds: pd.DataFrame, method: str, d: float, column: str) -> dict:
    "A point of the frontier: the mean of a method's seeds at budget d, with its t-interval."
    middle, half = seeds[column].mean(), half_width(seeds[column])
    name = "accuracy_within_budget"
    ends = {f"{name}_low": middle - half, f"{name}_high": middle + half}
    return {"method": method, "budget": d, name: middle, **ends}


def draw_frontier() -> go.Figure:
    "The default asked for 95%, distillation alone and reward alone, below the exact optimum."
    asked, report = read("targets"), read("report")
    asked = asked[setting(asked, "target") == 0.95]
    points = [
        over_seeds(asked[asked["budget"] == d], DEFAULT, d, "accuracy_within_budget")
        for d in BUDGETS
    ]
    for name in ("gkd", "grpo"):
        seeds = report[report["name"] == name]
        points += [over_seeds(seeds, name, d, f"within_at_{d}") for d in BUDGETS]
    budgets = [0.05 * i for i in range(25)]
    prompts = chain_dataset(N_EVAL, "test")["prompt"][:]
    figure = frontier_figure(points, budgets, chain_frontier(prompts, budgets))
    return figure.update_yaxes(range=[0.45, 1.01]).update_traces(marker={"size": 7})


def main() -> None:
    "Draw and save all."
    draw_frontier().write_image(HERE / "frontier.svg")
    draw_budgets().write_image(HERE / "budgets.svg")
    draw_methods().write_image(HERE / "methods.svg")


if __name__ == "__main__":
    main()
