"""reasoning-gym as its users have it: what its scorers accept is accepted, and nothing is run.

Every data set's own answers, read from its column and scored in the grading process.
"""

import importlib.util
import json
import warnings
from datetime import date
from enum import Enum

import pytest

from cmdp_nbdev import tasks
from cmdp_nbdev.tasks import (
    _WARNED,
    _grade,
    _pack,
    _unpack,
    gym_dataset,
    gym_reward,
    open_task,
    same_answer,
)

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("reasoning_gym"), reason="the extra 'math' is not installed"
)
latex = pytest.mark.skipif(
    not importlib.util.find_spec("math_verify"), reason="the extra 'math' is not installed"
)


def scores(texts, entry, partial=True):
    "Rewards of completions of one item, without warnings."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gym_reward([""] * len(texts), texts, [entry] * len(texts), partial)


# --- the answers that come with the items

NO_ANSWER = {  # many are right: each is tried with one of its own below
    "boxnet": "any plan that brings the boxes to their targets",
    "graph_color": "any coloring",
    "propositional_logic": "any conclusion that follows",
    "rubiks_cube": "any moves that solve the cube",
    "rush_hour": "any moves that let the car out",
}
NO_DATASET = {"composite": "a mixture of the others, by objects that no text can hold"}
SMALLER = {"futoshiki": ",max_board_size=4"}  # seconds for a larger board


def test_every_datasets_own_answers():
    "Alone, in tags and after the mark that the system prompt asks for: full marks, no exception."
    from reasoning_gym.factory import DATASETS

    lost, without = {}, set()
    for name in sorted(DATASETS.keys() - NO_DATASET.keys()):
        data = open_task(f"reasoning_gym:{name}{SMALLER.get(name, '')}", n=2)
        for answer, entry in zip(data["answer"], data["entry"]):
            if answer is None:
                without.add(name)
                continue
            forms = [
                answer,
                f"I think.\n<answer>{answer}</answer>",
                f"<think>1</think>#### {answer}",
            ]
            if (found := scores(forms, entry)) != [1.0] * 3:
                lost.setdefault(name, []).append((answer, found))
    assert lost == {}
    assert without == NO_ANSWER.keys()
    assert len(DATASETS) > 100


def test_a_mixture_of_datasets_is_refused_with_a_way_out():
    "One sentence for the one name that is no data set."
    with pytest.raises(ValueError, match="'composite' mixes other datasets.*concatenate_datasets"):
        open_task("reasoning_gym:composite", n=1)


def test_every_kind_of_integral():
    "Antiderivatives count in any form; where sympy knew none, only the own answer may say so."
    kinds = ["linear", "trigonometric", "exponential", "radical", "log_inverse_trig"]
    kinds += ["polynomial_exp_trig", "cyclic", "repeated_parts"]
    for kind in kinds:
        only = {"problem_types": (kind,), "problem_type_weights": [1.0]}
        data = gym_dataset("intermediate_integration", 1, **only)
        answer, entry = data["answer"][0], data["entry"][0]
        metadata = json.loads(entry)["metadata"]
        open_form = f"Integral({metadata['integrand']}, {metadata['variable']}) + C"
        assert scores([answer, f"0 + {answer}", f"{answer} + 3"], entry)[0] == 1.0, (kind, answer)
        if "Integral" not in answer:
            assert scores([f"3 - 3 + {answer}", open_form], entry) == [1.0, 0.0], (kind, answer)


# --- items without an answer


def plan(metadata):
    "A boxnet plan: each box goes square by square to its target."
    state = metadata["initial_state"]
    at = {thing: tuple(map(float, k.split("_"))) for k, things in state.items() for thing in things}
    steps = []
    for box in [thing for thing in at if thing.startswith("box_")]:
        target = box.replace("box_", "target_")
        (x, y), (to_x, to_y) = at[box], at[target]
        while (x, y) != (to_x, to_y):
            new_x = x + (to_x > x) - (to_x < x)
            new_y = y if new_x != x else y + (to_y > y) - (to_y < y)
            steps.append({f"Agent[{x}, {y}]": f"move({box}, square[{new_x}, {new_y}])"})
            x, y = new_x, new_y
        steps.append({f"Agent[{x}, {y}]": f"move({box}, {target})"})
    return json.dumps(steps)


SOLVED = {
    "boxnet": plan,
    "graph_color": lambda metadata: json.dumps(dict(metadata["possible_answer"])),
    "propositional_logic": lambda metadata: metadata["example_answer"],
    "rubiks_cube": lambda metadata: metadata["example_correct_answer"],
    "rush_hour,max_moves=1": lambda metadata: "A+4",
}


@pytest.mark.parametrize("spec", SOLVED)
def test_items_without_an_answer(spec):
    "A solution gets what the scorer gives it outside of the grading process, and so does another."
    import reasoning_gym

    entry = open_task(f"reasoning_gym:{spec}", n=1)["entry"][0]
    item = json.loads(entry, object_hook=_unpack)
    scorer = reasoning_gym.create_dataset(spec.partition(",")[0], seed=0, size=1, **item["config"])
    answers = [SOLVED[spec](item["metadata"]), "A", "{}"]
    assert scores(answers, entry) == [scorer.score_answer(answer, item) for answer in answers]
    assert scores(answers[:1], entry, partial=False) == [1.0]


# --- what the way through a column must not lose

HELD = [
    {"moves": [(1, 2), ("a", (3,))], "empty": ()},
    {"colors": {0: "red", 1.5: "blue", (1, 2): "green", None: 1, True: 2}},
    {"seen": {3, 1, 2}, "fixed": frozenset("ab")},
    {"day": date(2024, 2, 29), "flags": [True, None, 0.1, 10**30]},
    {"tuple": [1, 2]},  # looks like a mark
    {"set": {"dict": {"date": "2024-01-01"}}},
    {"tuple": 1, "set": 2},
]


@pytest.mark.parametrize("held", HELD, ids=" ".join)
def test_types_come_back(held):
    "Tuples, sets, dates and keys come back as they were, and what looks like a mark does, too."
    back = json.loads(json.dumps(_pack(held), allow_nan=False), object_hook=_unpack)
    assert back == held
    assert repr(type(next(iter(back.values())))) == repr(type(next(iter(held.values()))))


def test_numbers_of_numpy_stay_numbers():
    "An item's 3 must not become the text '3' because numpy made it."
    import numpy as np

    held = {np.str_("a"): np.int64(3), "b": [np.float64(0.5), np.bool_(True)], "c": np.arange(2)}
    assert json.loads(json.dumps(_pack(held))) == {"a": 3, "b": [0.5, True], "c": [0, 1]}


def test_settings_of_every_kind():
    "A date from the command line reaches the scorer; what no text can hold is refused."
    spec = "reasoning_gym:time_intervals,min_date=2001-02-03,max_date=2005-06-07,task_types=[date]"
    data = open_task(spec, n=2)
    assert gym_reward([""] * 2, data["answer"], data["entry"]) == [1.0] * 2
    kind = Enum("kind", "upper")
    with pytest.raises(ValueError, match="settings of 'chain_sum' must be texts, numbers, dates"):
        gym_dataset("chain_sum", 1, min_terms=kind.upper)
    for bad in ("n=5", "split=test", "seed=3", "name=x"):
        with pytest.raises(ValueError, match=f"{bad[:4]}.* is an option of its own"):
            open_task(f"reasoning_gym:n_queens,{bad}", n=1)


# --- what a completion answers

BOARD = "_ Q\nQ _"


@pytest.mark.parametrize(
    "text,gold,answer",
    [
        (BOARD, BOARD, BOARD),
        (f"So:\n#### {BOARD}", BOARD, BOARD),
        (f"####\n{BOARD}\n", BOARD, BOARD),
        (f"<answer>\n{BOARD}\n</answer>", BOARD, BOARD),
        (f"<answer>#### {BOARD}</answer>", BOARD, BOARD),
        (f"#### {BOARD}\n\\boxed{{5}}", BOARD, "5"),
        ("<answer>Q _\n_ Q</answer>", BOARD, "Q _\n_ Q"),
        ("#### 5\nIs it?", "5", "5"),
        (f"Answer:\n{BOARD}", BOARD, BOARD),
        ("The answer is Q _\n_ Q", BOARD, "Q _\n_ Q"),
        ("<answer>Q _\n_ Q</answer>\nThe answer is above.", BOARD, "Q _\n_ Q"),
        ("The answer is: I saw Mr. X.", "I saw Mr. X.", "I saw Mr. X."),
        ("The answer is 6. Is it?", "5", "6"),
        ("#### .##.", "#### .##.", "#### .##."),
        ("I see\n<answer>a #### b</answer>", "a #### b", "a #### b"),
        ("<answer>1</answer>\n<answer>2</answer>", "1", "2"),
        ("<answer>1</answer>, no, #### 2", "1", "2"),
        ("the answer is: no", "the answer is: no", "the answer is: no"),
        ("<think>5</think>$\\frac{1}{2}$", "$\\frac{1}{2}$", "$\\frac{1}{2}$"),
        ("8.05e-06", "8.05e-06", "8.05e-06"),
        ("34 days", "34 days", "34 days"),
        ("<think>5", "5", ""),
        ("<answer></answer>", "", ""),
        ("", "5", ""),
    ],
)
def test_what_is_read(text, gold, answer):
    "The reference answer as it stands; else the last mark, with all lines where it has several."
    assert tasks._gym_answer(text, gold) == answer


def test_an_empty_answer_can_be_right():
    "A program of ab may reduce to nothing; elsewhere nothing is no answer."
    entry = json.loads(gym_dataset("ab", 1)["entry"][0])
    empty, full = ({**entry, "answer": answer} for answer in ("", "A#"))
    texts = ["<answer></answer>", "", "A#"]
    assert scores(texts, json.dumps(empty)) == [1.0, 1.0, 0.0]
    assert scores(texts, json.dumps(full)) == [0.0, 0.0, 1.0]


def test_a_long_answer_can_be_right():
    "Ten disks of the tower of Hanoi take 1023 lines; what is far longer than that is not read."
    data = gym_dataset("tower_of_hanoi", 1, min_disks=10, max_disks=10, min_pegs=3, max_pegs=3)
    answer, entry = data["answer"][0], data["entry"][0]
    assert len(answer) > 20000
    assert scores([answer, f"<answer>\n{answer}\n</answer>", answer * 3], entry) == [1.0, 1.0, 0.0]


# --- mathematics is read, code is not

SCHOOL = """
2*x + 1 = 1 + x*2
factorial(5) = 120
5! = 120
abs(-3) = 3
max(1, 2) = 2
1e5 = 100000.0
1.5e-3*x = x*1.5e-3
log(8, 2) = 3
exp(1) = E
Rational(1, 2) = Rational(2, 4)
cbrt(8) = 2
sqrt(8) = 2*sqrt(2)
1/(1 + x) = (1 + x)**(-1)
asinh(x) + sec(x) = sec(x) + asinh(x)
asin(x)*erf(x) = erf(x)*asin(x)
acot(x) + atan2(x, y) = atan2(x, y) + acot(x)
log(x)/log(2) = ln(x)/ln(2)
alpha*mu = mu*alpha
oo + 1 = oo
I**2 = -1
pi - pi = 0
floor(5/2) = 2
Piecewise((x, Ne(x, 0)), (0, True)) = Piecewise((x, Ne(x, 0)), (0, True))
"""
CODE = """
__import__('os').system('touch WRITTEN')
open('WRITTEN', 'w')
eval("open('WRITTEN', 'w')")
exec(chr(111))
(lambda: 1)()
[1 for x in (1, 2)]
(1).__class__.__base__
x.__class__
x. __class__
exp(x).free_symbols
x.is_real
f'{x}'
print(7)
getattr(x, y)
1 << 10**12
ｅｖａｌ(x)
"""
NEVER = ["9**9**9**9", "factorial(10**9)"]
LONG = ["(" * 9000, "-" * 9000 + "1", "1+" * 9000 + "1", "[" * 9000, "x" * 9000]


def polynomial(answer):
    "An item of polynomial_multiplication with this answer, whose scorer compares expressions."
    return {**json.loads(gym_dataset("polynomial_multiplication", 1)["entry"][0]), "answer": answer}


def test_school_mathematics_is_read():
    "Functions, constants and numbers as sympy writes them must not be taken for code."
    pairs = [line.split(" = ") for line in SCHOOL.strip().splitlines()]
    item = polynomial("")
    graded = [(a, b, *scores([b], json.dumps({**item, "answer": a}))) for a, b in pairs]
    assert graded == [(a, b, 1.0) for a, b in pairs]


CODE_SCORERS = ["polynomial_multiplication", "countdown", "simple_integration", "puzzle24"]
CODE_SCORERS += ["spiral_matrix", "n_queens", "binary_matrix", "string_insertion"]


def test_code_is_not_run(tmp_path):
    "Whichever scorer evaluates: each text is worth nothing, ends at once, and leaves no trace."
    code = CODE.strip().replace("WRITTEN", str(tmp_path / "written")).splitlines()
    texts = [f"<answer>{text}</answer>" for text in [*code, *LONG]]
    _WARNED.clear()
    for name in CODE_SCORERS:
        assert (name, max(scores(texts, gym_dataset(name, 1)["entry"][0])) < 0.1) == (name, True)
    assert not [trouble for _, trouble in _WARNED if "did not finish" in trouble]
    assert list(tmp_path.iterdir()) == []


def test_what_never_ends_is_ended():
    "Numbers beyond bounds cost the CPU seconds that an answer may take; the next one is fine."
    item = polynomial("x + 1")
    for answer in NEVER:
        score, trouble = _grade("gym", [item["dataset"], "{}"], item, answer, seconds=0.3)
        assert (answer, score) == (answer, 0.0)
        assert "did not finish within 0.3 s" in trouble
    assert scores(["1 + x"], json.dumps(item)) == [1.0]


@latex
def test_the_guard_is_for_reasoning_gym_only():
    "One process grades both: LaTeX after reasoning-gym must be what it is alone."
    item = polynomial("x**2 - 1")
    assert scores(["x*x - 1"], json.dumps(item)) == [1.0]
    process = _grade.process.pid
    assert same_answer("x^2-1", "(x-1)(x+1)")
    assert same_answer(r"\frac{1}{x}", "x^{-1}")
    assert scores(["open('written')"], json.dumps(item)) == [0.0]
    assert _grade.process.pid == process
