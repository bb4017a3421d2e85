"""A budget on the divergence and one on something else, at once: `python studies/methods/two_budgets.py [--seeds N]`.

The embedded pair, the default method, d = 0.8 nats. The second budget is one of two. At most 20 tokens: what a well-formed completion of this task has, so that it can
be kept together with the other. At most two characters "7": many right answers have more, and to write another digit than the teacher does costs more nats than
d allows, so that about a tenth of the prompts cannot keep both. One row of two_budgets.csv a run (4096 test prompts); a run that is there is not repeated. `--show` prints the table.
"""

import argparse
import csv
import os
import platform
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
PATH, LIMITS, N_EVAL = HERE / "two_budgets.csv", {"sevens": 2, "length": 20}, 4096
VARIANTS = {
    "divergence only": (None, 0.0),
    "and 20 tokens": ("length", 1.0),
    "and two sevens": ("sevens", 1.0),
    "and two sevens, n = 3": ("sevens", 3.0),
}  # second budget, penalty n for breaking it


def sevens(completions) -> list[int]:
    "How often a completion says 7: a cost function of a user's own."
    return [text.count("7") for text in completions]


def run(variant: str, seed: int) -> dict:
    "Train one student and judge it on both budgets."
    import torch
    import transformers

    from cmdp_nbdev import __version__
    from cmdp_nbdev.budget import Budget
    from cmdp_nbdev.evaluate import evaluate
    from cmdp_nbdev.model import default_pair
    from cmdp_nbdev.reward import length_cost
    from cmdp_nbdev.task import chain_dataset, chain_reward
    from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

    torch.set_num_threads(1)
    student, teacher, tokenizer = default_pair()
    (kept, penalty), test = VARIANTS[variant], chain_dataset(N_EVAL, "test")
    budgets = {
        name: (cost, Budget(LIMITS[name]))
        for name, cost in (("sevens", sevens), ("length", length_cost))
    }
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = CMDPConfig(
            budget=0.8, seed=seed, output_dir=folder, disable_tqdm=True, constraint_penalty=penalty
        )
        trainer = CMDPTrainer(
            student,
            teacher,
            chain_reward,
            config,
            chain_dataset(16000),
            test,
            tokenizer,
            constraints={kept: budgets[kept]} if kept else None,
        )
        trainer.train()
        seconds = time.perf_counter() - began
        start = evaluate(
            default_pair()[0],
            teacher,
            test,
            tokenizer,
            chain_reward,
            Budget(0.8),
            constraints=budgets,
            seed=1,
        )
        result = evaluate(
            trainer.accelerator.unwrap_model(trainer.model),
            teacher,
            test,
            tokenizer,
            chain_reward,
            Budget(0.8),
            constraints=budgets,
            seed=1,
        )
    keep = (
        "accuracy",
        "satisfaction_rate",
        "satisfaction_rate_sevens",
        "satisfaction_rate_length",
        "kl_mean",
        "spent_mean_sevens",
        "length_mean",
    )
    return {
        "variant": variant,
        "seed": seed,
        "budget": 0.8,
        **{k: round(result[k], 5) for k in keep},
        **{f"start_{k}": round(start[k], 5) for k in keep},
        "n_eval": N_EVAL,
        "steps": trainer.global_step,
        "seconds": round(seconds, 1),
        "cmdp_nbdev": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread",
    }


def read() -> list[dict]:
    "The rows so far."
    if not PATH.exists():
        return []
    with open(PATH, newline="") as f:
        return list(csv.DictReader(f))


def table(rows: list[dict]) -> str:
    "One line a variant, means over seeds; every run behind them is in the CSV."

    def rate(g, k):
        return f"{sum(float(r[k]) for r in g) / len(g):.3f}" if all(r.get(k) for r in g) else ""

    def line(name, g, pre=""):
        return (
            f"{name:24}"
            + "".join(
                f"{rate(g, pre + k):>{w}}"
                for k, w in (
                    ("accuracy", 10),
                    ("satisfaction_rate", 17),
                    ("satisfaction_rate_length", 13),
                    ("satisfaction_rate_sevens", 13),
                )
            )
            + f"{len(g):7}"
        )

    lines = [
        f"{'trained for':24}{'accuracy':>10}{'divergence kept':>17}{'length kept':>13}{'sevens kept':>13}{'seeds':>7}"
    ]
    return "\n".join(
        lines + [line(v, g) for v in VARIANTS if (g := [r for r in rows if r["variant"] == v])]
    )


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    done = {(r["variant"], int(r["seed"])) for r in read()}
    for seed in range(args.seeds):
        for variant in VARIANTS:
            if args.show or (variant, seed) in done:
                continue
            row = run(variant, seed)
            new = not PATH.exists()
            with open(PATH, "a", newline="") as f:
                writer = csv.DictWriter(f, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
    print(table(read()))


if __name__ == "__main__":
    main()
