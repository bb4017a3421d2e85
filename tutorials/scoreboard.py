"""The scoreboard of lesson 08: methods trained alike, the exact optimum as ceiling."""

import tempfile
import time
from collections.abc import Callable

import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate
from cmdp_nbdev.methods import METHODS, Method
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.objective import Batch
from cmdp_nbdev.task import chain_dataset, chain_frontier, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

LIMIT, BASELINE = 0.8, "soft"  # nats; a fixed price, as it comes
HELD_OUT = 256


def written(method: Callable) -> bool:
    "Whether a method answers at all: a stub raises NotImplementedError."
    one = torch.ones(2, 1)
    costs = {"divergence": one}
    batch = Batch(torch.tensor([1.0, 0.0]), torch.zeros(2), one, -one, -one, costs)
    try:
        method(batch, Budget(LIMIT), {})
    except NotImplementedError:
        return False
    return True


def trained(name: str, updates: int, seed: int) -> dict:
    "Metrics of a student on held-out prompts, after so many updates of a method."
    args = CMDPConfig.from_recipe(
        "embedded",
        method=name,
        budget=LIMIT,
        seed=seed,
        max_steps=updates,
        per_device_train_batch_size=64,
        num_generations=4,
        device="cpu",
        output_dir=tempfile.mkdtemp(),
        disable_tqdm=True,
    )
    student, teacher, tokenizer = default_pair()
    data = chain_dataset(4000), chain_dataset(HELD_OUT, "validation")
    trainer = CMDPTrainer(student, teacher, chain_reward, args, *data, tokenizer)
    trainer.train()
    return trainer.evaluate()


def scoreboard(updates: int, seed: int = 0, **methods: Callable) -> list[dict]:
    """Train the baseline and your methods alike, and print who is where.

    updates: of 64 completions each; methods: name=function. The score of a method is
    how much of the way it has gone from the untrained student (0) to the exact optimum
    (100), in answers that are right and within the limit. Returns one dict a method.
    """
    student, teacher, tokenizer = default_pair()
    held_out = chain_dataset(HELD_OUT, "validation")
    how = teacher, held_out, tokenizer, chain_reward, Budget(LIMIT)
    start = evaluate(student, *how)["accuracy_within_budget"]
    (ceiling,) = chain_frontier(held_out["prompt"], [LIMIT])
    rows = []
    print(f"untrained {start:.3f}, exact optimum {ceiling:.3f}, {updates} updates each")
    for name, function in {BASELINE: None, **methods}.items():
        if function is not None:
            if not written(function):
                print(f"{name:16} not written yet")
                continue
            METHODS[name] = Method(name, function, pathwise=True)
        began = time.monotonic()
        m = trained(name, updates, seed)
        both = m["accuracy_within_budget"]
        score = 100 * (both - start) / (ceiling - start)
        rows.append(dict(method=name, score=score, **m))
        rates = f"right {m['accuracy']:.3f}  inside {m['satisfaction_rate']:.3f}"
        took = f"{time.monotonic() - began:.0f} s"
        print(f"{name:16} {rates}  both {both:.3f}  score {score:5.0f}  {took}")
    return sorted(rows, key=lambda row: -row["score"])
