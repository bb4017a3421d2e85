"The study of conflicts plans fairly, judges as it says, and its README shows its rows."

import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from cmdp_nbdev.task import check_steps, parse_prompt, write_chain
from cmdp_nbdev.theory.price import judged, outcomes, priced
from studies.conflicts import chains, gap, study, tables
from studies.conflicts.pairs import CONFLICTS, PAIRS, models_of, reward_of
from studies.lab import Runs

FOLDER = ROOT / "studies" / "conflicts"
PROMPTS = 300


def made_up(job: dict, right: float, within: float, left: float = 0.0) -> dict:
    "A row whose outcomes are drawn with these rates, of prompts that are equally hard for all."
    rng = np.random.default_rng([job["seed"], len(job["name"])])
    hard = np.random.default_rng(5).random(PROMPTS)
    noise = rng.normal(0, 0.02, PROMPTS)
    correct, kept = hard + noise < right, rng.random(PROMPTS) < within
    each = {
        "correct": correct,
        "within_budget": kept,
        "reasoning_validity": correct,
        "left_out": rng.random(PROMPTS) < left,
    }
    means = {
        "accuracy": correct.mean(),
        "satisfaction_rate": kept.mean(),
        "accuracy_within_budget": (correct & kept).mean(),
        "reasoning_validity": correct.mean(),
        "left_out": each["left_out"].mean(),
    }
    others = "length_mean nats_right nats_wrong kl_mean kl_p95 reward_mean seconds".split()
    return {
        **{name: job[name] for name in study.KEY},
        "settings": json.dumps(job["settings"]),
        **means,
        **dict.fromkeys(others, 1.0),
        **{f"each_{name}": study.pack(values) for name, values in each.items()},
    }


RATES = {
    "start": (0.4, 0.5),
    "teacher": (0.5, 1.0),
    study.YARDSTICK: (0.95, 0.98),
    study.DEFAULT: (0.95, 0.97, 0.0),
    "cmdp": (0.95, 0.95, 0.0),
    "soft": (0.955, 0.972, 0.5),
    "grpo": (0.97, 0.2, 0.6),
    "gkd": (0.6, 0.99, 0.0),
    "hinge": (0.9, 0.9),
    "chance-dual": (0.9, 0.9),
    "saute": (-0.2, 0.0),
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    "Made-up rows of one conflict, and a page to write on."
    runs = Runs(tmp_path / "runs.csv", study.KEY)
    jobs = study.plan(["chains b"])
    while job := study.next_job(jobs, runs):
        rates = RATES[job["name"]]
        if job["split"] == "validation":
            rates = (0.9, 0.8 + 0.1 * (job["settings"].get("lam") == 0.5))
        runs.append(made_up(job, *rates))
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(tables, "PAGE", tmp_path / "README.md")
    monkeypatch.setattr(tables, "PICTURE", tmp_path / "conflicts.svg")
    tables.forget()
    yield runs
    tables.forget()


def test_the_lambda_is_chosen_on_validation_prompts(runs):
    "By most of both, before any test run, and for all seeds."
    rows = runs.read()
    tests = rows[(rows["name"] == "soft") & (rows["split"] == "test")]
    assert list(tests["settings"]) == ['{"lam": 0.5}'] * len(study.SEEDS)
    assert set(rows[rows["split"] == "validation"]["seed"]) == {study.TUNE_SEED}
    assert study.TUNE_SEED not in study.SEEDS


def test_no_lambda_is_chosen_before_all_were_tried(tmp_path):
    "A test run of the fixed λ waits; others do not."
    runs = Runs(tmp_path / "runs.csv", study.KEY)
    jobs = study.plan(["chains b"])
    begun = list(iter(lambda: study.next_job(jobs, runs), None))
    trials = [job for job in begun if job["name"] == "soft"]
    assert {job["split"] for job in trials} == {"validation"}
    assert len(trials) == len(PAIRS["chains"].lambdas)
    assert [job["settings"] for job in jobs] == [study.CHOSEN] * len(study.SEEDS)


def test_a_run_is_done_once(runs):
    "What has a row is not asked for again."
    assert study.next_job(study.plan(["chains b"]), runs) is None


def test_verdicts_need_intervals_without_zero(runs):
    "More of both than GRPO and distillation; level with the fixed λ, but it leaves out less."
    asked = ("chains b", study.DEFAULT)
    assert tables.verdict(*asked, "grpo") == tables.verdict(*asked, "gkd") == "more of both"
    assert tables.verdict(*asked, "soft") == "less left out" and tables.pays(*asked)
    assert tables.verdict("chains b", "grpo", study.DEFAULT) == "less of both"
    assert tables.verdict(*asked, study.DEFAULT) == "level"


def test_differences_are_those_of_the_outcomes(runs):
    "The interval is about what the table's columns say."
    found = tables.difference("chains b", study.DEFAULT, "grpo", "accuracy")
    means = [tables.runs_of("chains b", n)["accuracy"].mean() for n in (study.DEFAULT, "grpo")]
    assert found["difference"] == pytest.approx(means[0] - means[1], abs=1e-9)
    assert found["n_seeds"] == len(study.SEEDS) and found["n_prompts"] == PROMPTS


def test_both_by_what_a_prompt_needs(runs, monkeypatch):
    "The mean of the prompts of each kind; their shares give the whole."
    flawed = np.arange(PROMPTS) % 3
    monkeypatch.setattr(tables, "flawed_steps", lambda pair: flawed)
    *cells, three = tables.by_need("chains b", "grpo")
    whole = tables.runs_of("chains b", "grpo")["accuracy_within_budget"].mean()
    assert three == "" and np.mean([float(x) for x in cells]) == pytest.approx(whole, abs=1e-3)


def test_the_page_is_made_of_the_rows(runs, monkeypatch):
    "Every method a line; the claims say yes and no."
    marks = [start + end for start, end in tables.MARKS.values()]
    tables.PAGE.write_text("\n".join(marks), encoding="utf-8")
    monkeypatch.setattr(tables, "flawed_steps", lambda pair: np.arange(PROMPTS) % 4)
    tables.write_readme()
    page = tables.PAGE.read_text(encoding="utf-8")
    for name in (*study.METHODS, *study.AS_THEY_ARE):
        assert f"| chains b | {tables.NAMES[name]}" in page
    assert "| **yes** |" in page and "yes: 0.00 right, 0.00 within" in page
    assert "λ = 0.5 chosen" in page and "| λ = 0.5, chosen under chains b |" in page
    assert "<title>" in tables.PICTURE.read_text(encoding="utf-8")


def test_outcomes_come_back():
    "Of a thousand prompts in a cell."
    values = np.random.default_rng(0).integers(0, 5, 1000)
    assert (study.unpack(study.pack(values)) == values).all()


def test_nats_of_right_and_wrong_completions():
    "Each their own mean."
    records = [{"correct": c, "spent": s} for c, s in ((True, 1.0), (True, 2.0), (False, 5.0))]
    assert study.spent_by(records) == {"nats_right": 1.5, "nats_wrong": 5.0}
    assert np.isnan(study.spent_by(records[:2])["nats_wrong"])


def test_a_step_that_does_nothing_may_be_left_out():
    "The student's texts stay right, and the checker counts what is missing."
    rng = random.Random(0)
    for prompt in chains.easy_dataset(200)["prompt"]:
        idle = sum(chains.does_nothing(*step) for step in parse_prompt(prompt)[1])
        text = chains.skipping_chain(prompt, 1.0, rng)
        assert chains.left_out([prompt], [text]) == [idle]
        assert chains.left_out([prompt], [write_chain(prompt)]) == [0]
        if not idle:
            assert len(check_steps(prompt, text)) == 4
    assert chains.left_out(["3+8*7-2="], ["1*7=7;7-2=5#5"]) == [1]
    assert chains.left_out(["3+8*7-2="], ["7-2=5;1*7=7#5"]) == [2]


def test_the_dialect_of_the_terse_student():
    "Results alone, the same answer; the checker finds no step."
    text = chains.bilingual_chain("3+8*2-1=", 1.0, random.Random(0))
    assert text == "1;2;1#1" and chains.left_out(["3+8*2-1="], [text]) == [3]
    assert chains.bilingual_chain("3+8*2-1=", 0.0, random.Random(0)) == "3+8=1;1*2=2;2-1=1#1"


def test_the_need_of_a_prompt_of_two_lengths_shows_in_its_length():
    "One of three steps is flawed, or three of four; the splits share no prompt."
    data = chains.two_lengths_dataset(400, "test")
    for prompt, answer, flawed in zip(data["prompt"], data["answer"], data["num_flawed"]):
        steps = parse_prompt(prompt)[1]
        assert (len(steps), flawed) in chains.SHAPES and write_chain(prompt)[-1] == answer
        assert sum(op == "*" for op, _ in steps) == flawed
    assert len(set(data["prompt"])) == 400
    assert not set(data["prompt"]) & set(chains.two_lengths_prompts(16000))


def test_mixed_prompts_need_more_corrections_than_the_budget_pays_for():
    "As the study says of its test prompts."
    flawed = np.array(chains.mixed_dataset(4096, "test")["num_flawed"][:])
    shares = [round(float((flawed == k).mean()), 2) for k in range(4)]
    assert shares == [0.22, 0.49, 0.26, 0.03]


def test_what_one_lambda_loses():
    "One correction fits, two do not."
    one, two = (outcomes(f"1+1*{7 if k else 2}*7=") for k in (0, 1))
    assert judged(one, 0.01, gap.BUDGET)[1] == pytest.approx(1.0)
    assert judged(two, 0.01, gap.BUDGET)[1] < 1e-9
    _, probability, spent = priced(two, 0.7)
    assert probability.sum() == pytest.approx(1) and spent.max() < gap.BUDGET
    mean = (probability * spent).sum()  # the chain rule: the divergence of whole completions
    assert mean == pytest.approx((probability * np.log(4 * probability)).sum())


def test_a_price_is_paid_by_right_answers_only():
    "So that a wrong answer does not become worth writing by being short."
    conflict = CONFLICTS["chains c"]
    how = dict(prompts=["1+1="] * 2, completions=["1+1=2#2", "#5"], answer=["2", "2"])
    paid = reward_of(conflict)(completion_ids=[[1] * 8, [1] * 3], **how)
    assert paid == [1 - 8 * conflict.price, 0.0]
    longest = PAIRS[conflict.pair].settings["max_completion_length"]
    assert 1 - longest * conflict.price > study.CORRECT_AT


@pytest.mark.parametrize("name", CONFLICTS)
def test_every_conflict_can_be_run(name):
    "Its student, its teacher and its functions go together."
    conflict = CONFLICTS[name]
    assert conflict.pair in PAIRS and conflict.budget > 0
    longest = PAIRS[conflict.pair].settings["max_completion_length"]
    assert 1 - longest * conflict.price > study.CORRECT_AT
    student, teacher, tokenizer = models_of(conflict)
    assert student.config.vocab_size == teacher.config.vocab_size >= len(tokenizer)


def test_a_row_can_be_run_again(monkeypatch):
    "The script must go on working with the library; two updates of it."
    short = {"max_steps": 2, "per_device_train_batch_size": 32}
    pair = replace(PAIRS["easy chains"], changes=short, num_test=64)
    monkeypatch.setitem(PAIRS, "easy chains", pair)
    row = study.run(study.job("chains c", "hinge", {"coef": 1.0}))
    assert row["steps"] == 2 and row["n_eval"] == 64 and row["note"] == ""
    assert study.unpack(row["each_correct"]).mean() == pytest.approx(row["accuracy"], abs=1e-5)
    assert study.unpack(row["each_left_out"]).mean() == pytest.approx(row["left_out"], abs=1e-5)


def test_a_student_can_be_told_again(monkeypatch):
    "The yardstick, two updates of it: the student moves, and is judged like any other."
    monkeypatch.setitem(PAIRS, "two lengths", replace(PAIRS["two lengths"], num_test=64))
    before = study.run(study.job("lengths b", "start", {}))
    told = study.run(study.job("lengths b", study.YARDSTICK, {**study.TOLD, "updates": 2}))
    assert told["steps"] == 2 and told["n_eval"] == before["n_eval"] == 64
    assert told["spent_mean"] != before["spent_mean"]


committed = pytest.mark.skipif(
    not (FOLDER / "runs.csv").exists(), reason="the study has not been run"
)


@committed
def test_rows_are_possible_and_of_the_plan():
    "Every row is a planned run with its versions; nothing in it contradicts itself."
    runs = Runs(FOLDER / "runs.csv", study.KEY)
    rows = runs.read().to_dict("records")
    keys = [runs.identify(row) for row in rows]
    settled = [study.settle(job, runs) for job in study.plan(list(CONFLICTS))]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= {runs.identify(job) for job in settled if job}
    for row in rows:
        both = row["accuracy_within_budget"]
        assert 0 <= both <= min(row["accuracy"], row["satisfaction_rate"]) <= 1
        assert len(study.unpack(row["each_correct"])) == row["n_eval"]


@committed
def test_readme_shows_the_rows():
    "A table that was edited, or not remade after a run, would say what was not measured."
    tables.forget()
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, text in tables.parts().items():
        start, end = tables.MARKS[name]
        assert page[page.index(start) + len(start) : page.index(end)] == text
    assert f"<title>{tables.alt()}</title>" in (FOLDER / "conflicts.svg").read_text("utf-8")
