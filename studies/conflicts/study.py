"""When a budget pays, and what it buys: methods under four kinds of conflict.

    python studies/conflicts/study.py run        what runs.csv does not hold yet
    python studies/conflicts/study.py readme     the picture, and the tables of README.md

`run --only TEXT` runs the conflicts whose name contains it, `--workers N` that many at a time on
the CPU, `--gpu-workers N` further ones on a GPU, `--seeds N` the first so many seeds.

One run is one row of runs.csv and is not repeated, so a stopped study goes on where it was. For
every conflict the fixed λs are tried first, on validation prompts with a seed that is not reported;
the λ with most accuracy within the budget is then run with the others, on test prompts.
"""

import argparse
import base64
import json
import sys
import tempfile
import time
import zlib
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import transformers

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate, metric_values
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from studies.conflicts.pairs import (
    CONFLICTS,
    OF_CHAINS,
    PAIRS,
    metrics_of,
    models_of,
    reward_of,
)
from studies.default.run import TOLD
from studies.default.yardstick import fit
from studies.lab import Runs, made_with, settings_of

HERE = Path(__file__).resolve().parent
KEY = ("conflict", "name", "settings", "seed", "split")
SEEDS, TUNE_SEED = range(5), 100
DEFAULT, CHOSEN = "cmdp-rate", "chosen"
CORRECT_AT = 0.05  # a right answer earns more, whatever its tokens cost


# The settings are those that four trials on validation prompts chose in studies/methods, the
# default's those of its recipe. Fixed λ has four or five trials a conflict.
METHODS = {
    DEFAULT: {},  # those of the pair's recipe
    "soft": CHOSEN,
    "grpo": {},
    "gkd": {},
    "cmdp": {"penalty": 1.0, "coef": 1.0},
    "saute": {"penalty": 0.3},
    "hinge": {"coef": 1.0},
    "chance-dual": {"lr": 1.0, "init": 1.0},
}
FIRST = (DEFAULT, "soft", "grpo", "gkd", "cmdp")  # what the comparison needs
AS_THEY_ARE, YARDSTICK = ("start", "teacher"), "told"
OUTCOMES = ("correct", "within_budget", "reasoning_validity", "left_out")

# ---- the plan -----------------------------------------------------------------------------


def job(conflict: str, name: str, settings, seed: int = 0, split: str = "test") -> dict:
    "One run; settings 'chosen' stands for the λ that the trials say is best."
    return {
        "conflict": conflict,
        "name": name,
        "settings": settings,
        "seed": seed,
        "split": split,
    }


def plan(conflicts: list[str], num_seeds: int = len(SEEDS)) -> list[dict]:
    "All runs, the most wanted first: one seed everywhere before the second anywhere."
    calm = [name for name in conflicts if CONFLICTS[name].kind == "a"]
    others = [name for name in reversed(conflicts) if name not in calm]
    rest = [name for name in METHODS if name not in FIRST]
    jobs = [job(c, name, {}) for c in conflicts for name in AS_THEY_ARE]
    jobs += [job(c, YARDSTICK, TOLD) for c in conflicts if CONFLICTS[c].pair in OF_CHAINS]
    for conflict in others:
        jobs += tests([conflict], FIRST, SEEDS[:1]) + tries(conflict)
    jobs += tests(others, FIRST, SEEDS[1:num_seeds])
    for conflict in calm:
        jobs += tries(conflict) + tests([conflict], FIRST, SEEDS[:num_seeds])
    return jobs + tests(conflicts, rest, SEEDS[:num_seeds])


def tries(conflict: str) -> list[dict]:
    "The trials of fixed λs, and the default beside them."
    given = [("soft", {"lam": lam}) for lam in PAIRS[CONFLICTS[conflict].pair].lambdas]
    given.append((DEFAULT, settings_under(conflict, DEFAULT)))
    return [job(conflict, *what, TUNE_SEED, "validation") for what in given]


def settings_under(conflict: str, name: str):
    "The settings of a method under a conflict."
    return PAIRS[CONFLICTS[conflict].pair].default if name == DEFAULT else METHODS[name]


def tests(conflicts: list[str], names, seeds) -> list[dict]:
    "Methods on test prompts, seed by seed; one seed is enough to see the constant penalty fail."
    return [
        job(conflict, name, settings_under(conflict, name), seed)
        for seed in seeds
        for name in names
        for conflict in conflicts
        if name != "saute" or seed == 0
    ]


def trials(rows, conflict: str):
    "The trials of fixed λs under a conflict."
    tried = rows[(rows["conflict"] == conflict) & (rows["split"] == "validation")]
    return tried[tried["name"] == "soft"]


def settle(job: dict, runs: Runs) -> dict | None:
    "The job with the λ that was chosen; None as long as a trial is missing."
    if job["settings"] != CHOSEN:
        return job
    tried = trials(runs.read(), job["conflict"])
    if len(tried) < len(PAIRS[CONFLICTS[job["conflict"]].pair].lambdas):
        return None
    best = tried.loc[tried["accuracy_within_budget"].idxmax()]
    return {**job, "settings": json.loads(best["settings"])}


# ---- a run --------------------------------------------------------------------------------


def run(job: dict) -> dict:
    "Train and judge one student: a row. A run that breaks is a row, too."
    transformers.utils.logging.disable_progress_bar()
    conflict = CONFLICTS[job["conflict"]]
    student, teacher, tokenizer = models_of(conflict)
    pair, began = PAIRS[conflict.pair], time.perf_counter()
    steps, note, device = 0, "", job.get("device", "cpu")
    if job["name"] in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(job, (student, teacher, tokenizer), folder)
            note = train(trainer)
        steps, student = trainer.global_step, trainer.student
    elif job["name"] == YARDSTICK:
        tell(job, student, tokenizer)
        steps = job["settings"]["updates"]
    elif job["name"] == "teacher":
        student = teacher
    seconds = time.perf_counter() - began
    student.to(device)
    teacher.to(device)
    result, records = evaluate(
        student,
        teacher,
        pair.dataset(pair.num_test, job["split"]),
        tokenizer,
        reward_of(conflict),
        Budget(conflict.budget),
        metrics=metrics_of(conflict),
        return_records=True,
        correct_at=CORRECT_AT,
        batch_size=512,
        max_completion_length=pair.settings["max_completion_length"],
        seed=job["seed"] + 1000 * (job["name"] == "teacher"),
        disable_tqdm=True,
    )
    numbers = {name: x for name, x in result.items() if not name.endswith(("_low", "_high"))}
    return {
        **{name: job[name] for name in KEY},
        "settings": json.dumps(job["settings"]),
        "budget": conflict.budget,
        **{name: round(float(x), 5) for name, x in (numbers | spent_by(records)).items()},
        "steps": steps,
        "seconds": round(seconds, 1),
        "device": device,
        "note": note,
        **made_with(),
        **{f"each_{name}": pack(metric_values(records, name)) for name in OUTCOMES},
    }


def trainer_of(job: dict, models: tuple, folder: str) -> CMDPTrainer:
    "The trainer of a run."
    conflict = CONFLICTS[job["conflict"]]
    pair = PAIRS[conflict.pair]
    about = {**job, "method": job["name"], "config": {"correct_at": CORRECT_AT}}
    config = CMDPConfig(
        **conflict.settings | settings_of(about, folder),
        device="cpu" if job.get("device", "cpu") == "cpu" else "auto",
    )
    student, teacher, tokenizer = models
    data = pair.dataset(pair.num_train, "train")
    return CMDPTrainer(student, teacher, reward_of(conflict), config, data, None, tokenizer)


def tell(job: dict, student, tokenizer) -> None:
    "Fit the student to the exactly optimal policy."
    conflict = CONFLICTS[job["conflict"]]
    pair = PAIRS[conflict.pair]
    prompts = pair.dataset(pair.num_train, "train")["prompt"][:]
    fit(student, tokenizer, prompts, conflict.budget, job["seed"], **job["settings"])


def train(trainer: CMDPTrainer) -> str:
    "Train to the end; why it ended early, if it did."
    try:
        trainer.train()
    except (FloatingPointError, RuntimeError) as error:
        return f"stopped at update {trainer.global_step}: {type(error).__name__}"
    return ""


def spent_by(records: list[dict]) -> dict[str, float]:
    "Nats that right completions spend on average, and wrong ones; NaN if there is none."
    spent = {True: [], False: []}
    for record in records:
        spent[record["correct"]].append(record["spent"])
    means = {known: float(np.mean(x)) if x else float("nan") for known, x in spent.items()}
    return {"nats_right": means[True], "nats_wrong": means[False]}


def pack(values: np.ndarray) -> str:
    "Small whole numbers of all prompts, as text for a cell."
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    "The numbers of all prompts from a cell."
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(float)


# ---- many runs ----------------------------------------------------------------------------


def start_worker() -> None:
    "What every process does once: one thread."
    torch.set_num_threads(1)


def work(jobs: list[dict], runs: Runs, workers: dict[str, int]) -> None:
    """Do the jobs in their order, as soon as what they wait for is there; rows are appended.

    workers: device -> number of processes. Raises, after the others, what a job has raised.
    """
    context = get_context("spawn")
    pools = {
        device: ProcessPoolExecutor(n, mp_context=context, initializer=start_worker)
        for device, n in workers.items()
        if n
    }
    free, running, failed = dict(workers), {}, []
    print(f"{len(runs.read())} runs done, {len(jobs)} asked for", flush=True)
    while jobs or running:
        for device in pools:
            while free[device] and (ready := next_job(jobs, runs)):
                running[pools[device].submit(run, {**ready, "device": device})] = device
                free[device] -= 1
        if not running:
            break
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            free[running.pop(done)] += 1
            if error := done.exception():
                failed.append(error)
                print(f"failed: {error}", flush=True)
                continue
            runs.append(done.result())
            print(say(done.result()), flush=True)
    if failed:
        raise failed[0]


def next_job(jobs: list[dict], runs: Runs) -> dict | None:
    "Take the first job out of the list that can begin and has no row yet; None if there is none."
    for waiting in list(jobs):
        settled = settle(waiting, runs)
        if settled is None:
            continue
        jobs.remove(waiting)
        if runs.missing([settled]):
            return settled
    return None


def say(row: dict) -> str:
    "A run in one line."
    rates = ("accuracy", "satisfaction_rate", "accuracy_within_budget", "left_out", "length_mean")
    found = ", ".join(f"{name} {row[name]:.3f}" for name in rates)
    what = f"{row['conflict']}: {row['name']} {row['settings']} seed {row['seed']}"
    return f"{what}: {found} ({row['seconds']:.0f} s, {row['device']}) {row['note']}"


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("run", "readme"))
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu-workers", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--file", type=Path, default=HERE / "runs.csv")
    args = parser.parse_args()
    if args.stage == "readme":
        from studies.conflicts import tables

        tables.write_readme()
        return
    conflicts = [name for name in CONFLICTS if args.only in name]
    workers = {"cuda": args.gpu_workers, "cpu": args.workers}
    work(plan(conflicts, args.seeds), Runs(args.file, KEY), workers)


if __name__ == "__main__":
    main()
