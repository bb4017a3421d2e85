"""The first study on the embedded task: a gate with fixed coefficients against fixed lambdas.

    python studies/foundation/study.py tune      settings compared on validation prompts, seed 100
    python studies/foundation/study.py report    what `chosen` reads off them, five other seeds,
                                                 test prompts
    python studies/foundation/study.py show      prints the tables from the CSV files
    python studies/foundation/study.py readme    writes them into README.md, between its two marks

Each run is one row of <stage>.csv and is not repeated. All runs share model, data, steps, batch and
learning rate (recipe `embedded`); GRPO was given a second, lower rate, too. Rows called
`smooth-gate` are of the default of that time: no run can repeat them, see README.md.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
import torch
import transformers

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import envelope, summarize
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.task import chain_dataset, chain_reward, step_validity
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from studies.lab import (
    Runs,
    groups,
    made_with,
    paired,
    put_between,
    settings_of,
    table,
    with_interval,
)

HERE = Path(__file__).resolve().parent
LAMBDAS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
# where satisfaction passes 95%: at the default budget, and at the tighter one
CROSSING = (1.1, 1.2, 1.35, 2.5, 3.5, 4.0)
# what `tune` said before these were added
BEFORE = ({"lam": 0.8, "scale_rewards": "none"}, {"lam": 1.0})
OTHER_BUDGET = 0.6  # nats; runs that do not depend on the budget are judged at it, too
TARGET, N_EVAL = 0.95, 4096
GATE = "smooth-gate"
MARKS = "<!-- tables: study.py readme -->\n```\n", "\n```\n<!-- end of tables -->"


# ---- the plan -----------------------------------------------------------------------------


def job(method: str, seed: int, split: str, settings: dict | None = None, **config) -> dict:
    "One run: method, its settings, other fields of CMDPConfig, seed, and the prompts to judge on."
    return {
        "method": method,
        "settings": settings or {},
        "config": config,
        "seed": seed,
        "split": split,
    }


def plan_tune() -> list[dict]:
    "Fixed lambdas, learning rates of GRPO, penalties of the paper's method."
    place = 100, "validation"
    jobs = [job("soft", *place, {"lam": lam}) for lam in LAMBDAS + CROSSING]
    for lam in (0.5, 0.8, 1.5):
        jobs.append(job("soft", *place, {"lam": lam, "scale_rewards": "none"}))
    for rate in (1.5e-3, 7.5e-4):  # three of five seeds collapse at the common rate
        jobs.append(job("grpo", *place, learning_rate=rate))
    for penalty, coef in ((1.0, 1.0), (0.0, 1.0), (0.0, 5.0)):
        jobs.append(job("cmdp", *place, {"penalty": penalty, "coef": coef}, distill_steps=200))
    return jobs


def plan_report() -> list[dict]:
    "What is reported, each with five seeds."
    best, jobs = chosen(), []
    for seed in range(5):
        place = seed, "test"
        jobs += [job("soft", *place, settings) for settings in (*BEFORE, *best["soft"])]
        jobs += [job(method, *place) for method in ("grpo", "gkd", "saute")]
        jobs.append(job("grpo", *place, **best["grpo"]))
        jobs += [job("cmdp", *place, best["paper"], distill_steps=steps) for steps in (200, 0)]
    return jobs


PLANS = {"tune": plan_tune, "report": plan_report}


def best_lambdas(column: str) -> list[pd.Series]:
    "The most accurate fixed lambda that satisfies the target, and its neighbour below the target."
    fixed = read("tune").query("method == 'soft'")
    safe = fixed[fixed[column] >= TARGET]
    best = fixed.loc[fixed[column].idxmax() if safe.empty else safe["accuracy"].idxmax()]
    below = fixed[(fixed[column] < TARGET) & (fixed["accuracy"] > best["accuracy"] - 0.02)]
    return [best] if below.empty else [best, below.loc[below[column].idxmax()]]


def chosen() -> dict:
    "What `tune` says is best; of the fixed lambdas at both budgets."
    runs = read("tune")
    soft = best_lambdas("satisfaction_rate") + best_lambdas(f"satisfaction_at_{OTHER_BUDGET}")
    paper, grpo = runs[runs["method"] == "cmdp"], runs[runs["method"] == "grpo"]
    return {
        "soft": [json.loads(text) for text in dict.fromkeys(run["settings"] for run in soft)],
        "paper": json.loads(paper.loc[paper["accuracy_within_budget"].idxmax(), "settings"]),
        "grpo": json.loads(grpo.loc[grpo["accuracy"].idxmax(), "config"]),
    }


# ---- the runs -----------------------------------------------------------------------------


def runs_of(stage: str) -> Runs:
    "The file of a stage."
    return Runs(HERE / f"{stage}.csv", ("method", "settings", "config", "seed", "split"))


def read(stage: str) -> pd.DataFrame:
    "The rows of <stage>.csv."
    return runs_of(stage).read()


def trainer_of(job: dict, folder: str) -> CMDPTrainer:
    "The trainer of a run."
    student, teacher, tokenizer = default_pair()
    config = CMDPConfig.from_recipe("embedded", **settings_of(job, folder))
    return CMDPTrainer(
        student,
        teacher,
        chain_reward,
        config,
        chain_dataset(16000),
        chain_dataset(N_EVAL, job["split"]),
        tokenizer,
        {"reasoning_validity": step_validity},
    )


def run(job: dict) -> dict:
    "Train and judge one student: a row of the CSV."
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(job, folder)
        trainer.train()
        result, records = trainer.evaluate(return_records=True)
    other = summarize(records, Budget(OTHER_BUDGET))
    return {
        **{name: json.dumps(x) if isinstance(x, dict) else x for name, x in job.items()},
        "budget": trainer.args.budget,
        **{name: round(x, 5) for name, x in result.items()},
        f"satisfaction_at_{OTHER_BUDGET}": round(other["satisfaction_rate"], 5),
        f"within_at_{OTHER_BUDGET}": round(other["accuracy_within_budget"], 5),
        "steps": trainer.args.max_steps,
        "completions_per_update": trainer.args.per_device_train_batch_size,
        "learning_rate": trainer.args.learning_rate,
        **made_with(),
    }


def say(row: dict) -> str:
    "A run in one line."
    what = f"{row['method']} {row['settings']} {row['config']} seed {row['seed']}"
    return f"{what}: accuracy {row['accuracy']:.3f}, satisfaction {row['satisfaction_rate']:.3f}"


# ---- tables -------------------------------------------------------------------------------


def overview() -> str:
    "One line per setting of the report."
    rates = {"accuracy": "accuracy", "satisfaction": "satisfaction_rate"}
    means = {
        "at 0.6": (f"satisfaction_at_{OTHER_BUDGET}", 3),
        "both": ("accuracy_within_budget", 3),
        "KL mean": ("kl_mean", 2),
        "KL p95": ("kl_p95", 2),
        "valid": ("reasoning_validity", 3),
    }
    return table(groups(read("report")), rates, means)


def against_lambdas(d: float) -> str:
    "The gate against the best fixed lambda whose mean satisfaction reaches the target at `d`."
    other = d == OTHER_BUDGET
    kept = f"satisfaction_at_{d}" if other else "satisfaction_rate"
    within = f"within_at_{d}" if other else "accuracy_within_budget"
    settings = groups(read("report"))
    fixed = {name: runs for name, runs in settings.items() if name.startswith("soft")}
    safe = {name: runs for name, runs in fixed.items() if runs[kept].mean() >= TARGET}
    if not safe:
        return f"budget {d:g}: no fixed λ among those reported reaches {TARGET:.0%}"
    best = max(safe, key=lambda name: safe[name]["accuracy"].mean())
    gate = read("report").query("method == @GATE and budget == @d")
    satisfied, accuracy = gate["satisfaction_rate"].mean(), gate["accuracy"].mean()
    its = f"({best}) {safe[best][kept].mean():.3f} at {safe[best]['accuracy'].mean():.3f}"
    lines = [
        f"budget {d:g}: the gate satisfies {satisfied:.3f} at accuracy {accuracy:.3f}; "
        f"best fixed λ {its}"
    ]
    for name, mine, theirs in (
        ("accuracy", "accuracy", "accuracy"),
        ("accuracy within the budget", "accuracy_within_budget", within),
    ):
        x = paired(gate, safe[best], mine, theirs)
        seeds = f"(95% t-interval, {len(x)} paired seeds)"
        lines.append(f"  difference in {name}: {with_interval(x)} {seeds}")
    points = [
        {"satisfaction_rate": runs[kept].mean(), "accuracy": runs["accuracy"].mean()}
        for runs in fixed.values()
    ]
    mixed = float(envelope(points, satisfied))
    return "\n".join(
        [*lines, f"  best mixture of fixed λs at that satisfaction: accuracy {mixed:.3f}"]
    )


def tables() -> str:
    "All that README.md shows."
    return "\n".join([overview(), "", against_lambdas(0.8), against_lambdas(OTHER_BUDGET)])


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*PLANS, "show", "readme"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.stage == "show":
        print(tables())
    elif args.stage == "readme":
        put_between(HERE / "README.md", MARKS, tables())
    else:
        runs_of(args.stage).work(PLANS[args.stage](), run, say, args.workers)


if __name__ == "__main__":
    main()
