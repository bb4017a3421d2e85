"Rollouts: masks, selections, and what sampling reports."

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev.cost import token_logps
from cmdp_nbdev.mdp import (
    Rollout,
    completion_mask,
    masked,
    position_ids,
    select,
    state,
    to_device,
    to_go,
    toy_rollout,
    trajectory_cost,
    transition,
    trim,
)
from cmdp_nbdev.rollout import completion_logits, generate, sample_token

ROWS = st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=5)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_transition_appends_the_action():
    "The environment of a language model: the old state and one token more."
    start = torch.tensor([5, 7])
    assert transition(start, 3).tolist() == [5, 7, 3]
    assert transition(transition(start, 3), 9).tolist() == [5, 7, 3, 9]


def test_mask_by_hand():
    "EOS is an action, a second EOS is not; several ids may end a text."
    ids = torch.tensor([[4, 5, 1, 0], [4, 5, 6, 7], [1, 1, 1, 0]])
    assert completion_mask(ids, 1).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert completion_mask(ids, [1, 5])[0].tolist() == [1, 1, 0, 0]


@given(ROWS)
def test_mask_against_a_loop(rows):
    "One token too many or too few after EOS would charge the budget wrongly."
    for row, mask in zip(rows, completion_mask(torch.tensor(rows), [1, 3]).tolist()):
        n = next((i + 1 for i, x in enumerate(row) if x in (1, 3)), 4)
        assert mask == [1] * n + [0] * (4 - n)


def test_sums_by_hand():
    "NaN in the padding must not reach a sum."
    cost = torch.tensor([[0.1, 0.2, torch.nan], [0.1, 0.2, 0.3]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    torch.testing.assert_close(trajectory_cost(cost, mask), torch.tensor([0.3, 0.6]))
    future = torch.tensor([[0.3, 0.2, 0.0], [0.6, 0.5, 0.3]])
    torch.testing.assert_close(to_go(cost, mask), future)


@given(st.integers(0, 1000))
def test_to_go_and_cost_against_a_loop(seed):
    "Sums to the end, with NaN in the padding."
    g = seeded(seed)
    x = torch.rand(3, 5, generator=g, dtype=torch.float64)
    n = torch.randint(1, 6, (3,), generator=g)
    mask = (torch.arange(5) < n[:, None]).long()
    x[mask == 0] = torch.nan
    for i in range(3):
        assert trajectory_cost(x, mask)[i].item() == pytest.approx(x[i, : n[i]].sum().item())
        for t in range(5):
            expected = x[i, t : n[i]].sum().item() if t < n[i] else 0.0
            assert to_go(x, mask)[i, t].item() == pytest.approx(expected)


def test_masked_blocks_gradients():
    "NaN * 0 is NaN; masking must cut, not multiply."
    x = torch.tensor([1.0, torch.nan], requires_grad=True)
    masked(x, torch.tensor([1, 0])).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_left_padding_keeps_positions():
    "Padded prompts must see the same positions as alone."
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert position_ids(torch.tensor([[0, 0, 1, 1, 1]])).tolist() == [[0, 0, 0, 1, 2]]


@pytest.fixture
def small():
    "Two trajectories by hand: finished after two tokens, and cut off after three."
    return Rollout(
        prompt_ids=torch.tensor([[0, 8], [8, 9]]),
        prompt_mask=torch.tensor([[0, 1], [1, 1]]),
        completion_ids=torch.tensor([[4, 1, 0], [4, 5, 6]]),
        completion_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]),
        terminated=torch.tensor([True, False]),
        prompts=["a", "b"],
        completions=["x", "y"],
        columns=dict(answer=["1", "2"]),
    )


def test_what_a_rollout_says(small):
    "Lengths are charged, and a truncated completion must be known as one."
    assert small.lengths.tolist() == [2, 3]
    assert small.truncated.tolist() == [False, True]
    assert small.input_ids.tolist() == [[0, 8, 4, 1, 0], [8, 9, 4, 5, 6]]
    assert small.attention_mask.tolist() == [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_parts_by_hand(small):
    "States, selections and trimming keep exactly the real tokens."
    now = state(small, 0, 0)
    assert now.tolist() == [8]
    for t in range(int(small.lengths[0])):
        now = transition(now, small.completion_ids[0, t])
    assert now.tolist() == state(small, 0, 2).tolist()
    assert select(small, [1]).completions == ["y"]
    assert select(small, slice(0, 1)).columns == dict(answer=["1"])
    assert torch.equal(to_device(small, "cpu").lengths, small.lengths)
    short = trim(select(small, [0]))
    assert short.input_ids.tolist() == [[8, 4, 1]]
    assert torch.equal(state(short, 0, 2), state(small, 0, 2))


def test_trimming_cuts_everything_that_has_a_column_per_token(small):
    "Log-probabilities and remaining budgets must stay beside their tokens."
    per_token = torch.arange(6.0).reshape(2, 3)
    small.sampled_logps, small.remaining = per_token, -per_token
    short = trim(select(small, [0]))
    assert short.sampled_logps.tolist() == [[0, 1]] and short.remaining.tolist() == [[0, -1]]


def test_a_toy_rollout_is_what_was_written():
    "Examples show it: characters as tokens, `$` as EOS, prompts on the left."
    r = toy_rollout(["2+2=", "12-7=", "2+2="], ["4$", "12-", "$"], answer=["4", "5", "4"])
    assert r.lengths.tolist() == [2, 3, 1] and r.terminated.tolist() == [True, False, True]
    assert "".join(map(chr, state(r, 0, 2))) == "2+2=4$"
    assert torch.equal(r.prompt_mask, torch.tensor([[0, 1, 1, 1, 1], [1] * 5, [0, 1, 1, 1, 1]]))
    assert torch.equal(r.completion_mask, torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]))
    assert r.group_ids.tolist() == [0, 1, 0] and r.completions == ["4", "12-", ""]
    assert r.prompts == ["2+2=", "12-7=", "2+2="] and r.columns == {"answer": ["4", "5", "4"]}


@pytest.fixture
def rollout(pair):
    "Nine completions of three prompts, sampled."
    student, _, tok = pair
    return generate(
        student,
        tok,
        ["3+8*7-2=", "1*2=", "9-9+1="],
        {"answer": ["5", "2", "1"]},
        num_generations=3,
        max_completion_length=20,
        generator=seeded(0),
    )


def test_states_follow_transitions(rollout):
    "The token MDP: a state and an action give the next state, without padding."
    for i in range(len(rollout)):
        s = state(rollout, i, 0)
        assert 0 not in s
        for t in range(int(rollout.lengths[i])):
            s = transition(s, rollout.completion_ids[i, t])
        assert torch.equal(s, state(rollout, i, int(rollout.lengths[i])))


def test_select_and_trim_keep_every_trajectory(rollout):
    "Micro-batches must be rows of the batch and nothing else."
    part = select(rollout, [7, 1])
    assert part.columns["answer"] == ["1", "5"]
    assert part.completions == [rollout.completions[7], rollout.completions[1]]
    assert part.group_ids.tolist() == [2, 0]
    short = trim(part)
    assert short.completion_ids.shape[1] == part.lengths.max()
    assert short.prompt_mask[:, 0].any()
    for i, j in enumerate((7, 1)):
        n = int(part.lengths[i])
        assert torch.equal(state(short, i, n), state(rollout, j, n))


def test_generation_is_a_function_of_its_generator(pair):
    "A run can only be repeated if sampling does not read the global random state."
    student, _, tok = pair

    def sample(global_seed):
        torch.manual_seed(global_seed)
        return generate(student, tok, ["3+8="], num_generations=4, generator=seeded(5))

    assert torch.equal(sample(1).completion_ids, sample(2).completion_ids)


def test_truncation_is_reported(pair):
    "A completion that hit the limit is not finished, even when it took all that was allowed."
    student, _, tok = pair
    r = generate(student, tok, ["3+8*7-2="] * 4, max_completion_length=5, generator=seeded(0))
    assert r.truncated.all() and (r.lengths == 5).all() and (r.completion_mask == 1).all()
    r = generate(student, tok, ["3+8=", "3+8*7-2="], max_completion_length=25, temperature=0)
    assert r.terminated.all()
    for ids, n in zip(r.completion_ids, r.lengths.tolist()):
        assert ids[n - 1] == tok.eos_token_id
    exact = generate(student, tok, ["3+8="], max_completion_length=int(r.lengths[0]), temperature=0)
    assert exact.terminated.all()  # EOS as the last token allowed ends it properly


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_reported_log_probabilities_are_those_of_a_forward_pass(pair, temperature):
    "Ratios and KL estimates use them: at the sampling temperature and before top-p."
    student, _, tok = pair
    r = generate(
        student,
        tok,
        ["3+8*7-2=", "1*2="],
        num_generations=3,
        temperature=temperature,
        top_p=0.9,
        generator=seeded(0),
    )
    with torch.no_grad():
        fresh = token_logps(completion_logits(student, r), r.completion_ids, temperature)
    torch.testing.assert_close(masked(fresh, r.completion_mask), r.sampled_logps, rtol=0, atol=1e-4)


def test_greedy_and_tiny_top_p_agree(pair):
    "Two ways to ask for the most probable text must give it."
    student, _, tok = pair
    greedy = generate(student, tok, ["3+8*7-2="], temperature=0)
    nucleus = generate(student, tok, ["3+8*7-2="], top_p=1e-6, generator=seeded(3))
    assert torch.equal(greedy.completion_ids, nucleus.completion_ids)


@given(st.integers(0, 100), st.floats(0.05, 1.0))
def test_top_p_keeps_the_smallest_sufficient_set(seed, top_p):
    "Nucleus sampling must never leave the nucleus, and never empty it."
    logits = 3 * torch.randn(1, 6, generator=seeded(seed))
    p, order = logits.softmax(-1)[0].sort(descending=True)
    nucleus = set(order[: int((p.cumsum(0) - p < top_p).sum())].tolist())
    ids, _ = sample_token(logits.expand(200, 6), top_p=top_p, generator=seeded(seed))
    assert set(ids.tolist()) <= nucleus


def test_sampling_leaves_the_training_mode(pair):
    "Sampling in between must not switch dropout on or off for the caller."
    student, _, tok = pair
    for mode in (True, False):
        student.train(mode)
        generate(student, tok, ["3+8="])
        assert student.training is mode


def test_empty_rollout_columns():
    "A rollout without texts or columns can be selected from."
    ids = torch.ones(2, 3, dtype=torch.long)
    bare = Rollout(ids, ids, ids, ids, torch.tensor([True, True]))
    assert len(select(bare, [1])) == 1
