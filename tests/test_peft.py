"""Students wrapped by peft.

What is computed is that of the base, only the adapter moves, and the saved student needs neither
peft nor the base.
"""

import copy
import json
import warnings

import pytest
import torch
from conftest import flat, gradients_of_step, python, relative
from transformers import AutoModelForCausalLM

from cmdp_nbdev.rollout import completion_logits, generate

peft = pytest.importorskip("peft")


def wrapped(model, seed=0, started=True, **settings):
    "A copy of `model` with LoRA on every linear layer; not `started`: random, as when trained."
    where = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    config = peft.LoraConfig(r=4, init_lora_weights=started, **where, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(copy.deepcopy(model), config)


@pytest.fixture
def student(pair):
    return wrapped(pair[0])


def test_a_fresh_adapter_changes_nothing(pair, student):
    "Prompts are padded: a wrapper that hides the parameters of forward would lose the positions."
    base, _, tok = pair
    prompts = ["3+8*7-2=", "5+1="]

    def sampled(model):
        generator = torch.Generator().manual_seed(1)
        sizes = {"num_generations": 3, "max_completion_length": 20}
        return generate(model, tok, prompts, generator=generator, **sizes)

    plain, lora = sampled(base), sampled(student)
    assert plain.completions == lora.completions
    with torch.no_grad():
        a, b = completion_logits(base, plain), completion_logits(student, plain)
    assert torch.equal(a, b)
    shapes = []

    def note(module, args, out):
        shapes.append(out.shape[1])

    hook = student.get_output_embeddings().register_forward_hook(note)
    completion_logits(student, plain)
    hook.remove()
    width = plain.completion_ids.shape[1]
    assert shapes == [width + 1], "the output layer must not be computed on the prompt"


def test_only_the_adapter_is_trained(make_trainer, student):
    "LoRA that moves the base is full fine-tuning; LoRA that moves nothing is none."
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    trainer = make_trainer(student)
    trainer.train()
    changed = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "lora_" in n}
    moved = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in moved) == student.get_nb_trainable_parameters()[0]


def test_resumed_adapter_is_never_stopped_adapter(make_trainer, pair, tmp_path):
    "A killed LoRA run must go on from its checkpoint as a full one does."
    whole = make_trainer(wrapped(pair[0]), max_steps=4, output_dir=str(tmp_path / "whole"))
    whole.train()

    def stop(trainer, metrics):
        if metrics["step"] == 2:
            trainer.stop()

    first = make_trainer(wrapped(pair[0]), max_steps=4, save_steps=2, callbacks=[stop])
    first.train()
    second = make_trainer(wrapped(pair[0], seed=9), max_steps=4)
    second.train(resume_from_checkpoint="auto")
    assert first.global_step == 2
    assert torch.equal(flat(whole.model), flat(second.model))


LOADS_ALONE = """
import sys

import torch

sys.modules["peft"] = None
from transformers import AutoModelForCausalLM

ids, logits = torch.load("expected.pt")
student = AutoModelForCausalLM.from_pretrained("student")
torch.testing.assert_close(student(ids).logits.detach(), logits, atol=1e-4, rtol=1e-4)
"""


def test_saved_student_needs_no_peft(make_trainer, pair, tmp_path):
    "The folder must load with transformers alone and answer as the student does; the run goes on."
    trainer = make_trainer(wrapped(pair[0], started=False))
    trainer.step()
    before = flat(trainer.model)
    trainer.save_model(tmp_path / "student")
    assert torch.equal(before, flat(trainer.model)), "saving changes nothing"
    assert trainer.step()["step"] == 2, "saving is not the end of a run"
    trainer.save_model(tmp_path / "student")
    ids = trainer.processing_class("3+8=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = trainer.model(ids).logits
        base = pair[0](ids).logits
    assert relative(base, logits) > 0.01, "the adapter does something"
    torch.save((ids, logits), tmp_path / "expected.pt")
    python("-c", LOADS_ALONE, cwd=tmp_path)
    card = (tmp_path / "student" / "README.md").read_text()
    assert "A student distilled under a budget" in card
    assert not (tmp_path / "student" / "adapter_config.json").exists()


def test_gradient_checkpointing_changes_nothing(make_trainer, pair, tmp_path):
    "With a frozen input layer, recomputing activations can silently give no gradient at all."

    def step(on):
        adapted = wrapped(pair[0], started=False, lora_dropout=0.1)
        where = {"output_dir": str(tmp_path / str(on)), "gradient_checkpointing": on}
        return gradients_of_step(make_trainer(adapted, **where))

    (a, ga), (b, gb) = step(False), step(True)
    assert relative(gb, ga) < 1e-5
    assert ga.norm() > 0
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_the_settings_of_an_adapter_are_written_down(make_trainer, pair, tmp_path):
    "In config.json all that peft was told, in the card what everybody asks for, with the base."
    lora = wrapped(pair[0].bfloat16(), lora_alpha=8, lora_dropout=0.1, use_rslora=True)
    trainer = make_trainer(lora, save_steps=1)
    trainer.train()
    config = json.loads((trainer.output_dir / "config.json").read_text())
    adapter, student = config["adapters"]["default"], config["models"]["student"]
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "use_rslora": True}
    assert told.items() <= adapter.items() and len(adapter["target_modules"]) == 14
    assert (student["given"], student["dtype"]) == ("object", "bfloat16")
    assert student["class"] == "LlamaForCausalLM" and student["trained_dtypes"] == ["float32"]
    assert student["trained_parameters"] == lora.get_nb_trainable_parameters()[0]
    trainer.save_model(tmp_path / "student")
    card = " ".join((tmp_path / "student" / "README.md").read_text().split())
    assert "LORA r=4, lora_alpha=8, lora_dropout=0.1 on down_proj, gate_proj," in card
    assert "v_proj, the base in bfloat16 |" in card
    other = wrapped(pair[0], lora_alpha=16, lora_dropout=0.1, use_rslora=True)
    with pytest.raises(ValueError, match="adapters was .*'lora_alpha': 8.*'lora_alpha': 16"):
        make_trainer(other, resume_from_checkpoint="auto")


def test_without_adapters_nothing_is_said_of_them(make_trainer, tmp_path):
    "Neither in the card nor in config.json."
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert "adapters" not in json.loads((trainer.output_dir / "config.json").read_text())
    assert "adapters" not in trainer.card()


def test_student_that_is_told_its_budget(make_trainer, student, tmp_path):
    "The wrapper that adds the budget must pass through the other; the saved base loads alone."
    trainer = make_trainer(student, method="saute-augmented")
    trainer.train()
    trainer.save_model(tmp_path / "student")
    assert (tmp_path / "student" / "budget_embedding.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert type(base).__name__ == "LlamaForCausalLM"


def test_what_cannot_work_is_refused(make_trainer, pair, student, tmp_path):
    "A frozen adapter, one below, virtual tokens, a shared base: each trains the wrong thing."
    with pytest.raises(ValueError, match="shares weights"):
        make_trainer(student, student.get_base_model())
    student.save_pretrained(tmp_path / "adapter")
    load = peft.PeftModel.from_pretrained
    frozen = load(copy.deepcopy(pair[0]), tmp_path / "adapter")
    with pytest.raises(ValueError, match="is_trainable=True"):
        make_trainer(frozen)
    below = copy.deepcopy(pair[0])
    below.load_adapter(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="that transformers put into it"):
        make_trainer(below)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
        virtual = peft.get_peft_model(copy.deepcopy(pair[0]), config)
    with pytest.raises(ValueError, match="virtual prompt tokens"):
        make_trainer(virtual)
    trained = load(copy.deepcopy(pair[0]), tmp_path / "adapter", is_trainable=True)
    assert make_trainer(trained).step()["step"] == 1


def test_peft_teacher(make_trainer, pair):
    "A teacher adapted with LoRA is common: its positions must not be lost, nor must it be trained."
    teacher = wrapped(pair[1], started=False)
    merged = copy.deepcopy(teacher).merge_and_unload()
    a = make_trainer(teacher=teacher).step()
    b = make_trainer(teacher=merged, output_dir=None).step()
    assert a["kl_mean"] == pytest.approx(b["kl_mean"], rel=1e-4)
    assert not any(p.requires_grad for p in teacher.parameters())
