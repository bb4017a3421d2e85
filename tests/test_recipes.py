"""The recipes of the paper's two pairs.

Run from end to end with tiny models of the same classes, and counted at full size.
"""

import contextlib
import io
import json
import math
import re
import string
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, read_lines
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    MllamaForCausalLM,
    MllamaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import cmdp_nbdev.preflight
from cmdp_nbdev.cli import main
from cmdp_nbdev.config import CMDPConfig
from cmdp_nbdev.cost import align_vocab
from cmdp_nbdev.model import char_tokenizer, check_pair, load_model
from cmdp_nbdev.options import parse_args
from cmdp_nbdev.plan import build, count
from cmdp_nbdev.tasks import TASKS, task_kind

sys.path.insert(0, str(ROOT / "tools"))
import memory

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
QWEN, LLAMA = ROOT / "recipes" / "qwen2.5-math-gsm8k.yaml", ROOT / "recipes" / "llama3.2-math.yaml"
FAST = """
--n_eval 4 --n_train 16 --max_steps 2 --max_completion_length 10 --per_device_train_batch_size 8
--gradient_accumulation_steps 2 --save_steps 0 --device cpu --disable_tqdm
""".split()
pytestmark = [
    pytest.mark.filterwarnings("ignore:cropping to"),
    pytest.mark.filterwarnings("ignore:.*MllamaForConditionalGeneration"),
]
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)


def read(path) -> dict:
    "A JSON file."
    return json.loads(path.read_text())


# The pairs as tiny models. Tokenizers have 96 ids, the output layers a few rows more, as real
# ones have; the tokenizers of one pair end a text differently, as the real ones do.

IDS, ROWS = 96, 104
SMALL = dict(
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=1024,
    pad_token_id=0,
    bos_token_id=None,
)
TEXT = SMALL | dict(
    num_hidden_layers=4,
    cross_attention_layers=[1, 3],
    vocab_size=ROWS,
    eos_token_id=1,
    bos_token_id=1,
    rms_norm_eps=1e-6,
)
VISION = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_global_layers=1,
    attention_heads=2,
    intermediate_size=16,
    vision_output_dim=32,
    image_size=28,
    patch_size=14,
    intermediate_layers_indices=[0],
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    "<|im_start|>"
)


def tokenizer(*special: str, eos: str, template: str | None = None, more: tuple = ()):
    "96 ids: pad, EOS, unknown, printable characters and `special`; then `more`."
    printable = [c for c in string.printable if c not in "_$?\n\r\t\v\f"]
    tok = char_tokenizer("".join(printable[: IDS - 3 - len(special)]))
    tok.add_special_tokens({"additional_special_tokens": list(special + more)})
    tok.eos_token, tok.chat_template = eos, template
    assert len(tok) == IDS + len(more)
    return tok


def save_qwen(folder) -> None:
    "Student and teacher, whose output layers are padded to different sizes."
    ends = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    shape = SMALL | dict(num_hidden_layers=2, eos_token_id=IDS - 3, initializer_range=0.3)
    for who, rows, eos in (("student", ROWS, ends[0]), ("teacher", ROWS + 8, ends[2])):
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=rows, **shape))
        model.save_pretrained(folder / who)
        tokenizer(*ends, eos=eos, template=CHATML).save_pretrained(folder / who)


def save_llama(folder) -> None:
    "A text model, and a vision model with one more token, whose text decoder teaches."
    ends = ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    shape = SMALL | dict(num_hidden_layers=2, eos_token_id=IDS - 4, initializer_range=0.3)
    student = LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, **shape))
    student.save_pretrained(folder / "student")
    tokenizer(*ends, eos=ends[0]).save_pretrained(folder / "student")
    config = MllamaConfig(text_config=TEXT, vision_config=VISION, image_token_index=ROWS)
    MllamaForConditionalGeneration(config).save_pretrained(folder / "teacher")
    tok = tokenizer(*ends, eos=ends[3], more=("<|image|>",))
    tok.save_pretrained(folder / "teacher")


def gsm8k_row(i: int) -> dict:
    "A problem as GSM8K writes it."
    j = i % 7
    question = f"Ann has {i} pens and gets {j} more. How many?"
    return {"question": question, "answer": f"{i}+{j}=<<{i}+{j}={i + j}>>{i + j}\n#### {i + j}"}


def math_row(i: int) -> dict:
    "A problem as MATH writes it."
    text = {"problem": f"What is ${i}x$ for $x=2$?", "solution": f"It is $\\boxed{{{2 * i}}}$."}
    return text | {"level": "Level 1", "type": "Algebra"}


def save_task(folder, row) -> None:
    "Twenty problems to learn from, six to be judged on."
    folder.mkdir()
    for split, n in (("train", 20), ("test", 6)):
        lines = [json.dumps(row(i + 2)) + "\n" for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(lines))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    "recipe -> options that put tiny models with random weights and tiny tasks in its place."
    d = tmp_path_factory.mktemp("pairs")
    torch.manual_seed(0)
    save_qwen(d / "qwen")
    save_llama(d / "llama")
    save_task(d / "gsm8k", gsm8k_row)
    save_task(d / "math", math_row)

    def options(recipe, name, task):
        models = ["--student", str(d / name / "student"), "--teacher", str(d / name / "teacher")]
        data = ["--dataset", f"{task}:{d / task}", "--eval_dataset", f"{task}:{d / task}"]
        return ["--config", str(recipe), *models, *data, *FAST]

    return {QWEN: options(QWEN, "qwen", "gsm8k"), LLAMA: options(LLAMA, "llama", "math")}


# What the files say


@each_recipe
def test_recipe_says_what_it_does(recipe):
    "Other updates than its comments derive would waste two days of a GPU."
    run, values = parse_args(["--config", str(recipe)])
    config = CMDPConfig(**values)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    problems = {"gsm8k": 7473, "math": 7500}[task_kind(run.dataset)]

    def epochs(n):
        return math.ceil(n * problems * config.num_generations / batch)

    assert task_kind(run.eval_dataset) in TASKS
    assert batch == 64
    assert config.distill_steps in (0, epochs(3))
    assert config.max_steps == config.distill_steps + epochs(20)
    assert (config.method, config.method_kwargs["penalty"]) == ("cmdp", 20)
    assert (config.budget, config.aggregate) == (0.35, "mean")
    assert (config.num_generations, config.bf16) == (8, True)


@each_recipe
def test_recipe_takes_our_method(recipe):
    "Our default method on the same pair is one option away."
    ours = ["--method", "cmdp-rate", "--method_kwargs", ""]
    parse_args(["--config", str(recipe), *ours])


UNMARKED = "n_eval save_total_limit resume_from_checkpoint output_dir method_kwargs prompt_template"


@each_recipe
def test_recipe_says_whose_each_setting_is(recipe):
    "The paper's, known otherwise, or ours: a reader must not take our choice for the paper's."
    for line in recipe.read_text().splitlines():
        option = re.match(r"(\w+):", line)
        if option and option[1] not in UNMARKED.split():
            assert re.search(r"\[(paper|known|ours)\]", line), line


@each_recipe
def test_unknown_key_is_refused(recipe, tmp_path, capsys):
    "A misspelt line must not be ignored for two days."
    (tmp_path / "r.yaml").write_text(recipe.read_text() + "\nbudgett: 1\n")
    assert main(["--config", str(tmp_path / "r.yaml")]) == 2
    assert "unknown option budgett" in capsys.readouterr().err


# From the file to the saved student


@pytest.fixture(scope="module", params=RECIPES, ids=lambda p: p.stem)
def ran(request, pairs, tmp_path_factory):
    "(recipe, folder of a run with all of its settings but the sizes, what it printed)."
    out, printed = tmp_path_factory.mktemp("ran") / "run", io.StringIO()
    warm_up = ["--distill_steps", "1"] if request.param == LLAMA else []
    with contextlib.redirect_stdout(printed):
        assert main([*pairs[request.param], *warm_up, "--output_dir", str(out)]) == 0
    return request.param, out, printed.getvalue()


def test_recipe_runs(ran):
    "With the recipe's own method, budget and precision."
    _, out, _ = ran
    summary = read(out / "summary.json")
    settings = [summary[k] for k in ("method", "budget", "aggregate", "n_eval", "steps")]
    assert settings == ["cmdp", 0.35, "mean", 4, 2]
    assert read(out / "config.json")["versions"]["transformers"]
    assert all(math.isfinite(m["loss"]) for m in read_lines(out / "metrics.jsonl")[1:])


def test_recipe_keeps_the_budget_per_token(ran):
    "What is judged is the mean over a completion, of tokens that both models have."
    _, out, _ = ran
    for r in read_lines(out / "eval.jsonl"):
        n = len(r["completion_ids"])
        assert r["spent"] == pytest.approx(sum(r["cost_per_token"]) / n, rel=1e-4)
        assert r["within_budget"] == (r["spent"] <= 0.35)
        assert max(r["completion_ids"]) < ROWS


def test_student_ends_as_in_training(ran):
    "Deployed, it ends a completion where it ended in training, with either token."
    recipe, out, _ = ran
    tok = AutoTokenizer.from_pretrained(out / "student")
    student = AutoModelForCausalLM.from_pretrained(out / "student")
    own = {QWEN: "<|endoftext|>", LLAMA: "<|end_of_text|>"}[recipe]
    ends = sorted([tok.eos_token_id, tok.convert_tokens_to_ids(own)])
    assert tok.eos_token == read(out / "config.json")["eos_token"]
    assert sorted(student.generation_config.eos_token_id) == ends
    assert student.dtype == torch.float32


def test_table_of_a_recipe(ran):
    "The unit of the budget is that of a token, and what evades such a budget stands beside it."
    _, _, table = ran
    assert "budget 0.35 nats per token (mean)" in table
    for k in ("satisfaction_rate", "length_mean", "spent_mean", "kl_mean", "kl_per_token_mean"):
        assert f"\n{k} " in table


def test_prompts_are_those_of_the_teacher(pairs):
    "The written-out chat format must be read as special tokens, not as letters."
    run, _ = parse_args(pairs[LLAMA])
    tok = AutoTokenizer.from_pretrained(run.teacher)
    text = run.prompt_template.replace("{prompt}", "1+1?")
    tokens = tok.convert_ids_to_tokens(tok(text)["input_ids"])
    header = ["<|start_header_id|>", "<|end_header_id|>"]
    assert [t for t in tokens if t.startswith("<|")] == [*header, "<|eot_id|>", *header]
    assert "\\boxed{}" in run.prompt_template


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_warm_up_and_budget_choice_in_one_command(aggregate, pairs, tmp_path, capsys):
    "Whoever reads any of the outputs must find the budget that was chosen, not the file's."
    out = tmp_path / "run"
    warm_up = "--max_steps 3 --distill_steps 2 --budget_quantile 0.5 --save_steps 3".split()
    where = ["--aggregate", aggregate, "--output_dir", str(out)]
    command = [*pairs[QWEN], *warm_up, *where]
    assert main(command) == 0
    table = capsys.readouterr().out
    summary, config = read(out / "summary.json"), read(out / "config.json")
    chosen = summary["budget"]
    assert chosen != 0.35
    limits = [m["budget"] for m in read_lines(out / "metrics.jsonl")[1:]]
    assert limits == pytest.approx([0.35, 0.35, chosen])
    assert config["chosen_budget"] == chosen

    unit = "nats per token" if aggregate == "mean" else "nats"
    how = f"{aggregate}, chosen: quantile 0.5 after 2 updates of distillation"
    assert f"budget {chosen:g} {unit} ({how})" in table
    card = (out / "student" / "README.md").read_text()
    assert f"budget d | {chosen:g} nats, {aggregate}" in card
    assert "length, tokens" in card
    assert "start_satisfaction_rate" not in summary  # at the start there was no budget to keep
    assert "start_accuracy" in summary

    spent = [r["spent"] for r in read_lines(out / "eval.jsonl")]
    assert summary["satisfaction_rate"] == sum(s <= chosen for s in spent) / len(spent)
    assert summary["spent_mean"] == pytest.approx(sum(spent) / len(spent))
    if aggregate == "mean":
        assert main(command) == 0  # resumed: nothing is left to do
        assert read(out / "config.json")["chosen_budget"] == chosen


# The traps of these pairs


def test_text_decoder_of_a_vision_checkpoint(pairs):
    "The 11B teacher: a vision checkpoint must load as its text decoder."
    folder = parse_args(pairs[LLAMA])[0].teacher
    teacher = load_model(folder, "teacher").eval()
    whole = MllamaForConditionalGeneration.from_pretrained(folder).eval()
    assert type(teacher) is MllamaForCausalLM
    assert teacher.get_input_embeddings().weight.shape[0] == ROWS + 8
    assert teacher.lm_head.weight.shape[0] == teacher.config.vocab_size == ROWS
    ids = torch.arange(2, 26).view(2, 12)
    with torch.no_grad():
        ours, *others = [m(input_ids=ids).logits for m in (teacher, whole, as_llama(teacher))]
    for other in others:
        torch.testing.assert_close(ours, other)


def as_llama(decoder) -> LlamaForCausalLM:
    "On text the decoder is a Llama without the cross-attention layers, 1 and 3."
    new = {0: 0, 2: 1}

    def renumbered(name):
        return re.sub(r"layers\.(\d+)", lambda m: f"layers.{new[int(m[1])]}", name)

    kept = {k: v for k, v in decoder.state_dict().items() if not re.search(r"layers\.[13]\.", k)}
    weights = {renumbered(k): v for k, v in kept.items()}
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:ROWS]
    shape = {k: v for k, v in TEXT.items() if k != "cross_attention_layers"}
    shape |= {"num_hidden_layers": 2, "rope_parameters": decoder.config.rope_parameters}
    llama = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    llama.load_state_dict(weights)
    return llama


@pytest.mark.parametrize("longer", ["teacher", "student"])
def test_padded_vocabulary_changes_nothing(longer, pairs, tmp_path):
    """Output layers padded to different sizes: the most repeated complaint in this field.

    Loss, cost and evaluation must be those of the cropped pair.
    """
    run = parse_args(pairs[QWEN])[0]
    long, short = run.teacher, run.student  # 112 and 104 rows; for "student" their roles change
    other = "student" if longer == "teacher" else "teacher"
    cropped = tmp_path / "cropped-model"
    model, tok = load_model(long), AutoTokenizer.from_pretrained(long)
    model.resize_token_embeddings(ROWS)
    model.save_pretrained(cropped)
    tok.save_pretrained(cropped)

    ends = {"teacher": "<|im_end|>", "student": "<|endoftext|>"}[longer]
    exact = ["--eos_token", ends, "--bf16", "false", "--learning_rate", "1e-3"]
    runs = {"padded": long, "cropped": cropped}
    for name, folder in runs.items():
        models = [f"--{longer}", str(folder), f"--{other}", short]
        out = ["--output_dir", str(tmp_path / name)]
        assert main([*pairs[QWEN], *models, *exact, *out]) == 0

    a, b = (read_lines(tmp_path / name / "metrics.jsonl") for name in runs)
    assert [m.keys() for m in a] == [m.keys() for m in b]
    assert len(a) == 3
    for x, y in zip(a, b):
        x, y = ({k: v for k, v in m.items() if k != "seconds"} for m in (x, y))
        assert {k for k, v in x.items() if v is None} == {k for k, v in y.items() if v is None}
        x, y = ({k: v for k, v in m.items() if v is not None} for m in (x, y))
        assert x == pytest.approx(y, rel=1e-4, abs=1e-6)
    for x, y in zip(*(read_lines(tmp_path / name / "eval.jsonl") for name in runs)):
        assert x["completion_ids"] == y["completion_ids"]
        costs = pytest.approx(y["cost_per_token"], rel=1e-4, abs=1e-6)
        assert x["cost_per_token"] == costs


def test_other_tokenizer_is_refused_before_anything_is_loaded(pairs, monkeypatch, capsys):
    "A wrong teacher must be named at once, not after gigabytes, and which tokens differ."

    def fail(*args, **kwargs):
        pytest.fail("a model was loaded")

    monkeypatch.setattr(cmdp_nbdev.preflight, "load_model", fail)
    teacher = parse_args(pairs[LLAMA])[0].teacher
    assert main([*pairs[QWEN], "--teacher", teacher]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    begins = "cmdp-distill: error: student and teacher do not share a tokenizer"
    assert error.startswith(begins), error
    assert "'<|im_start|>', teacher '<|end_header_id|>'" in error, error


def test_ends_of_text_must_be_settled(pairs, capsys):
    "A base and an instruct model end a text differently: refused, with the line that mends it."
    run = parse_args(pairs[QWEN])[0]
    s, t = (AutoTokenizer.from_pretrained(x) for x in (run.student, run.teacher))
    with pytest.raises(ValueError, match=r"eos_token='<\|im_end\|>' would end"):
        check_pair(s, t)
    assert main([*pairs[QWEN], "--eos_token", "<|end|>"]) == 2
    assert "eos_token='<|end|>' is no token of model" in capsys.readouterr().err


# At full size


def test_parameters_at_full_size():
    "The models are those that the recipes name."
    assert {n: count(config) for n, config in memory.MODELS.items()} == {
        "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
        "Qwen/Qwen2.5-Math-7B-Instruct": 7_615_616_512,
        "meta-llama/Llama-3.2-3B": 3_212_749_824,
        "meta-llama/Llama-3.2-11B-Vision-Instruct": 9_775_192_080,
    }


def test_vocabularies_at_full_size():
    "Those of the Qwen pair are cropped to the rows that both have."
    ids = torch.zeros(1, 4, dtype=torch.long)
    names = ("Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-7B-Instruct")
    with torch.device("meta"):
        models = [build(memory.MODELS[name], "meta") for name in names]
        logits = [m(input_ids=ids.to("meta")).logits for m in models]
    assert [x.shape[-1] for x in logits] == [151936, 152064]
    cropped = align_vocab(*logits)[:2]
    assert [x.shape[-1] for x in cropped] == [151936, 151936]


BFLOAT16 = ["--model_init_kwargs", "dtype=bfloat16"]


@pytest.mark.parametrize("recipe, more", [(QWEN, []), (LLAMA, []), (LLAMA, BFLOAT16)])
def test_memory_that_the_recipes_state(recipe, more):
    "Whoever rents a card for it must be able to rely on the number, up to its last digit."
    peak = memory.main([str(recipe), *more])["peak"]
    near = [f"{round(peak) + more_or_less} GB" for more_or_less in (-1, 0, 1)]
    assert any(f"about {gb}" in recipe.read_text() for gb in near), peak
    assert any(gb in (ROOT / "recipes" / "README.md").read_text() for gb in near), peak


def test_module_is_the_command(tmp_path):
    "`accelerate launch -m cmdp_nbdev.cli` would do nothing at all without the guard at its end."
    command = [sys.executable, "-m", "cmdp_nbdev.cli", "--config", str(QWEN), "--budget", "-1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "budget limit must be" in done.stderr, done.stderr
