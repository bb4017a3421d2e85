"Tasks from elsewhere: splits that cannot overlap, scorers that misbehave, prompts as asked for."

import importlib.util
import json
import warnings

import pytest
from datasets import Dataset, DatasetDict

from cmdp_nbdev import tasks
from cmdp_nbdev.cli import main
from cmdp_nbdev.distil import own_task
from cmdp_nbdev.judge import arithmetic_steps, arithmetic_validity
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.options import RunArguments
from cmdp_nbdev.tasks import (
    SYSTEM_PROMPTS,
    final_answer,
    gym_dataset,
    gym_reward,
    load_gsm8k,
    load_math,
    load_rows,
    math_reward,
    numeric_reward,
    open_task,
    parse_number,
    same_answer,
    same_number,
    task_kind,
    with_template,
    worked_steps,
    worked_text,
)

have = importlib.util.find_spec
MISSING = "the extra 'math' is not installed"
gym = pytest.mark.skipif(not have("reasoning_gym"), reason=MISSING)
latex = pytest.mark.skipif(not have("math_verify"), reason=MISSING)


def test_missing_extras_say_what_to_install(monkeypatch):
    "Without the extra numbers are graded, and the rest says what to install."
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert math_reward([""], [r"\boxed{0.5}"], [r"\frac12"]) == [1.0]
    with pytest.raises(ImportError, match=r"math-verify.*pip install 'cmdp_nbdev\[math\]'"):
        math_reward([""], [r"\boxed{x+1}"], ["1+x"])
    with pytest.raises(ImportError, match=r"reasoning-gym.*cmdp_nbdev\[math\]"):
        gym_dataset("chain_sum", 1)


# --- GSM8K and MATH

ROWS = [
    {
        "question": f"What is {i} times 2?",
        "answer": f"{i}*2=<<{i}*2={2 * i}>>{2 * i}\n#### {2 * i:,}",
    }
    for i in range(600, 603)
]


def write(path, rows):
    "Rows as .jsonl or .parquet."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))


SOURCES = ["train.jsonl", "train.parquet", "main/train-00000-of-00001.parquet", "saved"]


def lay(folder, name):
    "ROWS under this name in a folder, and what a user would point at."
    if name == "saved":
        splits = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
        DatasetDict(splits).save_to_disk(folder / "saved")
        return folder / "saved"
    write(folder / name, ROWS)
    return folder / "main" if "/" in name else folder / name


def standard(row):
    "A row of ROWS as it should be loaded."
    answer = row["answer"]
    mark = answer[answer.index("<<") : answer.index(">>") + 2]
    solution = answer.replace(mark, "")
    return {"prompt": row["question"], "answer": answer.split()[-1], "solution": solution}


@pytest.mark.parametrize("name", SOURCES)
def test_gsm8k_from_wherever_it_lies(tmp_path, name):
    "A file, a clone and a saved dataset must give the same rows."
    where = str(lay(tmp_path, name))
    data = load_gsm8k(where)
    assert data.to_list() == [standard(row) for row in ROWS]
    assert numeric_reward([""] * 3, data["solution"], data["answer"]) == [1.0] * 3
    assert arithmetic_validity([""] * 3, data["solution"]) == [1.0] * 3
    if name == "saved":
        assert len(load_gsm8k(where, "test")) == 1
    assert "<<600*2=1200>>" in load_gsm8k(where, annotations=True)[0]["solution"]


def test_a_folder_is_read_like_its_file(tmp_path):
    "A folder of data files, with and without the calculator's marks."
    row = {"question": "How many are 6 times 3?", "answer": "6*3=<<6*3=18>>18\n#### 18"}
    write(tmp_path / "train.jsonl", [row])
    loaded = load_gsm8k(str(tmp_path / "train.jsonl"))[0]
    assert load_gsm8k(str(tmp_path))[0] == loaded
    assert load_gsm8k(str(tmp_path), annotations=True)[0]["solution"] == row["answer"]


def test_gsm8k_with_bare_answers(tmp_path):
    "Data in the same shape, with a number as the answer, is GSM8K, too."
    write(tmp_path / "d.jsonl", [{"prompt": "q", "answer": 7, "level": 3}])
    row = {"prompt": "q", "answer": "7", "solution": None, "level": 3}
    assert load_gsm8k(str(tmp_path / "d.jsonl")).to_list() == [row]


def test_math(tmp_path):
    "The last box is the answer; level and subject stay; a folder's splits are told by its names."
    work = r"First \boxed{1}, then $\boxed{\frac{a}{b}}$."
    algebra = {"problem": "p", "solution": work, "level": "Level 5", "type": "Algebra"}
    geometry = {"problem": "r", "solution": r"\boxed{2}", "level": "Level 1", "type": "Geometry"}
    write(tmp_path / "train/algebra.jsonl", [algebra])
    write(tmp_path / "test/geometry.jsonl", [geometry])
    loaded = {"prompt": "p", "answer": r"\frac{a}{b}", "solution": work}
    loaded |= {"level": "Level 5", "type": "Algebra"}
    assert load_math(str(tmp_path)).to_list() == [loaded]
    assert load_math(str(tmp_path), "test")["answer"] == ["2"]
    write(tmp_path / "other.jsonl", [{"problem": "p", "answer": r"\boxed{x}"}])
    bare = {"prompt": "p", "answer": "x", "solution": None}
    assert load_math(str(tmp_path / "other.jsonl")).to_list() == [bare]
    pi = {"problem": r"What is $2x$ for $x=\pi$?", "solution": r"It is $\boxed{2\pi}$."}
    write(tmp_path / "pi.jsonl", [{**pi, "level": "Level 1"}])
    loaded = {"prompt": pi["problem"], "answer": r"2\pi", "solution": pi["solution"]}
    assert load_math(str(tmp_path / "pi.jsonl"))[0] == {**loaded, "level": "Level 1"}


def test_bad_data_is_refused(tmp_path):
    "One clear error that names the file, the row or the column."
    write(tmp_path / "a.jsonl", [ROWS[0], {"question": "q", "answer": "no number"}])
    write(tmp_path / "b.jsonl", [{"text": "q"}])
    write(tmp_path / "c.jsonl", [{"problem": "q", "solution": "no box"}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a.jsonl.*row 1 has no final answer.*no number"):
        load_gsm8k(str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="b.jsonl.*'question' or 'prompt'.*only text"):
        load_gsm8k(str(tmp_path / "b.jsonl"))
    with pytest.raises(ValueError, match="c.jsonl.*row 0 has no final answer"):
        load_math(str(tmp_path / "c.jsonl"))
    for missing in (tmp_path / "none.parquet", tmp_path / "empty"):
        with pytest.raises(FileNotFoundError, match=f"{missing.name}.*could not be loaded"):
            load_rows(str(missing))


# --- reasoning-gym


@gym
def test_splits_cannot_overlap():
    "A test question seen in training makes every number worthless: whatever seeds and sizes."
    few = {"max_terms": 2, "max_digits": 1, "min_digits": 1}

    def questions(n, split, seed=0):
        return set(gym_dataset("chain_sum", n, split, seed, **few)["prompt"])

    train = questions(60, "train", 0) | questions(60, "train", 1)
    validation, test = questions(10, "validation"), questions(10, "test")
    assert not train & test
    assert not train & validation
    assert not validation & test
    a, b = (gym_dataset("basic_arithmetic", 100, seed=s)["prompt"] for s in (0, 1))
    assert len(set(a)) == 100
    assert len(set(a) & set(b)) < 5
    assert a[:50] == gym_dataset("basic_arithmetic", 50)["prompt"]


NAMES = ["chain_sum", "prime_factorization", "polynomial_multiplication", "spiral_matrix"]
NAMES += ["gsm_symbolic", "rearc", "countdown", "time_intervals"]


@gym
@pytest.mark.parametrize("name", NAMES)
def test_own_answers_are_right_and_free_text_is_not(name):
    "The way through a dataset's column must not change a verdict; free text is worth 0."
    data = gym_dataset(name, 2)
    assert data.column_names == ["prompt", "answer", "solution", "entry"]
    right = [f"I think.\n<answer>{a}</answer>" for a in data["answer"]]
    wrong = ["I do not know", "<answer>maybe 1 or 2</answer>"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert gym_reward([""] * 2, right, data["entry"]) == [1.0] * 2
        assert gym_reward([""] * 2, wrong, data["entry"]) == [0.0] * 2


@gym
def test_worked_solutions_of_gsm_symbolic():
    "Its own solutions are right, splits are disjoint, and a sign is no detail."
    train = gym_dataset("gsm_symbolic", 300)
    test = gym_dataset("gsm_symbolic", 100, "test", seed=1)
    assert not set(train["prompt"]) & set(test["prompt"])
    assert len(set(train["prompt"])) == 300
    assert gym_reward([""] * 100, test["solution"], test["entry"]) == [1.0] * 100
    gold = test[0]["answer"]
    texts = [f"First 3, then #### {gold}", f"#### -{gold}", "no"]
    assert gym_reward([""] * 3, texts, test["entry"][:1] * 3) == [1.0, 0.0, 0.0]


@gym
def test_sums_with_and_without_partial_credit():
    "A marked answer and the last number count, a text around it does not, unless one asks."
    sums = gym_dataset("chain_sum", 5, min_terms=2, max_terms=2)
    gold = sums[0]["answer"]
    assert gym_reward([""] * 5, sums["solution"], sums["entry"]) == [1.0] * 5
    texts = [f"#### {gold}", f"<answer>{gold}</answer>", f"I add and get {gold}"]
    texts += [f"#### about {gold}"]
    assert gym_reward([""] * 4, texts, sums["entry"][:1] * 4) == [1.0, 1.0, 1.0, 0.0]
    (partial,) = gym_reward([""], texts[-1:], sums["entry"][:1], partial=True)
    assert 0 < partial < 1  # what the scorer gives
    same = open_task("reasoning_gym:chain_sum,min_terms=2,max_terms=2", n=5)
    assert same["prompt"] == sums["prompt"]


@gym
def test_some_solutions_of_gsm_symbolic_are_wrong():
    "The reward is blind to the cut results of its templates, the check of steps is not."
    many = gym_dataset("gsm_symbolic", 1000)
    steps = [arithmetic_steps(solution) for solution in many["solution"]]
    flawed = [i for i, found in enumerate(steps) if not all(right for _, right in found)]
    assert numeric_reward([""] * 1000, many["solution"], many["answer"]) == [1.0] * 1000
    assert arithmetic_validity([""] * 2, [many["solution"][flawed[0]], "#### 5"])[1] is None
    assert 10 < len(flawed) < 50


def test_worked_steps():
    "One operation a line in the order of evaluation; whole numbers, + - * / and brackets only."
    lines = ["56 + -33 = 23", "23 / 2 = 23/2", "#### 23/2"]
    assert worked_steps("( 56 + -33 ) / 2").splitlines() == lines
    assert worked_steps("7") == "#### 7"
    for bad in ("2 ** 9", "x + 1", "1 / (2 - 2)", "1 +", "1.5 + 2"):
        with pytest.raises(ValueError):
            worked_steps(bad)


@gym
def test_scorers_that_raise_are_heard():
    "A reward of 0 for an exception must not be silent; nor be repeated for every completion."
    tasks._WARNED.clear()
    data = gym_dataset("prime_factorization", 1)
    message = "prime_factorization.*raised ValueError.*'twelve'.*counts as wrong"
    with pytest.warns(UserWarning, match=message) as caught:
        assert gym_reward([""] * 3, ["twelve"] * 3, data["entry"][:1] * 3) == [0.0] * 3
    assert len(caught) == 1


@gym
def test_completions_cannot_run_code(tmp_path):
    "Some scorers evaluate what a model writes."
    file = tmp_path / "written"
    attack = f"open({str(file)!r}, 'w')"
    attacks = {"spiral_matrix": f"[{attack}]", "polynomial_multiplication": attack}
    for name, text in attacks.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert gym_reward([""], [text], gym_dataset(name, 1)["entry"]) == [0.0]
    assert not file.exists()


SUM = {"name": "chain_sum"}
FEW_SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
SLOW = {"name": "coin_flip", "n": 10**6, "max_seconds": 0.05}


@gym
@pytest.mark.parametrize(
    "call,error,message",
    [
        ({"name": "chainsum"}, ValueError, "chainsum.*chain_sum"),
        ({**SUM, "split": "dev"}, ValueError, "'dev'.*choose one of train, validation, test"),
        ({**SUM, "n": 0}, ValueError, "n must be >= 1.*n=0"),
        ({**SUM, "digits": 3}, ValueError, "chain_sum.*settings.*digits"),
        ({**SUM, "min_terms": 9, "max_terms": 2}, ValueError, "chain_sum.*settings"),
        ({**SUM, "size": 3}, ValueError, "size.*arguments n and seed"),
        (SLOW, TimeoutError, "of 1000000 train items of 'coin_flip'.*max_seconds"),
        (
            {**SUM, **FEW_SUMS, "n": 200, "split": "test"},
            ValueError,
            "n=200 is too many.*distinct test items",
        ),
    ],
)
def test_bad_requests(call, error, message):
    "One clear error that says what would work."
    with pytest.raises(error, match=message):
        gym_dataset(**call)


# --- prompts

DATA = Dataset.from_dict(
    {
        "prompt": [f"q{i}" for i in range(6)],
        "answer": [str(i) for i in range(6)],
        "solution": [f"so {i}\n#### {i}" if i % 2 else None for i in range(6)],
    }
)


def test_few_shot_prompts():
    "Examples come from the training split, the same for all; no question is its own example."
    few = with_template(DATA, "chat", "think", 2, DATA)
    shown = {m["content"] for m in few[0]["prompt"][:-1] if m["role"] == "user"}
    assert len(few) == 4
    assert len(shown) == 2
    assert not shown & {p[-1]["content"] for p in few["prompt"]}
    for p in few["prompt"]:
        roles = ["system", "user", "assistant", "user", "assistant", "user"]
        assert [m["role"] for m in p] == roles
        assert p[0]["content"] == SYSTEM_PROMPTS["think"]
    assert few["answer"] == [p[-1]["content"][1:] for p in few["prompt"]]
    for m in few[0]["prompt"]:
        if m["role"] == "assistant":
            after = m["content"].partition("</think>")[2]
            assert final_answer(m["content"]) is not None
            assert final_answer(m["content"]) == final_answer(after)
            assert m["content"].count("####") == 1


def test_prompts_that_are_texts():
    "A base model is asked in one text; any text around `{prompt}` will do."
    plain = with_template(DATA.select([0]), "plain", "Be brief.", 1, DATA.select([1]))
    shown = "Be brief.\n\nQuestion: q1\nAnswer: so 1\n#### 1\n\nQuestion: q0\nAnswer:"
    assert plain[0]["prompt"] == shown
    assert with_template(DATA, "Q {prompt} {x}")[0]["prompt"] == "Q q0 {x}"
    only = with_template(DATA.select_columns("prompt"), "chat")
    assert only[0]["prompt"] == [{"role": "user", "content": "q0"}]
    assert len(with_template(DATA, "plain", num_shots=3, shots=DATA)) == len(DATA) - 3
    with pytest.raises(ValueError, match="chat messages already"):
        with_template(with_template(DATA, "chat"))


def test_worked_examples_keep_their_mark():
    "A box stays a box, inside and outside of the tags for thinking."
    boxed = r"It is \boxed{5}."
    assert worked_text("5", boxed) == boxed
    assert final_answer(worked_text("5", boxed, think=True)) == "5"


@pytest.mark.parametrize(
    "call,message",
    [
        ({"template": "prompts"}, "'chat', 'plain' or a text with {prompt}"),
        ({"num_shots": -1}, "num_shots must be >= 0, got -1"),
        ({"num_shots": 2}, "num_shots=2 needs.*shots"),
        ({"num_shots": 7, "shots": DATA}, "num_shots=7.*as many rows.*6 rows"),
        ({"num_shots": 6, "shots": DATA}, "nothing is left"),
        ({"num_shots": 1, "shots": DATA.select_columns("prompt")}, "column 'answer'"),
    ],
)
def test_bad_templates(call, message):
    "One clear error for each."
    with pytest.raises(ValueError, match=message):
        with_template(DATA, **{"template": "plain", **call})


# --- examples of the notebook


ALIKE = r"""
8.0 = 8
1,234 = 1234
\frac{1}{2} = 0.5
1 1/2 = 1.5
$18.00 = 18
18 apples = 18
20% = 20
20% = 0.2
-3 = −3
12\,345\text{ cm} = 12345
5 min = 5 minutes
$-5 = -$5
"""
UNLIKE = """
0.333 = 1/3
18 = 81
5 minutes = 5 hours
$20 = 20%
2 = -2
0.2% = 20
"""
UNREADABLE = ["", "1,23", "3-4", "5x", "2 or 3", "17, 18", "5 million", "12:30", "1/0"]
UNREADABLE += ["eighteen", "5 pi", "9" * 50]


def test_numbers_of_the_notebook():
    "Equal in any dress, different by unit or value, or not to be read at all."
    for table, same in ((ALIKE, True), (UNLIKE, False)):
        for line in table.strip().splitlines():
            a, b = line.split(" = ")
            assert (a, b, same_number(a, b)) == (a, b, same)
    assert same_number("x = 5", "5") is True
    for text in UNREADABLE:
        assert (text, parse_number(text)) == (text, None)


def test_final_answers_of_the_notebook():
    "The last mark, after the thinking; else a sentence; else nothing, or the last number."
    for text, answer in (
        ("6*3=18\n#### 18", "18"),
        (r"so \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
        (r"#### 17, no, \boxed{18}", "18"),
        ("<answer>\na b\nc d\n</answer>", "a b\nc d"),
        ("The answer is **$1,200.50**.", "$1,200.50"),
        ("Answer: 7", "7"),
        ("<think>#### 5</think>#### 6", "6"),
        ("<think>\\boxed{5}", None),
        (r"\boxed{5} or \boxed{6", None),
        ("6 times 3 is 18", None),
        ("", None),
    ):
        assert (text, final_answer(text)) == (text, answer)
    texts = ("10 - 3 = 7 apples.", "It is -7.", "He pays $1,250.", "none")
    assert [final_answer(t, "number") for t in texts] == ["7", "-7", "$1,250", None]


def test_rewards_of_the_notebook():
    "Numbers as they are marked or said; a reference answer that is no number is refused."
    texts = ["6*3=<<6*3=18>>18\n#### 18", "It is $18.00.", "#### 17 or 18", ""]
    assert numeric_reward([""] * 4, texts, ["18"] * 4) == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="no number"):
        numeric_reward([""], ["#### 1"], ["x+1"])


RIGHT = [
    (r"\frac{1}{2}", "0.5"),
    ("x^2+1", "1+x^2"),
    (r"\frac{\sqrt{3}}{2}", r"\dfrac{\sqrt3}{2}"),
    ("(3,4)", "(3, 4)"),
    (r"\text{Monday}", "monday"),
    ("2x+4", "2(x+2)"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("(B)", "B"),
    (r"3\pi", r"\pi \cdot 3"),
]
WRONG = [
    (r"\frac{1}{2}", r"\frac{1}{3}"),
    ("x^2+1", "x^2-1"),
    ("(3,4)", "(4,3)"),
    ("18", "17, 18"),
    ("[0,1)", "[0,1]"),
    ("x^2+1", ""),
    ("x^2+1", "x" * 400),
    ("A", "B"),
]


@latex
def test_latex_of_the_notebook():
    "Equivalent forms, near misses, and an answer that would never end."
    for pairs, reward in ((RIGHT, 1.0), (WRONG, 0.0)):
        for gold, answer in pairs:
            boxed = r"\boxed{" + answer + "}"
            assert (gold, answer, math_reward([""], [boxed], [gold])) == (gold, answer, [reward])
    tasks._WARNED.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert same_answer("x^2", r"x^{9^{9^{9^{9}}}}", seconds=1.0) is False
        assert same_answer("x^2", "x^2 + 0") is True  # by another process
    assert len(caught) == 1


def test_tasks_by_name():
    "What stands before the colon decides, and what cannot be read says what would be."
    kinds = {"gsm8k:x": "gsm8k", "math:a/b": "math", "C:data.jsonl": None, "openai/gsm8k": None}
    assert {spec: task_kind(spec) for spec in kinds} == kinds
    for bad in ("gsm8k:", "aime:x"):
        with pytest.raises(ValueError, match="must look like"):
            open_task(bad)
    with pytest.raises(ValueError, match="setting=value"):
        open_task("reasoning_gym:chain_sum,two")


# --- the command


RUN = """
    --student s --teacher s --dataset gsm8k:d --prompt_template {prompt} --n_train 10 --n_eval 5
    --output_dir out --max_steps 2 --per_device_train_batch_size 8 --num_generations 4
    --max_completion_length 6 --budget 20 --device cpu --disable_tqdm
"""


def test_the_command_on_gsm8k(tmp_path, monkeypatch):
    "`--dataset gsm8k:FOLDER` brings its test split, its grader and the check of its arithmetic."
    tok = char_tokenizer()
    tiny_model(32, tok).save_pretrained(tmp_path / "s")
    tok.save_pretrained(tmp_path / "s")
    sums = [(i, j) for i in range(3) for j in range(4)]
    rows = [{"question": f"{i}+{j}=", "answer": f"{i}+{j}={i + j}\n#### {i + j}"} for i, j in sums]
    for split in ("train", "test"):
        write(tmp_path / "d" / f"{split}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    assert main(RUN.split()) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["n_eval"] == 5
    assert summary["accuracy"] == 0
    assert "reasoning_validity" in summary
    args = RunArguments(dataset="gsm8k:d", num_shots=1, system_prompt="hash", n_eval=3)
    rewards, train, held_out, metrics = own_task(args)
    assert rewards == [numeric_reward]
    assert len(train) == 11
    assert len(held_out) <= 3
    assert [m["role"] for m in train[0]["prompt"]] == ["system", "user", "assistant", "user"]
    assert list(metrics) == ["reasoning_validity"]


@pytest.mark.parametrize(
    "args,message",
    [
        (["--dataset", "gsm8k:train.jsonl"], "eval_dataset missing"),
        (["--dataset", "train.jsonl"], "eval_dataset, reward missing"),
        (["--dataset", "gsm8k:none"], "'none' could not be loaded"),
        (["--dataset", "gsm8k:"], "must look like"),
        (["--dataset", "math:d", "--n_train", "0"], "n_train must be >= 1, got 0"),
        (["--dataset", "reasoning_gym:chain_sum,two"], "setting=value"),
        (["--dataset", "reasoning_gym:chain_sums"], "chain_sum"),
    ],
)
def test_bad_options(args, message, capsys, tmp_path, monkeypatch):
    "The command says in one line what is wrong, before any model is loaded."
    if args[1].startswith("reasoning") and not have("reasoning_gym"):
        pytest.skip("the extra 'math' is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["--student", "s", "--teacher", "s", "--budget", "20", *args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_options_of_other_data_need_a_student(capsys):
    "A prompt template that has no effect must not look as if it had."
    assert main(["--num_shots", "2", "--prompt_template", "plain"]) == 2
    assert "prompt_template, num_shots given without a student" in capsys.readouterr().err
