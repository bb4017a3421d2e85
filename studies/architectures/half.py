"""How far half precision alone moves log-probabilities: the probe's distances of SmolLM2-135M.

    python studies/architectures/half.py    writes half.csv (needs the extra smollm)

The bound in half precision (`preflight.APART`) has to lie above what arithmetic does to a real
model that is read rightly: two prompts of unequal length, two completions of 8 tokens each.
"""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from cmdp_nbdev.model import load_model, load_tokenizer
from cmdp_nbdev.preflight import probe_distances
from cmdp_nbdev.prepare import smollm2
from cmdp_nbdev.rollout import generate

PROMPTS = [
    "What is 2+2?",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?",
]


@torch.no_grad()
def distances(model, tokenizer, seed: int, autocast: bool) -> dict:
    "The probe's distances, nats per token."
    generator = torch.Generator().manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        settings = dict(num_generations=2, max_completion_length=8, generator=generator)
        return probe_distances(model, generate(model, tokenizer, PROMPTS, **settings))


def main() -> None:
    "Three precisions, two seeds each."
    torch.set_num_threads(1)
    folder, rows = smollm2(), []
    tokenizer = load_tokenizer(folder)
    for precision, dtype in {
        "float32": torch.float32,
        "bfloat16 autocast": torch.float32,
        "bfloat16 weights": torch.bfloat16,
    }.items():
        model = load_model(folder, dtype=dtype)
        for seed in range(2):
            found = distances(model, tokenizer, seed, precision.endswith("autocast"))
            rows.append({"precision": precision, "seed": seed, **found, "torch": torch.__version__})
            print(rows[-1], flush=True)
    with open(Path(__file__).with_name("half.csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
