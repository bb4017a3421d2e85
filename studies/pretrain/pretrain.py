"""Make a tiny pair: the one that ships with the package, or one whose teacher has another flaw.

    python studies/pretrain/pretrain.py                                                            the embedded pair
    python studies/pretrain/pretrain.py --op=- --prob 0.35 --output studies/methods/second_pair    the second pair of studies/methods

Writes teacher/ and student/ (safetensors + tokenizer) and metrics.json (beside this file for the embedded pair): seeds, steps, final
losses, accuracy, and how often the trained teacher really errs at a flawed step (to be compared with the stated probability).
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
import transformers

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.model import char_tokenizer, pretrain, tiny_model
from cmdp_nbdev.task import ChainTask, Flaw, apply_op, chain_dataset, chain_reward, parse_prompt

SETTINGS = {
    "teacher": dict(width=64, steps=2000, seed=0),
    "student": dict(width=32, steps=620, seed=0),
}


def error_rate(records, task) -> float:
    "Share of flawed steps, reached with correct text so far, that the model got wrong by exactly the shift."
    wrong = total = 0
    for r in records:
        for (op, b), step in zip(
            parse_prompt(r["prompt"])[1], r["completion"].partition("#")[0].split(";")
        ):
            if (
                task.flaw.hits(op, b)
                and len(step) == 5
                and step[1:4] == f"{op}{b}="
                and step[0].isdigit()
            ):
                right = apply_op(int(step[0]), op, b)
                total += 1
                wrong += step[4] == str((right + task.flaw.shift) % 10)
    return wrong / max(total, 1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="cmdp_nbdev/data")
    for name, default in vars(Flaw()).items():
        parser.add_argument(
            f"--{name}",
            default=default,
            type=type(default),
            help="of the teacher's flaw, see task.Flaw",
        )
    args = parser.parse_args()
    out, flaw = Path(args.output), Flaw(args.op, args.min_operand, args.prob, args.shift)
    torch.set_num_threads(1)
    task, tok, metrics, models = ChainTask(flaw=flaw), char_tokenizer(), {"flaw": vars(flaw)}, {}
    for name, s in SETTINGS.items():
        start = time.time()
        model = models[name] = tiny_model(s["width"], tok, seed=s["seed"])
        losses = pretrain(model, tok, task, steps=s["steps"], seed=s["seed"])
        model.save_pretrained(out / name)
        tok.save_pretrained(out / name)
        metrics[name] = {
            **s,
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": sum(losses[-50:]) / 50,
            "seconds": round(time.time() - start, 1),
        }
    test = chain_dataset(4096, "test", seed=0, task=task)
    for name, model in models.items():
        result, records = evaluate(
            model,
            models["teacher"],
            test,
            tok,
            chain_reward,
            Budget(0.8),
            seed=0,
            return_records=True,
        )
        metrics[name] |= {
            k: result[k] for k in ("accuracy", "satisfaction_rate", "kl_mean", "kl_p95")
        } | {"error_rate_at_flaw": error_rate(records, task)}
    metrics["versions"] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    text = json.dumps(metrics, indent=1)
    (Path(__file__).parent if flaw == Flaw() else out).joinpath("metrics.json").write_text(
        text + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
