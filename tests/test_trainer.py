"The loop: what a step does, reports, saves, and accepts."

import copy
import math
import threading

import pytest
import torch
from conftest import embedded, flat, gradients_of_step, python, read_lines, relative
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig

from cmdp_nbdev.model import tiny_model
from cmdp_nbdev.task import chain_reward, step_validity

REPORTED = """
    loss grad_norm learning_rate reward accuracy satisfaction_rate accuracy_within_budget
    kl_mean kl_p95 spent_mean length_mean truncated_rate multiplier_mean seconds
""".split()


def written(trainer) -> list[dict]:
    "What a run has written to metrics.jsonl."
    return read_lines(trainer.output_dir / "metrics.jsonl")


def test_step_returns_and_writes_finite_metrics(make_trainer):
    "Single-stepping from a notebook must give the numbers, and the file must hold exactly those."
    trainer = make_trainer()
    before = flat(trainer.model)
    metrics = [trainer.step(), trainer.step()]
    assert written(trainer) == metrics
    assert [m["step"] for m in metrics] == [1, 2]
    for m in metrics:
        assert all(math.isfinite(m[k]) for k in REPORTED)
    assert not torch.equal(before, flat(trainer.model))


def test_the_loss_is_a_mean_over_tokens(make_trainer):
    "Of gkd: the nats of all tokens over their number, however the batch is split."
    trainer = make_trainer(
        method="gkd", per_device_train_batch_size=4, gradient_accumulation_steps=4
    )
    metrics, lengths = trainer.step(), trainer.rollout.lengths
    nats = metrics["spent_mean"] * len(lengths) / lengths.sum().item()
    assert metrics["loss"] == pytest.approx(nats, rel=1e-5)


def test_training_shows_every_update_and_returns_the_last(make_trainer):
    "A bar that stands still looks like a run that hangs."
    trainer, shown = make_trainer(max_steps=2), []
    trainer.show = lambda bar: shown.append(trainer.global_step)
    assert trainer.train() == written(trainer)[-1] and shown == [1, 2]


def test_where_training_goes_on(make_trainer):
    "Where `train` is told to, else where the settings say."
    trainer, asked = make_trainer(resume_from_checkpoint="auto"), []

    def begin(where=None):
        asked.append(where)
        raise InterruptedError

    trainer.begin = begin
    for told in ((), ("there",)):
        with pytest.raises(InterruptedError):
            trainer.train(*told)
    assert asked == ["auto", "there"]


def test_training_improves_the_reward(make_trainer):
    "The one thing everything is for, on a scale a test can afford: divergence falls under gkd."
    many = {"max_steps": 25, "per_device_train_batch_size": 64, "learning_rate": 3e-3}
    trainer = make_trainer(method="gkd", **many)
    trainer.train()
    kl = [m["kl_mean"] for m in written(trainer)]
    assert sum(kl[-5:]) < 0.8 * sum(kl[:5])


def test_callbacks_and_stop_from_another_thread(make_trainer):
    "A stop button must end the training after the current update; the run remains usable."
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
    assert not thread.is_alive()
    assert seen == list(range(1, trainer.global_step + 1))
    assert trainer.global_step < 100_000
    assert trainer.step()["step"] == len(seen)


def test_distill_steps_are_gkd(make_trainer, tmp_path):
    "The first phase must be distillation alone, and must end when it is said to."
    phase = make_trainer(method="cmdp-rate", distill_steps=1)
    plain = make_trainer(method="gkd", output_dir=str(tmp_path / "gkd"))
    (a, ga), (b, gb) = gradients_of_step(phase), gradients_of_step(plain)
    assert torch.equal(ga, gb)
    assert a["loss"] == b["loss"]
    assert not torch.equal(gradients_of_step(phase)[1], gradients_of_step(plain)[1])


def test_a_student_may_learn_from_the_teachers_completions_first(make_trainer):
    "seq_kd in the distill_steps: one text a prompt, forward KL alone, a learning rate of its own."
    rates = {"learning_rate": 1e-3, "distill_learning_rate": 4e-3, "lr_scheduler_type": "constant"}
    trainer = make_trainer(method="cmdp-rate", distill_steps=0.5, seq_kd=True, max_steps=4, **rates)
    first = [trainer.step() for _ in range(2)]
    rollout = trainer.rollout
    assert len(set(rollout.prompts)) == len(rollout) and not trainer.method_state
    later = [trainer.step() for _ in range(2)]
    assert len(set(trainer.rollout.prompts)) < len(trainer.rollout)
    assert [m["learning_rate"] for m in first + later] == [4e-3, 4e-3, 1e-3, 1e-3]
    assert ["lam" in m for m in first + later] == [False, False, True, True]
    assert all(math.isfinite(m["loss"]) and m["grad_norm"] > 0 for m in first + later)


def test_the_first_updates_as_a_share():
    "Below 1 distill_steps is a share of max_steps, rounded down; a short run has none."

    def updates(steps, of):
        return embedded(distill_steps=steps, max_steps=of).distilled_updates

    assert [updates(0.25, n) for n in (600, 10, 3)] == [150, 2, 0]
    assert [updates(n, 600) for n in (0, 1, "7", 600)] == [0, 1, 7, 600]


def test_num_iterations_reuses_the_rollout_and_clips(make_trainer, tmp_path):
    "Later steps on one rollout need the ratio to the sampling policy, which is no longer 1."
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
    assert len(ratios) == 2
    assert ratios[0] < 1e-6 < 1e-3 < ratios[1]
    assert math.isfinite(metrics["loss"])


def test_old_policy_is_the_one_that_sampled_when_the_batch_is_split(make_trainer, tmp_path):
    "With accumulation the ratio must still be to the policy before the first of the iterations."

    def trained(size):
        parts = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
        folder = str(tmp_path / str(size))
        trainer = make_trainer(num_iterations=2, learning_rate=1e-2, output_dir=folder, **parts)
        trainer.step()
        return flat(trainer.model)

    assert relative(trained(16), trained(4)) < 1e-4


def test_gradient_checkpointing_changes_nothing(make_trainer, tmp_path):
    "The memory option must give the same gradients."
    recomputing = make_trainer(gradient_checkpointing=True, output_dir=str(tmp_path / "c"))
    (a, ga), (b, gb) = map(gradients_of_step, (make_trainer(), recomputing))
    assert relative(gb, ga) < 1e-5
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def dropout_model(tok, seed=0, rate=0.5):
    "A tiny Llama with heavy attention dropout."
    model = tiny_model(32, tok, seed=seed)
    config = LlamaConfig.from_dict({**model.config.to_dict(), "attention_dropout": rate})
    again = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    again.load_state_dict(model.state_dict())
    return again


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_off(make_trainer, pair, tmp_path, checkpointing):
    "The policy that is scored must be the one that was sampled; with dropout it is another one."
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
    assert math.isfinite(b["loss"])
    assert flat(half.model).dtype == torch.float32
    assert b["kl_mean"] == pytest.approx(a["kl_mean"], rel=0.7)


def test_bf16_alone(make_trainer):
    "Mixed precision gives finite losses, weights in float32, and a sensible divergence."
    trainer = make_trainer(bf16=True)
    metrics = [trainer.step() for _ in range(2)]
    assert all(math.isfinite(m["loss"]) and 0 <= m["kl_mean"] < 20 for m in metrics)
    assert flat(trainer.model).isfinite().all()


@pytest.mark.parametrize("answer", ["logits", "log-probabilities"])
def test_callable_teacher_is_the_module_teacher(make_trainer, pair, tmp_path, answer):
    "A teacher behind a server must give the same training as the same teacher in memory."
    teacher = pair[1].eval()

    @torch.no_grad()
    def served(input_ids, attention_mask):
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        x = teacher(input_ids, attention_mask=attention_mask, position_ids=position_ids).logits
        return x.log_softmax(-1) if answer == "log-probabilities" else x

    far = make_trainer(teacher=served, output_dir=str(tmp_path / "served"))
    (a, ga), (b, gb) = map(gradients_of_step, (make_trainer(), far))
    assert relative(gb, ga) < 1e-5
    assert a["kl_mean"] == pytest.approx(b["kl_mean"], rel=1e-5)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_padded_vocabularies(make_trainer, pair, who):
    "Models of one family differ in padded rows; these must neither be sampled nor stop the run."
    student, teacher, tok = pair
    model = student if who == "student" else teacher
    model.resize_token_embeddings(len(tok) + 45)
    with torch.no_grad():  # tied: logits of 0, which the student could sample
        model.get_input_embeddings().weight[len(tok) :] = 0.0
    trainer = make_trainer(student, teacher)
    metrics = [trainer.step() for _ in range(2)]
    assert trainer.vocab_size == len(tok)
    assert all(math.isfinite(m["loss"]) for m in metrics)
    assert trainer.rollout.completion_ids.max() < len(tok)
    records = trainer.evaluate(return_records=True)[1]
    assert all(i < len(tok) for r in records for i in r["completion_ids"])


CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def as_chat(prompts):
    "The same questions as chat messages."
    chats = [[{"role": "user", "content": p}] for p in prompts["prompt"]]
    return Dataset.from_dict({"prompt": chats, "answer": prompts["answer"]})


def test_chat_prompts(make_trainer, pair, prompts):
    "Chat datasets train like plain ones; the reward function is given messages."
    seen = []

    def reward(prompts, completions, answer, **kwargs):
        seen.append((prompts[0], completions[0]))
        return chain_reward(prompts, completions, answer)

    tok, chat = pair[2], as_chat(prompts)
    tok.chat_template = CHAT
    data = {"train_dataset": chat, "eval_dataset": chat.select(range(4)), "processing_class": tok}
    _, g = gradients_of_step(make_trainer(reward_funcs=reward, **data))
    prompt, completion = seen[-1]
    assert prompt[0]["role"] == "user"
    assert completion[0]["role"] == "assistant"
    assert isinstance(completion[0]["content"], str)
    assert g.norm() > 0


def test_chat_and_text_prompts_train_alike(make_trainer, pair, prompts, tmp_path):
    "The template is the only difference between a chat and its text."
    tok = pair[2]
    tok.chat_template = CHAT
    chat = {"train_dataset": as_chat(prompts), "processing_class": tok}
    trainers = make_trainer(), make_trainer(**chat, output_dir=str(tmp_path / "chat"))
    (_, a), (_, b) = map(gradients_of_step, trainers)
    assert torch.equal(a, b)


def test_columns_reach_every_reward_function(make_trainer, prompts):
    "Column values must belong to the prompt they stand beside, once per completion."
    truth, checked = dict(zip(prompts["prompt"], prompts["answer"])), []

    def aligned(prompts, completions, answer, num_flawed, **kwargs):
        checked.append(all(truth[p] == a for p, a in zip(prompts, answer)))
        checked.append(len(num_flawed) == len(prompts) == len(completions))
        return [0.0] * len(prompts)

    trainer = make_trainer(reward_funcs=[chain_reward, aligned])
    trainer.step()
    assert len(checked) >= 4
    assert all(checked)
    asked = trainer.rollout.prompts
    assert len(set(asked)) == 4
    assert asked[:4] == [asked[0]] * 4


def test_several_rewards_with_weights_and_none(make_trainer):
    "The total is the weighted sum of those that apply; each is reported by its name."

    def constant(completions, **kwargs):
        return [1.0 for _ in completions]

    def sometimes(completions, **kwargs):
        return [None if i % 2 else 2.0 for i in range(len(completions))]

    weighted = {"reward_funcs": [constant, sometimes], "reward_weights": [1.0, 0.5]}
    metrics = make_trainer(**weighted, truncated_reward=None).step()
    assert metrics["rewards/constant"] == 1.0
    assert metrics["rewards/sometimes"] == 2.0
    assert metrics["reward"] == pytest.approx(1.5)


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
    assert m["truncated_rate"] == 1.0
    assert m["reward"] == -0.5
    assert m["accuracy"] == 0.0
    assert m["length_mean"] == 5.0
    assert trainer.evaluate()["truncated_rate"] == 1.0
    assert trainer.evaluate()["accuracy"] == 0.0


def test_masking_truncated_completions(make_trainer, tmp_path):
    "With the option on, what was cut off must not move the weights."
    trainer = make_trainer(max_completion_length=5, mask_truncated_completions=True)
    m, g = gradients_of_step(trainer)
    assert m["loss"] == 0.0
    assert g.abs().max() == 0.0
    without = make_trainer(max_completion_length=5, output_dir=str(tmp_path / "b"))
    assert gradients_of_step(without)[1].abs().max() > 0


def test_evaluation_every_n_updates(make_trainer):
    "Curves on held-out prompts must appear exactly where asked for."
    validity = {"reasoning_validity": step_validity}
    trainer = make_trainer(max_steps=4, eval_steps=2, eval_on_start=True, eval_metrics=validity)
    trainer.train()
    lines = written(trainer)
    assert [m["step"] for m in lines if "eval_accuracy" in m] == [0, 2, 4]
    for k in ("accuracy_low", "satisfaction_rate_high", "kl_p95", "reasoning_validity"):
        assert f"eval_{k}" in lines[0]


def test_evaluation_uses_the_budget_itself(make_trainer):
    "A training margin must not flatter the reported satisfaction."
    trainer = make_trainer(budget_start=0.1, budget_anneal_steps=2)
    result, records = trainer.evaluate(return_records=True)
    totals = [sum(r["cost_per_token"]) for r in records]
    assert result["satisfaction_rate"] == sum(total <= 0.8 for total in totals) / len(records)
    for r, total in zip(records, totals):
        assert r["spent"] == pytest.approx(total, abs=1e-5)
        assert len(r["cost_per_token"]) == len(r["completion_ids"])


def test_save_total_limit(make_trainer):
    "A long run must not fill the disk; the newest checkpoints are the ones to keep."
    often = {"max_steps": 11, "save_steps": 1, "save_total_limit": 2}
    trainer = make_trainer(**often, per_device_train_batch_size=4)
    trainer.train()
    kept = {p.name for p in trainer.output_dir.glob("checkpoint-*")}
    assert kept == {"checkpoint-10", "checkpoint-11"}


def test_learning_rate_schedule(make_trainer):
    "Warm-up, peak and the decay to a tenth, as configured."
    schedule = {"max_steps": 6, "warmup_steps": 2, "learning_rate": 1e-3}
    trainer = make_trainer(**schedule, per_device_train_batch_size=4)
    trainer.train()
    rates = [m["learning_rate"] for m in written(trainer)]
    assert rates[:3] == pytest.approx([0, 5e-4, 1e-3])  # those that the updates used
    assert rates[2] > rates[3] > rates[4] > rates[5] > 1e-4
    assert trainer.scheduler.get_last_lr() == pytest.approx([1e-4])


def test_gradient_clipping(make_trainer, tmp_path):
    "One bad batch must not throw the student away: the gradient of an update has the bound."
    trainer = make_trainer(max_grad_norm=1e-3)
    clip, after = trainer.accelerator.clip_grad_norm_, []

    def record(parameters, bound):
        parameters = list(parameters)
        norm = clip(parameters, bound)
        after.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return norm

    trainer.accelerator.clip_grad_norm_ = record
    assert trainer.step()["grad_norm"] > 1e-3
    assert after[0] == pytest.approx(1e-3, rel=1e-2)


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
    other = str(trainer.output_dir) + "2"
    with_floor = make_trainer(teacher=strict, floor=1e-3, output_dir=other)
    assert math.isfinite(with_floor.step()["loss"])


def test_tensorboard(make_trainer):
    "`report_to` is how most people watch a run."
    pytest.importorskip("tensorboard")
    trainer = make_trainer(report_to="tensorboard")
    trainer.train()
    assert [p for p in trainer.output_dir.rglob("events.out.tfevents*") if p.stat().st_size > 0]


LOADS_ALONE = """
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("student")
tok = AutoTokenizer.from_pretrained("student")
ids, logits = torch.load("expected.pt")
assert torch.equal(tok("3+8=", return_tensors="pt")["input_ids"], ids)
torch.testing.assert_close(model(ids).logits.detach(), logits)
out = model.generate(ids, max_new_tokens=20, do_sample=False)
assert out.shape[1] > ids.shape[1]
assert not any(name.startswith("cmdp_nbdev") for name in sys.modules)
print(tok.decode(out[0]))
"""


def test_saved_student_is_a_plain_folder(make_trainer, tmp_path):
    "The product of a run must load anywhere, without this package, and give the same logits."
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(tmp_path / "student")
    ids = trainer.processing_class("3+8=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.save((ids, trainer.model(ids).logits), tmp_path / "expected.pt")
    assert python("-c", LOADS_ALONE, cwd=tmp_path).stdout.startswith("3+8=")


def test_saved_student_carries_a_card(make_trainer, tmp_path):
    "Whoever finds the folder must read what was trained, under which budget, and how surely."
    trainer = make_trainer(budget=0.5, max_steps=2)
    trainer.train()
    trainer.save_model(tmp_path / "early")
    assert "not measured" in (tmp_path / "early" / "README.md").read_text()
    result = trainer.evaluate()
    rate, low = result["satisfaction_rate"], result["satisfaction_rate_low"]
    trainer.save_model(tmp_path / "student")
    card = (tmp_path / "student" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    for text in ("0.5 nats", "after update 2", "max_steps=2", f"{1 - low:.3f}"):
        assert text in card
    assert f"{rate:.3f}, 95% interval [{low:.3f}" in card
    assert str(tmp_path) not in card


def test_models_and_tokenizer_by_path(make_trainer, pair, tmp_path):
    "Paths and objects must give the same run; the tokenizer comes with the student."
    student, teacher, tok = pair
    for name, m in (("s", student), ("t", teacher)):
        m.save_pretrained(tmp_path / name)
        tok.save_pretrained(tmp_path / name)
    folder = str(tmp_path / "s")
    by_path = make_trainer(folder, tmp_path / "t", processing_class=folder)
    by_object = make_trainer(output_dir=str(tmp_path / "o"))
    (_, a), (_, b) = map(gradients_of_step, (by_path, by_object))
    assert torch.equal(a, b)


def test_gradients_from_before_do_not_count(make_trainer, tmp_path):
    "Of a backward pass of one's own, or of an update that was broken off."
    fresh, used = make_trainer(), make_trainer(output_dir=str(tmp_path / "used"))
    for p in used.model.parameters():
        p.grad = torch.ones_like(p)
    found, expected = used.step(), fresh.step()
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert torch.equal(flat(used.model), flat(fresh.model))
    assert all(p.grad is None for p in used.model.parameters())


def test_the_callers_teacher_keeps_its_weights(make_trainer, pair):
    "Training must move the student alone; a teacher is still, and learns nothing."
    teacher = copy.deepcopy(pair[1]).train().requires_grad_()
    trainer = make_trainer(teacher=teacher)
    assert not any(part.training for part in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    before = flat(trainer.teacher)
    trainer.train()
    assert torch.equal(before, flat(trainer.teacher))
    assert all(p.grad is None for p in trainer.teacher.parameters())


def test_frozen_parameters_stay(make_trainer, pair):
    "Training a part of a model (as LoRA does) must leave the rest alone."
    student = copy.deepcopy(pair[0])
    for n, p in student.named_parameters():
        p.requires_grad_("layers.1" in n)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    make_trainer(student).train()
    changed = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("layers.1" in n for n in changed)
