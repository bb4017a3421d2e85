"""What the lessons use and do not teach: how to draw, where the studies are.

A cell computes and says what is shown; nothing here computes.
"""

from pathlib import Path

import plotly.graph_objects as go

import cmdp_nbdev
from cmdp_nbdev.plot import BLUE, GREEN, GREY, ORANGE, RED
from cmdp_nbdev.widgets.shootout import read_rows

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
