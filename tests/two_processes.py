"""What each of two processes does; test_distributed.py launches two_processes.py MODE OUT.

MODE names the file in recipes/accelerate: ddp (each process has the student), fsdp (each has a
half of it, and of the teacher), zero2 and zero3 (the same by DeepSpeed). accelerate divides models
on accelerators only; here it is told that two processes with gloo are some.
"""

import os
import sys
import time
from pathlib import Path

import torch

MODE, OUT = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(1)


def pretend() -> None:
    "Have accelerate divide models between processes on a CPU."
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    if MODE == "fsdp":
        begin = PartialState.__init__

        def as_if_on_gpus(self, *args, **kwargs):
            begin(self, *args, **kwargs)
            if self.distributed_type == DistributedType.MULTI_CPU:
                self.distributed_type = DistributedType.MULTI_GPU

        PartialState.__init__ = as_if_on_gpus
    else:
        backend = ("gloo", DistributedType.MULTI_CPU)
        PartialState._prepare_backend = lambda self, *args, **kwargs: backend


os.environ |= {"ACCELERATE_USE_CPU": "true"} if MODE in ("ddp", "fsdp") else {}
if MODE != "ddp":
    pretend()

from cmdp_nbdev import trl  # noqa: E402
from cmdp_nbdev.budget import Budget  # noqa: E402
from cmdp_nbdev.config import CMDPConfig  # noqa: E402
from cmdp_nbdev.model import default_pair  # noqa: E402
from cmdp_nbdev.reward import length_cost  # noqa: E402
from cmdp_nbdev.task import chain_dataset, chain_reward  # noqa: E402
from cmdp_nbdev.trainer import CMDPTrainer  # noqa: E402

trl.WHOLE = 0  # divide even this teacher where students are divided
SMALL = dict(
    max_steps=2,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    num_generations=4,
    max_completion_length=20,
    device="auto" if MODE.startswith("zero") else "cpu",
    disable_tqdm=True,
)
PROMPTS, HELD_OUT = chain_dataset(64), chain_dataset(15, "validation")


def digits(completions):
    return [float(sum(int(x) for x in c if x.isdigit())) for c in completions]


def ones(completions):
    return [c.count("1") for c in completions]


def limited(data):
    return data.add_column("budget", [0.1 + 0.2 * (i % 4) for i in range(len(data))])


def make(name, data=PROMPTS, held_out=HELD_OUT, reward=chain_reward, constraints=None, **config):
    "A trainer whose folder is OUT/name."
    student, teacher, tokenizer = default_pair()
    settings = {**SMALL, "output_dir": str(OUT / name), **config}
    args = CMDPConfig.from_recipe("embedded", **settings)
    more = dict(processing_class=tokenizer, constraints=constraints)
    return trl.TRLTrainer(student, teacher, reward, args, data, held_out, **more)


def recorded(trainer) -> tuple[list, list]:
    "Gradients before clipping, and rollouts, of all updates to come."
    clip, gradients, rollouts = trainer.accelerator.clip_grad_norm_, [], []

    def record(parameters, *limit):
        parameters = list(parameters)
        if not MODE.startswith("zero"):  # DeepSpeed keeps gradients to itself
            whole = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in parameters]
            gradients.append(torch.cat([g.flatten().clone() for g in whole]))
        rollouts.append(vars(trainer.grpo.rollout))
        return clip(parameters, *limit)

    trainer.accelerator.clip_grad_norm_ = record
    return gradients, rollouts


def keep(name, trainer, **what) -> None:
    "What this process saw."
    torch.save(what, OUT / f"{name}{trainer.process_index}.pt")


def a_run() -> None:
    "Two updates, an evaluation, a saved student, as in the README; and a slow process."
    trainer = make("run", reward=[chain_reward, digits], save_steps=2, eval_on_start=True)
    gradients, rollouts = recorded(trainer)
    metrics = []
    trainer.callbacks.append(lambda trainer, line: metrics.append(line))
    if trainer.process_index == 1:  # slower at writing its random state
        save = torch.save
        torch.save = lambda *what, **how: (time.sleep(1), save(*what, **how))
    trainer.train()
    first = (OUT / "run" / "checkpoint-2" / "trainer_state.json").stat().st_mtime
    late = (OUT / "run" / "checkpoint-2" / "rng_state_1.pth").stat().st_mtime
    evaluation, records = trainer.evaluate(return_records=True)
    trainer.train()  # nothing left to do
    assert trainer.evaluate() == evaluation
    trainer.save_model(OUT / "student")
    keep(
        "rank",
        trainer,
        world=trainer.accelerator.num_processes,
        sharded=trainer.sharded,
        teacher=type(trainer.teacher).__name__,
        gradients=gradients,
        rollouts=rollouts,
        metrics=metrics,
        evaluation=evaluation,
        prompts=[record["prompt"] for record in records],
        complete=late <= first,
    )
    trainer.accelerator.wait_for_everyone()


def resumed() -> None:
    "A third update in one go, and by a new trainer that starts from the second."
    whole = make("three", max_steps=3, save_steps=2).train()
    again = make("three", max_steps=3)
    last = again.train(str(OUT / "three" / "checkpoint-2"))
    keep("resumed", again, whole=whole, last=last)


def limits_and_further_budgets() -> None:
    "A limit per prompt, annealed, and two further budgets."
    constraints = {"length": (length_cost, Budget(16)), "ones": (ones, Budget(1))}
    config = dict(method="cmdp", budget_start=2.0, budget_anneal_steps=4)
    data = (limited(PROMPTS), limited(HELD_OUT))
    trainer = make("limits", *data, constraints=constraints, **config)
    gradients, rollouts = recorded(trainer)
    metrics = []
    trainer.callbacks.append(lambda trainer, line: metrics.append(line))
    trainer.train()
    evaluation = trainer.evaluate()
    what = dict(gradients=gradients, rollouts=rollouts, metrics=metrics, evaluation=evaluation)
    keep("limits", trainer, **what)


def a_chosen_budget() -> None:
    "The quantile of what all held-out completions spend."
    trainer = make("quantile", method="pid", distill_steps=1, budget_quantile=0.5)
    trainer.train()
    records = trainer.evaluate(return_records=True)[1]
    spent = [record["spent"] for record in records]
    keep("chosen", trainer, budget=trainer.budget.limit, state=trainer.method_state, spent=spent)


def refusals() -> None:
    "A folder that holds a run already; and our own loop, which is for one process."
    again = make("run")
    try:
        again.train()
    except FileExistsError as error:
        (OUT / f"refused{again.process_index}.txt").write_text(str(error))
    student, teacher, tokenizer = default_pair()
    args = CMDPConfig.from_recipe("embedded", **SMALL, output_dir=str(OUT / "own"))
    try:
        CMDPTrainer(student, teacher, chain_reward, args, PROMPTS, HELD_OUT, tokenizer)
    except ValueError as error:
        (OUT / f"own{again.process_index}.txt").write_text(str(error))


a_run()
if MODE in ("ddp", "fsdp"):
    resumed()
if MODE == "ddp":
    limits_and_further_budgets()
    a_chosen_budget()
    refusals()
