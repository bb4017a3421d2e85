"Teachers that are no module: the top k tokens, a cache on disk, a server, any callable."

import copy
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, embedded
from torch.testing import assert_close
from transformers.modeling_outputs import CausalLMOutput

from cmdp_nbdev import preflight
from cmdp_nbdev.budget import Budget
from cmdp_nbdev.cost import (
    COSTS,
    Cost,
    DenseRows,
    Rows,
    TopKRows,
    merge_rest,
    register_cost,
    score_tokens,
    token_cost,
    token_divergence,
    top_k,
    with_floor,
)
from cmdp_nbdev.evaluate import evaluate, measure
from cmdp_nbdev.mdp import select
from cmdp_nbdev.model import default_pair
from cmdp_nbdev.preflight import alike_problems, is_function
from cmdp_nbdev.rollout import completion_logits, generate, teacher_rows
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.teachers import CachedTeacher, ServerTeacher, TopKTeacher, fingerprint
from cmdp_nbdev.theory.tabular import law, random_tree
from cmdp_nbdev.trainer import CMDPTrainer

INF = math.inf
TOP4 = "lower bound (teacher known by its top 4 tokens)"


def logits(seed, *shape, scale=2.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def asked():
    "The pair, and completions of its student."
    student, teacher, tokenizer = default_pair()
    prompts = chain_dataset(12, "test")["prompt"][:]
    generator = torch.Generator().manual_seed(0)
    r = generate(
        student,
        tokenizer,
        prompts,
        generator=generator,
        num_generations=2,
        max_completion_length=16,
    )
    return student, teacher, r


def merged_by_hand(logps, ids):
    "Log-probabilities of the ids and of all others, position by position."
    rows = []
    for row, named in zip(logps, ids.tolist()):
        rest = [p for i, p in enumerate(row) if i not in named]
        rest = torch.stack(rest).exp().sum().log() if rest else torch.tensor(-INF).double()
        rows.append(torch.stack([*(row[i] for i in named), rest]))
    return torch.stack(rows)


# --- the bound ---


@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize("k", [1, 2, 4, 9, 12])
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_the_bound_is_never_above_and_exact_with_all_tokens(kind, k, floor):
    s, t = logits(0, 40, 5, 9), logits(1, 40, 5, 9)
    ids = logits(2, 40, 5, 9).argmax(-1)
    cost = Cost(kind, floor=0.0 if kind == "jsd" else floor)
    exact = token_cost(s, t, ids, None, cost)
    bound = token_cost(s, top_k(t, ids, k), ids, None, cost)
    assert (bound <= exact + 1e-12).all() and (bound >= -1e-12).all()
    if k >= 9:
        assert_close(bound, exact)
    else:
        assert bound.mean() < exact.mean()


def test_the_bound_grows_with_the_named_tokens():
    s, t = logits(0, 200, 1, 12), logits(1, 200, 1, 12)
    ids = t.argmax(-1)  # always among them, so the sets are nested
    values = [token_divergence(s, top_k(t, ids, k)) for k in (1, 3, 6, 12)]
    assert all((a <= b + 1e-12).all() for a, b in zip(values, values[1:]))


@pytest.mark.parametrize("kind", ["log_ratio", "surprisal"])
@pytest.mark.parametrize("floor", [0.0, 1e-2])
def test_costs_of_the_sampled_token_are_exact(kind, floor):
    s, t = logits(0, 6, 5, 9), logits(1, 6, 5, 9)
    ids = t.argmin(-1)  # the least probable token is named even with k = 1
    cost = Cost(kind, floor=floor)
    assert_close(
        token_cost(s, top_k(t, ids, 1), ids, None, cost), token_cost(s, t, ids, None, cost)
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_on_trees_a_completion_spends_at_least_the_bound(k):
    for seed in range(20):
        tree = random_tree(seed, vocab=4, depth=3)
        policy = logits(seed, *tree.teacher.shape)
        every = law(tree, policy)
        rows = top_k(tree.teacher[tree.nodes], tree.paths, k)
        student = policy[tree.nodes]
        for kind, cost in {"reverse_kl": every.cost, "log_ratio": None}.items():
            value = token_cost(student, rows, tree.paths, None, Cost(kind))
            if cost is None:
                assert_close(value, every.logp - every.teacher_logp)
            else:
                assert (value <= cost + 1e-9).all()
                assert every.expect(value.sum(-1)) <= every.expect(cost.sum(-1)) + 1e-9


@pytest.mark.parametrize("k", [1, 4, 16])
def test_on_the_pair_no_token_costs_more_than_exactly(asked, k):
    student, teacher, r = asked
    for kind in ("reverse_kl", "forward_kl", "jsd"):
        exact = measure(student, teacher, r, Cost(kind))[0]
        bound = measure(student, TopKTeacher(teacher, k), r, Cost(kind))[0]
        assert (bound <= exact + 1e-5).all() and 0 < bound.sum() <= exact.sum()


# --- its gradient ---


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd", "log_ratio"])
def test_the_gradient_is_that_of_a_dense_reference(kind, chunk_size):
    s, t = logits(0, 4, 6), logits(1, 4, 6)
    ids = t.argmin(-1)
    rows, cost = top_k(t, ids, 3), Cost(kind, chunk_size=chunk_size)
    a, b = s.clone().requires_grad_(), s.clone().requires_grad_()
    cost(a, rows, ids).sum().backward()
    student = merged_by_hand(b.log_softmax(-1), rows.ids)
    teacher = merged_by_hand(t.log_softmax(-1), rows.ids)
    chosen = torch.full((4,), 2)  # the sampled token took the last place
    COSTS[kind](Rows(student, teacher, chosen), Cost(kind)).sum().backward()
    assert_close(a.grad, b.grad)
    assert torch.autograd.gradcheck(lambda x: cost(x, rows, ids), (s.clone().requires_grad_(),))


def test_the_floor_counts_the_tokens_that_were_merged():
    "(1-f) q + f/V, added up over the rest."
    t = logits(1, 5, 8)
    ids = t.argmax(-1)
    rows = top_k(t, ids, 3)
    met = rows.meet(logits(0, 5, 8), ids, Cost(floor=0.1))
    floored = with_floor(t.log_softmax(-1), 0.1)
    assert_close(with_floor(met.teacher, 0.1, met.uniform), merged_by_hand(floored, rows.ids))


def test_merging_all_tokens_leaves_nothing_and_no_nan():
    s = logits(0, 2, 3).requires_grad_()
    ids = torch.tensor([[0, 1, 2, -1], [2, 0, -1, -1]])
    merged = merge_rest(s.log_softmax(-1), ids)
    assert merged[0, 3:].tolist() == [-INF, -INF] and merged[1, 2:4].tolist() == [-INF, -INF]
    assert_close(merged.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    merged.exp().square().sum().backward()
    assert s.grad.isfinite().all()


def test_impossible_tokens_of_the_teacher():
    "Infinite where it must be, finite with a floor, no NaN in a gradient."
    t = logits(1, 4, 8).log_softmax(-1)
    strict = t.masked_fill(t < t.topk(4).values[..., -1:], -INF)
    ids = t.argmax(-1)
    for k, cost in [(4, Cost()), (2, Cost("forward_kl")), (4, Cost(floor=1e-4)), (3, Cost("jsd"))]:
        s = logits(0, 4, 8).requires_grad_()
        value = cost(s, top_k(strict, ids, k), ids)
        assert value.isinf().all() == (k == 4 and not cost.floor)
        if value.isfinite().all():
            value.sum().backward()
            assert s.grad.isfinite().all()


# --- vocabularies ---


@pytest.mark.parametrize(
    "V_s, V_t, holes", [(9, 12, ()), (12, 9, ()), (9, 9, (1, 4)), (9, 12, (2,))]
)
def test_other_vocabularies_and_holes_are_left_out_as_for_a_dense_teacher(V_s, V_t, holes):
    s, t = logits(0, 30, 2, V_s), logits(1, 30, 2, V_t)
    size = min(V_s, V_t)
    allowed = [i for i in range(size) if i not in holes]
    ids = torch.tensor(allowed)[logits(2, 30, 2, len(allowed)).argmax(-1)]
    dense = t[..., :size].index_fill(-1, torch.tensor(holes, dtype=torch.long), -1e4)
    student = s[..., :size].index_fill(-1, torch.tensor(holes, dtype=torch.long), -1e4)
    asked_for = {"divergence": Cost(), "log_ratio": Cost("log_ratio")}
    mask = torch.ones(30, 2)
    exact = score_tokens(student, dense, ids, mask, asked_for)
    named = top_k(t, ids, V_t).only(size, holes)  # everything is named, so nothing is lost
    value = score_tokens(student, named, ids, mask, asked_for)
    assert_close(value.kl, exact.kl)
    assert_close(value.logp, exact.logp)
    assert_close(value.teacher_logp, exact.teacher_logp)
    assert_close(value.costs["log_ratio"], exact.costs["log_ratio"])
    few = score_tokens(student, top_k(dense, ids, 3), ids, mask, asked_for)
    assert (few.kl <= exact.kl + 1e-9).all()


def test_a_teacher_with_all_its_mass_on_unknown_ids():
    rows = TopKRows(torch.tensor([[9, 0]]), torch.tensor([[0.0, -60.0]]), torch.tensor([-50.0]))
    kept = rows.only(9)
    assert kept.ids.tolist() == [[-1, 0]]
    assert_close(kept.values.exp().sum(-1) + kept.rest.exp(), torch.ones(1))


def test_rounding_makes_no_cost_infinite():
    "Named probabilities that add up to one leave a rest that is small, not zero."
    values = torch.tensor([[0.5, 0.5000001]]).log()
    value = Cost()(torch.zeros(1, 4), TopKRows(torch.tensor([[0, 1]]), values))
    assert value.isfinite().all()


# --- what is refused ---


@pytest.mark.parametrize(
    "ids, values, match",
    [
        ([[0, 0]], [[-1.0, -1.0]], "names id 0 twice"),
        ([[0, 1]], [[2.0, 1.0]], "add up to a probability of 10"),
        ([[0, 1]], [[-1.0]], "as many log-probabilities"),
        ([[0, 1]], [[math.nan, -1.0]], "log-probabilities"),
    ],
)
def test_rows_that_are_none(ids, values, match):
    with pytest.raises(ValueError, match=match):
        TopKRows(torch.tensor(ids), torch.tensor(values))


def test_the_sampled_token_must_be_named():
    rows = TopKRows(torch.tensor([[0, 1]]), torch.tensor([[-1.0, -1.0]]))
    with pytest.raises(ValueError, match="leave out the sampled token 3"):
        Cost("surprisal")(torch.zeros(1, 4), rows, torch.tensor([3]))
    assert Cost()(torch.zeros(1, 4), rows).isfinite().all()


@pytest.fixture
def own_cost():
    yield
    COSTS.pop("spread", None)


def test_what_needs_the_whole_distribution_is_refused_at_construction(pair, tmp_path, own_cost):
    @register_cost("spread")
    def spread(rows, cost):
        return (rows.student.exp() - rows.teacher.exp()).abs().sum(-1)

    for settings, match in [
        ({"divergence": "spread"}, "divergence='spread' needs the teacher's whole"),
        ({"teacher_temperature": 2.0}, "teacher_temperature=2.0 needs"),
    ]:
        with pytest.raises(ValueError, match=match):
            make(pair, TopKTeacher(pair[1], 4), tmp_path, **settings)
    register_cost("spread", merged="lower bound")(spread)
    assert make(pair, TopKTeacher(pair[1], 4), tmp_path, divergence="spread").step()["loss"]
    with pytest.raises(ValueError, match="merged must be"):
        register_cost("other", merged="certified")


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda t: TopKTeacher(t, 0), "k must be a whole number >= 1, got 0"),
        (lambda t: CachedTeacher(t, "x", dtype="int8"), "dtype must be"),
        (lambda t: CachedTeacher(t, "x", max_bytes=0), "max_bytes must be > 0"),
        (lambda t: CachedTeacher(lambda i, m: i, "x"), "name is missing"),
        (lambda t: CachedTeacher(TopKTeacher(lambda i, m: i, 2), "x"), "name is missing"),
        (lambda t: ServerTeacher("localhost:8000", "m"), "base_url must begin with http"),
        (lambda t: ServerTeacher("http://localhost", "m", k=0), "k must be"),
        (lambda t: ServerTeacher("http://localhost", "m", workers=0), "workers must be"),
    ],
)
def test_what_cannot_be_a_teacher(pair, build, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match):
        build(pair[1])


# --- runs ---


def make(pair, teacher, folder, **more):
    settings = {**SMALL, "output_dir": str(folder / "run"), "num_generations": 4, **more}
    student, tokenizer = copy.deepcopy(pair[0]), pair[2]
    data = chain_dataset(16, "train"), chain_dataset(4, "test")
    return CMDPTrainer(student, teacher, chain_reward, embedded(**settings), *data, tokenizer)


def test_records_summary_card_and_config_say_what_the_numbers_are(pair, tmp_path):
    trainer = make(pair, TopKTeacher(pair[1], 4), tmp_path, budget=5.0)
    trainer.train()
    summary, records = trainer.evaluate(return_records=True)
    said = f"spent and kl: {TOP4}"
    assert summary["bound"] == said and all(r["bound"] == said for r in records)
    assert json.loads((tmp_path / "run/config.json").read_text())["bound"] == said
    trainer.save_model(tmp_path / "student")
    card = (tmp_path / "student/README.md").read_text()
    assert said in card and "violation rate, upper bound" not in card and "certif" not in card


def test_exact_numbers_say_nothing_and_a_cost_of_the_sampled_token_is_exact(pair, tmp_path):
    exact = evaluated(pair, pair[1])
    assert "bound" not in exact[0] and "bound" not in exact[1][0]
    ratio = evaluated(pair, TopKTeacher(pair[1], 4), cost=Cost("log_ratio"))
    assert ratio[0]["bound"] == f"kl: {TOP4}"
    dense = evaluated(pair, pair[1], cost=Cost("log_ratio"))
    assert ratio[0]["spent_mean"] == pytest.approx(dense[0]["spent_mean"], abs=1e-5)
    assert ratio[0]["kl_mean"] < dense[0]["kl_mean"]


def evaluate_kl(pair, teacher):
    "Of every completion the reverse KL."
    student, _, tokenizer = pair
    r = generate(
        student, tokenizer, chain_dataset(8, "test")["prompt"][:], max_completion_length=16
    )
    return measure(student, teacher, r)[1].sum(-1).tolist()


def evaluated(pair, teacher, **more):
    data = chain_dataset(8, "test")
    asked = dict(return_records=True, max_completion_length=16, **more)
    return evaluate(pair[0], teacher, data, pair[2], chain_reward, Budget(5.0), **asked)


def test_two_updates_with_every_kind_of_teacher(pair, server, tmp_path):
    "The same first update where the same is known, in micro-batches."
    model = pair[1]
    size = dict(per_device_train_batch_size=8, gradient_accumulation_steps=2)

    def named(ids, mask):
        after = torch.cat([ids[:, 1:], ids[:, :1]], 1)
        return top_k(model(ids, attention_mask=mask).logits, after, 4)

    kinds = {
        "top": TopKTeacher(model, 4),
        "function": named,
        "cache": CachedTeacher(TopKTeacher(model, 4), tmp_path / "answers"),
        "server": ServerTeacher(server.url, "tiny", k=19),
        "model": model,
    }
    first = {}
    for name, teacher in kinds.items():
        trainer = make(pair, teacher, tmp_path / name, **size)
        first[name] = trainer.step()["kl_mean"]
        trainer.step()
        assert trainer.global_step == 2
    assert first["top"] == pytest.approx(first["function"], rel=1e-4)
    assert first["top"] == pytest.approx(first["cache"], rel=1e-4)
    assert first["server"] == pytest.approx(first["model"], rel=1e-3)
    assert first["top"] < first["model"]


def test_the_reported_kl_keeps_the_floor(pair, tmp_path):
    "A teacher with zeros and a floor: spent and kl are finite, in training and evaluation."

    def strict(ids, mask):
        logps = pair[1](ids, attention_mask=mask).logits.log_softmax(-1)
        return logps.masked_fill(logps < logps.topk(4).values[..., -1:], -INF)

    trainer = make(pair, strict, tmp_path, floor=1e-4)
    metrics, summary = trainer.step(), trainer.evaluate()
    for found in (metrics, summary):
        assert math.isfinite(found["kl_mean"])
        assert found["kl_mean"] == pytest.approx(found["spent_mean"], rel=1e-5)
    top = evaluated(pair, TopKTeacher(strict, 4), cost=Cost(floor=1e-4))[0]
    assert math.isfinite(top["kl_mean"]) and top["bound"]
    without = evaluate_kl(pair, strict)
    assert max(without) == INF  # without a floor it is what it is
    ratio = evaluated(pair, strict, cost=Cost("log_ratio", floor=1e-4))[0]
    assert math.isfinite(ratio["kl_mean"])


# --- callables ---


def answers(model):
    "One answer in every form."

    def output(ids, mask):
        return CausalLMOutput(logits=model(ids, attention_mask=mask).logits)

    return {
        "ModelOutput": output,
        "tuple": lambda i, m: model(i, attention_mask=m, return_dict=False),
        "list": lambda i, m: list(model(i, attention_mask=m, return_dict=False)),
        "namespace": lambda i, m: SimpleNamespace(logits=output(i, m).logits),
        "dict": lambda i, m: {"logits": output(i, m).logits},
        "bound method": SimpleNamespace(ask=lambda i, m: output(i, m)).ask,
        "log-probabilities": lambda i, m: output(i, m).logits.log_softmax(-1),
    }


@pytest.mark.parametrize("form", answers(None))
def test_a_callable_may_answer_in_any_usual_form(asked, form):
    student, teacher, r = asked
    function = answers(teacher)[form]
    with torch.no_grad():
        assert_close(
            completion_logits(function, r).log_softmax(-1),
            completion_logits(teacher, r).log_softmax(-1),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("answer", [None, "text", (), {"scores": 1}, 3.0])
def test_any_other_answer_is_refused_by_name(pair, tmp_path, answer):
    with pytest.raises(TypeError, match="teacher must answer with logits or log-probabilities"):
        make(pair, lambda ids, mask: answer, tmp_path)


def test_a_teacher_without_logits_says_how_it_is_read(asked):
    _, teacher, r = asked
    with pytest.raises(TypeError, match="teacher_rows"):
        completion_logits(TopKTeacher(teacher, 2), r)
    with pytest.raises(TypeError, match="needs a teacher with logits"):
        teacher_rows(TopKTeacher(TopKTeacher(teacher, 2), 2), r)
    assert is_function(TopKTeacher(teacher, 2)) and not is_function(teacher)


def test_wrapping_hides_neither_shared_weights_nor_other_vocabularies(pair, tmp_path):
    student = pair[0]
    with pytest.raises(ValueError, match="shares weights"):
        data = chain_dataset(16, "train"), None, pair[2]
        wrapped = CachedTeacher(TopKTeacher(student, 2), tmp_path)
        CMDPTrainer(student, wrapped, chain_reward, embedded(**SMALL), *data)


# --- the cache ---


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", [None, 3])
def test_a_hit_gives_the_numbers_of_the_miss(asked, tmp_path, k, dtype):
    student, teacher, r = asked
    inner = teacher if k is None else TopKTeacher(teacher, k)
    cached = CachedTeacher(inner, tmp_path, dtype=dtype)
    first, second = (measure(student, cached, r)[0] for _ in range(2))
    again = CachedTeacher(copy.deepcopy(inner), tmp_path, dtype=dtype)  # another process, say
    third = measure(student, again, r)[0]
    assert torch.equal(first, second) and torch.equal(first, third)
    assert (again.hits, again.misses) == (len(r), 0)
    plain = measure(student, inner, r)[0]
    assert_close(first, plain, rtol=0, atol=1e-5 if dtype == "float32" else 1e-2)


def test_parts_of_a_rollout_share_entries_whatever_the_padding(asked, tmp_path):
    student, teacher, r = asked
    cached = CachedTeacher(teacher, tmp_path)
    whole = measure(student, cached, r)[0]
    for rows in ([3], [5, 0, 5]):
        assert torch.equal(cached.rows(select(r, rows)).logits, cached.rows(r).logits[rows])
    assert cached.misses <= len(r)
    assert whole.isfinite().all()


def test_another_teacher_k_precision_or_vocabulary_is_another_entry(asked, tmp_path):
    student, teacher, r = asked
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).view(-1)[7] += 1e-3
    assert fingerprint(teacher) == fingerprint(copy.deepcopy(teacher)) != fingerprint(other)
    teachers = [
        CachedTeacher(teacher, tmp_path),
        CachedTeacher(other, tmp_path),
        CachedTeacher(TopKTeacher(teacher, 2), tmp_path),
        CachedTeacher(TopKTeacher(teacher, 3), tmp_path),
        CachedTeacher(teacher, tmp_path, dtype="float16"),
        CachedTeacher(teacher, tmp_path, name="mine"),
    ]
    keys = {cached.key(r, 0) for cached in teachers}
    r.vocab_size, before = 11, r.vocab_size
    keys.add(teachers[0].key(r, 0))
    r.vocab_size = before
    with torch.autocast("cpu", torch.bfloat16):
        keys.add(teachers[0].key(r, 0))
    assert len(keys) == len(teachers) + 2


def test_the_folder_is_bounded_and_holds_no_halves(asked, tmp_path):
    student, teacher, r = asked
    cached = CachedTeacher(teacher, tmp_path, max_bytes=12_000)
    for _ in range(3):
        measure(student, cached, r)
        size = sum(f.stat().st_size for f in tmp_path.glob("*/*"))
        assert 0 < size <= 12_000 * 1.1 + 3_000
    assert not list(tmp_path.glob("*/*.part"))


def test_several_writers_of_one_folder(asked, tmp_path):
    student, teacher, r = asked
    found = []

    def work():
        found.append(measure(student, CachedTeacher(TopKTeacher(teacher, 4), tmp_path), r)[0])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(torch.equal(x, found[0]) for x in found)


def test_a_damaged_entry_and_an_impossible_folder_are_named(asked, tmp_path):
    student, teacher, r = asked
    cached = CachedTeacher(teacher, tmp_path / "answers")
    measure(student, cached, r)
    path = cached.path(cached.key(r, 0))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="is damaged"):
        measure(student, cached, r)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="folder='.*file' cannot be written"):
        CachedTeacher(teacher, tmp_path / "file")


def test_a_function_is_cached_under_its_name(asked, tmp_path):
    student, teacher, r = asked
    calls = []

    def ask(ids, mask):
        calls.append(len(ids))
        return teacher(ids, attention_mask=mask)

    cached = CachedTeacher(ask, tmp_path, name="ask, version 1")
    a, b = (measure(student, cached, r)[0] for _ in range(2))
    assert torch.equal(a, b) and len(calls) == 1


# --- the server ---


class Tiny(BaseHTTPRequestHandler):
    "Answers like vLLM from the embedded teacher; `mode` makes it misbehave."

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        mode = self.server.modes.pop(0) if self.server.modes else None
        if mode == "busy":
            return self.answer(503, {"error": "busy"})
        if mode == "refuse":
            return self.answer(400, {"error": "prompt_logprobs is at most 20"})
        ids = torch.tensor([body["prompt"]])
        with torch.no_grad():
            logps = self.server.model(ids).logits[0].log_softmax(-1)
        said = [None]
        for row, token in zip(logps, ids[0, 1:].tolist()):
            named = {*row.topk(min(body["prompt_logprobs"], len(row))).indices.tolist(), token}
            said.append({str(i): {"logprob": row[i].item(), "rank": 1} for i in named})
        if mode == "shifted":
            said.append(said[-1])
        if mode == "other":
            said[-1] = {"0": {"logprob": -0.1}} if body["prompt"][-1] else {"1": {"logprob": -0.1}}
        if mode == "minus infinity":
            said[-1] = {**said[-1], str(body["prompt"][-1]): {"logprob": -9999.0}}
        choice = {"text": "x"} if mode == "plain" else {"prompt_logprobs": said}
        if mode == "null":
            said[-1] = None
        self.answer(200, {"choices": [choice]})

    def answer(self, code, value):
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *unused):
        pass


@pytest.fixture(scope="module")
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Tiny)
    httpd.model, httpd.seen, httpd.modes = default_pair()[1], [], []
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


def test_a_server_says_what_the_model_behind_it_says(asked, server):
    student, teacher, r = asked
    exact = measure(student, teacher, r)[0]
    values = {k: measure(student, ServerTeacher(server.url, "tiny", k), r)[0] for k in (1, 4, 19)}
    assert all((value <= exact + 1e-4).all() for value in values.values())
    assert values[1].sum() < values[4].sum() < exact.sum()
    assert_close(values[19], exact, rtol=0, atol=1e-3)
    ratio = Cost("log_ratio")
    served = measure(student, ServerTeacher(server.url, "tiny", 1), r, ratio)[0]
    assert_close(served, measure(student, teacher, r, ratio)[0], rtol=0, atol=1e-4)


def test_what_is_sent(asked, server):
    r = select(asked[2], [0, 1])
    server.seen.clear()
    ServerTeacher(server.url + "/", "tiny", 3, api_key="secret", max_tokens=0, seed=1).rows(r)
    path, body, key = server.seen[0]
    assert path == "/v1/completions" and key == "Bearer secret"
    prompt = body.pop("prompt")
    assert body == dict(model="tiny", max_tokens=0, temperature=0, prompt_logprobs=3, seed=1)
    wanted = [
        r.prompt_ids[i][r.prompt_mask[i].bool()].tolist()
        + r.completion_ids[i][r.completion_mask[i].bool()].tolist()
        for i in (0, 1)
    ]
    assert prompt in wanted and len(server.seen) == 2


@pytest.mark.parametrize(
    "modes, match",
    [
        (["plain"], "prompt_logprobs in vLLM's form"),
        (["null"], "prompt_logprobs in vLLM's form"),
        (["shifted"], "read other tokens than"),
        (["other"], "read other tokens than"),
        (["refuse"], "refused the request .400 .*at most 20"),
        (["busy"] * 3, "gave no answer in 3 attempts, last: 503"),
    ],
)
def test_a_server_that_does_not_do_what_it_should(asked, server, modes, match):
    server.modes = list(modes)
    with pytest.raises(RuntimeError, match=match):
        ServerTeacher(server.url, "tiny", 3, retries=2, wait=0).rows(select(asked[2], [0]))
    server.modes = []


def test_a_failure_that_passes_is_tried_again(asked, server):
    one = select(asked[2], [0])
    teacher = ServerTeacher(server.url, "tiny", 3, wait=0)
    server.modes = ["busy", "busy"]
    assert torch.equal(teacher.rows(one).values, teacher.rows(one).values)
    server.modes = ["minus infinity"]
    rows = teacher.rows(one)
    n = int(one.lengths[0])
    assert rows.logps(one.completion_ids, one.completion_mask)[0, n - 1] == -INF


def test_a_server_that_is_not_there(asked):
    with pytest.raises(RuntimeError, match="gave no answer in 1 attempts, last: .*refused"):
        ServerTeacher("http://127.0.0.1:9/v1", "m", retries=0).rows(select(asked[2], [0]))


def test_a_cached_server_is_asked_once(asked, server, tmp_path):
    student, _, r = asked
    cached = CachedTeacher(ServerTeacher(server.url, "tiny", 4), tmp_path)
    server.seen.clear()
    a, b = (measure(student, cached, r)[0] for _ in range(2))
    assert torch.equal(a, b) and len(server.seen) == cached.misses
    assert isinstance(cached.rows(r), TopKRows) and cached.rows(r).bound == TOP4
    assert not isinstance(cached.rows(r), DenseRows)


def test_a_teacher_in_half_precision_is_judged_as_one(pair, monkeypatch, recwarn):
    "Also inside of another one: what rounding explains there is no padding that is read."
    monkeypatch.setattr(preflight, "probe_distances", lambda *args: {"padded": 0.1})
    inside = copy.deepcopy(pair[1]).bfloat16()
    assert alike_problems("teacher", TopKTeacher(inside, 4), None, None, 1.0) == []
    assert not recwarn
    assert len(alike_problems("teacher", TopKTeacher(pair[1], 4), None, None, 1.0)) == 1
