"Judges of reasoning: orders swapped, arithmetic recomputed, verdicts read, servers misbehaving."

import json
import math
import random
import threading
import time
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cmdp_nbdev.judge import (
    JUDGE_TEMPLATE,
    agreement,
    arithmetic_steps,
    arithmetic_validity,
    chat_completion,
    check_arithmetic,
    endpoint_judge,
    judge_records,
    likelihood,
    model_judge,
    pairwise,
    parse_verdict,
    prompted_judge,
    score_judge,
)
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.rollout import generate
from cmdp_nbdev.task import chain_dataset, step_validity, write_chain

verdict = st.sampled_from([1.0, 0.0, 0.5, None])


def flip(v):
    "A verdict from the other side."
    return None if v is None else 1 - v


# --- scores


def test_scores_of_chat_messages_and_missing_scores():
    "The same judge must serve chat models, and 'does not apply' is no verdict."

    def chat(text):
        return [{"role": "assistant", "content": text}]

    steps = score_judge(step_validity)
    question = [{"role": "user", "content": "3+8="}]
    assert steps([question], [chat("3+8=1#1")], [chat("3+8=2#2")]) == [1.0]
    own = score_judge(itself)
    first, second = [1.0, math.nan, None, math.inf], [1.00001, 0.0, 0.0, math.inf]
    assert own([0] * 4, first, second) == [0.5, None, None, 0.5]
    assert score_judge(itself, margin=0)([0], [1.0], [1.00001]) == [0.0]


def test_scores_are_given_the_columns_they_name():
    "A dataset has more columns than a score asks for."

    def nothing_or_one(prompts, completions):
        return [None, 1.0]

    judge = score_judge(nothing_or_one)
    assert judge(["p"] * 2, ["a"] * 2, ["b"] * 2, answer=["5", "5"]) == [None, 0.5]
    prompt, good, bad = "3+8*7-2=", "3+8=1;1*7=7;7-2=5#5", "3+8=1;1*7=8;8-2=6#6"
    steps = score_judge(step_validity)
    assert steps([prompt] * 3, [good, bad, good], [bad, good, good]) == [1.0, 0.0, 0.5]


# --- pairwise


def itself(prompts, completions):
    "A score: completions that are numbers."
    return completions


def ask_about(judge, n, a="", b=""):
    "`pairwise` on `n` copies of one pair."
    return pairwise(judge, [""] * n, [a] * n, [b] * n)


def scripted(first: list, second: list):
    "A judge that gives the verdicts `first`, then `second`."
    answers = iter([first, second])
    return lambda prompts, a, b, **columns: next(answers)


INTERVALS = """
    win_rate loss_rate tie_rate net_win_rate position_bias inconsistent_rate
""".split()


@given(st.lists(st.tuples(verdict, verdict), min_size=1, max_size=40))
def test_only_verdicts_that_survive_the_swap_count(pairs):
    "A preference for one place, or a missing verdict, must never become a win."
    first, second = [f for f, _ in pairs], [s for _, s in pairs]
    n = len(pairs)
    r = ask_about(scripted(first, second), n, "a", "b")
    for v, f, s in zip(r["verdicts"], first, second):
        assert v == (f if f is not None and s is not None and f == 1 - s else 0.5)
    contradict = [f is not None and s is not None and f != 1 - s for f, s in pairs]
    assert r["win_rate"] + r["loss_rate"] + r["tie_rate"] == pytest.approx(1)
    assert r["unjudged_rate"] == pytest.approx((first + second).count(None) / (2 * n))
    assert r["inconsistent_rate"] == pytest.approx(sum(contradict) / n)
    assert r["orders"] == [first, [flip(s) for s in second]]
    for k in INTERVALS:
        assert r[f"{k}_low"] <= r[k] + 1e-12
        assert r[k] <= r[f"{k}_high"] + 1e-12
    mirrored = ask_about(scripted(second, first), n, "b", "a")  # the same questions from b's side
    assert mirrored["win_rate"] == r["loss_rate"]
    assert mirrored["net_win_rate"] == -r["net_win_rate"]
    assert mirrored["position_bias"] == r["position_bias"]
    assert mirrored["net_win_rate_low"] == pytest.approx(-r["net_win_rate_high"])
    json.dumps(r, allow_nan=False)


def test_a_judge_with_a_favourite_place_is_exposed():
    "Always the first, and mostly the first: all ties, and a bias whose interval excludes 0."
    n = 60
    always = ask_about(lambda prompts, a, b: [1.0] * n, n)
    assert [always[k] for k in ("tie_rate", "inconsistent_rate", "position_bias")] == [1, 1, 1]
    assert always["position_bias_low"] > 0.75
    assert always["position_p_value"] < 1e-12
    assert always["p_value"] == 1
    last = ask_about(lambda prompts, a, b: [0.0] * n, n)
    assert last["position_bias"] == -1
    assert last["position_bias_high"] < -0.75

    def mostly(prompts, a, b):
        scores = score_judge(itself)(prompts, a, b)
        return [1.0 if i % 3 else score for i, score in enumerate(scores)]

    r = ask_about(mostly, n, 1.0, 0.0)
    assert r["win_rate"] == pytest.approx(1 / 3)
    assert r["inconsistent_rate"] == pytest.approx(2 / 3)
    assert r["position_bias_low"] > 0.3


def test_all_ties_claim_nothing():
    "With equal solutions there is no winner, and the interval says how little that proves."
    n = 50
    r = pairwise(score_judge(step_validity), ["3+8="] * n, ["3+8=1#1"] * n, ["3+8=1#1"] * n)
    assert r["tie_rate"] == 1
    assert r["net_win_rate"] == 0
    assert r["p_value"] == 1
    assert r["net_win_rate_low"] < -0.1 < 0.1 < r["net_win_rate_high"]


def constant(*verdicts):
    "A judge that answers the same whatever it is asked."
    return lambda prompts, a, b, **columns: list(verdicts)


RECORD = {"prompt": "p", "completion": "x"}
NO_VERDICT = "a verdict is 1, 0, 0.5 or None"


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda j: pairwise(j, [], [], []), "prompts is empty"),
        (lambda j: pairwise(j, ["p"], ["a"], []), "b has 0"),
        (lambda j: pairwise(j, ["p"], ["a"], ["b"], answer=[1, 2]), "answer has 2"),
        (
            lambda j: pairwise(constant(), ["p"], ["a"], ["b"]),
            "one verdict per pair: 1 pairs, got 0",
        ),
        (lambda j: pairwise(constant(2), ["p"], ["a"], ["b"]), f"returned 2.0: {NO_VERDICT}"),
        (lambda j: judge_records(j, [RECORD], []), "same prompts"),
        (lambda j: judge_records(j, [RECORD] * 2, [RECORD] * 2), "one completion each"),
        (lambda j: pairwise(j, ["p"], ["a"], ["b", "b"]), "b has 2"),
        (lambda j: pairwise(constant(0.7), ["p"], ["a"], ["b"]), f"returned 0.7: {NO_VERDICT}"),
    ],
)
def test_bad_pairs(call, match):
    "Lists that do not belong together must not be judged against each other."
    with pytest.raises(ValueError, match=match):
        call(score_judge(step_validity))


def test_records_are_matched_by_prompt():
    "Evaluations order their prompts differently: pairing by position would mix up questions."
    prompts = chain_dataset(20)["prompt"]
    good = [{"prompt": p, "completion": write_chain(p), "answer": i} for i, p in enumerate(prompts)]
    bad = [{"prompt": p, "completion": "#5", "answer": i} for i, p in enumerate(prompts)][::-1]
    seen = []
    steps = score_judge(step_validity)

    def judge(prompts, a, b, answer):
        seen.append(list(answer))
        return steps(prompts, a, b)

    r = judge_records(judge, good, bad, ("answer",))
    assert r["win_rate"] == 1
    assert seen == [list(range(20))] * 2


# --- agreement


@given(st.lists(st.tuples(verdict, verdict), min_size=1, max_size=60))
def test_agreement_is_symmetric_and_bounded(pairs):
    "Which judge is named first must not matter."
    x, y = [p[0] for p in pairs], [p[1] for p in pairs]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    n = len(both)
    if not both:
        with pytest.raises(ValueError, match="no pair has a verdict"):
            agreement(x, y)
        return
    r, s = agreement(x, y, resamples=50), agreement(y, x, resamples=50)
    observed = sum(a == b for a, b in both) / n
    assert r["agreement"] == s["agreement"] == pytest.approx(observed)
    assert r["n_pairs"] == n
    assert r["kappa"] == pytest.approx(s["kappa"], nan_ok=True)
    assert math.isnan(r["kappa"]) or -1 <= r["kappa"] <= 1 + 1e-12
    kinds = {v for p in both for v in p}
    counts = [(sum(a == k for a, _ in both), sum(b == k for _, b in both)) for k in kinds]
    chance = sum(a * b for a, b in counts) / n**2
    if chance == 1:
        assert math.isnan(r["kappa"])
    else:
        assert r["kappa"] == pytest.approx((observed - chance) / (1 - chance))


def test_agreement_by_chance_is_none():
    "Independent judges agree often when one verdict is common; kappa must say it means nothing."
    rng = random.Random(0)
    x, y = ([1.0 if rng.random() < 0.9 else 0.0 for _ in range(3000)] for _ in range(2))
    r = agreement(x, y)
    assert r["agreement"] > 0.78
    assert abs(r["kappa"]) < 0.06
    assert r["kappa_low"] < 0 < r["kappa_high"]
    same = agreement([1.0] * 5, [1.0] * 5)
    assert same["agreement"] == 1
    assert math.isnan(same["kappa"])
    with pytest.raises(ValueError, match="same pairs"):
        agreement([1.0], [])


def test_agreement_of_a_textbook_table():
    "Joint counts 20, 5, 10, 15: agreement .7, of which .5 is chance."
    one = [1.0] * 25 + [0.0] * 25
    two = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    r = agreement(one, two)
    assert [r["agreement"], r["kappa"]] == pytest.approx([0.7, 0.4], abs=1e-12)
    assert agreement([1.0, 0.0, 0.5], [1.0, 0.0, 0.5])["kappa"] == 1
    half = agreement([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0])
    assert half["kappa"] == pytest.approx(0, abs=1e-5)


# --- arithmetic

styles = st.fixed_dictionaries(
    {
        "+": st.just("+"),
        "-": st.sampled_from("-−"),
        "*": st.sampled_from(["*", "×", "x", "·", r"\times"]),
        "/": st.sampled_from(["÷", r"\div"]),
    }
)
currencies, separators = st.sampled_from(["", "$"]), st.booleans()
numbers = st.tuples(st.integers(0, 10**7), currencies, separators, st.integers(0, 2))
operations = st.lists(st.sampled_from("+-*/"), min_size=4, max_size=4)
FRAMES = """
{}
So he has {}.
- {}
1. {}
({})
x = {}
Then {} apples, and
<<{}>>9
\\[{}\\]
**{}**
"""


def shown(value: int, currency: str, separators: bool, decimals: int) -> str:
    "value / 10**decimals, exactly."
    whole, part = divmod(value, 10**decimals)
    text = f"{whole:,}" if separators else str(whole)
    return currency + text + (f".{part:0{decimals}d}" if decimals else "")


def exact(parts: list, ops: list) -> Fraction | None:
    "The value by Python's own precedence."
    terms = [f"Fraction({value},{10**decimals})" for value, _, _, decimals in parts]
    try:
        return eval("".join(op + term for op, term in zip(["", *ops], terms)))
    except ZeroDivisionError:
        return None


@settings(max_examples=150)
@given(
    st.lists(numbers, min_size=2, max_size=5),
    operations,
    styles,
    st.integers(1, 999),
    st.sampled_from(FRAMES.strip().splitlines()),
)
def test_generated_calculations_are_found_and_judged_exactly(parts, ops, style, slip, frame):
    "Whatever the notation, a right result must count as right and a wrong one as wrong."
    ops = ops[: len(parts) - 1]
    value = exact(parts, ops)
    if value is None or (value * 100).denominator != 1 or abs(value) >= 10**30:
        return
    written = [f" {style[op] if op else ''} {shown(*p)}" for op, p in zip(["", *ops], parts)]
    left = "".join(written).strip()

    def write(v):
        return ("-" if v < 0 else "") + shown(abs(int(v * 100)), "", False, 2)

    assert check_arithmetic(frame.format(f"{left} = {write(value)}")) == (1, 1)
    assert check_arithmetic(frame.format(f"{left} = {write(value + slip)}")) == (1, 0)
    turned = check_arithmetic(frame.format(f"{write(value)} = {left}"))
    assert turned in ((1, 1), (0, 0))  # a number after a word is a label


@settings(max_examples=300)
@given(st.text(alphabet="0123456789+-*/x=.,%$() \n^≈ab×÷<>\\{}of", max_size=60))
@example("=" * 50)
@example("1/0=0/0=1%")
@example("9" * 5000 + "+1=2")
def test_no_text_breaks_the_checker(text):
    "Students write anything."
    steps = arithmetic_steps(text)
    found, right = check_arithmetic(text)
    assert 0 <= right <= found == len(steps) <= text.count("=") + text.count("≈")
    assert all(any(c.isdigit() for c in s) and ("=" in s or "≈" in s) for s, _ in steps)


@pytest.mark.parametrize(
    "text,found,right",
    [
        ("5km + 3km = 8km", 1, 1),
        ("2+3=5=1+4", 2, 2),
        ("3+2=6+4=10", 2, 1),
        ("1,234,567 * 2 = 2,469,134", 1, 1),
        ("12,34 + 1 = 35", 0, 0),
        (".5 + .5 = 1", 1, 1),
        ("6/2x3=9", 1, 1),
        ("60/2/3 = 10", 1, 1),
        ("60 / 2 / 3 = 10", 1, 1),
        ("12 ÷ 3/4 = 16", 1, 1),
        ("2/3 = 0.66", 1, 1),
        ("2/3 = 0.67", 1, 1),
        ("2/3 = 0.65", 1, 0),
        ("-2/3 = -0.66", 1, 1),
        ("-2/3 = -0.68", 1, 0),
        ("7/2 = 4", 1, 0),
        ("7/2 ≈ 4", 1, 1),
        ("7/2 ≈ 5", 1, 0),
        ("0.1 + 0.2 = 0.30000000000000004", 1, 1),
        ("48 * 0.3333333333333333 = 16", 1, 1),
        ("20% * 50 = 1000", 1, 0),
        ("20% of $50 = $10", 1, 1),
        ("100% - 20% = 80%", 1, 1),
        ("100% - 20 = 80%", 1, 1),
        ("3/4 = 75%", 1, 1),
        ("3/4 = 76%", 1, 0),
        ("50 + 10% = 50.1", 1, 1),
        ("2x + 3 = 7", 0, 0),
        ("2x - 3 = 7", 0, 0),
        ("3 + 4 = 2x + 1", 0, 0),
        ("y2 + 3 = 5", 0, 0),
        ("f(2) + 3 + 1 = 9", 0, 0),
        ("2 * (3 + 4) = 14", 0, 0),
        ("(2)3 + 1 = 7", 0, 0),
        ("2**3 + 1 = 9", 0, 0),
        ("3 + 2^2 = 7", 0, 0),
        ("7 = 3 + 2^2", 0, 0),
        (r"\frac{1}{2} + 3 = 3.5", 0, 0),
        ("3 x 4 = 12", 1, 1),
        ("3 cats x 4 = 12", 1, 1),
        ("half * 186 = 93", 0, 0),
        ("2 times as many + 3 = 9", 0, 0),
        ("5 million + 3 = 8", 0, 0),
        ("1 foot + 2 inches = 14 inches", 0, 0),
        ("17 mod 5 = 2", 0, 0),
        ("Step 1 - 3 * 4 = 12", 0, 0),
        ("Day 2 = 3 * 4", 0, 0),
        ("2 bags = 2 * 5", 0, 0),
        ("12 = 3 * 4", 1, 1),
        ("12 = 3 * 5", 1, 0),
        ("* 2 + 3 = 5\n* 3 + 3 = 7", 2, 1),
        ("2 + 3\n= 5", 0, 0),
        ("2 + = 5", 0, 0),
        ("2 + 3 = ", 0, 0),
        ("2 + 3 != 6", 0, 0),
        ("2 + 3 => 6", 0, 0),
        ("2 + 3 == 5", 1, 1),
        ("In 2023 2 + 3 = 5", 0, 0),
        ("He has 5 cats and 3 + 2 = 5 dogs.", 1, 1),
        ("= 5 + 3 = 8", 1, 1),
        ("$2 + 3 = 5$", 1, 1),
        (r"12\text{ cats} \times 2 = 24\text{ cats}", 1, 1),
        ("5 - -3 = 8", 1, 1),
        ("5 - - 3 = 8", 0, 0),
        ("1/0 = 5", 1, 0),
        ("7 / 2 = 3 R1", 0, 0),
        ("+".join(["1"] * 60) + " = 60", 0, 0),
        # those of the notebook
        ("3 + 4 = 7", 1, 1),
        ("3 + 4 = 8", 1, 0),
        ("She has 48/2 = <<48/2=24>>24 clips.", 1, 1),
        ("1,234 + 1 = 1,235", 1, 1),
        ("$5 × 3 = $15", 1, 1),
        (r"$2 \times 3 = 6$", 1, 1),
        ("20% of 50 = 10", 1, 1),
        ("8/10*100 = 80%", 1, 1),
        ("15 shares * $39/share = $585", 1, 1),
        ("2 + 3 × 4 = 20", 1, 0),
        ("5 * -3 = -15", 1, 1),
        ("10 ÷ 1/2 = 20", 1, 1),
        ("10 / 3 = 3.33", 1, 1),
        ("10 / 3 = 3", 1, 0),
        ("10 / 3 ≈ 3", 1, 1),
        ("1.25 + 1.2 = 2.4", 1, 0),
        ("3 + 2 = 5 - 1 = 4", 2, 2),
        ("2 bags = 2 * 5 = 10 apples", 1, 1),
        ("2 packs of cards * $3 = $6", 1, 1),
        ("100% - 20% = 80% of the quiz", 1, 1),
        ("1/2 of 10 = 5", 0, 0),
        ("2x + 3 + 1 = 7", 0, 0),
        ("(2 + 3) * 4 = 20", 0, 0),
        ("2^3 + 1 = 9", 0, 0),
        ("1 1/2 + 1/2 = 2", 0, 0),
        ("12:30 + 1 = 13:30", 0, 0),
        ("2 hours + 30 minutes = 150 minutes", 0, 0),
        ("7 / 2 = 3 remainder 1", 0, 0),
    ],
)
def test_arithmetic_by_hand(text, found, right):
    "What is read, what is left alone, and what is right: the rules of the notebook, case by case."
    assert check_arithmetic(text) == (found, right), arithmetic_steps(text)


HOSTILE = ["1+1", "=1+1", "1=1+1, a ", "+ a ", "- ", "9/7", "(", "a", "1,234", "$", "2x", "* "]
HOSTILE += ["1+1=2 apples ", "\\text{", "1 apples "]


@pytest.mark.parametrize("text", HOSTILE)
def test_time_is_linear(text):
    "One completion must not stop a run: four times a hostile text may take four times as long."

    def seconds(length):
        hostile, took = text * (length // len(text)), []
        for _ in range(3):
            began = time.process_time()
            check_arithmetic(hostile)
            took.append(time.process_time() - began)
        return min(took)

    assert seconds(8000) < 0.02 + 9 * seconds(2000)


def test_validity_is_none_without_calculations():
    "A completion without any calculation is not perfectly valid."
    question, chat = ({"role": r, "content": c} for r, c in (("user", ""), ("assistant", "2+2=4")))
    texts = ["2+2=4; 2+2=5", "four", [chat]]
    assert arithmetic_validity(["", "", [question]], texts) == [0.5, None, 1.0]
    found = arithmetic_validity([""] * 2, ["3 + 4 = 7, 7 * 2 = 15", "no sums here"])
    assert found == [0.5, None]
    judge = score_judge(arithmetic_validity)
    assert judge([""] * 2, ["3 + 4 = 7"] * 2, ["3 + 4 = 8", "so 7"]) == [1.0, None]


# --- likelihood and prompted judges


def test_likelihood_does_not_depend_on_the_batch(pair):
    "Padding must not change a score, and the mean is the sum over the tokens with EOS."
    student, _, tok = pair
    prompts = chain_dataset(6)["prompt"]
    texts = [write_chain(p) for p in prompts[:3]] + ["#5", "", "1+1=2;"]
    one, many, mean = (
        likelihood(student, tok, per_token, batch_size)(prompts, texts)
        for per_token, batch_size in ((False, 1), (False, 4), (True, 6))
    )
    assert one == pytest.approx(many, abs=1e-4)
    assert [s / (len(t) + 1) for s, t in zip(one, texts)] == pytest.approx(mean, abs=1e-4)
    assert min(one[:3]) > max(one[3:])  # worked chains are what it was trained on


def test_likelihood_is_what_the_completion_was_sampled_with(pair):
    "The log-probabilities of sampling, summed, for the completions that ended."
    _, teacher, tok = pair
    prompts = chain_dataset(200, "test")["prompt"][:20]
    r = generate(teacher, tok, prompts, generator=torch.Generator().manual_seed(0))
    scores = likelihood(teacher, tok, per_token=False, batch_size=7)(r.prompts, r.completions)
    logps, ended = r.sampled_logps.sum(-1).tolist(), r.terminated.tolist()
    ours, theirs = ([x for x, e in zip(xs, ended) if e] for xs in (scores, logps))
    assert ours == pytest.approx(theirs, abs=1e-4)


DRESSES = """
Verdict: {}
verdict: {}.
**Verdict:** {}
**Verdict: {}**
VERDICT: [[{}]]
Verdict : {}
Final verdict: Solution {}
`Verdict: {}`
"""


@settings(max_examples=100)
@given(
    st.text(max_size=80),
    st.sampled_from(["A", "B", "tie"]),
    st.sampled_from(DRESSES.strip().splitlines()),
    st.sampled_from(["", "\n", "  \n\n"]),
)
def test_verdicts_are_read_in_any_dress(before, choice, dress, after):
    "The last verdict line counts, whatever came before it."
    text = before + "\n" + dress.format(choice) + after
    assert parse_verdict(text) == {"A": 1.0, "B": 0.0, "tie": 0.5}[choice]


def test_the_last_verdict_counts():
    "A judge that thinks again has its second opinion."
    texts = ("A is wrong.\nVerdict: B", "**Verdict:** A", "verdict: [[tie]].")
    assert [parse_verdict(t) for t in texts] == [0.0, 1.0, 0.5]
    assert parse_verdict("Verdict: A\nNo, wait.\nVerdict: B") == 0.0


@given(st.text(alphabet="Verdict: ABtie\n*[]or", max_size=80))
def test_no_answer_breaks_the_parser(text):
    "Anything else is no verdict."
    assert parse_verdict(text) in (None, 0.0, 0.5, 1.0)
    assert parse_verdict(text.replace(":", "")) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "Verdict: A or B",
        "Verdict: A/B",
        "Verdict: A better answer exists",
        "Verdict: C",
        "Verdict:",
        "Verdict: both",
        "The verdict is A",
        "Verdict: AB",
        "Verdict: A, because B fails",
        "Verdict: A better answer would be",
    ],
)
def test_ambiguous_answers_are_no_verdict(text):
    "Guessing a verdict would make wins of nothing."
    assert parse_verdict(text) is None


def test_template_is_filled_and_checked():
    "Braces in a solution are text, columns can be named, a wrong template fails before any model."
    asked = []

    def ask(chats):
        asked.extend(chats)
        return ["Verdict: A"] * len(chats)

    judge = prompted_judge(ask, "{prompt}|{a}|{b}|{answer}")
    assert judge(["p"], ["{x}"], ["{prompt}"], answer=[7]) == [1.0]
    assert asked == [[{"role": "user", "content": "p|{x}|{prompt}|7"}]]
    with pytest.raises(ValueError, match=r"names \{answer\}"):
        judge(["p"], ["x"], ["y"])
    for template, missing in (("{prompt} {a}", r"\{b\}"), ("{a} or {b}?", r"\{prompt\}")):
        with pytest.raises(ValueError, match=f"{missing} missing"):
            prompted_judge(print, template)
    for field in ("{prompt}", "{a}", "{b}"):
        assert JUDGE_TEMPLATE.count(field) == 1
    # the template itself ends in the last of its choices; only the answer is parsed
    assert parse_verdict(JUDGE_TEMPLATE.format(prompt="", a="", b="")) == 0.5


def test_solutions_are_where_the_template_says():
    "Solution A is shown as A, and an answer without a verdict is none."

    def reads_only_a(chats):
        shown = [chat[0]["content"].partition("[Solution A]")[2] for chat in chats]
        shown = [text.partition("[Solution B]")[0] for text in shown]
        return ["Verdict: A" if "7*1=7" in text else "Hmm." for text in shown]

    judge = prompted_judge(reads_only_a)
    assert judge(["7*1="] * 2, ["7*1=7#7", "#7"], ["#7", "7*1=7#7"]) == [1.0, None]


CHARS = sorted(set("Verdict: AB\n!"))


class Parrot(torch.nn.Module):
    "A causal LM that always writes the same answer after its prompt."

    def __init__(self, tokenizer, answer):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.size = len(tokenizer)
        self.generation_config = None
        self.answer = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]

    def forward(self, input_ids):
        logits = torch.full((*input_ids.shape, self.size), -50.0)
        for row, ids in enumerate(input_ids.tolist()):
            for t in range(len(ids)):
                logits[row, t, self.answer[self.said(ids[: t + 1])]] = 50.0
        return SimpleNamespace(logits=logits)

    def said(self, ids):
        "How much of the answer a text ends with."
        lengths = range(len(self.answer) - 1, 0, -1)
        return next((n for n in lengths if ids[-n:] == self.answer[:n]), 0)


def judge_tokenizer():
    "One token per character, with a chat template."
    tok = char_tokenizer("".join(CHARS))
    tok.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}\n"
    return tok


@pytest.mark.parametrize(
    "answer,tie,bias,unjudged",
    [
        ("A!\nVerdict: A", 1.0, 1.0, 0.0),
        ("Verdict: B", 1.0, -1.0, 0.0),
        ("A! B! A!", 1.0, 0.0, 1.0),
    ],
)
def test_local_model_as_judge(answer, tie, bias, unjudged):
    "A model that always says the same must show as bias or missing verdicts, never as wins."
    tok = judge_tokenizer()
    judge = model_judge(Parrot(tok, answer), tok, max_new_tokens=20, batch_size=2)
    r = pairwise(judge, ["B: A"] * 5, ["A"] * 5, ["B"] * 5)
    assert (r["tie_rate"], r["position_bias"], r["unjudged_rate"]) == (tie, bias, unjudged)
    assert r["win_rate"] == r["loss_rate"] == 0


def test_an_untrained_model_judges_nothing_and_greedily(pair):
    "Gibberish is no verdict; without a chat template there is no judge."
    tok = judge_tokenizer()
    judge = model_judge(tiny_model(32, tok), tok, max_new_tokens=12)
    assert judge(["A"] * 3, ["A"] * 3, ["B"] * 3) == [None] * 3
    with pytest.raises(ValueError, match="no chat template"):
        model_judge(pair[0], pair[2])


# --- endpoint


@contextmanager
def serve(respond):
    """A server on this machine.

    `respond(number of the request, path, headers, body)` gives (status, headers, text), or None
    to drop the connection.
    """
    count, lock = iter(range(1000)), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with lock:
                n = next(count)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = respond(n, self.path, self.headers, body)
            if answer is None:
                self.close_connection = True
                return
            status, headers, text = answer
            self.send_response(status)
            for k, v in {**headers, "Content-Length": str(len(text.encode()))}.items():
                self.send_header(k, v)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # clients that gave up are part of the tests
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy_no_key(monkeypatch):
    "Neither a proxy nor a key of the machine may take part."
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ok(content):
    "A server's answer that says `content`."
    return (200, {}, json.dumps({"choices": [{"message": {"content": content}}]}))


ASK = [{"role": "user", "content": "hello"}]


def test_endpoint_request_and_key(monkeypatch):
    "The server gets what the protocol says; the key is the argument's, else the environment's."
    seen = []

    def respond(n, path, headers, body):
        seen.append((path, headers.get("Authorization"), body))
        return ok("yes")

    with serve(respond) as url:
        answer = chat_completion(ASK, url + "/", "m", "secret", temperature=0, max_tokens=None)
        assert answer == "yes"
        chat_completion(ASK, url, "m")
        monkeypatch.setenv("OPENAI_API_KEY", "from-env\n")
        chat_completion(ASK, url, "m")
        chat_completion(ASK, url, "m", "")
    body = {"model": "m", "messages": ASK, "temperature": 0}
    assert seen[0] == ("/v1/chat/completions", "Bearer secret", body)
    assert [s[1] for s in seen[1:]] == [None, "Bearer from-env", None]


def test_endpoint_retries_what_may_pass():
    "A busy server or a dropped connection must not end an evaluation of an hour."
    fail = [(503, {}, "busy"), (429, {"Retry-After": "0"}, "slow down"), None, (500, {}, "")]
    with serve(lambda n, *_: fail[n] if n < 4 else ok("at last")) as url:
        assert chat_completion(ASK, url, "m", retries=4, wait=0.001) == "at last"
    with serve(lambda n, *_: (503, {}, "busy")) as url:
        with pytest.raises(RuntimeError, match="no answer in 3 attempts, last: 503 .*busy"):
            chat_completion(ASK, url, "m", retries=2, wait=0.001)
    with pytest.raises(RuntimeError, match="no answer in 1 attempts"):
        chat_completion(ASK, url, "m", retries=0)  # nobody listens any more
    with pytest.raises(RuntimeError, match="in 2 attempts"):
        chat_completion([], url, "m", retries=1, wait=0.0)


def test_endpoint_waits_as_long_as_asked(monkeypatch):
    "Retry-After is honoured, up to a minute; otherwise the wait doubles."
    waits = []
    monkeypatch.setattr("cmdp_nbdev.judge.time.sleep", waits.append)
    headers = [{}, *({"Retry-After": text} for text in ("7", "9999", "Wed, 21 Oct 2015"))]
    with serve(lambda n, *_: (429, headers[n], "") if n < 4 else ok("x")) as url:
        chat_completion(ASK, url, "m", retries=4, wait=0.5)
    assert waits == [0.5, 7.0, 60.0, 4.0]


def test_endpoint_time_out():
    "A server that hangs must be given up."
    release = threading.Event()
    with serve(lambda n, *_: release.wait(5) and ok("late")) as url:
        began = time.monotonic()
        with pytest.raises(RuntimeError, match="in 2 attempts, last: .*[Tt]imed? ?out"):
            chat_completion(ASK, url, "m", timeout=0.1, retries=1, wait=0.001)
        assert time.monotonic() - began < 3
        release.set()


@pytest.mark.parametrize(
    "status,text,match",
    [
        (401, '{"error": "bad key secret-key"}', r"refused the request \(401 .*bad key \*\*\*"),
        (404, "no such model", "404 .*no such model"),
        (302, "", "refused the request .302"),
        (200, "<html>", "not like a chat-completions server: '<html>'"),
        (200, "{}", "not like a chat-completions server"),
        (200, '{"choices": []}', "not like"),
        (200, "[1]", "not like"),
    ],
)
def test_endpoint_errors_are_clear_and_keep_the_key(status, text, match):
    "What cannot pass is said at once, once, without the key; a redirection does not carry it away."
    count = []

    def respond(n, *_):
        count.append(n)
        return status, {"Location": "http://127.0.0.1:1/steal"}, text

    with serve(respond) as url:
        with pytest.raises(RuntimeError, match=match) as e:
            chat_completion(ASK, url, "m", "secret-key", wait=0.001)
    assert len(count) == 1
    assert "secret-key" not in str(e.value)


def test_endpoint_without_content_and_wrong_addresses():
    "A refusal to answer is no verdict; a file address is refused."
    with serve(lambda n, *_: ok(None)) as url:
        assert endpoint_judge(url, "m")(["p"], ["a"], ["b"]) == [None]
    for bad in ("localhost:8000", "file:///etc/passwd", "", "http://"):
        with pytest.raises(ValueError, match="base_url must begin with"):
            chat_completion(ASK, bad, "m")


def test_endpoint_judge_keeps_the_order():
    "Several questions at a time must come back to their own pairs; the defaults reach the server."
    bodies = []

    def respond(n, path, headers, body):
        bodies.append(body)
        time.sleep(0.02 * (n % 3))
        text = body["messages"][0]["content"]
        solution_a = text.split("[Solution A]")[1].split("[Solution B]")[0]
        return ok(f"Verdict: {'A' if 'right' in solution_a else 'B'}")

    a = ["right" if i % 3 else "wrong" for i in range(12)]
    b = ["wrong" if x == "right" else "right" for x in a]
    with serve(respond) as url:
        r = pairwise(endpoint_judge(url, "m", max_tokens=5), ["p"] * 12, a, b)
    assert r["verdicts"] == [float(x == "right") for x in a]
    assert len(bodies) == 24
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0, 5)}
