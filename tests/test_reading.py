"How models are read: the policy that is scored is the policy that was sampled, whatever the model."

import copy

import pytest
import torch
from conftest import embedded
from datasets import Dataset
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutput

from cmdp_nbdev.cost import Cost, token_logps
from cmdp_nbdev.evaluate import evaluate, evaluate_records
from cmdp_nbdev.mdp import select, trim
from cmdp_nbdev.model import char_tokenizer, default_pair, ids_of, load_tokenizer, tiny_model
from cmdp_nbdev.preflight import check_probe, checkpoint_gradients, probe_distances, stay_in_eval
from cmdp_nbdev.rollout import (
    Reading,
    accepted,
    completion_logits,
    encode_prompts,
    generate,
    reading,
)
from cmdp_nbdev.trainer import CMDPTrainer

PROMPTS = ["1+2=", "7*3-4+5*6=", "8-4*1="]
TOKENS = load_tokenizer(char_tokenizer())
V = len(TOKENS)


def nothing(completions, **columns):
    "A reward of 0."
    return [0.0] * len(completions)


class Wrapper(torch.nn.Module):
    "Passes everything on, as wrappers do."

    def __init__(self, model):
        super().__init__()
        self.inside = model

    def forward(self, *args, **kwargs):
        return self.inside(*args, **kwargs)


class Deaf(Wrapper):
    "Passes on nothing but the ids, in an output that has only logits."

    def forward(self, input_ids):
        return CausalLMOutput(logits=self.inside(input_ids).logits)


class MaskOnly(Wrapper):
    "Knows no positions."

    def forward(self, input_ids, attention_mask=None):
        return CausalLMOutput(logits=self.inside(input_ids, attention_mask=attention_mask).logits)


def llama(seed=0, width=32):
    "A model with logits that are not flat."
    model = tiny_model(width, TOKENS, seed=seed)
    return model.eval()


def loud(model, scale=4.0):
    "A random model whose context matters."
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, scale / p.shape[-1] ** 0.5)
    return model.eval()


def gpt2():
    size = dict(n_embd=16, n_layer=2, n_head=2, n_positions=64)
    return loud(GPT2LMHeadModel(GPT2Config(vocab_size=V, **size)))


def mamba():
    size = dict(hidden_size=16, state_size=4, num_hidden_layers=2)
    return MambaForCausalLM(MambaConfig(vocab_size=V, **size, initializer_range=1.0)).eval()


def rwkv():
    size = dict(hidden_size=16, attention_hidden_size=16, num_hidden_layers=2, context_length=64)
    return loud(RwkvForCausalLM(RwkvConfig(vocab_size=V, **size)), 2.0)


def qwen3_5():
    layers = ["linear_attention", "full_attention"]
    heads = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    linear = dict(linear_key_head_dim=8, linear_value_head_dim=8)
    linear |= dict(linear_num_key_heads=2, linear_num_value_heads=2)
    size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, layer_types=layers)
    config = Qwen3_5TextConfig(vocab_size=V, **size, **heads, **linear)
    return loud(Qwen3_5ForCausalLM(config), 2.0)


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "mamba": mamba,
    "rwkv": rwkv,
    "qwen3.5": qwen3_5,
    "wrapper": lambda: Wrapper(llama()),
    "wrapper of mamba": lambda: Wrapper(mamba()),
    "deaf": lambda: Deaf(gpt2()),
    "mask only": lambda: MaskOnly(gpt2()),
    "compiled": lambda: torch.compile(llama(), backend="eager"),
}


def alone(model, rollout, row):
    "Log-probabilities of a completion by the bare model on the bare text."
    one = trim(select(rollout, [row]))
    bare = model
    while isinstance(bare, Wrapper):
        bare = bare.inside
    T = one.completion_ids.shape[1]
    logits = bare(one.input_ids).logits[:, -T - 1 : -1, :V]
    return token_logps(logits, one.completion_ids)[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("generations", [1, 3])
def test_sampled_is_scored_is_unpadded(name, generations):
    model = MODELS[name]()
    settings = dict(num_generations=generations, max_completion_length=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        r = generate(model, TOKENS, PROMPTS, generator=generator, **settings)
        scored = token_logps(completion_logits(model, r), r.completion_ids)
        for row in range(len(r)):
            truth = alone(model, r, row)
            for found in (scored, r.sampled_logps):
                torch.testing.assert_close(found[row, : len(truth)], truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["wrapper", "deaf", "mask only", "rwkv", "mamba"])
def test_evaluation_of_prompts_of_unequal_length(name):
    student, teacher = llama(), MODELS[name]()
    data = Dataset.from_dict({"prompt": PROMPTS})
    settings = dict(max_completion_length=6)
    records = evaluate_records(student, teacher, data, TOKENS, nothing, **settings)
    for record in records:
        ids = encode_prompts([record["prompt"]], TOKENS)[0]
        text = torch.cat([ids, torch.tensor([record["completion_ids"]])], 1)
        bare = getattr(teacher, "inside", teacher)
        with torch.no_grad():
            s, t = (m(text).logits[0, ids.shape[1] - 1 : -1].double() for m in (student, bare))
        s, t = s[:, :V].log_softmax(-1), t[:, :V].log_softmax(-1)
        kl = (s.exp() * (s - t)).sum()
        assert record["kl"] == pytest.approx(kl.item(), abs=1e-4)


def test_each_model_is_read_in_the_fastest_way_that_is_right():
    ids, mask = encode_prompts(PROMPTS, TOKENS)
    ways = {name: reading(make(), ids, mask) for name, make in MODELS.items()}
    for name in ("llama", "compiled"):
        assert ways[name] == Reading(cache="packed"), name
    for name in ("gpt2", "mamba", "qwen3.5", "wrapper", "wrapper of mamba"):
        assert ways[name] == Reading(), name
    for name in ("rwkv", "deaf", "mask only"):
        assert not ways[name].padded, name


def test_a_wrapper_is_offered_what_its_model_knows():
    offered = dict(attention_mask=1, position_ids=2, told=3)
    known = {"attention_mask": 1, "position_ids": 2}
    wrapped = Wrapper(llama())
    assert accepted(wrapped, **offered) == accepted(Wrapper(wrapped), **offered) == known
    assert accepted(torch.compile(llama(), backend="eager"), **offered) == known
    assert accepted(MaskOnly(llama()), **offered) == {"attention_mask": 1}
    assert accepted(Deaf(llama()), **offered) == {}


def test_a_model_that_reads_ahead_is_refused():
    class Ahead(Wrapper):
        def forward(self, input_ids):
            logits = self.inside(input_ids).logits
            return CausalLMOutput(logits=logits + logits.mean(1, keepdim=True))

    with pytest.raises(ValueError, match="no causal language model"):
        generate(Ahead(gpt2()), TOKENS, PROMPTS)


def test_a_model_that_rolls_dice_is_refused():
    class Dice(Wrapper):
        def forward(self, input_ids):
            logits = self.inside(input_ids).logits
            return CausalLMOutput(logits=logits + torch.randn_like(logits))

    with pytest.raises(ValueError, match="no causal language model"):
        generate(Dice(gpt2()), TOKENS, PROMPTS)


# ---- dropout ------------------------------------------------------------------------------


def bloom(rate=0.5):
    size = dict(hidden_size=16, n_layer=2, n_head=2)
    rates = dict(hidden_dropout=rate, attention_dropout=rate)
    return loud(BloomForCausalLM(BloomConfig(vocab_size=V, **size, **rates)))


def make(tmp_path, model, teacher, **settings):
    data = Dataset.from_dict({"prompt": PROMPTS * 4})
    sizes = dict(num_generations=2, per_device_train_batch_size=4, max_completion_length=6)
    steps = dict(max_steps=2, output_dir=str(tmp_path / "run"))
    args = embedded(**sizes, **steps, **settings)
    return CMDPTrainer(model, teacher, nothing, args, data, processing_class=TOKENS)


def test_checkpointing_leaves_no_dropout_of_any_kind(tmp_path):
    teacher = bloom()
    trainer = make(tmp_path, bloom(), teacher, gradient_checkpointing=True)
    for _ in range(2):
        rollout = trainer.sample()
        score = trainer.score(rollout)
        inside = rollout.completion_mask.bool()
        apart = (score.logp - rollout.sampled_logps)[inside].abs().max()
        assert apart < 1e-4
        trainer.step()


def test_checkpointing_gives_the_same_gradient():
    plain, recomputed = bloom(0.0), bloom(0.0)
    checkpoint_gradients(recomputed)
    ids = torch.arange(3, 13)[None]
    for model in (plain, recomputed):
        model(ids, use_cache=False).logits.log_softmax(-1)[..., 5].sum().backward()
    for p, q in zip(plain.parameters(), recomputed.parameters()):
        assert torch.equal(p.grad, q.grad)


def test_checkpointing_keeps_fewer_activations():
    kept = {}
    for on in (False, True):
        model, saved = bloom(0.0), []
        if on:
            checkpoint_gradients(model)

        def pack(x, saved=saved):
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(torch.arange(3, 13)[None], use_cache=False).logits.sum()
        kept[on] = sum(saved)
    assert kept[True] < 0.5 * kept[False]


def test_evaluation_mode_stays():
    model, ids = bloom(), torch.arange(3, 13)[None]
    before = model(ids).logits
    stay_in_eval(model)
    for trained in (Wrapper(model).train().inside, model.train(), copy.deepcopy(model).train()):
        assert trained.training  # what a trainer reads
        assert not any(part.training for part in trained.transformer.modules())
        assert torch.equal(trained(ids).logits, before)
    assert not model.eval().training


def test_an_evaluation_has_no_dropout():
    student = bloom().train()
    data = Dataset.from_dict({"prompt": PROMPTS})
    copied = copy.deepcopy(student).eval()
    result = evaluate(student, copied, data, TOKENS, nothing, max_completion_length=6)
    assert result["kl_mean"] == pytest.approx(0, abs=1e-5)
    assert student.training


# ---- ids without a token -----------------------------------------------------------------


def padded_pair(rows):
    "Two models with the same number of output rows beyond the tokenizer."
    pair = []
    for seed in range(2):
        model = llama(seed)
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            model.get_output_embeddings().weight[V:] = model.get_output_embeddings().weight[3]
        pair.append(model)
    return pair


def test_no_id_without_a_token_is_sampled_or_scored():
    student, teacher = padded_pair(40)
    r = generate(student, TOKENS, PROMPTS * 20, max_completion_length=8)
    assert r.completion_ids.max() < V == ids_of(TOKENS)[0]
    logits = completion_logits(student, r)
    assert logits.shape[-1] == V
    scored = token_logps(logits, r.completion_ids)
    inside = r.completion_mask.bool()
    assert (scored - r.sampled_logps)[inside].abs().max() < 1e-4


def test_the_trainer_and_its_probe_know_no_id_without_a_token(tmp_path):
    trainer = make(tmp_path, *padded_pair(40))
    assert trainer.vocab_size == V
    rollout = trainer.sample()
    apart = (trainer.score(rollout).logp - rollout.sampled_logps).abs()
    assert apart[rollout.completion_mask.bool()].max() < 1e-4


def test_holes_in_the_vocabulary_are_never_sampled():
    tokens = load_tokenizer(char_tokenizer("0123456789"))
    vocabulary = tokens.get_vocab()
    backend = tokens.backend_tokenizer
    from tokenizers import models

    moved = {t: i + 5 if i > 6 else i for t, i in vocabulary.items()}
    backend.model = models.WordLevel(moved, unk_token="?")
    number, holes = ids_of(tokens)
    assert number == V - 6 + 5 and holes == (7, 8, 9, 10, 11)
    model = llama()
    r = generate(model, tokens, ["123", "45"] * 50, max_completion_length=8)
    assert not torch.isin(r.completion_ids, torch.tensor(holes)).any()
    scored = token_logps(completion_logits(model, r), r.completion_ids)
    inside = r.completion_mask.bool()
    assert (scored - r.sampled_logps)[inside].abs().max() < 1e-4
    data, cost = Dataset.from_dict({"prompt": ["123"]}), Cost("jsd")
    records = evaluate_records(model, llama(1), data, tokens, nothing, cost=cost)
    assert all(0 <= r["spent"] < float("inf") for r in records)


# ---- the probe ---------------------------------------------------------------------------


def test_the_probe_of_the_embedded_pair_finds_nothing():
    student, teacher, tokenizer = default_pair()
    r = generate(student, tokenizer, PROMPTS, num_generations=2, max_completion_length=8)
    with torch.no_grad():
        assert max(probe_distances(student, r).values()) < 1e-4


class Later(LlamaForCausalLM):
    "Right while it is tried, wrong in a batch of four."

    def forward(self, input_ids, **kwargs):
        out = super().forward(input_ids, **kwargs)
        shift = torch.zeros(out.logits.shape[-1])
        shift[3:9] = 0.5 if len(input_ids) == 4 else 0.0
        out.logits = out.logits + shift
        return out


@pytest.mark.parametrize("what", ["model", "teacher"])
def test_the_probe_refuses_what_differs(what, tmp_path):
    pair = {"model": llama(), "teacher": llama(1)}
    pair[what].__class__ = Later
    said = f"{what}: a completion is scored differently in a batch and alone, .* nats a token"
    with pytest.raises(ValueError, match=said):
        make(tmp_path, *pair.values())


def test_the_probe_takes_the_shortest_and_the_longest_prompt(tmp_path):
    seen = []

    def watch(prompts, completions, **columns):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    data = Dataset.from_dict({"prompt": PROMPTS})
    args = embedded(num_generations=2, per_device_train_batch_size=2, max_completion_length=4)
    CMDPTrainer(llama(), llama(1), watch, args, data, processing_class=TOKENS)
    assert seen == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert check_probe.__doc__
