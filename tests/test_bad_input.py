"What cannot work is refused: one clear error, before any update; what is there is not touched."

import json
import re
import warnings
from dataclasses import asdict
from functools import cache, partial

import numpy as np
import pytest
import torch
from conftest import embedded, read_lines
from datasets import Dataset

from cmdp_nbdev import distil
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.certify import certify
from cmdp_nbdev.cli import ABOUT, cmdp, main
from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.evaluate import compare, evaluate_records, summarize, summarize_seeds, to_json
from cmdp_nbdev.examine import examine
from cmdp_nbdev.model import char_tokenizer, default_pair, tiny_model
from cmdp_nbdev.plot import remaining_fan, spent_histogram, token_heatmap
from cmdp_nbdev.preflight import dataset_problems
from cmdp_nbdev.reward import length_cost
from cmdp_nbdev.rollout import generate
from cmdp_nbdev.sequential import chances, least_prompts, verdict_of, violation_bounds
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.tasks import with_template
from cmdp_nbdev.trainer import CMDPTrainer
from cmdp_nbdev.watch import EarlyStopping
from cmdp_nbdev.words import words_dataset

NAN, INF = float("nan"), float("inf")

# what is wrong: the settings
#     what the message must name: the field, the value, and a way out
REFUSED = r"""
negative budget: budget=-1.0
    budget.*>= 0.*-1
nan budget: budget=NAN
    budget.*>= 0.*nan
budget as text: budget="much"
    budget.*much
unknown aggregate: aggregate="max"
    aggregate 'max'.*sum, mean, prefix_mean
burn-in with sum: burn_in=3
    burn_in.*prefix_mean.*3
group of one: num_generations=1, method="grpo"
    num_generations=1.*at least 2
group of none: num_generations=0
    num_generations must be a whole number >= 1, got 0
unknown method: method="ppo"
    method 'ppo'.*grpo.*cmdp-rate
unknown method setting: method_kwargs={"lamda": 1}
    cmdp-rate.*no setting lamda; it has target
setting of another method: method="soft", method_kwargs="coef=1"
    soft.*no setting coef; it has lam
method settings that are no settings: method_kwargs="coef"
    method_kwargs='coef'.*key=value
method setting that is no number: method_kwargs={"target": "big"}
    target.*big
gate of the default: method_kwargs={"width": 0}
    has no setting width
gate of negative width: method="cmdp", method_kwargs={"width": -0.1}
    width must be >= 0.*-0.1
unknown divergence: divergence="kl"
    divergence kind 'kl'.*reverse_kl, forward_kl, jsd
beta too large: beta=1.2
    beta must lie in \[0, 1\], got 1.2
floor of one: floor=1.0
    floor must lie in \[0, 1\), got 1.0
unknown policy: on_nonfinite="ignore"
    on_nonfinite must be one of stop, skip, got 'ignore'
unknown scaling: scale_rewards="std"
    scale_rewards must be one of group, batch, none, got 'std'
bf16 and fp16: bf16=True, fp16=True
    bf16 and fp16 exclude each other
batch that splits a group: per_device_train_batch_size=10
    per_device_train_batch_size.*10.*multiple of num_generations=4
temperature zero: temperature=0.0
    temperature must be > 0, got 0.0
top_p zero: top_p=0.0
    top_p must be in \(0, 1\], got 0.0
top_p two: top_p=2.0
    top_p must be in \(0, 1\], got 2.0
no steps: max_steps=0
    max_steps must be .*>= 1, got 0
half a step: max_steps=2.5
    max_steps must be a whole number.*2.5
endless run: max_steps=INF
    max_steps must be a whole number.*inf
steps as text: max_steps="ten"
    max_steps.*ten
more distillation than steps: distill_steps=5
    distill_steps \(5\).*max_steps \(2\)
no iterations: num_iterations=0
    num_iterations must be .*>= 1, got 0
nan learning rate: learning_rate=NAN
    learning_rate must be a finite number > 0, got nan
negative seed: seed=-1
    seed must be a whole number >= 0, got -1
half a seed: seed=0.5
    seed.*0.5
negative save_steps: save_steps=-5
    save_steps must be a whole number >= 0, got -5
keep no checkpoint: save_total_limit=0
    save_total_limit must be .*>= 1, got 0
unknown scheduler: lr_scheduler_type="cosin"
    cosin
unknown device: device="cuda:7"
    device must be auto or cpu, got 'cuda:7'
unknown tracker: report_to="tensorbord"
    report_to='tensorbord'.*available here
wrong number of weights: reward_weights=[1.0, 2.0]
    reward_weights has 2 numbers for 1 reward function
nan weight: reward_weights=[NAN]
    reward_weights.*nan
surprisal through its gradient: divergence="surprisal"
    divergence='surprisal' has no gradient on average.*'cmdp-rate'.*cmdp, hinge
surprisal alone: divergence="surprisal", method="gkd"
    divergence='surprisal'.*'gkd'
surprisal without A_D: divergence="surprisal", method="dual", method_kwargs="complete=false"
    divergence='surprisal'.*'dual'.*complete=true
surprisal as the single step of MiniLLM: divergence="surprisal", method="minillm"
    divergence='surprisal'.*'minillm'
log-ratio alone: divergence="log_ratio", method="gkd"
    divergence='log_ratio' has no gradient on average.*'gkd'
log-ratio under one multiplier: divergence="log_ratio", method="soft"
    divergence='log_ratio'.*'soft'.*complete=true
distillation on a sampled cost: divergence="surprisal", method="hinge", distill_steps=1
    distill_steps=1 .*divergence='surprisal'.*distill_steps=0 or use reverse_kl
share of updates above one: lmbda=1.5, method="gkd"
    lmbda must be in \[0, 1\], got 1.5
others' completions for a score function: lmbda=0.5, method="cmdp"
    lmbda=0.5.*'cmdp' has a score-function term.*method='gkd' or lmbda=1
others' completions for MiniLLM: lmbda=0.5, method="minillm"
    lmbda=0.5.*'minillm'
no completions in the dataset: lmbda=0.5, method="gkd"
    lmbda=0.5 needs a text column 'completion' in train_dataset.*prompt, answer.*seq_kd=True
teacher's completions never used: seq_kd=True
    seq_kd=True has no effect with lmbda=1 and distill_steps=0
quantile without distillation: budget_quantile=0.8
    budget_quantile=0.8.*set distill_steps between 1 and max_steps - 1, got 0
quantile after the run: budget_quantile=0.8, distill_steps=2
    budget_quantile=0.8.*got 2
quantile of one: budget_quantile=1.0, distill_steps=1
    budget_quantile must be in \(0, 1\), got 1.0
start without a way: budget_start=2.0
    budget_start=2.0 has no effect with budget_anneal_steps=0
way without a start: budget_anneal_steps=2
    budget_anneal_steps=2 has no effect with budget_start=1
start at nothing: budget_start=0.0, budget_anneal_steps=2
    budget_start must be a finite number > 0, got 0.0
start without a limit: budget_start=INF, budget_anneal_steps=2
    budget_start must be a finite number > 0, got inf
negative penalty: constraint_penalty=-1.0
    constraint_penalty must be >= 0, got -1.0
cold student: student_temperature=0.0
    student_temperature must be a finite number > 0, got 0.0
cold teacher: teacher_temperature=-1.0
    teacher_temperature must be a finite number > 0, got -1.0
target in per cent: method="chance-dual", method_kwargs="target=95"
    chance-dual.*target must lie in \[0, 1\].*got 95
delay of less than nothing: method="pid", method_kwargs="delay=-3"
    pid.*delay must be a whole number.*-3
half a delay: method="pid", method_kwargs="delay=0.5"
    pid.*delay must be a whole number.*0.5
reward for divergence: method="soft", method_kwargs="lam=-1"
    'soft'.*lam.*multiplier is -1, and must be >= 0
reward for divergence by log-ratios: method="kdrl", method_kwargs="lam=-1"
    'kdrl'.*lam must be >= 0.*got -1
negative hinge: method="hinge", method_kwargs="coef=-2"
    'hinge'.*coef.*must be >= 0
negative prefix limit: method="weakest-link", method_kwargs="limit=-1"
    weakest-link.*limit must be a number of nats >= 0
negative penalty of a method: method="saute-augmented", method_kwargs="penalty=-1"
    saute-augmented.*penalty n must be >= 0, got -1
scaling of a method: method="hinge", method_kwargs="scale_rewards=std"
    hinge.*scale_rewards 'std' is unknown
resume from nothing: resume_from_checkpoint="no/such/checkpoint"
    resume_from_checkpoint='no/such/checkpoint'.*no checkpoint
"""


def read_cases(table) -> dict[str, tuple[dict, str]]:
    "Settings and message by name, from lines in pairs."
    lines = table.strip().splitlines()
    cases = {}
    for head, match in zip(lines[::2], lines[1::2]):
        name, settings = head.split(": ", 1)
        cases[name] = eval(f"dict({settings})", {"NAN": NAN, "INF": INF}), match.strip()
    return cases


SETTINGS = read_cases(REFUSED)
ANY_ERROR = (ValueError, TypeError, OSError, RuntimeError)


def refused(make, tmp_path, match, errors=ANY_ERROR):
    "Building and training raises an error that matches, and no update has happened."
    with pytest.raises(errors, match=match):
        make().train()
    lines = [line for path in tmp_path.rglob("metrics.jsonl") for line in read_lines(path)]
    assert not lines, "an update was made before the error"


@pytest.fixture
def refuse(make_trainer, tmp_path):
    "Check that a trainer with these arguments is refused with a message that matches."

    def refuse(match, errors=ValueError, **arguments):
        refused(lambda: make_trainer(**arguments), tmp_path, match, errors)

    return refuse


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(refuse, name):
    "A setting out of range would otherwise fail hours later, or train something else."
    settings, match = SETTINGS[name]
    refuse(match, (ValueError, TypeError, FileNotFoundError), **settings)


def data(**columns):
    "A dataset."
    return Dataset.from_dict(columns)


def three(**columns):
    "The same question three times."
    return data(prompt=["1+1="] * 3, answer=["2"] * 3, **columns)


DATASETS = {
    "no prompt column": (
        data(question=["1+1="], answer=["2"]),
        r"train_dataset has no 'prompt' column, only question, answer; rename",
    ),
    "empty": (data(prompt=[], answer=[]), r"train_dataset is empty.*datasets.Dataset"),
    "empty prompt": (data(prompt=["1+1=", ""], answer=["2", "2"]), r"train_dataset.*prompt.*1"),
    "prompt that is none": (
        data(prompt=["1+1=", None], answer=["2", "2"]),
        r"train_dataset.*prompt.*1",
    ),
    "prompts that are numbers": (data(prompt=[1, 2], answer=["2", "2"]), r"train_dataset.*prompt"),
    "prompt longer than the context": (
        data(prompt=["1+1=", "1" + "+1" * 40 + "="], answer=["2", "1"]),
        r"train_dataset: prompt 1 has 82 tokens.*max_completion_length=20.*context of 64",
    ),
    "budget that is none": (
        three(budget=[1.0, 0.5, None]),
        r"train_dataset: column 'budget', row 2: a budget must be a number of nats >= 0, got None",
    ),
    "negative budget": (
        three(budget=[1.0, 0.5, -1.0]),
        r"train_dataset: column 'budget', row 2.*-1",
    ),
    "budget in words": (
        data(prompt=["1+1="], answer=["2"], budget=["low"]),
        r"train_dataset: column 'budget', row 0.*'low'",
    ),
    "chat without a template": (
        data(prompt=[[{"role": "user", "content": "1+1="}]], answer=["2"]),
        r"(?s)chat.?template",
    ),
}


@pytest.mark.parametrize("name", DATASETS)
def test_datasets(refuse, name):
    "A broken row must be found at the start, not when the shuffled order comes to it."
    dataset, match = DATASETS[name]
    refuse(match, (ValueError, TypeError), train_dataset=dataset)


def test_eval_dataset_is_checked_too(refuse):
    "Held-out prompts that do not fit must not surface at the end of the run."
    long, _ = DATASETS["prompt longer than the context"]
    refuse("eval_dataset: prompt 1 has 82 tokens", eval_dataset=long)


def test_eval_budgets_are_checked_too(refuse):
    "A limit that is none must not surface at the first evaluation."
    none, _ = DATASETS["budget that is none"]
    refuse("eval_dataset: column 'budget', row 2", eval_dataset=none)


@pytest.mark.parametrize("length, fits", [(15, True), (16, False)])
def test_the_context_holds_prompt_and_completion(length, fits):
    "Five tokens and fifteen are the twenty of the context; one more is refused."
    asked = data(prompt=["1+1+1"]), char_tokenizer("1+="), 20, length
    problems = list(dataset_problems("train_dataset", *asked, disable_tqdm=True))
    assert problems == [] if fits else "5 tokens; with max_completion_length=16" in problems[0]


@pytest.mark.parametrize("completion", [None, 3, []])
def test_completions_of_the_dataset(refuse, completion):
    "Off-policy distillation reads them in shuffled order; a broken one must be found at the start."
    dataset = three(completion=["1", "1", None] if completion is None else [completion] * 3)
    what = "a completion must be a text or a list of chat messages"
    match = rf"train_dataset: completion \d is .*{what}"
    refuse(match, method="gkd", lmbda=0.5, train_dataset=dataset)


def test_quantile_beside_a_budget_per_prompt(refuse):
    "Two sources for one limit: the one that would lose must be named."
    dataset = data(prompt=["1+1="], answer=["2"], budget=[1.0])
    match = "budget_quantile=0.5 has no effect: the column 'budget'"
    refuse(match, method="cmdp", distill_steps=1, budget_quantile=0.5, train_dataset=dataset)


def test_quantile_without_prompts_to_measure_on(pair, prompts, tmp_path):
    "The quantile is one of held-out completions."
    settings = {"method": "cmdp", "distill_steps": 1, "budget_quantile": 0.5}
    config = embedded(output_dir=str(tmp_path / "run"), device="cpu", **settings)
    refused(
        lambda: CMDPTrainer(pair[0], pair[1], chain_reward, config, prompts, None, pair[2]),
        tmp_path,
        "budget_quantile needs an eval_dataset",
        ValueError,
    )


TOKEN_BY_TOKEN = {
    "told": {"method": "saute-augmented"},
    "seq_kd": {"method": "gkd", "lmbda": 0.5, "seq_kd": True},
}


@pytest.mark.parametrize("config", TOKEN_BY_TOKEN.values(), ids=TOKEN_BY_TOKEN)
def test_a_teacher_function_cannot_generate(refuse, config):
    "Two options read the teacher token by token; a served one has no cache."

    def served(ids, mask):
        return torch.zeros(*ids.shape, 19)

    refuse("function.*pass a model", teacher=served, **config)


LENGTH = (lambda completion_ids: [len(i) for i in completion_ids], Budget(9))
CONSTRAINTS = {
    "list": ([LENGTH], r"constraints must be a dict, name -> \(cost function, Budget\)"),
    "number for a budget": (
        {"length": (LENGTH[0], 9)},
        r"constraints\['length'\] must be a pair \(cost function, Budget\)",
    ),
    "budget alone": ({"length": Budget(9)}, r"constraints\['length'\] must be a pair"),
    "a limit per trajectory": (
        {"length": (LENGTH[0], Budget(torch.ones(4)))},
        r"constraints\['length'\] needs one number as its limit; "
        "limits per prompt go into a dataset column 'budget_length'",
    ),
    "the teacher's name": (
        {"divergence": LENGTH},
        r"'divergence' is the name of the teacher's; its budget is CMDPConfig\(budget=...\)",
    ),
    "cost that raises": (
        {"x": (lambda completions: 1 / 0, Budget(1))},
        r"cost function '<lambda>' raised ZeroDivisionError",
    ),
    "cost of too few": (
        {"x": (lambda completions: [1], Budget(1))},
        r"cost function '<lambda>' must return one number.*2 completions, got 1",
    ),
    "cost that is text": (
        {"x": (lambda completions: completions, Budget(1))},
        r"cost function '<lambda>' returned '.*a cost is a number",
    ),
    "cost of a missing column": (
        {"x": (lambda level: level, Budget(1))},
        r"cost function '<lambda>' asks for level",
    ),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints(refuse, name):
    "A further budget is the user's own code: what is wrong with it must be said before the run."
    constraints, match = CONSTRAINTS[name]
    refuse(match, (ValueError, RuntimeError), constraints=constraints)


@pytest.mark.parametrize("method", ["gkd", "minillm"])
def test_constraints_that_nothing_would_keep(refuse, method):
    "They work through the reward; a method that reads none would ignore them without a word."
    match = r"constraints \(length\) are kept through the reward, "
    match += f"which method '{method}' does not read"
    refuse(match, method=method, constraints={"length": LENGTH})


def test_budgets_of_a_further_cost_per_prompt(refuse):
    "The column of a further budget is checked like the teacher's."
    dataset = three(budget_length=[1.0, 2.0, NAN])
    match = "train_dataset: column 'budget_length', row 2.*nan"
    refuse(match, constraints={"length": LENGTH}, train_dataset=dataset)


def test_missing_dataset(pair):
    "A trainer without prompts says so."
    with pytest.raises(ValueError, match="train_dataset is missing; give a datasets.Dataset"):
        CMDPTrainer(pair[0], pair[1], chain_reward, embedded(device="cpu"), None, None, pair[2])


def test_evaluating_without_a_dataset(make_trainer):
    "evaluate() without held-out prompts names what is missing."
    trainer = make_trainer()
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="eval_dataset is missing"):
        trainer.evaluate()


def raises(completions, **kwargs):
    raise KeyError("gold")


def returns_nan(completions, **kwargs):
    return [NAN] * len(completions)


def returns_inf(completions, **kwargs):
    return [INF] * len(completions)


def too_short(completions, **kwargs):
    return [0.0] * (len(completions) - 1)


def no_list(completions, **kwargs):
    return 1.0


def nothing(completions, **kwargs):
    pass


def words(completions, **kwargs):
    return ["good"] * len(completions)


def unknown_column(completions, gold):
    return [0.0] * len(completions)


REWARDS = [
    (raises, r"'raises' raised KeyError: 'gold'"),
    (returns_nan, r"'returns_nan' returned nan.*finite"),
    (returns_inf, r"'returns_inf' returned inf.*finite"),
    (too_short, r"'too_short' must return one number.*got \d"),
    (no_list, r"'no_list' must return one number.*got float"),
    (nothing, r"'nothing' must return one number.*got NoneType"),
    (words, r"'words'.*good"),
    (unknown_column, r"'unknown_column' asks for gold.*prompt, answer, num_flawed"),
    ("chain_reward", r"reward.*chain_reward"),
]


@pytest.mark.parametrize("f,match", REWARDS, ids=lambda x: getattr(x, "__name__", None))
def test_reward_functions(refuse, f, match):
    "A user's own function is the likeliest thing to be wrong: it is named before the run."
    refuse(match, ANY_ERROR, reward_funcs=f)


def test_no_reward_function(refuse):
    "An empty list of rewards is a mistake, with a name."
    refuse("reward_funcs", reward_funcs=[])


def save(folder, model, tok):
    "A Hugging Face folder of a model and a tokenizer."
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def test_tokenizers_that_differ(refuse, tmp_path):
    "Ids that mean different tokens would make the divergence a random number."
    other = char_tokenizer("0123456789-+*=;#")
    teacher = save(tmp_path / "t", tiny_model(32, other), other)
    different = r"2 of 19 ids differ \(id 13: student '\+', teacher '-'"
    refuse(f"do not share a tokenizer: {different}", teacher=teacher)


def test_end_of_text_that_differs(refuse, tmp_path):
    "With another EOS the teacher would never agree that a text is over."
    other = char_tokenizer()
    other.eos_token = ";"
    teacher = save(tmp_path / "t", tiny_model(32, other), other)
    refuse(r"EOS is '\$' for the student, ';' for the teacher", teacher=teacher)


@pytest.mark.parametrize("who", ["model", "teacher"])
def test_vocabulary_smaller_than_the_tokenizer(refuse, who):
    "A model of another family must not be indexed out of range."
    small = tiny_model(32, char_tokenizer("0123"))
    refuse(f"{who} has 7 output rows but the tokenizer has 19 ids", **{who: small})


@pytest.mark.parametrize("who", ["model", "teacher", "processing_class"])
@pytest.mark.parametrize("source", ["no/such/folder", "no-such-model"])
def test_paths_that_do_not_exist(refuse, who, source):
    "The message must say which of the three could not be loaded."
    refuse(f"{who}='{source}'", FileNotFoundError, **{who: source})


def test_student_path_without_a_tokenizer_argument(pair, prompts):
    "Whoever gave only `model` must not read about a processing_class they never gave."
    with pytest.raises(FileNotFoundError, match="model='no/such/folder'"):
        CMDPTrainer("no/such/folder", pair[1], chain_reward, embedded(device="cpu"), prompts)


@pytest.mark.parametrize("who", ["model", "teacher"])
def test_things_that_are_no_model(refuse, who):
    "A number in place of a model."
    refuse(f"{who} must be a model, a folder or a name, got int", TypeError, **{who: 3})


def test_tokenizer_without_an_end(refuse, pair):
    "Without EOS no completion ever ends."
    pair[2].eos_token = None
    match = "processing_class has no eos_token.*set tokenizer.eos_token"
    refuse(match, processing_class=pair[2])


def test_one_object_as_student_and_teacher(refuse, pair):
    "Freezing the teacher would freeze the student: the message must say that they are one object."
    refuse("teacher.*same", model=pair[0], teacher=pair[0])


def test_teacher_function_of_the_wrong_shape(refuse):
    "A server that answers the last position only is the usual mistake."

    def last_only(ids, mask):
        return torch.zeros(len(ids), 1, 19)

    refuse(r"teacher must answer \(B, L, V\)", teacher=last_only)


def test_output_folder_that_cannot_be_written(refuse, tmp_path):
    "Found before the run, not after."
    (tmp_path / "file").write_text("x")
    match = "output_dir='.*file/run' cannot be written.*choose another folder"
    refuse(match, output_dir=str(tmp_path / "file" / "run"))


# ---- a finished run is safe ------------------------------------------------------------


def contents(folder):
    "Every file below a folder, by path and bytes."
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def finished(make_trainer, tmp_path):
    "A run with a checkpoint, and its files."
    trainer = make_trainer(save_steps=1, save_total_limit=1)
    trainer.train()
    trainer.save_model(trainer.output_dir / "student")
    return trainer.output_dir, contents(trainer.output_dir)


AUTO = {"resume_from_checkpoint": "auto"}


@pytest.mark.parametrize(
    "config,match",
    [
        ({}, "holds a run already; choose another folder or resume"),
        ({**AUTO, "seed": 1}, "seed was 0, now 1"),
        ({**AUTO, "method": "gkd"}, "method was 'cmdp-rate', now 'gkd'"),
        (
            {**AUTO, "budget": 0.5, "learning_rate": 1e-4},
            "budget was 0.8, now 0.5; learning_rate was 0.0015, now 0.0001",
        ),
        ({**AUTO, "max_steps": 1}, "max_steps was 2, now 1"),
    ],
)
def test_a_refused_run_leaves_the_saved_one_alone(make_trainer, finished, config, match):
    "Results of hours must survive a careless command, also when the user insists."
    folder, before = finished
    config["output_dir"] = str(folder)
    for resume in (None, config.get("resume_from_checkpoint")):
        with pytest.raises((ValueError, FileExistsError), match=match):
            make_trainer(**config).train(resume)
        assert contents(folder) == before


@pytest.mark.parametrize("resume", [None, "auto", "checkpoint"])
def test_the_folder_of_another_run_is_refused_at_construction(make_trainer, finished, resume):
    "Not in train(), when evaluations have been paid for; with every difference, and its folder."
    folder, before = finished
    resume = str(folder / "checkpoint-2") if resume == "checkpoint" else resume
    settings = dict(output_dir=str(folder), seed=1, resume_from_checkpoint=resume)
    found = "run' holds a run already,"
    if "checkpoint" in str(resume):
        found = "checkpoint-2' belongs to a run"
    match = f"{found} with other settings: seed was 0, now 1; choose another folder"
    with pytest.raises(ValueError, match=match):
        make_trainer(**settings)
    with pytest.raises(ValueError, match="constraints was {}, now {'length'"):
        make_trainer(constraints={"length": (length_cost, Budget(9))}, **{**settings, "seed": 0})
    assert contents(folder) == before


def test_a_folder_of_the_same_run_is_said_before_an_evaluation(make_trainer, finished):
    "It may be about to go on; a trainer that goes on says nothing."
    folder, before = finished
    trainer = make_trainer(output_dir=str(folder))
    for measure in (trainer.evaluate, trainer.suggest_budget):
        with pytest.warns(UserWarning, match="holds this run already.*from_checkpoint='auto'"):
            measure()
    with pytest.raises(FileExistsError, match="holds a run already"):
        trainer.train()
    assert contents(folder) == before
    trainer.train(resume_from_checkpoint="auto")
    with warnings.catch_warnings(action="error", category=UserWarning):
        trainer.evaluate()
        make_trainer(output_dir=str(folder), **AUTO).evaluate()


def test_a_checkpoint_that_is_none_is_refused_at_construction(make_trainer, tmp_path):
    "The same sentence as when it is given to train()."
    with pytest.raises(ValueError, match="no.where' is no checkpoint folder"):
        make_trainer(resume_from_checkpoint=tmp_path / "no.where")


@pytest.mark.parametrize(
    "save_steps", [1, 0], ids=["with a checkpoint", "killed before the first one"]
)
def test_resuming_under_another_further_budget(make_trainer, tmp_path, save_steps):
    "The limits of `constraints` are not in the config, but change what is computed."

    def limited(limit, **config):
        return make_trainer(constraints={"length": (length_cost, Budget(limit))}, **config)

    limited(20, max_steps=1, save_steps=save_steps).train()
    folder, before = tmp_path / "run", contents(tmp_path / "run")
    for make in (partial(limited, 16), make_trainer):
        with pytest.raises(ValueError, match=r"constraints was \{'length': \{'limit': 20"):
            make(max_steps=1, **AUTO)
        assert contents(folder) == before
    limited(20, max_steps=1, **AUTO).train()


def test_resume_folder_that_is_none(make_trainer, finished, tmp_path):
    "The student's folder is no checkpoint."
    folder, before = finished
    with pytest.raises(FileNotFoundError, match="is no checkpoint folder"):
        make_trainer(output_dir=str(folder)).train(str(folder / "student"))
    assert contents(folder) == before


def test_auto_resume_does_not_wipe_a_run_of_other_settings(make_trainer, tmp_path):
    "`auto` without a checkpoint starts anew, but not on top of another experiment's results."
    make_trainer(seed=1).train()
    before = contents(tmp_path / "run")
    with pytest.raises((ValueError, FileExistsError), match="output_dir|resume_from_checkpoint"):
        make_trainer(seed=2, resume_from_checkpoint="auto").train()
    assert contents(tmp_path / "run") == before


def test_loading_another_architecture_is_refused(make_trainer, finished, pair):
    "A checkpoint of another student must not be half loaded."
    folder, before = finished
    with pytest.raises((ValueError, RuntimeError)):
        make_trainer(tiny_model(48, pair[2]), output_dir=str(folder), **AUTO).train()
    assert contents(folder) == before


# ---- the command line ------------------------------------------------------------------

# words in braces are files that the fixture below makes
OWN = "--teacher {student} --budget 20 --max_completion_length 32"
PAIR = f"--student {{student}} {OWN}"
DATA = "--dataset {jsonl} --eval_dataset {jsonl}"
CLI = {
    "student alone": ("--student x", "teacher, dataset, eval_dataset, reward missing"),
    "teacher without student": ("--teacher x", "teacher given without a student"),
    "dataset without student": (
        "--dataset x.jsonl --reward a:b",
        "dataset, reward given without a student",
    ),
    "nothing to evaluate on": ("--n_eval 0", "n_eval must be >= 1, got 0"),
    "more test prompts than there are": ("--n_eval 100000000", "n must lie between|n_eval"),
    "no threads": ("--num_threads 0", "num_threads must be >= 1, got 0"),
    "method all with settings": (
        "--method all --method_kwargs lam=1",
        "method_kwargs belong to one method.*'all'",
    ),
    "method all on a cost that some cannot take": (
        "--method all --divergence surprisal",
        "divergence='surprisal'",
    ),
    "unknown method": ("--method ppo", "method 'ppo' is unknown; choose one of"),
    "negative budget": ("--budget -1", "budget.*>= 0.*-1"),
    "unknown option": ("--budgett 1", "--budgett"),
    "number that is none": ("--max_steps ten", "max_steps must be a whole number >= 1.*'ten'"),
    "YAML that is none": ("--config {yaml}", "--config"),
    "YAML that does not exist": ("--config no.yaml", "--config no.yaml"),
    "unknown reward module": (
        f"{PAIR} {DATA} --reward no_such_module:f",
        "reward='no_such_module:f' could not be loaded",
    ),
    "unknown reward function": (
        f"{PAIR} {DATA} --reward json:nothing",
        "reward='json:nothing' could not be loaded",
    ),
    "reward without a function": (
        f"{PAIR} {DATA} --reward json",
        "reward='json' must look like module:function",
    ),
    "reward that raises": (
        f"{PAIR} {DATA} --reward broken_reward:f",
        "reward function 'f' raised ZeroDivisionError",
    ),
    "dataset that does not exist": (
        PAIR + " --dataset no.jsonl --eval_dataset {jsonl} --reward broken_reward:f",
        "dataset='no.jsonl' could not be loaded",
    ),
    "student that does not exist": (
        f"--student no/such/folder {OWN} {DATA} --reward broken_reward:g",
        "(student|model)='no/such/folder'",
    ),
}
BROKEN_REWARD = """
def f(completions, **kwargs):
    return 1 / 0


def g(completions, **kwargs):
    return [0.0] * len(completions)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Files that the cases above name."
    d = tmp_path_factory.mktemp("cli")
    tok = char_tokenizer()
    (d / "bad.yaml").write_text("budget: [1\n")
    (d / "p.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 4)
    (d / "broken_reward.py").write_text(BROKEN_REWARD)
    student = save(d / "student", tiny_model(32, tok), tok)
    named = {"yaml": str(d / "bad.yaml"), "jsonl": str(d / "p.jsonl"), "student": student}
    return {**named, "folder": d}


def exit_code(argv, command=main) -> int:
    "What the command answers; argparse leaves by SystemExit."
    try:
        return command(argv)
    except SystemExit as e:
        return e.code


@pytest.mark.parametrize("name", CLI)
def test_command_line(name, files, tmp_path, monkeypatch, capsys):
    "Every mistake is one line on stderr and exit code 2, never a traceback or a started run."
    options, match = CLI[name]
    monkeypatch.chdir(files["folder"])
    argv = [word.format(**files) for word in options.split()]
    quick = ["--output_dir", str(tmp_path / "run"), "--device", "cpu", "--disable_tqdm"]
    assert exit_code(argv + quick) == 2
    err = capsys.readouterr().err.strip()
    last = err[err.rindex("error:") :] if "error:" in err else err
    assert re.search(match, last, re.S), err
    if "usage:" not in err:
        assert len([line for line in err.splitlines() if "error" in line]) == 1
        assert "Traceback" not in err
        assert "\n" not in last
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    "text,match",
    [
        ("budgett: 1", "unknown option budgett"),
        ("- budget", "expected 'option: value'"),
        ("max_steps: ten", "max_steps"),
        ("max_steps: [1]", "max_steps"),
        ("budget: -2", "budget.*-2"),
    ],
)
def test_yaml(text, match, tmp_path, capsys):
    "A typo in the settings file must not run with the default instead."
    (tmp_path / "c.yaml").write_text(text)
    argv = ["--config", str(tmp_path / "c.yaml"), "--output_dir", str(tmp_path / "run")]
    assert exit_code(argv) == 2
    assert re.search(match, capsys.readouterr().err)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


FILES = {
    "budgett: 1": "unknown option budgett",
    "- budget": "expected 'option: value'",
    "config: [1": "--config",
    "output_dir: [1]": "output_dir",
}


@pytest.mark.parametrize("command", [c for c in ABOUT if c != "distill"])
def test_yaml_of_every_command(command, tmp_path, capsys):
    "A file that is none, an option that is none, a value that is none; nothing is begun."
    for text, match in FILES.items():
        (tmp_path / "c.yaml").write_text(text)
        argv = [command, "--config", str(tmp_path / "c.yaml")]
        assert exit_code(argv, cmdp) == 2, text
        *_, line = capsys.readouterr().err.strip().splitlines()
        assert re.search(match, line), (text, line)
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_cli_does_not_overwrite_a_run(finished, capsys, monkeypatch):
    "The same command twice must not destroy the first result; said before a model is loaded."
    folder, before = finished
    monkeypatch.setattr(distil, "default_pair", lambda: pytest.fail("was loaded"))
    small = "--max_steps 1 --n_eval 8 --per_device_train_batch_size 8 --device cpu --disable_tqdm"
    code = main(["--output_dir", str(folder), *small.split()])
    assert code == 2
    assert "holds a run already" in capsys.readouterr().err
    assert contents(folder) == before


# ---- functions of the library ------------------------------------------------------------

PAIR_OF_OURS = cache(default_pair)


def asked(**changes):
    "Arguments of an evaluation of the embedded pair, and what is changed in them."
    student, teacher, tokenizer = PAIR_OF_OURS()
    given = dict(model=student, teacher=teacher, dataset=chain_dataset(2), tokenizer=tokenizer)
    more = dict(reward_funcs=chain_reward, budget=Budget(1.0), disable_tqdm=True)
    return evaluate_records(**{**given, **more, **changes})


def written(prompts, *columns, **sampling):
    "Completions of the embedded student."
    student, _, tokenizer = PAIR_OF_OURS()
    return generate(student, tokenizer, prompts, *columns, **sampling)


FUNCTIONS = {
    "no dataset": (
        lambda: asked(dataset=["1+1="]),
        r"dataset must be a datasets.Dataset with a column 'prompt', got \['1",
    ),
    "another column": (
        lambda: asked(dataset=data(question=["1+1="])),
        "dataset has no column 'prompt', only question; rename one",
    ),
    "a number for a budget": (
        lambda: asked(budget=1.0),
        r"budget must be a Budget, such as Budget\(0.8\), got 1.0",
    ),
    "no reward": (lambda: asked(reward_funcs=[]), "reward_funcs is empty; give at least one"),
    "a reward that is none": (lambda: asked(reward_funcs=3), "must be functions.*got 3"),
    "weights of two": (
        lambda: asked(reward_weights=[1, 2]),
        "reward_weights has 2 numbers for 1 reward functions",
    ),
    "nothing at a time": (lambda: asked(batch_size=0), "batch_size must be .*>= 1, got 0"),
    "negative seed": (lambda: asked(seed=-1), "seed must be a whole number >= 0, got -1"),
    "one text for prompts": (lambda: written("1+1="), "prompts must be a list.*got '1"),
    "no prompts": (lambda: written([]), r"prompts must be a list of at least one prompt, got \[\]"),
    "columns too long": (
        lambda: written(["1+1="], {"level": [1, 2]}),
        "column 'level' has 2 values for 1 prompts",
    ),
    "no completion": (
        lambda: written(["1+1="], num_generations=0),
        "num_generations must be a whole number >= 1, got 0",
    ),
    "half a token": (
        lambda: written(["1+1="], max_completion_length=2.5),
        "max_completion_length must be a whole number >= 1, got 2.5",
    ),
    "half a chain": (lambda: chain_dataset(2.5), "n must lie between 1 and .*got 2.5"),
    "chains in words": (lambda: chain_dataset("2"), "n must lie between 1 and .*got 2"),
    "half a problem": (lambda: words_dataset(1.5), "n must be a whole number, at least 1, got 1.5"),
    "width between heads": (
        lambda: tiny_model(20, char_tokenizer()),
        "width must be a multiple of 16, the size of a head, got 20",
    ),
    "patience in words": (
        lambda: EarlyStopping(patience="long"),
        "patience must be a whole number >= 1, got 'long'",
    ),
    "metrics without names": (lambda: asked(metrics=[len]), "metrics must be a dict by name"),
    "constraints in words": (lambda: asked(constraints="x"), "constraints must be a dict by name"),
    "a summary of no records": (lambda: summarize([]), "no records to summarize"),
    "a summary of other things": (lambda: summarize([{"x": 1}]), "records have no correct, spent"),
    "a comparison of numbers": (lambda: compare(3, 4), "records must be a list of dicts, got 3"),
    "seeds of other things": (lambda: summarize_seeds([{"x": 1}]), "records have no prompt; give"),
    "an examination of a list": (
        lambda: examine(*PAIR_OF_OURS()[:2], ["1+1="]),
        "dataset must be a datasets.Dataset",
    ),
    "one budget to examine": (
        lambda: examine(*PAIR_OF_OURS()[:2], chain_dataset(2), budgets=2),
        r"budgets must be a list of limits, got 2; give \[2\]",
    ),
    "a rate in per cent": (lambda: least_prompts(98), r"got 98 \(98% is 0.98\)"),
    "a rate in words": (lambda: least_prompts("high"), "target must be a number, got 'high'"),
    "no error allowed": (lambda: least_prompts(0.9, 0), "alpha must be above 0"),
    "more violations than prompts": (
        lambda: violation_bounds(11, 10),
        "need 0 <= violations <= n and n >= 1, got violations=11, n=10",
    ),
    "a verdict on nothing": (lambda: verdict_of(0, 0, 0.9), "n >= 1, got violations=0, n=0"),
    "a rate above one": (lambda: chances(1.5, 100, 0.9), "rate must lie between 0 and 1, got 1.5"),
    "chances of no prompts": (lambda: chances(0.9, 0, 0.9), "prompts must be a whole number >= 1"),
    "a certificate from a list": (lambda: certified(["a"]), "dataset must be a datasets.Dataset"),
    "a certificate of a column": (lambda: certified(data(q=["a"])), "no column 'prompt', only q"),
    "a certificate without looks": (lambda: certified(portion=0), "portion must be .*>= 1, got 0"),
    "a certificate's seed": (lambda: certified(seed=-1), "seed must be a whole number >= 0, got"),
    "a certificate's budget": (lambda: certified(budget="much"), "budget limit .*got 'much'"),
    "a histogram of nothing": (lambda: spent_histogram([], Budget(1)), "records are empty"),
    "a fan of nothing": (lambda: remaining_fan([], Budget(1)), "records are empty: there is"),
    "a heat map of nothing": (lambda: token_heatmap([], None), "records are empty: there is"),
}


def certified(dataset=None, **changes):
    "Ask for a certificate of a student that must not be loaded."
    asked = dict(budget=1.0, target=0.9) | changes
    return certify("not loaded", "nor this", dataset or chain_dataset(60, "test"), **asked)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    "A sentence about the argument, not what Python says of the line it breaks on."
    call, match = FUNCTIONS[name]
    with pytest.raises(ValueError, match=match):
        call()


NUMBERS = (np.int64(2), np.uint8(2))


@pytest.mark.parametrize("two", NUMBERS, ids=lambda n: n.dtype.name)
def test_numbers_of_numpy(two):
    "What an array holds is as good as Python's own, and is a number in files."
    half = np.float32(0.5)
    limit = Budget(half, "prefix_mean", two)
    settings = dict(num_generations=two, max_completion_length=two, temperature=half, top_p=half)
    records = asked(budget=limit, batch_size=two, seed=two, **settings)
    assert len(records) == 4
    rows, plain = chain_dataset(two, "train", two), chain_dataset(2, "train", 2)
    assert rows["prompt"] == plain["prompt"]
    assert words_dataset(two, "train", two)["prompt"] == words_dataset(2, "train", 2)["prompt"]
    shots = with_template(chain_dataset(3, "test"), "plain", None, two, plain, two)
    assert (
        shots["prompt"]
        == with_template(chain_dataset(3, "test"), "plain", None, 2, plain, 2)["prompt"]
    )
    assert (
        tiny_model(np.int64(16), char_tokenizer(), two, np.int64(64), two).config.hidden_size == 16
    )
    args = CMDPConfig(budget=half, max_steps=two, seed=two, num_generations=two)
    assert (
        json.loads(to_json({"args": asdict(args), "n": two, "half": half, "nan": np.float32(NAN)}))[
            "n"
        ]
        == 2
    )
    assert to_json([two, half, np.float32(NAN), torch.tensor(0.5)]) == "[2, 0.5, null, 0.5]"
