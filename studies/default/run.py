"""The default: a student that is taught first, a price for every prompt, an end at its rate.

    python studies/default/run.py                what runs.csv does not hold yet
    python studies/default/run.py --only TEXT    the runs whose name contains TEXT; --seeds N
    python studies/default/run.py --show         the tables of the README, from runs.csv

Every run is a row of runs.csv: 4096 test prompts, one completion each; a run that is in the file
is not repeated, the most wanted come first. `--workers N` at a time, one thread each, about two
minutes of a core for 600 updates. The teacher scores as many completions for every run of so many
updates, 128 an update; the yardstick has no use for it.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate_records, summarize
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from studies.default.yardstick import fit
from studies.lab import (
    Runs,
    made_with,
    markdown,
    paired,
    plus_minus,
    put_between,
    settings_of,
    with_interval,
)
from studies.methods.study import models_of

HERE = Path(__file__).resolve().parent
RUNS = Runs(HERE / "runs.csv", ("name", "settings", "config", "seed"))
SEEDS, N_EVAL = 5, 4096
MARKS = ("<!-- runs -->", "<!-- /runs -->")
TAUGHT, FORMER, SUPERVISED = "embedded-taught", "embedded", "supervised"
UNTAUGHT = {"distill_steps": 0, "seq_kd": False, "distill_learning_rate": None}
NO_END = {"calibration_prompts": 0, "certificate_prompts": 0}

PRICED = {"price": "prompt", "max_scale": 8.0}
ONE_STEP, FAST = {"num_iterations": 1}, {"learning_rate": 1.5e-3}
# name -> (recipe, settings of cmdp-rate, further fields of CMDPConfig)
VARIANTS = {
    "default": (TAUGHT, PRICED, {}),
    "one step": (TAUGHT, PRICED, ONE_STEP),
    "one step without end": (TAUGHT, PRICED, ONE_STEP),
    "one price": (TAUGHT, {"price": "global", "max_scale": 4.0}, ONE_STEP),
    "not taught": (FORMER, PRICED, {}),
    "slow and not taught": (TAUGHT, PRICED, UNTAUGHT | ONE_STEP),
    "fast throughout": (TAUGHT, PRICED, FAST | ONE_STEP),
    "fast with steps and end": (TAUGHT, PRICED, FAST),
    "former": (FORMER, {"price": "global"}, {}),
}
WITH_END = ("default", "one step", "fast with steps and end")
SECOND = ", second teacher"  # the pair of studies/methods that nothing was tuned on
# What a supervised fit is told: chosen on validation prompts for each budget.
TOLD = {"margin": 0.9, "cap": 0.99, "updates": 600, "learning_rate": 3e-3}


def plan() -> list[dict]:
    "All runs, the most wanted first."
    jobs = []
    for seed in range(SEEDS):
        for name, (recipe, settings, config) in VARIANTS.items():
            jobs.append(job(name, recipe, settings, config, seed))
        for name in ("default", "one step", "former"):
            recipe, settings, config = VARIANTS[name]
            jobs.append(job(name, recipe, settings, {**config, "budget": 0.4}, seed))
        for name in ("default", "former"):
            jobs.append(job(name + SECOND, *VARIANTS[name], seed))
        for budget in (0.8, 0.4):
            jobs.append(job(SUPERVISED, "", {"budget": budget, **TOLD}, {}, seed))
    for name, seed in itertools.product(("default", "one step"), range(2)):
        recipe, settings, config = VARIANTS[name]
        jobs.append(job(name, recipe, settings, {**config, "max_steps": 2400}, seed))
    return jobs


def job(name: str, recipe: str, settings: dict, config: dict, seed: int) -> dict:
    "One run."
    about = {"name": name, "recipe": recipe, "method": "cmdp-rate" if recipe else name}
    return {**about, "settings": settings, "config": config, "seed": seed}


def pair_of(job: dict) -> str:
    "Who learns from whom, as studies/methods calls them."
    return "second" if job["name"].endswith(SECOND) else "embedded"


def run(job: dict) -> dict:
    "Train and judge one student: a row of the CSV."
    torch.set_num_threads(1)
    *models, task = models_of(pair_of(job))
    prompts = chain_dataset(N_EVAL, "test", task=task)
    train = distilled if job["recipe"] else supervised
    budget, updates, records = train(job, models, task, prompts)
    result = summarize(records, Budget(budget))
    numbers = {name: x for name, x in result.items() if not name.endswith(("_low", "_high"))}
    numbers |= both_by_flaws(records, prompts["num_flawed"][:])
    return {
        **{name: json.dumps(x) if isinstance(x, dict) else x for name, x in job.items()},
        "budget": budget,
        "steps": updates,
        **{name: round(float(x), 5) for name, x in numbers.items()},
        **made_with(),
    }


def distilled(job: dict, models, task, prompts) -> tuple[float, int, list[dict]]:
    "Budget, updates and completions of a student of our method."
    student, teacher, tokenizer = models
    end = {} if job["name"].removesuffix(SECOND) in WITH_END else NO_END
    with tempfile.TemporaryDirectory() as folder:
        settings = end | settings_of(job, folder)
        args = CMDPConfig.from_recipe(job["recipe"], device="cpu", **settings)
        size = 16000 + args.calibration_prompts + args.certificate_prompts
        data = chain_dataset(size, task=task)
        trainer = CMDPTrainer(student, teacher, chain_reward, args, data, prompts, tokenizer)
        trainer.train()
        found = trainer.evaluate(return_records=True)[1]
        return args.budget, trainer.global_step, found


def supervised(job: dict, models, task, prompts) -> tuple[float, int, list[dict]]:
    "The same of a student that is told the optimum."
    student, teacher, tokenizer = models
    settings = dict(job["settings"])
    budget = settings.pop("budget")
    fit(
        student,
        tokenizer,
        chain_dataset(16000, task=task)["prompt"][:],
        budget,
        job["seed"],
        **settings,
    )
    judged = (student, teacher, prompts, tokenizer, chain_reward, Budget(budget))
    records = evaluate_records(*judged, seed=job["seed"], max_completion_length=32)
    return budget, settings["updates"], records


def both_by_flaws(records: list[dict], flawed: list[int]) -> dict[str, float]:
    "Right and within the budget, by the number of flawed steps of the prompt."
    both = np.array([r["correct"] and r["within_budget"] for r in records], float)
    return {f"both_{k}_flawed": both[np.array(flawed) == k].mean() for k in range(4)}


def say(row: dict) -> str:
    "A run in one line."
    names = ("accuracy", "satisfaction_rate", "accuracy_within_budget")
    rates = " ".join(f"{row[name]:.3f}" for name in names)
    return f"{row['name']} {row['config']} seed {row['seed']}: {rates}"


def heading(row: dict) -> str:
    "What a group of runs is called in the table: its name, another budget, other updates."
    further = {} if row["budget"] == 0.8 else {"d": row["budget"]}
    if "max_steps" in row["config"]:
        further["updates"] = json.loads(row["config"])["max_steps"]
    return ", ".join([row["name"], *(f"{k} = {v:g}" for k, v in further.items())])


def runs_table(runs: dict) -> str:
    "A line a group of seeds."
    head = ["run", "seeds", "accuracy", "satisfaction", "both", "one", "two"]
    rates = ("accuracy", "satisfaction_rate", "accuracy_within_budget")
    lines = []
    for name, group in runs.items():
        flawed = [f"{group[f'both_{k}_flawed'].mean():.3f}" for k in (1, 2)]
        lines.append([name, len(group), *(plus_minus(group[rate]) for rate in rates), *flawed])
    return markdown(head, lines)


def differences(runs: dict) -> str:
    "More of both than others of the same seeds have."
    column, lines = "accuracy_within_budget", []
    for name, group in runs.items():
        other, comma, how = name.partition(",")
        ours = f"default{comma}{how}"
        if other == "default" or ours not in runs:
            continue
        more = paired(runs[ours], group, column, column)
        if len(more) > 1:
            lines.append(f"- default − {name}: {with_interval(more)} ({len(more)} seeds)")
    return "\n".join(lines)


def show() -> None:
    "Write tables and differences into the README."
    rows = RUNS.read()
    labels = [heading(row) for row in rows.to_dict("records")]
    runs = dict(list(rows.groupby(labels, sort=False)))
    runs = {name: runs[name] for name in sorted(runs, key=lambda name: ("," in name, name))}
    text = f"\n{runs_table(runs)}\n\nMore of both, 95% t-interval over paired seeds:\n\n"
    put_between(HERE / "README.md", MARKS, f"{text}{differences(runs)}\n")
    print(runs_table(runs))


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="only the first so many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        jobs = [j for j in plan() if args.only in j["name"] and j["seed"] < args.seeds]
        RUNS.work(jobs, run, say, args.workers)
    show()


if __name__ == "__main__":
    main()
