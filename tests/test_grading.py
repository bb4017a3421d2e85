"""Answers graded as a teacher would: numbers, LaTeX, whole completions.

The cases of numbers, of forms of an answer and of math-verify's own tests stand in tests/grading/.
"""

import importlib.util
import re
import threading
import time
import warnings
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev import judge, tasks
from cmdp_nbdev.judge import arithmetic_steps, parse_verdict
from cmdp_nbdev.model import char_tokenizer
from cmdp_nbdev.reward import task_rewards
from cmdp_nbdev.rollout import given_rollout
from cmdp_nbdev.tasks import (
    final_answer,
    math_reward,
    numeric_reward,
    parse_number,
    same_answer,
    same_number,
)

latex = pytest.mark.skipif(
    not importlib.util.find_spec("math_verify"), reason="the extra 'math' is not installed"
)
CASES = Path(__file__).parent / "grading"


def lines(name):
    "The lines of a file of cases."
    return (CASES / name).read_text(encoding="utf-8").splitlines()


def forms(name):
    "Cases (right answer, text, whether they are the same) of a file; None = the text is no number."
    gold, cases = None, []
    for line in lines(name):
        mark, _, rest = line.partition(" ")
        if mark == "=":
            gold = rest
        elif mark in ("+", "-", "?"):
            same = {"+": True, "-": False, "?": None}[mark]
            texts = rest.replace("⏎", "\n").split(" ¦ ")
            cases += [(gold, text, same) for text in texts]
    return cases


def wrongly_graded(cases, grade=same_answer):
    "Those of (gold, answer, same) that are graded otherwise, with the verdict they get."
    graded = [(gold, answer, same, grade(gold, answer)) for gold, answer, same in cases]
    return [g for g in graded if g[2] is not g[3]]


# --- numbers

NUMBERS = forms("numbers.txt")
PAIRS = [(gold, text, same) for gold, text, same in NUMBERS if same is not None]
PAIRS += [("8", " 8 ", True)]
NO_NUMBER = [text for _, text, same in NUMBERS if same is None]
NO_NUMBER += ["", " ", "9" * 41, "9" * 10**6]


def test_numbers_by_table():
    "The grader must not fail a right answer for its dress, nor pass another number."
    turned = [(text, gold, same) for gold, text, same in PAIRS]
    assert wrongly_graded(PAIRS, same_number) == []
    assert wrongly_graded(turned, same_number) == []
    assert len(PAIRS) + len(NO_NUMBER) > 140
    assert [t[:20] for t in NO_NUMBER if parse_number(t) is not None] == []


@given(
    st.fractions(max_denominator=10**6).filter(lambda f: abs(f) < 10**12),
    st.sampled_from(["{}", "${}$", "x = {}", "{}.", "{} apples"]),
    st.integers(0, 6),
)
def test_exact_for_any_number(value, frame, decimals):
    "Fractions and decimals are read exactly, near misses are misses."
    text = frame.replace("{}", f"{value.numerator}/{value.denominator}")
    assert parse_number(text)[0] == value
    rounded = Fraction(round(value * 10**decimals), 10**decimals)
    whole, part = divmod(abs(int(rounded * 10**decimals)), 10**decimals)
    sign, fraction = "-" * (rounded < 0), f".{part:0{decimals}d}" if decimals else ""
    shown = f"{sign}{whole:,}{fraction}"
    assert parse_number(shown)[0] == rounded
    assert same_number(shown, str(value)) is (rounded == value)


@given(st.text(alphabet="0123456789,./-+$%€ \\{}frac()^=xeE#*\n<>think|answer:is", max_size=60))
def test_no_text_breaks_the_reading(text):
    "Students write anything: no exception, and what is no number equals nothing."
    for fallback in (None, "number", "text"):
        answer = final_answer(text, fallback)
        assert answer is None or answer in text or answer.strip() == answer
    assert same_number(text, "1") in (True, False, None)
    assert numeric_reward([""], [text], ["7"])[0] in (0.0, 1.0)


UNITS = (
    r"1¦1,¦{¦}¦\boxed{¦####¦answer is ¦<think>¦</think>¦<answer>¦1/¦$¦a ¦1 a¦\frac{¦\text{¦-¦*¦"
    r"1,234¦answer: *¦   ¦=¦1 apples "
).split("¦")


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear(unit):
    "One hostile completion must not stop a run."

    def seconds(length):
        text, took = unit * (length // len(unit)), []
        for _ in range(3):
            began = time.process_time()
            numeric_reward([""], [text], ["7"])
            same_number(text, "7")
            took.append(time.process_time() - began)
        return min(took)

    assert seconds(16000) < 0.02 + 9 * seconds(4000)


# --- the final answer


@pytest.mark.parametrize(
    "text,answer",
    [
        ("#### 5", "5"),
        ("####5", "5"),
        ("#### 5\nthe end", "5"),
        ("#### 4\n#### 5", "5"),
        ("####", None),
        (r"\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{4}, \boxed{5}", "5"),
        (r"\boxed{4}, \boxed{5", None),
        (r"\boxed{}", None),
        (r"#### \boxed{5}", "5"),
        ("<answer>5</answer>", "5"),
        ("<answer>5", None),
        (r"<answer>\boxed{5}</answer>", "5"),
        ("<answer>#### 5</answer>", "5"),
        ("The answer is 5.", "5"),
        ("The final answer is: $5.50.", "$5.50"),
        ("**Answer:** 5", "5"),
        ("answer is 4. No, the answer is 5", "5"),
        ("#### 5\nI hope the answer is right.", "5"),
        ("it is 5", None),
        ("<think>#### 4</think>\n#### 5", "5"),
        ("<think>#### 4", None),
        ("thinking #### 4</think> five", None),
        ("<think>a</think>#### 5<think>", None),
    ],
)
def test_final_answer(text, answer):
    "What is graded is the last marked answer after the thinking, nothing else."
    assert final_answer(text) == answer
    assert numeric_reward([""], [text], ["5"]) == [float(answer == "5" or text == "it is 5")]


def test_cut_off_is_never_right(pair):
    "A completion without EOS may hold the right answer so far; the trainer must not pay for it."
    tok = char_tokenizer()
    texts, columns = ["#2", "#2;1+1=2;1+1=2"], {"answer": ["2", "2"]}
    rollout = given_rollout(tok, ["1+1="] * 2, texts, columns, max_completion_length=4)
    assert rollout.terminated.tolist() == [True, False]
    rollout.completions = ["#### 2", "#### 2"]
    assert task_rewards([numeric_reward], rollout)[0].tolist() == [1.0, 0.0]
    assert task_rewards([math_reward], rollout)[0].tolist() == [1.0, 0.0]


def test_answers_that_do_not_apply():
    "No reference answer, no reward; one that is no number cannot be graded as one, which is said."
    assert numeric_reward([""] * 2, ["#### 1"] * 2, [None, "1"]) == [None, 1.0]
    assert math_reward([""], ["#### 1"], [None]) == [None]
    with pytest.raises(ValueError, match="'x\\+1'.*math_reward"):
        numeric_reward([""], ["#### 1"], ["x+1"])
    chats = [[{"role": role, "content": "#### 1"}] for role in ("user", "assistant")]
    assert numeric_reward(chats[:1], chats[1:], ["1"]) == [1.0]


# --- LaTeX

RIGHT = [
    ("x^2+1", "1+x^2"),
    (r"\frac{\sqrt{3}}{2}", r"\dfrac{\sqrt3}{2}"),
    ("2x+4", "2(x+2)"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("(3,4)", r"\left( 3, 4 \right)"),
    (r"3\pi", r"\pi\cdot 3"),
    ("[0,1)", r"\left[0,1\right)"),
    (r"\text{Monday}", "monday"),
    (r"\text{(B)}", "B"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("x^2-1", "(x-1)(x+1)"),
    (r"\frac{1}{x}", "x^{-1}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\frac{1}{2}", "0.5"),
    (r"50\%", "0.5"),
    (r"12\text{ cm}", "12"),
    ("y=2x", "y = 2x"),
    (r"\infty", r"\infty"),
]
WRONG = [
    ("x^2+1", "x^2-1"),
    ("(3,4)", "(4,3)"),
    ("[0,1)", "[0,1]"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"3\pi", r"9.42"),
    ("A", "B"),
    (r"\sqrt{2}", "1.4"),
    ("x", ""),
    ("x", "x" * 10**5),
    ("18", "17, 18"),
    ("18", r"17 \text{ or } 18"),
    (r"\frac{1}{2}", r"\frac{1}{3}"),
    ("x", "y"),
    (r"\text{Monday}", r"\text{Tuesday}"),
    ("2x", r"\undefined{"),
    ("x+1", "}{"),
    ("x", "__import__('os')"),
    ("(1,2)", "1,2,3"),
]


LATEX = [(a, b, True) for a, b in RIGHT] + [(a, b, False) for a, b in WRONG]


@latex
def test_latex_by_table():
    "Equivalent forms count, near misses do not, and no text breaks the grader."
    assert wrongly_graded(LATEX) == []


@latex
def test_a_hanging_answer_costs_a_moment_and_a_warning():
    "The watchdog ends what no signal can, in a thread too (the live trainer's)."
    tasks._WARNED.clear()
    answers = ("x^{9^{9^{9^{9}}}}", "x^{9^{9^{9^{8}}}}", "x^2+0")
    verdicts, messages = [], []

    def work():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            verdicts.extend(same_answer("x^2", answer, seconds=0.5) for answer in answers)
            messages.extend(str(w.message) for w in caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert verdicts == [False, False, True]
    assert len(messages) == 1
    assert "did not finish within 0.5 s" in messages[0]
    assert "9^{9" in messages[0]


# --- forms of one answer, whole completions, and what is known to be graded wrong

BARE = forms("forms.txt")
# gold, whole completion, reward, the same by numeric_reward and math_reward
COMPLETIONS = [
    ("18", "She sells 16 - 3 - 4 = 9 eggs a day.\nShe makes 9 * 2 = $18 every day.\n#### 18", 1),
    ("18", "#### 18\n\nLet me know if you need more.", 1),
    ("18", "####18", 1),
    ("18", "#### $18", 1),
    ("18", "#### $18.00 per day", 1),
    ("18", "#### 18 dollars a day", 1),
    ("18", "#### **18**", 1),
    ("18", "#### 18.", 1),
    ("18", r"#### \(18\)", 1),
    ("18", r"#### \$18", 1),
    ("18", "#### x = 18", 1),
    ("18", "#### 9 * 2 = 18", 1),
    ("18", "#### 9 x 2 = $18", 1),
    ("18", "#### 17", 0),
    ("18", "#### 18, no, 17", 0),
    ("18", "#### 17 or 18", 0),
    ("18", "#### eighteen", 0),
    ("18", "####", 0),
    ("18", "#### \n18", 1),
    ("18", "#### 18 million", 0),
    ("18", "#### 18-20", 0),
    ("18", "#### between 17 and 19", 0),
    ("18", "#### 18%", 1),
    ("18", "#### -18", 0),
    ("18", r"So she makes $\boxed{18}$ dollars.", 1),
    ("18", r"\boxed{\$18}", 1),
    ("18", r"\boxed{18\text{ dollars}}", 1),
    ("18", r"\boxed{18.00}", 1),
    ("18", r"\boxed{ 18 }", 1),
    ("18", r"\boxed{\text{18}}", 1),
    ("18", r"\boxed{x=18}", 1),
    ("18", r"\[\boxed{18}\]", 1),
    ("18", r"$$\boxed{18}$$", 1),
    ("18", r"\fbox{18}", 1),
    ("18", r"\boxed{18", 0),
    ("18", r"\boxed{1", 0),
    ("18", r"\boxed{}18", 0),
    ("18", r"\boxed{17}, wait, \boxed{18}", 1),
    ("18", r"\boxed{18}, wait, \boxed{17}", 0),
    ("18", r"\boxed{18, 17}", 0),
    ("18", r"\boxed{17\text{ or }18}", 0),
    ("18", r"\boxed{\boxed{18}}", 1),
    ("18", r"\boxed 18", 1),
    ("18", r"boxed{18}", 1),
    ("18", r"\boxed{18}}", 1),
    ("18", "\\boxed{\n18\n}", 1),
    ("18", r"\boxed{18}\boxed{", 0),
    ("18", "The answer is 18.", 1),
    ("18", "The answer is $18.", 1),
    ("18", "**Final Answer:** 18", 1),
    ("18", "Final answer: 18 dollars", 1),
    ("18", "The final answer is: 18", 1),
    ("18", "Answer: **18**", 1),
    ("18", "ANSWER: 18", 1),
    ("18", "Answer = 18", 1),
    ("18", "So the answer is 17. Check: 18.", 0),
    ("18", "The answer is 18.0 dollars per day.", 1),
    ("18", "The answer is not 18", 0),
    ("18", "The answer is 18 or 19", 0),
    ("18", "Therefore, she makes 18 dollars a day.", 1),
    ("18", "18", 1),
    ("18", "It is 18!", 1),
    ("18", "It was 18 and now it is 17", 0),
    ("18", "I do not know", 0),
    ("18", "", 0),
    ("18", "   \n", 0),
    ("18", "Answer:", 0),
    ("18", "The answer is\n18", 1),
    ("18", "The answer is \\(18\\).", 1),
    ("18", r"The answer is $\boxed{18}$.", 1),
    ("18", "The answer is: $18$", 1),
    ("18", "The correct answer is 18", 1),
    ("18", "<think>9*2=18</think>\n<answer>18</answer>", 1),
    ("18", "<answer> $18 </answer>", 1),
    ("18", "<answer>18", 0),
    ("18", "<answer></answer>", 0),
    ("18", "<answer>17</answer><answer>18</answer>", 1),
    ("18", r"<answer>\boxed{18}</answer>", 1),
    ("18", "<think>The answer is 18", 0),
    ("18", "<think>#### 18</think>", 0),
    ("18", "</think>#### 18", 1),
    ("18", "<think>17</think> 18", 1),
    ("18", "<answer>She makes $18.</answer>", 0),
    ("18", "<answer>18</answer> is what I think, but 17 is possible", 1),
    ("1250", "#### 1,250", 1),
    ("1250", "She pays $1,250.", 1),
    ("1250", "#### 1.250", 0),
    ("1250", "#### 1250.0", 1),
    ("1250", "The answer is 1,250 dollars.", 1),
    ("1,250", "#### 1250", 1),
    ("1,250", "in total 1 250", 1),
    ("0.5", "#### 1/2", 1),
    ("0.5", "#### 50%", 1),
    ("0.5", "It is 0.5.", 1),
    ("0.5", "It is .5", 1),
    ("0.5", "It is 1/2 cup", 1),
    ("-3", "It is -3 degrees.", 1),
    ("-3", "#### −3", 1),
    ("-3", "10 - 13 = -3", 1),
    ("3", "It is 10-3", 0),
    ("7", "10 -3 = 7", 1),
    ("20", "#### 20%", 1),
    ("20%", "It is 20 percent.", 1),
    ("0", "#### 0", 1),
    ("0", "#### ", 0),
    ("0", "none", 0),
    ("100000", "#### 1e5", 1),
    ("3", "3 apples and 2 pears", 0),
]
# gold, answer, what math_reward says although a teacher would say the opposite: the limits that
# the docstring of same_answer lists
LIMITS = [
    ("18", r"9\cdot 2", True),
    ("6", "3!", True),
    ("B", "b", True),
    ("x", "X", True),
    ("(2,-3)", "[2,-3]", True),
    (r"90^\circ", "90'", True),
    (r"\sqrt{2}", "1.414214", True),
    ("10 knots", "10 volts", True),
    ("5", "5m", True),
    (r"\frac{1}{3}", "0.333333333333", False),
    ("3+4i", r"3+4\cdot i", False),
    ("60", "60 m²", False),
    ("330 minutes", "5 hours 30 minutes", False),
    ("18.50", "18 dollars and 50 cents", False),
    ("18", "USD 18", False),
    ("18", "₹18", False),
    ("0.75", "0.75 of the cake", False),
    ("18", "eighteen", False),
    ("18", "about 18", False),
    ("18", "she makes 18 dollars", False),
    ("2.74", "2,74", False),
    ("5000000", "5 million", False),
    ("12:30 PM", "12:30 p.m.", False),
    ("Monday", "on Monday", False),
    ("-1,2", r"\boxed{-1} and \boxed{2}", False),
]


@latex
def test_forms_of_an_answer():
    "Notation must not decide; the value must."
    assert wrongly_graded(BARE) == []


@latex
def test_whole_completions():
    "What a student writes around an answer, and what it leaves unfinished."

    def rewards(gold, text):
        return [*numeric_reward([""], [text], [gold]), *math_reward([""], [text], [gold])]

    graded = [(gold, text, reward, rewards(gold, text)) for gold, text, reward in COMPLETIONS]
    assert [g for g in graded if g[3] != [g[2], g[2]]] == []


@latex
def test_known_limits():
    "A documented limit must be what the code does; one that is gone must go from the docstring."

    def grade(gold, answer):
        marked = answer if "boxed" in answer else f"#### {answer}"
        return math_reward([""], [marked], [gold]) == [1.0]

    assert wrongly_graded(LIMITS, grade) == []


def test_the_table_is_large():
    "Three hundred different cases at least, without those of math-verify; no case twice."
    cases = [*PAIRS, *LATEX, *BARE, *COMPLETIONS, *LIMITS]
    assert len(set(cases)) >= 300
    assert len(set(BARE)) == len(BARE)
    assert len(set(COMPLETIONS)) == len(COMPLETIONS)


# --- cases met in reports to other graders

REPORTS = [
    tuple(line.replace("⏎", "\n").split("\t")) for line in lines("reports.tsv") if "\t" in line
]


@latex
def test_cases_of_public_reports():
    "Right answers in people's phrases and notations, and near misses of them, in equal number."
    wrong = []
    for gold, text, verdict, *_ in REPORTS:
        graders = [math_reward, *[numeric_reward] * (parse_number(gold) is not None)]
        rewards = [grade([""], [text], [gold])[0] for grade in graders]
        if set(rewards) != {float(verdict == "right")}:
            wrong.append((gold, text, verdict, rewards))
    assert wrong == []
    right = sum(verdict == "right" for _, _, verdict, *_ in REPORTS)
    assert len(REPORTS) >= 400
    assert abs(2 * right - len(REPORTS)) <= 0.05 * len(REPORTS)
    assert len({case[:2] for case in REPORTS}) == len(REPORTS)


# --- math-verify's own cases

ROWS = [line.replace("⏎", "\n").split("\t") for line in lines("math_verify.tsv") if "\t" in line]
MATH_VERIFY = [(gold, answer, verdict == "same") for gold, answer, verdict, *_ in ROWS]
EXCEPTIONS = {(gold, answer): why for gold, answer, _, *rest in ROWS for why in rest}
REASONS = {  # why a verdict differs from math-verify's expectation
    "several": "of several boxes the last one is the answer here; math-verify joins them",
    "comma": "a decimal comma is ambiguous here: 1,234 is a thousand",
    "whole": "a final answer is read as a whole; math-verify finds a number in any sentence",
    "exact": "numbers are compared exactly; math-verify compares six digits",
    "unequal": "the two are not equal, whatever math-verify's test expects",
}


def bare(text):
    "The answer in a case of math-verify: what is boxed, or between dollar signs, or all of it."
    m = re.fullmatch(r"\$([^$]*)\$", text.strip())
    return final_answer(text) or (m[1] if m else text).strip()


@latex
def test_agreement_with_math_verify():
    "Where math-verify is right by its own tests, so is this grader, but for listed exceptions."
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    def theirs(gold, answer):
        a, b = (parse(text, configs, parsing_timeout=None) for text in (gold, answer))
        return verify(a, b, timeout_seconds=None)

    def ours(gold, answer):
        return same_answer(bare(gold), bare(answer))

    assert wrongly_graded(MATH_VERIFY, theirs) == []
    differ = {(gold, answer) for gold, answer, *_ in wrongly_graded(MATH_VERIFY, ours)}
    assert differ == EXCEPTIONS.keys()
    assert set(EXCEPTIONS.values()) == REASONS.keys()
    assert len(MATH_VERIFY) >= 100


# --- time

HOSTILE = (
    r"1¦1,¦{¦}¦\boxed{¦\boxed ¦####¦answer is ¦answer*¦<think>¦<answer>¦1/¦$¦a ¦1 a¦1 ¦"
    r"\frac{¦\frac1¦\frac{1}¦\text{¦\text ¦\text{a} ¦-¦*¦1,234¦{,}¦\,¦ ¦=¦1=¦x=¦1 apples ¦1.¦.1¦"
    r"0.\overline{3}¦1\overline{¦√¦√(¦√1¦pi¦_{1}¦²¦1 x 10^¦verdict¦verdict ¦verdict:¦verdict: ¦"
    r"verdict: a ¦verdict*¦verdict: solution ¦1+1=2 ¦1+¦1 apples + ¦<<1+1=¦$1¦%¦1% of ¦x¦1x¦^2¦"
    r"e9¦1e¦≤¦°¦\left¦and ¦−¦a=¦f(1)¦(¦[1,¦٣"
).split("¦")
HOSTILE += ["\n", "\t", "\u00a0"]


def patterns_of(module):
    "The compiled patterns of a module, alone or in tables of replacements."
    for value in vars(module).values():
        if isinstance(value, re.Pattern):
            yield value
        elif isinstance(value, list) and value and isinstance(value[0], tuple):
            yield from (row[0] for row in value if isinstance(row[0], re.Pattern))


def test_no_pattern_backtracks():
    "Completions of an unfinished model confuse patterns: 4,000 characters, some milliseconds."
    patterns = [*patterns_of(tasks), *patterns_of(judge)]
    assert len(patterns) > 20
    runs = [p.findall for p in patterns]
    runs += [final_answer, tasks._plain, tasks._latex, parse_number, parse_verdict]
    slow = []
    for unit in HOSTILE:
        text = "answer is 1" + unit * (4000 // len(unit)) + "!"
        for run in runs:
            began = time.process_time()
            run(text)
            took = time.process_time() - began
            if took > 0.1:  # a pattern that backtracks takes half a second
                slow.append((getattr(run, "__self__", run), unit, took))
    assert slow == []


@pytest.mark.parametrize(
    "run",
    [
        lambda t: numeric_reward([""], [t], ["7"]),
        lambda t: math_reward([""], [t], ["7"]),
        lambda t: same_answer("x", t),
        arithmetic_steps,
    ],
    ids=["numeric", "math", "same_answer", "steps"],
)
def test_hostile_texts_take_no_time(run):
    "Whole graders and the checker of steps: two seconds for any text, milliseconds as a rule."
    took = []
    for unit in HOSTILE:
        began = time.process_time()
        run(unit * (20000 // len(unit)))
        took.append(time.process_time() - began)
    assert max(took) < 2
    assert sorted(took)[len(took) // 2] < 0.1
