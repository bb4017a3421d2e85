"What must not matter does not: padding, splitting, restarting."

import copy
import dataclasses
import json

import pytest
import torch
from conftest import flat, gradients_of_step, read_lines, relative
from transformers import AutoModelForCausalLM, Qwen2Config

from cmdp_nbdev.model import tiny_model

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
METHODS = ["cmdp-rate", "cmdp", "soft", "grpo"]


def llama(tok, seed, dtype):
    return tiny_model(32, tok, 2, 64, seed).to(dtype)


def qwen(tok, seed, dtype):
    "A Qwen2 (biases, untied embeddings, grouped key-value heads), random."
    config = Qwen2Config(
        vocab_size=len(tok),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)


def variety(completions, **kwargs):
    "A reward that random models earn now and then: the number of different characters."
    return [len(set(c)) / 4 for c in completions]


CASES = [(build, dtype) for build in (llama, qwen) for dtype in (torch.float64, torch.float32)]


@pytest.fixture(params=CASES, ids=lambda p: f"{p[0].__name__}-{str(p[1])[6:]}")
def case(request, pair, tmp_path, make_trainer):
    "A factory of trainers on one random pair, and the tolerance of its precision."
    build, dtype = request.param
    counter = iter(range(100))

    def make(method="cmdp-rate", **config):
        settings = dict(
            budget=1.2 if build is llama else 3.0,
            max_completion_length=8,
            output_dir=str(tmp_path / f"run{next(counter)}"),
            truncated_reward=None,
            method=method,
            **config,
        )
        student, teacher = build(pair[2], 1, dtype), build(pair[2], 2, dtype)
        return make_trainer(student, teacher, variety, **settings)

    return make, TOLERANCE[dtype]


@pytest.fixture
def small_llamas(pair, tmp_path, make_trainer):
    "A factory of trainers on two random Llamas in float64, each run in a folder of its own."
    counter = iter(range(100))

    def make(reward=None, **config):
        student, teacher = (llama(pair[2], seed, torch.float64) for seed in (1, 2))
        rewards = {} if reward is None else dict(reward_funcs=reward)
        folder = str(tmp_path / f"run{next(counter)}")
        settings = dict(max_completion_length=8, output_dir=folder, **config)
        return make_trainer(student, teacher, **rewards, **settings)

    return make


def assert_same_step(one, other, tolerance, absolute=0.0):
    "Two trainers whose next step must have the same loss and gradient; returns both metrics."
    (m, g), (m2, g2) = gradients_of_step(one), gradients_of_step(other)
    assert g.norm() > 0
    assert relative(g2, g) < tolerance
    assert m2["loss"] == pytest.approx(m["loss"], rel=tolerance, abs=absolute)
    return m, m2


def padded(rollout, left, right):
    "The same trajectories with more padding, filled with arbitrary ids: only masks may tell."
    rows = len(rollout)

    def noise(n):
        return torch.randint(3, 19, (rows, n), generator=torch.Generator().manual_seed(n))

    def before(x, new):
        return torch.cat([new, x], 1)

    def after(x, new):
        return torch.cat([x, new.to(x.dtype)], 1)

    none_left, none_right = (torch.zeros(rows, n, dtype=torch.long) for n in (left, right))
    return dataclasses.replace(
        rollout,
        prompt_ids=before(rollout.prompt_ids, noise(left)),
        prompt_mask=before(rollout.prompt_mask, none_left),
        completion_ids=after(rollout.completion_ids, noise(right)),
        completion_mask=after(rollout.completion_mask, none_right),
        sampled_logps=after(rollout.sampled_logps, none_right),
    )


@pytest.mark.parametrize("left,right", [(5, 0), (0, 5), (3, 7)])
def test_padding_changes_neither_loss_nor_gradients(case, left, right):
    "Otherwise a result depends on which prompts happen to share a batch."
    make, tolerance = case
    plain, wide = make(), make()
    sample = wide.sample
    wide.sample = lambda: padded(sample(), left, right)
    m, m2 = assert_same_step(plain, wide, tolerance, absolute=tolerance)
    exercised = f"the case must exercise the constraint: {m['spent_mean']} nats"
    assert 0 < m["satisfaction_rate"] < 1, exercised
    for k in ("kl_mean", "spent_mean", "accuracy", "satisfaction_rate", "length_mean"):
        assert m2[k] == pytest.approx(m[k], rel=max(tolerance, 1e-5)), k


SPLITS = [*((method, 4, 4) for method in METHODS), ("cmdp-rate", 2, 8), ("cmdp", 8, 2)]


@pytest.mark.parametrize("method,size,steps", SPLITS)
def test_splitting_the_batch_changes_neither_loss_nor_gradients(case, method, size, steps):
    "Less memory per pass must not mean another experiment."
    make, tolerance = case
    split = make(method, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
    m, m2 = assert_same_step(make(method), split, tolerance, absolute=tolerance)
    assert m2["spent_mean"] == pytest.approx(m["spent_mean"], rel=max(tolerance, 1e-6))


def test_an_uneven_split_changes_nothing(case):
    "A last micro-batch that is smaller must count by its tokens, not as a whole one."
    make, tolerance = case
    uneven = make(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    uneven.args.per_device_train_batch_size = 5  # 16 rows as 5 + 5 + 5 + 1
    same = make()
    uneven.sample = lambda: same.sample()
    (m2, g2), (m, g) = gradients_of_step(uneven), gradients_of_step(same)
    assert relative(g2, g) < tolerance
    assert m2["loss"] == pytest.approx(m["loss"], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
    "config",
    [
        dict(aggregate="mean", budget=0.4),
        dict(aggregate="prefix_mean", budget=0.5, burn_in=2),
        dict(divergence="jsd"),
        dict(kl_chunk_size=7),
        dict(temperature=0.7),
        dict(num_iterations=2),
    ],
    ids=str,
)
def test_splitting_under_other_settings(small_llamas, config):
    "Every way to measure the cost goes through the same accumulation."
    whole, split = (
        small_llamas(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
            **config,
        )
        for size in (16, 4)
    )
    assert_same_step(whole, split, 1e-6)


def test_chunking_the_vocabulary_in_the_trainer_changes_nothing(small_llamas):
    "The memory option for large vocabularies must not change the run."
    whole, chunked = small_llamas(kl_chunk_size=None), small_llamas(kl_chunk_size=7)
    assert_same_step(whole, chunked, 1e-12)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_teacher_equal_to_student_costs_nothing(pair, make_trainer, divergence):
    "A student that is its teacher has spent nothing; else every run would pay a measuring error."
    student, _, _ = pair
    twin = copy.deepcopy(student)
    m, g = gradients_of_step(make_trainer(student, twin, method="gkd", divergence=divergence))
    assert abs(m["kl_mean"]) < 1e-6 and abs(m["spent_mean"]) < 1e-6
    assert m["satisfaction_rate"] == 1.0
    assert g.norm() < 1e-5


def run(make_trainer, folder, until=None, resume=None, **config):
    "Train in `folder` (to update `until`, as if killed there); returns the trainer."
    trainer = make_trainer(output_dir=str(folder), **{"max_steps": 4, "save_steps": 2, **config})
    if until:
        trainer.callbacks.append(lambda t, m: t.stop() if t.global_step == until else None)
    trainer.train(resume)
    return trainer


def curves(folder):
    "metrics.jsonl without the times."
    lines = read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_weights(one, other):
    assert torch.equal(flat(one.model), flat(other.model))


def test_same_seed_same_run_bit_for_bit(make_trainer, tmp_path):
    "A published number must be reproducible exactly, whatever the process computed before."
    a = run(make_trainer, tmp_path / "a")
    torch.manual_seed(123)
    torch.rand(7)
    b = run(make_trainer, tmp_path / "b")
    c = run(make_trainer, tmp_path / "c", seed=1)
    assert_same_weights(a, b)
    assert curves(tmp_path / "a") == curves(tmp_path / "b")
    assert not torch.equal(flat(a.model), flat(c.model))
    assert curves(tmp_path / "c") != curves(tmp_path / "a")


@pytest.mark.parametrize("how", ["path", "auto", "config"])
@pytest.mark.parametrize("method", ["grpo", "cmdp-rate"])
def test_resuming_in_the_middle_is_the_uninterrupted_run(make_trainer, tmp_path, method, how):
    "A killed job continues as if nothing had happened: metrics, weights, no line lost or doubled."
    config = dict(method=method, eval_steps=2)
    cut = tmp_path / "cut"
    whole = run(make_trainer, tmp_path / "whole", **config)
    run(make_trainer, cut, until=3, **config)  # the checkpoint is of update 2
    assert len(curves(cut)) == 3
    start = {
        "path": dict(resume=str(cut / "checkpoint-2")),
        "auto": dict(resume="auto"),
        "config": dict(resume_from_checkpoint="auto"),
    }
    again = run(make_trainer, cut, **start[how], **config)
    assert curves(cut) == curves(tmp_path / "whole")
    assert_same_weights(again, whole)
    assert again.global_step == 4


def test_resume_carries_distillation_phase_iterations_and_method_state(
    make_trainer, tmp_path, own_methods
):
    "Whatever a method remembers, and which phase the run is in, belongs to the run."
    from cmdp_nbdev.methods import register_method
    from cmdp_nbdev.objective import Signal

    @register_method("stateful")
    def stateful(batch, budget, state):
        state["n"] = state.get("n", 0) + 1
        nothing = torch.zeros_like(batch.rewards)
        return Signal(nothing, state["n"] * batch.mask, {"n": float(state["n"])})

    config = dict(method="stateful", distill_steps=1, num_iterations=2)
    whole = run(make_trainer, tmp_path / "whole", **config)
    run(make_trainer, tmp_path / "cut", until=2, **config)
    again = run(make_trainer, tmp_path / "cut", resume="auto", **config)
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")
    assert again.method_state == whole.method_state == {"n": 3}
    assert_same_weights(again, whole)


def test_auto_without_a_checkpoint_starts_anew(make_trainer, tmp_path):
    "One and the same command line must work for the first start and for every restart."
    trainer = run(make_trainer, tmp_path / "new", resume="auto", max_steps=1)
    assert trainer.global_step == 1
    assert [m["step"] for m in curves(tmp_path / "new")] == [1]


def test_resuming_after_a_half_written_line(make_trainer, tmp_path):
    "A job killed while writing leaves half a line; resuming is made for exactly that case."
    whole = run(make_trainer, tmp_path / "whole")
    run(make_trainer, tmp_path / "cut", until=3)
    path = tmp_path / "cut" / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    again = run(make_trainer, tmp_path / "cut", resume="auto")
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")
    assert_same_weights(again, whole)


def test_an_incomplete_checkpoint_is_not_taken(make_trainer, tmp_path):
    "A job killed while saving leaves a partial folder; the one before must be used."
    run(make_trainer, tmp_path / "cut", until=3)
    (tmp_path / "cut" / "checkpoint-3.part").mkdir()
    (tmp_path / "cut" / "checkpoint-4").mkdir()
    assert run(make_trainer, tmp_path / "cut", resume="auto").global_step == 4
    assert [m["step"] for m in curves(tmp_path / "cut")] == [1, 2, 3, 4]


def test_evaluation_disturbs_nothing(make_trainer, tmp_path):
    "Looking more often must not change a run, and one policy always gets one evaluation."
    a = run(make_trainer, tmp_path / "a")
    b = run(make_trainer, tmp_path / "b", eval_steps=1, eval_on_start=True)
    assert_same_weights(a, b)
    assert json.dumps(a.evaluate()) == json.dumps(a.evaluate()) == json.dumps(b.evaluate())


@pytest.mark.parametrize("unit", [10.0, 0.1])
def test_the_unit_of_the_reward_does_not_matter_to_the_default(small_llamas, unit):
    "Points instead of shares: a method with a coefficient would have to be tuned again."

    def gradient(factor):
        def scaled(completions, **kwargs):
            return [factor * r for r in variety(completions)]

        trainer = small_llamas(scaled, truncated_reward=None, budget=1.2)
        return gradients_of_step(trainer)[1]

    assert relative(gradient(unit), gradient(1.0)) < 1e-4
