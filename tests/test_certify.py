"The certificate: a test that may be looked at always, what it says, and who is refused one."

import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT, embedded
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from cmdp_nbdev.certificate import (
    Certificate,
    ask_until_clear,
    certificate_of,
    certify_run,
    fresh,
    prompts_hash,
)
from cmdp_nbdev.certify import certify, drift, measured_before, run_of
from cmdp_nbdev.cli import certify_main, cmdp
from cmdp_nbdev.evaluate import where_nats_went
from cmdp_nbdev.model import DATA, default_pair
from cmdp_nbdev.plot import nats_figure, report_html, token_heatmap
from cmdp_nbdev.sequential import (
    CERTIFIED,
    FEWER,
    MORE,
    REFUSED,
    UNDECIDED,
    boundaries,
    chances,
    check_claim,
    further_prompts,
    least_prompts,
    log_evidence,
    rate_to_aim_at,
    verdict_of,
    violation_bounds,
)
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPTrainer

sys.path.insert(0, str(ROOT))
from studies.certificate import study


@settings(max_examples=10)
@given(st.integers(1, 400), st.data(), st.floats(0.005, 0.6))
def test_evidence_is_a_mean_of_likelihood_ratios(n, data, m):
    "The mean over bettors of (q/m)^k ((1-q)/(1-m))^(n-k), q by odds."
    k = data.draw(st.integers(0, n))
    for bets in (FEWER, MORE):
        odds = np.array(bets) * m / (1 - m)
        q = odds / (1 + odds)
        ratios = (q / m) ** k * ((1 - q) / (1 - m)) ** (n - k)
        if ratios.mean() > 1e-250:
            assert math.isclose(log_evidence(k, n, m, bets), math.log(ratios.mean()), abs_tol=1e-8)


@pytest.mark.parametrize("bets, far", [(FEWER, 0.3), (MORE, 0.01)], ids=["fewer", "more"])
def test_evidence_never_grows_on_average(bets, far):
    "Its mean is 1 at the border, and falls where the claim is true."
    k, m = np.arange(201), 0.1
    evidence = np.exp(log_evidence(k, 200, m, bets))
    assert math.isclose(evidence @ binom.pmf(k, 200, m), 1, rel_tol=1e-9)
    assert evidence @ binom.pmf(k, 200, far) < 0.05


def test_at_the_border_at_most_one_in_twenty_is_wrong():
    "10 000 students, looked at after every prompt; a fixed interval errs far more."
    target, size, rng = 0.9, 800, np.random.default_rng(0)
    most, fewest = boundaries(size, target)
    naive = binom.ppf(0.05, np.arange(1, size + 1), 1 - target) - 1
    wrong = np.zeros(3)
    for _ in range(10):
        broken = (rng.random((1000, size), dtype=np.float32) > target).cumsum(1, dtype=np.int16)
        wrong += [(broken <= most).any(1).sum(), (broken >= fewest).any(1).sum(), 0]
        wrong[2] += (broken <= naive).any(1).sum()
    certified, refused, by_interval = wrong / 10_000
    assert certified <= 0.05 and refused <= 0.05 and by_interval > 0.15
    exact = chances(target, size, target)
    assert abs(exact.certified - certified) < 0.008 and abs(exact.refused - refused) < 0.008


def test_exact_chances_beside_simulation_with_portions():
    "Looks after 50 prompts only."
    target, rate, size, rng = 0.9, 0.94, 500, np.random.default_rng(1)
    most, fewest = boundaries(size, target)
    broken = (rng.random((4000, size)) > rate).cumsum(1)
    looks = np.arange(49, size, 50)
    clear = (broken <= most)[:, looks] | (broken >= fewest)[:, looks]
    first = np.where(clear.any(1), clear.argmax(1), len(looks) - 1)
    there = broken[np.arange(4000), looks[first]]
    exact = chances(rate, size, target, every=50)
    assert abs((there <= most[looks[first]]).mean() - exact.certified) < 0.03
    assert abs(looks[first].mean() + 1 - exact.prompts) < 8
    assert exact.certified <= chances(rate, size, target).certified


@settings(max_examples=10)
@given(st.integers(1, 3000), st.data(), st.sampled_from([0.8, 0.9, 0.98]))
def test_verdict_bounds_and_boundaries_agree(n, data, target):
    "Certified is: the lower end for the satisfaction rate has reached the target."
    k = data.draw(st.integers(0, min(n, n // 3 + 5)))
    low, high = violation_bounds(k, n)
    assert 0 <= low <= k / n <= high <= 1
    verdict = verdict_of(k, n, target)
    assert (verdict == CERTIFIED) == (high <= 1 - target + 1e-12)
    assert (verdict == REFUSED) == (low >= 1 - target - 1e-12)


def test_numbers_of_prompts():
    "The least is the least, and what is still needed is enough if things go on so."
    for target in (0.5, 0.9, 0.98, 0.999):
        n = least_prompts(target)
        assert verdict_of(0, n, target) == CERTIFIED
        assert verdict_of(0, n - 1, target) == UNDECIDED
    assert further_prompts(0, 100, 0.98) == (CERTIFIED, least_prompts(0.98) - 100)
    verdict, more = further_prompts(3, 300, 0.98)
    assert verdict_of(3 * (300 + more) / 300, 300 + more, 0.98) == verdict == CERTIFIED
    assert verdict_of(3 * (299 + more) / 300, 299 + more, 0.98) == UNDECIDED
    assert further_prompts(10, 300, 0.98)[0] == REFUSED
    assert further_prompts(6, 300, 0.98) is None
    aim = rate_to_aim_at(0.9, 300)
    assert chances(aim, 300, 0.9).certified >= 0.9 > chances(aim - 0.002, 300, 0.9).certified


BAD = {
    "a rate of 0": ((0, 0.05, None), "target must lie strictly between 0 and 1, got 0"),
    "a rate of 1": ((1, 0.05, None), "a rate of 1 is certified by no number of prompts"),
    "percent": ((98, 0.05, None), r"got 98 \(98% is 0.98\)"),
    "no error": ((0.9, 0.0, None), "alpha must be above 0"),
    "NaN": ((math.nan, 0.05, None), "target must lie"),
    "few prompts": ((0.98, 0.05, 208), "208 prompts are too few .* at least 209 are needed"),
}


@pytest.mark.parametrize("name", BAD)
def test_claims_that_nothing_could_prove(name):
    "Before anything is sampled, in one sentence."
    claim, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        check_claim(*claim)
    check_claim(0.98, 0.05, 209)


def records_of(broken, cut=False):
    "Records as an evaluation makes them."
    return [{"within_budget": not b, "terminated": not cut} for b in broken]


def test_asking_in_random_order_stops_when_it_is_clear():
    "A file whose first half is easy must not be judged by that half."
    rows = Dataset.from_dict({"prompt": [str(i) for i in range(1000)]})
    asked = []

    def sample(portion, k):
        asked.append((k, portion["prompt"][:]))
        return records_of(int(p) >= 500 for p in portion["prompt"])

    records = ask_until_clear(sample, rows, 0.9, portion=50)
    found = certificate_of(records, 0.9, 0.05, offered=1000)
    assert found.verdict == REFUSED and len(records) <= 100
    assert [k for k, _ in asked] == list(range(len(asked)))
    assert len({p for _, names in asked for p in names}) == len(records)
    assert not found.warnings
    (warning,) = certificate_of(records_of([0] * 50, cut=True), 0.9, 0.05, offered=50).warnings
    assert "50 of the 50 completions that kept the budget were cut off" in warning


def test_words_and_files(tmp_path):
    "At most ten lines, strict JSON, and a page on which nothing runs."
    hostile = '<img src=x onerror="alert(1)">'
    about = {"student": hostile, "versions": {hostile: 1}}
    found = Certificate(0.98, 0.05, 400, 20, 400, math.inf, about=about, warnings=[hostile])
    lines = str(found).splitlines()
    assert lines[0].startswith("not certified: 0.950 [0.91") and "of 0.98 asked" in lines[0]
    assert len(lines) <= 10
    found.save(tmp_path)

    def never(constant):
        raise AssertionError(constant)

    text = (tmp_path / "certificate.json").read_text(encoding="utf-8")
    whole = json.loads(text, parse_constant=never)
    assert whole["verdict"] == "not certified" and whole["violations"] == 20
    assert whole["seconds"] is None and whole["student"] == hostile
    assert "<img" not in (tmp_path / "certificate.html").read_text(encoding="utf-8")
    assert set(found.summary()) >= {"certificate", "certificate_satisfaction_rate_low"}
    for k, n in ((0, 1), (1, 1), (0, 300), (6, 300), (900, 900)):
        assert Certificate(0.98, 0.05, n, k, n).lines()  # at the ends there are words, too


def test_fresh_prompts():
    "Neither those that were used, nor one of them twice; chat messages are compared as such."
    chat = [{"role": "user", "content": "a"}]
    rows = Dataset.from_dict({"prompt": [chat, [{"role": "user", "content": "b"}], chat]})
    assert len(fresh(rows)) == 2 and len(fresh(rows, [chat])) == 1
    assert prompts_hash(rows) != prompts_hash(fresh(rows))


def test_at_the_end_of_a_run():
    "The trained student is asked; the run's random numbers and what it measures stay."
    student, teacher, tokenizer = default_pair()
    config = embedded(budget=8.0, device="cpu", disable_tqdm=True, eval_num_generations=2)
    train, test = chain_dataset(50, "train"), chain_dataset(300, "test")
    given = dict(eval_dataset=chain_dataset(20, "validation"), processing_class=tokenizer)
    trainer = CMDPTrainer(student, teacher, chain_reward, config, train, **given)
    before = trainer.evaluate()
    found = certify_run(trainer, test, 0.9, portion=100)
    assert found.verdict == CERTIFIED and found.n in (100, 200) and found.offered == 300
    assert trainer.evaluate() == before
    assert found.about["dataset_sha256"] == prompts_hash(test) and found.budget == 8
    with pytest.raises(ValueError, match="50 of 300 prompts .* in train_dataset"):
        certify_run(trainer, Dataset.from_list([*train, *test.select(range(250))]), 0.9)
    with pytest.raises(ValueError, match="20 prompts are too few"):
        certify_run(trainer, chain_dataset(20, "test"), 0.9)


def test_lower_bounds_refuse_and_never_certify():
    "What a teacher of few tokens tells is not all that was spent."
    few = [dict(r, bound="lower bounds (top 4)") for r in records_of([0] * 300)]
    found = certificate_of(few, 0.9, 0.05, offered=300)
    assert found.verdict == UNDECIDED and "none certifies" in str(found)
    broken = [dict(r, within_budget=False) for r in few]
    assert certificate_of(broken, 0.9, 0.05, offered=300).verdict == REFUSED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "What a run leaves: a student, what it was trained on, what it wrote at the end."
    folder = tmp_path_factory.mktemp("certified")
    shutil.copytree(DATA / "student", folder / "run" / "student")
    shutil.copytree(DATA / "teacher", folder / "teacher")
    prompts = chain_dataset(300, "test")
    prompts.select(range(250)).to_json(folder / "fresh.jsonl")
    prompts.select(range(250, 300)).to_json(folder / "train.jsonl")
    prompts.select(range(200, 300)).to_json(folder / "both.jsonl")
    said = {"student": "s", "dataset": str(folder / "train.jsonl"), "of_another_release": 1}
    config = {"max_steps": 1, "run": said, "inputs": {"teacher": {"sha256": "0"}}}
    (folder / "run" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    row = {"prompt": "1+1+1+1+1+1=", "completion_ids": [1] * 25, "spent": 0.5}
    (folder / "run" / "eval.jsonl").write_text((json.dumps(row) + "\n") * 200, encoding="utf-8")
    return folder


COMMAND = "run/student --teacher teacher --dataset fresh.jsonl --budget 9 --target 0.9 "
COMMAND += "--max_completion_length 32 --disable_tqdm"


def test_the_command(run, monkeypatch, capsys):
    "The verdict is its status; what is otherwise than in the student's run is said."
    monkeypatch.chdir(run)
    assert cmdp(["certify", *COMMAND.split(), "--output_dir", "out"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("certified: ") and len(said.splitlines()) <= 10
    assert "lengths of prompts (characters): median 8, and 12 in the run's own" in said
    assert "lengths of completions" in said and "the teacher is another than that" in said
    whole = json.loads((run / "out" / "certificate.json").read_text(encoding="utf-8"))
    assert whole["verdict"] == "certified" and whole["n"] < 250 == whole["n_offered"]
    assert re.fullmatch("[0-9a-f]{64}", whole["student_sha256"]) and whole["dataset"]
    assert whole["versions"]["cmdp_nbdev"] and whole["budget"] == 9 and whole["alpha"] == 0.05
    assert certify_main([*COMMAND.split(), "--output_dir", "out"]) == 2
    assert "holds a certificate already" in capsys.readouterr().err
    few = "--budget 0.8 --n_prompts 50 --target 0.8 --output_dir few"
    assert certify_main([*COMMAND.split(), *few.split()]) in (1, 3)
    task = "--task chains --budget 0.1 --target 0.98 --n_prompts 250 --output_dir task"
    assert certify_main(task.split()) == 1
    assert "of 250 prompts asked" in capsys.readouterr().out


REFUSED_BY = {
    "no teacher": ("run/student --dataset fresh.jsonl --budget 1 --target 0.9", "teacher missing"),
    "no claim": ("run/student --task words", "budget, target missing: a certificate needs"),
    "percent": (f"{COMMAND} --target 98", r"strictly between 0 and 1, got 98 \(98% is 0.98\)"),
    "all": (f"{COMMAND} --target 1", "certified by no number of prompts"),
    "nothing": (f"{COMMAND} --target 0", "target must lie strictly between 0 and 1, got 0"),
    "a word": (f"{COMMAND} --target high", "target must be a finite number, got"),
    "few prompts": (f"{COMMAND} --target 0.99", "250 prompts are too few .* at least 419"),
    "few asked": (f"{COMMAND} --n_prompts 40", "40 prompts are too few .* at least 41"),
    "no error": (f"{COMMAND} --alpha 0", "alpha must be above 0 and at most 0.5, got 0"),
    "known prompts": (f"{COMMAND} --dataset both.jsonl", "50 of 100 prompts are among those that"),
    "named ones": (f"{COMMAND} --train_dataset fresh.jsonl", "250 of 250 prompts are among"),
    "no file": (f"{COMMAND} --dataset none.jsonl", "dataset='none.jsonl'"),
    "no train file": (f"{COMMAND} --train_dataset none.jsonl", "train_dataset='none.jsonl'"),
    "below zero": (f"{COMMAND} --budget -1", "budget must be >= 0, got -1"),
    "two tasks": (f"{COMMAND} --task chains", "given; leave out one"),
    "two words": (f"here {COMMAND}", "unexpected 'run/student'"),
}


@pytest.mark.parametrize("name", REFUSED_BY)
def test_refused_in_one_line(run, monkeypatch, capsys, name):
    "Before a model is loaded, and nothing is written."
    options, said = REFUSED_BY[name]
    monkeypatch.chdir(run)
    monkeypatch.setattr("cmdp_nbdev.certify.loaded_pair", None)
    assert cmdp(["certify", *options.split(), "--output_dir", "none"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line), line
    assert not (run / "none").exists()


def test_what_cannot_be_compared_is_said(run, tmp_path):
    "A run of the library does not say what it was trained on."
    shutil.copytree(run / "run" / "student", tmp_path / "student")
    (tmp_path / "config.json").write_text('{"max_steps": 1}', encoding="utf-8")
    asked = dict(budget=9.0, target=0.8, max_completion_length=32, disable_tqdm=True)
    found = certify(tmp_path / "student", run / "teacher", chain_dataset(64, "test"), **asked)
    (warning,) = found.warnings
    assert "is not known, so it was not compared: its config.json does not say" in warning
    for text, said in (('{"spent": 1}', "KeyError: 'prompt'"), ("{", "line 1, is no JSON object")):
        (tmp_path / "eval.jsonl").write_text(text, encoding="utf-8")
        records, (warning,) = measured_before(tmp_path)
        assert records == [] and said in warning
    (tmp_path / "config.json").write_text("no json", encoding="utf-8")
    with pytest.raises(ValueError, match="config.json' is no JSON"):
        run_of(tmp_path / "student")
    rng = np.random.default_rng(0)
    same = [{"prompt": "p", "completion_ids": [0], "spent": x} for x in rng.random(400)]
    assert not [*drift(same[:200], same[200:])]


def test_nothing_of_a_report_runs():
    "Titles and summaries hold names that somebody chose."
    hostile = "</title><script>alert(1)</script>"
    page = report_html([], hostile, {hostile: hostile, "accuracy": 0.5})
    assert "<script" not in page and "alert(1)" in page and "<td>0.5</td>" in page


def test_what_a_model_wrote_is_shown_as_it_wrote_it():
    "Plotly reads markup in texts; prompts and tokens have none for it."

    class Tokenizer:
        def decode(self, ids):
            return "<b>"

    record = {"prompt": "<i>", "completion_ids": [0], "cost_per_token": [1.0], "spent": 1.0}
    figures = [token_heatmap([{**record, "within_budget": True}], Tokenizer())]
    figures.append(nats_figure(where_nats_went([record], Tokenizer())))
    for figure in figures:
        text = json.dumps(json.loads(figure.to_json())["data"] + [str(figure.layout)])
        assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;" in text


def test_the_study_in_short():
    "Its committed rows keep the promise and are those of its page; its simulation is exact."
    rows = study.RUNS.read()
    border = rows.query("target == rate")
    assert len(rows) == len(study.plan()) and (rows["students"] == 10_000).all()
    assert (border[["certified", "refused"]] <= 0.05).all(axis=None)
    for name in ("certified", "refused"):
        assert (rows[name] - rows[f"exact_{name}"]).abs().max() < 0.012
    page = (ROOT / "studies" / "certificate" / "README.md").read_text(encoding="utf-8")
    start, end = study.MARKS
    assert page[page.index(start) + len(start) : page.index(end)] == study.tables()
    job = {"target": 0.9, "rate": 0.95, "students": 1000, "seed": 0}
    found, exact = study.simulate(job, prompts=300), chances(0.95, 300, 0.9)
    assert abs(found["certified"] - exact.certified) < 0.05
