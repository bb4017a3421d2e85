"Whose settings a run has: a person's own model gets gentle ones, the embedded pair its recipe."

import dataclasses
import importlib
import inspect
import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from conftest import embedded, read_lines
from datasets import Dataset

from cmdp_nbdev.cli import main
from cmdp_nbdev.config import CMDPConfig, changed, followed_recipe, in_force, recipe
from cmdp_nbdev.mdp import Sampling
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.options import RunArguments, command_of, parse_args
from cmdp_nbdev.rollout import sample
from cmdp_nbdev.run import repeat_code
from cmdp_nbdev.trainer import CMDPTrainer

# the settings of the main job: its published numbers are theirs
MAIN_JOB = dict(
    method="cmdp-rate",
    budget=0.8,
    aggregate="sum",
    divergence="reverse_kl",
    method_kwargs={"price": "prompt", "max_scale": 8.0},
    distill_steps=0.25,
    seq_kd=True,
    distill_learning_rate=3e-3,
    learning_rate=5e-4,
    lr_scheduler_type="cosine",
    lr_scheduler_kwargs={},
    adam_beta2=0.95,
    num_iterations=2,
    warmup_steps=0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    max_steps=600,
    num_generations=8,
    max_completion_length=32,
    per_device_train_batch_size=128,
    gradient_accumulation_steps=1,
    temperature=1.0,
    kl_chunk_size=None,
    calibration_prompts=4096,
    certificate_prompts=16384,
    per_device_eval_batch_size=256,
    eval_temperature=1.0,
    eval_on_start=True,
    seed=0,
)
PAIR = "--student s --teacher t --dataset d.jsonl --eval_dataset d.jsonl --reward json:loads"


def parsed(line: str) -> CMDPConfig:
    "The config of a command line."
    return CMDPConfig(**parse_args(shlex.split(line))[1])


def test_the_main_job_stays_what_it_is():
    "Other defaults must not move the numbers that are published."
    config = parsed("")
    assert {k: getattr(config, k) for k in MAIN_JOB} == MAIN_JOB
    assert config == CMDPConfig.from_recipe("embedded-taught", eval_on_start=True)


def test_a_person_s_model_gets_gentle_settings(tmp_path):
    "Without an option a pretrained model must not be broken; file and line still win."
    assert parsed(f"{PAIR} --budget 20") == CMDPConfig(budget=20, eval_on_start=True)
    (tmp_path / "a.yaml").write_text("student: s\nbudget: 5\nlearning_rate: 1e-4\n")
    config = parsed(f"--config {tmp_path}/a.yaml --learning_rate 1e-6")
    assert config == CMDPConfig(budget=5, learning_rate=1e-6, eval_on_start=True)
    (tmp_path / "b.yaml").write_text("learning_rate: 1e-4\n")
    assert parsed(f"--config {tmp_path}/b.yaml --budget 0.5") == CMDPConfig.from_recipe(
        "embedded-taught", learning_rate=1e-4, budget=0.5, eval_on_start=True
    )


def test_other_methods_learn_from_their_own_completions():
    "What methods are compared with each other on, and what the other engine has."
    for line in ("--method cmdp", "--method grpo", "--engine trl"):
        method = dict(parse_args(shlex.split(line))[1])["method"]
        assert parsed(line) == embedded(method=method, eval_on_start=True)


def test_a_setting_of_the_method_leaves_the_recipe_s_others():
    "Another rate must not take the price of every prompt away; another method has none of them."
    kept = {"price": "prompt", "max_scale": 8.0, "target": 0.9}
    assert parsed("--method_kwargs target=0.9").method_kwargs == kept
    assert parsed("--method_kwargs price=global").method_kwargs["price"] == "global"
    same = CMDPConfig.from_recipe("embedded-taught", method_kwargs="target=0.9")
    assert same.method_kwargs == kept
    assert parsed("--method soft --method_kwargs lam=2").method_kwargs == {"lam": 2}


def test_a_missing_budget_is_one_sentence(tmp_path, capsys, monkeypatch):
    "In Python and in a terminal: what is missing, and the two ways to have it."
    with pytest.raises(ValueError, match="^budget is missing.*budget=20.*budget_quantile=0.8"):
        CMDPConfig()
    monkeypatch.chdir(tmp_path)
    assert main(PAIR.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("cmdp-distill: error: budget is missing") and said.count("\n") == 1


def test_an_unknown_recipe_is_refused():
    "The sentence names those that there are."
    with pytest.raises(ValueError, match="recipe 'math' is unknown; choose one of embedded"):
        recipe("math")


FOLLOWED = {
    "main job": (embedded(), "embedded"),
    "changed a little": (embedded(max_steps=2, budget=0.4, learning_rate=1e-4), "embedded"),
    "of one's own": (CMDPConfig(budget=20), None),
    "of one's own, on short texts": (CMDPConfig(budget=20, max_completion_length=32), None),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_in_force_is_said_and_repeats_the_run(name):
    "The line, the call in the card and the command are about the same settings."
    config, followed = FOLLOWED[name]
    found, changes = followed_recipe(config)
    assert found == followed
    line = in_force(config)
    assert line.startswith(f"recipe {followed}" if followed else "defaults of CMDPConfig")
    assert f"learning rate {config.learning_rate:g}" in line and f"{config.max_steps} upd" in line
    call = repeat_code(config, None)[3]
    assert eval(call, {"CMDPConfig": CMDPConfig}) == config
    run = RunArguments(student=None if followed else "s")
    again = parsed(" ".join(shlex.split(command_of(run, config))[1:]))
    assert dataclasses.replace(again, eval_on_start=False) == config


def test_none_can_be_typed():
    "Where a default is a number, the command of a run without one still repeats it."
    config = CMDPConfig(budget=20, save_total_limit=None, truncated_reward=None)
    assert changed(config, {}) == dict(budget=20.0, save_total_limit=None, truncated_reward=None)
    again = parsed(command_of(RunArguments(student="s"), config).removeprefix("cmdp-distill"))
    assert again.save_total_limit is None and again.truncated_reward is None


def digits(completions, **columns) -> list[float]:
    "The share of digits."
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


@pytest.fixture
def own(tmp_path):
    "Makes a trainer of two random models, with no option but those given."
    tokenizer = char_tokenizer()
    student, teacher = (tiny_model(32, tokenizer, max_length=300, seed=i) for i in (0, 1))
    data = Dataset.from_list([{"prompt": f"{i}+1="} for i in range(9)])

    def make(**settings):
        args = CMDPConfig(output_dir=str(tmp_path / "run"), **settings)
        return CMDPTrainer(student, teacher, digits, args, data, data, tokenizer)

    return make


def test_three_updates_are_no_leap(own, capsys, monkeypatch):
    "The issue: on the embedded pair's settings three updates cost a pretrained model 25 nats."
    monkeypatch.delenv("TQDM_DISABLE")
    trainer = own(budget=20)
    assert capsys.readouterr().err.startswith("defaults of CMDPConfig: cmdp-rate, budget 20 nats")
    before = trainer.evaluate()["kl_mean"]
    for _ in range(3):
        trainer.step()
    assert trainer.evaluate()["kl_mean"] < before + 1


def test_a_budget_may_be_left_to_the_distilled_student(own):
    "Until it is chosen there is no limit, and every file says so in strict JSON."
    short = dict(max_completion_length=4, per_device_train_batch_size=8, disable_tqdm=True)
    settings = dict(max_steps=2, distill_steps=1, budget_quantile=0.5, **short)
    trainer = own(gradient_accumulation_steps=1, **settings)
    trainer.train()
    first, second = read_lines(trainer.output_dir / "metrics.jsonl")
    assert first["budget"] == "inf" and 0 < second["budget"] == trainer.budget.limit < torch.inf
    assert json.loads((trainer.output_dir / "config.json").read_text())["budget"] is None


# what is left out stays what it was: published intervals and tables were made with these
LEFT_OUT = {
    "mdp.Sampling": "num_generations=1 max_completion_length=32 temperature=1.0 top_p=1.0",
    "cost.Cost": (
        "kind='reverse_kl' beta=0.5 floor=0.0 student_temperature=1.0 teacher_temperature=1.0"
    ),
    "cost.sampled_divergence": "kind='k1' clip=20.0",
    "cost.token_divergence": "kind='reverse_kl' beta=0.5 floor=0.0",
    "cost.token_logps": "temperature=1.0",
    "cost.score_tokens": "temperature=1.0",
    "budget.Budget": "limit=1.0 aggregate='sum' burn_in=0",
    "budget.running_spend": "aggregate='sum' burn_in=0",
    "budget.row_budget": "device='cpu' factor=1.0 column='budget'",
    "budget.satisfaction_interval": "level=0.95",
    "budget.suggest_budget": "quantile=0.8",
    "reward.task_rewards": "truncated_reward=0.0",
    "reward.modified_reward": "n=1.0",
    "reward.constrained_reward": "n=1.0",
    "reward.first_violation_reward": "n=1.0",
    "objective.group_scale": "scale_rewards='group'",
    "objective.group_advantage": "scale_rewards='group'",
    "objective.signal_loss": "epsilon=0.2",
    "methods.soft": "lam=1.0 complete=False scale_rewards='group'",
    "methods.minillm": "length_normalization=True",
    "methods.kdrl": "lam=1.0 scale_rewards='group'",
    "methods.saute": "penalty=1.0 scale_rewards='group'",
    "methods.cmdp": "penalty=1.0 coef=1.0 width=0.0 scale_rewards='group'",
    "methods.saute_augmented": "penalty=1.0 coef=1.0 scale_rewards='group'",
    "methods.hinge": "coef=3.0 scale_rewards='group'",
    "methods.weakest_link": "limit=0.8 burn_in=0 penalty=1.0 scale_rewards='group'",
    "methods.dual": "lr=0.05 init=1.0 max_lam=20.0 complete=True scale_rewards='group'",
    "methods.pid": (
        "kp=1.0 ki=0.05 kd=1.0 ema=0.9 delay=10 init=1.0 max_lam=20.0 complete=True "
        "scale_rewards='group'"
    ),
    "methods.chance_dual": "target=0.95 lr=0.5 init=1.0 max_lam=50.0 scale_rewards='group'",
    "rollout.sample_token": "temperature=1.0 top_p=1.0",
    "rollout.given_rollout": "max_completion_length=32 device='cpu'",
    "evaluate.evaluate_records": "correct_at=1.0 batch_size=256 seed=0 disable_tqdm=False",
    "evaluate.mean_interval": "level=0.95",
    "evaluate.summarize": "level=0.95",
    "evaluate.difference_interval": "level=0.95",
    "evaluate.summarize_seeds": "level=0.95 resamples=1000 seed=0",
    "evaluate.compare": "name='accuracy' level=0.95 resamples=2000 seed=0",
    "evaluate.envelope_band": (
        "x='satisfaction_rate' y='accuracy' minimize_x=False level=0.95 resamples=500 seed=0"
    ),
    "evaluate.above_envelope": (
        "x='satisfaction_rate' y='accuracy' minimize_x=False level=0.95 resamples=500 seed=0"
    ),
    "cost.CostKind": "gradient='full' bounded=False source=''",
    "cost.register_cost": "gradient='full' bounded=False source=''",
    "cost.Question": "temperature=1.0",
    "cost.chunk_rows": "device='cpu'",
    "reward.NotFinite": "advice=''",
    "reward.call_function": "what='reward function'",
    "objective.check_finite": "norm=0.0",
    "methods.Look": "color='#CC79A7' dash='solid' symbol='star'",
    "methods.Method": "source='' pathwise=False rewardless=False off_policy=False",
    "methods.grpo": "scale_rewards='group'",
    "methods.rate_controller": "damping=3.0 settle=100",
    "methods.cmdp_rate": (
        "target=0.98 price='global' forward=0.5 rate=0.06 "
        "init=3.0 min_scale=0.1 max_scale=4.0 scale_rewards='batch'"
    ),
    "rollout.draw_noise": "device='cpu'",
    "rollout.Reader": "num_generations=1 shared=True",
    "rollout.Decoder": "num_generations=1",
    "rollout.GraphDecoder": "num_generations=1",
    "rollout.ByLength": "num_generations=1 shared=True",
    "rollout.Rereader": "num_generations=1",
    "rollout.Reading": "padded=True cache='shared'",
    "rollout.open_reader": "num_generations=1",
    "rollout.completion_rows": "hidden=False",
    "rollout.teacher_rows": "hidden=False",
    "rollout.score_rollout": "temperature=1.0",
    "evaluate.load_fast": "what='model'",
    "evaluate.evaluate": "return_records=False",
    "evaluate.nats_by_position": "bins=10",
    "evaluate.Nats": "shown=5",
    "evaluate.where_nats_went": "shown=5 bins=10",
    "evaluate.earn": "truncated_reward=0.0 penalty=1.0",
    "evaluate.frontier": "x='satisfaction_rate' y='accuracy' minimize_x=False",
    "evaluate.envelope": "x='satisfaction_rate' y='accuracy' minimize_x=False",
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_stays_what_it_was(name):
    "A level, a number of resamples or a coefficient that moved would move what was published."
    module, function = name.split(".")
    function = getattr(importlib.import_module(f"cmdp_nbdev.{module}"), function)
    parameters = inspect.signature(function).parameters.items()
    simple = {k: p.default for k, p in parameters if isinstance(p.default, (int, float, str))}
    assert " ".join(f"{k}={v!r}" for k, v in simple.items()) == LEFT_OUT[name]


def test_sampling_that_is_left_out_is_plain_sampling():
    "`sample` without settings writes what it writes at temperature 1, without a nucleus."
    reader = SimpleNamespace(logits=torch.randn(4, 9), can_drop=False)
    reader.finished, reader.feed = lambda ended: False, lambda token, ended: None

    def written(*settings):
        return sample(reader, [0], 0, *settings, generator=torch.Generator().manual_seed(3))[:2]

    plain = Sampling(num_generations=1, max_completion_length=32, temperature=1.0, top_p=1.0)
    for ours, theirs in zip(written(), written(plain), strict=True):
        assert ours.shape == (4, 32) and torch.equal(ours, theirs)
    ids, logps = written()
    first = reader.logits.log_softmax(-1).gather(1, ids[:, :1])[:, 0]
    torch.testing.assert_close(logps[:, 0], first)
