"How completions are written: fast, and no different from slowly."

from functools import partial

import pytest
import torch
from conftest import embedded
from peft import LoraConfig, get_peft_model
from test_reading import MODELS, PROMPTS, TOKENS, V, loud
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cmdp_nbdev import rollout
from cmdp_nbdev.cost import DenseRows, HiddenRows, TopKRows, top_k
from cmdp_nbdev.mdp import Sampling
from cmdp_nbdev.rollout import (
    FEW,
    ROOM,
    Decoder,
    GraphDecoder,
    PackedDecoder,
    Reader,
    Reading,
    Written,
    as_rollout,
    choose,
    completion_logits,
    core,
    draw_noise,
    encode_prompts,
    generate,
    is_large,
    is_packable,
    nucleus,
    reading,
    sample,
    sample_token,
    still,
    teacher_rows,
    teacher_says,
)
from cmdp_nbdev.trainer import CMDPTrainer

SIZE = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
FAST = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama3": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "llama with biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
}
UNPACKED = "qwen3", "llama with biases"
SLOW = {
    "a window": (MistralConfig, MistralForCausalLM, {"sliding_window": 100}),
    "some windows": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1},
    ),
    "positions that depend on the length": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
}


def build(config, model, settings):
    "A small model in which everything that is read matters."
    return loud(model(config(**SIZE, **HEADS, **settings)), 2.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- a token -----------------------------------------------------------------------------


def test_few_tokens_are_chosen_as_multinomial_does():
    "The random stream is torch's, so that runs are what they were."
    probs = torch.randn(50, V, generator=seeded()).softmax(-1)
    theirs, ours = seeded(1), seeded(1)
    for _ in range(20):
        expected = torch.multinomial(probs, 1, generator=theirs)[:, 0]
        assert torch.equal(choose(probs, draw_noise(*probs.shape, ours)), expected)


@pytest.mark.parametrize("tokens", [FEW, FEW + 1, 5000])
def test_tokens_come_as_often_as_they_should(tokens):
    probs = torch.zeros(tokens)
    probs[[0, 7, 500, tokens - 1]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    rows = probs.repeat(4000, 1)
    ids = choose(rows, draw_noise(*rows.shape, seeded()))
    shares = ids.bincount(minlength=tokens) / len(ids)
    assert shares[probs == 0].sum() == 0
    assert (shares - probs).abs().max() < 0.03


def test_the_ends_of_chance_give_tokens_that_are_possible():
    probs = torch.zeros(2, 2 * FEW)
    probs[:, 3], probs[:, 9] = 0.5, 0.7
    noise = torch.tensor([[0.0], [1.0]])  # 1 is not drawn, but what rounding may make of it
    assert choose(probs, noise).tolist() == [3, 9]
    middle = torch.full((2, 1), 0.5)  # of 1.2 in all, what rounding never makes of it
    assert choose(probs, middle).tolist() == [9, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("temperature", [0, 0.7, 1.0])
def test_log_probabilities_of_what_was_chosen(dtype, temperature):
    logits = torch.randn(20, V, generator=seeded()).to(dtype)
    ids, logps = sample_token(logits, temperature, generator=seeded())
    expected = (logits.double() / (temperature or 1)).log_softmax(-1)
    torch.testing.assert_close(
        logps.double(), expected.gather(1, ids[:, None])[:, 0], atol=1e-5, rtol=0
    )


def test_the_nucleus_by_hand():
    "The smallest set that holds the share, in whatever order the ids stand."
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.4, 0.1, 0.3, 0.2]])
    kept = torch.tensor([[0.0, 0.5, 0.0, 0.25], [0.4, 0.0, 0.3, 0.0]])
    torch.testing.assert_close(nucleus(probs, 0.7), kept)
    torch.testing.assert_close(nucleus(probs, 0.45)[0], torch.tensor([0.0, 0.5, 0.0, 0.0]))
    assert torch.equal(nucleus(probs, 1.0), probs)
    ids, logps = sample_token(probs.log().repeat(200, 1), top_p=0.45, generator=seeded())
    assert set(ids[::2].tolist()) == {1} and set(ids[1::2].tolist()) == {0, 2}
    expected = probs.log().repeat(200, 1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logps, expected)  # those before top_p


# ---- the fast lane -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, prompts", [*((name, PROMPTS) for name in FAST), ("qwen2", ["1+2"] * 3)]
)
@torch.no_grad()
def test_the_decoder_says_what_the_model_says(name, prompts):
    "With padding, groups, more tokens than there was room for, and rows that leave."
    model = build(*FAST[name])
    ids, mask = encode_prompts(prompts, TOKENS)
    packed = name not in UNPACKED
    assert reading(model, ids, mask) == Reading(cache="packed" if packed else "preallocated")
    kinds = (Reader, Decoder, PackedDecoder)[: 2 + packed]
    readers = [kind(model, ids, mask, 2) for kind in kinds]
    rows = torch.arange(6)
    for step in range(ROOM + 10):
        for fast in readers[1:]:
            torch.testing.assert_close(fast.logits, readers[0].logits, atol=1e-4, rtol=0)
        token = torch.randint(3, V, (len(rows),), generator=seeded(step))
        if step in (5, ROOM):
            rows = torch.tensor([0, 2, 3][: len(rows) - 2])
            token = token[rows]
            for reader in readers:
                reader.keep(rows)
        for reader in readers:
            reader.feed(token)


@torch.no_grad()
def test_in_double_precision_packed_layers_say_the_same():
    "As far as transformers goes: its norms and turns are in float32 always."
    model = build(*FAST["qwen2"]).double()
    ids, mask = encode_prompts(PROMPTS, TOKENS)
    plain, fast = Reader(model, ids, mask, 2), PackedDecoder(model, ids, mask, 2)
    for reader in (plain, fast):
        reader.feed(torch.arange(3, 9))
    torch.testing.assert_close(fast.logits, plain.logits, atol=1e-5, rtol=0)


def test_what_is_put_into_a_model_later_ends_its_packing(monkeypatch):
    "A hook, an adapter, a bias that is still nothing, another dtype, autocast, many weights."
    model = build(*FAST["llama"])
    ids, mask = encode_prompts(PROMPTS, TOKENS)
    assert reading(model, ids, mask) == Reading(cache="packed") and is_packable(model)
    way, mlp = reading(model, ids, mask), model.model.layers[1].mlp
    hook = mlp.up_proj.register_forward_hook(lambda module, given, out: 0 * out)
    opened = way.open(model, ids, mask)
    assert type(opened) is Decoder
    with torch.no_grad():
        plain = Reader(model, ids, mask)
        for reader in (opened, plain):
            reader.feed(torch.arange(3, 6))
    torch.testing.assert_close(opened.logits, plain.logits, atol=1e-4, rtol=0)
    hook.remove()
    assert type(way.open(model, ids, mask)) is PackedDecoder
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_packable(model)
    mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(SIZE["hidden_size"]))
    assert not is_packable(model)
    mlp.down_proj.bias = None
    assert is_packable(model) and not is_packable(model.bfloat16())
    assert is_packable(model.float())
    assert not is_packable(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    monkeypatch.setattr(rollout, "PACKED", 1000)
    assert not is_packable(build(*FAST["llama"]))


@torch.no_grad()
def test_packed_layers_follow_weights_that_move():
    "Copies are made anew for every rollout."
    model = build(*FAST["llama"])
    ids, mask = encode_prompts(PROMPTS, TOKENS)
    way = reading(model, ids, mask)
    for p in model.parameters():
        p.mul_(1.1)
    plain, fast = Reader(model, ids, mask), way.open(model, ids, mask)
    for reader in (plain, fast):
        reader.feed(torch.arange(3, 6))
    assert type(fast) is PackedDecoder
    torch.testing.assert_close(fast.logits, plain.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SLOW)
def test_what_no_short_trial_shows_is_not_offered(name):
    model = build(*SLOW[name])
    assert reading(model, *encode_prompts(PROMPTS, TOKENS)) == Reading()
    with pytest.raises(TypeError, match="is not read layer by layer"):
        Decoder(model, *encode_prompts(PROMPTS, TOKENS))


def test_models_are_still_and_then_as_they_were():
    "Every part in its own mode again, also after an error; what is no model may stand among them."
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2).eval()).eval()
    model.training = model[0].training = True
    with pytest.raises(KeyError), still(model, "a function"):
        assert not any(part.training for part in model.modules())
        raise KeyError
    assert [part.training for part in model.modules()] == [True, True, False]


def test_the_model_inside_of_wrappers():
    "A transformers model wherever it is, else the first that is told a mask, else itself."

    class Masked(torch.nn.Module):
        def forward(self, ids, attention_mask):
            return ids

    own, known = Masked(), build(*FAST["llama"])
    wrapped = torch.nn.Sequential(torch.nn.Identity(), own)
    assert core(wrapped) is own and core(torch.nn.Sequential(own, known)) is known
    assert core(plain := torch.nn.Sequential(torch.nn.Identity())) is plain


def test_without_a_cache_and_without_padding():
    "What knows nothing but ids is read without either, row by row."
    model = MODELS["deaf"]()
    assert reading(model, *encode_prompts(PROMPTS, TOKENS)) == Reading(False, "none")


def test_a_subclass_may_do_anything():
    class Other(LlamaForCausalLM):
        pass

    model = loud(Other(LlamaConfig(**SIZE, **HEADS)))
    assert reading(model, *encode_prompts(PROMPTS, TOKENS)) == Reading()


@torch.no_grad()
def test_adapters_are_followed():
    "Also those that were nothing when the model was tried."
    model = build(*FAST["qwen2"])
    targets = ["q_proj", "v_proj", "down_proj"]
    model = get_peft_model(
        model, LoraConfig(target_modules=targets, modules_to_save=["norm", "lm_head"])
    )
    model.eval()
    ids, mask = encode_prompts(PROMPTS, TOKENS)
    assert reading(model, ids, mask) == Reading(cache="preallocated")
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.normal_(0, 0.5, generator=seeded(len(name)))
    assert not is_packable(model)
    plain, fast = Reader(model, ids, mask, 2), Decoder(model, ids, mask, 2)
    for step in range(3):
        token = torch.randint(3, V, (6,), generator=seeded(step))
        for reader in (plain, fast):
            reader.feed(token)
        torch.testing.assert_close(fast.logits, plain.logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_hooks_are_followed():
    "Of a norm and of a matrix: the short cut is for layers that nobody has changed."
    model = build(*FAST["qwen3"])
    ids, mask = encode_prompts(PROMPTS, TOKENS)
    first, last = model.model.layers
    for module in (
        first.input_layernorm,
        last.self_attn.k_norm,
        last.mlp.up_proj,
        model.model.norm,
    ):
        handle = module.register_forward_hook(lambda module, given, made: 1.5 * made)
        plain, fast = Reader(model, ids, mask, 2), Decoder(model, ids, mask, 2)
        for reader in (plain, fast):
            reader.feed(torch.arange(3, 9))
        torch.testing.assert_close(fast.logits, plain.logits, atol=1e-4, rtol=0)
        handle.remove()
        if module is not model.model.norm:
            module.register_forward_pre_hook(lambda module, given: (0.5 * given[0],))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rough_and_still_read(dtype):
    "Rounding moves log-probabilities by hundredths of a nat: no reason to go without a cache."
    model = build(*FAST["llama"]).to(dtype)
    assert reading(model, *encode_prompts(PROMPTS, TOKENS)) == Reading(cache="preallocated")


def test_a_graph_needs_a_gpu():
    with pytest.raises(RuntimeError, match="a CUDA graph needs a GPU"):
        GraphDecoder(build(*FAST["llama"]), *encode_prompts(PROMPTS, TOKENS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", FAST)
@torch.no_grad()
def test_a_graph_says_what_the_model_says(name):
    model = build(*FAST[name]).cuda()
    ids, mask = (x.cuda() for x in encode_prompts(PROMPTS, TOKENS))
    assert reading(model, ids, mask) == Reading(cache="graph")
    plain, fast = Reader(model, ids, mask, 2), GraphDecoder(model, ids, mask, 2)
    for step in range(ROOM + 40):
        torch.testing.assert_close(fast.logits, plain.logits, atol=1e-3, rtol=0)
        token = torch.randint(3, V, (6,), generator=seeded(step)).cuda()
        for reader in (plain, fast):
            reader.feed(token)


# ---- rows that have ended ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "qwen3.5", "rwkv", "deaf"])
def test_what_a_completion_says_does_not_depend_on_when_others_end(name, monkeypatch):
    model = MODELS[name]()
    settings = dict(num_generations=8, max_completion_length=12, temperature=0.9)
    read, kept = [], []
    made = rollout.sample

    def watched(reader, *args):
        feed = reader.feed
        reader.feed = lambda ids, ended: (read.append(len(ids)), feed(ids, ended))
        reader.can_drop = reader.can_drop and not kept
        return made(reader, *args)

    monkeypatch.setattr(rollout, "sample", watched)
    leaving = generate(model, TOKENS, PROMPTS, generator=seeded(), **settings)
    fed, kept, read = read, [True], []
    staying = generate(model, TOKENS, PROMPTS, generator=seeded(), **settings)
    assert torch.equal(leaving.completion_ids, staying.completion_ids)
    torch.testing.assert_close(leaving.sampled_logps, staying.sampled_logps, atol=1e-4, rtol=0)
    assert set(read) == {24} and min(fed) < 24


def test_rows_leave_once_a_quarter_has_ended():
    "One of eight that ends goes on being read; the second takes both away."

    class Stub:
        "Row i ends at step i."

        can_drop, finished = True, Reader.finished

        def __init__(self):
            self.rows, self.step, self.kept = torch.arange(8), 0, []

        @property
        def logits(self):
            return torch.stack([self.rows == self.step, self.rows != self.step], 1) * 9.0

        def keep(self, rows):
            self.rows = self.rows[rows]
            self.kept.append((self.step, len(rows)))

        def feed(self, ids, ended):
            self.step += 1

    reader = Stub()
    ids, _, ended = sample(reader, [0], 2, Sampling(max_completion_length=12, temperature=0))
    assert reader.kept == [(1, 6), (3, 4), (4, 3), (5, 2), (6, 1)] and ended.all()
    assert ids.tolist() == [[1] * i + [0] + [2] * (7 - i) for i in range(8)]


@torch.no_grad()
def test_a_model_that_gives_all_its_logits():
    "One that cannot be told how many to keep, as older classes: the same before every token."

    class All(torch.nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, ids, attention_mask=None, position_ids=None, past_key_values=None):
            return self.inside(ids, attention_mask, position_ids, past_key_values)

    model = build(*FAST["llama"])
    r = generate(model, TOKENS, PROMPTS, max_completion_length=5, generator=seeded())
    wrapped = All(model)
    assert reading(wrapped, r.prompt_ids, r.prompt_mask).padded
    torch.testing.assert_close(completion_logits(wrapped, r), completion_logits(model, r))


def test_a_way_that_loses_rows_is_not_taken(monkeypatch):
    "The trial lets rows leave as sampling does; who cannot do it is read in another way."

    def wrong(self, rows):
        raise IndexError

    prompts = encode_prompts(PROMPTS, TOKENS)
    for kind, then in ((PackedDecoder, "preallocated"), (Decoder, "shared")):
        monkeypatch.setattr(kind, "keep", wrong)
        assert reading(build(*FAST["llama"]), *prompts) == Reading(cache=then)


def test_all_rows_end_at_once():
    model = build(*FAST["llama"])
    reader = Decoder(model, *encode_prompts(PROMPTS, TOKENS))
    ids, logps, ended = sample(reader, list(range(V)), 0, Sampling(max_completion_length=5))
    assert ids.shape == logps.shape == (3, 1) and ended.all()


def test_what_was_written_by_rows_that_left():
    "Two tokens of three rows, one of the last two; row 1 had ended before its second token."
    written, every, some = Written(3, 9), torch.arange(3), torch.tensor([0, 2])
    none, ended = torch.zeros(3, dtype=torch.bool), torch.tensor([False, True, False])
    first = written.add(every, torch.tensor([4, 1, 5]), torch.tensor([-1.0, -2.0, -3.0]), none)
    second = written.add(every, torch.tensor([6, 6, 7]), torch.tensor([-0.5, -0.5, -0.5]), ended)
    assert first.tolist() == [4, 1, 5] and second.tolist() == [6, 9, 7]
    written.add(some, torch.tensor([8, 1]), torch.tensor([-0.1, -0.2]), none[:2])
    ids, logps, over = written.whole(some, torch.tensor([False, True]))
    assert ids.tolist() == [[4, 6, 8], [1, 9, 9], [5, 7, 1]] and over.tolist() == [
        False,
        True,
        True,
    ]
    said = torch.tensor([[-1.0, -0.5, -0.1], [-2.0, 0.0, 0.0], [-3.0, -0.5, -0.2]])
    assert torch.equal(logps, said)


# ---- what a teacher says -------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows_of():
    "Two rows of five tokens each, and of how many that is."
    model = build(*FAST["llama"])
    r = generate(model, TOKENS, PROMPTS[:2], max_completion_length=5, generator=seeded(1))
    return r, r.completion_ids.numel()


def test_large_is_more_than_a_chunk(rows_of):
    "Of all parts together; without a size in positions it is a number of bytes."
    r, n = rows_of
    assert is_large([r, r], 2 * n - 1) and not is_large([r, r], 2 * n) and not is_large([r], n)
    assert not is_large([r, r])


@pytest.mark.filterwarnings("ignore:Gemma2ForCausalLM")
def test_what_is_kept_of_a_teachers_answer(rows_of):
    "Logits of what fits into a chunk, else hidden states; nothing of several large parts without."
    r, n = rows_of
    plain = build(*FAST["llama"])
    pressed = loud(Gemma2ForCausalLM(Gemma2Config(**SIZE, **HEADS)), 2.0)
    for parts, size, said in [([r], n, DenseRows), ([r], 1, HiddenRows), ([r, r], 1, HiddenRows)]:
        assert {type(rows) for rows in teacher_says(plain, parts, size)} == {said}
    assert teacher_says(pressed, [r, r], 1) == [None, None]
    for parts, size in [([r], 1), ([r, r], 2 * n)]:
        answers = teacher_says(pressed, parts, size)
        assert [type(rows) for rows in answers] == [DenseRows] * len(parts)


def test_teachers_that_are_no_model(rows_of):
    "A function answers for every token, the one before included; an object says its rows."
    r, _ = rows_of
    model = build(*FAST["llama"])
    B, T = r.completion_ids.shape
    expected = completion_logits(model, r)
    assert expected.shape == (B, T, V) and B != T
    with torch.no_grad():
        said = model(r.input_ids, attention_mask=r.attention_mask).logits
    for answer in (said, {"logits": said}, (said, None)):
        rows = teacher_rows(lambda ids, mask: answer, r)  # noqa: B023
        assert torch.equal(rows.logits, said[:, -T - 1 : -1])
    k = top_k(said, r.input_ids, 3)
    named = teacher_rows(lambda ids, mask: TopKRows(k.ids, k.values, k.rest), r)
    assert torch.equal(named.ids, k.ids[:, -T - 1 : -1]) and named.vocab_size == V

    class Fixed:
        rows = staticmethod(lambda rollout: "rows")

    assert teacher_rows(Fixed(), r) == "rows"
    for answer in (None, [], "text", {"scores": said}):
        with pytest.raises(TypeError, match="must answer with logits or log-probabilities"):
            teacher_rows(lambda ids, mask: answer, r)  # noqa: B023


# ---- in portions, and by others ------------------------------------------------------------


def test_portions_of_whole_groups_make_the_same_rollout(monkeypatch):
    "Greedily; where chance decides, a portion draws after the one before it."
    model, opened, asked = build(*FAST["llama"]), rollout.open_reader, []

    def watched(model, ids, *more):
        asked.append(len(ids))
        return opened(model, ids, *more)

    monkeypatch.setattr(rollout, "open_reader", watched)
    columns = {"n": [1, 2, 3]}
    settings = dict(num_generations=2, max_completion_length=9, temperature=0)
    whole = generate(model, TOKENS, PROMPTS, columns, **settings)
    for size in (2, 4, 6):
        parts = generate(model, TOKENS, PROMPTS, columns, **settings, generation_batch_size=size)
        assert torch.equal(whole.completion_ids, parts.completion_ids)
        torch.testing.assert_close(whole.sampled_logps, parts.sampled_logps, atol=1e-5, rtol=0)
        assert (whole.completions, whole.columns) == (parts.completions, parts.columns)
        assert torch.equal(whole.terminated, parts.terminated)
    assert asked == [3, 1, 1, 1, 2, 1, 3]  # prompts, with two completions each


def test_a_portion_of_everything_changes_nothing():
    model = build(*FAST["llama"])
    settings = dict(num_generations=2, max_completion_length=9)
    first, again = (
        generate(model, TOKENS, PROMPTS, generator=seeded(), **settings, generation_batch_size=size)
        for size in (None, 6)
    )
    assert torch.equal(first.completion_ids, again.completion_ids)


@pytest.mark.parametrize("size", [3, 132])
def test_portions_that_cannot_be(size):
    with pytest.raises(ValueError, match=f"generation_batch_size={size} must be a multiple"):
        embedded(generation_batch_size=size)


def noted(*asked):
    "A sampler that says something else about its probabilities than is true."
    made = generate(*asked)
    made.sampled_logps = made.sampled_logps + 0.25 * made.completion_mask
    return made


def lists(model, tokenizer, prompts, columns, sampling, generator, vocab_size):
    "A sampler that answers with lists, as a server does, and says no probabilities."
    rows = [[3 + i, 4, 5][: 1 + i % 3] for i in range(len(prompts) * sampling.num_generations)]
    return as_rollout(model, tokenizer, prompts, columns, sampling, vocab_size, rows)


def test_the_trainer_trains_on_what_another_sampler_wrote(make_trainer, tmp_path):
    theirs = dict(engine=partial(CMDPTrainer, sampler=noted), output_dir=str(tmp_path / "other"))
    other = make_trainer(**theirs)
    expected, found = make_trainer().step(), other.step()
    assert found.pop("sampling_gap") == pytest.approx(0.25, abs=1e-4)
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_a_sampler_that_says_no_probabilities(make_trainer):
    trainer = make_trainer(engine=partial(CMDPTrainer, sampler=lists))
    assert "sampling_gap" not in trainer.step()
    assert trainer.rollout.lengths[:4].tolist() == [1, 2, 3, 1]
    assert not trainer.rollout.terminated.any()


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda *asked: ["text"], "must answer with a Rollout, got list"),
        (lambda m, t, p, c, *more: generate(m, t, p[::-1], c, *more), "rows of others"),
    ],
)
def test_a_sampler_that_answers_something_else(answer, said, make_trainer):
    trainer = make_trainer(engine=partial(CMDPTrainer, sampler=answer))
    with pytest.raises((TypeError, ValueError), match=said):
        trainer.step()
