"The command: its help, its files, and whether its summary can be checked by somebody else."

import csv
import dataclasses
import importlib.util
import json
import re
import sys
from datetime import datetime

import pytest
import torch
from conftest import python, read_lines
from datasets import Dataset
from safetensors.torch import load_file
from transformers import SchedulerType

from cmdp_nbdev import __version__
from cmdp_nbdev.cli import cmdp, main, prepare_main
from cmdp_nbdev.config import SCHEDULES
from cmdp_nbdev.cost import COSTS
from cmdp_nbdev.methods import METHODS
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.options import COMMANDS, DISTILL, RunArguments, build_parser, parse_args
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

CPU = "--device cpu --disable_tqdm".split()
FAST = ["--max_steps", "3", "--n_eval", "48", "--per_device_train_batch_size", "16", *CPU]


def read(path) -> dict:
    "A JSON file."
    return json.loads(path.read_text())


def summary_of(run) -> dict:
    "What a run's summary.json says, but for the time it took."
    return {k: v for k, v in read(run / "summary.json").items() if k != "seconds"}


def save_model(folder, seed: int = 0) -> None:
    "A tiny model with random weights, as a folder that options can name."
    tokenizer = char_tokenizer()
    tiny_model(32, tokenizer, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_help_names_everything():
    "A newcomer learns all settings, methods and method settings from --help."
    text = build_parser().format_help()
    for cls in (RunArguments, CMDPConfig):
        for f in dataclasses.fields(cls):
            assert f"--{f.name}" in text, f.name
    for method in METHODS:
        assert f"\n  {method} " in text
    assert "examples:" in text
    assert "default: 1e-05" in text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "One small run of the embedded default through the command."
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["--output_dir", str(out), "--seed", "3", "--eval_steps", "2", *FAST]) == 0
    return out


def test_files_of_a_run(finished):
    "The contract of the output folder: others' scripts rely on these names."
    names = "student teacher config.json metrics.jsonl eval.jsonl summary.json report.html"
    assert set(names.split()) <= {p.name for p in finished.iterdir()}
    for who in ("student", "teacher"):
        found = {p.name for p in (finished / who).iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= found


def test_summary_of_a_run(finished):
    "The numbers that others read, under the names that they rely on."
    summary = read(finished / "summary.json")
    rates = "accuracy accuracy_within_budget satisfaction_rate"
    interval = "satisfaction_rate_low satisfaction_rate_high"
    costs = "kl_mean kl_p95 length_mean n_eval budget method seed seconds"
    assert set(f"{rates} {interval} {costs}".split()) <= set(summary)
    run = tuple(summary[k] for k in ("method", "seed", "budget", "n_eval"))
    assert run == ("cmdp-rate", 3, 0.8, 48)
    updates = read_lines(finished / "metrics.jsonl")
    assert [m["step"] for m in updates] == [0, 1, 2, 3]  # 0: evaluated before the first update
    assert summary["start_accuracy"] == updates[0]["eval_accuracy"]


def test_records_of_a_run(finished):
    "One line a completion, with the cost of every token."
    names = "prompt completion completion_ids answer reward cost_per_token spent within_budget"
    for r in read_lines(finished / "eval.jsonl"):
        assert set(names.split()) <= set(r)
        assert len(r["cost_per_token"]) == len(r["completion_ids"])


def test_report_of_a_run(finished):
    "Pictures that can be looked at without a network."
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.count('class="plotly-graph-div"') >= 3
    assert "accuracy" in page
    assert "<script src=" not in page


def test_config_repeats_the_run(finished, tmp_path):
    "config.json must be all that is needed: fed back, it gives the same numbers."
    config = read(finished / "config.json")
    assert {"cmdp_nbdev", "torch", "transformers"} <= set(config["versions"])
    assert len(config["inputs"]["teacher"]["sha256"]) == 64
    settings = {f.name: config[f.name] for f in dataclasses.fields(CMDPConfig)}
    settings |= config["run"] | {"output_dir": str(tmp_path / "again")}
    given = {k: v for k, v in settings.items() if v is not None}
    (tmp_path / "c.yaml").write_text(json.dumps(given))  # JSON is YAML
    assert main(["--config", str(tmp_path / "c.yaml")]) == 0
    assert summary_of(finished) == summary_of(tmp_path / "again")


RECOMPUTE = """
import json, sys
import numpy as np, torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

out = sys.argv[1]
summary = json.load(open(f"{out}/summary.json"))
tok = AutoTokenizer.from_pretrained(f"{out}/student")

def load(who):
    return AutoModelForCausalLM.from_pretrained(f"{out}/{who}", dtype=torch.float32).eval()

def log_probabilities(model, prompt, ids):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits
    return logits[0, len(prompt) - 1:-1].float().log_softmax(-1)

models = load("student"), load("teacher")
spent, kl, right, lengths, within = [], [], [], [], []
for line in open(f"{out}/eval.jsonl"):
    r = json.loads(line)
    prompt, ids = tok(r["prompt"])["input_ids"], r["completion_ids"]
    s, t = (log_probabilities(model, prompt, ids) for model in models)
    cost = (s.exp() * (s - t)).sum(-1)
    np.testing.assert_allclose(cost.numpy(), r["cost_per_token"], atol=1e-4)
    text = tok.decode(ids, skip_special_tokens=True)
    assert text == r["completion"]
    ended = ids[-1] == tok.eos_token_id
    spent.append(sum(r["cost_per_token"]))
    kl.append(float(cost.sum()))
    lengths.append(len(ids))
    within.append(r["spent"] <= summary["budget"])
    right.append(ended and "#" in text and text.split("#")[-1] == r["answer"])
    assert abs(r["spent"] - spent[-1]) < 1e-4
    assert r["within_budget"] == within[-1]
    assert r["reward"] == float(right[-1])

within, right = np.array(within), np.array(right)
ci = binomtest(int(within.sum()), len(within)).proportion_ci(0.95, method="exact")
expected = dict(
    accuracy=right.mean(),
    satisfaction_rate=within.mean(),
    satisfaction_rate_low=ci.low,
    satisfaction_rate_high=ci.high,
    accuracy_within_budget=(right & within).mean(),
    kl_mean=np.mean(kl),
    kl_p95=np.quantile(kl, 0.95),
    length_mean=np.mean(lengths),
    n_eval=len(right),
)
for k, v in expected.items():
    assert abs(summary[k] - v) < 1e-4, (k, summary[k], v)
assert not any(n.startswith("cmdp_nbdev") for n in sys.modules)
print("recomputed", len(right))
"""


def test_summary_can_be_recomputed_without_this_package(finished):
    "A number that only our code can produce is no evidence."
    assert "recomputed 48" in python("-c", RECOMPUTE, finished, cwd=finished.parent).stdout


SETTINGS = """
budget: 0.3
method: soft
method_kwargs: {lam: 2}
learning_rate: 1e-4
n_eval: 77
bf16: true
eval_on_start: false
"""


def test_yaml_between_defaults_and_command_line(tmp_path):
    "A settings file must win over defaults and lose to what is typed."
    (tmp_path / "c.yaml").write_text(SETTINGS)
    run, values = parse_args(["--config", str(tmp_path / "c.yaml"), "--budget", "0.5"])
    config = CMDPConfig(**values)
    assert config.budget == 0.5
    assert (config.method, config.method_kwargs) == ("soft", {"lam": 2})
    assert (config.learning_rate, run.n_eval) == (1e-4, 77)
    assert (config.bf16, config.eval_on_start) == (True, False)
    assert config.seed == 0


ONE, TWO = "my_rewards:length", ["my_rewards:length", "my_rewards:digits"]


@pytest.mark.parametrize("reward, expected", [(ONE, [ONE]), (TWO, TWO)], ids=["text", "list"])
def test_yaml_reward_as_text_or_list(tmp_path, reward, expected):
    "One reward function is written as plain text by everybody; it is no list of letters."
    (tmp_path / "c.yaml").write_text(json.dumps({"reward": reward}))
    run, _ = parse_args(["--config", str(tmp_path / "c.yaml")])
    assert run.reward == expected


REWARDS = """
def has(prompts, completions, answer, **kwargs):
    return [float(a in c) for a, c in zip(answer, completions)]

def short(completions, level):
    return [-len(c) / 100 + 0 * l for c, l in zip(completions, level)]
"""
OWN = """
--student s --teacher t --dataset train.jsonl --eval_dataset test.jsonl
--reward own_cli_rewards:has own_cli_rewards:short --reward_weights 1 0.5
--max_completion_length 6 --num_generations 4 --budget 20 --output_dir out
"""


def test_own_models_data_and_reward(tmp_path, monkeypatch):
    "The README's second example: folders, .jsonl files and module:function."
    for who, seed in (("s", 1), ("t", 2)):
        save_model(tmp_path / who, seed)
    for file, n in (("train.jsonl", 12), ("test.jsonl", 5)):
        sums = [(f"{i % 10}+1=", str((i + 1) % 10), i) for i in range(n)]
        rows = [dict(zip(("prompt", "answer", "level"), row)) for row in sums]
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_cli_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    assert main([*OWN.split(), *FAST]) == 0
    out = tmp_path / "out"
    records = read_lines(out / "eval.jsonl")
    assert read(out / "summary.json")["n_eval"] == 5
    assert [r["level"] for r in records] == list(range(5))
    assert [r["prompt"] for r in records] == [f"{i}+1=" for i in range(5)]
    names = read(out / "config.json")["run"]["reward"]
    assert names == ["own_cli_rewards:has", "own_cli_rewards:short"]
    assert "rewards/has" in read_lines(out / "metrics.jsonl")[-1]


def test_data_with_dates(tmp_path, monkeypatch):
    "Columns that JSON does not know (dates, bytes) must not crash a run that is done."
    save_model(tmp_path / "s")
    rows = {"prompt": ["1+1=", "2+2="] * 8, "when": [datetime(2026, 1, 1)] * 16}
    Dataset.from_dict(rows).to_parquet(tmp_path / "d.parquet")
    reward = "def f(completions, when): return [0.0] * len(completions)\n"
    (tmp_path / "date_rewards.py").write_text(reward)
    monkeypatch.chdir(tmp_path)
    pair = "--student s --teacher s --dataset d.parquet --eval_dataset d.parquet"
    more = "--budget 20 --reward date_rewards:f --output_dir out --max_completion_length 4"
    assert main([*pair.split(), *more.split(), *FAST]) == 0
    assert (tmp_path / "out" / "summary.json").is_file()


@pytest.mark.slow
def test_all_methods(tmp_path, capsys):
    "`--method all` must compare every method in one table and one page."
    out = tmp_path / "all"
    small = [*FAST, "--max_steps", "2", "--n_eval", "16"]
    assert main(["--method", "all", "--output_dir", str(out), *small]) == 0
    with open(out / "summary.csv") as f:
        rows = list(csv.DictReader(f))
    assert [r["method"] for r in rows] == list(METHODS)
    rates = "accuracy satisfaction_rate accuracy_within_budget"
    assert set(f"seed budget {rates} kl_mean kl_p95 seconds".split()) <= set(rows[0])
    for r in rows:
        own = read(out / r["method"] / "summary.json")
        assert float(r["accuracy"]) == own["accuracy"]
        assert r["method"] == own["method"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(m in page for m in METHODS)
    assert page.count('class="plotly-graph-div"') == 2
    assert "summary.csv" in capsys.readouterr().out


def test_interrupting_keeps_what_was_learnt(tmp_path, monkeypatch, capsys):
    "Ctrl-C must leave an evaluated, saved student, not nothing."
    step = CMDPTrainer.step

    def interrupted(self):
        if self.global_step == 1:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(CMDPTrainer, "step", interrupted)
    assert main(["--output_dir", str(tmp_path / "run"), *FAST]) == 130
    assert read(tmp_path / "run" / "summary.json")["steps"] == 1
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    assert "stopped after update 1; " in capsys.readouterr().err


def test_what_was_found_outlives_a_student_that_cannot_be_saved(tmp_path, monkeypatch, capsys):
    "A full disk, or a folder that is not the student, must not cost the evaluation."

    def fails(self, folder):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(CMDPTrainer, "save_model", fails)
    assert main(["--output_dir", str(tmp_path), *FAST]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert read(tmp_path / "summary.json")["steps"] == 3
    assert (tmp_path / "report.html").is_file() and (tmp_path / "eval.jsonl").is_file()


def test_resuming_from_the_command_line(tmp_path):
    "The command that was killed, typed again with 'auto', must end as the uninterrupted one."

    def run(name, *more):
        return main(["--output_dir", str(tmp_path / name), "--save_steps", "2", *FAST, *more])

    assert run("whole") == 0
    assert run("cut") == 0
    for f in ("summary.json", "eval.jsonl", "report.html"):
        (tmp_path / "cut" / f).unlink()
    log = tmp_path / "cut" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))  # died before the last update
    assert run("cut", "--resume_from_checkpoint", "auto") == 0
    assert summary_of(tmp_path / "whole") == summary_of(tmp_path / "cut")


def test_the_other_engine_leaves_the_same_files(finished, tmp_path):
    "Whatever reads a run must not care how it was trained."
    pytest.importorskip("trl")
    out = tmp_path / "run"
    options = ["--output_dir", str(out), "--seed", "3", "--eval_steps", "2", *FAST]
    assert main(["--engine", "trl", *options]) == 0
    ours, theirs = (
        sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file()) for run in (finished, out)
    )
    assert ours == theirs
    native, summary = summary_of(finished), summary_of(out)
    assert native.keys() == summary.keys()
    starts = [k for k in native if k.startswith("start_")]
    assert [native[k] for k in starts] == [summary[k] for k in starts]
    assert read(out / "config.json")["run"]["engine"] == "trl"
    assert "--engine trl" in (out / "student" / "README.md").read_text()
    assert "recomputed 48" in python("-c", RECOMPUTE, out, cwd=tmp_path).stdout


def test_the_other_engine_needs_its_package(tmp_path, monkeypatch, capsys):
    "Asked for without TRL, it must name the line that installs it, and start nothing."
    find_spec = importlib.util.find_spec

    def without_trl(name, *args):
        return None if name == "trl" else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without_trl)
    out = tmp_path / "run"
    assert main(["--engine", "trl", "--output_dir", str(out), *FAST]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("cmdp-distill: error: engine=trl needs the package trl")
    assert 'pip install "cmdp_nbdev[trl]"' in error[0]
    assert not out.exists()


def test_an_unknown_engine_is_refused(tmp_path, capsys):
    "A misspelt engine must not train with the other one."
    assert main(["--engine", "tlr", "--output_dir", str(tmp_path / "run"), *FAST]) == 2
    assert "engine must be one of native, trl, got 'tlr'" in capsys.readouterr().err


# ---- one command ----------------------------------------------------------------------------

LIGHT = """
import sys
from cmdp_nbdev import options
from cmdp_nbdev.cli import cmdp

assert cmdp(["distill", "--bugdet", "1", "--max_steps", "many"]) == 2
assert cmdp(["distill", "--output_dir", sys.argv[1]]) == 2
for command in options.COMMANDS.values():
    options.build_parser(command).format_help()
heavy = {"transformers", "datasets", "peft", "trl", "scipy.stats", "cmdp_nbdev.trainer"}
print(sorted(heavy & set(sys.modules)))
"""


def test_help_and_refusals_do_not_wait_for_a_runs_libraries(tmp_path):
    "Ten seconds for a help text, or to be told of a typing error, are nine too many."
    (tmp_path / "metrics.jsonl").touch()
    done = python("-c", LIGHT, tmp_path)
    assert done.stdout.strip() == "[]"
    first, second, occupied = done.stderr.strip().splitlines()
    assert first == "cmdp distill: error: unknown option --bugdet; did you mean --budget?"
    assert second == "max_steps must be a whole number >= 1, got 'many'"
    assert "holds a run already; choose another folder or resume it" in occupied


def test_schedules_are_those_of_transformers():
    "They are written down, since importing them takes longer than importing torch."
    assert SCHEDULES == [kind.value for kind in SchedulerType]


def test_versions(capsys):
    "A bug report needs them, from the command and from its aliases."
    assert cmdp(["--version"]) == main(["--version"]) == prepare_main(["--version"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and len(set(said)) == 1
    assert f"cmdp_nbdev {__version__} (torch " in said[0]


def test_help_is_in_groups_and_one_spelling(capsys):
    "Those that matter come first; `--a-b` is read, and not shown."
    text = build_parser().format_help()
    places = [text.index(f"\n  --{name} ") for name in DISTILL.first.split()]
    assert len(places) == 11 and places == sorted(places)
    assert places[-1] < min(text.index(f"\n{name}:") for name in DISTILL.sections.values())
    assert not re.search(r"--\w+-", text)
    assert cmdp([]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert parse_args(["--max-steps=7", "--gradient-checkpointing"])[1]["max_steps"] == 7


TYPED = {
    "a subcommand": (["distil"], "cmdp: error: unknown command 'distil'; did you mean distill?"),
    "a stray word": (["distill", "runs"], "unexpected 'runs': an option begins with --"),
    "no value": (["distill", "--budget"], "argument --budget: expected one argument"),
    "a beginning": (["distill", "--max_step", "1"], "--max_step; did you mean --max_steps?"),
    "of prepare": (["prepare", "--steps", "3"], "unknown option --steps; did you mean"),
    "a shell": (["--print_completion", "ksh"], "must be one of bash, zsh, "),
}


@pytest.mark.parametrize("name", TYPED)
def test_one_line_for_a_slip(name, capsys):
    "What was typed and what was meant, without fifty lines of usage."
    words, said = TYPED[name]
    assert cmdp(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_print_config_says_where_values_come_from_and_is_read_back(tmp_path, monkeypatch, capsys):
    "Default, recipe, file or command line; the same run again from the file it makes."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("method: soft\nmethod_kwargs: {lam: 2}\nlearning_rate: 1e-5\n")
    words = ["--config", "a.yaml", "--budget", "0.5", "--chat_template_kwargs", "a=é,b=true"]
    assert cmdp(["distill", *words, "--print_config"]) == 0
    text = capsys.readouterr().out
    for line in (
        r"student: null +# default",
        r"max_steps: 600 +# recipe embedded",
        r"method_kwargs: \{lam: 2\} +# file a.yaml",
        r"budget: 0.5 +# command line",
    ):
        assert re.search(f"(?m)^{line}$", text), line
    (tmp_path / "b.yaml").write_text(text, encoding="utf-8")
    assert parse_args(["--config", "b.yaml"]) == parse_args(words)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    assert cmdp(["distill", "--student", "s", "--print_config"]) == 0
    assert "recipe" not in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_options_and_words(shell, capsys):
    "Written once for a shell, by shtab."
    assert cmdp(["--print_completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("prepare", "--max_steps", "cmdp-rate", "inverse_sqrt"))


def test_the_help_of_prepare_says_how_bf16_is_switched_off(capsys):
    "It once had an option `--no_bf16` whose help was `bfloat16 autocast`."
    with pytest.raises(SystemExit, match="0"):
        cmdp(["prepare", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "no_bf16" not in said and "--bf16 [TEXT] bfloat16 autocast; auto:" in said


# ---- methods, costs and adapters of one's own -----------------------------------------------

OWN_ROOM = """
from cmdp_nbdev.cost import register_cost
from cmdp_nbdev.methods import register_method
from cmdp_nbdev.objective import Signal, group_advantage


def priced(batch, budget, state, *, price: float = 0.5, scale_rewards: str = "group"):
    advantage = group_advantage(batch.rewards, batch.group_ids, scale_rewards)
    return Signal(advantage, price + 0 * batch.cost)


@register_method("own-pathwise", pathwise=True, rewardless=True)
def pathwise(batch, budget, state):
    return Signal(0 * batch.rewards, 1 + 0 * batch.cost)


def squared(rows, cost):
    return (rows.student.exp() - rows.teacher.exp()).square().sum(-1)
"""


@pytest.fixture
def own_room(tmp_path, monkeypatch):
    "A module in the working directory; afterwards nobody knows it."
    (tmp_path / "own_room.py").write_text(OWN_ROOM)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_room", None)
    for known in (METHODS, COSTS):
        for name in [name for name in known if name.startswith("own")]:
            del known[name]


def test_own_method_and_cost_from_the_terminal(own_room, tmp_path):
    "A function in a file is a method: its keywords are its settings, config.json names it."
    words = ["--method", "own_room:priced", "--method_kwargs", "price=0.25", "--seed", "3"]
    words += ["--divergence", "own_room:squared", "--output_dir", "out", *FAST]
    assert main(words) == 0
    config = read(tmp_path / "out" / "config.json")
    assert (config["method"], config["divergence"]) == ("own_room:priced", "own_room:squared")
    updates = read_lines(tmp_path / "out" / "metrics.jsonl")[1:]
    assert all(m["multiplier_mean"] == 0.25 for m in updates)
    assert read(tmp_path / "out" / "summary.json")["spent_mean"] < 32
    assert "--method own_room:priced" in (tmp_path / "out" / "student" / "README.md").read_text()


def test_a_registered_method_keeps_what_it_was_registered_with(own_room):
    "By its place in a module it is the same method."
    config = CMDPConfig(method="own_room:pathwise", budget=1)
    assert METHODS[config.method].pathwise and METHODS[config.method].rewardless
    assert METHODS["own_room:pathwise"].function is METHODS["own-pathwise"].function


OWN_WRONG = {
    "a module": ("--method nowhere:mine", "method='nowhere:mine' could not be loaded: No module"),
    "a function": (
        "--divergence own_room:cubed",
        "divergence='own_room:cubed' could not be loaded",
    ),
    "a setting": ("--method own_room:priced --method_kwargs cost=2", "has no setting cost; it has"),
    "adapters of nothing": (f"{OWN} --lora_r 4", "lora_r given without use_peft; add --use_peft"),
    "no student": ("--use_peft", "use_peft given without a student"),
}


@pytest.mark.parametrize("name", OWN_WRONG)
def test_what_is_not_there_is_one_line(own_room, capsys, name):
    "Named by its option, before anything is loaded."
    options, said = OWN_WRONG[name]
    assert cmdp(["distill", *options.split(), *CPU]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_low_rank_adapters_from_the_terminal(tmp_path, monkeypatch):
    "TRL's options: only the adapters are trained, config.json holds them, the seed fixes them."
    pytest.importorskip("peft")
    for who, seed in (("s", 1), ("t", 2)):
        save_model(tmp_path / who, seed)
    rows = [json.dumps({"prompt": f"{i}+1=", "answer": "1", "level": i}) for i in range(9)]
    for file in ("train.jsonl", "test.jsonl"):
        (tmp_path / file).write_text("\n".join(rows))
    (tmp_path / "own_cli_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    given = OWN.replace("--output_dir out", "--use_peft --lora_r 2 --lora_target_modules q_proj")
    for out in ("a", "b"):
        assert main([*given.split(), *FAST, "--learning_rate", "1e-2", "--output_dir", out]) == 0
    config = read(tmp_path / "a" / "config.json")
    assert '"lora_alpha": 32' in json.dumps(config) and '"q_proj"' in json.dumps(config)
    assert config["run"]["use_peft"] and config["run"]["lora_r"] == 2
    weights = [load_file(tmp_path / out / "model.safetensors") for out in ("s", "a/student")]
    changed = {k for k in weights[0] if not torch.equal(weights[0][k], weights[1][k])}
    assert changed and all("q_proj" in k for k in changed)
    assert summary_of(tmp_path / "a") == summary_of(tmp_path / "b")
