"Tasks from elsewhere: answers graded as a teacher would, splits that cannot overlap, scorers that misbehave, prompts as asked for."
import builtins
import importlib.util
import json
import threading
import time
import warnings
from fractions import Fraction

import pytest
from conftest import SMALL
from datasets import Dataset, DatasetDict, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev import source
from cmdp_nbdev.cli import RunArguments, main, own_task
from cmdp_nbdev.judge import arithmetic_validity
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.reward import task_rewards
from cmdp_nbdev.rollout import given_rollout
from cmdp_nbdev.source import (SYSTEM_PROMPTS, final_answer, gym_dataset, gym_reward, load_gsm8k, load_math, load_rows, math_reward, numeric_reward, open_task, parse_number, same_answer, same_number,
                               with_template, worked_text)

have = importlib.util.find_spec
gym = pytest.mark.skipif(not have("reasoning_gym"), reason="the extra 'math' is not installed")
latex = pytest.mark.skipif(not have("math_verify"), reason="the extra 'math' is not installed")


# --- numbers

SAME = {
    "8": ["8", "8.0", "8.00", "+8", " 8 ", "8.", "$8", "$8.00", "8 dollars", "8 apples", "8 red apples left", r"8\text{ cm}", r"\$8", "$8$", "**8**", "x = 8", "x=8", "6+2=8", r"\(8\)", "8e0", "16/2", r"\frac{16}{2}", "8 km/h", "8 cm^2", "8.0 kg", "8kg", "8%", "800%", "8°", r"8^\circ", "08", "8 €", "€8", r"\textbf{8}"],
    "-3": ["-3", "−3", "–3", "-3.0", "-$3", "$-3", "-6/2", r"-\frac{6}{2}", r"-\dfrac62", "- 3"],
    "1234567": ["1,234,567", "1234567.0", "$1,234,567", r"1{,}234{,}567", r"1,\!234,\!567", r"1\,234\,567", "1234567 people"],
    "0.5": ["1/2", ".5", "0.50", r"\frac12", r"\tfrac{1}{2}", "50%", r"50\%", "0.5%", "2/4", "5e-1", "50 percent"],
    "2.75": ["2 3/4", "11/4", r"2\frac{3}{4}", "2.750", "$2.75"],
    "20%": ["20", "0.2", "1/5", "20 percent", r"20\%", "20.0%"],
    "5 minutes": ["5", "5 min", "5 minute", "5mins"],
}
DIFFERENT = [("8", t) for t in ("80", "-8", "8.01", "0.8", "8/3", "1 8/9", "88", "18")] + [
    ("1/3", "0.333"), ("1/3", "0.3333333333333333"), ("5 minutes", "5 hours"), ("5 cm", "5 km"), ("$20", "20%"), ("20%", "2"), ("20%", "2000"), ("1000", "1.000"), ("-3", "3"), ("0.5", "5%"), ("2 1/2", "21/2"), ("0", "-1"), ("100", "1e3"), ("$5", "5 cents")]
NO_NUMBER = ["", " ", "x", "eighteen", "1,23", "12,34,567", "1234,567", "1,2345", "0,5", "3-4", "3–4", "3 - 4", "3:4", "12:30", "5x", "2pi", r"5\pi", r"\sqrt{2}", "2 or 3", "17, 18", "17 18", "(1, 2)", "5 million", "2 dozen", "1/0", "1.2.3", "1/2/3", "--3", "+-3", "1.5 1/2", "3+4",
             "x=3 or x=4", "x=3, y=4", "2^3", "1e999999999", "9" * 41, "9" * 10**6, "nan", "inf", "٣", "²", "0x10", "1_000", "5 hours 30 minutes", "half", "1 000", "#", "5 times", "{5}", "5!", "±5", "5 per 6", "$", "%", "-", ".", "1.5e2.5", "3 squared", "≈5"]
PAIRS = [(gold, text, True) for gold, texts in SAME.items() for text in texts] + [(a, b, False) for a, b in DIFFERENT]


def test_numbers_by_table():
    "The grader must not fail a right answer for its dress, nor pass another number."
    wrong = [(a, b, same_number(a, b)) for a, b, same in PAIRS if same_number(a, b) is not same or same_number(b, a) is not same]
    assert not wrong and len(PAIRS) + len(NO_NUMBER) > 140
    assert [t[:20] for t in NO_NUMBER if parse_number(t) is not None] == []


@given(st.fractions(max_denominator=10**6).filter(lambda f: abs(f) < 10**12), st.sampled_from(["{}", "${}$", "x = {}", "{}.", "{} apples"]), st.integers(0, 6))
def test_exact_for_any_number(value, frame, decimals):
    "Fractions and decimals are read exactly, near misses are misses."
    text = frame.replace("{}", f"{value.numerator}/{value.denominator}")
    assert parse_number(text)[0] == value
    rounded = Fraction(round(value * 10**decimals), 10**decimals)
    shown = f"{'-' * (rounded < 0)}{abs(rounded.numerator * (10**decimals // rounded.denominator)) // 10**decimals:,}" + (f".{abs(rounded * 10**decimals).numerator % 10**decimals:0{decimals}d}" if decimals else "")
    assert parse_number(shown)[0] == rounded and same_number(shown, str(value)) is (rounded == value)


@given(st.text(alphabet="0123456789,./-+$%€ \\{}frac()^=xeE#*\n<>think|answer:is", max_size=60))
def test_no_text_breaks_the_reading(text):
    "Students write anything: no exception, and what is no number equals nothing."
    for fallback in (None, "number", "text"):
        answer = final_answer(text, fallback)
        assert answer is None or answer in text or answer.strip() == answer
    assert same_number(text, "1") in (True, False, None)
    assert numeric_reward([""], [text], ["7"])[0] in (0.0, 1.0)


@pytest.mark.parametrize("unit", ["1", "1,", "{", "}", "\\boxed{", "####", "answer is ", "<think>", "</think>", "<answer>", "1/", "$", "a ", "1 a", "\\frac{", "\\text{", "-", "*", "1,234", "answer: *", "   ", "=", "1 apples "])
def test_time_is_linear(unit):
    "One hostile completion must not stop a run."
    def seconds(length):
        text, took = unit * (length // len(unit)), []
        for _ in range(3):
            began = time.process_time(); numeric_reward([""], [text], ["7"]); same_number(text, "7"); took.append(time.process_time() - began)
        return min(took)
    assert seconds(16000) < 0.02 + 9 * seconds(4000)


# --- the final answer

@pytest.mark.parametrize("text,answer", [
    ("#### 5", "5"), ("####5", "5"), ("#### 5\nthe end", "5"), ("#### 4\n#### 5", "5"), ("####", None), (r"\boxed{5}", "5"), (r"\boxed {5}", "5"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{\{1,2\}}", r"\{1,2\}"), (r"\boxed{4}, \boxed{5}", "5"), (r"\boxed{4}, \boxed{5", None), (r"\boxed{}", None),
    (r"#### \boxed{5}", "5"), ("<answer>5</answer>", "5"), ("<answer>5", None), (r"<answer>\boxed{5}</answer>", "5"), ("<answer>#### 5</answer>", "5"), ("The answer is 5.", "5"), ("The final answer is: $5.50.", "$5.50"), ("**Answer:** 5", "5"), ("answer is 4. No, the answer is 5", "5"),
    ("#### 5\nI hope the answer is right.", "5"), ("it is 5", None), ("<think>#### 4</think>\n#### 5", "5"), ("<think>#### 4", None), ("thinking #### 4</think> five", None), ("<think>a</think>#### 5<think>", None)])
def test_final_answer(text, answer):
    "What is graded is the last marked answer after the thinking, nothing else."
    assert final_answer(text) == answer
    assert numeric_reward([""], [text], ["5"]) == [float(answer in ("5",) or text == "it is 5")]


def test_cut_off_is_never_right(pair):
    "A completion without EOS may hold the right answer so far; the trainer must not pay for it."
    tok = char_tokenizer()
    rollout = given_rollout(tok, ["1+1="] * 2, ["#2", "#2;1+1=2;1+1=2"], {"answer": ["2", "2"]}, max_completion_length=4)
    assert rollout.terminated.tolist() == [True, False]
    rollout.completions = ["#### 2", "#### 2"]
    assert task_rewards([numeric_reward], rollout)[0].tolist() == [1.0, 0.0]
    assert task_rewards([math_reward], rollout)[0].tolist() == [1.0, 0.0]


def test_answers_that_do_not_apply():
    "No reference answer, no reward; one that is no number cannot be graded as one, and that is said."
    assert numeric_reward([""] * 2, ["#### 1"] * 2, [None, "1"]) == [None, 1.0] and math_reward([""], ["#### 1"], [None]) == [None]
    with pytest.raises(ValueError, match="'x\\+1'.*math_reward"): numeric_reward([""], ["#### 1"], ["x+1"])
    assert numeric_reward([[{"role": "user", "content": "q"}]], [[{"role": "assistant", "content": "#### 1"}]], ["1"]) == [1.0]


# --- LaTeX

RIGHT = [("x^2+1", "1+x^2"), (r"\frac{\sqrt{3}}{2}", r"\dfrac{\sqrt3}{2}"), ("2x+4", "2(x+2)"), (r"\{1,2\}", r"\{2,1\}"), ("(3,4)", r"\left( 3, 4 \right)"), (r"3\pi", r"\pi\cdot 3"), ("[0,1)", r"\left[0,1\right)"), (r"\text{Monday}", "monday"), (r"\text{(B)}", "B"), (r"\sqrt{8}", r"2\sqrt{2}"),
         ("x^2-1", "(x-1)(x+1)"), (r"\frac{1}{x}", "x^{-1}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"), (r"\frac{1}{2}", "0.5"), (r"50\%", "0.5"), (r"12\text{ cm}", "12"), ("y=2x", "y = 2x"), (r"\infty", r"\infty")]
WRONG = [("x^2+1", "x^2-1"), ("(3,4)", "(4,3)"), ("[0,1)", "[0,1]"), (r"\{1,2\}", r"\{1,2,3\}"), (r"3\pi", r"9.42"), ("A", "B"), (r"\sqrt{2}", "1.4"), ("x", ""), ("x", "x" * 10**5), ("18", "17, 18"), ("18", r"17 \text{ or } 18"), (r"\frac{1}{2}", r"\frac{1}{3}"), ("x", "y"), (r"\text{Monday}", r"\text{Tuesday}"),
         ("2x", r"\undefined{"), ("x+1", "}{"), ("x", "__import__('os')"), ("(1,2)", "1,2,3")]


@latex
def test_latex_by_table():
    "Equivalent forms count, near misses do not, and no text breaks the grader."
    graded = [(a, b, same, same_answer(a, b)) for pairs, same in ((RIGHT, True), (WRONG, False)) for a, b in pairs]
    assert [g for g in graded if g[2] is not g[3]] == []


@latex
def test_a_hanging_answer_costs_a_moment_and_a_warning():
    "The watchdog must end what no signal can, also in a thread (the live trainer's), and the next answer must be graded."
    source._WARNED.clear()
    seen = []

    def work():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            seen.append([same_answer("x^2", t, seconds=0.5) for t in ("x^{9^{9^{9^{9}}}}", "x^{9^{9^{9^{8}}}}", "x^2+0")]); seen.append([str(w.message) for w in caught])

    thread = threading.Thread(target=work); thread.start(); thread.join(60)
    assert seen[0] == [False, False, True]
    assert len(seen[1]) == 1 and "did not finish within 0.5 s" in seen[1][0] and "9^{9" in seen[1][0]


def test_missing_extras_say_what_to_install(monkeypatch):
    "Without the extra numbers are graded, and the rest says what to install."
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert math_reward([""], [r"\boxed{0.5}"], [r"\frac12"]) == [1.0]
    with pytest.raises(ImportError, match=r"math-verify.*pip install 'cmdp_nbdev\[math\]'"): math_reward([""], [r"\boxed{x+1}"], ["1+x"])
    with pytest.raises(ImportError, match=r"reasoning-gym.*cmdp_nbdev\[math\]"): gym_dataset("chain_sum", 1)


# --- GSM8K and MATH

ROWS = [{"question": f"What is {i} times 2?", "answer": f"{i}*2=<<{i}*2={2 * i}>>{2 * i}\n#### {2 * i:,}"} for i in range(600, 603)]


def write(path, rows):
    "Rows as .jsonl or .parquet."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet": Dataset.from_list(rows).to_parquet(path)
    else: path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet", "main/train-00000-of-00001.parquet", "saved"])
def test_gsm8k_from_wherever_it_lies(tmp_path, name):
    "A file, a clone and a saved dataset must give the same rows."
    if name == "saved": DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(tmp_path / "saved"); where = tmp_path / "saved"
    else: write(tmp_path / name, ROWS); where = tmp_path / name if "/" not in name else tmp_path / "main"
    data = load_gsm8k(str(where))
    assert data.to_list() == [{"prompt": r["question"], "answer": r["answer"].split()[-1], "solution": r["answer"].replace(r["answer"][r["answer"].index("<<"):r["answer"].index(">>") + 2], "")} for r in ROWS]
    assert numeric_reward([""] * 3, data["solution"], data["answer"]) == [1.0] * 3 and arithmetic_validity([""] * 3, data["solution"]) == [1.0] * 3
    if name == "saved": assert len(load_gsm8k(str(where), "test")) == 1
    assert "<<600*2=1200>>" in load_gsm8k(str(where), annotations=True)[0]["solution"]


def test_gsm8k_with_bare_answers(tmp_path):
    "Data in the same shape, with a number as the answer, is GSM8K, too."
    write(tmp_path / "d.jsonl", [{"prompt": "q", "answer": 7, "level": 3}])
    assert load_gsm8k(str(tmp_path / "d.jsonl")).to_list() == [{"prompt": "q", "answer": "7", "solution": None, "level": 3}]


def test_math(tmp_path):
    "The last box of a solution is the answer; level and subject stay; a folder's splits are told by its names."
    rows = [{"problem": "p", "solution": r"First \boxed{1}, then $\boxed{\frac{a}{b}}$.", "level": "Level 5", "type": "Algebra"}, {"problem": "r", "solution": r"\boxed{2}", "level": "Level 1", "type": "Geometry"}]
    for row, name in zip(rows, ("train/algebra.jsonl", "test/geometry.jsonl")): write(tmp_path / name, [row])
    assert load_math(str(tmp_path)).to_list() == [{"prompt": "p", "answer": r"\frac{a}{b}", "solution": rows[0]["solution"], "level": "Level 5", "type": "Algebra"}]
    assert load_math(str(tmp_path), "test")["answer"] == ["2"]
    write(tmp_path / "other.jsonl", [{"problem": "p", "answer": r"\boxed{x}"}])
    assert load_math(str(tmp_path / "other.jsonl")).to_list() == [{"prompt": "p", "answer": "x", "solution": None}]


def test_bad_data_is_refused(tmp_path):
    "One clear error that names the file, the row or the column."
    write(tmp_path / "a.jsonl", [ROWS[0], {"question": "q", "answer": "no number"}]); write(tmp_path / "b.jsonl", [{"text": "q"}]); write(tmp_path / "c.jsonl", [{"problem": "q", "solution": "no box"}]); (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a.jsonl.*row 1 has no final answer.*no number"): load_gsm8k(str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="b.jsonl.*'question' or 'prompt'.*only text"): load_gsm8k(str(tmp_path / "b.jsonl"))
    with pytest.raises(ValueError, match="c.jsonl.*row 0 has no final answer"): load_math(str(tmp_path / "c.jsonl"))
    for missing in (tmp_path / "none.parquet", tmp_path / "empty"):
        with pytest.raises(FileNotFoundError, match=f"{missing.name}.*could not be loaded"): load_rows(str(missing))


# --- reasoning-gym

@gym
def test_splits_cannot_overlap():
    "A test question seen in training makes every number worthless: whatever seeds, sizes and settings."
    splits = {split: {q for seed in (0, 1) for q in gym_dataset("chain_sum", 60, split, seed, max_terms=2, max_digits=1, min_digits=1)["prompt"]} for split in ("train",)}
    splits |= {split: set(gym_dataset("chain_sum", 10, split, max_terms=2, max_digits=1, min_digits=1)["prompt"]) for split in ("validation", "test")}
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["validation"] and not splits["validation"] & splits["test"]
    a, b = (gym_dataset("basic_arithmetic", 100, seed=s)["prompt"] for s in (0, 1))
    assert len(set(a)) == 100 and len(set(a) & set(b)) < 5 and a[:50] == gym_dataset("basic_arithmetic", 50)["prompt"]


@gym
@pytest.mark.parametrize("name", ["chain_sum", "prime_factorization", "polynomial_multiplication", "spiral_matrix", "gsm_symbolic", "rearc", "countdown", "time_intervals"])
def test_own_answers_are_right_and_free_text_is_not(name):
    "The round trip through a dataset's column must not change a verdict, and whatever the scorer does with free text is worth 0."
    data = gym_dataset(name, 2)
    assert data.column_names == ["prompt", "answer", "solution", "entry"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert gym_reward([""] * 2, [f"I think.\n<answer>{a}</answer>" for a in data["answer"]], data["entry"]) == [1.0] * 2
        assert gym_reward([""] * 2, ["I do not know", "<answer>maybe 1 or 2</answer>"], data["entry"]) == [0.0] * 2


@gym
def test_scorers_that_raise_are_heard():
    "A reward of 0 for an exception must not be silent; nor be repeated for every completion."
    source._WARNED.clear()
    data = gym_dataset("prime_factorization", 1)
    with pytest.warns(UserWarning, match="prime_factorization.*raised ValueError.*'twelve'.*counts as wrong") as caught: assert gym_reward([""] * 3, ["twelve"] * 3, data["entry"][:1] * 3) == [0.0] * 3
    assert len(caught) == 1


@gym
def test_completions_cannot_run_code(tmp_path):
    "Some scorers evaluate what a model writes."
    file = tmp_path / "written"
    for name, text in (("spiral_matrix", f"[open({str(file)!r}, 'w')]"), ("polynomial_multiplication", f"open({str(file)!r}, 'w')")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert gym_reward([""], [text], gym_dataset(name, 1)["entry"]) == [0.0]
    assert not file.exists()


@gym
@pytest.mark.parametrize("call,error,message", [
    (dict(name="chainsum"), ValueError, "chainsum.*chain_sum"), (dict(name="chain_sum", split="dev"), ValueError, "'dev'.*train, validation, test"), (dict(name="chain_sum", n=0), ValueError, "n must be >= 1.*n=0"), (dict(name="chain_sum", digits=3), ValueError, "chain_sum.*settings.*digits"),
    (dict(name="chain_sum", min_terms=9, max_terms=2), ValueError, "chain_sum.*settings"), (dict(name="chain_sum", size=3), ValueError, "size.*arguments n and seed"), (dict(name="coin_flip", n=10**6, max_seconds=0.05), TimeoutError, "of 1000000 train items of 'coin_flip'.*max_seconds"),
    (dict(name="chain_sum", n=200, split="test", min_terms=2, max_terms=2, min_digits=1, max_digits=1), ValueError, "n=200 is too many.*distinct test items")])
def test_bad_requests(call, error, message):
    "One clear error that says what would work."
    with pytest.raises(error, match=message): gym_dataset(**call)


# --- prompts

DATA = Dataset.from_dict({"prompt": [f"q{i}" for i in range(6)], "answer": [str(i) for i in range(6)], "solution": [f"so {i}\n#### {i}" if i % 2 else None for i in range(6)]})


def test_few_shot_prompts():
    "Examples come from the training split, the same for all, and never is a question its own example."
    few = with_template(DATA, "chat", "think", 2, DATA)
    shown = {m["content"] for m in few[0]["prompt"][:-1] if m["role"] == "user"}
    assert len(few) == 4 and len(shown) == 2 and not shown & {p[-1]["content"] for p in few["prompt"]}
    assert all([m["role"] for m in p] == ["system", "user", "assistant", "user", "assistant", "user"] and p[0]["content"] == SYSTEM_PROMPTS["think"] for p in few["prompt"])
    assert few["answer"] == [p[-1]["content"][1:] for p in few["prompt"]]
    for m in few[0]["prompt"]:
        if m["role"] == "assistant": assert final_answer(m["content"]) is not None and m["content"].count("####") == 1
    plain = with_template(DATA.select([0]), "plain", "Be brief.", 1, DATA.select([1]))
    assert plain[0]["prompt"] == "Be brief.\n\nQuestion: q1\nAnswer: so 1\n#### 1\n\nQuestion: q0\nAnswer:"
    assert with_template(DATA, "Q {prompt} {x}")[0]["prompt"] == "Q q0 {x}" and with_template(DATA.select_columns("prompt"), "chat")[0]["prompt"] == [{"role": "user", "content": "q0"}]
    assert worked_text("5", r"It is \boxed{5}.") == r"It is \boxed{5}." and final_answer(worked_text("5", r"It is \boxed{5}.", think=True)) == "5"


@pytest.mark.parametrize("call,message", [(dict(template="prompts"), "'chat', 'plain' or a text with {prompt}"), (dict(num_shots=-1), "num_shots must be >= 0, got -1"), (dict(num_shots=2), "num_shots=2 needs.*shots"), (dict(num_shots=7, shots=DATA), "num_shots=7.*6 rows"),
                                          (dict(num_shots=6, shots=DATA), "nothing is left"), (dict(num_shots=1, shots=DATA.select_columns("prompt")), "column 'answer'")])
def test_bad_templates(call, message):
    "One clear error for each."
    with pytest.raises(ValueError, match=message): with_template(DATA, **{"template": "plain", **call})


# --- the command

def test_the_command_on_gsm8k(tmp_path, monkeypatch):
    "`--dataset gsm8k:FOLDER` brings its test split, its grader and the check of its arithmetic."
    tok = char_tokenizer()
    tiny_model(32, tok).save_pretrained(tmp_path / "s"); tok.save_pretrained(tmp_path / "s")
    for split in ("train", "test"): write(tmp_path / "d" / f"{split}.jsonl", [{"question": f"{i}+{j}=", "answer": f"{i}+{j}={i + j}\n#### {i + j}"} for i in range(3) for j in range(4)])
    monkeypatch.chdir(tmp_path)
    assert main(["--student", "s", "--teacher", "s", "--dataset", "gsm8k:d", "--prompt_template", "{prompt}", "--n_train", "10", "--n_eval", "5", "--output_dir", "out", "--max_steps", "2", "--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "6",
                 "--budget", "20", "--device", "cpu", "--disable_tqdm"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["n_eval"] == 5 and summary["accuracy"] == 0 and "reasoning_validity" in summary
    rewards, train, held_out, metrics = own_task(RunArguments(dataset="gsm8k:d", num_shots=1, system_prompt="hash", n_eval=3))
    assert rewards == [numeric_reward] and len(train) == 11 and len(held_out) <= 3 and [m["role"] for m in train[0]["prompt"]] == ["system", "user", "assistant", "user"] and list(metrics) == ["reasoning_validity"]


@pytest.mark.parametrize("args,message", [
    (["--dataset", "gsm8k:train.jsonl"], "eval_dataset missing"), (["--dataset", "train.jsonl"], "eval_dataset, reward missing"), (["--dataset", "gsm8k:none"], "'none' could not be loaded"), (["--dataset", "gsm8k:"], "must look like"), (["--dataset", "math:d", "--n_train", "0"], "n_train must be >= 1, got 0"),
    (["--dataset", "reasoning_gym:chain_sum,two"], "setting=value"), (["--dataset", "reasoning_gym:chain_sums"], "chain_sum")])
def test_bad_options(args, message, capsys, tmp_path, monkeypatch):
    "The command says in one line what is wrong, before any model is loaded."
    if args[1].startswith("reasoning") and not have("reasoning_gym"): pytest.skip("the extra 'math' is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["--student", "s", "--teacher", "s", *args]) == 2
    assert message in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_options_of_other_data_need_a_student(capsys):
    "A prompt template that has no effect must not look as if it had."
    assert main(["--num_shots", "2", "--prompt_template", "plain"]) == 2
    assert "prompt_template, num_shots given without a student" in capsys.readouterr().err
