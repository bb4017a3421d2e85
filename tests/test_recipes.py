"The recipes of the paper's two pairs: run from end to end with tiny models of the same classes, and counted at full size."

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

import cmdp_nbdev.trainer
from cmdp_nbdev.cli import main, parse_args
from cmdp_nbdev.model import char_tokenizer, check_pair, load_model
from cmdp_nbdev.tasks import TASKS, task_kind
from cmdp_nbdev.trainer import CMDPConfig

sys.path.insert(0, str(ROOT / "tools"))
import memory

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
QWEN, LLAMA = ROOT / "recipes" / "qwen2.5-math-gsm8k.yaml", ROOT / "recipes" / "llama3.2-math.yaml"
IDS, FAST = (
    96,
    "--n_eval 4 --n_train 16 --max_steps 2 --max_completion_length 10 --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --save_steps 0 --device cpu --disable_tqdm".split(),
)
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
    vocab_size=104,
    eos_token_id=1,
    bos_token_id=1,
    rms_norm_eps=1e-6,
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:cropping to"),
    pytest.mark.filterwarnings("ignore:.*MllamaForConditionalGeneration"),
]


def tokenizer(*special: str, eos: str, template: str | None = None, more: tuple = ()):
    "96 ids: pad, EOS, unknown, printable characters and `special`; then `more`. Ends a text with `eos`."
    chars = [c for c in string.printable if c not in "_$?\n\r\t\v\f"][: IDS - 3 - len(special)]
    tok = char_tokenizer("".join(chars))
    tok.add_special_tokens({"additional_special_tokens": list(special + more)})
    tok.eos_token, tok.chat_template = eos, template
    assert len(tok) == IDS + len(more)
    return tok


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    "Folders of the two pairs and their tasks: recipe -> options. Random weights; tokenizers that end a text differently, as the real ones do."
    d = tmp_path_factory.mktemp("pairs")
    torch.manual_seed(0)
    ends, chat = (
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>",
    )
    for who, rows, eos in (("student", 104, ends[0]), ("teacher", 112, ends[2])):
        Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=rows,
                num_hidden_layers=2,
                eos_token_id=IDS - 3,
                initializer_range=0.3,
                **SMALL,
            )
        ).save_pretrained(d / "qwen" / who)
        tokenizer(*ends, eos=eos, template=chat).save_pretrained(d / "qwen" / who)
    marks = ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=104,
            num_hidden_layers=2,
            eos_token_id=IDS - 4,
            initializer_range=0.3,
            **SMALL,
        )
    ).save_pretrained(d / "llama" / "student")
    tokenizer(*marks, eos=marks[0]).save_pretrained(d / "llama" / "student")
    vision = dict(
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
    MllamaForConditionalGeneration(
        MllamaConfig(text_config=TEXT, vision_config=vision, image_token_index=104)
    ).save_pretrained(d / "llama" / "teacher")
    tokenizer(*marks, eos=marks[3], more=("<|image|>",)).save_pretrained(d / "llama" / "teacher")
    for task, row in (
        (
            "gsm8k",
            lambda i: {
                "question": f"Ann has {i} pens and gets {i % 7} more. How many?",
                "answer": f"{i}+{i % 7}=<<{i}+{i % 7}={i + i % 7}>>{i + i % 7}\n#### {i + i % 7}",
            },
        ),
        (
            "math",
            lambda i: {
                "problem": f"What is ${i}x$ for $x=2$?",
                "solution": f"It is $\\boxed{{{2 * i}}}$.",
                "level": "Level 1",
                "type": "Algebra",
            },
        ),
    ):
        (d / task).mkdir()
        for split, n in (("train", 20), ("test", 6)):
            (d / task / f"{split}.jsonl").write_text(
                "".join(json.dumps(row(i + 2)) + "\n" for i in range(n))
            )
    return {
        recipe: [
            "--config",
            str(recipe),
            "--student",
            str(d / name / "student"),
            "--teacher",
            str(d / name / "teacher"),
            "--dataset",
            f"{task}:{d / task}",
            "--eval_dataset",
            f"{task}:{d / task}",
            *FAST,
        ]
        for recipe, name, task in ((QWEN, "qwen", "gsm8k"), (LLAMA, "llama", "math"))
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipe_says_what_it_does(recipe):
    "A recipe that asks for other updates than its comments derive, or for an unknown task, would waste two days of a GPU."
    run, values = parse_args(["--config", str(recipe)])
    config = CMDPConfig(**values)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    problems = {"gsm8k": 7473, "math": 7500}[task_kind(run.dataset)]

    def epochs(n):
        return math.ceil(n * problems * config.num_generations / batch)

    assert (
        task_kind(run.eval_dataset) in TASKS
        and batch == 64
        and config.distill_steps in (0, epochs(3))
        and config.max_steps == config.distill_steps + epochs(20)
    )
    assert (
        config.method,
        config.budget,
        config.aggregate,
        config.method_kwargs["penalty"],
        config.num_generations,
        config.bf16,
    ) == ("cmdp", 0.35, "mean", 20, 8, True)
    parse_args(
        ["--config", str(recipe), "--method", "cmdp-rate", "--method_kwargs", ""]
    )  # our default method on the same pair
    for line in recipe.read_text().splitlines():
        if (option := re.match(r"(\w+):", line)) and option[1] not in (
            "n_eval",
            "save_total_limit",
            "resume_from_checkpoint",
            "output_dir",
            "method_kwargs",
            "prompt_template",
        ):
            assert re.search(r"\[(paper|known|ours)\]", line), line


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_unknown_key_is_refused(recipe, tmp_path, capsys):
    "A misspelt line must not be ignored for two days."
    (tmp_path / "r.yaml").write_text(recipe.read_text() + "\nbudgett: 1\n")
    with pytest.raises(SystemExit) as stop:
        main(["--config", str(tmp_path / "r.yaml")])
    assert stop.value.code == 2 and "unknown option budgett" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipe_runs(recipe, pairs, tmp_path, capsys):
    "Everything between the file and the saved student, with all of the recipe's settings but the sizes."
    out, warm = tmp_path / "run", ["--distill_steps", "1"] if recipe == LLAMA else []
    assert main([*pairs[recipe], *warm, "--output_dir", str(out)]) == 0, capsys.readouterr().err
    table, summary, config = (
        capsys.readouterr().out,
        json.loads((out / "summary.json").read_text()),
        json.loads((out / "config.json").read_text()),
    )
    assert (
        summary["method"],
        summary["budget"],
        summary["aggregate"],
        summary["n_eval"],
        summary["steps"],
    ) == ("cmdp", 0.35, "mean", 4, 2) and config["versions"]["transformers"]
    assert (
        "budget 0.35 nats per token (mean)" in table
        and [
            f"\n{k} " in table
            for k in (
                "satisfaction_rate",
                "length_mean",
                "spent_mean",
                "kl_mean",
                "kl_per_token_mean",
            )
        ]
        == [True] * 5
    )
    for r in read_lines(out / "eval.jsonl"):
        n = len(r["completion_ids"])
        assert (
            r["spent"] == pytest.approx(sum(r["cost_per_token"]) / n, rel=1e-4)
            and r["within_budget"] == (r["spent"] <= 0.35)
            and max(r["completion_ids"]) < 104
        )
    tok, student = (
        AutoTokenizer.from_pretrained(out / "student"),
        AutoModelForCausalLM.from_pretrained(out / "student"),
    )
    own = {QWEN: "<|endoftext|>", LLAMA: "<|end_of_text|>"}[recipe]
    assert tok.eos_token == config["eos_token"] and sorted(
        student.generation_config.eos_token_id
    ) == sorted(
        [tok.eos_token_id, tok.convert_tokens_to_ids(own)]
    )  # deployed, it ends where it ended in training
    assert student.dtype == torch.float32 and all(
        math.isfinite(m["loss"]) for m in read_lines(out / "metrics.jsonl")[1:]
    )


def test_prompts_are_those_of_the_teacher(pairs):
    "The written-out chat format of the Llama recipe must be what the tokenizer reads as special tokens, not as letters."
    run, _ = parse_args(pairs[LLAMA])
    text, tok = (
        run.prompt_template.replace("{prompt}", "1+1?"),
        AutoTokenizer.from_pretrained(run.teacher),
    )
    tokens = tok.convert_ids_to_tokens(tok(text)["input_ids"])
    assert [t for t in tokens if t.startswith("<|")] == [
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ] and "\\boxed{}" in run.prompt_template


def test_text_decoder_of_a_vision_checkpoint(pairs):
    "The 11B teacher: a vision checkpoint must load as its text decoder, which on text is a Llama without the cross-attention layers."
    folder = parse_args(pairs[LLAMA])[0].teacher
    teacher, whole = (
        load_model(folder, "teacher").eval(),
        MllamaForConditionalGeneration.from_pretrained(folder).eval(),
    )
    assert (
        type(teacher) is MllamaForCausalLM
        and teacher.get_input_embeddings().weight.shape[0] == 104 + 8
        and teacher.lm_head.weight.shape[0] == teacher.config.vocab_size == 104
    )
    ids, kept = torch.arange(2, 26).view(2, 12), {0: 0, 2: 1}
    weights = {
        re.sub(r"layers\.(\d+)", lambda m: f"layers.{kept[int(m[1])]}", k): v
        for k, v in teacher.state_dict().items()
        if not re.search(r"layers\.[13]\.", k)
    }
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:104]
    llama = LlamaForCausalLM(
        LlamaConfig(
            **{k: v for k, v in TEXT.items() if k != "cross_attention_layers"}
            | {"num_hidden_layers": 2, "rope_parameters": teacher.config.rope_parameters}
        )
    ).eval()
    llama.load_state_dict(weights)
    with torch.no_grad():
        logits = [m(input_ids=ids).logits for m in (teacher, whole, llama)]
    for other in logits[1:]:
        torch.testing.assert_close(logits[0], other)


@pytest.mark.parametrize("longer", ["teacher", "student"])
def test_padded_vocabulary_changes_nothing(longer, pairs, tmp_path):
    "The most repeated complaint in this field: pairs whose output layers are padded to different sizes. Loss, cost and evaluation must be those of the cropped pair."
    options, run = pairs[QWEN], parse_args(pairs[QWEN])[0]
    long, short = (
        run.teacher,
        run.student,
    )  # 112 and 104 rows; in the second case they exchange their roles
    model, tok = load_model(long), AutoTokenizer.from_pretrained(long)
    model.resize_token_embeddings(104)
    model.save_pretrained(tmp_path / "cropped")
    tok.save_pretrained(tmp_path / "cropped")
    other = "student" if longer == "teacher" else "teacher"
    for name, folder in (("padded", long), ("cropped", tmp_path / "cropped")):
        assert (
            main(
                [
                    *options,
                    f"--{longer}",
                    str(folder),
                    f"--{other}",
                    short,
                    "--eos_token",
                    "<|im_end|>" if longer == "teacher" else "<|endoftext|>",
                    "--output_dir",
                    str(tmp_path / name),
                    "--bf16",
                    "false",
                    "--learning_rate",
                    "1e-3",
                ]
            )
            == 0
        )
    a, b = (
        [
            {k: v for k, v in m.items() if k != "seconds"}
            for m in read_lines(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("padded", "cropped")
    )
    assert [m.keys() for m in a] == [m.keys() for m in b] and len(a) == 3
    for x, y in zip(a, b):
        assert x == pytest.approx(y, rel=1e-4, abs=1e-6, nan_ok=True)
    for x, y in zip(
        *(read_lines(tmp_path / name / "eval.jsonl") for name in ("padded", "cropped"))
    ):
        assert x["completion_ids"] == y["completion_ids"] and x["cost_per_token"] == pytest.approx(
            y["cost_per_token"], rel=1e-4, abs=1e-6
        )


def test_other_tokenizer_is_refused_before_anything_is_loaded(pairs, monkeypatch, capsys):
    "A wrong teacher must be named at once, not after gigabytes were loaded, and the message must show which tokens differ."
    monkeypatch.setattr(
        cmdp_nbdev.trainer, "load_model", lambda *args, **kwargs: pytest.fail("a model was loaded")
    )
    teacher = parse_args(pairs[LLAMA])[0].teacher
    assert main([*pairs[QWEN], "--teacher", teacher]) == 2
    error = capsys.readouterr().err.strip()
    assert (
        len(error.splitlines()) == 1
        and error.startswith("cmdp-distill: error: student and teacher do not share a tokenizer")
        and "'<|im_start|>', teacher '<|end_header_id|>'" in error
    ), error


def test_ends_of_text_must_be_settled(pairs, capsys):
    "A base model and an instruct model end a text with different tokens: without eos_token the run is refused, with the line that mends it."
    run = parse_args(pairs[QWEN])[0]
    s, t = (AutoTokenizer.from_pretrained(x) for x in (run.student, run.teacher))
    with pytest.raises(ValueError, match=r"eos_token='<\|im_end\|>' would end"):
        check_pair(s, t)
    assert (
        main([*pairs[QWEN], "--eos_token", "<|end|>"]) == 2
        and "eos_token='<|end|>' is no token of model" in capsys.readouterr().err
    )


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_warm_up_and_budget_choice_in_one_command(aggregate, pairs, tmp_path, capsys):
    "Distillation, choice of the budget, constrained phase; whoever reads any of the outputs must find the budget that was chosen, not the one of the file."
    out = tmp_path / "run"
    command = [
        *pairs[QWEN],
        "--max_steps",
        "3",
        "--distill_steps",
        "2",
        "--budget_quantile",
        "0.5",
        "--aggregate",
        aggregate,
        "--output_dir",
        str(out),
        "--save_steps",
        "3",
    ]
    assert main(command) == 0
    table, steps = capsys.readouterr().out, read_lines(out / "metrics.jsonl")
    summary, config, card = (
        json.loads((out / "summary.json").read_text()),
        json.loads((out / "config.json").read_text()),
        (out / "student" / "README.md").read_text(),
    )
    chosen = summary["budget"]
    assert (
        chosen != 0.35
        and [m["budget"] for m in steps[1:]] == pytest.approx([0.35, 0.35, chosen])
        and config["chosen_budget"] == chosen
    )
    assert (
        f"budget {chosen:g} nats{' per token' * (aggregate == 'mean')} ({aggregate}, chosen: quantile 0.5 after 2 updates of distillation)"
        in table
    )
    assert f"budget d | {chosen:g} nats, {aggregate}" in card and "length, tokens" in card
    assert (
        "start_satisfaction_rate" not in summary and "start_accuracy" in summary
    )  # at the start there was no budget to keep
    spent = [r["spent"] for r in read_lines(out / "eval.jsonl")]
    assert summary["satisfaction_rate"] == sum(s <= chosen for s in spent) / len(spent) and summary[
        "spent_mean"
    ] == pytest.approx(sum(spent) / len(spent))
    if aggregate == "sum":
        return
    assert (
        main(command) == 0
        and json.loads((out / "config.json").read_text())["chosen_budget"] == chosen
    )  # resumed: nothing is left to do


def test_sizes_at_full_scale():
    "The vocabularies that are cropped, the parameters, and the memory that the recipes state."
    assert {n: memory.parameters(n) for n in memory.MODELS} == {
        "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
        "Qwen/Qwen2.5-Math-7B-Instruct": 7_615_616_512,
        "meta-llama/Llama-3.2-3B": 3_212_749_824,
        "meta-llama/Llama-3.2-11B-Vision-Instruct": 9_775_192_080,
    }
    with torch.device("meta"):
        student, teacher = (
            c(config)
            for c, config in (
                memory.MODELS[n]
                for n in ("Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-7B-Instruct")
            )
        )
        logits = [
            m(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits for m in (student, teacher)
        ]
    assert [x.shape[-1] for x in logits] == [151936, 152064] and [
        x.shape[-1] for x in cmdp_nbdev.trainer.align_vocab(*logits)[:2]
    ] == [151936, 151936]
    readme = (ROOT / "recipes" / "README.md").read_text()
    for recipe, more in (
        (QWEN, []),
        (LLAMA, []),
        (LLAMA, ["--model_init_kwargs", "dtype=bfloat16"]),
    ):
        peak = f"{memory.main([str(recipe), *more])['peak']:.0f} GB"
        assert f"about {peak}" in recipe.read_text() and peak in readme, (recipe.name, more, peak)


def test_module_is_the_command(tmp_path):
    "`accelerate launch -m cmdp_nbdev.cli` would do nothing at all without the guard at the end of the module."
    done = subprocess.run(
        [sys.executable, "-m", "cmdp_nbdev.cli", "--config", str(QWEN), "--budget", "-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "budget limit must be" in done.stderr, done.stderr
