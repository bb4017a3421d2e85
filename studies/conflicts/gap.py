"""What one λ for all prompts loses, in closed form, on the chains of this study.

    python studies/conflicts/gap.py      the table, half a minute on one core

For the stated teacher, wrong with probability ½ at flawed steps alone. The optimum of reward − λ·D
is known for every prompt (nbs/theory/05_price_per_prompt); the best λ for all of them is searched
on a grid, for most of both: right and within the budget. Beside it the exact optimum with the whole
budget for every prompt, by dynamic programming (nbs/06_task).
"""

import itertools
import sys
from collections import Counter
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from cmdp_nbdev.task import Flaw, apply_op, parse_prompt, prompt_frontier
from studies.conflicts.pairs import OF_CHAINS, PAIRS
from studies.lab import markdown

PROMPTS, BUDGET, PRICES = 4096, 0.8, np.geomspace(0.05, 3, 60)
FLAW = Flaw()  # of every teacher of chains


def outcomes(prompt: str) -> np.ndarray:
    "For every right (0) or wrong (1) at the flawed steps, in order: is the answer right? (2,) * k."
    start, steps = parse_prompt(prompt)
    flawed = [FLAW.hits(*step) for step in steps]
    found = np.zeros((2,) * sum(flawed))
    for wrong in itertools.product((0, 1), repeat=sum(flawed)):
        found[wrong] = answer(start, steps, flawed, wrong)
    return found == found[(0,) * sum(flawed)]


def answer(start: int, steps: list, flawed: list[bool], wrong: tuple) -> int:
    "Where a chain ends if some of its flawed steps go wrong."
    value, at = start, iter(wrong)
    for step, may_fail in zip(steps, flawed):
        value = apply_op(value, *step)
        if may_fail:
            value = (value + next(at) * FLAW.shift) % 10
    return value


def priced(right: np.ndarray, lam: float) -> tuple[float, np.ndarray, np.ndarray]:
    "Value, probabilities and spent nats, (2,) * k, of the optimum of reward − lam · D."
    if not right.ndim:
        return float(right), np.ones(()), np.zeros(())
    branches = [priced(half, lam) for half in right]
    values = np.array([value for value, _, _ in branches]) / lam
    z = np.logaddexp(*values) - np.log(2)
    p = 0.5 * np.exp(values - z)
    cost = (p * np.log(np.maximum(2 * p, 1e-300))).sum()
    probability = np.stack([q * below for q, (_, below, _) in zip(p, branches)])
    spent = cost + np.stack([below for _, _, below in branches])
    return lam * z, probability, spent


def both(right: np.ndarray, lam: float) -> float:
    "Probability of a right answer within the budget."
    _, probability, spent = priced(right, lam)
    return float((probability * right * (spent <= BUDGET + 1e-9)).sum())


@cache
def known(name: str) -> dict:
    "Of a pair of chains: shares of prompts by flawed steps, and what teacher, λ, optimum have."
    kinds, examples = Counter(), {}
    for prompt in PAIRS[name].dataset(PROMPTS, "test")["prompt"]:
        right = outcomes(prompt)
        kind = right.shape, right.tobytes()
        kinds[kind] += 1
        examples.setdefault(kind, (prompt, right))
    weights = np.array(list(kinds.values())) / PROMPTS
    prompts, rights = zip(*examples.values())
    common = [weights @ [both(right, lam) for right in rights] for lam in PRICES]
    return {
        "flawed": [sum(w for w, r in zip(weights, rights) if r.ndim == k) for k in range(4)],
        "teacher": weights @ [right.mean() for right in rights],
        "one λ": max(common),
        "optimum": weights @ [prompt_frontier(p, BUDGET, FLAW)[-1] for p in prompts],
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
