"A student that anybody trained, examined: one sampling, all budgets, from Python and a terminal."

import json
import re

import numpy as np
import pytest
import torch
from conftest import read_lines
from datasets import Dataset
from transformers import AutoModelForCausalLM

from cmdp_nbdev import evaluate as evaluate_room
from cmdp_nbdev import examine as room
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.cli import cmdp, evaluate_main
from cmdp_nbdev.cost import Cost
from cmdp_nbdev.evaluate import at_budget, evaluate, summarize, summarize_seeds
from cmdp_nbdev.examine import completion_length, examine
from cmdp_nbdev.model import char_tokenizer, tiny_model

REWARD = "def right(completions, answer, **columns):\n    return [0.0 for _ in answer]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two models that transformers saved, and prompts: nothing of this package's own."
    torch.set_num_threads(1)
    folder, tokenizer = tmp_path_factory.mktemp("examine"), char_tokenizer()
    for who, seed in (("s", 1), ("t", 2)):
        tiny_model(32, tokenizer, seed=seed).save_pretrained(folder / who)
        tokenizer.save_pretrained(folder / who)
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(9)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "p.jsonl").write_text(text, encoding="utf-8")
    (folder / "examine_rewards.py").write_text(REWARD, encoding="utf-8")
    return folder


@pytest.fixture
def pair(folder):
    "Both folders and the prompts, for Python."
    prompts = Dataset.from_list(read_lines(folder / "p.jsonl"))
    return str(folder / "s"), str(folder / "t"), prompts


def test_several_budgets_cost_one_sampling(pair, monkeypatch):
    "Sampling again for each budget would take three times as long, and compare other texts."
    sampled, real = [], evaluate_room.generate

    def counted(*args, **kwargs):
        sampled.append(len(args[2]))
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluate_room, "generate", counted)
    found = examine(*pair, budgets=[1, 5, Budget(20)], max_completion_length=6)
    assert sum(sampled) == 9 and len(found.records) == 9
    for row, limit in zip(found.rows, (1, 5, 20)):
        alone = summarize(found.records, Budget(limit))
        assert row["satisfaction_rate"] == alone["satisfaction_rate"]
        assert row["satisfaction_rate_low"] == alone["satisfaction_rate_low"]
    rates = [row["satisfaction_rate"] for row in found.rows]
    assert rates == sorted(rates)


def test_it_says_what_evaluate_says(pair):
    "Two functions that judge the same student must not differ."
    settings = dict(max_completion_length=6, seed=3, cost=Cost("forward_kl"))
    reward = lambda completions, **columns: [1.0] * len(completions)  # noqa: E731
    found = examine(*pair, None, reward, [4.0], **settings)
    student, teacher, prompts = pair
    alone = evaluate(student, teacher, prompts, None, reward, Budget(4.0), **settings)
    assert {k: found.rows[0][k] for k in alone} == alone
    assert found.summary["accuracy"] == alone["accuracy"]


def test_without_reward_and_budget_it_states_what_is_spent(pair):
    "Nobody knows a budget before they have seen what is spent."
    found = examine(*pair, max_completion_length=6)
    spent = [r["spent"] for r in found.records]
    assert found.summary["spent_q0.9"] == pytest.approx(np.quantile(spent, 0.9))
    assert found.rows == [] and np.isnan(found.summary["accuracy"])
    assert not [k for k in found.summary if k.startswith("satisfaction_rate")]
    text = str(found)
    assert "quantiles 50%" in text and "accura" not in text and "nan" not in text


def test_intervals_are_over_prompts(pair):
    "Four completions of nine prompts are not thirty-six answers."
    found = examine(*pair, budgets=[8.0], num_generations=4, max_completion_length=6)
    want = summarize_seeds(at_budget(found.records, Budget(8.0)), ["satisfaction_rate"])
    got = {k: found.rows[0][k] for k in want if k.startswith("satisfaction_rate")}
    assert got == {k: v for k, v in want.items() if k.startswith("satisfaction_rate")}


def test_completions_that_were_cut_off_decide_nothing_silently(pair):
    "`keeps 20 nats` said of stubs is said of nothing."
    found = examine(*pair, budgets=[1e-9, 1000.0], max_completion_length=3)
    cut = [r for r in found.records if not r["terminated"]]
    (line,) = found.warnings()  # the first budget is broken by all, finished or not
    low = 1 - len(cut) / 9
    assert f"budget 1000: {len(cut)} of the 9" in line
    assert f"between {low:.3f} and 1.000" in line and "max_completion_length" in line
    assert f"warning: {line}" in str(found)
    for r in found.records:
        r["terminated"] = True
    assert found.warnings() == []
    alone = examine(*pair, max_completion_length=3)
    assert "the quantiles are too low" in alone.warnings()[0]


def test_length_comes_from_the_student_or_the_data(pair):
    "Given, else what the student is used with, else the data's longest answer, else refused."
    student, _, prompts = pair
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student), char_tokenizer()
    with pytest.raises(ValueError, match="max_completion_length is needed.*'completion'"):
        examine(*pair)
    worked = prompts.add_column("completion", ["1"] * 8 + ["1234"])
    assert completion_length(model, worked, tokenizer) == (5, "the longest 'completion'")
    model.generation_config.max_new_tokens = 7
    assert completion_length(model, worked, tokenizer)[0] == 7
    found = examine(model, pair[1], worked, tokenizer)
    assert max(len(r["completion_ids"]) for r in found.records) == 7
    assert found.about["student"] == "LlamaForCausalLM"


def test_a_student_that_is_served_as_another_policy(pair):
    "What transformers adds to its sampling (top_k=50) is not what was judged."
    student, teacher, prompts = pair
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student), char_tokenizer()
    given = dict(budgets=[1000.0], max_completion_length=32)
    assert examine(model, teacher, prompts, tokenizer, **given).about["generate"] == {}
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=50)
    found = examine(model, teacher, prompts, tokenizer, **given)
    assert "samples with temperature=0.7, top_k=50, top_p=1, another policy" in found.warnings()[-1]
    model.generation_config.update(temperature=1.0, top_k=0)
    found = examine(model, teacher, prompts, tokenizer, **given)
    assert not [line for line in found.warnings() if "policy" in line]


COMMAND = "--student s --teacher t --dataset p.jsonl --max_completion_length 6 --disable_tqdm"


def test_the_command(folder, monkeypatch, capsys):
    "A table, strict JSON, every completion, and a page with the pictures of the tokens."
    monkeypatch.chdir(folder)
    more = "--budget 1 20 --reward examine_rewards:right --num_generations 2 --output_dir out"
    assert cmdp(["evaluate", *COMMAND.split(), *more.split()]) == 0
    said = capsys.readouterr().out
    assert "student s, teacher t" in said and "accuracy 0.000" in said
    assert len(read_lines(folder / "out" / "eval.jsonl")) == 18

    def never(constant):
        raise AssertionError(constant)

    text = (folder / "out" / "evaluation.json").read_text(encoding="utf-8")
    whole = json.loads(text, parse_constant=never)
    assert [row["budget"] for row in whole["budgets"]] == [1, 20]
    assert whole["about"]["length_from"] == "given"
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('class="plotly-graph-div"') == 4 and "<script src=" not in page
    assert evaluate_main([*COMMAND.split(), "--output_dir", "out"]) == 2
    assert "holds an evaluation already" in capsys.readouterr().err


REFUSED = {
    "no teacher": ("--student s --dataset p.jsonl", "teacher missing: an evaluation needs"),
    "a budget": (f"{COMMAND} --budget much", "budget must be a list of numbers"),
    "below zero": (f"{COMMAND} --budget -3", "budget limit must be .* >= 0.*-3"),
    "a reward": (f"{COMMAND} --reward nowhere:f", "reward='nowhere:f' could not be loaded"),
    "a student": (f"{COMMAND} --student nowhere", "student='nowhere' could not be loaded"),
    "a cost": (f"{COMMAND} --divergence kl", "reverse_kl"),
    "an option": (f"{COMMAND} --budgets 3", "unknown option --budgets; did you mean --budget?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(folder, monkeypatch, capsys, name):
    "Before anything is sampled."
    options, said = REFUSED[name]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(room, "evaluate_records", None)
    assert cmdp(["evaluate", *options.split(), "--output_dir", "none"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line), line
    assert not (folder / "none").exists()
