"Judges of reasoning: order swapped, arithmetic recomputed, verdicts parsed, servers that misbehave."

import json
import math
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
from cmdp_nbdev.task import chain_dataset, step_validity, write_chain

verdict = st.sampled_from([1.0, 0.0, 0.5, None])


def flip(v):
    return None if v is None else 1 - v


# --- pairwise


def scripted(first: list, second: list):
    "A judge that gives the verdicts `first`, then `second`."
    answers = iter([first, second])
    return lambda prompts, a, b, **columns: next(answers)


@given(st.lists(st.tuples(verdict, verdict), min_size=1, max_size=40))
def test_only_verdicts_that_survive_the_swap_count(pairs):
    "A preference for one place, or a missing verdict, must never become a win."
    first, second = [f for f, _ in pairs], [s for _, s in pairs]
    r = pairwise(
        scripted(first, second), ["p"] * len(pairs), ["a"] * len(pairs), ["b"] * len(pairs)
    )
    for v, f, s in zip(r["verdicts"], first, second):
        assert v == (f if f is not None and s is not None and f == 1 - s else 0.5)
    assert r["win_rate"] + r["loss_rate"] + r["tie_rate"] == pytest.approx(1)
    assert r["unjudged_rate"] == pytest.approx((first + second).count(None) / (2 * len(pairs)))
    assert r["inconsistent_rate"] == pytest.approx(
        sum(f is not None and s is not None and f != 1 - s for f, s in pairs) / len(pairs)
    )
    assert r["orders"] == [first, [flip(s) for s in second]]
    for k in (
        "win_rate",
        "loss_rate",
        "tie_rate",
        "net_win_rate",
        "position_bias",
        "inconsistent_rate",
    ):
        assert r[f"{k}_low"] <= r[k] + 1e-12 and r[k] <= r[f"{k}_high"] + 1e-12
    mirrored = pairwise(
        scripted(second, first), ["p"] * len(pairs), ["b"] * len(pairs), ["a"] * len(pairs)
    )  # the same questions from b's side
    assert (
        mirrored["win_rate"] == r["loss_rate"]
        and mirrored["position_bias"] == r["position_bias"]
        and mirrored["net_win_rate_low"] == pytest.approx(-r["net_win_rate_high"])
    )
    json.dumps(r, allow_nan=False)


def test_a_judge_with_a_favourite_place_is_exposed():
    "Always the first, and mostly the first: all ties, and a bias whose interval excludes 0."
    n = 60
    always = pairwise(lambda prompts, a, b: [1.0] * n, [""] * n, [""] * n, [""] * n)
    assert (
        always["tie_rate"] == 1
        and always["position_bias"] == 1
        and always["position_bias_low"] > 0.75
        and always["position_p_value"] < 1e-12
        and always["p_value"] == 1
    )
    last = pairwise(lambda prompts, a, b: [0.0] * n, [""] * n, [""] * n, [""] * n)
    assert last["position_bias"] == -1 and last["position_bias_high"] < -0.75

    def mostly(prompts, a, b):
        return [
            1.0 if i % 3 else score
            for i, score in enumerate(
                score_judge(lambda prompts, completions: completions)(prompts, a, b)
            )
        ]

    r = pairwise(mostly, [""] * n, [1.0] * n, [0.0] * n)
    assert (
        r["win_rate"] == pytest.approx(1 / 3)
        and r["inconsistent_rate"] == pytest.approx(2 / 3)
        and r["position_bias_low"] > 0.3
    )


def test_all_ties_claim_nothing():
    "With equal solutions there is no winner, and the interval says how little that proves."
    n = 50
    r = pairwise(score_judge(step_validity), ["3+8="] * n, ["3+8=1#1"] * n, ["3+8=1#1"] * n)
    assert (
        r["tie_rate"] == 1
        and r["net_win_rate"] == 0
        and r["p_value"] == 1
        and r["net_win_rate_low"] < -0.1 < 0.1 < r["net_win_rate_high"]
    )


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda j: pairwise(j, [], [], []), "prompts is empty"),
        (lambda j: pairwise(j, ["p"], ["a"], []), "b has 0"),
        (lambda j: pairwise(j, ["p"], ["a"], ["b"], answer=[1, 2]), "answer has 2"),
        (
            lambda j: pairwise(lambda prompts, a, b: [], ["p"], ["a"], ["b"]),
            "one verdict per pair: 1 pairs, got 0",
        ),
        (
            lambda j: pairwise(lambda prompts, a, b: [2], ["p"], ["a"], ["b"]),
            "returned 2.0: a verdict is 1, 0, 0.5 or None",
        ),
        (lambda j: judge_records(j, [{"prompt": "p", "completion": "x"}], []), "same prompts"),
        (
            lambda j: judge_records(
                j,
                [{"prompt": "p", "completion": "x"}] * 2,
                [{"prompt": "p", "completion": "x"}] * 2,
            ),
            "one completion each",
        ),
    ],
)
def test_bad_pairs(call, match):
    "Lists that do not belong together must not be judged against each other."
    with pytest.raises(ValueError, match=match):
        call(score_judge(step_validity))


def test_records_are_matched_by_prompt():
    "Two evaluations list their prompts in different orders; pairing by position would compare answers to different questions."
    prompts = chain_dataset(20)["prompt"]
    good = [{"prompt": p, "completion": write_chain(p), "answer": i} for i, p in enumerate(prompts)]
    bad = [{"prompt": p, "completion": "#5", "answer": i} for i, p in enumerate(prompts)][::-1]
    seen = []
    steps = score_judge(step_validity)
    r = judge_records(
        lambda prompts, a, b, answer: seen.append(list(answer)) or steps(prompts, a, b),
        good,
        bad,
        ("answer",),
    )
    assert r["win_rate"] == 1 and seen == [list(range(20))] * 2


def test_scores_of_chat_messages_and_missing_scores():
    "The same judge must serve chat models, and 'does not apply' is no verdict."

    def chat(text):
        return [{"role": "assistant", "content": text}]

    assert score_judge(step_validity)(
        [[{"role": "user", "content": "3+8="}]], [chat("3+8=1#1")], [chat("3+8=2#2")]
    ) == [1.0]
    nan = score_judge(lambda prompts, completions: completions)
    assert nan([0] * 4, [1.0, math.nan, None, math.inf], [1.00001, 0.0, 0.0, math.inf]) == [
        0.5,
        None,
        None,
        0.5,
    ]
    assert score_judge(lambda prompts, completions: completions, margin=0)(
        [0], [1.0], [1.00001]
    ) == [0.0]


# --- agreement


@given(st.lists(st.tuples(verdict, verdict), min_size=1, max_size=60))
def test_agreement_is_symmetric_and_bounded(pairs):
    "Which judge is named first must not matter."
    x, y = [p[0] for p in pairs], [p[1] for p in pairs]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        with pytest.raises(ValueError, match="no pair has a verdict"):
            agreement(x, y)
        return
    r, s = agreement(x, y, resamples=50), agreement(y, x, resamples=50)
    assert r["agreement"] == s["agreement"] == pytest.approx(
        sum(a == b for a, b in both) / len(both)
    ) and r["n_pairs"] == len(both)
    assert r["kappa"] == pytest.approx(s["kappa"], nan_ok=True) and (
        math.isnan(r["kappa"]) or -1 <= r["kappa"] <= 1 + 1e-12
    )
    po, kinds = sum(a == b for a, b in both) / len(both), {v for p in both for v in p}
    pe = (
        sum(sum(a == k for a, _ in both) * sum(b == k for _, b in both) for k in kinds)
        / len(both) ** 2
    )
    assert math.isnan(r["kappa"]) if pe == 1 else r["kappa"] == pytest.approx((po - pe) / (1 - pe))


def test_agreement_by_chance_is_none():
    "Independent judges agree often when one verdict is common; kappa must say that it means nothing."
    import random

    rng = random.Random(0)
    x, y = ([1.0 if rng.random() < 0.9 else 0.0 for _ in range(3000)] for _ in range(2))
    r = agreement(x, y)
    assert r["agreement"] > 0.78 and abs(r["kappa"]) < 0.06 and r["kappa_low"] < 0 < r["kappa_high"]
    assert agreement([1.0] * 5, [1.0] * 5)["agreement"] == 1 and math.isnan(
        agreement([1.0] * 5, [1.0] * 5)["kappa"]
    )
    with pytest.raises(ValueError, match="same pairs"):
        agreement([1.0], [])


# --- arithmetic

styles = st.fixed_dictionaries(
    {
        "+": st.just("+"),
        "-": st.sampled_from("-−"),
        "*": st.sampled_from(["*", "×", "x", "·", r"\times"]),
        "/": st.sampled_from(["÷", r"\div"]),
    }
)
numbers = st.tuples(
    st.integers(0, 10**7), st.sampled_from(["", "$"]), st.booleans(), st.integers(0, 2)
)


def shown(value: int, currency: str, separators: bool, decimals: int) -> str:
    "value / 10**decimals, exactly."
    text = f"{value // 10**decimals:,}" if separators else str(value // 10**decimals)
    return currency + text + (f".{value % 10**decimals:0{decimals}d}" if decimals else "")


def exact(parts: list, ops: list) -> Fraction | None:
    "The value by Python's own precedence."
    try:
        return eval(
            "".join(f"{o}Fraction({v},{10**d})" for o, (v, _, _, d) in zip(["", *ops], parts))
        )
    except ZeroDivisionError:
        return None


@settings(max_examples=150)
@given(
    st.lists(numbers, min_size=2, max_size=5),
    st.lists(st.sampled_from("+-*/"), min_size=4, max_size=4),
    styles,
    st.integers(1, 999),
    st.sampled_from(
        [
            "{}",
            "So he has {}.",
            "- {}",
            "1. {}",
            "({})",
            "x = {}",
            "Then {} apples, and",
            "<<{}>>9",
            r"\[{}\]",
            "**{}**",
        ]
    ),
)
def test_generated_calculations_are_found_and_judged_exactly(parts, ops, style, slip, frame):
    "Whatever the notation, a right result must count as right and a wrong one as wrong."
    ops = ops[: len(parts) - 1]
    value = exact(parts, ops)
    if value is None or (value * 100).denominator != 1 or abs(value) >= 10**30:
        return
    left = "".join(
        f" {style[o] if o else ''} {shown(*p)}" for o, p in zip(["", *ops], parts)
    ).strip()

    def write(v):
        return ("-" if v < 0 else "") + shown(abs(int(v * 100)), "", False, 2)

    assert check_arithmetic(frame.format(f"{left} = {write(value)}")) == (1, 1)
    assert check_arithmetic(frame.format(f"{left} = {write(value + slip)}")) == (1, 0)
    assert check_arithmetic(frame.format(f"{write(value)} = {left}")) in (
        (1, 1),
        (0, 0),
    )  # a number after a word is a label


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
    ],
)
def test_arithmetic_by_hand(text, found, right):
    "What is read, what is left alone, and what is right: the rules of the notebook, case by case."
    assert check_arithmetic(text) == (found, right), arithmetic_steps(text)


@pytest.mark.parametrize(
    "text",
    [
        "1+1",
        "=1+1",
        "1=1+1, a ",
        "+ a ",
        "- ",
        "9/7",
        "(",
        "a",
        "1,234",
        "$",
        "2x",
        "* ",
        "1+1=2 apples ",
        "\\text{",
        "1 apples ",
    ],
)
def test_time_is_linear(text):
    "One completion must not stop a run: four times as much of a hostile text may take four times as long, not sixteen."

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
    assert arithmetic_validity(
        ["", "", [{"role": "user", "content": ""}]],
        ["2+2=4; 2+2=5", "four", [{"role": "assistant", "content": "2+2=4"}]],
    ) == [0.5, None, 1.0]


# --- likelihood and prompted judges


def test_likelihood_does_not_depend_on_the_batch(pair):
    "Padding must not change a score, and the mean is the sum over the tokens with EOS."
    student, _, tok = pair
    prompts = chain_dataset(6)["prompt"]
    texts = [write_chain(p) for p in prompts[:3]] + ["#5", "", "1+1=2;"]
    one, many, mean = (
        likelihood(student, tok, p, b)(prompts, texts)
        for p, b in ((False, 1), (False, 4), (True, 6))
    )
    assert one == pytest.approx(many, abs=1e-4)
    assert [s / (len(t) + 1) for s, t in zip(one, texts)] == pytest.approx(mean, abs=1e-4)
    assert min(one[:3]) > max(one[3:])  # worked chains are what it was trained on


@settings(max_examples=100)
@given(
    st.text(max_size=80),
    st.sampled_from(["A", "B", "tie"]),
    st.sampled_from(
        [
            "Verdict: {}",
            "verdict: {}.",
            "**Verdict:** {}",
            "**Verdict: {}**",
            "VERDICT: [[{}]]",
            "Verdict : {}",
            "Final verdict: Solution {}",
            "`Verdict: {}`",
        ]
    ),
    st.sampled_from(["", "\n", "  \n\n"]),
)
def test_verdicts_are_read_in_any_dress(before, choice, dress, after):
    "The last verdict line counts, whatever came before it."
    assert (
        parse_verdict(before + "\n" + dress.format(choice) + after)
        == {"A": 1.0, "B": 0.0, "tie": 0.5}[choice]
    )


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
    ],
)
def test_ambiguous_answers_are_no_verdict(text):
    "Guessing a verdict would make wins of nothing."
    assert parse_verdict(text) is None


def test_template_is_filled_and_checked():
    "Braces in a solution are text, columns can be named, and a wrong template fails before anything is asked of a model."
    asked = []
    judge = prompted_judge(
        lambda chats: asked.extend(chats) or ["Verdict: A"] * len(chats),
        "{prompt}|{a}|{b}|{answer}",
    )
    assert judge(["p"], ["{x}"], ["{prompt}"], answer=[7]) == [1.0] and asked == [
        [{"role": "user", "content": "p|{x}|{prompt}|7"}]
    ]
    with pytest.raises(ValueError, match=r"names \{answer\}"):
        judge(["p"], ["x"], ["y"])
    with pytest.raises(ValueError, match=r"\{b\} missing"):
        prompted_judge(print, "{prompt} {a}")
    for field in ("{prompt}", "{a}", "{b}"):
        assert JUDGE_TEMPLATE.count(field) == 1
    assert (
        parse_verdict(JUDGE_TEMPLATE.format(prompt="", a="", b="")) == 0.5
    )  # the template itself ends in the last of its choices; only the answer is parsed


CHARS = sorted(set("Verdict: AB\n!"))


class Parrot(torch.nn.Module):
    "A causal LM that always writes the same answer after its prompt."

    def __init__(self, tokenizer, answer):
        super().__init__()
        self.weight, self.size, self.generation_config = (
            torch.nn.Parameter(torch.zeros(1)),
            len(tokenizer),
            None,
        )
        self.answer = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]

    def forward(self, input_ids, past_key_values=None, use_cache=None):
        step = 0 if past_key_values is None else past_key_values + 1
        logits = torch.full((*input_ids.shape, self.size), -50.0)
        logits[..., self.answer[min(step, len(self.answer) - 1)]] = 50.0
        return SimpleNamespace(logits=logits, past_key_values=step)


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
    "A model that always says the same is worthless, and the report must show it: bias or missing verdicts, never wins."
    tok = judge_tokenizer()
    r = pairwise(
        model_judge(Parrot(tok, answer), tok, max_new_tokens=20, batch_size=2),
        ["B: A"] * 5,
        ["A"] * 5,
        ["B"] * 5,
    )
    assert (r["tie_rate"], r["position_bias"], r["unjudged_rate"]) == (tie, bias, unjudged) and r[
        "win_rate"
    ] == r["loss_rate"] == 0


def test_an_untrained_model_judges_nothing_and_greedily(pair):
    "Gibberish is no verdict; the same question gets the same answer; without a chat template there is no judge."
    tok = judge_tokenizer()
    judge = model_judge(tiny_model(32, tok), tok, max_new_tokens=12)
    assert judge(["A"] * 3, ["A"] * 3, ["B"] * 3) == [None] * 3
    with pytest.raises(ValueError, match="no chat template"):
        model_judge(pair[0], pair[2])


# --- endpoint


@contextmanager
def serve(respond):
    "A server on this machine; `respond(number of the request, path, headers, body) -> (status, headers, text)`, None = drop the connection."
    count, lock = iter(range(1000)), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with lock:
                n = next(count)
            answer = respond(
                n,
                self.path,
                self.headers,
                json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
            )
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
    server.daemon_threads, server.handle_error = (
        True,
        lambda *args: None,
    )  # clients that gave up are part of the tests
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
    return (200, {}, json.dumps({"choices": [{"message": {"content": content}}]}))


ASK = [{"role": "user", "content": "hello"}]


def test_endpoint_request_and_key(monkeypatch):
    "The server gets what the protocol says, and the key from the argument, else the environment, else none."
    seen = []
    with serve(
        lambda n, path, headers, body: (
            seen.append((path, headers.get("Authorization"), body)) or ok("yes")
        )
    ) as url:
        assert (
            chat_completion(ASK, url + "/", "m", "secret", temperature=0, max_tokens=None) == "yes"
        )
        chat_completion(ASK, url, "m")
        monkeypatch.setenv("OPENAI_API_KEY", "from-env\n")
        chat_completion(ASK, url, "m")
        chat_completion(ASK, url, "m", "")
    assert seen[0] == (
        "/v1/chat/completions",
        "Bearer secret",
        {"model": "m", "messages": ASK, "temperature": 0},
    )
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


def test_endpoint_waits_as_long_as_asked(monkeypatch):
    "Retry-After is honoured, up to a minute; otherwise the wait doubles."
    waits = []
    monkeypatch.setattr("cmdp_nbdev.judge.time.sleep", waits.append)
    headers = [
        {},
        {"Retry-After": "7"},
        {"Retry-After": "9999"},
        {"Retry-After": "Wed, 21 Oct 2015"},
    ]
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
    "What cannot pass is said at once, once, without the key, and a redirection does not carry the key away."
    count = []
    with serve(
        lambda n, *_: count.append(n) or (status, {"Location": "http://127.0.0.1:1/steal"}, text)
    ) as url:
        with pytest.raises(RuntimeError, match=match) as e:
            chat_completion(ASK, url, "m", "secret-key", wait=0.001)
    assert len(count) == 1 and "secret-key" not in str(e.value)


def test_endpoint_without_content_and_wrong_addresses():
    "A refusal to answer is no verdict; a file address is refused."
    with serve(lambda n, *_: ok(None)) as url:
        assert endpoint_judge(url, "m")(["p"], ["a"], ["b"]) == [None]
    for bad in ("localhost:8000", "file:///etc/passwd", "", "http://"):
        with pytest.raises(ValueError, match="base_url must begin with"):
            chat_completion(ASK, bad, "m")


def test_endpoint_judge_keeps_the_order():
    "Several questions at a time must come back to their own pairs, and the defaults reach the server."
    bodies = []

    def respond(n, path, headers, body):
        bodies.append(body)
        time.sleep(0.02 * (n % 3))
        text = body["messages"][0]["content"]
        return ok(
            f"Verdict: {'A' if 'right' in text.split('[Solution A]')[1].split('[Solution B]')[0] else 'B'}"
        )

    a = ["right" if i % 3 else "wrong" for i in range(12)]
    with serve(respond) as url:
        r = pairwise(
            endpoint_judge(url, "m", max_tokens=5),
            ["p"] * 12,
            a,
            ["wrong" if x == "right" else "right" for x in a],
        )
    assert (
        r["verdicts"] == [float(x == "right") for x in a]
        and len(bodies) == 24
        and {(b["temperature"], b["max_tokens"]) for b in bodies} == {(0, 5)}
    )
