"What cannot work is refused: one clear error, before any update, and without touching what is there."

import re

import pytest
import torch
from conftest import read_lines
from datasets import Dataset

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.cli import main
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.reward import length_cost
from cmdp_nbdev.task import chain_reward
from cmdp_nbdev.trainer import CMDPConfig

NAN, INF = float("nan"), float("inf")

# settings -> what the message must name: the field, the value, and a way out
SETTINGS = {
    "negative budget": (dict(budget=-1.0), r"budget.*>= 0.*-1"),
    "nan budget": (dict(budget=NAN), r"budget.*>= 0.*nan"),
    "budget as text": (dict(budget="much"), r"budget.*much"),
    "unknown aggregate": (dict(aggregate="max"), r"aggregate 'max'.*sum, mean, prefix_mean"),
    "burn-in with sum": (dict(burn_in=3), r"burn_in.*prefix_mean.*3"),
    "group of one": (dict(num_generations=1, method="grpo"), r"num_generations=1.*at least 2"),
    "group of none": (
        dict(num_generations=0),
        r"num_generations must be a whole number >= 1, got 0",
    ),
    "unknown method": (dict(method="ppo"), r"method 'ppo'.*grpo.*cmdp-rate"),
    "unknown method setting": (
        dict(method_kwargs={"lamda": 1}),
        r"cmdp-rate.*no setting lamda; it has target",
    ),
    "setting of another method": (
        dict(method="soft", method_kwargs="coef=1"),
        r"soft.*no setting coef; it has lam",
    ),
    "method settings that are no settings": (
        dict(method_kwargs="coef"),
        r"method_kwargs='coef'.*key=value",
    ),
    "method setting that is no number": (dict(method_kwargs={"target": "big"}), r"target.*big"),
    "gate of the default": (dict(method_kwargs={"width": 0}), r"has no setting width"),
    "gate of negative width": (
        dict(method="cmdp", method_kwargs={"width": -0.1}),
        r"width must be >= 0.*-0.1",
    ),
    "unknown divergence": (
        dict(divergence="kl"),
        r"divergence kind 'kl'.*reverse_kl, forward_kl, jsd",
    ),
    "beta too large": (dict(beta=1.2), r"beta must lie in \[0, 1\], got 1.2"),
    "floor of one": (dict(floor=1.0), r"floor must lie in \[0, 1\), got 1.0"),
    "unknown scaling": (
        dict(scale_rewards="std"),
        r"scale_rewards must be one of group, batch, none, got 'std'",
    ),
    "bf16 and fp16": (dict(bf16=True, fp16=True), r"bf16 and fp16 exclude each other"),
    "batch that splits a group": (
        dict(per_device_train_batch_size=10),
        r"per_device_train_batch_size.*10.*multiple of num_generations=4",
    ),
    "temperature zero": (dict(temperature=0.0), r"temperature must be > 0, got 0.0"),
    "top_p zero": (dict(top_p=0.0), r"top_p must be in \(0, 1\], got 0.0"),
    "top_p two": (dict(top_p=2.0), r"top_p must be in \(0, 1\], got 2.0"),
    "no steps": (dict(max_steps=0), r"max_steps must be .*>= 1, got 0"),
    "half a step": (dict(max_steps=2.5), r"max_steps must be a whole number.*2.5"),
    "endless run": (dict(max_steps=INF), r"max_steps must be a whole number.*inf"),
    "steps as text": (dict(max_steps="ten"), r"max_steps.*ten"),
    "more distillation than steps": (
        dict(distill_steps=5),
        r"distill_steps \(5\).*max_steps \(2\)",
    ),
    "no iterations": (dict(num_iterations=0), r"num_iterations must be .*>= 1, got 0"),
    "nan learning rate": (dict(learning_rate=NAN), r"learning_rate must be > 0, got nan"),
    "negative seed": (dict(seed=-1), r"seed must be a whole number >= 0, got -1"),
    "half a seed": (dict(seed=0.5), r"seed.*0.5"),
    "negative save_steps": (dict(save_steps=-5), r"save_steps must be a whole number >= 0, got -5"),
    "keep no checkpoint": (dict(save_total_limit=0), r"save_total_limit must be .*>= 1, got 0"),
    "unknown scheduler": (dict(lr_scheduler_type="cosin"), r"cosin"),
    "unknown device": (dict(device="cuda:7"), r"device must be auto or cpu, got 'cuda:7'"),
    "unknown tracker": (dict(report_to="tensorbord"), r"report_to='tensorbord'.*available here"),
    "wrong number of weights": (
        dict(reward_weights=[1.0, 2.0]),
        r"reward_weights has 2 numbers for 1 reward function",
    ),
    "nan weight": (dict(reward_weights=[NAN]), r"reward_weights.*nan"),
    "surprisal through its gradient": (
        dict(divergence="surprisal"),
        r"divergence='surprisal' has no gradient on average.*'cmdp-rate'.*cmdp, hinge",
    ),
    "surprisal alone": (
        dict(divergence="surprisal", method="gkd"),
        r"divergence='surprisal'.*'gkd'",
    ),
    "surprisal and a multiplier without A_D": (
        dict(divergence="surprisal", method="dual", method_kwargs="complete=false"),
        r"divergence='surprisal'.*'dual'.*complete=true",
    ),
    "surprisal as the single step of MiniLLM": (
        dict(divergence="surprisal", method="minillm"),
        r"divergence='surprisal'.*'minillm'",
    ),
    "log-ratio alone": (
        dict(divergence="log_ratio", method="gkd"),
        r"divergence='log_ratio' has no gradient on average.*'gkd'",
    ),
    "log-ratio under one multiplier": (
        dict(divergence="log_ratio", method="soft"),
        r"divergence='log_ratio'.*'soft'.*complete=true",
    ),
    "distillation on a sampled cost": (
        dict(divergence="surprisal", method="hinge", distill_steps=1),
        r"distill_steps=1 .*divergence='surprisal'.*distill_steps=0 or use reverse_kl",
    ),
    "share of updates above one": (
        dict(lmbda=1.5, method="gkd"),
        r"lmbda must be in \[0, 1\], got 1.5",
    ),
    "others' completions for a score function": (
        dict(lmbda=0.5, method="cmdp"),
        r"lmbda=0.5.*'cmdp' has a score-function term.*method='gkd' or lmbda=1",
    ),
    "others' completions for MiniLLM": (dict(lmbda=0.5, method="minillm"), r"lmbda=0.5.*'minillm'"),
    "no completions in the dataset": (
        dict(lmbda=0.5, method="gkd"),
        r"lmbda=0.5 needs a text column 'completion' in train_dataset.*prompt, answer.*seq_kd=True",
    ),
    "teacher's completions never used": (
        dict(seq_kd=True),
        r"seq_kd=True has no effect with lmbda=1",
    ),
    "quantile without distillation": (
        dict(budget_quantile=0.8),
        r"budget_quantile=0.8.*set distill_steps between 1 and max_steps - 1, got 0",
    ),
    "quantile after the run": (
        dict(budget_quantile=0.8, distill_steps=2),
        r"budget_quantile=0.8.*got 2",
    ),
    "quantile of one": (
        dict(budget_quantile=1.0, distill_steps=1),
        r"budget_quantile must be in \(0, 1\), got 1.0",
    ),
    "start without a way": (
        dict(budget_start=2.0),
        r"budget_start=2.0 has no effect with budget_anneal_steps=0",
    ),
    "way without a start": (
        dict(budget_anneal_steps=2),
        r"budget_anneal_steps=2 has no effect with budget_start=1",
    ),
    "start at nothing": (
        dict(budget_start=0.0, budget_anneal_steps=2),
        r"budget_start must be a finite number > 0, got 0.0",
    ),
    "start without a limit": (
        dict(budget_start=INF, budget_anneal_steps=2),
        r"budget_start must be a finite number > 0, got inf",
    ),
    "negative penalty": (
        dict(constraint_penalty=-1.0),
        r"constraint_penalty must be >= 0, got -1.0",
    ),
    "cold student": (
        dict(student_temperature=0.0),
        r"student_temperature must be a finite number > 0, got 0.0",
    ),
    "cold teacher": (
        dict(teacher_temperature=-1.0),
        r"teacher_temperature must be a finite number > 0, got -1.0",
    ),
    "target in per cent": (
        dict(method="chance-dual", method_kwargs="target=95"),
        r"chance-dual.*target must lie in \[0, 1\].*got 95",
    ),
    "delay of less than nothing": (
        dict(method="pid", method_kwargs="delay=-3"),
        r"pid.*delay must be a whole number.*-3",
    ),
    "half a delay": (
        dict(method="pid", method_kwargs="delay=0.5"),
        r"pid.*delay must be a whole number.*0.5",
    ),
    "reward for divergence": (
        dict(method="soft", method_kwargs="lam=-1"),
        r"'soft'.*lam.*multiplier is -1, and must be >= 0",
    ),
    "reward for divergence by log-ratios": (
        dict(method="kdrl", method_kwargs="lam=-1"),
        r"'kdrl'.*lam must be >= 0.*got -1",
    ),
    "negative hinge": (
        dict(method="hinge", method_kwargs="coef=-2"),
        r"'hinge'.*coef.*must be >= 0",
    ),
    "negative prefix limit": (
        dict(method="weakest-link", method_kwargs="limit=-1"),
        r"weakest-link.*limit must be a number of nats >= 0",
    ),
    "negative penalty of a method": (
        dict(method="saute-augmented", method_kwargs="penalty=-1"),
        r"saute-augmented.*penalty n must be >= 0, got -1",
    ),
    "scaling of a method": (
        dict(method="hinge", method_kwargs="scale_rewards=std"),
        r"hinge.*scale_rewards 'std' is unknown",
    ),
    "resume from nothing": (
        dict(resume_from_checkpoint="no/such/checkpoint"),
        r"resume_from_checkpoint='no/such/checkpoint'.*no checkpoint",
    ),
}


def refused(make, tmp_path, match, errors=(ValueError, TypeError, OSError, RuntimeError)):
    "Building and training raises an error that matches, and no update has happened."
    with pytest.raises(errors, match=match):
        make().train()
    lines = [line for path in tmp_path.rglob("metrics.jsonl") for line in read_lines(path)]
    assert not lines, "an update was made before the error"


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(make_trainer, tmp_path, name):
    "A setting out of range would otherwise fail hours later, or train something else."
    config, match = SETTINGS[name]
    refused(
        lambda: make_trainer(**config), tmp_path, match, (ValueError, TypeError, FileNotFoundError)
    )


def data(**columns):
    return Dataset.from_dict(columns)


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
        data(prompt=["1+1="] * 3, answer=["2"] * 3, budget=[1.0, 0.5, None]),
        r"train_dataset: column 'budget', row 2: a budget must be a number of nats >= 0, got None",
    ),
    "negative budget": (
        data(prompt=["1+1="] * 3, answer=["2"] * 3, budget=[1.0, 0.5, -1.0]),
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
def test_datasets(make_trainer, tmp_path, name):
    "A broken row must be found at the start, not when the shuffled order comes to it."
    dataset, match = DATASETS[name]
    refused(lambda: make_trainer(train_dataset=dataset), tmp_path, match, (ValueError, TypeError))


def test_eval_dataset_is_checked_too(make_trainer, tmp_path):
    "Held-out prompts that do not fit must not surface at the end of the run."
    refused(
        lambda: make_trainer(eval_dataset=DATASETS["prompt longer than the context"][0]),
        tmp_path,
        "eval_dataset: prompt 1 has 82 tokens",
        ValueError,
    )


def test_eval_budgets_are_checked_too(make_trainer, tmp_path):
    "A limit that is none must not surface at the first evaluation."
    refused(
        lambda: make_trainer(eval_dataset=DATASETS["budget that is none"][0]),
        tmp_path,
        "eval_dataset: column 'budget', row 2",
        ValueError,
    )


@pytest.mark.parametrize("completion", [None, 3, []])
def test_completions_of_the_dataset(make_trainer, tmp_path, completion):
    "Off-policy distillation reads them in shuffled order; a broken one must be found at the start."
    dataset = data(
        prompt=["1+1="] * 3,
        answer=["2"] * 3,
        completion=[completion] * 3 if completion is not None else ["1", "1", None],
    )
    refused(
        lambda: make_trainer(method="gkd", lmbda=0.5, train_dataset=dataset),
        tmp_path,
        r"train_dataset: completion \d is .*a completion must be a text or a list of chat messages",
        ValueError,
    )


def test_quantile_beside_a_budget_per_prompt(make_trainer, tmp_path):
    "Two sources for one limit: the one that would lose must be named."
    refused(
        lambda: make_trainer(
            method="cmdp",
            distill_steps=1,
            budget_quantile=0.5,
            train_dataset=data(prompt=["1+1="], answer=["2"], budget=[1.0]),
        ),
        tmp_path,
        "budget_quantile=0.5 has no effect: the column 'budget'",
        ValueError,
    )


def test_quantile_without_prompts_to_measure_on(pair, prompts, tmp_path):
    "The quantile is one of held-out completions."
    from cmdp_nbdev.trainer import CMDPTrainer

    config = CMDPConfig(
        method="cmdp",
        distill_steps=1,
        budget_quantile=0.5,
        output_dir=str(tmp_path / "run"),
        device="cpu",
    )
    refused(
        lambda: CMDPTrainer(pair[0], pair[1], chain_reward, config, prompts, None, pair[2]),
        tmp_path,
        "budget_quantile needs an eval_dataset",
        ValueError,
    )


@pytest.mark.parametrize(
    "config",
    [dict(method="saute-augmented"), dict(method="gkd", lmbda=0.5, seq_kd=True)],
    ids=["told", "seq_kd"],
)
def test_a_teacher_function_cannot_generate(make_trainer, tmp_path, config):
    "Two options read the teacher token by token; a served one has no cache."
    refused(
        lambda: make_trainer(teacher=lambda ids, mask: torch.zeros(*ids.shape, 19), **config),
        tmp_path,
        "function.*pass a model",
        ValueError,
    )


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
        r"constraints\['length'\] needs one number as its limit; limits per prompt go into a dataset column 'budget_length'",
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
def test_constraints(make_trainer, tmp_path, name):
    "A further budget is the user's own code: what is wrong with it must be said before the run."
    refused(
        lambda: make_trainer(constraints=CONSTRAINTS[name][0]),
        tmp_path,
        CONSTRAINTS[name][1],
        (ValueError, RuntimeError),
    )


@pytest.mark.parametrize("method", ["gkd", "minillm"])
def test_constraints_that_nothing_would_keep(make_trainer, tmp_path, method):
    "They work through the reward; a method that reads none would ignore them without a word."
    refused(
        lambda: make_trainer(method=method, constraints={"length": LENGTH}),
        tmp_path,
        f"constraints \\(length\\) are kept through the reward, which method '{method}' does not read",
        ValueError,
    )


def test_budgets_of_a_further_cost_per_prompt(make_trainer, tmp_path):
    "The column of a further budget is checked like the teacher's."
    refused(
        lambda: make_trainer(
            constraints={"length": LENGTH},
            train_dataset=data(
                prompt=["1+1="] * 3, answer=["2"] * 3, budget_length=[1.0, 2.0, NAN]
            ),
        ),
        tmp_path,
        "train_dataset: column 'budget_length', row 2.*nan",
        ValueError,
    )


def test_missing_dataset(pair):
    "A trainer without prompts says so."
    from cmdp_nbdev.trainer import CMDPTrainer

    with pytest.raises(ValueError, match="train_dataset is missing; give a datasets.Dataset"):
        CMDPTrainer(pair[0], pair[1], chain_reward, CMDPConfig(device="cpu"), None, None, pair[2])


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
def test_reward_functions(make_trainer, tmp_path, f, match):
    "A user's own function is the likeliest thing to be wrong; it must be called by its name before the run."
    refused(lambda: make_trainer(reward_funcs=f), tmp_path, match)


def test_no_reward_function(make_trainer, tmp_path):
    "An empty list of rewards is a mistake, with a name."
    refused(lambda: make_trainer(reward_funcs=[]), tmp_path, "reward_funcs", ValueError)


def save(folder, model, tok):
    "A Hugging Face folder of a model and a tokenizer."
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def test_tokenizers_that_differ(make_trainer, tmp_path):
    "Ids that mean different tokens would make the divergence a random number."
    other = char_tokenizer("0123456789-+*=;#")
    teacher = save(tmp_path / "t", tiny_model(32, other), other)
    refused(
        lambda: make_trainer(teacher=teacher),
        tmp_path,
        r"do not share a tokenizer: 2 of 19 ids differ \(id 13: student '\+', teacher '-'",
        ValueError,
    )


def test_end_of_text_that_differs(make_trainer, tmp_path):
    "With another EOS the teacher would never agree that a text is over."
    other = char_tokenizer()
    other.eos_token = ";"
    teacher = save(tmp_path / "t", tiny_model(32, other), other)
    refused(
        lambda: make_trainer(teacher=teacher),
        tmp_path,
        "EOS is '\\$' for the student, ';' for the teacher",
        ValueError,
    )


@pytest.mark.parametrize("who", ["model", "teacher"])
def test_vocabulary_smaller_than_the_tokenizer(make_trainer, tmp_path, pair, who):
    "A model of another family must not be indexed out of range."
    small = tiny_model(32, char_tokenizer("0123"))
    refused(
        lambda: make_trainer(**{who: small}),
        tmp_path,
        f"{who} has 7 output rows but the tokenizer has 19 ids",
        ValueError,
    )


@pytest.mark.parametrize("who", ["model", "teacher", "processing_class"])
@pytest.mark.parametrize("source", ["no/such/folder", "no-such-model"])
def test_paths_that_do_not_exist(make_trainer, tmp_path, who, source):
    "The message must say which of the three could not be loaded."
    refused(lambda: make_trainer(**{who: source}), tmp_path, f"{who}='{source}'", FileNotFoundError)


def test_student_path_without_a_tokenizer_argument(pair, prompts):
    "Whoever gave only `model` must not read about a processing_class they never gave."
    from cmdp_nbdev.trainer import CMDPTrainer

    with pytest.raises(FileNotFoundError, match="model='no/such/folder'"):
        CMDPTrainer("no/such/folder", pair[1], chain_reward, CMDPConfig(device="cpu"), prompts)


@pytest.mark.parametrize("who", ["model", "teacher"])
def test_things_that_are_no_model(make_trainer, tmp_path, who):
    "A number in place of a model."
    refused(
        lambda: make_trainer(**{who: 3}),
        tmp_path,
        f"{who} must be a model, a folder or a name, got int",
        TypeError,
    )


def test_tokenizer_without_an_end(make_trainer, tmp_path, pair):
    "Without EOS no completion ever ends."
    pair[2].eos_token = None
    refused(
        lambda: make_trainer(processing_class=pair[2]),
        tmp_path,
        "processing_class has no eos_token.*set tokenizer.eos_token",
        ValueError,
    )


def test_one_object_as_student_and_teacher(make_trainer, tmp_path, pair):
    "Freezing the teacher would freeze the student: the message must say that they are one object."
    refused(lambda: make_trainer(pair[0], pair[0]), tmp_path, "teacher.*same", ValueError)


def test_teacher_function_of_the_wrong_shape(make_trainer, tmp_path):
    "A server that answers the last position only is the usual mistake."
    refused(
        lambda: make_trainer(teacher=lambda ids, mask: torch.zeros(len(ids), 1, 19)),
        tmp_path,
        r"teacher must answer \(B, L, V\)",
        ValueError,
    )


def test_output_folder_that_cannot_be_written(make_trainer, tmp_path):
    "Found before the run, not after."
    (tmp_path / "file").write_text("x")
    refused(
        lambda: make_trainer(output_dir=str(tmp_path / "file" / "run")),
        tmp_path,
        "output_dir='.*file/run' cannot be written.*choose another folder",
        OSError,
    )


# ---- a finished run is safe -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "config,match",
    [
        (dict(), "holds a run already; choose another folder or resume"),
        (dict(resume_from_checkpoint="auto", seed=1), "seed was 0, now 1"),
        (dict(resume_from_checkpoint="auto", method="gkd"), "method was 'cmdp-rate', now 'gkd'"),
        (
            dict(resume_from_checkpoint="auto", budget=0.5, learning_rate=1e-4),
            "budget was 0.8, now 0.5; learning_rate was 0.0015, now 0.0001",
        ),
        (dict(resume_from_checkpoint="auto", max_steps=3), "max_steps was 2, now 3"),
    ],
)
def test_a_refused_run_leaves_the_saved_one_alone(make_trainer, finished, config, match):
    "Results of hours must survive a careless command, also when the user insists."
    folder, before = finished
    trainer = make_trainer(output_dir=str(folder), **config)
    for _ in range(2):
        with pytest.raises((ValueError, FileExistsError), match=match):
            trainer.train()
        assert contents(folder) == before
    with pytest.raises((ValueError, FileExistsError), match=match):
        trainer.train(config.get("resume_from_checkpoint"))
    assert contents(folder) == before


@pytest.mark.parametrize(
    "save_steps", [1, 0], ids=["with a checkpoint", "killed before the first one"]
)
def test_resuming_under_another_further_budget(make_trainer, tmp_path, save_steps):
    "The limits of `constraints` are not in the config, but change what is computed."

    def limited(limit, **config):
        return make_trainer(constraints={"length": (length_cost, Budget(limit))}, **config)

    limited(20, max_steps=1, save_steps=save_steps).train()
    folder, before = tmp_path / "run", contents(tmp_path / "run")
    for trainer in (
        limited(16, max_steps=1, resume_from_checkpoint="auto"),
        make_trainer(max_steps=1, resume_from_checkpoint="auto"),
    ):
        with pytest.raises(ValueError, match=r"constraints was \{'length': \{'limit': 20"):
            trainer.train()
        assert contents(folder) == before
    limited(20, max_steps=1, resume_from_checkpoint="auto").train()


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
        make_trainer(
            tiny_model(48, pair[2]), output_dir=str(folder), resume_from_checkpoint="auto"
        ).train()
    assert contents(folder) == before


# ---- the command line -------------------------------------------------------------------------------------------------

CLI = {
    "student alone": (["--student", "x"], r"teacher, dataset, eval_dataset, reward missing"),
    "teacher without student": (["--teacher", "x"], r"teacher given without a student"),
    "dataset without student": (
        ["--dataset", "x.jsonl", "--reward", "a:b"],
        r"dataset, reward given without a student",
    ),
    "nothing to evaluate on": (["--n_eval", "0"], r"n_eval must be >= 1, got 0"),
    "more test prompts than there are": (["--n_eval", "100000000"], r"n must lie between|n_eval"),
    "no threads": (["--num_threads", "0"], r"num_threads must be >= 1, got 0"),
    "method all with settings": (
        ["--method", "all", "--method_kwargs", "lam=1"],
        r"method_kwargs belong to one method.*'all'",
    ),
    "method all on a cost that some cannot take": (
        ["--method", "all", "--divergence", "surprisal"],
        r"divergence='surprisal'",
    ),
    "unknown method": (["--method", "ppo"], r"method 'ppo' is unknown; choose one of"),
    "negative budget": (["--budget", "-1"], r"budget.*>= 0.*-1"),
    "unknown option": (["--budgett", "1"], r"--budgett"),
    "number that is none": (["--max_steps", "ten"], r"--max_steps.*'ten'"),
    "YAML that is none": (["--config", "{yaml}"], r"--config"),
    "YAML that does not exist": (["--config", "no.yaml"], r"--config no.yaml"),
    "unknown reward module": (
        [
            "--student",
            "{student}",
            "--teacher",
            "{student}",
            "--dataset",
            "{jsonl}",
            "--eval_dataset",
            "{jsonl}",
            "--reward",
            "no_such_module:f",
        ],
        r"reward='no_such_module:f' could not be loaded",
    ),
    "unknown reward function": (
        [
            "--student",
            "{student}",
            "--teacher",
            "{student}",
            "--dataset",
            "{jsonl}",
            "--eval_dataset",
            "{jsonl}",
            "--reward",
            "json:nothing",
        ],
        r"reward='json:nothing' could not be loaded",
    ),
    "reward without a function": (
        [
            "--student",
            "{student}",
            "--teacher",
            "{student}",
            "--dataset",
            "{jsonl}",
            "--eval_dataset",
            "{jsonl}",
            "--reward",
            "json",
        ],
        r"reward='json' must look like module:function",
    ),
    "reward that raises": (
        [
            "--student",
            "{student}",
            "--teacher",
            "{student}",
            "--dataset",
            "{jsonl}",
            "--eval_dataset",
            "{jsonl}",
            "--reward",
            "broken_reward:f",
        ],
        r"reward function 'f' raised ZeroDivisionError",
    ),
    "dataset that does not exist": (
        [
            "--student",
            "{student}",
            "--teacher",
            "{student}",
            "--dataset",
            "no.jsonl",
            "--eval_dataset",
            "{jsonl}",
            "--reward",
            "broken_reward:f",
        ],
        r"dataset='no.jsonl' could not be loaded",
    ),
    "student that does not exist": (
        [
            "--student",
            "no/such/folder",
            "--teacher",
            "{student}",
            "--dataset",
            "{jsonl}",
            "--eval_dataset",
            "{jsonl}",
            "--reward",
            "broken_reward:g",
        ],
        r"(student|model)='no/such/folder'",
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Files that the cases above name."
    d = tmp_path_factory.mktemp("cli")
    tok = char_tokenizer()
    (d / "bad.yaml").write_text("budget: [1\n")
    (d / "p.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 4)
    (d / "broken_reward.py").write_text(
        "def f(completions, **kwargs): return 1 / 0\ndef g(completions, **kwargs): return [0.0] * len(completions)\n"
    )
    return dict(
        yaml=str(d / "bad.yaml"),
        jsonl=str(d / "p.jsonl"),
        student=save(d / "student", tiny_model(32, tok), tok),
        folder=d,
    )


@pytest.mark.parametrize("name", CLI)
def test_command_line(name, files, tmp_path, monkeypatch, capsys):
    "On the command line every mistake is one line on stderr and exit code 2, never a traceback or a started run."
    argv, match = CLI[name]
    monkeypatch.chdir(files["folder"])
    try:
        code = main(
            [a.format(**files) for a in argv]
            + ["--output_dir", str(tmp_path / "run"), "--device", "cpu", "--disable_tqdm"]
        )
    except SystemExit as e:
        code = e.code  # argparse
    err = capsys.readouterr().err.strip()
    assert code == 2
    last = err[err.rindex("error:") :] if "error:" in err else err
    assert re.search(match, last, re.S), err
    if "usage:" not in err:
        assert (
            len([line for line in err.splitlines() if "error" in line]) == 1
            and "Traceback" not in err
            and "\n" not in last
        )
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
    try:
        code = main(["--config", str(tmp_path / "c.yaml"), "--output_dir", str(tmp_path / "run")])
    except SystemExit as e:
        code = e.code
    assert (
        code == 2
        and re.search(match, capsys.readouterr().err)
        and not (tmp_path / "run" / "metrics.jsonl").exists()
    )


def test_cli_does_not_overwrite_a_run(finished, capsys):
    "The same command twice must not destroy the first result."
    folder, before = finished
    code = main(
        [
            "--output_dir",
            str(folder),
            "--max_steps",
            "1",
            "--n_eval",
            "8",
            "--per_device_train_batch_size",
            "8",
            "--device",
            "cpu",
            "--disable_tqdm",
        ]
    )
    assert (
        code == 2
        and "holds a run already" in capsys.readouterr().err
        and contents(folder) == before
    )
