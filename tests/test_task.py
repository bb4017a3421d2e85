"The embedded task: splits, reward, reasoning checker, frontier."

import itertools
import random
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev.task import (
    SPLITS,
    ChainTask,
    Flaw,
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

chains = st.builds(
    lambda v, steps: str(v) + "".join(o + str(b) for o, b in steps) + "=",
    st.integers(0, 9),
    st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 9)), min_size=1, max_size=3),
)


def value_of(prompt):
    "The answer, straight from left to right with Python's own arithmetic."
    value, steps = parse_prompt(prompt)
    for op, b in steps:
        value = eval(f"({value}){op}{b}") % 10
    return str(value)


@given(chains)
def test_written_chains_are_right_and_check(prompt):
    "Answers in the dataset must be the right ones, and the checker must accept a right solution."
    text = write_chain(prompt)
    assert text.endswith("#" + value_of(prompt))
    assert chain_reward([prompt], [text], [value_of(prompt)]) == [1.0] and step_validity(
        [prompt], [text]
    ) == [1.0]


@given(chains, st.integers(0, 40), st.sampled_from("0123456789+;#"))
def test_any_changed_character_breaks_the_reasoning(prompt, where, char):
    "Reasoning validity must notice every slip, or it would hide a student that only guesses answers."
    text = write_chain(prompt)
    where %= len(text)
    changed = text[:where] + char + text[where + 1 :]
    assert step_validity([prompt], [changed]) == [float(changed == text)]


@given(chains, st.integers(0, 100))
def test_the_flaw_is_the_stated_one(prompt, seed):
    "The teacher's text errs only at flawed steps, by exactly `shift`; the frontier is computed for that teacher."
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
    assert (
        chain_prompts(50, "train", 0)
        == chain_prompts(50, "train", 0)
        != chain_prompts(50, "train", 1)
    )


def test_the_dataset_has_the_right_answers():
    "Columns are the reward function's arguments."
    data = chain_dataset(200, "test", 3)
    assert (
        set(data.column_names) == {"prompt", "answer", "num_flawed"}
        and len(set(data["prompt"])) == 200
    )
    assert [value_of(p) for p in data["prompt"]] == list(data["answer"])
    assert [
        sum(o == "*" and b >= 5 for o, b in parse_prompt(p)[1]) for p in data["prompt"]
    ] == list(data["num_flawed"])


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
    "The reward must need `#` and exactly the right digit: anything looser is a hole that training finds."
    assert chain_reward(["3+8*7="], [completion], ["7"]) == [reward]
    assert chain_reward(
        [[{"role": "user", "content": "3+8*7="}]],
        [[{"role": "assistant", "content": completion}]],
        ["7"],
    ) == [reward]


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
    "A wrong step is one wrong step, and what follows it consistently is right; extra, missing and swapped steps are not."
    assert check_steps("3+8*7=", completion) == [bool(v) for v in verdicts]


@given(st.floats(0.01, 0.99), st.floats(0, 3))
def test_tilt_spends_exactly_the_budget(q, k):
    "The frontier stands on this: the best probability under a KL budget, from above and below."
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
    assert (
        (np.diff(curve) >= -1e-12).all()
        and 0 <= curve[0] < curve[-1] <= 1 + 1e-12
        and curve[-1] == pytest.approx(1.0)
    )
    clean = [p for p in prompts if not any(Flaw().hits(*s) for s in parse_prompt(p)[1])]
    assert (
        clean and (chain_frontier(clean, budgets) == 1).all()
    )  # nothing to correct, nothing to spend


@pytest.mark.parametrize("prob", [0.2, 0.5, 0.8])
def test_one_flaw_has_a_closed_form(prob):
    "For a single flawed step the frontier is the tilted probability itself, and log 1/(1-prob) nats buy certainty."
    flaw, d = Flaw(prob=prob), 0.3
    assert prompt_frontier("1*7=", d, flaw, 31)[-1] == pytest.approx(
        float(tilt([d], 1 - prob)[0]), abs=1e-9
    )
    assert prompt_frontier("1*7=", 2.0, flaw)[-1] == pytest.approx(1.0)
    assert prompt_frontier("1*7=", -np.log(1 - prob) * 0.95, flaw)[-1] < 1 - 1e-4


def test_frontier_at_several_budgets_equals_each_alone():
    "One curve and single points must agree, or figures would contradict tables (up to the grid)."
    prompts = chain_prompts(30, "test", 1)
    together = chain_frontier(prompts, [0.2, 0.8, 1.6], grid=161)
    alone = [chain_frontier(prompts, [d], grid=161)[0] for d in (0.2, 0.8, 1.6)]
    np.testing.assert_allclose(together, alone, atol=5e-3)


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda: chain_prompts(0, "train", 0), "n must lie between 1"),
        (lambda: chain_prompts(10, "dev", 0), "choose one of train, validation, test"),
        (lambda: chain_prompts(10**9, "test", 0), "n must lie between"),
        (lambda: ChainTask(num_ops=0), "num_ops must be >= 1, got 0"),
        (
            lambda: ChainTask(ops="/"),
            r"ops must be made of the letters of '\+-\*', at least one, got '/'",
        ),
        (lambda: ChainTask(operands=""), "operands must be made of"),
        (
            lambda: chain_prompts(2, "test", 0, ChainTask(1, "*", operands="5")),
            "n must lie between 1 and [01] ",
        ),
        (lambda: parse_prompt("3+8"), "not a chain prompt"),
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
    "A study of other lengths, operations or operands must get exactly those, and its completions must fit the stated length."
    task = ChainTask(num_ops, "".join(ops), operands="".join(operands))
    try:
        data = chain_dataset(2, "train", 0, task)
    except ValueError:
        assert 10 * (len(set(ops)) * len(set(operands))) ** num_ops < 20
        return
    for prompt in data["prompt"]:
        steps = parse_prompt(prompt)[1]
        assert (
            len(steps) == num_ops
            and {o for o, _ in steps} <= set(ops)
            and {str(b) for _, b in steps} <= set(operands)
        )
        assert task.completion_length == len(write_chain(prompt)) + 1


def test_repeated_letters_are_drawn_more_often():
    "The weights of operations and operands are given by repetition."
    prompts = chain_prompts(
        1000, "train", 0, ChainTask(7, "+***", operands="0123456789" + "9" * 10)
    )
    assert sum(p.count("*") for p in prompts) / 7000 == pytest.approx(0.75, abs=0.02)
    assert sum(b == 9 for p in prompts for _, b in parse_prompt(p)[1]) / 7000 == pytest.approx(
        0.55, abs=0.02
    )


def test_drawing_every_prompt_of_a_small_task_ends():
    "The stated number of prompts must really be there, also where the operations are few or unevenly weighted."
    for task in (
        ChainTask(1, "*", operands="57"),
        ChainTask(2, "++*", operands="19"),
        ChainTask(1),
    ):
        with pytest.raises(ValueError, match="n must lie between 1 and") as e:
            chain_prompts(0, "train", 0, task)
        room = int(str(e.value).split(" and ")[1].split()[0])
        assert len(set(chain_prompts(room, "train", 0, task))) == room > 5


def test_published_datasets_do_not_change():
    "Committed results were computed on these prompts."
    assert [zlib.crc32("".join(chain_prompts(200, s, 0)).encode()) for s in SPLITS] == [
        2593730269,
        3759030853,
        556022400,
    ]
