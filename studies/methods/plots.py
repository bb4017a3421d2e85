"""The pictures of the README from the CSV files of study.py: `python studies/methods/plots.py` (needs plotly's image export, kaleido).

budgets.svg: for each budget, fixed lambdas (one student judged at every budget) against the default asked for four rates. methods.svg: every method at d = 0.8.
Small marks are runs, large ones their means over seeds; the percentages in budgets.svg are the rates that were asked for.
"""

import json
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from study import BUDGETS, DEFAULT, groups, mean, read, soft_rows

from cmdp_nbdev.plot import BLACK, SYMBOLS, method_color

HERE = Path(__file__).parent


def add(
    fig, col: int, runs: list[list[dict]], x: str, name: str, label, line: bool, shown: bool
) -> None:
    "Groups of runs of one method in panel `col`: every run small, every mean large, joined by a line if `line`."
    runs = sorted(
        [g for g in ([r for r in g if x in r] for g in runs) if g], key=lambda g: mean(g, x)
    )  # some runs were judged at one budget only
    color, symbol = method_color(name), SYMBOLS.get(name, "circle")
    every = [r for g in runs for r in g]
    fig.add_scatter(
        x=[r[x] for r in every],
        y=[r["accuracy"] for r in every],
        mode="markers",
        marker=dict(color=color, symbol=symbol, size=4, opacity=0.45),
        showlegend=False,
        row=1,
        col=col,
    )
    fig.add_scatter(
        x=[mean(g, x) for g in runs],
        y=[mean(g, "accuracy") for g in runs],
        mode="lines+markers+text" if line else "markers+text",
        text=[label(g) for g in runs],
        textposition="bottom left" if name == "soft" else "top right",
        marker=dict(color=color, symbol=symbol, size=10),
        line=dict(color=color, width=1, dash="dash"),
        name=name,
        showlegend=shown,
        textfont=dict(size=10),
        row=1,
        col=col,
    )


def styled(fig, height: int, ranges: list[tuple]) -> go.Figure:
    "White, with shares on both axes."
    for i, (x, y) in enumerate(ranges, 1):
        fig.update_xaxes(
            title="satisfaction rate", range=x, tickformat=".0%", gridcolor="#E5E5E5", row=1, col=i
        )
        fig.update_yaxes(range=y, tickformat=".0%", gridcolor="#E5E5E5", row=1, col=i)
        fig.add_vline(x=0.95, line=dict(color=BLACK, dash="dot", width=1), row=1, col=i)
    fig.update_yaxes(title="accuracy", row=1, col=1)
    return fig.update_layout(
        template="plotly_white",
        width=1000,
        height=height,
        margin=dict(l=60, r=10, t=50, b=60),
        font=dict(size=12),
        legend=dict(orientation="h", y=-0.22),
    )


def name_of(g: list[dict]) -> str:
    "A fixed lambda, of those that do not crowd."
    lam = json.loads(g[0]["settings"])["lam"]
    return f"λ={lam:g}" if lam in (0.75, 1.0, 1.35, 2.0, 3.0) else ""


def main() -> None:
    soft, ours = soft_rows(), read("targets")
    fig = make_subplots(
        1, 3, subplot_titles=[f"budget {d:g} nats" for d in BUDGETS], horizontal_spacing=0.05
    )
    for i, d in enumerate(BUDGETS, 1):
        add(
            fig,
            i,
            list(groups(soft).values()),
            f"satisfaction_at_{d}",
            "soft",
            name_of,
            True,
            i == 1,
        )
        add(
            fig,
            i,
            list(groups([r for r in ours if r["budget"] == d]).values()),
            "satisfaction_rate",
            DEFAULT,
            lambda g: f"{json.loads(g[0]['settings'])['target']:.0%}",
            True,
            i == 1,
        )
    styled(fig, 430, [((0.72, 1.04), (0.78, 1.01))] * 3).write_image(HERE / "budgets.svg")
    report = groups(read("report"))
    fig = make_subplots(
        1, 2, subplot_titles=["all methods", "the upper right corner"], horizontal_spacing=0.08
    )
    for i in (1, 2):
        add(
            fig,
            i,
            list(groups(soft).values()),
            "satisfaction_at_0.8",
            "soft",
            name_of if i == 2 else lambda g: "",
            True,
            i == 1,
        )
        for g in report.values():
            add(
                fig,
                i,
                [g],
                "satisfaction_rate",
                g[0]["method"],
                lambda g: "" if i == 1 and g[0]["name"] not in ("grpo", "saute") else g[0]["name"],
                False,
                i == 1 and g[0]["name"] == g[0]["method"],
            )
    styled(fig, 520, [((-0.03, 1.03), (-0.03, 1.03)), ((0.88, 1.004), (0.78, 1.0))]).write_image(
        HERE / "methods.svg"
    )


if __name__ == "__main__":
    main()
