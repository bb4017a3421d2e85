"Rollouts: masks, selections, and what sampling reports."

import pytest
import torch
from cmdp_nbdev.cost import token_logps
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev.mdp import (
    Rollout,
    completion_mask,
    masked,
    position_ids,
    select,
    state,
    to_go,
    trajectory_cost,
    transition,
    trim,
)
from cmdp_nbdev.rollout import completion_logits, generate, sample_token


@given(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=5))
def test_mask_against_a_loop(rows):
    "One token too many or too few after EOS would charge the budget wrongly."
    for row, m in zip(rows, completion_mask(torch.tensor(rows), [1, 3]).tolist()):
        n = next((i + 1 for i, x in enumerate(row) if x in (1, 3)), 4)
        assert m == [1] * n + [0] * (4 - n)


@given(st.integers(0, 1000))
def test_to_go_and_cost_against_a_loop(seed):
    "Sums to the end, with NaN in the padding."
    g = torch.Generator().manual_seed(seed)
    x, n = (
        torch.rand(3, 5, generator=g, dtype=torch.float64),
        torch.randint(1, 6, (3,), generator=g),
    )
    mask = (torch.arange(5) < n[:, None]).long()
    x[mask == 0] = torch.nan
    for i in range(3):
        assert trajectory_cost(x, mask)[i].item() == pytest.approx(x[i, : n[i]].sum().item())
        for t in range(5):
            assert to_go(x, mask)[i, t].item() == pytest.approx(
                x[i, t : n[i]].sum().item() if t < n[i] else 0.0
            )


def test_masked_blocks_gradients():
    "NaN * 0 is NaN; masking must cut, not multiply."
    x = torch.tensor([1.0, torch.nan], requires_grad=True)
    masked(x, torch.tensor([1, 0])).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_left_padding_keeps_positions():
    "Padded prompts must see the same positions as alone."
    assert position_ids(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [
        [0, 0, 0, 1],
        [0, 1, 2, 3],
    ]


@pytest.fixture
def rollout(pair):
    student, _, tok = pair
    return generate(
        student,
        tok,
        ["3+8*7-2=", "1*2=", "9-9+1="],
        {"answer": ["5", "2", "1"]},
        3,
        20,
        generator=torch.Generator().manual_seed(0),
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
    assert (
        part.columns["answer"] == ["1", "5"]
        and part.completions == [rollout.completions[7], rollout.completions[1]]
        and part.group_ids.tolist() == [2, 0]
    )
    assert (
        trim(part).completion_ids.shape[1] == part.lengths.max()
        and trim(part).prompt_mask[:, 0].any()
    )
    for i, j in enumerate((7, 1)):
        assert torch.equal(
            state(trim(part), i, int(part.lengths[i])), state(rollout, j, int(part.lengths[i]))
        )


def test_generation_is_a_function_of_its_generator(pair):
    "A run can only be repeated if sampling does not read the global random state."
    student, _, tok = pair
    torch.manual_seed(1)
    a = generate(
        student, tok, ["3+8="], num_generations=4, generator=torch.Generator().manual_seed(5)
    )
    torch.manual_seed(2)
    b = generate(
        student, tok, ["3+8="], num_generations=4, generator=torch.Generator().manual_seed(5)
    )
    assert torch.equal(a.completion_ids, b.completion_ids)


def test_truncation_is_reported(pair):
    "A completion that hit the limit is not finished, even when its last token was the last one allowed."
    student, _, tok = pair
    r = generate(
        student,
        tok,
        ["3+8*7-2="] * 4,
        max_completion_length=5,
        generator=torch.Generator().manual_seed(0),
    )
    assert r.truncated.all() and (r.lengths == 5).all() and (r.completion_mask == 1).all()
    r = generate(student, tok, ["3+8=", "3+8*7-2="], max_completion_length=25, temperature=0)
    assert r.terminated.all() and all(
        r.completion_ids[i, n - 1] == tok.eos_token_id for i, n in enumerate(r.lengths.tolist())
    )
    exact = generate(student, tok, ["3+8="], max_completion_length=int(r.lengths[0]), temperature=0)
    assert exact.terminated.all()  # EOS as the last token allowed ends it properly


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_reported_log_probabilities_are_those_of_a_forward_pass(pair, temperature):
    "Ratios and KL estimates use what the sampler reported, at the sampling temperature and before top-p."
    student, _, tok = pair
    r = generate(
        student,
        tok,
        ["3+8*7-2=", "1*2="],
        num_generations=3,
        temperature=temperature,
        top_p=0.9,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        fresh = token_logps(completion_logits(student, r), r.completion_ids, temperature)
    torch.testing.assert_close(masked(fresh, r.completion_mask), r.sampled_logps, rtol=0, atol=1e-4)


def test_greedy_and_tiny_top_p_agree(pair):
    "Two ways to ask for the most probable text must give it."
    student, _, tok = pair
    greedy = generate(student, tok, ["3+8*7-2="], temperature=0)
    nucleus = generate(
        student, tok, ["3+8*7-2="], top_p=1e-6, generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(greedy.completion_ids, nucleus.completion_ids)


@given(st.integers(0, 100), st.floats(0.05, 1.0))
def test_top_p_keeps_the_smallest_sufficient_set(seed, top_p):
    "Nucleus sampling must never leave the nucleus, and never empty it."
    logits = 3 * torch.randn(1, 6, generator=torch.Generator().manual_seed(seed))
    p, order = logits.softmax(-1)[0].sort(descending=True)
    nucleus = set(order[: int((p.cumsum(0) - p < top_p).sum())].tolist())
    ids, _ = sample_token(
        logits.expand(200, 6), top_p=top_p, generator=torch.Generator().manual_seed(seed)
    )
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
    assert len(select(Rollout(ids, ids, ids, ids, torch.tensor([True, True])), [1])) == 1
