"Word problems: what a problem is, what its solution is, and what the checkers find in others."

import itertools
import json
import math
import random
import re

import numpy as np
import pytest
import torch

from cmdp_nbdev.cli import evaluate_main, main
from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.model import DATA, WORDS_MODELS, check_pair, load_tokenizer, words_pair
from cmdp_nbdev.options import DISTILL, parse
from cmdp_nbdev.words import (
    EQUATION,
    KINDS,
    NAMES,
    THINGS,
    WORDS_SPLITS,
    Misreading,
    answer_of,
    check_sentences,
    compute,
    has_numbers,
    has_skeleton,
    left_out,
    read_steps,
    steps_text,
    words_dataset,
    words_frontier,
    words_problems,
    words_reward,
    words_validity,
    write_solution,
)

PROBLEMS = {split: words_problems(150, split, seed=3) for split in WORDS_SPLITS}
ALL = [problem for problems in PROBLEMS.values() for problem in problems]
SLIPS = Misreading()


def skeleton_of(problem):
    "The kinds of its steps."
    return tuple(step.kind for step in problem.steps)


def numbers_of(problem):
    "The numbers that it gives."
    numbers = [n for step in problem.steps for n in (step.left, step.right)]
    return tuple(n for n in numbers if not n.startswith("#"))


PROMPT = (
    "Ben has 4 fewer apples than Ana. Ana has 12 apples. Ben buys another 7 apples. "
    "How many apples does Ben have now? Answer:"
)
STEPS = "fewer 12 - 4; gets #1 + 7"
FIRST, SECOND = "Ben has 12 - 4 = 8 apples.", "Ben now has 8 + 7 = 15 apples."
LAST = "The answer is 15."


def judged(text, steps=STEPS):
    "Validity and steps left out of one completion."
    rows = dict(prompts=[PROMPT], completions=[text], steps=[steps])
    return words_validity(**rows)[0], left_out(**rows)[0]


def test_a_problem_is_small_and_its_solution_reads_as_promised():
    "Two to five steps, one operation a sentence, every number below 100 whatever is misread."
    for i, problem in enumerate(ALL):
        assert 2 <= len(problem.steps) == len(problem.sentences) <= 5
        for text in (write_solution(problem), write_solution(problem, SLIPS, random.Random(i))):
            *sentences, last = re.split(r"(?<=\.) ", text.removeprefix(" "))
            assert len(sentences) == len(problem.steps) and last.startswith("The answer is ")
            found = [EQUATION.findall(sentence) for sentence in sentences]
            assert all(len(equations) == 1 for equations in found)
            for ((a, op, b, c),) in found:
                assert compute(int(a), op, int(b)) == int(c) and 0 < int(c) < 100
            assert last == f"The answer is {found[-1][0][3]}."


def test_problems_vary():
    "Every kind, name and thing occurs, and questions and comparisons stand in either place."
    prompts = " ".join(p.prompt for p in PROBLEMS["train"])
    assert {step.kind for p in PROBLEMS["train"] for step in p.steps} == set(KINDS)
    assert all(word in prompts for word in [*NAMES, *THINGS])
    first = [p.prompt.startswith("How many") for p in ALL]
    assert 0.1 < np.mean(first) < 0.4
    assert all(p.prompt.endswith(" Answer:") for p in ALL)


def test_a_third_has_one_misread_step_and_a_tenth_two():
    "The conflict is as large as stated, and nobody meets three."
    seen = [p for split in ("train", "validation", "test") for p in PROBLEMS[split]]
    counts = np.array([skeleton_of(p).count(SLIPS.kind) for p in seen])
    assert np.mean(counts == 1) == pytest.approx(0.36, abs=0.08)
    assert np.mean(counts == 2) == pytest.approx(0.09, abs=0.05)
    assert counts.max() == 2


def test_splits_share_neither_numbers_nor_skeletons():
    "Numbers of test problems are new, skeletons of unseen ones too, and reworded ones say it new."
    sets = {split: {numbers_of(p) for p in problems} for split, problems in PROBLEMS.items()}
    for a, b in itertools.combinations(("train", "validation", "test"), 2):
        assert not sets[a] & sets[b]
    assert not sets["train"] & (sets["unseen"] | sets["reworded"])
    seen = {skeleton_of(p) for split in WORDS_SPLITS if split != "unseen" for p in PROBLEMS[split]}
    assert not seen & {skeleton_of(p) for p in PROBLEMS["unseen"]}
    for split, problems in PROBLEMS.items():
        assert all(has_skeleton(skeleton_of(p), split) for p in problems)
        assert all(has_numbers(p.steps, split) for p in problems)


def test_reworded_problems_use_wordings_that_training_never_has():
    "Not one sentence of theirs could stand in a training problem."

    def patterns(split):
        people, things = "|".join(NAMES), "|".join(THINGS)
        for problem in PROBLEMS[split]:
            text = re.sub(rf"\b({people})\b", "N", problem.prompt.removesuffix(" Answer:"))
            text = re.sub(r"\d+", "9", re.sub(rf"\b({things})\b", "T", text))
            yield from re.split(r"(?<=[.?]) ", text)

    assert not set(patterns("train")) & set(patterns("reworded"))


def test_datasets_are_reproducible_and_say_what_the_checkers_need():
    "A small data set is the start of a large one; columns are the arguments of the functions."
    data = words_dataset(60, "validation", seed=1)
    assert data.column_names == ["prompt", "answer", "num_flawed", "steps"]
    assert data["prompt"][:5] == words_dataset(5, "validation", seed=1)["prompt"]
    assert data["prompt"][:5] != words_dataset(5, "validation", seed=2)["prompt"]
    assert len(set(data["prompt"])) == 60
    for problem in words_problems(60, "validation", seed=1)[:10]:
        assert tuple(read_steps(steps_text(problem.steps))) == problem.steps


@pytest.mark.parametrize("wrong", [dict(split="tset"), dict(n=0)])
def test_what_cannot_be_drawn_is_refused(wrong):
    "With the name of what is wrong."
    with pytest.raises(ValueError, match="split 'tset'|n must be a whole number, at least 1"):
        words_problems(**{"n": 3, **wrong})


def test_right_solutions_earn_and_check_in_both_dialects():
    "The checkers accept what the generator writes."
    for terse in (False, True):
        texts = [write_solution(p, terse=terse) for p in ALL]
        columns = dict(prompts=[p.prompt for p in ALL], completions=texts)
        steps = [steps_text(p.steps) for p in ALL]
        assert words_reward(answer=[answer_of(p) for p in ALL], **columns) == [1.0] * len(ALL)
        assert words_validity(steps=steps, **columns) == [1.0] * len(ALL)
        assert left_out(steps=steps, **columns) == [0.0] * len(ALL)


def test_a_misread_step_is_the_only_thing_wrong_and_is_never_made_good():
    "The stated teacher: wrong at exactly the steps of its kind that it misread, and so at the end."
    for i, problem in enumerate(ALL):
        text = write_solution(problem, SLIPS, random.Random(i))
        verdicts = check_sentences(problem.prompt, text, steps_text(problem.steps))
        assert [v.step for v in verdicts] == list(range(len(problem.steps)))
        assert all(v.arithmetic and v.numbers for v in verdicts)
        misread = [v.step for v in verdicts if not v.operation]
        assert all(problem.steps[step].kind == SLIPS.kind for step in misread)
        (reward,) = words_reward([problem.prompt], [text], [answer_of(problem)])
        assert reward == float(not misread)


@pytest.mark.parametrize("left", range(3))
def test_what_is_left_out_is_counted(left):
    "A solution without some of its sentences is right at the end, and not valid."
    for problem in [p for p in ALL if len(p.steps) > left > 0]:
        sentences = re.split(r"(?<=\.) ", write_solution(problem).strip())
        kept = random.Random(left).sample(range(len(problem.steps)), len(problem.steps) - left)
        text = " ".join([sentences[i] for i in sorted(kept)] + sentences[-1:])
        rows = dict(prompts=[problem.prompt], completions=[text], steps=[steps_text(problem.steps)])
        assert left_out(**rows) == [float(left)] and words_validity(**rows) == [0.0]
        assert words_reward(answer=[answer_of(problem)], **rows) == [1.0]


@pytest.mark.parametrize(
    "text,valid,missing",
    [
        (f" {FIRST} {SECOND} {LAST}", 1.0, 0.0),
        (f"{FIRST} {SECOND} {LAST}\n", 1.0, 0.0),
        (f" {SECOND} {LAST}", 0.0, 1.0),
        (f" {LAST}", 0.0, 2.0),
        ("", 0.0, 2.0),
        (f" {FIRST} {SECOND}", 0.0, 0.0),
        (f" {FIRST} {SECOND} The answer is 8.", 0.0, 0.0),
        (f" {FIRST} {FIRST} {SECOND} {LAST}", 0.0, 0.0),
        (f" {FIRST} 90 + 3 = 93. {SECOND} {LAST}", 0.0, 0.0),
        (f" {FIRST} Well well. {SECOND} {LAST}", 0.0, 0.0),
        (f" Ben has 12 - 4 = 9 apples. Ben now has 9 + 7 = 16 apples. {LAST}", 0.0, 0.0),
        (f" Ben has 12 + 4 = 16 apples. {SECOND} {LAST}", 0.0, 0.0),
        (" 12 - 4 = 8. 7 + 8 = 15. The answer is 15.", 1.0, 0.0),
        (" 4 - 12 = 8. 8 + 7 = 15. The answer is 15.", 0.0, 0.0),
    ],
)
def test_other_solutions(text, valid, missing):
    "Wrong, left out, said twice, foreign, cut off, in another order: each as it should be."
    assert judged(text) == (valid, missing)


def test_one_slip_is_one_slip():
    "What follows a slip consistently is right, and the verdict says what kind of slip it was."
    text = f" Ben has 12 + 4 = 16 apples. Ben now has 16 + 7 = 23 apples. {LAST}"
    first, second = check_sentences(PROMPT, text, STEPS)
    assert (first.step, first.arithmetic, first.numbers, first.operation) == (0, True, True, False)
    assert second.right and second.step == 1
    (foreign,) = check_sentences(PROMPT, " There are 50 + 1 = 51 days.", STEPS)
    assert foreign.step is None and foreign.arithmetic and not foreign.numbers
    (skipped,) = check_sentences(PROMPT, f" {SECOND}", STEPS)
    assert skipped.step == 1 and skipped.operation and not skipped.numbers


@pytest.mark.parametrize(
    "text,reward",
    [
        (" The answer is 15.", 1.0),
        ("so The answer is 15.\n", 1.0),
        (" The answer is 15", 0.0),
        (" The answer is 15. Or 16.", 0.0),
        (" The answer is 115.", 0.0),
        (" The answer is 16. The answer is 15.", 1.0),
        (" 15.", 0.0),
        ("", 0.0),
        ([{"role": "assistant", "content": " The answer is 15."}], 1.0),
    ],
)
def test_the_reward_reads_the_last_sentence_only(text, reward):
    "Anything looser is a hole that training finds."
    assert words_reward([PROMPT], [text], ["15"]) == [reward]


def test_the_frontier_is_the_closed_form():
    "The teacher at no budget, everything at log 2 a step; one step as for a chain's flaw."
    log2 = math.log(2)
    assert words_frontier([0, 1, 2], [0.0]) == pytest.approx([(1 + 0.5 + 0.25) / 3])
    assert words_frontier([0, 1, 2], [2 * log2]) == pytest.approx([1.0])
    assert words_frontier([2], [log2])[0] < 0.9 < 1 - 1e-9 < words_frontier([1], [log2])[0]
    halves = words_frontier([1], [0.2])[0] ** 2  # equal shares are one way to spend
    assert words_frontier([2], [0.4])[0] >= halves - 1e-3


# ---- the pair that ships, and the command --------------------------------------------------


@pytest.mark.parametrize("student,teacher", [*itertools.product(*WORDS_MODELS.values())])
def test_every_pair_shares_its_tokens_and_its_context_is_long_enough(student, teacher):
    "Any student goes with any teacher, and a problem with its solution fits."
    s, t, tokenizer = words_pair(student, teacher)
    check_pair(tokenizer, load_tokenizer(DATA / "words" / teacher))
    assert s.dtype == t.dtype and s.num_parameters() < t.num_parameters() < 3e6
    digits = [tokenizer(str(n))["input_ids"] for n in (7, 42)]
    assert [len(ids) for ids in digits] == [1, 2]
    texts = [p.prompt + write_solution(p) + tokenizer.eos_token for p in ALL]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"]) == texts[0]
    assert max(lengths) < s.config.max_position_embeddings


@pytest.mark.parametrize("teacher,coin", [("teacher", 0.5), ("competent", 0.0)])
def test_the_teacher_tosses_a_coin_at_misread_steps_and_nowhere_else(teacher, coin):
    "Its probability of the wrong operation, where everything before was right."
    _, model, tokenizer = words_pair(teacher=teacher)
    plus, minus = (tokenizer(text)["input_ids"][0] for text in (" +", " -"))
    seen = {True: [], False: []}
    for problem in PROBLEMS["test"][:60]:
        ids = tokenizer(problem.prompt + write_solution(problem), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = model(ids).logits[0].softmax(-1)
        kinds = {step.op: step.kind for step in problem.steps}
        if len(kinds) == len(problem.steps):  # one step for each operation
            at = (ids[0] == minus).nonzero().flatten()
            seen[kinds.get("-") == SLIPS.kind] += [float(p[i - 1, plus]) for i in at]
    assert len(seen[True]) > 4 and len(seen[False]) > 4
    assert np.mean(seen[True]) == pytest.approx(coin, abs=0.12)
    assert np.mean(seen[False]) < 0.03


def test_a_model_that_does_not_ship_is_refused():
    "With the names of those that do."
    with pytest.raises(ValueError, match="student='teacher' does not ship; choose student or"):
        words_pair("teacher")


def test_the_weights_are_small():
    "They travel with the package."
    assert sum(f.stat().st_size for f in DATA.rglob("*") if f.is_file()) < 10e6


def test_task_words_trains_and_is_judged(tmp_path, capsys):
    "The command from the first word to the report, and `cmdp evaluate` on what it left."
    small = "--max_completion_length 24 --n_eval 8 --per_device_train_batch_size 8"
    run = tmp_path / "run"
    words = f"--task words --max_steps 2 {small} --device cpu --output_dir {run}".split()
    assert main(words) == 0
    assert "exact optimum" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert {"reasoning_validity", "left_out", "optimal_accuracy"} <= summary.keys()
    assert json.loads((run / "config.json").read_text())["run"]["task"] == "words"
    judged = f"--task words --student {run}/student --budget 0.8 --n_eval 8".split()
    assert evaluate_main([*judged, "--output_dir", str(tmp_path / "judged")]) == 0
    found = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert found["about"]["max_completion_length"] == 80 and "left_out" in found["summary"]


def test_the_task_decides_the_recipe():
    "Of a run without a student; a student of one's own has no embedded task."
    typed = parse(DISTILL, ["--task", "words"])
    assert typed.sources["max_steps"] == "recipe words"
    assert parse(DISTILL, ["--task", "chains"]).values["max_steps"] == 600


@pytest.mark.parametrize(
    "words,said",
    [
        ("--task wrods", "task must be one of chains, words, got 'wrods'"),
        ("--task words --student x", "task='words' has a student of its own"),
        ("--task words --dataset x", "dataset given without a student"),
    ],
)
def test_slips_of_the_task_are_named(words, said, capsys):
    "One clear sentence before any work."
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_an_examination_has_one_source_of_prompts(capsys):
    "The task's or a dataset's."
    assert evaluate_main("--task words --dataset x.jsonl".split()) == 2
    assert "leave out one" in capsys.readouterr().err


def test_settings_of_a_method_stay_with_it():
    "The recipe's price and rate are those of the default method, and no other knows them."
    assert CMDPConfig.from_recipe("words").method_kwargs == {
        "target": 0.85,
        "init": 0.4,
        "max_scale": 1.0,
    }
    assert CMDPConfig.from_recipe("words", method="grpo").method_kwargs == {}
    for method in ("grpo", "all"):
        values = parse(DISTILL, ["--task", "words", "--method", method]).values
        assert values["method_kwargs"] == {} and values["budget"] == 1.0
