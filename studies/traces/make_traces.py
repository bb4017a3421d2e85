"""The traces that the widgets show: completions of the students of studies/methods.

    python studies/traces/make_traces.py         trains what studies/methods/traces does not hold;
                                                 may be stopped at any time and goes on there
    python studies/traces/make_traces.py rows    writes the rows anew, as the plan of the study
                                                 names them now; the arrays stay as they are

Writes cmdp_nbdev/data/traces.npz (read by widgets.panel.load_traces) and config.json beside this
file (settings, versions, machine). The students are those of the tables of studies/methods, seeds
2 and 3 (other budgets than 0.8: seed 2): the first 400 test completions of each, with the cost of
every token of the first 40.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cmdp_nbdev import __version__
from cmdp_nbdev.run import run_config
from cmdp_nbdev.task import chain_frontier, chain_prompts
from cmdp_nbdev.trainer import CMDPConfig
from studies.methods import study

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "cmdp_nbdev" / "data" / "traces.npz"
CONFIG = Path(__file__).with_name("config.json")
CURVE = np.round(np.arange(0, 2.001, 0.05), 2)  # budgets of the exact optimum
READS_NONE = ("grpo", "gkd", "minillm", "kdrl", "soft")  # methods that do not read d,
READS_NONE += ("weakest-link",)  # or have a limit of their own

# ---- the plan -----------------------------------------------------------------------------


def budget_of(job: dict) -> float:
    "The budget that a job of the study trains for."
    return job["config"].get("budget", CMDPConfig.from_recipe("embedded").budget)


def row_of(job: dict) -> dict:
    "What the file says about one student."
    method, settings = job["method"], job["settings"]
    label = method
    if method == "soft" and settings["lam"] != 1:
        label = f"soft λ={settings['lam']:g}"
    budget = None if method in READS_NONE else budget_of(job)
    row = {"label": label, "method": method, "settings": settings}
    return row | {"budget": budget, "seed": job["seed"]}


def place(job: dict) -> tuple:
    "Seed by seed, the methods in the order of the study, smaller budgets first."
    methods, row = list(study.TRIALS), row_of(job)
    method = methods.index(job["name"]) if job["name"] in methods else 99
    return job["seed"], method, row["budget"] or 0


def wanted() -> list[dict]:
    "The jobs of the study whose completions are shown."
    seeds = {"report": study.TRACE_SEEDS, "views": study.TRACE_SEEDS}
    seeds["budgets"] = study.TRACE_SEEDS[:1]
    jobs = [job for stage in seeds for job in study.plan(stage) if job["seed"] in seeds[stage]]
    return sorted((job for job in jobs if job["name"] == job["method"]), key=place)


# ---- the files ----------------------------------------------------------------------------


def traced(job: dict) -> dict:
    "The arrays of one student, which is trained if the study did not keep them."
    name, settings, seed = job["name"], job["settings"], job["seed"]
    path = study.trace_path(name, settings, budget_of(job), seed)
    if not path.exists():
        print(f"training {name} {settings}, budget {budget_of(job)}, seed {seed}", flush=True)
        study.run(job)
    return read(path)


def read(path: Path) -> dict:
    "All arrays of a file."
    with np.load(path) as f:
        return dict(f)


def write(rows: list[dict], arrays: dict) -> None:
    "The trace file, complete or unchanged."
    part = TARGET.with_suffix(".part.npz")
    np.savez_compressed(part, rows=json.dumps(rows), **arrays)
    part.replace(TARGET)
    size = TARGET.stat().st_size / 1000
    print(f"{TARGET.relative_to(ROOT)}: {len(rows)} students, {size:.0f} kB")


def describe(made: dict) -> None:
    "How the file was made, with its size."
    made = made | {"bytes": TARGET.stat().st_size}
    CONFIG.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def conditions(students: int) -> dict:
    "What all students have in common, and what made them."
    own = ("output_dir", "method", "method_kwargs", "budget", "seed", "versions")
    versions = {"cmdp_nbdev": __version__, "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "numpy": np.__version__}
    return {
        "script": "studies/traces/make_traces.py",
        "students": students,
        "seeds": list(study.TRACE_SEEDS),
        "bytes": 0,
        "config": {
            k: v for k, v in run_config(CMDPConfig.from_recipe("embedded")).items() if k not in own
        },
        "machine": platform.machine(),
        "versions": versions,
    }


# ---- what can be asked for ----------------------------------------------------------------


def make() -> None:
    "Train what is missing, and write both files."
    jobs = wanted()
    found = [traced(job) for job in jobs]
    curve = np.round(chain_frontier(chain_prompts(1000, "test", 0), CURVE), 4)
    arrays = {"curve_budget": CURVE, "curve_optimum": curve}
    arrays |= {k: np.stack([a[k] for a in found]) for k in found[0]}
    write([row_of(job) for job in jobs], arrays)
    describe(conditions(len(jobs)))


def rename() -> None:
    "Write the rows of the plan into the file that is there: its methods may have other names now."
    rows, arrays = [row_of(job) for job in wanted()], read(TARGET)
    before = json.loads(str(arrays.pop("rows")))
    fixed = ("settings", "budget", "seed")
    if [[r[k] for k in fixed] for r in before] != [[r[k] for k in fixed] for r in rows]:
        raise SystemExit("the plan has other students than the file: run without `rows`")
    write(rows, arrays)
    describe(json.loads(CONFIG.read_text(encoding="utf-8")))


if __name__ == "__main__":
    rename() if sys.argv[1:] == ["rows"] else make()
