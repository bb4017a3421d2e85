"Comparisons, intervals and frontiers: what a table may claim."

import datetime
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial, norm, ttest_1samp
from scipy.stats import t as student_t

from cmdp_nbdev.budget import Budget, satisfaction_interval
from cmdp_nbdev.evaluate import (
    RECORD,
    VALUES,
    _error,
    _mean_of_seeds,
    _point_draws,
    _rate_ends,
    _resample,
    _spread,
    _variances,
    above_envelope,
    at_budget,
    compare,
    difference_interval,
    envelope,
    envelope_band,
    evaluate,
    evaluate_records,
    frontier,
    mcnemar,
    metric_values,
    step_metrics,
    summarize,
    summarize_seeds,
    to_json,
    where_nats_went,
)
from cmdp_nbdev.model import char_tokenizer
from cmdp_nbdev.objective import Batch, Signal
from cmdp_nbdev.plot import nats_figure
from cmdp_nbdev.reward import OFFERED, length_cost
from cmdp_nbdev.rollout import generate
from cmdp_nbdev.task import chain_reward


def record(prompt, correct=True, spent=0.5, kl=0.5, reward=1.0, **more) -> dict:
    "A record as evaluate_records makes it, as far as summaries read it."
    return {
        "prompt": prompt,
        "correct": correct,
        "spent": spent,
        "within_budget": spent <= 1.0,
        "kl": kl,
        "reward": reward,
        "terminated": True,
        "completion_ids": [1, 2, 3],
        **more,
    }


def run_of(values, name="hit") -> list[dict]:
    "A run from values (P,) or (P, G)."
    cells = [(p, v) for p, cell in enumerate(values) for v in np.atleast_1d(cell)]
    return [{"prompt": str(p), name: v if v is None else float(v)} for p, v in cells]


def runs_of(table, name="hit") -> list[list[dict]]:
    "Runs from values (S, P) or (S, P, G)."
    return [run_of(values, name) for values in np.asarray(table)]


def ends(result, name) -> tuple:
    "The interval of a rate or mean."
    return result[f"{name}_low"], result[f"{name}_high"]


def width(result, name) -> float:
    "The width of that interval."
    return result[f"{name}_high"] - result[f"{name}_low"]


def near(*numbers, **tolerance) -> tuple:
    "Approximately these numbers."
    return tuple(pytest.approx(x, **tolerance) for x in numbers)


# --- summarize


def test_summary_by_hand():
    "Every mean has ends; rates exact, others normal; percentiles none."
    rows = [
        record("a", True, 0.5, 0.2),
        record("b", False, 1.5, 0.4, 0.0),
        record("c", True, 2.0, 0.6, None, valid=True),
        record("d", True, 0.1, 0.8),
    ]
    for r in rows:
        r.setdefault("valid", None)
    s = summarize(rows, metrics=["valid"])
    rates = ("accuracy", "satisfaction_rate", "accuracy_within_budget")
    assert [s[k] for k in rates] == [0.75, 0.5, 0.5]
    assert s["reward_mean"] == pytest.approx(2 / 3)
    assert s["valid"] == 1.0
    assert s["n_eval"] == 4
    assert ends(s, "accuracy") == satisfaction_interval(3, 4)
    assert ends(s, "valid") == satisfaction_interval(1, 1)
    half = 1.959964 * np.std([0.2, 0.4, 0.6, 0.8]) / 2
    assert ends(s, "kl_mean") == near(0.5 - half, 0.5 + half)
    assert s["kl_p95"] == pytest.approx(0.77)
    means = [k for k in VALUES if not k.endswith("_p95")]
    for k in means:
        assert s[f"{k}_low"] <= s[k] <= s[f"{k}_high"]
    assert "kl_p95_low" not in s
    assert s["truncated_rate_high"] > 0


def test_summary_at_another_budget():
    "Methods that do not use d are trained once and judged at every budget."
    rows = [record(str(i), spent=0.1 * i) for i in range(10)]
    assert summarize(rows, Budget(0.35))["satisfaction_rate"] == 0.4
    assert summarize(rows)["satisfaction_rate"] == 1.0
    assert [r["within_budget"] for r in at_budget(rows, Budget(0.0))] == [True] + [False] * 9
    assert rows[9]["within_budget"]


def test_summary_of_several_budgets():
    "Each further budget has its own rate; 'all' means every one of them, and the divergence."
    rows = []
    for i in range(4):
        length = {"spent_length": float(i), "within_budget_length": float(i < 3)}
        rows.append(record(str(i), spent=2.0 * (i == 0), **length))
    s = summarize(rows, constraints=["length"])
    assert s["satisfaction_rate"] == 0.75
    assert s["satisfaction_rate_length"] == 0.75
    assert s["spent_mean_length"] == 1.5
    assert s["satisfaction_rate_all"] == 0.5
    assert ends(s, "satisfaction_rate_all") == satisfaction_interval(2, 4)
    assert "satisfaction_rate_all" not in summarize(rows)
    assert compare(rows, rows, "within_budget_length")["method"] == "exact"


def test_summary_without_values():
    "No records is an error; a metric that never applies is NaN, not a crash and not a zero."
    with pytest.raises(ValueError, match="no records to summarize"):
        summarize([])
    s = summarize([record("a", reward=None)])
    assert math.isnan(s["reward_mean"])
    assert math.isnan(s["reward_mean_low"])
    assert s["accuracy"] == 1.0
    with pytest.raises(ValueError, match="metric 'bleu' is unknown; choose one of accuracy"):
        summarize([record("a")], metrics=["bleu"])
    assert metric_values([], "anything").shape == (0,)


# --- pairs


counts = st.integers(0, 40)


@given(counts, counts, counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_difference_interval_is_antisymmetric_and_agrees_with_mcnemar(wins, losses, ties, level):
    "Swapping the students turns the interval round; one beside 0 needs a significant test."
    n = wins + losses + ties
    if not n:
        return
    low, high = difference_interval(wins, losses, n, level)
    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert difference_interval(losses, wins, n, level) == near(-high, -low)
    inner = difference_interval(wins, losses, n, level - 0.1)
    assert low <= inner[0] + 1e-12
    assert inner[1] <= high + 1e-12
    if low > 0 or high < 0:
        assert mcnemar(wins, losses) < 1 - level
    decided = wins + losses
    p_value = binomtest(wins, decided).pvalue if decided else 1.0
    assert mcnemar(wins, losses) == pytest.approx(p_value)


def test_mcnemar_by_hand():
    "Of 2**10 equally likely sequences, 2 (1 + 10) are as uneven as nine to one."
    assert mcnemar(9, 1) == pytest.approx(22 / 1024, abs=1e-12)


def least_coverage(n, truths) -> float:
    "Of these probabilities to win and lose, the smallest that the interval holds the difference."
    outcomes = [(w, k, n - w - k) for w in range(n + 1) for k in range(n + 1 - w)]
    low, high = np.transpose([difference_interval(w, k, n) for w, k, _ in outcomes])

    def coverage(p, q):
        chance = multinomial.pmf(outcomes, n, [p, q, 1 - p - q])
        holds = (low <= p - q + 1e-12) & (p - q <= high + 1e-12)
        return chance[holds].sum()

    return min(coverage(p, q) for p, q in truths)


@pytest.mark.parametrize(
    "p,q,n", [(0.02, 0.0, 30), (0.3, 0.1, 15), (0.05, 0.05, 40), (0.9, 0.05, 12), (0.0, 0.0, 5)]
)
def test_difference_interval_covers(p, q, n):
    "Exact means: it holds the truth with at least its level, also for small n."
    assert least_coverage(n, [(p, q)]) >= 0.95


def test_difference_interval_covers_on_a_grid():
    "The same for every pair of probabilities on a grid."
    grid = np.linspace(0.02, 0.9, 12)
    assert least_coverage(20, [(p, q) for p in grid for q in grid if p + q < 1]) >= 0.95


A, B = record("a"), record("b")
NO_REWARD = record("a", reward=None)


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda: difference_interval(-1, 2, 5), "must be >= 0, got -1 and 2"),
        (lambda: difference_interval(3, 3, 5), "satisfied=6, n=5"),
        (lambda: difference_interval(0, 0, 0), "n=0"),
        (lambda: compare([], []), "a run is empty"),
        (lambda: compare([[A], []], [[A]] * 2), "a run is empty"),
        (lambda: compare([A], [A, B]), "only one of them has 'b'"),
        (lambda: compare([A, B], [A]), "same prompts; 1 of 2 have no answer in one of them, 'b'"),
        (lambda: compare([A, B], [A, B], "bleu"), "choose one of"),
        (lambda: compare([[A]] * 2, [[A]] * 3), "a has 2 runs and b has 3"),
        (
            lambda: compare([NO_REWARD], [A], "reward_mean"),
            "no prompt has a value of 'reward_mean'",
        ),
        (lambda: summarize_seeds([]), "a run is empty"),
        (lambda: summarize_seeds([[A], [B]]), "same prompts"),
    ],
)
def test_what_cannot_be_compared(call, match):
    "Different prompts, different numbers of seeds, or nothing at all must not give a number."
    with pytest.raises(ValueError, match=match):
        call()


def test_exact_comparison_by_hand():
    "Binary outcomes, one run: wins and losses are counted by prompt, whatever the order."
    a = [record(str(i), correct=i < 8) for i in range(10)]
    b = [record(str(i), correct=i < 5 or i == 9) for i in range(10)][::-1]
    c = compare(a, b)
    assert (c["a"], c["b"], c["method"], c["n_prompts"]) == (0.8, 0.6, "exact", 10)
    assert c["difference"] == pytest.approx(0.2)
    assert (c["low"], c["high"]) == difference_interval(3, 1, 10)
    assert c["p_value"] == mcnemar(3, 1)
    same = compare(a, a)
    assert same["difference"] == 0
    assert same["p_value"] == 1
    assert same["low"] < -0.2
    assert same["high"] > 0.2  # ten equal pairs prove little


def test_a_student_does_not_differ_from_itself():
    "Pairs are made by prompt, not by position."
    kl = np.random.default_rng(0).gamma(2.0, 0.4, 60)
    run = [record(str(i), correct=i % 3 > 0, kl=float(x)) for i, x in enumerate(kl)]
    assert compare(run, run[::-1])["difference"] == 0
    assert compare(run, run, "kl_mean")["high"] == 0


def test_paired_bootstrap_is_reproducible_and_paired():
    "The seed fixes it; what both students share cancels."
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 300)

    def run(shift):
        kl = hard + shift + rng.normal(0, 0.1, 300)
        return [record(str(i), kl=float(x)) for i, x in enumerate(kl)]

    a, b = run(1.0), run(0.0)
    c = compare(a, b, "kl_mean")
    assert c == {**compare(a, b, "kl_mean"), "p_value": c["p_value"]}
    assert math.isnan(c["p_value"])
    assert c["method"] == "bootstrap over prompts"
    assert compare(a, b, "kl_mean", seed=1)["low"] != c["low"]
    assert 0.95 < c["low"] < c["difference"] < c["high"] < 1.05
    assert (c["high"] - c["low"]) / 2 == pytest.approx(1.96 * 0.1 * 2**0.5 / 300**0.5, rel=0.15)
    p95 = compare(a, b, "kl_p95")
    assert p95["low"] <= p95["difference"] <= p95["high"]
    first, second = (np.quantile([r["kl"] for r in run], 0.95) for run in (a, b))
    assert p95["difference"] == pytest.approx(first - second)


def test_missing_values_leave_their_prompt_out():
    "A prompt that one side has no reward for must not count for the other side alone."
    a = [record("x", reward=1.0), record("y", reward=None), record("z", reward=0.0)]
    b = [record("x", reward=0.0), record("y", reward=0.0), record("z", reward=0.0)]
    c = compare(a, b, "reward_mean")
    assert (c["a"], c["b"], c["n_prompts"], c["method"]) == (0.5, 0.0, 2, "exact")
    assert summarize_seeds([a, b], ["reward_mean"])["reward_mean"] == pytest.approx(0.25)
    twice = [record("y", reward=None), record("y", reward=1.0)]  # one of two has a value
    for sides in ((a[:1] + twice, b + twice[1:]), (b + twice[1:], a[:1] + twice)):
        assert compare(*(rows[:2] + rows[-1:] for rows in sides), "reward_mean")["n_prompts"] == 2
    none = summarize_seeds([[record("x", reward=None)], [record("x")]], ["reward_mean"])
    assert math.isnan(none["reward_mean_low"])


def test_completions_of_one_prompt_stay_together():
    "Eight completions of a prompt are not eight prompts: the interval must not shrink by them."
    rng = np.random.default_rng(0)
    chance = (rng.random(100) < 0.5).astype(float)
    once, often = run_of(chance), run_of(np.repeat(chance[:, None], 8, 1))
    one, eight = (summarize_seeds(r, ["hit"]) for r in (once, often))
    assert one["hit"] == eight["hit"]
    assert width(eight, "hit") == pytest.approx(width(one, "hit"), rel=0.2)
    c = compare(often, run_of(np.zeros((100, 8))), "hit")
    assert c["method"] == "bootstrap over prompts"
    assert c["high"] - c["low"] > 0.15
    uneven = once + [{"prompt": "0", "hit": 1.0}]  # one prompt answered twice
    assert summarize_seeds(uneven, ["hit"])["hit"] == pytest.approx((chance.sum() + 1) / 101)


# --- seeds


def test_one_run_is_exact_and_its_own_summary():
    "A single list of records must give what summarize gives for rates."
    rows = [record(str(i), correct=i % 3 > 0) for i in range(30)]
    one, s = summarize_seeds(rows, ["accuracy", "kl_mean"]), summarize(rows)
    for k in ("accuracy", "accuracy_low", "accuracy_high"):
        assert one[k] == s[k]
    assert summarize_seeds([rows]) == summarize_seeds(rows)
    assert one["n_seeds"] == 1


def test_seeds_that_differ_give_the_t_interval():
    "Without any spread between prompts the interval is Student's over seeds."
    each = np.array([0.1, 0.2, 0.25, 0.3, 0.15])
    runs = runs_of(np.repeat(each[:, None], 50, 1))
    r = summarize_seeds(runs, ["hit"])
    half = student_t.ppf(0.975, 4) * each.std(ddof=1) / 5**0.5
    assert (r["hit"], *ends(r, "hit")) == near(0.2, 0.2 - half, 0.2 + half)
    c = compare(runs, runs_of(np.zeros((5, 50))), "hit")
    assert c["method"] == "seeds and prompts"
    assert c["p_value"] == pytest.approx(ttest_1samp(each, 0).pvalue)
    assert c["low"] == pytest.approx(0.2 - half)


def test_seeds_that_agree_leave_the_prompts():
    "Five copies of one run know no more about prompts than one."
    hits = (np.random.default_rng(0).random(200) < 0.7).astype(float)
    one, five = (summarize_seeds(runs_of([hits] * n), ["hit"]) for n in (1, 5))
    assert width(five, "hit") == pytest.approx(width(one, "hit"), rel=0.1)
    sure = summarize_seeds(runs_of(np.ones((5, 40))), ["hit"])
    assert sure["hit"] == sure["hit_high"] == 1
    certain = satisfaction_interval(200, 200)
    assert sure["hit_low"] == certain[0]  # nothing varied: still not certain
    assert compare(runs_of([hits] * 5), runs_of([hits] * 5), "hit")["p_value"] == 1


def bootstrapped(table, resamples, seed) -> np.ndarray:
    "Means of runs (S, P) on prompts drawn again, (resamples, S): the bootstrap in two lines."
    rng, P = np.random.default_rng(seed), table.shape[1]
    return np.array([table[:, rng.integers(P, size=P)].mean(1) for _ in range(resamples)])


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_ends_of_one_run_are_percentiles(level):
    "Both ends, at the level that is asked for: skewed values show an end that is another's."
    values = np.random.default_rng(3).exponential(size=(1, 30))
    r = summarize_seeds(runs_of(values, "kl"), ["kl_mean"], level, resamples=200, seed=5)
    draws = bootstrapped(values, 200, 5)[:, 0]
    tail = (1 - level) / 2
    assert ends(r, "kl_mean") == near(*np.quantile(draws, [tail, 1 - tail]))
    assert r["kl_mean_low"] < r["kl_mean"] < r["kl_mean_high"]


def test_the_three_variances_by_pairs():
    "Prompts that two seeds share move both: their covariance, over all pairs, is theirs alone."
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((400, 1)) + 0.5 * rng.standard_normal((400, 3))
    seeds, shared, prompts = _variances(np.array([0.2, 0.5, 1.1]), draws)
    assert seeds == pytest.approx(np.var([0.2, 0.5, 1.1], ddof=1) / 3)
    pairs = [np.cov(draws[:, i], draws[:, j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert shared == pytest.approx(np.mean(pairs))
    assert prompts == pytest.approx(draws.mean(1).var(ddof=1))
    against = np.stack([draws[:, 0], -draws[:, 0]], 1)  # no variance is negative
    assert _variances(np.array([0.0, 1.0]), against)[1] == 0


@pytest.mark.parametrize(
    "variances, S, P, error, df",
    [
        ((3.0, 6.0, 2.0), 3, 5, 3.0, 81 / (9 / 2 + 36 / 4)),  # Satterthwaite
        ((0.0, 1.0, 4.0), 3, 5, 2.0, 4.0),  # prompts alone
        ((2.0, 2.0, 4.0), 3, 9, 2.0, 8.0),
        ((0.0, 0.0, 4.0), 2, 1, 2.0, 1.0),  # of a single prompt
        ((9.0, 0.0, 4.0), 4, 1, 3.0, 3.0),
    ],
)
def test_errors_and_their_degrees_of_freedom(variances, S, P, error, df):
    "By hand, both arms: whichever of the two variances is larger."
    assert _error(variances, S, P) == near(error, df)


def test_the_interval_of_seeds_by_hand():
    "Its half is Student's quantile times the error, its p-value has two sides."
    table = np.random.default_rng(1).standard_normal((3, 25)) + np.array([[0.1], [0.5], [0.9]])
    each, low, high, p = _spread([table[..., None]], "kl", 0.9, 150, 2)
    error, df = _error(_variances(table.mean(1), bootstrapped(table, 150, 2)), 3, 25)
    half = student_t.ppf(0.95, df) * error
    assert (low, high) == near(table.mean() - half, table.mean() + half)
    assert p == pytest.approx(2 * student_t.sf(table.mean() / error, df)) and 0 < p < 1
    assert each == pytest.approx(table.mean(1))
    turned = _spread([-table[..., None]], "kl", 0.9, 150, 2)
    assert turned[1:] == near(-high, -low, p)
    rare = np.array([[1.0, math.nan, math.nan], [0.2, 0.4, 0.6]])  # draws without the first prompt
    kept = _resample([rare[..., None]], "kl", 50, 0)
    assert 0 < len(kept) < 50 and np.isfinite(kept).all()
    for value, sure in ((0.0, 1.0), (0.5, 0.0)):  # nothing varies at all
        assert _spread([np.full((2, 4, 1), value)], "kl", 0.9, 20, 0)[3] == sure


def test_a_rate_keeps_the_wider_of_two_intervals():
    "Never narrower than Clopper-Pearson of all outcomes, never outside of [0, 1], at any level."
    x = np.array([1.0, 1, 1, 0, 1, math.nan, 1, 1]).reshape(2, 4, 1)
    exact = satisfaction_interval(6, 7, 0.8)
    assert _rate_ends(x, 0.8, 0.9, 0.8) == exact
    assert _rate_ends(x, 0.2, 0.999, 0.8) == (0.2, 0.999)
    assert _rate_ends(x, -0.2, 1.2, 0.8) == (0.0, 1.0)
    assert _rate_ends(x[:1], 0.2, 0.999, 0.8) == satisfaction_interval(3, 4, 0.8)
    twice = np.concatenate([x[:1], x[:1]], 2)  # two completions of a prompt are not alone
    assert _rate_ends(twice, 0.2, 0.999, 0.8) == (0.2, 0.999)


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 3), st.integers(0, 1000))
def test_seeds_interval_holds_the_mean_and_stays_a_rate(S, P, G, seed):
    "Whatever the outcomes, 0 <= low <= rate <= high <= 1, for any number of seeds and prompts."
    table = np.random.default_rng(seed).integers(0, 2, (S, P, G))
    r = summarize_seeds(runs_of(table), ["hit"], resamples=50)
    assert 0 <= r["hit_low"] <= r["hit"] + 1e-12
    assert r["hit"] <= r["hit_high"] + 1e-12
    assert r["hit_high"] <= 1
    assert r["hit"] == pytest.approx(table.mean())


def simulated(rng, S=5, P=200) -> np.ndarray:
    "Outcomes (S, P, 1) as in nbs/09_evaluate: seeds differ in skill, prompts in difficulty."
    skill = 0.2 * rng.standard_normal((S, 1))
    ease = 0.8 * rng.standard_normal((1, P))
    hits = rng.random((S, P)) < norm.cdf(1.0 + skill + ease)
    return hits[..., None].astype(float)


def test_seeds_interval_covers_new_seeds_and_prompts():
    "Simulated studies: how often the interval holds the mean over all seeds and prompts."
    truth = norm.cdf(1.0 / math.sqrt(1 + 0.2**2 + 0.8**2))
    rng, held = np.random.default_rng(1), []
    for _ in range(800):
        _, low, high = _mean_of_seeds(simulated(rng), "hit", level=0.95, resamples=100, seed=0)
        held.append(low <= truth <= high)
    assert np.mean(held) > 0.92


# --- frontier


def test_frontier_and_envelope_by_hand():
    "A beaten run is left out, and mixtures reach what lies between two runs."
    points = [(0.6, 0.98), (0.9, 0.95), (0.93, 0.88), (0.97, 0.80), (0.95, 0.93)]
    rows = [{"satisfaction_rate": s, "accuracy": a} for s, a in points]
    assert [r["accuracy"] for r in frontier(rows)] == [0.98, 0.95, 0.93, 0.80]
    assert np.allclose(envelope(rows, [0.5, 0.75, 0.96]), [0.98, 0.965, 0.865])
    assert np.isnan(envelope(rows, 0.99))  # nobody is that safe
    assert envelope(rows, 0.93) > 0.9365  # above the chord of its neighbours
    points = [(0.5, 0.98), (0.6, 0.90), (0.7, 0.92), (0.9, 0.90), (0.95, 0.50), (1.0, 0.40)]
    rows = [{"satisfaction_rate": s, "accuracy": a} for s, a in points]
    at = [0.6, 0.8, 0.95]  # between two that are not neighbours
    assert np.allclose(envelope(rows, at), [0.96, 0.92, 0.65])


def test_frontier_and_envelope_against_the_kl_by_hand():
    "Where less is better."
    points = [(0.1, 0.8), (0.3, 0.9), (0.4, 0.85), (2.0, 0.99)]
    rows = [{"kl_mean": kl, "accuracy": a} for kl, a in points]
    against_kl = {"x": "kl_mean", "minimize_x": True}
    assert [r["accuracy"] for r in frontier(rows, **against_kl)] == [0.8, 0.9, 0.99]
    assert np.allclose(envelope(rows, [0.2, 0.3, 9.0], **against_kl), [0.85, 0.9, 0.99])
    assert np.isnan(envelope(rows, 0.05, **against_kl))


def rows_of(pairs) -> list[dict]:
    "Results from pairs of twentieths."
    return [{"satisfaction_rate": x / 20, "accuracy": y / 20} for x, y in pairs]


twentieths = st.integers(0, 20)
points = st.lists(st.tuples(twentieths, twentieths), min_size=1, max_size=12).map(rows_of)


@given(points, twentieths)
def test_less_is_better_mirrors_more_is_better(rows, at):
    "The frontier against the KL is the frontier against minus the KL."
    mirrored = [{"kl_mean": -r["satisfaction_rate"], "accuracy": r["accuracy"]} for r in rows]
    against_kl = {"x": "kl_mean", "minimize_x": True}
    there = [(-r["kl_mean"], r["accuracy"]) for r in frontier(mirrored, **against_kl)]
    here = [(r["satisfaction_rate"], r["accuracy"]) for r in frontier(rows)]
    assert there == here[::-1]
    best = float(envelope(rows, at / 20))
    assert best == pytest.approx(float(envelope(mirrored, -at / 20, **against_kl)), nan_ok=True)
    safest = max(r["satisfaction_rate"] for r in rows)
    assert math.isnan(best) == (at / 20 > safest)


@given(points)
def test_envelope_is_concave_and_above_every_run(rows):
    "A mixture of students can do what each of them does."
    xs = np.linspace(0, max(r["satisfaction_rate"] for r in rows), 9)
    e = envelope(rows, xs)
    assert (np.diff(e) <= 1e-9).all()
    assert (np.diff(e, 2) <= 1e-9).all()
    for r in rows:
        assert envelope(rows, r["satisfaction_rate"]) >= r["accuracy"] - 1e-9


def study(center, S, spread, rng) -> list[dict]:
    "Rows of one setting."
    runs = np.array(center) + spread * rng.standard_normal((S, 2))
    return [{"satisfaction_rate": x, "accuracy": y} for x, y in runs]


def test_band_is_students_interval_for_a_single_setting():
    "With one setting the envelope is its mean accuracy, and its band that of the seeds."
    rng = np.random.default_rng(0)
    rows = study((0.9, 0.8), 8, 0.01, rng)
    for r in rows:
        r["satisfaction_rate"] = 0.9
    middle, low, high = envelope_band([rows], [0.5, 0.95], resamples=4000)
    acc = np.array([r["accuracy"] for r in rows])
    half = student_t.ppf(0.975, 7) * acc.std(ddof=1) / 8**0.5
    assert middle[0] == pytest.approx(acc.mean())
    assert high[0] - low[0] == pytest.approx(2 * half, rel=0.1)
    assert np.isnan([middle[1], low[1], high[1]]).all()  # nobody is that safe


def test_draws_of_a_mean_point_by_hand():
    "Of runs at 0, 0 and 3 both ways: means 0 to 3 around 1, widened from z to Student's t."
    rows = [{"x": x, "y": y} for x, y in ((0, 1), (0, 1), (3, -2))]
    draws = _point_draws(rows, ("x", "y"), 0.9, 500, np.random.default_rng(0))
    wider = (3 / 2) ** 0.5 * student_t.ppf(0.95, 2) / norm.ppf(0.95)
    expected = [1 + wider * k for k in (-1, 0, 1, 2)]
    assert sorted({round(x, 9) for x in draws[:, 0]}) == pytest.approx(expected)
    assert draws.shape == (500, 2) and np.allclose(draws.sum(1), 1)


def test_gain_over_the_envelope():
    "On the envelope there is no gain, above it there is; where the envelope ends, that is said."
    rng = np.random.default_rng(3)
    fixed = [study(c, 5, 0.003, rng) for c in ((0.8, 0.95), (0.9, 0.9), (0.97, 0.8))]
    on, above, beyond = (
        above_envelope(study(c, 5, 0.003, rng), fixed)
        for c in ((0.85, 0.925), (0.85, 0.955), (0.995, 0.8))
    )
    assert on["low"] < 0 < on["high"]
    assert above["low"] > 0.01
    assert above["difference"] == pytest.approx(0.03, abs=0.01)
    assert above["unreached"] == 0
    assert math.isnan(beyond["difference"])
    assert beyond["unreached"] > 0.9

    def against_kl(rows):
        return [{"kl_mean": 1 - r["satisfaction_rate"], "accuracy": r["accuracy"]} for r in rows]

    ours = [{"kl_mean": 0.15, "accuracy": 0.955}] * 2
    gain = above_envelope(ours, [against_kl(rows) for rows in fixed], "kl_mean", minimize_x=True)
    assert gain["low"] > 0


def test_gains_are_seldom_claimed_wrongly():
    "On the envelope a gain is claimed in few simulated studies, three points above it in many."
    rng, wrong, right = np.random.default_rng(2), [], []
    curve = [(0.70, 0.97), (0.80, 0.955), (0.90, 0.92), (0.95, 0.88), (0.98, 0.82)]
    on = float(envelope([{"satisfaction_rate": s, "accuracy": a} for s, a in curve], 0.93))
    noise = np.array([0.008, 0.012])
    for _ in range(60):
        fixed = [study(point, 5, noise, rng) for point in curve]
        level, above = (study((0.93, on + gain), 5, noise, rng) for gain in (0.0, 0.03))
        wrong.append(above_envelope(level, fixed, resamples=120)["low"] > 0)
        right.append(above_envelope(above, fixed, resamples=120)["low"] > 0)
    assert np.mean(wrong) <= 0.05
    assert np.mean(right) > 0.3


def test_single_runs_need_their_own_intervals():
    "One seed has no spread of its own; its row must bring one."
    row = {"satisfaction_rate": 0.9, "accuracy": 0.8}
    missing = "satisfaction_rate_low, satisfaction_rate_high, accuracy_low, accuracy_high"
    with pytest.raises(ValueError, match=missing):
        envelope_band([[row]], [0.5])
    row |= {"satisfaction_rate_low": 0.88, "satisfaction_rate_high": 0.92}
    row |= {"accuracy_low": 0.77, "accuracy_high": 0.83}
    _, low, high = envelope_band([[row]], [0.5], resamples=4000)
    assert (low[0], high[0]) == near(0.77, 0.83, abs=0.004)


# --------------------------------------------------- names, verdicts, JSON


def answered(model, tokenizer, data, **more):
    "Records of eight completions."
    few = dict(max_completion_length=20, batch_size=8, **more)
    return evaluate_records(model, model, data.select(range(8)), tokenizer, **few)


def test_an_evaluation_in_portions(pair, held_out, monkeypatch):
    "As many prompts at a time as make `batch_size` completions, one at least; all of them."
    student, _, tok = pair
    made, asked = generate, []

    def watched(model, tokenizer, prompts, *more):
        asked.append(len(prompts))
        return made(model, tokenizer, prompts, *more)

    monkeypatch.setattr("cmdp_nbdev.evaluate.generate", watched)
    data, how = held_out.select(range(5)), {"num_generations": 2, "max_completion_length": 2}
    for size, portions in ((4, [2, 2, 1]), (5, [2, 2, 1]), (1, [1] * 5), (256, [5])):
        rows = evaluate_records(student, student, data, tok, chain_reward, batch_size=size, **how)
        assert asked == portions and [r["prompt"] for r in rows[::2]] == data["prompt"][:]
        asked.clear()


def sometimes(completions):
    "A reward that has something to say of every second completion."
    return [None if i % 2 else float(i % 4 == 0) for i in range(len(completions))]


def test_a_rate_is_over_what_has_a_verdict(pair, held_out):
    "None is neither right nor wrong: of 1, None, 0, None, ... a half is right, not a quarter."
    student, _, tok = pair
    records = answered(student, tok, held_out, reward_funcs=sometimes)
    verdict = {0: True, 2: False}
    expected = [
        verdict.get(i % 4) if r["terminated"] else r["correct"] for i, r in enumerate(records)
    ]
    assert [r["correct"] for r in records] == expected
    assert all((r["correct"] is None) == (r["reward"] is None) for r in records)
    for r, correct in zip(records, [True, None, False, None] * 2):
        r |= {"correct": correct, "within_budget": True}
    found = summarize(records)
    assert found["accuracy"] == found["accuracy_within_budget"] == 0.5
    assert (found["n_eval"], found["n_verdict"]) == (8, 4)
    assert ends(found, "accuracy") == satisfaction_interval(2, 4)
    assert "n_verdict" not in summarize(records[:1])
    nothing = [{**r, "correct": None, "reward": None} for r in records]
    assert math.isnan(summarize(nothing)["accuracy"]) and summarize(nothing)["n_verdict"] == 0
    assert compare(records, records)["n_prompts"] == 4


def step_of(rewards, group_ids, terminated=None):
    "Metrics of an update with these rewards."
    rewards, n = torch.tensor(rewards), len(rewards)
    mask = torch.ones(n, 1)
    batch = Batch(rewards, torch.tensor(group_ids), mask, -mask, -mask, {"divergence": mask})
    signal = Signal(torch.zeros(n), torch.zeros(n, 1))
    terminated = torch.ones(n, dtype=torch.bool) if terminated is None else terminated
    return step_metrics(batch, mask, signal, Budget(2.0), terminated, correct_at=1.0)


def test_an_update_without_verdicts():
    "Rates over those there are; prompts whose completions show no difference teach nothing."
    nan = math.nan
    found = step_of([1.0, nan, 0.0, nan, nan, nan], [0, 0, 1, 1, 2, 2])
    assert found["accuracy"] == found["accuracy_within_budget"] == found["reward"] == 0.5
    assert found["n_verdict"] == 2
    assert found["frac_reward_zero_std"] == 1.0  # one verdict or none: nothing to compare
    assert step_of([1.0, 0.0, nan, nan], [0, 0, 1, 1])["frac_reward_zero_std"] == 0.5
    nothing = step_of([nan, nan], [0, 0])
    assert math.isnan(nothing["accuracy"]) and nothing["n_verdict"] == 0
    assert nothing["frac_reward_zero_std"] == 1.0
    every = step_of([1.0, 1.0, 0.0, 1.0], [0, 0, 1, 1], torch.tensor([True, False, True, True]))
    assert every["accuracy"] == 0.5 and "n_verdict" not in every
    assert every["truncated_rate"] == 0.25 and found["truncated_rate"] == 0


COLLIDING = {
    **{f"a metric {k}": ({k: sometimes}, {}, {}, k) for k in (*RECORD, *VALUES)},
    "the end of an interval": ({"accuracy_low": sometimes}, {}, {}, "accuracy_low"),
    "a metric and its end": ({"a": sometimes, "a_high": sometimes}, {}, {}, "a_high"),
    "a count": ({"n_eval": sometimes}, {}, {}, "n_eval"),
    "a metric of a constraint": ({"spent_length": sometimes}, {"length"}, {}, "spent_length"),
    **{f"a constraint {k}": ({}, {k}, {}, k) for k in ("mean", "p95", "all", "low", "high")},
    "a column that is a metric": ({"level": sometimes}, {}, {"level"}, "level"),
    "a column of a constraint": ({}, {"length"}, {"spent_length"}, "spent_length"),
    **{f"a column {k}": ({}, {}, {k}, k) for k in (*OFFERED, *RECORD[3:])},
}


@pytest.mark.parametrize("name", COLLIDING)
def test_names_that_collide(name, _pair, held_out):
    "One of two things of one name would be lost; refused before anything is sampled, by name."
    student, teacher, tok = _pair
    metrics, constraints, columns, word = COLLIDING[name]
    constraints = {k: (length_cost, Budget(9)) for k in constraints}
    data = Dataset.from_dict({k: ["1"] for k in ("prompt", *columns)})
    names = dict(metrics=metrics, constraints=constraints)
    with pytest.raises(ValueError, match=f"'{word}'.*(choose another name|rename_column)"):
        evaluate(student, teacher, data, tok, sometimes, **names)


@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("column", ["completions", "terminated", "rollout", "trainer_state"])
def test_columns_that_no_function_would_see(where, column, make_trainer, held_out):
    data = held_out.add_column(column, [0] * len(held_out))
    with pytest.raises(ValueError, match=f"{where}: column '{column}'.*rename_column"):
        make_trainer(**{where: data})


@pytest.mark.parametrize(
    "metrics", [{"correct": sometimes}, [sometimes], {"right": 3}, {1: sometimes}]
)
def test_metrics_of_ones_own(metrics, make_trainer):
    with pytest.raises(ValueError, match="eval_metrics"):
        make_trainer(eval_metrics=metrics)


def test_names_that_do_not_collide(make_trainer, held_out, tmp_path):
    "A given completion, and numbers of an earlier model among the training prompts."
    data = held_out.add_column("completion", ["1"] * len(held_out))
    train = data.add_column("reward", [0.0] * len(data))
    trainer = make_trainer(train_dataset=train, eval_dataset=data, eval_metrics={"mine": sometimes})
    result, records = trainer.evaluate(return_records=True)
    assert "mine" in result and any(r["completion"] != "1" for r in records)


@pytest.fixture
def folders(pair, tmp_path):
    "A student and its teacher as somebody else saved them."
    for name, model in zip(("student", "teacher"), pair):
        model.save_pretrained(tmp_path / name)
        pair[2].save_pretrained(tmp_path / name)
    return tmp_path / "student", tmp_path / "teacher"


@pytest.mark.parametrize("tokenizer", [None, "object", "folder"])
def test_models_by_folder_are_judged_as_the_objects(pair, folders, held_out, tokenizer):
    "Whoever did not train the student has folders; the numbers are the same to the last digit."
    tokenizer = {"object": pair[2], "folder": folders[0]}.get(tokenizer)
    expected = evaluate(*pair[:2], held_out, pair[2], chain_reward)
    assert evaluate(*folders, held_out, tokenizer, chain_reward) == expected
    assert evaluate(str(folders[0]), pair[1], held_out, tokenizer, chain_reward) == expected
    assert evaluate(pair[0], folders[1], held_out, tokenizer, chain_reward) == expected


def test_evaluating_refuses_what_it_cannot_judge(pair, folders, held_out):
    "One sentence with the argument's name, before anything is sampled."
    with pytest.raises(FileNotFoundError, match="model='no/folder/here': there is no such folder"):
        evaluate("no/folder/here", pair[1], held_out, pair[2], chain_reward)
    with pytest.raises(ValueError, match="reward_funcs must be functions .*got None"):
        evaluate(*pair[:2], held_out, pair[2], None)
    char_tokenizer("9876543210+-*=;#").save_pretrained(folders[1])
    with pytest.raises(ValueError, match="do not share a tokenizer"):
        evaluate(*folders, held_out, None, chain_reward)


def test_strict_json():
    "Every reader takes it, and settings are read back as they were."
    text = to_json({"a": math.nan, "b": [math.inf, -math.inf], "c": (1, True, None, "NaN")})
    expected = {"a": None, "b": ["inf", "-inf"], "c": [1, True, None, "NaN"]}
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert json.loads(to_json({"when": datetime.date(2026, 1, 2)})) == {"when": "2026-01-02"}


class Letters:
    "A tokenizer of single letters; ids 2 and 3 have one text."

    def decode(self, ids):
        return {0: "a", 1: "<b>", 2: "c", 3: "c"}[ids[0]]


def test_where_the_nats_went():
    "By text, most first, and by place; texts of one spelling are one; the sums are what was spent."
    records = [
        {"completion_ids": [0, 1, 2], "cost_per_token": [0.5, 3.0, 0.25]},
        {"completion_ids": [3, 0], "cost_per_token": ["0.25", 0.0]},  # as a file may hold it
    ]
    went = where_nats_went(records, Letters())
    found = [(r["token"], r["nats"], r["count"], r["mean"]) for r in went.tokens]
    assert found == [("<b>", 3.0, 1, 3.0), ("a", 0.5, 2, 0.25), ("c", 0.5, 2, 0.25)]
    assert [(r["position"], r["nats"]) for r in went.positions] == [
        ("1", 0.75),
        ("2", 3.0),
        ("3", 0.25),
    ]
    assert went.tokens[0]["share"] == went.positions[1]["share"] == 0.75
    assert str(went).splitlines()[1].split() == ['"<b>"', "3.00", "75.0%", "1", "3.0000"]
    assert "&lt;b&gt;" in went._repr_html_()
    assert nats_figure(went).data[0].y == (3.0, 0.5, 0.5)
    two = where_nats_went(records, Letters(), shown=1, bins=2)
    assert [r["position"] for r in two.positions] == ["1–2", "3"] and len(str(two).split("\n")) == 5
    assert str(where_nats_went([], Letters())) == ""
