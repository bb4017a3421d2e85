"What a run would need, said before anything is loaded."

from dataclasses import replace

import pytest
import torch

from cmdp_nbdev.cli import cmdp, plan_main
from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.plan import (
    PeakBytes,
    build,
    config_of,
    count,
    layer_measure,
    peak_of,
    plan,
)

SMALL = dict(budget=20, device="cpu", bf16=False, max_completion_length=16, max_steps=10)


PAIR = "2x32x3000", "3x64x3000"


@pytest.fixture(scope="module")
def found():
    "A plan of a pair of shapes."
    args = CMDPConfig(**SMALL, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    return plan(*PAIR, args, prompt_length=8, memory_gb=1)


def test_parameters_are_those_of_the_models():
    "The embedded pair, counted without its weights."
    for model in default_pair()[:2]:
        assert count(model.config) == sum(p.numel() for p in model.parameters())


def test_weights_gradients_and_optimiser_are_counted(found):
    own, trained, others = found.parameters
    assert own == trained == count(config_of("2x32x3000"))
    gb = found.memory
    head = 4e-9 * 3000 * 32
    assert gb["student: weights"] == pytest.approx(4e-9 * own)
    assert gb["optimiser: gradients"] == pytest.approx(4e-9 * own + head)
    assert gb["scoring: gradients"] == pytest.approx(4e-9 * own + head)  # two micro-batches
    assert gb["student: AdamW"] == pytest.approx(8e-9 * own)
    assert gb["teacher: weights"] == pytest.approx(4e-9 * others)


@pytest.mark.parametrize("asked", ["bfloat16", torch.bfloat16])
def test_weights_in_half_precision_are_counted_so(asked, found):
    "The dtypes that a run would load its models in."
    half = {"dtype": asked}
    changes = dict(model_init_kwargs=half, teacher_model_init_kwargs=half)
    gb = again(found, **changes).memory
    assert gb["student: weights"] == pytest.approx(2e-9 * found.parameters[0])
    assert gb["student: AdamW"] == pytest.approx(4e-9 * found.parameters[0])
    assert gb["teacher: weights"] == pytest.approx(2e-9 * found.parameters[2])


def test_autocast_has_the_matrices_twice(found):
    "Counted beside what a row keeps: nothing of them grows with the rows."
    gb = again(found, bf16=True).memory
    assert gb["scoring: bfloat16 copies"] == pytest.approx(2e-9 * found.parameters[0])
    assert found.memory["scoring: bfloat16 copies"] == 0
    work = replace(found.work, bf16=True)
    model, ids = build(work.student, "cpu"), torch.arange(3, 11)[None]
    with torch.autocast("cpu", torch.bfloat16), PeakBytes() as seen:
        model(ids)
    copies = sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert copies < seen.peak
    rows = layer_measure(work, work.student, torch.float32, True)(1)[1] * work.rows
    assert 0 < rows < layer_measure(found.work, work.student, torch.float32, True)(1)[1] * work.rows


def test_phases_do_not_overlap():
    gb = {"student: weights": 1, "writing: cache": 5, "scoring: activations": 3, "scoring: x": 4}
    assert peak_of({**gb, "evaluation": 2, "optimiser: scratch": 1}) == 1 + 7


def test_every_phase_takes_time_and_memory(found):
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert all(size >= 0 for size in found.memory.values())
    assert found.fits and found.largest == 16
    assert "It fits; micro-batches of up to 16 completions would." in str(found)


def again(found, memory_gb=1.0, **changes):
    "Another plan of the pair."
    args = CMDPConfig(**SMALL | changes)
    return plan(*PAIR, args, prompt_length=8, memory_gb=memory_gb, measured=found.measured)


def test_what_does_not_fit_is_said_with_what_to_change(found):
    sizes = dict(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    tight = again(found, 0.999 * found.peak, **sizes)
    assert not tight.fits and tight.changed_peak <= tight.limit
    assert tight.changes[0].startswith("per_device_train_batch_size=4, gradient_accum")
    hopeless = again(found, 1e-6, **sizes)
    assert len(hopeless.changes) == 4 and "take a smaller pair" in str(hopeless)


def test_micro_batches_take_less_memory_and_one_more_look(found):
    whole = again(found, per_device_train_batch_size=64, gradient_accumulation_steps=1)
    parts = again(found, per_device_train_batch_size=8, gradient_accumulation_steps=8)
    assert parts.memory["scoring: activations"] < 0.5 * whole.memory["scoring: activations"]
    assert parts.seconds["student"] > whole.seconds["student"]


@pytest.mark.parametrize("model", ["nowhere", "12x768", "1x7x100"])
def test_a_model_without_a_configuration_is_named(model, capsys):
    words = ["plan", "--student", model, "--teacher", "1x8x8", "--num_threads", "1"]
    assert cmdp(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cmdp plan: error: student='{model}'") and said.count("\n") == 1


def test_the_teacher_is_needed(capsys):
    assert plan_main(["--student", "1x8x8"]) == 2
    assert "teacher is missing" in capsys.readouterr().err


def test_from_a_terminal(capsys, monkeypatch):
    "The options of a run, adapters included; the number of threads is what it was."
    words = "--student 2x32x500 --teacher 2x32x500 --use_peft --lora_r 4 --prompt_length 8 "
    words += "--max_completion_length 8 --bf16 false --num_threads 1"
    assert plan_main(words.split()) == 0
    said = capsys.readouterr().out
    assert "an update: 64 completions of 8 + 8 tokens at most" in said
    assert "trained), teacher" in said and torch.get_num_threads() == 1
