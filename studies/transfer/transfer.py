"""Does constrained distillation on short chains carry over to longer ones?

    python studies/transfer/transfer.py              the rows that transfer.csv does not hold yet
    python studies/transfer/transfer.py --readme     the table of README.md, from transfer.csv

A pair is pretrained on chains of three, four and five steps (teacher 64 wide, student 32). The
student is then distilled on three steps alone, by several methods, and judged on test prompts of
three, four and five steps under one budget. One row per method, seed and length; `start` is the
student before, `teacher` the teacher itself. The pretrained pair is made once and kept in --models.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.model import char_tokenizer, pretrain, tiny_model
from cmdp_nbdev.task import ChainTask, chain_dataset, chain_reward, step_validity
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from studies.lab import Runs, made_with, markdown, put_between

HERE = Path(__file__).resolve().parent
RUNS = Runs(HERE / "transfer.csv", ("method", "seed"))
LENGTHS, BUDGET, N_EVAL = (3, 4, 5), 0.8, 1024
WIDTHS, STEPS = {"teacher": 64, "student": 32}, {"teacher": 2000, "student": 800}
METHODS = {"gkd": {}, "soft": {"lam": 1.35}, "cmdp-rate": {}}
TOKENIZER = char_tokenizer()
MARKS = "<!-- table: transfer.py --readme -->\n", "\n<!-- end of table -->"


def pretrained(who: str, folder: Path) -> PreTrainedModel:
    "Teacher or student, pretrained on all lengths; made if the folder does not have it."
    if not (folder / who / "config.json").exists():
        model = tiny_model(WIDTHS[who], TOKENIZER)
        losses = pretrain(model, TOKENIZER, [ChainTask(n) for n in LENGTHS], steps=STEPS[who])
        print(f"{who}: loss {sum(losses[-50:]) / 50:.4f} nats per token", flush=True)
        model.save_pretrained(folder / who)
    return AutoModelForCausalLM.from_pretrained(folder / who, dtype=torch.float32)


def distill(student, teacher, job: dict) -> None:
    "Train the student on chains of three steps."
    with tempfile.TemporaryDirectory() as folder:
        config = CMDPConfig.from_recipe(
            "embedded",
            method=job["method"],
            method_kwargs=job["settings"],
            budget=BUDGET,
            seed=job["seed"],
            max_steps=job["steps"],
            output_dir=folder,
            disable_tqdm=True,
            device="cpu",
        )
        data = chain_dataset(16000)
        CMDPTrainer(student, teacher, chain_reward, config, data, None, TOKENIZER).train()


def judge(model, teacher, num_ops: int, job: dict) -> dict:
    "What a model does on chains of one length: a row."
    task = ChainTask(num_ops)
    result = evaluate(
        model,
        teacher,
        chain_dataset(N_EVAL, "test", task=task),
        TOKENIZER,
        chain_reward,
        Budget(BUDGET),
        metrics={"reasoning_validity": step_validity},
        max_completion_length=task.completion_length,
        seed=job["seed"],
    )
    return {
        "method": job["method"],
        "settings": json.dumps(job["settings"]),
        "seed": job["seed"],
        "num_ops": num_ops,
        "budget": BUDGET,
        "steps": job["steps"],
        **{name: round(x, 5) for name, x in result.items()},
        **made_with(),
    }


def run(job: dict, models: Path) -> list[dict]:
    "All rows of a job."
    teacher, student = (pretrained(who, models) for who in ("teacher", "student"))
    if job["method"] in METHODS:
        student = copy.deepcopy(student)
        distill(student, teacher, job)
    judged = teacher if job["method"] == "teacher" else student
    return [judge(judged, teacher, num_ops, job) for num_ops in LENGTHS]


def plan(seeds: int, steps: int) -> list[dict]:
    "Student and teacher as they are, then every method with every seed."
    as_they_are = ("start", "teacher")
    jobs = [{"method": name, "settings": {}, "seed": 0, "steps": 0} for name in as_they_are]
    for seed in range(seeds):
        for method, settings in METHODS.items():
            jobs.append({"method": method, "settings": settings, "seed": seed, "steps": steps})
    return jobs


def table() -> str:
    "One line a run: accuracy and satisfaction at each length."
    head = ["", "seed", *(f"{n} steps: accuracy" for n in LENGTHS)]
    head += [f"{n} steps: satisfaction" for n in LENGTHS]
    lines = []
    for (method, seed), rows in RUNS.read().groupby(["method", "seed"], sort=False):
        rates = rows.set_index("num_ops").loc[list(LENGTHS)]
        both = [*rates["accuracy"], *rates["satisfaction_rate"]]
        lines.append([f"`{method}`", seed, *(f"{x:.3f}" for x in both)])
    return markdown(head, lines)


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="runs/transfer-pair")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    if args.readme:
        put_between(HERE / "README.md", MARKS, table())
        return
    torch.set_num_threads(1)
    for job in RUNS.missing(plan(args.seeds, args.steps)):
        rows = run(job, Path(args.models))
        RUNS.append(*rows)
        for row in rows:
            rates = f"accuracy {row['accuracy']:.3f}, satisfaction {row['satisfaction_rate']:.3f}"
            print(
                f"{job['method']} seed {job['seed']}, {row['num_ops']} steps: {rates}", flush=True
            )


if __name__ == "__main__":
    main()
