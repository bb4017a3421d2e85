"""How fast writing could be: the matrix products of a rollout alone, beside ours and `generate`.

    OMP_NUM_THREADS=1 python studies/speed/floor.py [REPEATS]         # writes floor.json

The first two jobs of rollouts.py, one thread, the ways in turn. `products`: every
product of a weight matrix that the job's completions need, prompt once a group and rows that have
ended left out, with nothing around them: no attention, norms, choices, caches or Python. Then what
the time inside of ours' operations goes to, by torch's profiler; Python's own is beside it.
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rollouts import EOS, WAYS, jobs, summary
from torch.profiler import ProfilerActivity, profile

from cmdp_nbdev.mdp import completion_mask

RESULTS = Path(__file__).with_name("floor.json")
KINDS = {
    "products": ("aten::addmm", "aten::mm", "aten::matmul", "aten::linear"),
    "attention": ("aten::_scaled_dot_product", "aten::scaled_dot", "aten::_flash", "aten::bmm"),
}


def weights(model) -> list[torch.Tensor]:
    "All matrices that a token is multiplied with, the head among them."
    return [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]


@torch.no_grad()
def products(matrices: list[torch.Tensor], prompt_tokens: int, live: list[int]) -> None:
    "Those of the prompts, and of every step for the rows that are not at their end."
    for rows in (prompt_tokens, *live):
        for w in matrices:
            F.linear(torch.empty(rows, w.shape[1]), w)


def share_of(kind: str, name: str) -> bool:
    "Whether a profiled operation is of this kind."
    return name.startswith(KINDS[kind])


def shares(job: tuple) -> dict:
    "Part of the profiled time by kind of operation, and how many operations there are."
    for _ in range(2):  # the first time the profiler is busy with itself
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            WAYS["ours"](*job, 1)
    spent, calls = Counter(), 0
    for event in seen.key_averages():
        kind = next((k for k in KINDS if share_of(k, event.key)), "other operations")
        spent[kind] += event.self_cpu_time_total / 1e6
        calls += event.count
    whole = sum(spent.values())
    return {k: round(x / whole, 2) for k, x in spent.items()} | {"operations": calls}


def measure(job: tuple, repeats: int) -> dict:
    "Tokens per CPU second of all three on the same job, and their quotients."
    model, ids, mask = job[:3]
    found = {way: [] for way in ("ours", "generate", "products")}
    for seed in range(repeats + 1):
        began = time.process_time()
        inside = completion_mask(WAYS["ours"](*job, seed)[0], EOS)
        spent = {"ours": time.process_time() - began}
        tokens, live = dict.fromkeys(found, int(inside.sum())), inside.sum(0).long().tolist()
        began = time.process_time()
        new = WAYS["generate"](*job, seed)[0]
        spent["generate"] = time.process_time() - began
        tokens["generate"] = int(completion_mask(new, EOS).sum())
        began = time.process_time()
        products(weights(model), int(mask.sum()), [rows for rows in live if rows])
        spent["products"] = time.process_time() - began
        for way in found if seed else ():  # the first time warms up
            found[way].append(tokens[way] / spent[way])
    row = {"tokens_per_second": {way: summary(values) for way, values in found.items()}}
    for way in ("ours", "generate"):
        row[f"products_to_{way}"] = summary(np.array(found["products"]) / np.array(found[way]))
    return row | {"shares_of_ours": shares(job), "load": round(os.getloadavg()[0], 1)}


def main(repeats: int = 9) -> None:
    "All jobs."
    torch.set_num_threads(1)
    results = {"unit": "completion tokens per CPU second", "repeats": repeats}
    for name, job in jobs().items():
        if not job[-1] and job[0].config.vocab_size < 10000:
            results[name] = measure(job, repeats)
            print(name, json.dumps(results[name]), flush=True)
    RESULTS.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
