"""A budget on the divergence and one on something else, at once.

    python studies/methods/two_budgets.py [--seeds N]     what two_budgets.csv does not hold yet
    python studies/methods/two_budgets.py --show          the table

The embedded pair, the default method, d = 0.8 nats. The second budget is one of two. At most 20
tokens: what a well-formed completion of this task has, so that it can be kept together with the
other. At most two characters "7": many right answers have more, and to write another digit than the
teacher does costs more nats than d allows, so that about a tenth of the prompts cannot keep both.
One row a run, 4096 test prompts each; `start_` is the student before training.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.reward import length_cost
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from studies.lab import Runs, made_with

RUNS = Runs(Path(__file__).resolve().parent / "two_budgets.csv", ("variant", "seed"))
DIVERGENCE, N_EVAL = 0.8, 4096
VARIANTS = {  # the second budget, and the penalty for breaking it
    "divergence only": (None, 0.0),
    "and 20 tokens": ("length", 1.0),
    "and two sevens": ("sevens", 1.0),
    "and two sevens, n = 3": ("sevens", 3.0),
}


def sevens(completions) -> list[int]:
    "How often a completion says 7: a cost function of a user's own."
    return [text.count("7") for text in completions]


CONSTRAINTS = {"sevens": (sevens, Budget(2)), "length": (length_cost, Budget(20))}
MEASURED = (
    "accuracy",
    "satisfaction_rate",
    "satisfaction_rate_sevens",
    "satisfaction_rate_length",
    "kl_mean",
    "spent_mean_sevens",
    "length_mean",
)


def judge(student, teacher, tokenizer, prefix: str = "") -> dict[str, float]:
    "What a student does on the test prompts, judged by all three budgets."
    test = chain_dataset(N_EVAL, "test")
    result = evaluate(
        student,
        teacher,
        test,
        tokenizer,
        chain_reward,
        Budget(DIVERGENCE),
        constraints=CONSTRAINTS,
        seed=1,
    )
    return {prefix + name: round(result[name], 5) for name in MEASURED}


def train(job: dict, student, teacher, tokenizer) -> CMDPTrainer:
    "Train with the budget on divergence and the second one of the variant."
    kept, penalty = VARIANTS[job["variant"]]
    with tempfile.TemporaryDirectory() as folder:
        config = CMDPConfig.from_recipe(
            "embedded",
            budget=DIVERGENCE,
            seed=job["seed"],
            output_dir=folder,
            disable_tqdm=True,
            constraint_penalty=penalty,
        )
        trainer = CMDPTrainer(
            student,
            teacher,
            chain_reward,
            config,
            chain_dataset(16000),
            chain_dataset(N_EVAL, "test"),
            tokenizer,
            constraints={kept: CONSTRAINTS[kept]} if kept else None,
        )
        trainer.train()
    return trainer


def run(job: dict) -> dict:
    "Train one student and judge it by all three budgets, before and after: a row."
    torch.set_num_threads(1)
    student, teacher, tokenizer = default_pair()
    start = judge(student, teacher, tokenizer, "start_")
    trainer = train(job, student, teacher, tokenizer)
    return {
        **job,
        "budget": DIVERGENCE,
        **judge(trainer.model, teacher, tokenizer),
        **start,
        "n_eval": N_EVAL,
        "steps": trainer.global_step,
        **made_with(),
    }


def table(runs: pd.DataFrame) -> str:
    "One line a variant, means over seeds; a rate that was not measured in every run is left out."
    columns = {  # column: (head, width)
        "accuracy": ("accuracy", 10),
        "satisfaction_rate": ("divergence kept", 17),
        "satisfaction_rate_length": ("length kept", 13),
        "satisfaction_rate_sevens": ("sevens kept", 13),
    }
    heads = "".join(f"{head:>{wide}}" for head, wide in columns.values())
    lines = [f"{'trained for':24}{heads}{'seeds':>7}"]
    for variant in VARIANTS:
        seeds = runs[runs["variant"] == variant]
        means = {name: seeds[name].mean(skipna=False) for name in columns}
        texts = [
            " " * wide if pd.isna(means[name]) else f"{means[name]:{wide}.3f}"
            for name, (_, wide) in columns.items()
        ]
        lines.append(f"{variant:24}{''.join(texts)}{len(seeds):7}")
    return "\n".join(lines)


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    jobs = [
        {"variant": variant, "seed": seed} for seed in range(args.seeds) for variant in VARIANTS
    ]
    if not args.show:
        for job in RUNS.missing(jobs):
            RUNS.append(run(job))
    print(table(RUNS.read()))


if __name__ == "__main__":
    main()
