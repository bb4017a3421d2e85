"""What is saved is what was judged: its logits, its sampling, its tokenizer; or it is refused."""

import copy
import json
import logging
import warnings

import pytest
import torch
from conftest import flat
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    PreTrainedTokenizerFast,
    pipeline,
)

from cmdp_nbdev import rollout
from cmdp_nbdev.model import DATA, char_tokenizer, save_plain, tiny_model
from cmdp_nbdev.rollout import Sampling, generate
from cmdp_nbdev.run import judged_generation, policy_gap, rounding

IDS = torch.tensor([[6, 13, 11, 15, 10, 14, 4, 3], [3, 4, 5, 6, 7, 8, 9, 10]])


def logps(model) -> torch.Tensor:
    "Log-probabilities after every one of a few ids, (2, 8, V)."
    training = model.training
    model.eval()
    with torch.no_grad():
        answer = model(IDS).logits.float().log_softmax(-1)
    model.train(training)
    return answer


def gap(a, b) -> float:
    "Largest difference of log-probabilities between two models, nats."
    return float((logps(a) - logps(b)).abs().max())


def adapted(model, seed=0, **settings):
    "`model` with LoRA (or another method, `config`) whose weights are random, as when trained."
    peft = pytest.importorskip("peft")
    make = settings.pop("config", "LoraConfig")
    if make == "LoraConfig":
        settings = {"r": 4, **settings}
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(model, getattr(peft, make)(task_type="CAUSAL_LM", **settings))
        for p in model.parameters():
            if p.requires_grad:
                p.data += 0.05 * torch.randn_like(p)
    return model


def gpt2():
    "Tied under other names than Llama's."
    config = GPT2Config(vocab_size=19, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    config.initializer_range = 0.2
    return AutoModelForCausalLM.from_config(config)


def neox(tied=True):
    "Tied under yet other names."
    config = GPTNeoXConfig(
        vocab_size=19,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config)


HEAD, BODY, BOTH = ["lm_head"], ["q_proj"], ["lm_head", "embed_tokens"]
TIED = {
    "head": dict(target_modules=HEAD),
    "embedding": dict(target_modules=["embed_tokens"]),
    "both": dict(target_modules=BOTH),
    "saved head": dict(target_modules=BODY, modules_to_save=HEAD),
    "saved embedding": dict(target_modules=BODY, modules_to_save=["embed_tokens"]),
    "tied by peft": dict(target_modules=HEAD, ensure_weight_tying=True),
    "saved and tied": dict(target_modules=BODY, modules_to_save=BOTH, ensure_weight_tying=True),
    "tokens": dict(target_modules=BODY, trainable_token_indices=[3, 4]),
    "tokens of the head": dict(target_modules=BODY, trainable_token_indices={"lm_head": [3, 4]}),
    "dora": dict(target_modules=HEAD, use_dora=True),
    "rslora": dict(target_modules=HEAD, use_rslora=True),
    "parameter": dict(target_modules=BODY, target_parameters=["lm_head.weight"]),
    "ia3": dict(target_modules=HEAD, feedforward_modules=[], config="IA3Config"),
    "loha": dict(target_modules=HEAD, r=4, config="LoHaConfig"),
    "oft": dict(target_modules=HEAD, r=0, oft_block_size=4, config="OFTConfig"),
    "vera": dict(target_modules=HEAD, config="VeraConfig"),
}


@pytest.mark.parametrize("name", TIED)
def test_adapters_on_tied_layers(pair, tmp_path, name):
    "One matrix is read and written with; an adapter on one side must not move the other."
    student = adapted(pair[0], **TIED[name])
    before, live = flat(student), logps(student)
    save_plain(student, tmp_path)
    assert torch.equal(before, flat(student)) and torch.equal(live, logps(student))
    assert gap(AutoModelForCausalLM.from_pretrained(tmp_path), student) < 1e-4


@pytest.mark.parametrize("make, names", [(gpt2, ["wte", "lm_head"]), (neox, ["embed_in"])])
def test_tied_under_other_names(make, names, tmp_path):
    "The same, where the layers are not called as Llama's are."
    for name in names:
        student = adapted(make(), target_modules=[name])
        save_plain(student, tmp_path / name)
        assert gap(AutoModelForCausalLM.from_pretrained(tmp_path / name), student) < 1e-4


def test_what_stays_equal_stays_tied(pair, tmp_path):
    "An adapter elsewhere is no reason to write the largest matrix twice."
    save_plain(adapted(pair[0], target_modules=BODY), tmp_path / "tied")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    assert plain.config.tie_word_embeddings
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    save_plain(adapted(neox(tied=False), target_modules=["query_key_value"]), tmp_path / "not")
    apart = AutoModelForCausalLM.from_pretrained(tmp_path / "not")
    assert not apart.config.tie_word_embeddings


def test_several_adapters(pair, tmp_path):
    "Those that are active are the student, the others are not."
    student = adapted(pair[0], target_modules=HEAD)
    with warnings.catch_warnings(action="ignore"):
        student.add_adapter("other", student.peft_config["default"])
    for p in student.parameters():
        p.data += 0.02
    for active in ("default", "other", ["default", "other"]):
        student.base_model.set_adapter(active)
        save_plain(student, tmp_path)
        assert gap(AutoModelForCausalLM.from_pretrained(tmp_path), student) < 1e-4


def test_trained_on_the_head_and_reloaded(make_trainer, pair, tmp_path):
    "The whole way: trained, saved, loaded, resumed; the file is the student that was evaluated."

    def make(seed):
        return adapted(copy.deepcopy(pair[0]), seed, target_modules=["lm_head", "q_proj"])

    trainer = make_trainer(make(0), learning_rate=0.03, save_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert gap(saved, trainer.student) < 1e-4
    assert not saved.config.tie_word_embeddings
    again = make_trainer(make(9), learning_rate=0.03, save_steps=1)
    again.train(resume_from_checkpoint=trainer.output_dir / "checkpoint-1")
    assert torch.equal(flat(again.model), flat(trainer.model))


@pytest.mark.parametrize("settings", ["tied by peft", "saved and tied", "tokens"])
def test_checkpoints_of_shared_weights(make_trainer, pair, settings):
    "What peft shares between two layers is the same after a checkpoint."
    runs = []
    for seed in (0, 9):
        student = adapted(copy.deepcopy(pair[0]), seed, **TIED[settings])
        runs.append(make_trainer(student, learning_rate=0.01, save_steps=1))
    runs[0].train()
    runs[1].train(resume_from_checkpoint=runs[0].output_dir / "checkpoint-1")
    assert torch.equal(flat(runs[0].model), flat(runs[1].model))


def test_no_notice_about_tied_weights(make_trainer, caplog):
    "accelerate's notice breaks the progress bar, and asks for something that nobody has to do."
    with caplog.at_level(logging.WARNING):
        make_trainer(save_steps=1).train()
    assert "Removed shared tensor" not in caplog.text


class Shifted(type(tiny_model(16, AutoTokenizer.from_pretrained(DATA / "student")))):
    "A class of one's own, with a config that names another."

    def forward(self, *args, **kwargs):
        "Prefers id 5."
        out = super().forward(*args, **kwargs)
        out.logits[..., 5] += 1.0
        return out


def test_a_folder_that_is_not_the_student(make_trainer, pair, tmp_path):
    "It is named so, the error says by how much, and what was there before stays."
    trainer = make_trainer()
    trainer.save_model(tmp_path / "student")
    before = {f.name: f.read_bytes() for f in (tmp_path / "student").iterdir()}
    shifted = Shifted(pair[0].config)
    shifted.load_state_dict(pair[0].state_dict())
    other = make_trainer(shifted, output_dir=str(tmp_path / "other"))
    with pytest.raises(RuntimeError, match=r"student.not-the-student' is not the student: .* nats"):
        other.save_model(tmp_path / "student")
    assert {f.name: f.read_bytes() for f in (tmp_path / "student").iterdir()} == before
    assert (tmp_path / "student.not-the-student" / "model.safetensors").exists()
    trainer.save_model(tmp_path / "student")
    assert not (tmp_path / "student.not-the-student").exists()


def test_a_write_that_fails_loses_nothing(make_trainer, pair, tmp_path, monkeypatch):
    "A full disk must not take the student of an hour ago with it."
    trainer = make_trainer()
    trainer.save_model(tmp_path / "student")
    trainer.step()
    monkeypatch.setattr(type(trainer.processing_class), "save_pretrained", None)
    with pytest.raises(TypeError):
        trainer.save_model(tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert gap(saved, pair[0]) == 0


def test_saving_into_a_folder_with_other_things(make_trainer, tmp_path):
    "A run's own folder, say: its metrics stay, the weights of an earlier student go."
    trainer = make_trainer(save_steps=2)
    trainer.train()
    stale = trainer.output_dir / "model-00001-of-00002.safetensors"
    stale.write_text("")
    trainer.save_model(trainer.output_dir)
    assert (trainer.output_dir / "metrics.jsonl").exists() and not stale.exists()
    assert (trainer.output_dir / "checkpoint-2").is_dir()
    assert gap(AutoModelForCausalLM.from_pretrained(trainer.output_dir), trainer.student) == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        trainer.save_model(tmp_path / "file")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds an adapter"):
        trainer.save_model(tmp_path / "lora")


def test_saving_leaves_the_run_alone(make_trainer, tmp_path):
    "No random number is drawn, no mode changed, nothing of the base's own settings lost."
    trainer = make_trainer()
    trainer.student.generation_config.top_k = 7
    state, modes = torch.get_rng_state(), [m.training for m in trainer.student.modules()]
    trainer.save_model(tmp_path / "student")
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in trainer.student.modules()]
    assert trainer.student.generation_config.top_k == 7
    whole = make_trainer(output_dir=str(tmp_path / "whole"))
    whole.train(), trainer.train()
    assert torch.equal(flat(whole.model), flat(trainer.model))


HABITS = dict(do_sample=True, temperature=0.7, top_k=2, repetition_penalty=1.3, min_p=0.2)
BAD_HABITS = dict(do_sample=False, temperature=0.7, top_p=0.9)  # which transformers won't save


def next_ids(model, tokenizer, prompt, **settings) -> torch.Tensor:
    "The distribution of the first new id that `generate()` samples from, (V,)."
    inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    more = {"output_scores": True, "return_dict_in_generate": True, **settings}
    return model.generate(**inputs, **more).scores[0][0].softmax(-1)


@pytest.mark.parametrize("habits", [{}, HABITS, BAD_HABITS], ids=["none", "own", "bad"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_generate_samples_what_was_judged(make_trainer, pair, tmp_path, habits, temperature):
    "No top-k of 50 that transformers adds, no temperature or penalty of the base."
    student = pair[0]
    student.generation_config = GenerationConfig(eos_token_id=[1, 18], pad_token_id=0, **habits)
    trainer = make_trainer(student, eval_temperature=temperature)
    trainer.step()
    trainer.save_model(tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    prompt = "3+8*7-2="
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        judged = (trainer.student(**inputs).logits[0, -1] / temperature).softmax(-1)
    torch.testing.assert_close(next_ids(saved, tokenizer, prompt), judged, atol=1e-5, rtol=0)
    assert saved.generation_config.eos_token_id == [1, 18]
    assert saved.generation_config.max_new_tokens == 20
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"temperature {temperature:g}, no top-k, at most 20 tokens" in " ".join(card.split())


def test_a_pipeline_samples_what_was_judged(make_trainer, tmp_path):
    "Pipelines add a temperature of 0.7 and 256 tokens where a folder says nothing."
    trainer = make_trainer()
    trainer.save_model(tmp_path / "student")
    pipe = pipeline("text-generation", str(tmp_path / "student"), device="cpu")
    asked, seen = pipe.model.generate, []

    def generate_and_note(**inputs):
        out = asked(**inputs, output_scores=True, return_dict_in_generate=True)
        seen.append(out.scores)
        return out.sequences

    pipe.model.generate = generate_and_note
    text = pipe("3+8*7-2=")[0]["generated_text"]
    assert text.startswith("3+8*7-2=") and len(seen[0]) <= 20
    inputs = trainer.processing_class("3+8*7-2=", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        judged = trainer.student(**inputs).logits[0, -1].softmax(-1)
    torch.testing.assert_close(seen[0][0][0].softmax(-1), judged, atol=1e-5, rtol=0)


def with_holes() -> PreTrainedTokenizerFast:
    "Ids below the last one that no token has, and a chat template."
    inner = json.loads(char_tokenizer().backend_tokenizer.to_str())
    inner["model"]["vocab"] |= {"=": 25, "+": 24}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(inner)), eos_token="$", pad_token="_"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}={% endif %}"
    )
    return tokenizer


def test_what_is_served_is_what_was_judged(make_trainer, tmp_path, monkeypatch):
    """A pipeline without an argument samples, token by token, what evaluations sample.

    With a chat template, another temperature than 1, and ids that are likely and never sampled.
    """
    tokenizer = with_holes()
    holes = sorted(set(range(26)) - set(tokenizer.get_vocab().values()))
    student, teacher = (tiny_model(32, tokenizer, seed=seed) for seed in (1, 2))
    for model in (student, teacher):
        model.resize_token_embeddings(30, mean_resizing=False)
    head = student.get_output_embeddings().weight.data
    head[[*holes, 26, 27, 28, 29]] = 2 * head[4]
    chat = [{"role": "user", "content": "3+8*7-2"}]
    trainer = make_trainer(
        student,
        teacher,
        lambda completions, **columns: [float(len(c[-1]["content"])) for c in completions],
        Dataset.from_dict({"prompt": [chat] * 8}),
        Dataset.from_dict({"prompt": [chat]}),
        tokenizer,
        eval_temperature=0.6,
        max_completion_length=7,
    )
    trainer.save_model(tmp_path / "student")
    pipe = pipeline("text-generation", str(tmp_path / "student"))
    served, asked = [], pipe.model.generate

    def generate_and_note(**inputs):
        out = asked(**inputs, output_scores=True, return_dict_in_generate=True)
        served.extend(score[0].softmax(-1).cpu() for score in out.scores)
        written.extend(out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
        return out.sequences

    judged, written = [], []
    pipe.model.generate = generate_and_note
    pipe(chat)

    def note_and_write(logits, temperature, top_p, generator, noise):
        judged.append((logits[0].float() / temperature).softmax(-1))
        assert top_p == 1
        return torch.tensor([written[len(judged) - 1]]), torch.zeros(1)

    monkeypatch.setattr(rollout, "sample_token", note_and_write)
    trainer.evaluate()
    assert len(judged) == len(served) == len(written) <= 7
    for ours, theirs in zip(judged, served):
        torch.testing.assert_close(theirs[: len(ours)], ours, atol=1e-5, rtol=0)
        assert float(theirs[len(ours) :].sum()) == float(theirs[holes].sum()) == 0
    with torch.no_grad():
        whole = student(tokenizer("3+8*7-2=", return_tensors="pt")["input_ids"]).logits[0, -1]
    assert float(whole.softmax(-1)[[*holes, 26, 27, 28, 29]].sum()) > 0.1
    card = " ".join((tmp_path / "student" / "README.md").read_text().split())
    assert "temperature 0.6, no top-k, at most 7 tokens" in card


def test_judged_greedily(make_trainer, tmp_path):
    "Temperature 0 in the evaluation is greedy in the folder."
    trainer = make_trainer(eval_temperature=0.0)
    trainer.save_model(tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer = trainer.processing_class
    inputs = tokenizer("3+8*7-2=", return_tensors="pt", return_token_type_ids=False)
    written = saved.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    sizes = {"max_completion_length": 20, "temperature": 0.0}
    judged = generate(trainer.student, tokenizer, ["3+8*7-2="], **sizes).completion_ids[0]
    assert written.tolist() == judged.tolist()


def test_ids_without_a_token_stay_unsaid(make_trainer, pair, tmp_path):
    "Rows beyond the ids that training samples are the likeliest here, and never come."
    student = pair[0]
    student.resize_token_embeddings(24, mean_resizing=False)
    student.get_output_embeddings().weight.data[19:] = student.get_output_embeddings().weight[4]
    trainer = make_trainer(student)
    trainer.save_model(tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    chances = next_ids(saved, trainer.processing_class, "3+8*7-2=")
    inputs = trainer.processing_class("3+8*7-2=", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        judged = student(**inputs).logits[0, -1, : trainer.vocab_size].softmax(-1)
    torch.testing.assert_close(chances[:19], judged, atol=1e-5, rtol=0)
    assert float(chances[19:].sum()) == 0


def test_holes_in_the_vocabulary_stay_unsaid(pair):
    "Ids below the last one may be without a token, too."
    tokenizer = with_holes()
    holes = sorted(set(range(26)) - set(tokenizer.get_vocab().values()))
    pair[0].resize_token_embeddings(30, mean_resizing=False)
    config = judged_generation(pair[0], tokenizer, Sampling(), 28)
    assert holes and config.suppress_tokens == [*holes, 28, 29]


def test_the_tokenizer_is_saved_as_it_came(make_trainer, pair, tmp_path):
    "Tokenizers keep the padding of their last batch; a chat template is part of the student."
    tokenizer = AutoTokenizer.from_pretrained(DATA / "student")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    trainer = make_trainer(processing_class=tokenizer)
    trainer.step()
    trainer.save_model(tmp_path / "student")
    saved = json.loads((tmp_path / "student" / "tokenizer.json").read_text())
    assert saved["padding"] is None and saved["truncation"] is None
    again = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert again.chat_template == tokenizer.chat_template
    assert trainer.step()["step"] == 2
    cut = AutoTokenizer.from_pretrained(DATA / "student")
    cut.backend_tokenizer.enable_truncation(40)
    trainer = make_trainer(processing_class=cut, output_dir=str(tmp_path / "cut"))
    trainer.save_model(tmp_path / "student")
    saved = json.loads((tmp_path / "student" / "tokenizer.json").read_text())
    assert saved["truncation"]["max_length"] == 40
    assert not (tmp_path / "student" / "chat_template.jinja").exists()


@pytest.mark.parametrize("target", [None, ["lm_head", "q_proj"]])
def test_sixteen_bits(make_trainer, pair, tmp_path, target):
    "A student in bfloat16 is saved in bfloat16; what rounding explains is no error."
    student = pair[0].to(torch.bfloat16)
    if target:
        student = adapted(student, target_modules=target)
    with warnings.catch_warnings(action="ignore"):
        trainer = make_trainer(student)
    trainer.step()
    trainer.save_model(tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert saved.dtype == torch.bfloat16
    live, loaded = (logps(model).flatten(0, 1) for model in (trainer.student, saved))
    assert policy_gap(live, loaded) < 0.25


def test_mixed_precision_is_compared_in_full(make_trainer, tmp_path):
    "Under bf16 the weights are float32, and so is the proof."
    trainer = make_trainer(adapted(make_trainer().student, target_modules=HEAD), bf16=True)
    trainer.step()
    trainer.save_model(tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert saved.dtype == torch.float32
    assert gap(saved, trainer.student.get_base_model()) < 1e-4


def test_merging_is_more_arithmetic(pair):
    "SmolLM2 with merged adapters was 1.1e-4 nats from itself, by rounding alone."
    assert rounding(pair[0]) == 1e-4 and rounding(pair[0], merged=True) == 1e-3


def test_compiled(make_trainer, pair, tmp_path):
    "torch.compile is no part of what is saved."
    student = adapted(pair[0], target_modules=HEAD)
    with torch.compiler.set_stance("force_eager"):
        trainer = make_trainer(torch.compile(student))
        trainer.save_model(tmp_path / "student")
    assert gap(AutoModelForCausalLM.from_pretrained(tmp_path / "student"), student) < 1e-4


def refused(make_trainer, student, words):
    "What cannot be saved is refused before anything is computed."
    with pytest.raises(ValueError, match=words):
        make_trainer(student)


def test_what_could_not_be_saved(make_trainer, pair):
    "Refused by name at construction, not after hours."
    fresh = lambda: copy.deepcopy(pair[0])  # noqa: E731
    bias = adapted(fresh(), target_modules=BODY, lora_bias=True)
    refused(make_trainer, bias, "cannot be merged .*lora_bias=True")
    invoked = adapted(fresh(), target_modules=BODY, alora_invocation_tokens=[6, 13])
    refused(make_trainer, invoked, "cannot be merged .*aLoRA")
    inside = adapted(fresh(), target_modules=BODY).get_base_model()
    refused(make_trainer, inside, "carries adapters .* wrap the base with peft")
    there = adapted(fresh(), target_modules=BODY)
    there.merge_adapter()
    refused(make_trainer, there, "has its adapters merged")
    quantised = fresh()
    quantised.is_quantized = True
    refused(make_trainer, quantised, "model is quantised")

    class Wrapper(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    refused(make_trainer, Wrapper(fresh()), "model is a Wrapper, which could not be saved")
