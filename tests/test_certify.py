"The certificate: a test that may be looked at always, what it says, and who is refused one."

import json
import math

import numpy as np
import pytest
from conftest import embedded
from datasets import Dataset
from hypothesis import given
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
from cmdp_nbdev.model import default_pair
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
    settings = dict(eval_dataset=chain_dataset(20, "validation"), processing_class=tokenizer)
    trainer = CMDPTrainer(student, teacher, chain_reward, config, train, **settings)
    before = trainer.evaluate()
    found = certify_run(trainer, test, 0.9, portion=100)
    assert found.verdict == CERTIFIED and found.n in (100, 200) and found.offered == 300
    assert trainer.evaluate() == before
    assert found.about["dataset_sha256"] == prompts_hash(test) and found.budget == 8
    with pytest.raises(ValueError, match="50 of 300 prompts .* in train_dataset"):
        certify_run(trainer, Dataset.from_list([*train, *test.select(range(250))]), 0.9)
    with pytest.raises(ValueError, match="20 prompts are too few"):
        certify_run(trainer, chain_dataset(20, "test"), 0.9)
