"""The pictures of the README from the CSV files of study.py: `python studies/foundation/plots.py` (needs plotly's image export, kaleido)."""

import json
from pathlib import Path

from study import N_EVAL, groups, mean, read

from cmdp_nbdev.budget import satisfaction_interval
from cmdp_nbdev.plot import frontier_figure, tradeoff_figure
from cmdp_nbdev.task import chain_dataset, chain_frontier

HERE = Path(__file__).parent


def with_interval(rows: list[dict], name: str) -> dict:
    "One row of means over seeds; the interval is Clopper-Pearson over all prompts of all seeds."
    out = {
        k: mean(rows, k)
        for k in ("accuracy", "satisfaction_rate", "accuracy_within_budget", "budget")
    } | {"method": name}
    n = int(sum(r["n_eval"] for r in rows))
    for k in ("accuracy", "satisfaction_rate", "accuracy_within_budget"):
        out[f"{k}_low"], out[f"{k}_high"] = satisfaction_interval(round(out[k] * n), n)
    return out


def label(row: dict) -> str:
    "The λ of a soft relaxation with scaled advantages; the unscaled one lies on λ = 1.35, where two labels could not be read."
    settings = json.loads(row["settings"])
    return (
        f"λ={settings['lam']:g}"
        if row["method"] == "soft" and "scale_rewards" not in settings
        else ""
    )


def main() -> None:
    report = groups(read("report"))
    rows = [with_interval(g, g[0]["method"]) | {"label": label(g[0])} for g in report.values()]
    at_default = [r for r in rows if r["budget"] == 0.8]
    zoom = [r for r in at_default if r["satisfaction_rate"] > 0.55]
    tradeoff_figure(zoom, x_range=(0.6, 1.005), y_range=(0.65, 1.005)).write_image(
        HERE / "tradeoff.svg"
    )
    budgets = [0.05 * i for i in range(25)]
    optimum = chain_frontier(chain_dataset(N_EVAL, "test")["prompt"][:], budgets)
    best_soft = max(
        (r for r in at_default if r["method"] == "soft"), key=lambda r: r["accuracy_within_budget"]
    )
    points = [r for r in rows if r["method"] in ("cmdp-rate", "gkd", "grpo")] + [best_soft]
    points += [with_interval(g, "cmdp-rate") for g in groups(read("budgets")).values()]
    frontier_figure(points, budgets, optimum).write_image(HERE / "frontier.svg")


if __name__ == "__main__":
    main()
