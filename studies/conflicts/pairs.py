"""Where a reward and a teacher want different things: four kinds of conflict on two pairs.

A `Conflict` says which student learns from which teacher, what the reward charges for a token, and
the budget; a `Pair` brings prompts, reward and checkers. `study.py` trains on them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from cmdp_nbdev.model import default_pair, load_model
from cmdp_nbdev.task import chain_dataset, chain_reward, step_validity
from studies.conflicts import chains

# ---- what there is to work with ------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    "Prompts, what is rewarded, and what is checked; the functions are called as reward functions."

    dataset: Callable[[int, str], Dataset]  # number of prompts, split
    reward: Callable  # 1.0 for a right answer
    validity: Callable  # 1.0 where every step is written and right
    left_out: Callable  # number of steps that are not written
    settings: dict = field(default_factory=dict)  # of CMDPConfig, beside the recipe `embedded`
    num_train: int = 16000


PAIRS = {
    "chains": Pair(chain_dataset, chain_reward, step_validity, chains.left_out),
    "easy chains": Pair(
        chains.easy_dataset,
        chain_reward,
        step_validity,
        chains.left_out,
        {"max_steps": 300},
        num_train=8000,
    ),
}


@dataclass(frozen=True)
class Conflict:
    "Who learns what from whom. `student` and `teacher` are folders, '' the shipped ones."

    kind: str  # (a) to (d)
    title: str
    pair: str
    budget: float  # nats per completion
    price: float = 0.0  # share of the reward that every token of a right answer costs
    student: str = ""
    teacher: str = ""


CONFLICTS = {
    "chains b": Conflict("b", "the teacher is wrong at a kind of step", "chains", budget=0.8),
    "chains c": Conflict(
        "c",
        "the reward charges for tokens",
        "easy chains",
        budget=0.8,
        price=0.02,
        student=str(chains.FOLDER),
    ),
}


# ---- a conflict at work --------------------------------------------------------------------


def models_of(conflict: Conflict) -> tuple:
    "Fresh student and teacher, and their tokenizer."
    student, teacher, tokenizer = default_pair()
    if conflict.student:
        student = load_model(Path(conflict.student))
    if conflict.teacher:
        teacher = load_model(Path(conflict.teacher))
    return student, teacher, tokenizer


def reward_of(conflict: Conflict) -> Callable:
    "1 for a right answer, less the price of its tokens; 0 for a wrong one."
    right = PAIRS[conflict.pair].reward

    def priced(prompts, completions, completion_ids, **columns):
        rewards = right(prompts, completions, **columns)
        return [r * (1 - conflict.price * len(ids)) for r, ids in zip(rewards, completion_ids)]

    return priced if conflict.price else right


def metrics_of(conflict: Conflict) -> dict[str, Callable]:
    "What is measured beside the reward."
    pair = PAIRS[conflict.pair]
    return {"reasoning_validity": pair.validity, "left_out": pair.left_out}
