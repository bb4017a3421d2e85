"""The yardstick: the embedded student fitted by supervision to the exactly optimal policy.

What a student of this size reaches when it is *told* what to do: completions are written by the
policy that is optimal under the almost-sure budget (dynamic programming, nbs/06_task) and learnt
with its probabilities at the flawed steps, which no method knows. The student is not exact, so the
policy is computed for a `margin` of the budget, and no probability exceeds `cap`; both are chosen
on validation prompts.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from transformers import get_scheduler

from cmdp_nbdev.rollout import completion_logits, given_rollout
from cmdp_nbdev.run import prompt_order
from cmdp_nbdev.task import Flaw, apply_op, parse_prompt, tilt, write_chain

GRID = 81  # budgets of the dynamic program
FLAW = Flaw()


@dataclass
class Plan:
    "The optimal policy on one prompt: what a flawed step spends, and how often it goes right."

    prompt: str
    limit: float

    def __post_init__(self):
        self.start, self.steps = parse_prompt(self.prompt)
        self.answer = int(write_chain(self.prompt)[-1])
        spend = np.linspace(0.0, self.limit, GRID)
        self.up, self.down = tilt(spend, 1 - FLAW.prob), tilt(spend, 1 - FLAW.prob, up=False)
        self.choices = {}  # (value, step) -> spent (GRID,) in steps of the grid, p right (GRID,)
        self.solve(self.start, 0)

    def solve(self, value: int, i: int) -> np.ndarray:
        "Best probability of a right answer from `value` before step i, at every budget, (GRID,)."
        if i == len(self.steps):
            return np.full(GRID, float(value == self.answer))
        right = apply_op(value, *self.steps[i])
        if not FLAW.hits(*self.steps[i]):
            return self.solve(right, i + 1)
        after = self.solve(right, i + 1), self.solve((right + FLAW.shift) % 10, i + 1)
        index = np.arange(GRID)
        left = index[:, None] - index[None]
        good, bad = (values[np.maximum(left, 0)] for values in after)
        worth = np.stack([p * good + (1 - p) * bad for p in (self.up, self.down)])
        worth = np.where(left >= 0, worth, -1.0)
        least = (worth - 1e-9 * index).max(0)  # spends no more than it must
        spent = least.argmax(1)
        down = worth[1, index, spent] > worth[0, index, spent]
        self.choices[value, i] = spent, np.where(down, self.down[spent], self.up[spent])
        return worth.max(0)[index, spent]

    def write(self, rng: random.Random, cap: float) -> tuple[str, list[tuple]]:
        "A completion, and its flawed steps: (position, right digit, wrong digit, p right)."
        value, left, written, flawed = self.start, GRID - 1, [], []
        for i, (op, operand) in enumerate(self.steps):
            result = right = apply_op(value, op, operand)
            if (value, i) in self.choices:
                spent, p_right = (table[left] for table in self.choices[value, i])
                p = float(np.clip(p_right, 1 - cap, cap))
                left, wrong = left - int(spent), (right + FLAW.shift) % 10
                flawed.append((6 * i + 4, right, wrong, p))
                result = right if rng.random() < p else wrong
            written.append(f"{value}{op}{operand}={result}")
            value = result
        return ";".join(written) + f"#{value}", flawed


def targets(rollout, flawed: list[list[tuple]], like: torch.Tensor, digits: list[int]):
    "The policy's probabilities of every token, (B, T, V): one, but for the flawed steps."
    wanted = torch.zeros_like(like).scatter_(-1, rollout.completion_ids.unsqueeze(-1), 1.0)
    for row, steps in enumerate(flawed):
        for at, right, wrong, p in steps:
            wanted[row, at] = 0.0
            wanted[row, at, digits[right]] = p
            wanted[row, at, digits[wrong]] = 1 - p
    return wanted


def fit(student, tokenizer, prompts: list[str], budget: float, seed: int, **settings) -> None:
    """Fit `student` in place. settings: margin, cap, updates, learning_rate.

    An update sees 128 completions, one a prompt.
    """
    updates, rng = settings["updates"], random.Random(seed)
    optimizer = torch.optim.AdamW(student.parameters(), settings["learning_rate"], weight_decay=0.0)
    scheduler = get_scheduler("cosine", optimizer, 20, updates)
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    plans: dict[str, Plan] = {}
    for update in range(updates):
        batch = [prompts[i] for i in prompt_order(len(prompts), update * 128, 128, seed)]
        for prompt in set(batch) - plans.keys():
            plans[prompt] = Plan(prompt, budget * settings["margin"])
        texts, flawed = zip(*[plans[prompt].write(rng, settings["cap"]) for prompt in batch])
        rollout = given_rollout(tokenizer, batch, texts)
        logps = completion_logits(student, rollout).log_softmax(-1)
        wanted, mask = targets(rollout, flawed, logps, digits), rollout.completion_mask
        loss = -((wanted * logps).sum(-1) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
