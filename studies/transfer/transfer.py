"""Does constrained distillation on short chains carry over to longer ones?  python studies/transfer/transfer.py

A pair is pretrained on chains of three, four and five steps (teacher 64 wide, student 32), the student then distilled on three steps
alone by several methods, and judged on test prompts of three, four and five steps under one budget. One row of transfer.csv per method,
seed and length; rows that are there already are not repeated. The pretrained pair is kept in --models and made once.
"""

import argparse
import copy
import csv
import json
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from cmdp_nbdev import __version__
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.model import char_tokenizer, pretrain, tiny_model
from cmdp_nbdev.task import ChainTask, chain_dataset, chain_reward, step_validity
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

HERE = Path(__file__).parent
LENGTHS, BUDGET, N_EVAL = (3, 4, 5), 0.8, 1024
PAIR = {"teacher": dict(width=64, steps=2000), "student": dict(width=32, steps=800)}
METHODS = {"start": None, "gkd": {}, "soft": {"lam": 1.35}, "cmdp-rate": {}}


def pair(folder: Path) -> dict:
    "Teacher and student, pretrained on all lengths; made if the folder does not have them."
    models = {}
    for who, s in PAIR.items():
        if not (folder / who / "config.json").exists():
            model = tiny_model(s["width"], char_tokenizer())
            losses = pretrain(
                model, char_tokenizer(), [ChainTask(n) for n in LENGTHS], steps=s["steps"]
            )
            print(f"{who}: loss {sum(losses[-50:]) / 50:.4f} nats per token", flush=True)
            model.save_pretrained(folder / who)
        models[who] = AutoModelForCausalLM.from_pretrained(folder / who, dtype=torch.float32)
    return models


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="runs/transfer-pair")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path, tok = HERE / "transfer.csv", char_tokenizer()
    done = (
        {(r["method"], int(r["seed"])) for r in csv.DictReader(path.open())}
        if path.exists()
        else set()
    )
    models = pair(Path(args.models))
    for seed in range(args.seeds):
        for method, settings in METHODS.items():
            if (method, seed) in done or (method == "start" and seed):
                continue
            student = copy.deepcopy(models["student"])
            if settings is not None:
                with tempfile.TemporaryDirectory() as folder:
                    config = CMDPConfig(
                        method=method,
                        method_kwargs=settings,
                        budget=BUDGET,
                        seed=seed,
                        max_steps=args.steps,
                        output_dir=folder,
                        disable_tqdm=True,
                        device="cpu",
                    )
                    CMDPTrainer(
                        student,
                        models["teacher"],
                        chain_reward,
                        config,
                        chain_dataset(16000),
                        None,
                        tok,
                    ).train()
            rows = []
            for n in LENGTHS:
                task = ChainTask(n)
                for who, model in (
                    (("student", student), ("teacher", models["teacher"]))
                    if method == "start"
                    else (("student", student),)
                ):
                    r = evaluate(
                        model,
                        models["teacher"],
                        chain_dataset(N_EVAL, "test", task=task),
                        tok,
                        chain_reward,
                        Budget(BUDGET),
                        metrics={"reasoning_validity": step_validity},
                        max_completion_length=task.completion_length,
                        seed=seed,
                    )
                    rows.append(
                        {
                            "method": method if who == "student" else "teacher",
                            "settings": json.dumps(settings or {}),
                            "seed": seed,
                            "num_ops": n,
                            "budget": BUDGET,
                            "steps": args.steps if settings is not None else 0,
                            **{k: round(v, 5) for k, v in r.items()},
                            "cmdp_nbdev": __version__,
                            "torch": torch.__version__,
                            "transformers": transformers.__version__,
                        }
                    )
                    print(
                        f"{rows[-1]['method']:12} seed {seed} steps {n}: accuracy {r['accuracy']:.3f} satisfaction {r['satisfaction_rate']:.3f} both {r['accuracy_within_budget']:.3f} KL {r['kl_mean']:.2f} valid {r['reasoning_validity']:.3f}",
                        flush=True,
                    )
            with open(path, "a", newline="") as f:
                writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
                if not f.tell():
                    writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
