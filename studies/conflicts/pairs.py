"""Where a reward and a teacher want different things: four kinds of conflict on two pairs.

A `Conflict` says which student learns from which teacher, what the reward charges for a token, and
the budget; a `Pair` brings prompts, reward and checkers. `study.py` trains on them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from cmdp_nbdev.config import recipe
from cmdp_nbdev.model import DATA, load_tokenizer
from cmdp_nbdev.task import chain_dataset, chain_reward, step_validity
from cmdp_nbdev.words import words_dataset, words_reward, words_validity
from studies.conflicts import brief, chains

# ---- what there is to work with ------------------------------------------------------------

COARSE = (0.25, 0.5, 0.7, 1.0, 1.4)
FINE = (0.25, 0.5, 0.6, 0.7, 0.85, 1.0, 1.4)
FINEST = (0.25, 0.5, 0.6, 0.65, 0.7, 0.75, 0.85, 1.0, 1.4)  # where the best is a narrow peak
WITHOUT_END = {"calibration_prompts": 0, "certificate_prompts": 0}


@dataclass(frozen=True)
class Pair:
    "Prompts, what is rewarded, and what is checked; the functions are called as reward functions."

    dataset: Callable[[int, str], Dataset]  # number of prompts, split
    reward: Callable  # 1.0 for a right answer
    validity: Callable  # 1.0 where every step is written and right
    left_out: Callable  # number of steps that are not written
    folder: Path = DATA  # with student/ and teacher/
    changes: dict = field(default_factory=dict)  # of the recipe
    num_train: int = 16000
    num_test: int = 4096
    lambdas: tuple[float, ...] = COARSE  # the trials of fixed λ
    default: dict = field(default_factory=lambda: recipe("embedded-taught")["method_kwargs"])

    @property
    def settings(self) -> dict:
        "Fields of CMDPConfig for every method: the shipped recipe without its end."
        return recipe("embedded-taught") | WITHOUT_END | self.changes


PAIRS = {
    "chains": Pair(
        cache(chain_dataset), chain_reward, step_validity, chains.left_out, lambdas=FINE
    ),
    "easy chains": Pair(
        cache(chains.easy_dataset),
        chain_reward,
        step_validity,
        chains.left_out,
        changes={"max_steps": 300},
        num_train=8000,
    ),
    "mixed chains": Pair(
        cache(chains.mixed_dataset),
        chain_reward,
        step_validity,
        chains.left_out,
        num_train=8000,
    ),
    "two lengths": Pair(
        cache(chains.two_lengths_dataset),
        chain_reward,
        step_validity,
        chains.left_out,
        folder=chains.LENGTHS,
        lambdas=FINEST,
    ),
    "words": Pair(
        cache(words_dataset),
        words_reward,
        words_validity,
        brief.left_out,
        folder=DATA / "words",
        changes={
            "max_completion_length": 80,
            "max_steps": 100,
            "per_device_train_batch_size": 32,
            "learning_rate": 3e-4,  # the rates of chains break the student
            "distill_learning_rate": 3e-4,
            "warmup_steps": 10,
        },
        default=recipe("words")["method_kwargs"],
        num_train=4000,
        num_test=1024,
        lambdas=(0.25, 0.5, 0.7, 1.0),
    ),
}


OF_CHAINS = [name for name in PAIRS if name != "words"]  # their optimum is known


@dataclass(frozen=True)
class Conflict:
    "Who learns what from whom, and what the reward charges."

    kind: str  # (a) to (d)
    title: str
    pair: str
    budget: float  # nats per completion
    price: float = 0.0  # share of the reward that every token of a right answer costs
    student: str | Path = "student"  # a name in the pair's folder, or a folder of its own
    teacher: str = "teacher"
    num_iterations: int = 2  # that of the shipped default; four conflicts were run before it
    changes: dict = field(default_factory=dict)  # of the pair's settings

    @property
    def settings(self) -> dict:
        "Fields of CMDPConfig for every method."
        own = {"budget": self.budget, "num_iterations": self.num_iterations}
        return PAIRS[self.pair].settings | own | self.changes


WRONG = "the teacher is wrong at a kind of step"
OFTEN = "the teacher is wrong at many steps"
CHARGED = "the reward charges for tokens"
DIALECT = "the student speaks another dialect"
FAR = {"distill_learning_rate": 1e-3}  # students that begin 70 and 100 nats from their teacher
CONFLICTS = {
    "chains b": Conflict("b", WRONG, "chains", 0.8),
    "lengths b": Conflict("b", OFTEN, "two lengths", 0.8),
    "mixed b": Conflict("b", OFTEN, "mixed chains", 0.8, num_iterations=1),
    "chains c": Conflict(
        "c", CHARGED, "easy chains", 0.8, price=0.02, student=chains.SKIPPING, num_iterations=1
    ),
    "mixed c": Conflict(
        "c", CHARGED, "mixed chains", 0.8, price=0.02, student=chains.SKIPPING, num_iterations=1
    ),
    "chains d": Conflict("d", DIALECT, "chains", 0.8, student=chains.BILINGUAL, num_iterations=1),
    "lengths d": Conflict("d", DIALECT, "two lengths", 0.8, student="terse"),
    "words a": Conflict("a", "none: a competent teacher", "words", 0.8, teacher="competent"),
    "words b": Conflict("b", WRONG, "words", 0.8),
    "words c": Conflict("c", CHARGED, "words", 2.0, price=0.01, student=brief.BRIEF, changes=FAR),
    "words d": Conflict("d", DIALECT, "words", 2.0, student=brief.BILINGUAL, changes=FAR),
}


# ---- a conflict at work --------------------------------------------------------------------


def models_of(conflict: Conflict) -> tuple:
    "Fresh student and teacher, and their tokenizer."
    folder = PAIRS[conflict.pair].folder
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        for name in (conflict.student, conflict.teacher)
    )
    return student, teacher, load_tokenizer(folder / "student")


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
