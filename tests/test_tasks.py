"Tasks from elsewhere: splits that cannot overlap, scorers that misbehave, prompts as asked for."

import importlib.util
import json
import warnings

import pytest
from datasets import Dataset, DatasetDict

from cmdp_nbdev import tasks
from cmdp_nbdev.cli import RunArguments, main, own_task
from cmdp_nbdev.judge import arithmetic_validity
from cmdp_nbdev.model import char_tokenizer, tiny_model
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
    with_template,
    worked_text,
)

have = importlib.util.find_spec
gym = pytest.mark.skipif(not have("reasoning_gym"), reason="the extra 'math' is not installed")


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


@pytest.mark.parametrize(
    "name", ["train.jsonl", "train.parquet", "main/train-00000-of-00001.parquet", "saved"]
)
def test_gsm8k_from_wherever_it_lies(tmp_path, name):
    "A file, a clone and a saved dataset must give the same rows."
    if name == "saved":
        DatasetDict(
            {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
        ).save_to_disk(tmp_path / "saved")
        where = tmp_path / "saved"
    else:
        write(tmp_path / name, ROWS)
        where = tmp_path / name if "/" not in name else tmp_path / "main"
    data = load_gsm8k(str(where))
    assert data.to_list() == [
        {
            "prompt": r["question"],
            "answer": r["answer"].split()[-1],
            "solution": r["answer"].replace(
                r["answer"][r["answer"].index("<<") : r["answer"].index(">>") + 2], ""
            ),
        }
        for r in ROWS
    ]
    assert (
        numeric_reward([""] * 3, data["solution"], data["answer"]) == [1.0] * 3
        and arithmetic_validity([""] * 3, data["solution"]) == [1.0] * 3
    )
    if name == "saved":
        assert len(load_gsm8k(str(where), "test")) == 1
    assert "<<600*2=1200>>" in load_gsm8k(str(where), annotations=True)[0]["solution"]


def test_gsm8k_with_bare_answers(tmp_path):
    "Data in the same shape, with a number as the answer, is GSM8K, too."
    write(tmp_path / "d.jsonl", [{"prompt": "q", "answer": 7, "level": 3}])
    assert load_gsm8k(str(tmp_path / "d.jsonl")).to_list() == [
        {"prompt": "q", "answer": "7", "solution": None, "level": 3}
    ]


def test_math(tmp_path):
    "The last box of a solution is the answer; level and subject stay; a folder's splits are told by its names."
    rows = [
        {
            "problem": "p",
            "solution": r"First \boxed{1}, then $\boxed{\frac{a}{b}}$.",
            "level": "Level 5",
            "type": "Algebra",
        },
        {"problem": "r", "solution": r"\boxed{2}", "level": "Level 1", "type": "Geometry"},
    ]
    for row, name in zip(rows, ("train/algebra.jsonl", "test/geometry.jsonl")):
        write(tmp_path / name, [row])
    assert load_math(str(tmp_path)).to_list() == [
        {
            "prompt": "p",
            "answer": r"\frac{a}{b}",
            "solution": rows[0]["solution"],
            "level": "Level 5",
            "type": "Algebra",
        }
    ]
    assert load_math(str(tmp_path), "test")["answer"] == ["2"]
    write(tmp_path / "other.jsonl", [{"problem": "p", "answer": r"\boxed{x}"}])
    assert load_math(str(tmp_path / "other.jsonl")).to_list() == [
        {"prompt": "p", "answer": "x", "solution": None}
    ]


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
    "A test question seen in training makes every number worthless: whatever seeds, sizes and settings."
    splits = {
        split: {
            q
            for seed in (0, 1)
            for q in gym_dataset(
                "chain_sum", 60, split, seed, max_terms=2, max_digits=1, min_digits=1
            )["prompt"]
        }
        for split in ("train",)
    }
    splits |= {
        split: set(
            gym_dataset("chain_sum", 10, split, max_terms=2, max_digits=1, min_digits=1)["prompt"]
        )
        for split in ("validation", "test")
    }
    assert (
        not splits["train"] & splits["test"]
        and not splits["train"] & splits["validation"]
        and not splits["validation"] & splits["test"]
    )
    a, b = (gym_dataset("basic_arithmetic", 100, seed=s)["prompt"] for s in (0, 1))
    assert (
        len(set(a)) == 100
        and len(set(a) & set(b)) < 5
        and a[:50] == gym_dataset("basic_arithmetic", 50)["prompt"]
    )


@gym
@pytest.mark.parametrize(
    "name",
    [
        "chain_sum",
        "prime_factorization",
        "polynomial_multiplication",
        "spiral_matrix",
        "gsm_symbolic",
        "rearc",
        "countdown",
        "time_intervals",
    ],
)
def test_own_answers_are_right_and_free_text_is_not(name):
    "The round trip through a dataset's column must not change a verdict, and whatever the scorer does with free text is worth 0."
    data = gym_dataset(name, 2)
    assert data.column_names == ["prompt", "answer", "solution", "entry"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            gym_reward(
                [""] * 2, [f"I think.\n<answer>{a}</answer>" for a in data["answer"]], data["entry"]
            )
            == [1.0] * 2
        )
        assert (
            gym_reward([""] * 2, ["I do not know", "<answer>maybe 1 or 2</answer>"], data["entry"])
            == [0.0] * 2
        )


@gym
def test_scorers_that_raise_are_heard():
    "A reward of 0 for an exception must not be silent; nor be repeated for every completion."
    tasks._WARNED.clear()
    data = gym_dataset("prime_factorization", 1)
    with pytest.warns(
        UserWarning, match="prime_factorization.*raised ValueError.*'twelve'.*counts as wrong"
    ) as caught:
        assert gym_reward([""] * 3, ["twelve"] * 3, data["entry"][:1] * 3) == [0.0] * 3
    assert len(caught) == 1


@gym
def test_completions_cannot_run_code(tmp_path):
    "Some scorers evaluate what a model writes."
    file = tmp_path / "written"
    for name, text in (
        ("spiral_matrix", f"[open({str(file)!r}, 'w')]"),
        ("polynomial_multiplication", f"open({str(file)!r}, 'w')"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert gym_reward([""], [text], gym_dataset(name, 1)["entry"]) == [0.0]
    assert not file.exists()


@gym
@pytest.mark.parametrize(
    "call,error,message",
    [
        (dict(name="chainsum"), ValueError, "chainsum.*chain_sum"),
        (dict(name="chain_sum", split="dev"), ValueError, "'dev'.*train, validation, test"),
        (dict(name="chain_sum", n=0), ValueError, "n must be >= 1.*n=0"),
        (dict(name="chain_sum", digits=3), ValueError, "chain_sum.*settings.*digits"),
        (dict(name="chain_sum", min_terms=9, max_terms=2), ValueError, "chain_sum.*settings"),
        (dict(name="chain_sum", size=3), ValueError, "size.*arguments n and seed"),
        (
            dict(name="coin_flip", n=10**6, max_seconds=0.05),
            TimeoutError,
            "of 1000000 train items of 'coin_flip'.*max_seconds",
        ),
        (
            dict(
                name="chain_sum",
                n=200,
                split="test",
                min_terms=2,
                max_terms=2,
                min_digits=1,
                max_digits=1,
            ),
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
    "Examples come from the training split, the same for all, and never is a question its own example."
    few = with_template(DATA, "chat", "think", 2, DATA)
    shown = {m["content"] for m in few[0]["prompt"][:-1] if m["role"] == "user"}
    assert (
        len(few) == 4 and len(shown) == 2 and not shown & {p[-1]["content"] for p in few["prompt"]}
    )
    assert all(
        [m["role"] for m in p] == ["system", "user", "assistant", "user", "assistant", "user"]
        and p[0]["content"] == SYSTEM_PROMPTS["think"]
        for p in few["prompt"]
    )
    assert few["answer"] == [p[-1]["content"][1:] for p in few["prompt"]]
    for m in few[0]["prompt"]:
        if m["role"] == "assistant":
            assert final_answer(m["content"]) is not None and m["content"].count("####") == 1
    plain = with_template(DATA.select([0]), "plain", "Be brief.", 1, DATA.select([1]))
    assert (
        plain[0]["prompt"]
        == "Be brief.\n\nQuestion: q1\nAnswer: so 1\n#### 1\n\nQuestion: q0\nAnswer:"
    )
    assert with_template(DATA, "Q {prompt} {x}")[0]["prompt"] == "Q q0 {x}" and with_template(
        DATA.select_columns("prompt"), "chat"
    )[0]["prompt"] == [{"role": "user", "content": "q0"}]
    assert (
        worked_text("5", r"It is \boxed{5}.") == r"It is \boxed{5}."
        and final_answer(worked_text("5", r"It is \boxed{5}.", think=True)) == "5"
    )


@pytest.mark.parametrize(
    "call,message",
    [
        (dict(template="prompts"), "'chat', 'plain' or a text with {prompt}"),
        (dict(num_shots=-1), "num_shots must be >= 0, got -1"),
        (dict(num_shots=2), "num_shots=2 needs.*shots"),
        (dict(num_shots=7, shots=DATA), "num_shots=7.*6 rows"),
        (dict(num_shots=6, shots=DATA), "nothing is left"),
        (dict(num_shots=1, shots=DATA.select_columns("prompt")), "column 'answer'"),
    ],
)
def test_bad_templates(call, message):
    "One clear error for each."
    with pytest.raises(ValueError, match=message):
        with_template(DATA, **{"template": "plain", **call})


# --- the command


def test_the_command_on_gsm8k(tmp_path, monkeypatch):
    "`--dataset gsm8k:FOLDER` brings its test split, its grader and the check of its arithmetic."
    tok = char_tokenizer()
    tiny_model(32, tok).save_pretrained(tmp_path / "s")
    tok.save_pretrained(tmp_path / "s")
    for split in ("train", "test"):
        write(
            tmp_path / "d" / f"{split}.jsonl",
            [
                {"question": f"{i}+{j}=", "answer": f"{i}+{j}={i + j}\n#### {i + j}"}
                for i in range(3)
                for j in range(4)
            ],
        )
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "--student",
                "s",
                "--teacher",
                "s",
                "--dataset",
                "gsm8k:d",
                "--prompt_template",
                "{prompt}",
                "--n_train",
                "10",
                "--n_eval",
                "5",
                "--output_dir",
                "out",
                "--max_steps",
                "2",
                "--per_device_train_batch_size",
                "8",
                "--num_generations",
                "4",
                "--max_completion_length",
                "6",
                "--budget",
                "20",
                "--device",
                "cpu",
                "--disable_tqdm",
            ]
        )
        == 0
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["n_eval"] == 5 and summary["accuracy"] == 0 and "reasoning_validity" in summary
    rewards, train, held_out, metrics = own_task(
        RunArguments(dataset="gsm8k:d", num_shots=1, system_prompt="hash", n_eval=3)
    )
    assert (
        rewards == [numeric_reward]
        and len(train) == 11
        and len(held_out) <= 3
        and [m["role"] for m in train[0]["prompt"]] == ["system", "user", "assistant", "user"]
        and list(metrics) == ["reasoning_validity"]
    )


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
    assert main(["--student", "s", "--teacher", "s", *args]) == 2
    assert message in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_options_of_other_data_need_a_student(capsys):
    "A prompt template that has no effect must not look as if it had."
    assert main(["--num_shots", "2", "--prompt_template", "plain"]) == 2
    assert "prompt_template, num_shots given without a student" in capsys.readouterr().err
