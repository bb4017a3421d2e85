"""Does a run end at the rate it is asked for? Single runs, four rates, three budgets.

    python studies/rate/run.py            what runs.csv does not hold yet, then the README's table
    python studies/rate/run.py --show     the README's table, from runs.csv

A run is the recipe `embedded-taught`: 600 updates x 128, asked for one rate; then `calibrate` moves
it there, and a certificate is asked for, from prompts that were used for nothing else. In between
its state (weights, optimiser, controller) is kept, so that a change of the end alone repeats no
training. A row has what test prompts say before the end and after it.
"""

import argparse
import copy
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
import torch

from cmdp_nbdev.certificate import certify_run
from cmdp_nbdev.evaluate import evaluate_records, summarize
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from studies.lab import Runs, made_with, markdown, put_between

HERE = Path(__file__).resolve().parent
RUNS = Runs(HERE / "runs.csv", ("budget", "asked", "seed", "target"))
STATES = HERE / "states"  # of main runs, so that a stopped study goes on; not kept in git
TARGETS = (0.8, 0.9, 0.95, 0.99)
SINGLE = [(d, target, 0) for target in TARGETS for d in (0.4, 0.8, 1.0)]
SINGLE += [(0.4, target, 1) for target in TARGETS]
SINGLE += [(0.8, target, 1) for target in TARGETS[1:]] + [(1.0, 0.99, 1)]
N_TRAIN = 16000
N_EVAL = {0.8: 13500}  # test prompts (all of them), else 4096: in a low rate chance is largest
MARKS = ("<!-- ends -->", "<!-- /ends -->")
# Prompts for calibration and certificate, else 2048 and 8192: what is aimed at comes closer to what
# is asked for with more of them.
HELD = {0.8: (8192, 32768), 0.9: (8192, 32768), 0.99: (4096, 16384)}


def plan() -> list[dict]:
    "Twenty single runs, each asked for its own rate: four rates, three budgets, some seeds twice."
    names = ("budget", "asked", "seed", "target")
    return [dict(zip(names, (*single, single[1]))) for single in SINGLE]


def trainer(budget: float, target: float, seed: int, n_train: int, **settings) -> CMDPTrainer:
    "A run of the recipe, with so many training prompts before any are held out."
    student, teacher, tokenizer = default_pair()
    args = CMDPConfig.from_recipe(
        "embedded-taught",
        method_kwargs={"price": "prompt", "max_scale": 8.0, "target": target},
        budget=budget,
        seed=seed,
        device="cpu",
        disable_tqdm=True,
        output_dir=tempfile.mkdtemp(),
        num_iterations=1,  # as the recipe was when these runs were made
        **settings,
    )
    data = chain_dataset(n_train), chain_dataset(64, "validation")
    return CMDPTrainer(student, teacher, chain_reward, args, *data, tokenizer)


def main_run(budget: float, asked: float, seed: int) -> dict:
    "The last state of a main run, trained or read."
    path = STATES / f"{budget}-{asked}-{seed}.pt"
    if not path.is_file():
        uncalibrated = {"calibration_prompts": 0, "certificate_prompts": 0}
        run = trainer(budget, asked, seed, N_TRAIN, **uncalibrated)
        run.train()
        weights, optimizer = run.student.state_dict(), run.optimizer.state_dict()
        STATES.mkdir(exist_ok=True)
        kept = {"model": weights, "optim": optimizer, "state": run.method_state}
        torch.save(kept | {"step": run.global_step}, path)
    return torch.load(path, weights_only=True)


def take_up(run: CMDPTrainer, state: dict) -> None:
    "Go on from the last state of a main run."
    run.student.load_state_dict(state["model"])
    run.optimizer.load_state_dict(copy.deepcopy(state["optim"]))
    run.method_state, run.global_step = copy.deepcopy(state["state"]), state["step"]


def measure(run: CMDPTrainer, when: str) -> dict[str, float]:
    "What test prompts say."
    prompts = chain_dataset(N_EVAL.get(run.args.target, 4096), "test")
    judged = (run.student, run.teacher, prompts, run.processing_class)
    how = dict(seed=run.args.seed, max_completion_length=32, disable_tqdm=True)
    found = summarize(evaluate_records(*judged, chain_reward, run.budget, **how))
    names = ("accuracy", "satisfaction_rate", "accuracy_within_budget")
    return {f"{when}_{name}": round(found[name], 5) for name in names}


def end(job: dict) -> dict:
    "The end of a main run at one rate: a row."
    torch.set_num_threads(1)
    state = main_run(job["budget"], job["asked"], job["seed"])
    calibration, certificate = HELD.get(job["target"], (2048, 8192))
    held = {"calibration_prompts": calibration, "certificate_prompts": certificate}
    n = N_TRAIN + sum(held.values())
    run = trainer(job["budget"], job["target"], job["seed"], n, **held)
    take_up(run, state)
    before = measure(run, "before")
    run.train()
    found = run.run_info["calibration"]
    certificate = certify_run(run, run.held_out["certificate_prompts"], job["target"])
    return {
        **job,
        **before,
        "aim": round(found["aim"], 5),
        "updates": found["updates"],
        "place": round(found["place"], 4),
        **measure(run, "after"),
        "certificate": certificate.verdict,
        "certificate_prompts": certificate.n,
        "certificate_rate": round(certificate.rate, 5),
        **made_with(),
    }


def say(row: dict) -> str:
    "A row in one line."
    rates = " -> ".join(f"{row[f'{w}_satisfaction_rate']:.3f}" for w in ("before", "after"))
    about = f"d={row['budget']} asked {row['target']} seed {row['seed']}"
    return f"{about}: {rates}, {row['certificate']}"


def ends_table(rows: pd.DataFrame) -> str:
    "A line a row: where the run stood, where it ended, what it cost, and whether it is certified."
    head = ["d", "asked", "seed", "trained", "ended", "accuracy", "updates", "verdict"]
    lines = []
    for r in rows.sort_values(["budget", "target", "seed"]).to_dict("records"):
        accuracy = f"{r['before_accuracy']:.3f} → {r['after_accuracy']:.3f}"
        rates = [f"{r[f'{when}_satisfaction_rate']:.3f}" for when in ("before", "after")]
        verdict = f"{r['certificate']} ({r['certificate_prompts']} prompts)"
        asked = [f"{r[name]:g}" for name in ("budget", "target", "seed")]
        lines.append([*asked, *rates, accuracy, r["updates"], verdict])
    return markdown(head, lines)


def counts(rows: pd.DataFrame) -> str:
    "How many ended where they were asked to."
    miss = {
        when: (rows[f"{when}_satisfaction_rate"] - rows["target"]).abs()
        for when in ("before", "after")
    }
    near = {when: int((x <= 0.02).sum()) for when, x in miss.items()}
    certified = int((rows["certificate"] == "certified").sum())
    kept = int((rows["after_satisfaction_rate"] >= rows["target"]).sum())
    return (
        f"Of {len(rows)} runs {near['after']} end within two points of the rate that they were "
        f"asked for (before their end {near['before']}), "
        f"{kept} keep it on the test prompts, {certified} are certified; the mean miss is "
        f"{100 * miss['after'].mean():.1f} points, the largest {100 * miss['after'].max():.1f}."
    )


def show() -> None:
    "Write the table into the README."
    rows = RUNS.read()
    text = f"\n\n{counts(rows)}\n\n{ends_table(rows)}\n\n"
    put_between(HERE / "README.md", MARKS, text)
    print(counts(rows))


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if not args.show:
        for job in RUNS.missing(plan()):
            row = end(job)
            RUNS.append(row)
            print(say(row), flush=True)
    show()


if __name__ == "__main__":
    main()
