"Faults injected one by one: what is caught, what the user sees, what is kept."

import copy
import json
import math

import pytest
import torch
from conftest import embedded, flat, read_lines

from cmdp_nbdev import distil, watch
from cmdp_nbdev.model import char_tokenizer
from cmdp_nbdev.objective import Batch, check_batch, check_finite
from cmdp_nbdev.plot import training_curves
from cmdp_nbdev.reward import FunctionFailed, NotFinite, call_reward
from cmdp_nbdev.rollout import given_rollout
from cmdp_nbdev.task import chain_reward
from cmdp_nbdev.watch import Watch, may_skip

FEW = dict(per_device_train_batch_size=4, num_generations=2, max_completion_length=12)


def show(fault: str, seen) -> None:
    "What the user sees; pytest -rP prints it."
    print(f"{fault}: {seen.value}")


def strict(path):
    "A file of strict JSON."
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def batch(**changed) -> Batch:
    "Two completions of two tokens; the second token of the second is padding."
    ones = torch.ones(2, 2)
    given = dict(
        rewards=torch.tensor([1.0, math.nan]),
        group_ids=torch.arange(2),
        mask=torch.tensor([[1, 1], [1, 0]]),
        logp=-ones,
        teacher_logp=-ones,
        costs={"divergence": ones, "log_ratio": -ones},
    )
    return Batch(**{**given, **changed})


def holding(x: float, row=1, token=0) -> torch.Tensor:
    "Numbers with `x` at one place."
    values = torch.ones(2, 2)
    values[row, token] = x
    return values


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, None),
        ({"logp": holding(NAN)}, "the student's log-probabilities are NaN"),
        ({"teacher_logp": holding(NAN)}, "the teacher's log-probabilities are NaN"),
        ({"costs": {"divergence": holding(INF)}}, "the cost 'divergence' is infinite.*set floor"),
        ({"costs": {"jsd": holding(NAN)}}, "the cost 'jsd' is NaN"),
        ({"teacher_logp": holding(-INF)}, None),  # a token that the teacher excludes
        ({"logp": holding(-INF)}, None),  # a given token that the student excludes
        ({"logp": holding(NAN, token=1)}, None),  # padding
        ({"costs": {"divergence": holding(INF, token=1)}}, None),
    ],
)
def test_what_is_no_number_in_a_batch(changed, said):
    "The model is named, and the completions; -inf of an excluded token is a number."
    if said is None:
        return check_batch(batch(**changed))
    with pytest.raises(NotFinite, match=said) as found:
        check_batch(batch(**changed))
    assert found.value.rows == [1]


def test_what_is_no_number_in_an_update():
    "Loss and gradient; the first parameter is named."
    model = torch.nn.Linear(1, 1)
    check_finite(torch.tensor(1.0), torch.tensor(2.0), model)
    model.bias.grad, model.weight.grad = torch.tensor([NAN]), torch.ones(1, 1)
    with pytest.raises(NotFinite, match="the loss is inf; lower learning_rate"):
        check_finite(torch.tensor(INF))
    with pytest.raises(NotFinite, match="the gradient norm is nan, first in bias; lower"):
        check_finite(torch.tensor(1.0), torch.tensor(NAN), model)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e39, 10**400, torch.tensor(NAN)])
def test_rewards_that_are_no_numbers(value):
    "Also those that float32 has no room for; the completion is named."
    rollout = given_rollout(char_tokenizer(), ["1+1="] * 2, ["#2", "#3"])
    with pytest.raises(NotFinite, match="reward function .* returned .*must be finite") as found:
        call_reward(lambda completions: [0.0, value], rollout)
    assert found.value.rows == [1]


# --------------------------------------------------------------------- in a run


class Spoilt:
    "Spoils some calls of a function: the student's scoring, the teacher's, a reward's."

    def __init__(self, function, *calls):
        self.function, self.calls, self.count = function, calls, 0

    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.function(*args, **kwargs, spoilt=self.count in self.calls)


def nan_teacher(trainer, *updates):
    "A teacher that says NaN about the second completion at some updates."
    ask = trainer.ask

    def said(parts, spoilt):
        rows = ask(parts)
        if spoilt:
            with torch.inference_mode():
                rows[0].logits[1] = NAN
        return rows

    trainer.ask = Spoilt(said, *updates)


def nan_gradient(trainer, *updates):
    "A gradient that explodes at some updates."
    backward = trainer.accelerator.backward

    def explode(loss, spoilt):
        backward(loss * (NAN if spoilt else 1))

    trainer.accelerator.backward = Spoilt(explode, *updates)


SPOIL = {
    nan_teacher: r"update 2: the teacher's log-probabilities are NaN on 1 of 4 completions, the "
    r"first to '.*'; nothing was updated, its completions are in .*update_00002.json; ask it",
    nan_gradient: r"update 2: the gradient norm is nan, first in .*; nothing was updated, its "
    r"completions are in .*update_00002.json; lower learning_rate",
}


@pytest.mark.parametrize("spoil", SPOIL, ids=lambda f: f.__name__)
def test_it_stops_or_is_skipped(spoil, make_trainer):
    "At its update, with the weights of the update before; the completions are kept; counted."
    trainer = make_trainer(max_steps=4, save_steps=0, **FEW)
    spoil(trainer, 2, 4)
    trainer.step()
    before = flat(trainer.student)
    with pytest.raises(FloatingPointError, match=SPOIL[spoil]) as seen:
        trainer.train()
    show(spoil.__name__, seen)
    assert torch.equal(flat(trainer.student), before) and trainer.global_step == 1
    kept = strict(trainer.output_dir / "faults" / "update_00002.json")
    assert (kept["step"], kept["seed"], len(kept["completions"])) == (2, trainer.args.seed, 4)
    wrong = [row["wrong"] for row in kept["completions"]]
    assert wrong == [False, spoil is nan_teacher, False, False]
    row, tokenizer = kept["completions"][1], trainer.processing_class
    assert row["prompt"] == tokenizer.decode(row["prompt_ids"]) and row["answer"]

    trainer.args.on_nonfinite = "skip"
    trainer.step()  # the fault is gone
    before = flat(trainer.student)
    with pytest.warns(UserWarning, match="update 3: .*the update was skipped"):
        assert trainer.step()["skipped"] == 1
    assert torch.equal(flat(trainer.student), before)
    trainer.train()
    rows = read_lines(trainer.output_dir / "metrics.jsonl")
    found = [(r["step"], r.get("skipped"), r["reward"] is None) for r in rows]
    assert found == [(1, None, False), (2, None, False), (3, 1, True), (4, None, False)]
    assert rows[3]["learning_rate"] == trainer.scheduler.lr_lambdas[0](3) * 1.5e-3
    assert not torch.equal(flat(trainer.student), before)
    assert distil.summarise(trainer, {}, 1.0, None)["skipped_updates"] == 1
    again = Watch(trainer.args)
    again.see_again(rows)
    assert again.skipped == 1
    training_curves(trainer.output_dir / "metrics.jsonl")


def test_too_many_are_not_skipped():
    "Five in a row are, and a twentieth of a run."

    class Run:
        "As far as the rule looks."

        args = embedded(max_steps=20)
        watch = Watch(args)

    for step in range(9):
        Run.watch.see({"step": step, "loss": 0.0, **({"skipped": 1} if step % 2 else {})})
    assert may_skip(Run) and Run.watch.skipped == 4
    Run.watch.see({"step": 9, "loss": NAN, "skipped": 1})
    assert not may_skip(Run)
    Run.args, Run.watch = embedded(max_steps=2000), Watch(Run.args)
    for step in range(5):
        assert may_skip(Run)
        Run.watch.see({"step": step, "loss": NAN, "skipped": 1})
    assert not may_skip(Run)


def test_a_second_iteration(make_trainer, monkeypatch):
    "Of an update that was half made the first half stays; a run that skips too much ends."
    trainer = make_trainer(max_steps=3, num_iterations=2, method="grpo", on_nonfinite="skip", **FEW)
    nan_gradient(trainer, 2, 5)
    with pytest.warns(UserWarning, match="1 of its optimiser steps were made, its.*was skipped"):
        assert trainer.step()["skipped"] == 1
    assert not trainer.half_made and math.isfinite(trainer.step()["loss"])
    monkeypatch.setattr(watch, "IN_A_ROW", 0)
    with pytest.raises(NotFinite, match="1 updates were skipped, 0 of them in a row: the run ends"):
        trainer.step()


class Fails:
    "A reward that raises at one of its calls."

    __name__ = "my_reward"

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, prompts, completions, **columns):
        self.calls += 1
        if self.calls == self.at:
            raise ConnectionError("the server is down")
        return chain_reward(prompts, completions, **columns)


def test_a_reward_that_raises_loses_nothing(make_trainer):
    "A checkpoint of the updates before is written, and the run goes on from it."
    few = dict(per_device_train_batch_size=2, num_generations=2, max_completion_length=3)
    settings = dict(max_steps=38, save_steps=0, **few)
    trainer = make_trainer(**settings, reward_funcs=Fails(37))
    asked = trainer.reward_funcs[0].calls  # before the run, whether it answers
    last = 36 - asked
    with pytest.raises(
        FunctionFailed,
        match=rf"update {last + 1}: reward function 'my_reward' raised ConnectionError: the server "
        rf"is down; nothing was updated, its completions are in .*update_000{last + 1}.json; a "
        rf"checkpoint of update {last} was written: once the function is mended, "
        "resume_from_checkpoint='auto' goes on",
    ) as seen:
        trainer.train()
    show("a reward that raises at call 37", seen)
    again = make_trainer(**settings, reward_funcs=Fails(0))
    assert again.train("auto")["step"] == trainer.train()["step"] == 38
    assert torch.equal(flat(again.student), flat(trainer.student))


def test_models_that_are_nan_from_the_start(make_trainer, pair):
    "Refused before the run, by name: weights, a function's answer."
    for who, model in zip(("model", "teacher"), copy.deepcopy(pair)):
        with torch.no_grad():
            next(model.parameters()).fill_(NAN)
        with pytest.raises(ValueError, match=f"^{who}: .* NaN, so no completion.*32$") as seen:
            make_trainer(**{who: model})
        show(f"{who} of NaN", seen)

    def says_nan(ids, mask):
        return torch.full((*ids.shape, 19), NAN)

    with pytest.raises(ValueError, match="^teacher: its logits are NaN"):
        make_trainer(teacher=says_nan)
