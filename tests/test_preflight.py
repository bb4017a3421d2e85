"Every rule has a case that breaks it, and only it: a rule without a case fails here."

import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, embedded, python
from datasets import Dataset

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.config import CMDPConfig, config_rule
from cmdp_nbdev.preflight import Job, rule
from cmdp_nbdev.reward import length_cost
from cmdp_nbdev.run import check_resumable, run_settings
from cmdp_nbdev.task import chain_reward
from cmdp_nbdev.trainer import CMDPTrainer

CONFIGS = {
    "distillation_is_a_part_of_the_run": dict(distill_steps=601),
    "a_quantile_needs_a_distilled_student": dict(budget_quantile=0.5),
    "a_rate_that_is_kept_was_asked_for": dict(method="grpo", calibration_prompts=64),
    "a_budget_is_stated_or_chosen": dict(budget=None),
    "a_limit_that_moves_has_a_start_and_a_way": dict(budget_start=2.0),
    "one_precision": dict(bf16=True, fp16=True),
    "the_chat_template_is_told_its_own_switches": dict(chat_template_kwargs={"tokenize": True}),
    "groups_stay_whole": dict(num_generations=7),
    "portions_hold_whole_groups": dict(generation_batch_size=3),
    "the_teachers_completions_are_used": dict(seq_kd=True),
    "a_told_student_writes_itself": dict(method="saute-augmented", distill_steps=1, seq_kd=True),
    "the_method_knows_its_settings": dict(method_kwargs={"lamda": 1}),
    "the_schedule_is_known_beforehand": dict(lr_scheduler_type="greedy"),
    "the_schedule_knows_its_settings": dict(lr_scheduler_kwargs={"lr_end": 1e-6}),
    "the_schedule_gives_rates": dict(lr_scheduler_kwargs={"num_cycles": 0.5}),
    "the_method_has_groups_to_compare": dict(num_generations=1),
    "a_score_function_needs_its_own_completions": dict(lmbda=0.5),
    "distillation_follows_a_gradient": dict(divergence="log_ratio", distill_steps=1, method="cmdp"),
}


def broken(rules, subject):
    "Names of the rules that find something."
    return [rule.__name__ for rule in rules if list(rule(subject))]


def unchecked(**settings):
    "A config that was not asked whether it makes sense."
    config = embedded()
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def test_every_rule_of_a_config_has_a_case():
    "A rule that nothing breaks may be one that nothing can break."
    assert [r.__name__ for r in config_rule] == list(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_rules(name):
    "Each case breaks its own rule alone, and the config is refused with the rule's sentence."
    assert broken(config_rule, unchecked(**CONFIGS[name])) == [name]
    with pytest.raises(ValueError) as refused:
        embedded(**CONFIGS[name])
    (sentence,) = [s for r in config_rule for s in r(unchecked(**CONFIGS[name]))]
    assert str(refused.value) == sentence


def test_all_that_is_wrong_is_reported_together():
    "One line each, nothing twice."
    with pytest.raises(ValueError) as refused:
        embedded(temperature=0, learning_rate=-1, method="ppo", budget=-1.0, beta=2.0)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(set(lines)) == 5
    for name in ("temperature", "learning_rate", "ppo", "budget", "beta"):
        assert sum(name in line for line in lines) == 1, name


def test_help_ends_with_the_range():
    "What --help says and what is refused come from one place."
    help_of = {f.name: f.metadata["help"] for f in dataclasses.fields(CMDPConfig)}
    assert help_of["temperature"] == "sampling temperature while training; > 0"
    assert help_of["kl_chunk_size"].endswith("; a whole number >= 1")
    assert help_of["scale_rewards"].endswith("; one of group, batch, none")


class Adapters:
    "A peft configuration, as far as the rules look at it."

    is_prompt_learning = True


class Around(torch.nn.Module):
    "A wrapper of which transformers knows nothing."

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, *args, **kwargs):
        "As the model inside."
        return self.model(*args, **kwargs)


def prompts(**columns):
    return Dataset.from_dict({"prompt": ["1+1="] * 3, "answer": ["2"] * 3, **columns})


BUDGETS = {"length": (length_cost, Budget(9))}
JOBS = {
    "adapters_come_from_peft": lambda job: setattr(job.model, "_hf_peft_config_loaded", True),
    "something_is_trained": lambda job: job.model.requires_grad_(False),
    "the_student_is_a_model_of_transformers": lambda job: setattr(job, "model", Around(job.model)),
    "the_students_weights_are_whole": lambda job: setattr(job.model, "is_quantized", True),
    "adapters_can_be_merged": lambda job: setattr(job.model, "peft_config", {"a": Adapters()}),
    "models_have_a_row_for_every_id": lambda job: setattr(job.teacher.config, "vocab_size", 3),
    "prompts_can_be_answered": lambda job: setattr(job, "train_dataset", Dataset.from_dict({})),
    "given_completions_are_texts": lambda job: give(job, prompts(), method="gkd", lmbda=0.5),
    "a_teacher_that_writes_is_a_model": lambda job: write(job),
    "rewards_are_functions": lambda job: setattr(job, "reward_funcs", [3]),
    "one_finite_weight_per_reward": lambda job: give(job, prompts(), reward_weights=[1.0, 2.0]),
    "constraints_are_costs_with_budgets": lambda job: setattr(job, "constraints", {"length": 9}),
    "constraints_have_names_of_their_own": lambda job: constrain(job, "forward_kl"),
    "metrics_are_functions_with_names": lambda job: setattr(job, "eval_metrics", {"right": 3}),
    "an_evaluation_holds_every_name_once": lambda job: setattr(
        job, "eval_metrics", {"correct": chain_reward}
    ),
    "columns_are_seen": lambda job: give(job, prompts(completions=["1", "2", "3"])),
    "constraints_need_a_method_that_reads_the_reward": lambda job: constrain(job, "length", "gkd"),
    "a_quantile_has_prompts_to_be_measured_on": lambda job: measure(job),
    "limits_per_prompt_are_numbers": lambda job: give(job, prompts(budget=[1.0, 2.0, None])),
    "an_earlier_run_is_this_one": lambda job: occupy(job),
    "the_folder_can_be_written": lambda job: setattr(job, "args", unchecked(output_dir=__file__)),
}


def give(job, data, **settings):
    "Other prompts and settings."
    job.train_dataset, job.args = data, unchecked(**settings)


def write(job):
    "A teacher that is a function, asked to write."
    job.teacher = lambda ids, mask: torch.zeros(*ids.shape, 19)
    job.args = unchecked(method="gkd", lmbda=0.5, seq_kd=True)


def constrain(job, name, method="cmdp-rate"):
    "A further budget under a name."
    job.constraints, job.args = {name: BUDGETS["length"]}, unchecked(method=method)


def measure(job):
    "A budget that is to be measured, on nothing."
    job.eval_dataset, job.args = None, unchecked(budget_quantile=0.5, distill_steps=1)


def occupy(job):
    "A folder in which another run has begun."
    folder = Path(tempfile.mkdtemp())
    (folder / "metrics.jsonl").touch()
    (folder / "config.json").write_text('{"seed": 1}')
    job.args = unchecked(output_dir=str(folder))


def test_every_rule_of_a_job_has_a_case():
    "As above."
    assert [r.__name__ for r in rule] == list(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_job_rules(pair, name):
    "Each case breaks its own rule alone."
    student, teacher, tokenizer = pair
    data = prompts()
    job = Job(embedded(), student, teacher, tokenizer, [chain_reward], data, data)
    assert broken(rule, job) == []
    JOBS[name](job)
    assert broken(rule, job) == [name]


def test_several_wrong_things_at_once(pair):
    "A person mends them in one go."
    student, teacher, tokenizer = pair
    data = prompts(budget=[1.0, -2.0, 3.0])
    args = embedded(reward_weights=[1.0, 2.0])
    with pytest.raises(ValueError) as refused:
        CMDPTrainer(student, teacher, [chain_reward, 3, None], args, data, data, tokenizer)
    lines = str(refused.value).splitlines()
    assert len(lines) == 5 and sum("row 1" in line for line in lines) == 2


def test_earlier_name_of_the_default():
    "Scripts and configs of version 0.1 go on working, and say what to write now."
    with pytest.warns(FutureWarning, match="'cmdp-smooth' is called 'cmdp-rate' now"):
        config = embedded(method="cmdp-smooth", method_kwargs="target=0.9")
    assert config.method == "cmdp-rate"
    saved = {**run_settings(config, {}), "method": "cmdp-smooth"}
    check_resumable(saved, run_settings(config, {}), ROOT)


SEVERAL = """
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
student, teacher, tokenizer = default_pair()
try:
    args = CMDPConfig.from_recipe("embedded")
    CMDPTrainer(student, teacher, chain_reward, args, chain_dataset(8), None, tokenizer)
except ValueError as error:
    print(error)
"""


def test_several_processes_are_sent_to_the_other_engine(tmp_path):
    "Our loop is for one device; started on two it must not train two students."
    (tmp_path / "several.py").write_text(SEVERAL)
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29517")
    done = python(*torchrun, tmp_path / "several.py", env={"PYTHONPATH": str(ROOT)})
    assert done.stdout.count("2 processes were started") == 2
    assert "--engine trl" in done.stdout
