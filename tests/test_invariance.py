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


@pytest.fixture(
    params=[
        (llama, torch.float64),
        (llama, torch.float32),
        (qwen, torch.float64),
        (qwen, torch.float32),
    ],
    ids=lambda p: f"{p[0].__name__}-{str(p[1])[6:]}",
)
def case(request, pair, tmp_path, make_trainer):
    "A factory of trainers on one random pair, and the tolerance of its precision."
    build, dtype = request.param
    counter = iter(range(100))

    def make(method="cmdp-rate", **config):
        settings = dict(
            budget=1.2 if build is llama else 3.0,
            max_completion_length=8,
            output_dir=str(tmp_path / f"run{next(counter)}"),
            **config,
        )
        return make_trainer(
            build(pair[2], 1, dtype),
            build(pair[2], 2, dtype),
            lambda completions, **kwargs: [len(set(c)) / 4 for c in completions],
            truncated_reward=None,
            method=method,
            **settings,
        )

    return make, TOLERANCE[dtype]


def padded(rollout, left, right):
    "The same trajectories with more padding, filled with arbitrary ids: only masks may tell."

    def noise(n):
        return torch.randint(3, 19, (len(rollout), n), generator=torch.Generator().manual_seed(n))

    def zeros(n):
        return torch.zeros(len(rollout), n, dtype=torch.long)

    return dataclasses.replace(
        rollout,
        prompt_ids=torch.cat([noise(left), rollout.prompt_ids], 1),
        prompt_mask=torch.cat([zeros(left), rollout.prompt_mask], 1),
        completion_ids=torch.cat([rollout.completion_ids, noise(right)], 1),
        completion_mask=torch.cat([rollout.completion_mask, zeros(right)], 1),
        sampled_logps=torch.cat(
            [rollout.sampled_logps, zeros(right).to(rollout.sampled_logps.dtype)], 1
        ),
    )


@pytest.mark.parametrize("left,right", [(5, 0), (0, 5), (3, 7)])
def test_padding_changes_neither_loss_nor_gradients(case, left, right):
    "Otherwise a result depends on which prompts happen to share a batch."
    make, tolerance = case
    plain, wide = make(), make()
    sample = wide.sample
    wide.sample = lambda: padded(sample(), left, right)
    (m, g), (m2, g2) = gradients_of_step(plain), gradients_of_step(wide)
    assert g.norm() > 0 and 0 < m["satisfaction_rate"] < 1, (
        f"the case must exercise the constraint: {m['spent_mean']} nats"
    )
    assert relative(g2, g) < tolerance and m2["loss"] == pytest.approx(
        m["loss"], rel=tolerance, abs=tolerance
    )
    for k in ("kl_mean", "spent_mean", "accuracy", "satisfaction_rate", "length_mean"):
        assert m2[k] == pytest.approx(m[k], rel=max(tolerance, 1e-5)), k


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size,steps", [(4, 4), (2, 8), (8, 2)])
def test_splitting_the_batch_changes_neither_loss_nor_gradients(case, method, size, steps):
    "Less memory per pass must not mean another experiment."
    make, tolerance = case
    (m, g), (m2, g2) = (
        gradients_of_step(make(method)),
        gradients_of_step(
            make(method, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        ),
    )
    assert (
        g.norm() > 0
        and relative(g2, g) < tolerance
        and m2["loss"] == pytest.approx(m["loss"], rel=tolerance, abs=tolerance)
    )
    assert m2["spent_mean"] == pytest.approx(m["spent_mean"], rel=max(tolerance, 1e-6))


def test_an_uneven_split_changes_nothing(case):
    "A last micro-batch that is smaller than the others must count by its tokens, not as a whole one."
    make, tolerance = case
    uneven = make(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    uneven.args.per_device_train_batch_size, n = (
        5,
        uneven.args.per_device_train_batch_size,
    )  # 16 rows as 5 + 5 + 5 + 1
    sample, same = uneven.sample, make()
    uneven.sample = lambda: same.sample()
    (m2, g2), (m, g) = gradients_of_step(uneven), gradients_of_step(same)
    assert relative(g2, g) < tolerance and m2["loss"] == pytest.approx(
        m["loss"], rel=tolerance, abs=tolerance
    )


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
def test_splitting_under_other_settings(pair, tmp_path, make_trainer, config):
    "Every way to measure the cost goes through the same accumulation."
    runs = [
        gradients_of_step(
            make_trainer(
                llama(pair[2], 1, torch.float64),
                llama(pair[2], 2, torch.float64),
                max_completion_length=8,
                output_dir=str(tmp_path / str(size)),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=16 // size,
                **config,
            )
        )
        for size in (16, 4)
    ]
    assert (
        runs[0][1].norm() > 0
        and relative(runs[1][1], runs[0][1]) < 1e-6
        and runs[1][0]["loss"] == pytest.approx(runs[0][0]["loss"], rel=1e-6)
    )


def test_chunking_the_vocabulary_in_the_trainer_changes_nothing(pair, tmp_path, make_trainer):
    "The memory option for large vocabularies must not change the run."

    def make(chunk):
        return make_trainer(
            llama(pair[2], 1, torch.float64),
            llama(pair[2], 2, torch.float64),
            max_completion_length=8,
            output_dir=str(tmp_path / str(chunk)),
            kl_chunk_size=chunk,
        )

    (m, g), (m2, g2) = gradients_of_step(make(None)), gradients_of_step(make(7))
    assert relative(g2, g) < 1e-12 and m2["loss"] == pytest.approx(m["loss"], rel=1e-12)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_teacher_equal_to_student_costs_nothing(pair, make_trainer, divergence):
    "A student that is its teacher has spent no budget; anything else is a measuring error that every run would pay."
    student, _, _ = pair
    m, g = gradients_of_step(
        make_trainer(student, copy.deepcopy(student), method="gkd", divergence=divergence)
    )
    assert (
        abs(m["kl_mean"]) < 1e-6
        and abs(m["spent_mean"]) < 1e-6
        and m["satisfaction_rate"] == 1.0
        and g.norm() < 1e-5
    )


def run(make_trainer, folder, until=None, resume=None, **config):
    "Train in `folder` (to update `until`, as if killed there); returns the trainer."
    trainer = make_trainer(output_dir=str(folder), **{"max_steps": 4, "save_steps": 2, **config})
    if until:
        trainer.callbacks.append(lambda t, m: t.stop() if t.global_step == until else None)
    trainer.train(resume)
    return trainer


def curves(folder):
    "metrics.jsonl without the times."
    return [
        {k: v for k, v in m.items() if k != "seconds"} for m in read_lines(folder / "metrics.jsonl")
    ]


def test_same_seed_same_run_bit_for_bit(make_trainer, tmp_path):
    "A published number must be reproducible exactly, whatever was computed before in the process."
    a = run(make_trainer, tmp_path / "a")
    torch.manual_seed(123)
    torch.rand(7)
    b, c = run(make_trainer, tmp_path / "b"), run(make_trainer, tmp_path / "c", seed=1)
    assert torch.equal(flat(a.model), flat(b.model)) and curves(tmp_path / "a") == curves(
        tmp_path / "b"
    )
    assert not torch.equal(flat(a.model), flat(c.model)) and curves(tmp_path / "c") != curves(
        tmp_path / "a"
    )


@pytest.mark.parametrize("how", ["path", "auto", "config"])
@pytest.mark.parametrize("method", ["grpo", "cmdp-rate"])
def test_resuming_in_the_middle_is_the_uninterrupted_run(make_trainer, tmp_path, method, how):
    "A killed job must continue as if nothing had happened: same metrics, same weights, no line lost or doubled."
    whole = run(make_trainer, tmp_path / "whole", method=method, eval_steps=2)
    run(
        make_trainer, tmp_path / "cut", until=3, method=method, eval_steps=2
    )  # died after update 3; the checkpoint is of update 2
    assert len(curves(tmp_path / "cut")) == 3
    if how == "config":
        again = run(
            make_trainer,
            tmp_path / "cut",
            method=method,
            eval_steps=2,
            resume_from_checkpoint="auto",
        )
    else:
        again = run(
            make_trainer,
            tmp_path / "cut",
            resume="auto" if how == "auto" else str(tmp_path / "cut" / "checkpoint-2"),
            method=method,
            eval_steps=2,
        )
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")
    assert torch.equal(flat(again.model), flat(whole.model)) and again.global_step == 4


def test_resume_carries_distillation_phase_iterations_and_method_state(
    make_trainer, tmp_path, own_methods
):
    "Whatever a method remembers, and which phase the run is in, belongs to the run."
    from cmdp_nbdev.methods import register_method
    from cmdp_nbdev.objective import Signal

    @register_method("stateful")
    def stateful(batch, budget, state):
        state["n"] = state.get("n", 0) + 1
        return Signal(
            torch.zeros_like(batch.rewards), state["n"] * batch.mask, {"n": float(state["n"])}
        )

    config = dict(method="stateful", distill_steps=1, num_iterations=2)
    whole = run(make_trainer, tmp_path / "whole", **config)
    run(make_trainer, tmp_path / "cut", until=2, **config)
    again = run(make_trainer, tmp_path / "cut", resume="auto", **config)
    assert curves(tmp_path / "cut") == curves(
        tmp_path / "whole"
    ) and again.method_state == whole.method_state == {"n": 3}
    assert torch.equal(flat(again.model), flat(whole.model))


def test_auto_without_a_checkpoint_starts_anew(make_trainer, tmp_path):
    "One and the same command line must work for the first start and for every restart."
    trainer = run(make_trainer, tmp_path / "new", resume="auto", max_steps=1)
    assert trainer.global_step == 1 and [m["step"] for m in curves(tmp_path / "new")] == [1]


def test_resuming_after_a_half_written_line(make_trainer, tmp_path):
    "A job killed while writing leaves half a line in metrics.jsonl; resuming is made for exactly that case."
    whole = run(make_trainer, tmp_path / "whole")
    run(make_trainer, tmp_path / "cut", until=3)
    path = tmp_path / "cut" / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    again = run(make_trainer, tmp_path / "cut", resume="auto")
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole") and torch.equal(
        flat(again.model), flat(whole.model)
    )


def test_an_incomplete_checkpoint_is_not_taken(make_trainer, tmp_path):
    "A job killed while saving leaves a partial folder; the one before must be used."
    run(make_trainer, tmp_path / "cut", until=3)
    (tmp_path / "cut" / "checkpoint-3.part").mkdir()
    (tmp_path / "cut" / "checkpoint-4").mkdir()
    assert run(make_trainer, tmp_path / "cut", resume="auto").global_step == 4
    assert [m["step"] for m in curves(tmp_path / "cut")] == [1, 2, 3, 4]


def test_evaluation_disturbs_nothing(make_trainer, tmp_path):
    "Looking at a run more often must not change it, and the same policy must always get the same evaluation."
    a, b = (
        run(make_trainer, tmp_path / "a"),
        run(make_trainer, tmp_path / "b", eval_steps=1, eval_on_start=True),
    )
    assert torch.equal(flat(a.model), flat(b.model))
    assert json.dumps(a.evaluate()) == json.dumps(a.evaluate()) == json.dumps(b.evaluate())


@pytest.mark.parametrize("unit", [10.0, 0.1])
def test_the_unit_of_the_reward_does_not_matter_to_the_default(pair, make_trainer, tmp_path, unit):
    "Points instead of shares: a method with a coefficient would have to be tuned again."

    def scaled(factor):
        return lambda completions, **kwargs: [factor * len(set(c)) / 4 for c in completions]

    one, other = (
        gradients_of_step(
            make_trainer(
                llama(pair[2], 1, torch.float64),
                llama(pair[2], 2, torch.float64),
                scaled(f),
                truncated_reward=None,
                budget=1.2,
                max_completion_length=8,
                output_dir=str(tmp_path / str(f)),
            )
        )[1]
        for f in (1.0, unit)
    )
    assert relative(other, one) < 1e-4
