"Costs from hidden states, a chunk at a time: the numbers of the plain version, without its memory."

import copy
import json

import pytest
import torch
from conftest import gradients_of_step, relative
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from cmdp_nbdev import cost as module
from cmdp_nbdev.cost import Cost, Head, HiddenRows, score_tokens, top_k, with_tokens
from cmdp_nbdev.evaluate import measured
from cmdp_nbdev.model import char_tokenizer, tiny_model
from cmdp_nbdev.rollout import completion_rows, generate, head_of, head_width

F64 = torch.float64


class Adapted(torch.nn.Module):
    "A head with an adapter beside its matrix."

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Linear(base.in_features, 2, bias=False, dtype=F64)
        self.up = torch.nn.Linear(2, base.out_features, bias=False, dtype=F64)

    def forward(self, states):
        return self.base(states) + self.up(self.down(states))


def loss_of(score, multipliers, advantage):
    "A loss that reaches every number with a gradient, through a ratio as in the trainer."
    ratio = torch.exp(score.logp - 0.9 * score.logp.detach())
    loss = -advantage * ratio.clamp(0.5, 1.5)
    for name, multiplier in multipliers.items():
        loss = loss + multiplier * score.costs[name]
    return loss


@given(data=st.data())
def test_values_and_gradients_are_those_of_the_plain_version(data):
    "To 1e-10, whatever the shapes, the head, the costs and the chunk."
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    B, T, H = (draw(st.integers(1, n)) for n in (3, 5, 4))
    v, more = draw(st.integers(3, 9)), draw(st.integers(-2, 2))
    kinds = draw(st.sets(st.sampled_from(["forward_kl", "jsd", "log_ratio", "surprisal"])))
    main = Cost(
        draw(st.sampled_from(["reverse_kl", "forward_kl", "log_ratio"])),
        floor=draw(st.sampled_from([0.0, 0.01])),
        student_temperature=draw(st.sampled_from([1.0, 2.0])),
        chunk_size=draw(st.integers(1, B * T + 1)),
    )
    kinds = {k for k in kinds if not (k == "jsd" and main.floor)}
    costs = {"divergence": main, **{k: main.of(k) for k in kinds}}
    linear = torch.nn.Linear(H, v, bias=draw(st.booleans()), dtype=F64)
    head = Adapted(linear) if draw(st.booleans()) else linear
    master = torch.nn.Linear(3, v + more, dtype=F64).requires_grad_(False)
    size, holes = v - draw(st.integers(0, 1)), (1,) if draw(st.booleans()) else ()
    h = torch.randn(B, T, H, dtype=F64, requires_grad=True)
    states, mask = torch.randn(B, T, 3, dtype=F64), torch.rand(B, T) < 0.8
    ids = torch.randint(2, min(size, v + more) + 0, (B, T)) if min(size, v + more) > 2 else 0
    ids = torch.zeros(B, T, dtype=torch.long) + ids
    temperature = draw(st.sampled_from([1.0, 0.7]))
    told = ids, mask, costs, temperature
    multipliers = {name: torch.rand(B, T) for name in costs}
    advantage, trained = torch.randn(B, 1), [h, *(p for p in head.parameters() if p.requires_grad)]

    said = with_tokens(master(states), size, holes)
    plain = module._score_at_once(
        with_tokens(head(h), size, holes),
        module.DenseRows(said),
        ids,
        mask,
        {k: module.replace(c, chunk_size=None) for k, c in costs.items()},
        temperature,
    )
    rows = HiddenRows(h, Head(head, v, F64, vocab_size=size, holes=holes))
    teacher = HiddenRows(states, Head(master, v + more, F64, vocab_size=size, holes=holes))
    chunked = score_tokens(rows, draw(st.sampled_from([teacher, said])), *told)

    def gradients(score):
        loss = loss_of(score, multipliers, advantage)[mask].sum()
        found = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found)]

    for name in costs:
        torch.testing.assert_close(
            chunked.costs[name][mask], plain.costs[name][mask], rtol=0, atol=1e-10
        )
    for name in ("logp", "teacher_logp", "kl"):
        a, b = getattr(chunked, name), getattr(plain, name)
        torch.testing.assert_close(a[mask], b[mask], rtol=0, atol=1e-10)
    if mask.any():
        for a, b in zip(gradients(chunked), gradients(plain)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_top_k_teacher_and_a_cost_of_ones_own(monkeypatch):
    "Both see rows, in chunks as at once."
    monkeypatch.setattr(module, "COSTS", dict(module.COSTS))

    @module.register_cost("half_l1")
    def half_l1(rows, cost):
        return (rows.student.exp() - rows.teacher.exp()).abs().sum(-1) / 2

    torch.manual_seed(0)
    head = torch.nn.Linear(4, 9, dtype=F64)
    h, t = torch.randn(2, 5, 4, dtype=F64), torch.randn(2, 5, 9, dtype=F64)
    ids, mask = torch.randint(9, (2, 5)), torch.ones(2, 5)
    for said, kind in ((top_k(t, ids, 3), "reverse_kl"), (module.DenseRows(t), "half_l1")):
        found = []
        for student in (head(h), HiddenRows(h, Head(head, 9, F64))):
            score = score_tokens(student, said, ids, mask, {"divergence": Cost(kind)})
            loss = (score.costs["divergence"] - score.logp).sum()
            found.append((loss.detach(), *torch.autograd.grad(loss, list(head.parameters()))))
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_no_more_than_a_chunk_of_logits_is_ever_there(monkeypatch):
    "The reason for all this: the head is never given more than a chunk."
    seen, make = [], module.Through.make
    spy = lambda self, states: seen.append(len(states)) or make(self, states)  # noqa: E731
    monkeypatch.setattr(module.Through, "make", spy)
    head, h = torch.nn.Linear(4, 9), torch.randn(3, 5, 4, requires_grad=True)
    rows = HiddenRows(h, Head(head, 9, torch.float32))
    said = HiddenRows(h.detach(), Head(torch.nn.Linear(4, 9), 9, torch.float32))
    told = torch.zeros(3, 5, dtype=torch.long), torch.ones(3, 5)
    score = score_tokens(rows, said, *told, {"divergence": Cost(chunk_size=4)})
    score.costs["divergence"].sum().backward()
    assert max(seen) == 4 and len(seen) == 2 * 2 * 4  # two passes, two heads, four chunks


def test_the_chunk_chooses_itself():
    "64 rows at least, a number of bytes otherwise; a small vocabulary is read at once."
    assert module.chunk_rows(10**9) == 64
    rows = module.chunk_rows(19)
    assert 4 * 19 * rows <= module.CHUNK_BYTES < 4 * 19 * (rows + 1)


def llama(**config):
    "A tiny model over the characters."
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, eos_token_id=1, pad_token_id=0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=19, **shape, **heads, **config))


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_a_model_are_its_logits(tied):
    "Hidden states and head give what the model itself gives; the model is as it was."
    model = llama(tie_word_embeddings=tied)
    rollout = generate(model, char_tokenizer(), ["1+2=", "3*4-1="], max_completion_length=6)
    before = dict(vars(head_of(model)))
    rows = completion_rows(model, rollout, hidden=True)
    assert isinstance(rows, HiddenRows) and rows.head.plain
    whole = completion_rows(model, rollout).logits
    torch.testing.assert_close(rows.logits, whole, rtol=1e-6, atol=1e-6)
    assert rows.shape == whole.shape and vars(head_of(model)) == before


def test_under_autocast_the_head_is_computed_as_in_the_model():
    "The autocast that the model is in when it comes to its head is the head's, too."
    model = llama()
    rollout = generate(model, char_tokenizer(), ["1+2="], max_completion_length=6)
    with torch.autocast("cpu", torch.bfloat16):
        rows, whole = (completion_rows(model, rollout, hidden) for hidden in (True, False))
    assert rows.head.autocast == torch.bfloat16 and rows.logits.dtype == torch.bfloat16
    assert torch.equal(rows.logits, whole.logits)


def test_a_model_that_changes_its_logits_falls_back():
    "Gemma 2 presses them into an interval: seen even where the logits are small, said once."
    size = dict(vocab_size=19, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    model = Gemma2ForCausalLM(Gemma2Config(**size, **heads)).eval()
    rollout = generate(model, char_tokenizer(), ["1+2="], max_completion_length=6)
    with pytest.warns(UserWarning, match="Gemma2ForCausalLM: its logits are not"):
        rows = completion_rows(model, rollout, hidden=True)
    assert not isinstance(rows, HiddenRows) and head_width(model, rollout) is None


@pytest.mark.parametrize(
    "config",
    [
        dict(),
        dict(divergence="jsd", temperature=0.7),
        dict(method="cmdp", gradient_accumulation_steps=4, per_device_train_batch_size=4),
        dict(num_iterations=3, learning_rate=1e-3, epsilon=0.01),
    ],
    ids=str,
)
def test_an_update_in_chunks_is_the_same_update(make_trainer, tmp_path, monkeypatch, config):
    "Loss, metrics and gradient of the whole trainer; the teacher is asked once per completion."
    whole = make_trainer(**config)
    chunked = make_trainer(kl_chunk_size=7, output_dir=str(tmp_path / "c"), **config)
    rows = []
    chunked.teacher.register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(len((args or [kwargs["input_ids"]])[0])),
        with_kwargs=True,
    )
    heads, make = [], module.Through.make
    chunked_head = head_of(chunked.model)

    def spy(self, states):
        if self.head is not None and self.head.module is chunked_head:
            heads.append(len(states))
        return make(self, states)

    monkeypatch.setattr(module.Through, "make", spy)
    (a, ga), (b, gb) = gradients_of_step(chunked), gradients_of_step(whole)
    tokens = int(chunked.rollout.completion_mask.sum())
    assert sum(heads) == 2 * chunked.args.num_iterations * tokens
    assert relative(ga, gb) < 1e-4
    for name in ("loss", "kl_mean", "spent_mean", "reward"):
        assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6)
    assert sum(rows) == 16


def test_what_was_chosen_is_kept(make_trainer, monkeypatch):
    "config.json holds the chunk, and a resumed run takes it from there."
    monkeypatch.setattr("cmdp_nbdev.preflight.chunk_rows", lambda *unused: 50)
    first = make_trainer(save_steps=1)
    first.step()
    config = json.loads((first.output_dir / "config.json").read_text())
    assert config["kl_chunk_size"] == first.args.kl_chunk_size == 50
    monkeypatch.setattr("cmdp_nbdev.preflight.chunk_rows", lambda *unused: 60)
    second = make_trainer(save_steps=1, resume_from_checkpoint="auto")
    assert second.args.kl_chunk_size == 50
    second.train()


def test_the_embedded_pair_is_read_at_once(make_trainer):
    "A vocabulary of 19 has nothing to gain."
    assert make_trainer().args.kl_chunk_size is None


def test_a_function_as_teacher_answers_once(make_trainer, pair):
    "However often its answer is used."
    asked, master = [], copy.deepcopy(pair[1])

    def teacher(ids, mask):
        asked.append(len(ids))
        return master(ids, attention_mask=mask).logits

    trainer = make_trainer(teacher=teacher, num_iterations=2, kl_chunk_size=7)
    asked.clear()
    trainer.step()
    assert sum(asked) == 16


def test_an_evaluation_in_chunks(pair):
    "The same numbers for records, with padding that differs between the models."
    student, _, tokenizer = pair
    master = tiny_model(16, tokenizer, seed=3)
    rollout = generate(student, tokenizer, ["1+2=", "3*4-1="], max_completion_length=9)
    for kind in ("reverse_kl", "forward_kl"):
        a = measured(student, master, rollout, Cost(kind, chunk_size=3))
        b = measured(student, master, rollout, Cost(kind))
        for x, y in zip(a[:2], b[:2]):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_the_closed_form_is_the_plain_version_and_knows_where_it_is_not(monkeypatch):
    "All its costs at once in float64, two rows at a time; a probability of 0 goes to autograd."
    monkeypatch.setattr(module, "BLOCK", 2 * 7)
    torch.manual_seed(0)
    head, h = torch.nn.Linear(4, 7, dtype=F64), torch.randn(5, 4, dtype=F64, requires_grad=True)
    teacher, ids = torch.randn(5, 9, dtype=F64), torch.randint(7, (5,))
    costs = [Cost(kind) for kind in (*module.CLOSED, "forward_kl")]
    weights = torch.rand(2 + len(costs), 5, dtype=F64)
    for zero in (False, True):
        if zero:
            teacher[3, 2], costs = -torch.inf, [Cost("forward_kl")]
        question = module.Question(module.DenseRows(teacher), ids, costs)
        plain = question(head(h))
        rows = HiddenRows(h, Head(head, 7, F64))
        chunked = module.ask_in_chunks(rows, question, 3)
        assert (question.closed(module.Through(rows.head), h, slice(0, 5)) is None) == zero
        trained = [h, head.weight, head.bias]
        found = [
            torch.autograd.grad(sum(w @ x for w, x in zip(weights, values)), trained)
            for values in (plain, chunked)
        ]
        for a, b in (*zip(plain, chunked), *zip(*found)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
