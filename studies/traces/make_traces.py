"""The traces that the widgets show: completions of the students of studies/methods, by method, budget and seed.

    python studies/traces/make_traces.py        # trains what studies/methods/traces does not hold; may be stopped at any time and goes on there

Writes cmdp_nbdev/data/traces.npz (read by widgets.panel.load_traces) and studies/traces/config.json (settings, versions, machine). The students are those of
the tables of studies/methods, seeds 2 and 3 (other budgets than 0.8: seed 2): the first 400 test completions of each, with the cost of every token of the first 40.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from cmdp_nbdev import __version__
from cmdp_nbdev.run import run_config
from cmdp_nbdev.task import chain_frontier, chain_prompts
from cmdp_nbdev.trainer import CMDPConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "studies" / "methods"))
import study

TARGET, CONFIG = (
    ROOT / "cmdp_nbdev" / "data" / "traces.npz",
    Path(__file__).with_name("config.json"),
)
CURVE = np.round(np.arange(0, 2.001, 0.05), 2)  # budgets of the exact optimum
LABELS = {
    "soft": lambda settings: "soft" if settings["lam"] == 1 else f"soft λ={settings['lam']:g}"
}
READS_NONE = (
    "grpo",
    "gkd",
    "minillm",
    "kdrl",
    "soft",
    "weakest-link",
)  # methods that do not read d (weakest-link has a limit of its own)


def wanted() -> list[tuple[dict, dict]]:
    "(row of the file, job of the study), seed by seed."
    jobs = [
        j
        for stage in ("report", "views", "budgets")
        for j in study.plan(stage)
        if j["name"] == j["method"]
        and j["seed"] in (study.TRACE_SEEDS if stage != "budgets" else study.TRACE_SEEDS[:1])
    ]

    def budget(j):
        return j["config"].get("budget", CMDPConfig().budget)

    def row(j):
        return {
            "label": LABELS.get(j["method"], lambda settings: j["name"])(j["settings"]),
            "method": j["method"],
            "settings": j["settings"],
            "budget": None if j["name"] in READS_NONE else budget(j),
            "seed": j["seed"],
        }

    return sorted(
        ((row(j), j) for j in jobs),
        key=lambda pair: (
            pair[0]["seed"],
            list(study.TRIALS).index(pair[1]["name"]) if pair[1]["name"] in study.TRIALS else 99,
            pair[0]["budget"] or 0,
        ),
    )


def main() -> None:
    "Train what is missing, then write the two files, each complete or unchanged."
    rows, arrays = [], []
    for row, job in wanted():
        path = study.trace_path(
            job["name"],
            job["settings"],
            job["config"].get("budget", CMDPConfig().budget),
            job["seed"],
        )
        if not path.exists():
            print(
                f"training {row['label']}, budget {row['budget']}, seed {row['seed']}", flush=True
            )
            study.run(job)
        rows.append(row)
        with np.load(path) as f:
            arrays.append(dict(f))
    optimum = np.round(chain_frontier(chain_prompts(1000, "test", 0), CURVE), 4)
    np.savez_compressed(
        part := TARGET.with_suffix(".part.npz"),
        rows=json.dumps(rows),
        curve_budget=CURVE,
        curve_optimum=optimum,
        **{k: np.stack([a[k] for a in arrays]) for k in arrays[0]},
    )
    part.replace(TARGET)
    settings = {
        k: v
        for k, v in run_config(CMDPConfig()).items()
        if k not in ("output_dir", "method", "method_kwargs", "budget", "seed", "versions")
    }
    made = {
        "script": "studies/traces/make_traces.py",
        "students": len(rows),
        "seeds": list(study.TRACE_SEEDS),
        "bytes": TARGET.stat().st_size,
        "config": settings,
        "machine": platform.machine(),
        "versions": {
            "cmdp_nbdev": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }
    CONFIG.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(
        f"{TARGET.relative_to(ROOT)}: {len(rows)} students, {TARGET.stat().st_size / 1000:.0f} kB"
    )


if __name__ == "__main__":
    main()
