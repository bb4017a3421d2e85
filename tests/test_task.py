"The embedded task: splits, reward, reasoning checker, frontier."

import itertools
import math
import random
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev.task import (
    HELD_OUT,
    SPLITS,
    ChainTask,
    Flaw,
    apply_op,
    chain_dataset,
    chain_frontier,
    chain_prompts,
    chain_reward,
    check_steps,
    parse_prompt,
    prompt_frontier,
    split_of,
    step_validity,
    tilt,
    write_chain,
)

STEPS = st.lists(
    st.tuples(st.sampled_from("+-*"), st.integers(0, 9)),
    min_size=1,
    max_size=3,
)


@st.composite
def chains(draw):
    "A prompt of one to three steps."
    steps = "".join(f"{op}{b}" for op, b in draw(STEPS))
    return f"{draw(st.integers(0, 9))}{steps}="


def value_of(prompt):
    "The answer, straight from left to right with Python's own arithmetic."
    value, steps = parse_prompt(prompt)
    for op, b in steps:
        value = eval(f"({value}){op}{b}") % 10
    return str(value)


def test_chains_by_hand():
    "A chain is read and written as the documentation shows it, and the flaw adds one."
    assert parse_prompt("3+8*7=") == (3, [("+", 8), ("*", 7)])
    assert write_chain("3+8*7-2=") == "3+8=1;1*7=7;7-2=5#5"
    texts = {write_chain("2*7=", Flaw(), random.Random(seed)) for seed in range(20)}
    assert texts == {"2*7=4#4", "2*7=5#5"}


@given(chains())
def test_written_chains_are_right_and_check(prompt):
    "Answers in the dataset must be right, and the checker must accept a right solution."
    text, answer = write_chain(prompt), value_of(prompt)
    assert text.endswith("#" + answer)
    assert chain_reward([prompt], [text], [answer]) == [1.0]
    assert step_validity([prompt], [text]) == [1.0]


@given(chains(), st.integers(0, 40), st.sampled_from("0123456789+;#"))
def test_any_changed_character_breaks_the_reasoning(prompt, where, char):
    "Reasoning validity must notice every slip, or it would hide a student that only guesses."
    text = write_chain(prompt)
    where %= len(text)
    changed = text[:where] + char + text[where + 1 :]
    assert step_validity([prompt], [changed]) == [float(changed == text)]


@given(chains(), st.integers(0, 100))
def test_the_flaw_is_the_stated_one(prompt, seed):
    "The teacher's text errs only at flawed steps, by exactly `shift`: the frontier's teacher."
    flaw = Flaw()
    verdicts = check_steps(prompt, write_chain(prompt, flaw, random.Random(seed)))
    for ok, (op, b) in zip(verdicts, parse_prompt(prompt)[1]):
        assert ok or flaw.hits(op, b)
    assert verdicts[-1]
    assert write_chain(prompt, Flaw(prob=0.0), random.Random(seed)) == write_chain(prompt)


def test_splits_are_disjoint_and_reproducible():
    "Training prompts in the test set would make every reported number worthless."
    sets = {s: set(chain_prompts(800, s, seed)) for seed, s in itertools.product((0, 1), SPLITS)}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not sets[a] & sets[b]
    for name, found in sets.items():
        assert len(found) == 800 and all(split_of(p) == name for p in found)
    first = chain_prompts(50, "train", 0)
    assert first == chain_prompts(50, "train", 0)
    assert first != chain_prompts(50, "train", 1)


def test_the_dataset_has_the_right_answers():
    "Columns are the reward function's arguments."
    data = chain_dataset(200, "test", 3)
    assert data.column_names == ["prompt", "answer", "num_flawed"]
    assert len(set(data["prompt"])) == 200
    assert [value_of(p) for p in data["prompt"]] == list(data["answer"])
    for prompt, flawed in zip(data["prompt"], data["num_flawed"]):
        assert flawed == sum(op == "*" and b >= 5 for op, b in parse_prompt(prompt)[1])


def test_datasets_of_different_sizes_and_splits():
    "A small dataset is the start of a large one, and the test split shares nothing with it."
    data, test = chain_dataset(500, seed=1), chain_dataset(500, "test", seed=1)
    assert len(set(data["prompt"])) == 500
    assert not set(data["prompt"]) & set(test["prompt"])
    assert data["prompt"][:5] == chain_dataset(5, seed=1)["prompt"]


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_tasks_fit_the_embedded_models(name):
    "400 test prompts each, none a training prompt, and a context of 64 tokens is enough."
    task, trained_on = HELD_OUT[name], chain_dataset(500, seed=1)
    held = chain_dataset(400, "test", task=task)
    assert not set(held["prompt"]) & set(trained_on["prompt"])
    assert task.completion_length == len(write_chain(held["prompt"][0])) + 1
    assert len(held["prompt"][0]) + task.completion_length <= 64


def as_chat(text, role):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    "completion,reward",
    [
        ("3+8=1;1*7=7#7", 1.0),
        ("#7", 1.0),
        ("nonsense#7", 1.0),
        ("3+8=1;1*7=7#8", 0.0),
        ("3+8=1;1*7=7", 0.0),
        ("3+8=1;1*7=7#", 0.0),
        ("", 0.0),
        ("#", 0.0),
        ("#77", 0.0),
        ("#7#8", 0.0),
        ("#8#7", 1.0),
        ("# 7", 0.0),
        ("7", 0.0),
        ("3+8=1;1*7=7#7;", 0.0),
    ],
)
def test_reward_by_hand(completion, reward):
    "`#` and exactly the right digit: anything looser is a hole that training finds."
    prompt = "3+8*7="
    assert chain_reward([prompt], [completion], ["7"]) == [reward]
    chat_prompt, chat = as_chat(prompt, "user"), as_chat(completion, "assistant")
    assert chain_reward([chat_prompt], [chat], ["7"]) == [reward]


def test_the_reward_is_blind_to_missing_steps():
    "Why reasoning is measured beside it."
    prompt, good = "3+8*7-2=", "3+8=1;1*7=7;7-2=5#5"
    completions = [good, good[:-1] + "6", "#5"]
    assert chain_reward([prompt] * 3, completions, ["5"] * 3) == [1.0, 0.0, 1.0]
    assert step_validity([prompt] * 2, [good, "#5"]) == [1.0, 0.0]
    assert check_steps(prompt, good) == [True] * 4
    assert check_steps(prompt, "3+8=1;1*7=8;8-2=6#6") == [True, False, True, True]
    assert check_steps(prompt, good.replace("#5", "#6"))[-1] is False


@pytest.mark.parametrize(
    "completion,verdicts",
    [
        ("3+8=1;1*7=7#7", [1, 1, 1]),
        ("3+8=2;2*7=4#4", [0, 1, 1]),
        ("3+8=1;1*7=8#7", [1, 0, 0]),
        ("3+8=1#1", [1, 0, 0]),
        ("#7", [0, 0, 0]),
        ("", [0, 0, 0]),
        ("3+8=1;1*7=7;7+0=7#7", [1, 1, 0]),
        ("1*7=7;3+8=1#7", [0, 0, 0]),
    ],
)
def test_step_verdicts_by_hand(completion, verdicts):
    "What follows a wrong step consistently is right; extra, missing, swapped steps are not."
    assert check_steps("3+8*7=", completion) == [bool(v) for v in verdicts]


def test_tilt_by_hand():
    "No budget changes nothing, log 2 makes a coin certain, and both directions mirror each other."
    np.testing.assert_allclose(tilt([0.0, math.log(2), 5.0], 0.5), [0.5, 1.0, 1.0], atol=1e-9)
    p = tilt([0.1], 0.3)[0]
    spent = p * math.log(p / 0.3) + (1 - p) * math.log((1 - p) / 0.7)
    assert spent == pytest.approx(0.1, abs=1e-9)
    np.testing.assert_allclose(tilt([0.1], 0.5, up=False), 1 - tilt([0.1], 0.5), atol=1e-12)


@given(st.floats(0.01, 0.99), st.floats(0, 3))
def test_tilt_spends_exactly_the_budget(q, k):
    "The frontier stands on this: the best probability under a KL budget, from both sides."
    p, low = float(tilt([k], q)[0]), float(tilt([k], q, up=False)[0])

    def kl(p):
        return sum(a * np.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)

    assert 0 <= low <= q <= p <= 1
    for x in (p, low):
        assert kl(x) <= k + 1e-6
    if p < 1:
        assert kl(min(p + 1e-6, 1)) > k - 1e-9
    if low > 0:
        assert kl(max(low - 1e-6, 0)) > k - 1e-9


def test_frontier_is_bounded_and_monotone():
    "More budget never hurts, nothing beats certainty, and at zero the student is the teacher."
    prompts, budgets = chain_prompts(60, "test", 0), np.linspace(0, 3, 16)
    curve = chain_frontier(prompts, budgets)
    assert (np.diff(curve) >= -1e-12).all()
    assert 0 <= curve[0] < curve[-1] <= 1 + 1e-12
    assert curve[-1] == pytest.approx(1.0)
    clean = [p for p in prompts if not any(Flaw().hits(*s) for s in parse_prompt(p)[1])]
    assert clean  # nothing to correct, nothing to spend
    assert (chain_frontier(clean, budgets) == 1).all()


def teacher_accuracy(prompt, flaw=Flaw()):
    "The probability that the stated teacher is right, by enumeration of what it may write."
    value, steps = parse_prompt(prompt)
    chances = {value: 1.0}
    for op, b in steps:
        wrong = flaw.prob if flaw.hits(op, b) else 0.0
        new = dict.fromkeys(range(10), 0.0)
        for v, chance in chances.items():
            right = apply_op(v, op, b)
            new[right] += chance * (1 - wrong)
            new[(right + flaw.shift) % 10] += chance * wrong
        chances = new
    return chances[int(write_chain(prompt)[-1])]


def test_frontier_against_an_enumeration_of_the_teacher():
    "At no budget the frontier is the teacher's own accuracy; with enough it is certainty."
    for prompt in chain_prompts(30, "train", 3):
        frontier = prompt_frontier(prompt, 3.0)
        assert frontier[0] == pytest.approx(teacher_accuracy(prompt), abs=1e-12)
        assert frontier[-1] == pytest.approx(1.0, abs=1e-9)
        assert (np.diff(frontier) >= -1e-12).all()


def is_right_after(prompt, wrong):
    "1.0 where the answer is right although the given flawed steps (0 or 1 each) go wrong."
    value, steps = parse_prompt(prompt)
    wrong = iter(wrong)
    for op, b in steps:
        value = apply_op(value, op, b)
        if Flaw().hits(op, b):
            value = (value + next(wrong)) % 10
    return float(value == int(write_chain(prompt)[-1]))


def brute_force(prompt, d, n=1201):
    "Grid search over p at the first flawed step and at the second after either outcome; q = 1/2."
    p = np.linspace(0, 1, n)
    inner = np.clip(p, 1e-12, 1 - 1e-12)
    kl = inner * np.log(2 * inner) + (1 - inner) * np.log(2 * (1 - inner))
    kl[[0, -1]] = math.log(2)
    end = {e: is_right_after(prompt, e) for e in itertools.product((0, 1), repeat=2)}
    best = 0.0
    for p1, k1 in zip(p, kl):
        if k1 > d + 1e-12:
            continue
        p2 = p[k1 + kl <= d + 1e-9]
        after_right = max(p2 * end[0, 0] + (1 - p2) * end[0, 1])
        after_wrong = max(p2 * end[1, 0] + (1 - p2) * end[1, 1])
        best = max(best, p1 * after_right + (1 - p1) * after_wrong)
    return best


@pytest.mark.parametrize("d", [0.2, 0.8, 1.2])
@pytest.mark.parametrize("prompt", ["3*7+1*9=", "2*8*6-1=", "7*5-3*6="])
def test_frontier_against_brute_force(prompt, d):
    "All policies on a grid, for chains with exactly two flawed steps."
    frontier = prompt_frontier(prompt, d, grid=201)[-1]
    assert frontier == pytest.approx(brute_force(prompt, d), abs=2e-3)


@pytest.mark.parametrize("prob", [0.2, 0.5, 0.8])
def test_one_flaw_has_a_closed_form(prob):
    "One flawed step: the tilted probability itself, and log 1/(1-prob) nats buy certainty."
    flaw, d = Flaw(prob=prob), 0.3
    expected = float(tilt([d], 1 - prob)[0])
    assert prompt_frontier("1*7=", d, flaw, 31)[-1] == pytest.approx(expected, abs=1e-9)
    assert prompt_frontier("1*7=", 2.0, flaw)[-1] == pytest.approx(1.0)
    assert prompt_frontier("1*7=", -np.log(1 - prob) * 0.95, flaw)[-1] < 1 - 1e-4


def test_frontier_at_several_budgets_equals_each_alone():
    "One curve and single points must agree, or figures would contradict tables."
    prompts, budgets = chain_prompts(30, "test", 1), [0.2, 0.8, 1.6]
    together = chain_frontier(prompts, budgets, grid=161)
    alone = [chain_frontier(prompts, [d], grid=161)[0] for d in budgets]
    np.testing.assert_allclose(together, alone, atol=5e-3)


TINY = ChainTask(1, "*", operands="5")
OPS = r"ops must be made of the letters of '\+-\*', at least one, got '/'"


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda: chain_prompts(0, "train", 0), "n must lie between 1"),
        (lambda: chain_prompts(10, "dev", 0), "choose one of train, validation, test"),
        (lambda: chain_dataset(5, "dev"), "choose one of"),
        (lambda: chain_prompts(10**9, "test", 0), "n must lie between"),
        (lambda: chain_dataset(1000, task=ChainTask(num_ops=1)), "between 1 and"),
        (lambda: ChainTask(num_ops=0), "num_ops must be >= 1, got 0"),
        (lambda: ChainTask(ops="/"), OPS),
        (lambda: ChainTask(operands=""), "operands must be made of"),
        (lambda: chain_prompts(2, "test", 0, TINY), "n must lie between 1 and [01] "),
        (lambda: parse_prompt("3+8"), "not a chain prompt"),
        (lambda: parse_prompt("3+="), "not a chain"),
        (lambda: parse_prompt("33+8="), "not a chain prompt"),
    ],
)
def test_bad_tasks(call, match):
    "A task that cannot be drawn must say so instead of looping for ever."
    with pytest.raises(ValueError, match=match):
        call()


def test_small_tasks_terminate():
    "Drawing distinct prompts from a small set must end."
    assert len(set(chain_prompts(15, "validation", 0, ChainTask(num_ops=1)))) == 15


@given(
    st.lists(st.sampled_from("+-*"), min_size=1, max_size=5),
    st.lists(st.sampled_from("0123456789"), min_size=1, max_size=12),
    st.integers(1, 7),
)
def test_tasks_draw_only_what_they_name(ops, operands, num_ops):
    "Other lengths, operations or operands: exactly those, and completions of the stated length."
    task = ChainTask(num_ops, "".join(ops), operands="".join(operands))
    try:
        data = chain_dataset(2, "train", 0, task)
    except ValueError:
        assert 10 * (len(set(ops)) * len(set(operands))) ** num_ops < 20
        return
    for prompt in data["prompt"]:
        steps = parse_prompt(prompt)[1]
        assert len(steps) == num_ops
        assert {op for op, _ in steps} <= set(ops)
        assert {str(b) for _, b in steps} <= set(operands)
        assert task.completion_length == len(write_chain(prompt)) + 1


def test_repeated_letters_are_drawn_more_often():
    "The weights of operations and operands are given by repetition."
    task = ChainTask(7, "+***", operands="0123456789" + "9" * 10)
    prompts = chain_prompts(1000, "train", 0, task)
    stars = sum(p.count("*") for p in prompts)
    nines = sum(b == 9 for p in prompts for _, b in parse_prompt(p)[1])
    assert stars / 7000 == pytest.approx(0.75, abs=0.02)
    assert nines / 7000 == pytest.approx(0.55, abs=0.02)
    half = chain_prompts(1000, "train", 0, ChainTask(4, "+-**"))
    assert np.mean([p.count("*") for p in half]) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    "task", [ChainTask(1, "*", operands="57"), ChainTask(2, "++*", operands="19"), ChainTask(1)]
)
def test_drawing_every_prompt_of_a_small_task_ends(task):
    "The stated number must really be there, also where operations are few or uneven."
    with pytest.raises(ValueError, match="n must lie between 1 and") as e:
        chain_prompts(0, "train", 0, task)
    room = int(str(e.value).split(" and ")[1].split()[0])
    assert len(set(chain_prompts(room, "train", 0, task))) == room > 5


def test_published_datasets_do_not_change():
    "Committed results were computed on these prompts."
    checksums = [zlib.crc32("".join(chain_prompts(200, s, 0)).encode()) for s in SPLITS]
    assert checksums == [2593730269, 3759030853, 556022400]
