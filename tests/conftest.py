"Shared fixtures: the embedded pair, and a trainer on it that steps in milliseconds."

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings

from cmdp_nbdev.methods import METHODS
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

torch.set_num_threads(1)
settings.register_profile("few", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("few")

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(
    max_steps=2,
    per_device_train_batch_size=16,
    num_generations=4,
    max_completion_length=20,
    disable_tqdm=True,
    device="cpu",
)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds; run by default")


def embedded(**changes) -> CMDPConfig:
    "The settings of the embedded pair, and what is changed in them."
    return CMDPConfig.from_recipe("embedded", **changes)


def read_lines(path) -> list[dict]:
    "The lines of a .jsonl file."
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def python(*args, cwd=None, env=None, timeout=120) -> subprocess.CompletedProcess:
    "Run this interpreter in a fresh process, one thread, offline; a failure shows its output."
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{args}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def gradients_of_step(trainer) -> tuple[dict, torch.Tensor]:
    "Metrics of one step, and the flat gradient before clipping."
    seen, clip = [], trainer.accelerator.clip_grad_norm_

    def record(parameters, *args, **kwargs):
        parameters = list(parameters)
        seen.append(torch.cat([p.grad.flatten().clone() for p in parameters if p.requires_grad]))
        return clip(parameters, *args, **kwargs)

    trainer.accelerator.clip_grad_norm_ = record
    try:
        return trainer.step(), seen[-1]
    finally:
        trainer.accelerator.clip_grad_norm_ = clip


def flat(model) -> torch.Tensor:
    "All weights of a model in one vector (a copy)."
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    "Norm of the difference over the norm of `b`."
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture(autouse=True)
def fresh_accelerate():
    "accelerate keeps its precision for the whole process; tests must not see an earlier one's."
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def _pair():
    return default_pair()


@pytest.fixture
def pair(_pair):
    "Fresh copies of the embedded (student, teacher, tokenizer)."
    return copy.deepcopy(_pair)


@pytest.fixture(scope="session")
def prompts():
    "64 training prompts of the embedded task."
    return chain_dataset(64)


@pytest.fixture(scope="session")
def held_out():
    "16 validation prompts of the embedded task."
    return chain_dataset(16, "validation")


@pytest.fixture
def make_trainer(tmp_path, pair, prompts, held_out):
    """Factory of trainers on fresh copies of the embedded pair.

    Keywords of the trainer by name; every other one is a field of CMDPConfig.
    """

    def make(
        model=None,
        teacher=None,
        reward_funcs=chain_reward,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        callbacks=(),
        eval_metrics=None,
        constraints=None,
        engine=CMDPTrainer,
        **config,
    ):
        student, master, tok = copy.deepcopy(pair)
        args = embedded(**{**SMALL, "output_dir": str(tmp_path / "run"), **config})
        return engine(
            student if model is None else model,
            master if teacher is None else teacher,
            reward_funcs,
            args,
            prompts if train_dataset is None else train_dataset,
            held_out if eval_dataset is None else eval_dataset,
            tok if processing_class is None else processing_class,
            eval_metrics,
            callbacks,
            constraints,
        )

    return make


@pytest.fixture
def own_methods():
    "Undo what a test registers."
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)
