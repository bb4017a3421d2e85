"""What one λ for all prompts loses, in closed form, on the chains of this study.

    python studies/conflicts/gap.py      the table, half a minute on one core

For the stated teacher, wrong with probability ½ at flawed steps alone. The optimum of reward − λ·D
is known for every prompt (nbs/theory/05_price_per_prompt); the best λ for all of them is searched
on a grid, for most of both: right and within the budget. Beside it the exact optimum with the whole
budget for every prompt, by dynamic programming (nbs/06_task).
"""

import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from cmdp_nbdev.task import prompt_frontier
from cmdp_nbdev.theory.price import judged, prompt_kinds
from studies.conflicts.pairs import OF_CHAINS, PAIRS
from studies.lab import markdown

PROMPTS, BUDGET, PRICES = 4096, 0.8, np.geomspace(0.05, 3, 60)


@cache
def known(name: str) -> dict:
    "Of a pair of chains: shares of prompts by flawed steps, and what teacher, λ, optimum have."
    prompts = PAIRS[name].dataset(PROMPTS, "test")["prompt"][:]
    examples, kinds, shares = prompt_kinds(prompts)
    common = [shares @ [judged(kind, lam, BUDGET)[1] for kind in kinds] for lam in PRICES]
    return {
        "flawed": [sum(w for w, kind in zip(shares, kinds) if kind.ndim == k) for k in range(4)],
        "teacher": shares @ [kind.mean() for kind in kinds],
        "one λ": max(common),
        "optimum": shares @ [prompt_frontier(prompt, BUDGET)[-1] for prompt in examples],
    }


def line(name: str) -> list[str]:
    "A pair of chains in the table."
    found = known(name)
    shares = " / ".join(f"{share:.2f}" for share in found["flawed"])
    numbers = [found["teacher"], found["one λ"], found["optimum"]]
    numbers.append(found["optimum"] - found["one λ"])
    return [name, shares, *(f"{x:.3f}" for x in numbers)]


def table() -> str:
    "A line a pair."
    head = ["prompts", "with 0 / 1 / 2 / 3 flawed steps", "teacher", "best λ for all"]
    return markdown([*head, "optimum", "lost"], [line(name) for name in OF_CHAINS])


if __name__ == "__main__":
    print(table())
