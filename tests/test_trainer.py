"The loop: what a step does, reports, saves, and accepts."

import copy
import math
import threading

import pytest
import torch
from conftest import flat, gradients_of_step, python, read_lines, relative
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig

from cmdp_nbdev.model import tiny_model
from cmdp_nbdev.task import chain_reward, step_validity

REPORTED = (
    "loss",
    "grad_norm",
    "learning_rate",
    "reward",
    "accuracy",
    "satisfaction_rate",
    "accuracy_within_budget",
    "kl_mean",
    "kl_p95",
    "spent_mean",
    "length_mean",
    "truncated_rate",
    "multiplier_mean",
    "seconds",
)


def test_step_returns_and_writes_finite_metrics(make_trainer):
    "Single-stepping from a notebook must give the numbers, and the file must hold exactly those."
    trainer = make_trainer()
    before = flat(trainer.model)
    metrics = [trainer.step(), trainer.step()]
    assert read_lines(trainer.output_dir / "metrics.jsonl") == metrics and [
        m["step"] for m in metrics
    ] == [1, 2]
    for m in metrics:
        assert all(math.isfinite(m[k]) for k in REPORTED)
    assert not torch.equal(before, flat(trainer.model))


def test_training_improves_the_reward(make_trainer):
    "The one thing everything is for, on a scale a test can afford: divergence falls under gkd."
    trainer = make_trainer(
        method="gkd", max_steps=25, per_device_train_batch_size=64, learning_rate=3e-3
    )
    trainer.train()
    kl = [m["kl_mean"] for m in read_lines(trainer.output_dir / "metrics.jsonl")]
    assert sum(kl[-5:]) < 0.8 * sum(kl[:5])


def test_callbacks_and_stop_from_another_thread(make_trainer):
    "A widget's stop button must end the training after the current update, and the run must remain usable."
    seen, first = [], threading.Event()

    def callback(trainer, metrics):
        seen.append(metrics["step"])
        first.set()

    trainer = make_trainer(max_steps=100_000, callbacks=[callback])
    thread = threading.Thread(target=trainer.train, daemon=True)
    thread.start()
    assert first.wait(30)
    trainer.stop()
    thread.join(30)
    assert (
        not thread.is_alive()
        and seen == list(range(1, trainer.global_step + 1))
        and trainer.global_step < 100_000
    )
    assert trainer.step()["step"] == len(seen)


def test_distill_steps_are_gkd(make_trainer, tmp_path):
    "The first phase must be distillation alone, and must end when it is said to."
    phase, plain = (
        make_trainer(method="cmdp-rate", distill_steps=1),
        make_trainer(method="gkd", output_dir=str(tmp_path / "gkd")),
    )
    (a, ga), (b, gb) = gradients_of_step(phase), gradients_of_step(plain)
    assert torch.equal(ga, gb) and a["loss"] == b["loss"]
    assert not torch.equal(gradients_of_step(phase)[1], gradients_of_step(plain)[1])


def test_num_iterations_reuses_the_rollout_and_clips(make_trainer, tmp_path):
    "Several optimiser steps per rollout need the ratio to the sampling policy; the second step must see one different from 1."
    import cmdp_nbdev.trainer as module

    ratios, original = [], module.signal_loss

    def spy(signal, logp, costs, mask, num_tokens, old, *clip):
        ratios.append((logp - old)[mask.bool()].abs().max().item())
        return original(signal, logp, costs, mask, num_tokens, old, *clip)

    trainer = make_trainer(method="grpo", num_iterations=2, learning_rate=1e-2, epsilon=0.05)
    module.signal_loss = spy
    try:
        metrics = trainer.step()
    finally:
        module.signal_loss = original
    assert (
        len(ratios) == 2 and ratios[0] < 1e-6 < 1e-3 < ratios[1] and math.isfinite(metrics["loss"])
    )


def test_old_policy_is_the_one_that_sampled_when_the_batch_is_split(make_trainer, tmp_path):
    "With accumulation and several iterations the ratio must still be to the policy before the first of them."
    runs = [
        make_trainer(
            num_iterations=2,
            learning_rate=1e-2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
            output_dir=str(tmp_path / str(size)),
        )
        for size in (16, 4)
    ]
    for trainer in runs:
        trainer.step()
    assert relative(flat(runs[0].model), flat(runs[1].model)) < 1e-4


def test_gradient_checkpointing_changes_nothing(make_trainer, tmp_path):
    "The memory option must give the same gradients."
    (a, ga), (b, gb) = (
        gradients_of_step(make_trainer()),
        gradients_of_step(
            make_trainer(gradient_checkpointing=True, output_dir=str(tmp_path / "c"))
        ),
    )
    assert relative(gb, ga) < 1e-5 and a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def dropout_model(tok, seed=0, rate=0.5):
    "A tiny Llama with heavy attention dropout."
    model = tiny_model(32, tok, seed=seed)
    config = LlamaConfig.from_dict({**model.config.to_dict(), "attention_dropout": rate})
    again = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    again.load_state_dict(model.state_dict())
    return again


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_off(make_trainer, pair, tmp_path, checkpointing):
    "The policy that is scored must be the one that was sampled; dropout would make it another one at random."
    model = dropout_model(pair[2])
    plain = make_trainer(dropout_model(pair[2], rate=0.0), output_dir=str(tmp_path / "plain"))
    dropped = make_trainer(model, gradient_checkpointing=checkpointing)
    (_, g), (_, g2) = gradients_of_step(plain), gradients_of_step(dropped)
    assert relative(g2, g) < 1e-5


def test_float32_then_bf16_in_one_process(make_trainer, tmp_path):
    "Mixed precision must train, and comparing both in one notebook must work."
    a = make_trainer(output_dir=str(tmp_path / "full")).step()
    half = make_trainer(output_dir=str(tmp_path / "half"), bf16=True)
    b = half.step()
    assert math.isfinite(b["loss"]) and flat(half.model).dtype == torch.float32
    assert b["kl_mean"] == pytest.approx(a["kl_mean"], rel=0.7)


def test_bf16_alone(make_trainer):
    "Mixed precision gives finite losses, weights in float32, and a sensible divergence."
    trainer = make_trainer(bf16=True)
    metrics = [trainer.step() for _ in range(2)]
    assert (
        all(math.isfinite(m["loss"]) and 0 <= m["kl_mean"] < 20 for m in metrics)
        and flat(trainer.model).isfinite().all()
    )


@pytest.mark.parametrize("answer", ["logits", "log-probabilities"])
def test_callable_teacher_is_the_module_teacher(make_trainer, pair, tmp_path, answer):
    "A teacher behind a server must give the same training as the same teacher in memory."
    teacher = pair[1].eval()

    def served(input_ids, attention_mask):
        with torch.no_grad():
            x = teacher(
                input_ids,
                attention_mask=attention_mask,
                position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            ).logits
        return x.log_softmax(-1) if answer == "log-probabilities" else x

    (a, ga), (b, gb) = (
        gradients_of_step(make_trainer()),
        gradients_of_step(make_trainer(teacher=served, output_dir=str(tmp_path / "served"))),
    )
    assert relative(gb, ga) < 1e-5 and a["kl_mean"] == pytest.approx(b["kl_mean"], rel=1e-5)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_padded_vocabularies(make_trainer, pair, who):
    "Models of one family differ in padded rows; these must neither be sampled nor stop the run."
    student, teacher, tok = pair
    model = student if who == "student" else teacher
    model.resize_token_embeddings(len(tok) + 45)
    with torch.no_grad():
        model.get_input_embeddings().weight[len(tok) :] = (
            0.0  # tied: logits of 0, which the student could sample
        )
    trainer = make_trainer(student, teacher)
    metrics = [trainer.step() for _ in range(2)]
    assert trainer.vocab_size == len(tok) and all(math.isfinite(m["loss"]) for m in metrics)
    assert trainer.rollout.completion_ids.max() < len(tok)
    assert all(
        i < len(tok) for r in trainer.evaluate(return_records=True)[1] for i in r["completion_ids"]
    )


CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_chat_prompts(make_trainer, pair, prompts):
    "Chat datasets train like plain ones: same tokens, same gradients, completions as messages for the reward function."
    seen = []

    def reward(prompts, completions, answer, **kwargs):
        seen.append((prompts[0], completions[0]))
        return chain_reward(prompts, completions, answer)

    tok = pair[2]
    tok.chat_template = CHAT
    chat = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": p}] for p in prompts["prompt"]],
            "answer": prompts["answer"],
        }
    )
    _, g = gradients_of_step(
        make_trainer(
            reward_funcs=reward,
            train_dataset=chat,
            eval_dataset=chat.select(range(4)),
            processing_class=tok,
        )
    )
    assert (
        seen[-1][0][0]["role"] == "user"
        and seen[-1][1][0]["role"] == "assistant"
        and isinstance(seen[-1][1][0]["content"], str)
    )
    assert g.norm() > 0


def test_chat_and_text_prompts_train_alike(make_trainer, pair, prompts, tmp_path):
    "The template is the only difference between a chat and its text."
    tok = pair[2]
    tok.chat_template = CHAT
    chat = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": p}] for p in prompts["prompt"]],
            "answer": prompts["answer"],
        }
    )
    (_, a), (_, b) = (
        gradients_of_step(make_trainer()),
        gradients_of_step(
            make_trainer(
                train_dataset=chat, processing_class=tok, output_dir=str(tmp_path / "chat")
            )
        ),
    )
    assert torch.equal(a, b)


def test_columns_reach_every_reward_function(make_trainer, prompts):
    "Column values must belong to the prompt they stand beside, once per completion."
    truth, checked = dict(zip(prompts["prompt"], prompts["answer"])), []

    def aligned(prompts, completions, answer, num_flawed, **kwargs):
        checked.append(
            all(truth[p] == a for p, a in zip(prompts, answer))
            and len(num_flawed) == len(prompts) == len(completions)
        )
        return [0.0] * len(prompts)

    trainer = make_trainer(reward_funcs=[chain_reward, aligned])
    trainer.step()
    assert len(checked) >= 2 and all(checked)
    assert (
        len(set(trainer.rollout.prompts)) == 4
        and trainer.rollout.prompts[:4] == [trainer.rollout.prompts[0]] * 4
    )


def test_several_rewards_with_weights_and_none(make_trainer):
    "The total is the weighted sum of those that apply; each is reported by its name."

    def constant(completions, **kwargs):
        return [1.0 for _ in completions]

    def sometimes(completions, **kwargs):
        return [None if i % 2 else 2.0 for i in range(len(completions))]

    metrics = make_trainer(
        reward_funcs=[constant, sometimes], reward_weights=[1.0, 0.5], truncated_reward=None
    ).step()
    assert (
        metrics["rewards/constant"] == 1.0
        and metrics["rewards/sometimes"] == 2.0
        and metrics["reward"] == pytest.approx(1.5)
    )


def test_a_reward_that_never_applies_still_distils(make_trainer):
    "Prompts without any applicable reward give divergence terms only, and no NaN in the weights."
    trainer = make_trainer(reward_funcs=lambda completions, **kwargs: [None] * len(completions))
    trainer.step()
    assert flat(trainer.model).isfinite().all()


def test_truncated_completions_are_counted_and_get_their_reward(make_trainer):
    "Cut-off text is reported and never scored as if it had been finished."

    def generous(completions, **kwargs):
        return [1.0] * len(completions)

    trainer = make_trainer(reward_funcs=generous, max_completion_length=5, truncated_reward=-0.5)
    m = trainer.step()
    assert (
        m["truncated_rate"] == 1.0
        and m["reward"] == -0.5
        and m["accuracy"] == 0.0
        and m["length_mean"] == 5.0
    )
    assert trainer.evaluate()["truncated_rate"] == 1.0 and trainer.evaluate()["accuracy"] == 0.0


def test_masking_truncated_completions(make_trainer, tmp_path):
    "With the option on, what was cut off must not move the weights."
    trainer = make_trainer(max_completion_length=5, mask_truncated_completions=True)
    m, g = gradients_of_step(trainer)
    assert m["loss"] == 0.0 and g.abs().max() == 0.0
    assert (
        gradients_of_step(make_trainer(max_completion_length=5, output_dir=str(tmp_path / "b")))[1]
        .abs()
        .max()
        > 0
    )


def test_evaluation_every_n_updates(make_trainer):
    "Curves on held-out prompts must appear exactly where asked for."
    trainer = make_trainer(
        max_steps=4,
        eval_steps=2,
        eval_on_start=True,
        eval_metrics={"reasoning_validity": step_validity},
    )
    trainer.train()
    lines = read_lines(trainer.output_dir / "metrics.jsonl")
    assert [m["step"] for m in lines if "eval_accuracy" in m] == [0, 2, 4]
    for k in (
        "eval_accuracy_low",
        "eval_satisfaction_rate_high",
        "eval_kl_p95",
        "eval_reasoning_validity",
    ):
        assert k in lines[0]


def test_evaluation_uses_the_budget_itself(make_trainer):
    "A training margin must not flatter the reported satisfaction."
    trainer = make_trainer(budget_start=0.1, budget_anneal_steps=2)
    result, records = trainer.evaluate(return_records=True)
    assert result["satisfaction_rate"] == sum(
        sum(r["cost_per_token"]) <= 0.8 for r in records
    ) / len(records)
    for r in records:
        assert r["spent"] == pytest.approx(sum(r["cost_per_token"]), abs=1e-5) and len(
            r["cost_per_token"]
        ) == len(r["completion_ids"])


def test_save_total_limit(make_trainer):
    "A long run must not fill the disk; the newest checkpoints are the ones to keep."
    trainer = make_trainer(
        max_steps=11, save_steps=1, save_total_limit=2, per_device_train_batch_size=4
    )
    trainer.train()
    assert {p.name for p in trainer.output_dir.glob("checkpoint-*")} == {
        "checkpoint-10",
        "checkpoint-11",
    }


def test_learning_rate_schedule(make_trainer):
    "Warm-up, peak and the decay to a tenth, as configured."
    trainer = make_trainer(
        max_steps=6, warmup_steps=2, learning_rate=1e-3, per_device_train_batch_size=4
    )
    trainer.train()
    rates = [m["learning_rate"] for m in read_lines(trainer.output_dir / "metrics.jsonl")]
    assert (
        rates[1] == pytest.approx(1e-3)
        and rates[-1] == pytest.approx(1e-4)
        and rates[2] > rates[3] > rates[4]
    )


def test_gradient_clipping(make_trainer, tmp_path):
    "One bad batch must not throw the student away: SGD-like check on the first AdamW step's clipped gradient."
    trainer = make_trainer(max_grad_norm=1e-3)
    clip, after = trainer.accelerator.clip_grad_norm_, []

    def record(parameters, bound):
        parameters = list(parameters)
        norm = clip(parameters, bound)
        after.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return norm

    trainer.accelerator.clip_grad_norm_ = record
    assert trainer.step()["grad_norm"] > 1e-3 and after[0] == pytest.approx(1e-3, rel=1e-2)


def test_infinite_cost_is_refused_before_the_update(make_trainer, pair):
    "A teacher that rules tokens out makes the cost infinite: say so and leave the weights alone."
    teacher = pair[1].eval()

    def strict(ids, mask):
        with torch.no_grad():
            x = teacher(ids, attention_mask=mask).logits
        return torch.where(x < x.max(-1, keepdim=True).values, -torch.inf, x)

    trainer = make_trainer(teacher=strict)
    before = flat(trainer.model)
    with pytest.raises(FloatingPointError, match="nothing was updated.*set floor"):
        trainer.train()
    assert torch.equal(before, flat(trainer.model))
    assert math.isfinite(
        make_trainer(teacher=strict, floor=1e-3, output_dir=str(trainer.output_dir) + "2").step()[
            "loss"
        ]
    )


def test_tensorboard(make_trainer):
    "`report_to` is how most people watch a run."
    pytest.importorskip("tensorboard")
    trainer = make_trainer(report_to="tensorboard")
    trainer.train()
    assert [p for p in trainer.output_dir.rglob("events.out.tfevents*") if p.stat().st_size > 0]


def test_saved_student_is_a_plain_folder(make_trainer, tmp_path):
    "The product of a run must load anywhere, without this package, and give the same logits."
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(tmp_path / "student")
    ids = trainer.processing_class("3+8=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.save((ids, trainer.model(ids).logits), tmp_path / "expected.pt")
    script = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\nm = AutoModelForCausalLM.from_pretrained('student'); t = AutoTokenizer.from_pretrained('student')\n"
        "ids, logits = torch.load('expected.pt')\nassert torch.equal(t('3+8=', return_tensors='pt')['input_ids'], ids)\ntorch.testing.assert_close(m(ids).logits.detach(), logits)\n"
        "out = m.generate(ids, max_new_tokens=20, do_sample=False)\nassert out.shape[1] > ids.shape[1]\nassert not any(n.startswith('cmdp_nbdev') for n in sys.modules)\nprint(t.decode(out[0]))"
    )
    assert python("-c", script, cwd=tmp_path).stdout.startswith("3+8=")


def test_saved_student_carries_a_card(make_trainer, tmp_path):
    "Whoever finds the folder later must read what was trained, under which budget, and how sure the rates are."
    trainer = make_trainer(budget=0.5, max_steps=2)
    trainer.train()
    trainer.save_model(tmp_path / "early")
    assert "not measured" in (tmp_path / "early" / "README.md").read_text()
    result = trainer.evaluate()
    trainer.save_model(tmp_path / "student")
    card = (tmp_path / "student" / "README.md").read_text()
    assert (
        "0.5 nats" in card
        and "after update 2" in card
        and f"{result['satisfaction_rate']:.3f}, 95% interval [{result['satisfaction_rate_low']:.3f}"
        in card
        and str(tmp_path) not in card
    )
    assert (
        f"{1 - result['satisfaction_rate_low']:.3f}" in card
        and "max_steps=2" in card
        and card.startswith("---\nlibrary_name: transformers")
    )


def test_models_and_tokenizer_by_path(make_trainer, pair, tmp_path):
    "Paths and objects must give the same run; the tokenizer comes with the student."
    student, teacher, tok = pair
    for name, m in (("s", student), ("t", teacher)):
        m.save_pretrained(tmp_path / name)
        tok.save_pretrained(tmp_path / name)
    (_, a), (_, b) = (
        gradients_of_step(
            make_trainer(str(tmp_path / "s"), tmp_path / "t", processing_class=str(tmp_path / "s"))
        ),
        gradients_of_step(make_trainer(output_dir=str(tmp_path / "o"))),
    )
    assert torch.equal(a, b)


def test_the_callers_teacher_keeps_its_weights(make_trainer):
    "Training must move the student alone."
    trainer = make_trainer()
    before = flat(trainer.teacher)
    trainer.train()
    assert torch.equal(before, flat(trainer.teacher)) and all(
        p.grad is None for p in trainer.teacher.parameters()
    )


def test_frozen_parameters_stay(make_trainer, pair):
    "Training a part of a model (as LoRA does) must leave the rest alone."
    student = copy.deepcopy(pair[0])
    for n, p in student.named_parameters():
        p.requires_grad_("layers.1" in n)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    make_trainer(student).train()
    changed = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all("layers.1" in n for n in changed)
