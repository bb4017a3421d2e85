"What people set and bring: types, paths, data and files as transformers and TRL take them."

import ast
import copy
import gzip
import json
import lzma
import os
import re
import shlex
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL, embedded, flat, python
from datasets import Dataset, DatasetDict
from transformers import SchedulerType

from cmdp_nbdev.budget import suggest_budget as quantile_budget
from cmdp_nbdev.cli import main
from cmdp_nbdev.config import Settings
from cmdp_nbdev.distil import load_prompts
from cmdp_nbdev.options import RunArguments, command_of, parse_args
from cmdp_nbdev.preflight import as_datasets, check_trackers
from cmdp_nbdev.run import run_settings
from cmdp_nbdev.task import chain_reward
from cmdp_nbdev.tasks import load_rows, math_reward, numeric_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer
from cmdp_nbdev.trl import TRLTrainer

# ---- texts ----------------------------------------------------------------------------------


def calls_without_encoding(tree):
    "Reads and writes of text that leave the encoding to the locale."
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        method, function = (getattr(call.func, kind, "") for kind in ("attr", "id"))
        binary = any(getattr(a, "value", None) in ("rb", "wb", "ab") for a in call.args)
        stated = binary or any(k.arg == "encoding" for k in call.keywords)
        if (method in ("read_text", "write_text") or function == "open") and not stated:
            yield ast.unparse(call)


@pytest.mark.parametrize("path", sorted((ROOT / "cmdp_nbdev").rglob("*.py")), ids=lambda p: p.stem)
def test_texts_are_utf8(path):
    "Under an ASCII locale an accent in a file would be a traceback."
    assert not [*calls_without_encoding(ast.parse(path.read_text(encoding="utf-8")))]


# ---- types ----------------------------------------------------------------------------------


class Odd:
    "Nothing that a setting could be."


@pytest.mark.parametrize(
    "value", [None, Odd(), [[1]], {"a": Odd()}, np.array([1.0, 2.0]), True, -1]
)
def test_a_field_of_another_kind_is_named(value):
    "Whatever is written into whichever field: it is taken, or refused with the field's name."
    for f in fields(CMDPConfig):
        try:
            config = embedded(**{f.name: value})
        except ValueError as e:
            assert f.name in str(e) or f.name == "method_kwargs"
        else:
            json.dumps(run_settings(config, {}))


def test_none_where_it_means_nothing():
    "None is refused wherever it is not one of the meanings."
    for f in fields(CMDPConfig):
        if f.name == "budget":
            continue  # None is refused unless budget_quantile chooses one: test_preflight.py
        if f.default is None or f.name in TAKES_NONE:
            embedded(**{f.name: None})
        else:
            with pytest.raises(ValueError, match=f"{f.name} .*got None"):
                embedded(**{f.name: None})


TAKES_NONE = {
    "method_kwargs",
    "model_init_kwargs",
    "teacher_model_init_kwargs",
    "chat_template_kwargs",
    "report_to",
    "bf16",
    "kl_chunk_size",
    "save_total_limit",
    "truncated_reward",
    "disable_tqdm",
}
WRITTEN = {
    "text from YAML": ("learning_rate", "1e-5", 1e-5),
    "whole number for a float": ("budget", 3, 3.0),
    "numpy float": ("temperature", np.float32(0.5), 0.5),
    "torch number": ("top_p", torch.tensor(0.5), 0.5),
    "numpy integer": ("max_steps", np.int64(7), 7),
    "float that is whole": ("max_steps", 7.0, 7),
    "whole number as text": ("seed", "12345678901234567891", 12345678901234567891),
    "exponent": ("max_steps", "1e3", 1000),
    "word": ("seq_kd", "false", False),
    "numpy bool": ("gradient_checkpointing", np.True_, True),
    "one": ("gradient_checkpointing", 1, True),
    "tuple of weights": ("reward_weights", (1, "2"), [1.0, 2.0]),
    "array of weights": ("reward_weights", np.array([0.5]), [0.5]),
    "path": ("output_dir", Path("runs") / "x", "runs/x"),
    "home": ("output_dir", "~/x", os.path.expanduser("~/x")),
    "path at home": ("output_dir", Path("~/x"), os.path.expanduser("~/x")),
    "resume": ("resume_from_checkpoint", True, "auto"),
    "resume not": ("resume_from_checkpoint", False, None),
    "resume in words": ("resume_from_checkpoint", "true", "auto"),
    "resume from a path": ("resume_from_checkpoint", Path("~/c"), os.path.expanduser("~/c")),
    "no tracker": ("report_to", None, "none"),
    "empty list": ("report_to", [], "none"),
    "none in a list": ("report_to", ["none"], "none"),
    "a list": ("report_to", ["tensorboard", "wandb"], "tensorboard,wandb"),
    "with a blank": ("report_to", "tensorboard, wandb", "tensorboard,wandb"),
    "scheduler": ("lr_scheduler_type", SchedulerType.LINEAR, "linear"),
    "method setting of numpy": ("method_kwargs", {"target": np.float32(0.5)}, {"target": 0.5}),
    "no settings": ("model_init_kwargs", None, {}),
    "old name of dtype": ("model_init_kwargs", "torch_dtype=bfloat16", {"dtype": "bfloat16"}),
    "short dtype": ("teacher_model_init_kwargs", {"dtype": "bf16"}, {"dtype": "bfloat16"}),
    "torch's dtype": ("model_init_kwargs", {"torch_dtype": torch.float16}, {"dtype": "float16"}),
    "torch's name": ("model_init_kwargs", "dtype=torch.float32", {"dtype": "float32"}),
    "both names": ("model_init_kwargs", "dtype=half,torch_dtype=fp16", {"dtype": "float16"}),
    "automatic": ("model_init_kwargs", "dtype=auto", {"dtype": "auto"}),
    "no dtype": ("model_init_kwargs", {"dtype": None, "revision": "x"}, {"revision": "x"}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_taken(name):
    "A setting as transformers, numpy, YAML or pathlib write it; JSON can hold what it becomes."
    field, written, value = WRITTEN[name]
    found = getattr(embedded(**{field: written}), field)
    assert found == value and type(found) in (type(value), Settings)
    assert json.loads(json.dumps(found)) == value


NOT_TAKEN = {
    "True for a number": (dict(seed=True), "seed must be a whole number >= 0, got True"),
    "True for a rate": (
        dict(learning_rate=True),
        "learning_rate must be a finite number > 0, got True",
    ),
    "True for a method's": (dict(method_kwargs={"target": True}), "target.*got True"),
    "no end of a rate": (dict(learning_rate=float("inf")), "rate must be a finite number.*got inf"),
    "no rate": (dict(learning_rate=None), "learning_rate must be a finite number > 0, got None"),
    "word": (dict(learning_rate="fast"), "learning_rate must be a finite number > 0, got 'fast'"),
    "a number for a list": (dict(reward_weights=1.0), "reward_weights.*list of numbers.*got 1.0"),
    "nan": (dict(correct_at=float("nan")), "correct_at must be a finite number, got nan"),
    "date": (dict(output_dir=Odd), "output_dir must be a folder .*got <class"),
    "unknown dtype": (dict(model_init_kwargs="dtype=bf61"), "dtype='bf61'.*one of bfloat16"),
    "dtype of whole numbers": (dict(model_init_kwargs="dtype=int8"), "dtype='int8'.*bfloat16"),
    "two dtypes": (
        dict(model_init_kwargs="dtype=bf16,torch_dtype=fp16"),
        "model_init_kwargs: torch_dtype='fp16' and dtype='bf16'",
    ),
    "keys that are no names": (dict(method_kwargs={1: 2}), "method_kwargs=.*neither a dict"),
    "a tracker that is no name": (dict(report_to=[3]), r"report_to must be .*got \[3\]"),
    "several": (dict(seed="x", max_steps=None), "(?s)max_steps.*\n.*seed|seed.*\n.*max_steps"),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_is_refused(name):
    "One sentence with the field, the value, and what would work."
    settings, match = NOT_TAKEN[name]
    with pytest.raises(ValueError, match=match):
        embedded(**settings)


def test_settings_of_models_in_config_json():
    "An object among them must not stop the run at its first line of JSON."
    settings = {"quantization_config": Odd, "dtype": torch.float16}
    saved = run_settings(embedded(model_init_kwargs=settings), {})["model_init_kwargs"]
    assert saved == {"quantization_config": str(Odd), "dtype": "float16"}


def test_settings_are_read_back_from_json():
    "Also those without a bound, of which JSON has no number."
    endless = dict(budget=float("inf"), epsilon_high=float("inf"), max_grad_norm=float("inf"))
    config = CMDPConfig(**endless, reward_weights=[1, 2], chat_template_kwargs={"think": False})
    saved = json.loads(json.dumps(run_settings(config, {}), allow_nan=False))
    saved.pop("constraints")
    assert CMDPConfig(**saved) == config


def test_all_trackers():
    "'all' are those that are installed."
    assert check_trackers("all") == check_trackers(["all"])
    assert check_trackers(None) is check_trackers([]) is check_trackers("none") is None


# ---- schedules ------------------------------------------------------------------------------

NEEDS = {"warmup_stable_decay": {"num_decay_steps": 1}}
FOLLOW = {"reduce_lr_on_plateau", "greedy"}
NAMES = [kind.value for kind in SchedulerType if kind.value not in FOLLOW]


@pytest.mark.parametrize("kind", NAMES)
def test_every_schedule(make_trainer, kind):
    "A name alone is enough, where transformers needs no more: no default of another one's."
    trainer = make_trainer(lr_scheduler_type=kind, lr_scheduler_kwargs=NEEDS.get(kind))
    rates = [trainer.step()["learning_rate"] for _ in range(2)]
    assert all(0 <= rate <= trainer.args.learning_rate for rate in rates)
    keeps = kind in ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
    assert trainer.args.lr_scheduler_kwargs == NEEDS.get(
        kind, {"min_lr_rate": 0.1} if keeps else {}
    )


@pytest.mark.parametrize("kind", NAMES)
def test_a_schedule_is_changed(kind):
    "What nobody wrote does not become what somebody wrote."
    config = embedded(lr_scheduler_type="linear")
    more = {"lr_scheduler_kwargs": NEEDS[kind]} if kind in NEEDS else {}
    changed = copy.deepcopy(replace(config, lr_scheduler_type=kind, **more))
    assert (
        replace(changed, lr_scheduler_type="cosine_with_min_lr", **{k: None for k in more})
        == embedded()
    )


SCHEDULES = {
    "setting of another": (
        dict(lr_scheduler_type="linear", lr_scheduler_kwargs={"min_lr_rate": 0.1}),
        "'linear' has no setting min_lr_rate; it has none",
    ),
    "setting of none": (
        dict(lr_scheduler_kwargs="num_cycle=1"),
        "'cosine_with_min_lr' has no setting num_cycle; it has num_cycles, min_lr, min_lr_rate",
    ),
    "something missing": (
        dict(lr_scheduler_type="warmup_stable_decay"),
        "'warmup_stable_decay' needs num_decay_steps, got lr_scheduler_kwargs={}",
    ),
    "neither minimum": (dict(lr_scheduler_kwargs={}), "min_lr or min_lr_rate"),
    "both minima": (dict(lr_scheduler_kwargs={"min_lr": 0, "min_lr_rate": 0.1}), "min_lr"),
    "text for a number": (
        dict(lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cycles": "x"}),
        "lr_scheduler_type='cosine' with lr_scheduler_kwargs={'num_cycles': 'x'}",
    ),
    "rises": (
        dict(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"lr_end": 1.0}),
        "lr_end.*must be smaller",
    ),
    "plateau": (dict(lr_scheduler_type="reduce_lr_on_plateau"), "choose one of linear, cosine"),
    "greedy": (dict(lr_scheduler_type="greedy"), "'greedy' follows a metric"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_that_are_refused(name):
    "The sentence names the schedule, what it takes, and what was given."
    settings, match = SCHEDULES[name]
    with pytest.raises(ValueError, match=match):
        embedded(**settings)


# ---- rows -----------------------------------------------------------------------------------

ROWS = [{"prompt": "1+1=", "answer": 2}, {"prompt": "2+1=", "answer": 3}]
DATA = Dataset.from_list(ROWS)
SETS = {
    "list of dicts": ROWS,
    "pandas": pd.DataFrame(ROWS, index=[7, 9]),
    "torch format": DATA.with_format("torch"),
    "numpy format": DATA.with_format("numpy", columns=["answer"]),
    "selected": Dataset.from_list(ROWS * 2).select([2, 1]),
    "shuffled": Dataset.from_list(ROWS[::-1]).select([1, 0]),
    "split": DatasetDict(train=DATA, test=DATA),
    "dict of splits": {"train": DATA},
}


@pytest.mark.parametrize("name", SETS)
def test_rows(name):
    "Rows of Python's values, whatever they came in."
    rows = as_datasets(SETS[name], None)[0]
    assert rows[:2] == {"prompt": ["1+1=", "2+1="], "answer": [2, 3]}


def test_none_stays_none():
    "torch's format makes NaN of it, which a reward function would compare."
    rows = Dataset.from_dict({"prompt": ["a", "b"], "answer": [1, None]}).with_format("torch")
    assert as_datasets(rows, None)[0]["answer"][:] == [1, None]
    table = pd.DataFrame({"prompt": ["a", "b"], "answer": ["1", None]})
    assert as_datasets(table, None)[0]["answer"][:] == ["1", None]


@pytest.mark.parametrize("reward", [numeric_reward, math_reward])
def test_answers_that_are_numbers(reward):
    "A column of numbers is read as its text; NaN and None are no answer."
    answers = [72, 3.0, 1e-7, None, float("nan"), -2, 1e16, "72"]
    texts = ["72", "3", "0.0000001", "1", "1", "-2", "10000000000000000", "71"]
    completions = [f"The answer is {text}" for text in texts]
    assert reward(texts, completions, answers) == [1, 1, 1, None, None, 1, 1, 0]


def test_splits():
    "Held-out rows come from 'validation', else from 'test', unless they were given."
    a, b, c = (Dataset.from_list(ROWS[:1] * n) for n in (1, 2, 3))
    assert as_datasets(DatasetDict(train=a, validation=b, test=c), None) == (a, b)
    assert as_datasets(DatasetDict(train=a, test=c), None) == (a, c)
    assert as_datasets(DatasetDict(train=a, test=c), b) == (a, b)
    assert as_datasets(DatasetDict(train=a), None) == (a, None)
    assert as_datasets(a, DatasetDict(train=a, test=c)) == (a, {"test": c})
    assert as_datasets(a, {"easy": b, "hard": ROWS})[1].keys() == {"easy", "hard"}


BAD_ROWS = {
    "stream": (DATA.to_iterable_dataset(), "an IterableDataset.*Dataset.from_list"),
    "path": (Path("x.jsonl"), "got 'x.jsonl'; load it: cmdp_nbdev.tasks.load_rows"),
    "columns": ({"prompt": ["a"]}, "a dict of prompt; columns become one by Dataset.from_dict"),
    "generator": ((row for row in ROWS), "generator.*Dataset.from_list"),
    "number": (3, r"got 3 \(int\)"),
    "rows of two kinds": ([{"prompt": "a"}, {"prompt": ["b"]}], "do not fit into columns"),
    "texts": (["a", "b"], "do not fit into columns"),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_are_refused(make_trainer, name, which):
    "Before any model is read, with the argument's name."
    data, match = BAD_ROWS[name]
    argument = ("train_dataset", "eval_dataset")[which]
    with pytest.raises(ValueError, match=f"{argument}.*{match}"):
        make_trainer(**{argument: data})


OTHER_SPLITS = {
    "no training split": (DatasetDict(a=DATA, b=DATA), DATA, "the splits a, b.*data\\['a'\\]"),
    "streams": (DATA, {"a": DATA.to_iterable_dataset()}, r"eval_dataset\['a'\].*IterableDataset"),
    "nothing": (DATA, {}, "eval_dataset must be"),
    "no rows": (DATA, {"a": DATA.select([])}, r"eval_dataset\['a'\] is empty"),
    "none": (DATA, {"a": None}, r"eval_dataset\['a'\] must be"),
}


@pytest.mark.parametrize("name", OTHER_SPLITS)
def test_splits_that_are_refused(make_trainer, name):
    "The splits there are, or the name of the set."
    train, held_out, match = OTHER_SPLITS[name]
    with pytest.raises(ValueError, match=match):
        make_trainer(train_dataset=train, eval_dataset=held_out)


@pytest.mark.parametrize("engine", [CMDPTrainer, TRLTrainer])
def test_several_evaluation_sets(make_trainer, held_out, engine, tmp_path):
    "Each has its name before its metrics, as in transformers."
    sets = {"easy": held_out.select(range(4)), "hard": held_out.select(range(4, 10))}
    trainer = make_trainer(eval_dataset=sets, eval_steps=1, max_steps=1, engine=engine)
    metrics = trainer.train()
    assert metrics["eval_easy_n_eval"] == 4 and metrics["eval_hard_n_eval"] == 6
    assert 0 <= metrics["eval_easy_accuracy"] <= 1 and "eval_accuracy" not in metrics
    result, records = trainer.evaluate(return_records=True)
    assert {name: len(rows) for name, rows in records.items()} == {"easy": 4, "hard": 6}
    alone = trainer.evaluate(sets["hard"])
    assert {f"hard_{k}": v for k, v in alone.items()}.items() <= result.items()
    card = trainer.card()
    assert card.count("| accuracy |") == 2 and "| **hard** | |" in card
    spent = [r["spent"] for rows in records.values() for r in rows]
    assert trainer.suggest_budget(0.5) == quantile_budget(spent, 0.5)


def test_data_as_people_bring_it(make_trainer, tmp_path):
    "Lists, a split, whole numbers as answers, a folder at home, and the run goes on from True."

    def whole(completions, answer, **columns):
        assert all(type(a) is int for a in answer)
        return [float(len(c)) for c in completions]

    data = DatasetDict(train=DATA.with_format("torch"), validation=Dataset.from_list(ROWS))
    about = dict(reward_funcs=whole, train_dataset=data, save_steps=1, output_dir=tmp_path / "run")
    trainer = make_trainer(eval_dataset=None, **about)
    first = trainer.train()
    again = make_trainer(**about, resume_from_checkpoint=True).train()
    assert again in ({}, first) and trainer.output_dir == tmp_path / "run"


def test_home(make_trainer, tmp_path, monkeypatch):
    "`~` is the home directory, not a folder of that name."
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(output_dir="~/x", max_steps=1, report_to=["tensorboard"])
    trainer.train()
    trainer.save_model("~/x/student")
    assert (tmp_path / "x" / "student" / "config.json").is_file()
    assert not (tmp_path / "~").exists()
    student = make_trainer(model=Path("~/x/student"), output_dir=None).student
    assert flat(student).equal(flat(trainer.student))


def test_dtype_of_the_student(pair, prompts, tmp_path):
    "The old name is heard for the student as it is for the teacher."
    student, teacher, tokenizer = pair
    for name, model in (("student", student), ("teacher", teacher)):
        model.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "student")
    both = dict.fromkeys(("model_init_kwargs", "teacher_model_init_kwargs"), "torch_dtype=bf16")
    args = embedded(**SMALL, **both)
    given = (tmp_path / "student", tmp_path / "teacher", chain_reward, args, prompts)
    with pytest.warns(UserWarning, match="bfloat16"):
        trainer = CMDPTrainer(*given, processing_class=tokenizer)
    assert trainer.student.dtype == trainer.teacher.dtype == torch.bfloat16


# ---- files ----------------------------------------------------------------------------------

LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = b"prompt,answer\n1+1=,2\n2+1=,3\n"
FILES = {
    "a.jsonl": LINES,
    "b.JSONL": LINES,
    "c.jsonl.gz": gzip.compress(LINES),
    "d.JSONL.GZ": gzip.compress(LINES),
    "e.json": LINES,
    "f.json": json.dumps(ROWS).encode(),
    "g.ndjson": LINES,
    "h.csv": CSV,
    "i.tsv": CSV.replace(b",", b"\t"),
    "j.CSV.gz": gzip.compress(CSV),
    "k.jsonl.xz": lzma.compress(LINES),
    "with spaces and é/[1] ü.jsonl": LINES,
    "v1.2/data.jsonl": LINES,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with files of all kinds."
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    DATA.to_parquet(folder / "l.parquet")
    DATA.save_to_disk(folder / "saved")
    shutil.copy(next((folder / "saved").glob("*.arrow")), folder / "m.arrow")
    DatasetDict(train=DATA, validation=DATA.select([0])).save_to_disk(folder / "splits")
    (folder / "n.txt").write_text("1+1=\n2+1=\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", [*FILES, "l.parquet", "m.arrow", "saved", "splits", "splits/"])
def test_files(folder, name):
    "What datasets can read, by its ending in any case, packed or not."
    for source in (folder / name, str(folder / name)):
        assert load_rows(source).to_list() == ROWS


def test_text_is_a_prompt_a_line(folder):
    "There is no other column that it could be."
    assert load_rows(folder / "n.txt")["prompt"][:] == ["1+1=", "2+1="]


def test_file_at_home(folder, monkeypatch):
    "`~` in a source, also behind the name of a task."
    monkeypatch.setenv("HOME", str(folder))
    assert load_rows("~/b.JSONL").to_list() == ROWS
    assert load_prompts("gsm8k:~/c.jsonl.gz", "dataset")["answer"][:] == ["2", "3"]
    assert load_prompts(Path("~/i.tsv"), "dataset", n=1).to_list() == ROWS[:1]


def test_folders(tmp_path, folder):
    "Several files, one split under whatever name for held-out prompts, 'validation' for 'test'."
    for name in ("one/a.jsonl", "one/b.jsonl", "two/train.tsv", "two/dev.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CSV.replace(b",", b"\t") if "tsv" in name else LINES)
    assert len(load_rows(f"{tmp_path}/one/")) == 4
    assert len(load_rows(tmp_path / "one", "test", alone=True)) == 4
    assert load_rows(tmp_path / "two", "test").to_list() == ROWS
    assert len(load_rows(folder / "splits", "test")) == 1
    with pytest.raises(FileNotFoundError, match="eval_dataset='.*one'.*has the splits train"):
        load_rows(tmp_path / "one", "test", "eval_dataset")


EMPTY = {"a.jsonl": b"", "b.json": b"[]", "c.csv": b"prompt\n", "d.tsv": b"", "e.txt": b""}


@pytest.mark.parametrize("name", EMPTY)
def test_file_without_rows(tmp_path, name):
    "It says so."
    (tmp_path / name).write_bytes(EMPTY[name])
    with pytest.raises(FileNotFoundError, match=f"{name}' could not be loaded.*no rows"):
        load_rows(tmp_path / name)


def test_files_that_are_refused(tmp_path):
    "The kinds that are read, or that there is no such file."
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match="a.xlsx.*kind is none of .jsonl, .json.*.tsv"):
        load_rows(tmp_path / "a.xlsx")
    with pytest.raises(FileNotFoundError, match="b.tsv.*no such file"):
        load_rows(tmp_path / "b.tsv")


# ---- command line ---------------------------------------------------------------------------


def test_options(tmp_path, monkeypatch):
    "Words for true and false, a file at home, and numbers that YAML reads as text."
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "learning_rate: 1e-5\nmax_steps: '20'\nreport_to: [tensorboard]\noutput_dir: ~/é\n"
    text += "resume_from_checkpoint: true\nlr_scheduler_type: linear\nreward: m:f\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    words = ["--config=~/a.yaml", "--gradient_checkpointing", "true", "--seq_kd", "False"]
    values = parse_args(words)[1]
    config = CMDPConfig(**values)
    assert (config.learning_rate, config.max_steps, config.report_to) == (1e-5, 20, "tensorboard")
    assert config.output_dir == str(tmp_path / "é") and config.resume_from_checkpoint == "auto"
    assert config.gradient_checkpointing and not config.seq_kd
    assert config.lr_scheduler_kwargs == {}
    again = parse_args(shlex.split(command_of(RunArguments(), config))[1:])[1]
    assert CMDPConfig(**again | {"resume_from_checkpoint": "auto"}) == config


BAD_OPTIONS = {
    "a number": ("student: 3", "student must be a folder.*got 3"),
    "a word": ("n_train: many", "n_train.*'many'"),
    "a list": ("dataset: [a, b]", r"dataset must be .*got \['a', 'b'\]"),
    "keys that are no names": ("1: 2\nx: 3", r"unknown option 1\n.*unknown option x"),
    "another encoding": (b"output_dir: \xe9", "a.yaml"),
    "nothing": ("n_eval:", "n_eval must be >= 1, got None"),
    "a date": ("output_dir: 2024-01-01", "output_dir must be a folder.*datetime"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_are_refused(tmp_path, capsys, name):
    "One line that names the option."
    text, match = BAD_OPTIONS[name]
    (tmp_path / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        code = main(["--config", str(tmp_path / "a.yaml"), "--max_steps", "1"])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr().err
    assert code == 2 and re.search(match, said) and "Traceback" not in said


def test_ascii_locale(tmp_path):
    "An accent in a YAML file, where the locale has none."
    (tmp_path / "a.yaml").write_text("system_prompt: déjà vu\n", encoding="utf-8")
    ask = "import sys; from cmdp_nbdev.options import parse_args as p; "
    ask += "print(ascii(p(sys.argv[1:])[0]))"
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = python("-c", ask, "--config", tmp_path / "a.yaml", env=env)
    assert r"d\xe9j\xe0 vu" in done.stdout
