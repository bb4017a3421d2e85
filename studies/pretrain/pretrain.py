"""Make a tiny pair: the one that ships with the package, or one whose teacher has another flaw.

    python studies/pretrain/pretrain.py          the embedded pair
    python studies/pretrain/pretrain.py --op=- --prob 0.35 --output studies/methods/second_pair
                                                 the second pair of studies/methods

Writes teacher/ and student/ (safetensors and tokenizer) and metrics.json (beside this file for the
embedded pair): seeds, steps, final losses, accuracy, and how often the trained teacher really errs
at a flawed step, to be compared with the stated probability.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
import transformers

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.model import char_tokenizer, pretrain, tiny_model
from cmdp_nbdev.task import ChainTask, Flaw, apply_op, chain_dataset, chain_reward, parse_prompt

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "teacher": {"width": 64, "steps": 2000, "seed": 0},
    "student": {"width": 32, "steps": 620, "seed": 0},
}


def error_rate(records: list[dict], flaw: Flaw) -> float:
    "Share of flawed steps, reached with correct text so far, that are wrong by exactly the shift."
    wrong = total = 0
    for record in records:
        ops = parse_prompt(record["prompt"])[1]
        steps = record["completion"].partition("#")[0].split(";")
        for (op, operand), step in zip(ops, steps):
            well_formed = len(step) == 5 and step[1:4] == f"{op}{operand}=" and step[0].isdigit()
            if flaw.hits(op, operand) and well_formed:
                right = apply_op(int(step[0]), op, operand)
                total += 1
                wrong += step[4] == str((right + flaw.shift) % 10)
    return wrong / max(total, 1)


def make(who: str, task: ChainTask, tokenizer, folder: Path) -> tuple:
    "Pretrain one model and save it: the model, and what is to be known about it."
    settings = SETTINGS[who]
    model = tiny_model(settings["width"], tokenizer, seed=settings["seed"])
    losses = pretrain(model, tokenizer, task, steps=settings["steps"], seed=settings["seed"])
    model.save_pretrained(folder / who)
    tokenizer.save_pretrained(folder / who)
    parameters = sum(p.numel() for p in model.parameters())
    return model, {**settings, "parameters": parameters, "loss": sum(losses[-50:]) / 50}


def measure(model, teacher, tokenizer, task: ChainTask) -> dict[str, float]:
    "What a model does on 4096 test prompts."
    result, records = evaluate(
        model,
        teacher,
        chain_dataset(4096, "test", seed=0, task=task),
        tokenizer,
        chain_reward,
        Budget(0.8),
        seed=0,
        return_records=True,
    )
    names = ("accuracy", "satisfaction_rate", "kl_mean", "kl_p95")
    measured = {name: result[name] for name in names}
    return {**measured, "error_rate_at_flaw": error_rate(records, task.flaw)}


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="cmdp_nbdev/data", type=Path)
    for name, default in vars(Flaw()).items():
        about = "of the teacher's flaw, see task.Flaw"
        parser.add_argument(f"--{name}", default=default, type=type(default), help=about)
    return parser.parse_args()


def main() -> None:
    "See the top of this file."
    args = arguments()
    flaw = Flaw(args.op, args.min_operand, args.prob, args.shift)
    torch.set_num_threads(1)
    task, tokenizer = ChainTask(flaw=flaw), char_tokenizer()
    made = {who: make(who, task, tokenizer, args.output) for who in SETTINGS}
    teacher, _ = made["teacher"]
    metrics: dict = {"flaw": vars(flaw)}
    for who, (model, about) in made.items():
        metrics[who] = {**about, **measure(model, teacher, tokenizer, task)}
    metrics["versions"] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    text = json.dumps(metrics, indent=1)
    beside = HERE if flaw == Flaw() else args.output
    (beside / "metrics.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
