"The tabular laboratory: trees, their language model in production code, solvers cross-checked."

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import embedded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate_records
from cmdp_nbdev.model import check_pair, check_vocab, load_model, load_tokenizer
from cmdp_nbdev.rollout import Sampling, generate
from cmdp_nbdev.theory.tabular import (
    IMPOSSIBLE,
    TabularConfig,
    TreeCMDP,
    bisection,
    cutting_planes,
    dual_ascent,
    expected_optimum,
    hard_curve,
    hard_optimum,
    hinge_policy,
    law,
    max_divergence_optimum,
    occupancy_optimum,
    one_state,
    policy_of,
    random_policy,
    random_tree,
    refine,
    regularised_dual,
    soft_optimum,
    surprisal_optimum,
    tabular_dataset,
    tabular_lm,
    tabular_pair,
    tabular_reward,
    tilt,
    trajectory_index,
    within_budget,
)
from cmdp_nbdev.trainer import CMDPTrainer


def noise(*shape, seed=0):
    "Standard normal float64 numbers."
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numbers(*values):
    "A float64 tensor."
    return torch.tensor(values, dtype=torch.float64)


def worst(a, b):
    "The largest difference of two tensors."
    return (a - b).abs().max()


# ---- the tree in the production code -----------------------------------------------------------


def tabular_trainer(tmp_path, trees, logits, **config):
    "The production trainer on trees; completions of exactly `depth` actions unless told otherwise."
    student, teacher, tok = tabular_pair(trees, logits)
    args = dict(
        max_steps=3,
        per_device_train_batch_size=32,
        num_generations=16,
        max_completion_length=trees[0].depth,
        truncated_reward=None,
        learning_rate=0.05,
        output_dir=str(tmp_path / "run"),
        disable_tqdm=True,
        device="cpu",
        method="cmdp",
        budget=0.5,
    )
    args = embedded(**{**args, **config})
    prompts, reward = tabular_dataset(trees), tabular_reward(trees)
    return CMDPTrainer(student, teacher, reward, args, prompts, prompts, tok)


def observe(trainer):
    "Record the batches that the trainer's method sees."
    seen, original = [], trainer.signal

    def spy(batch, limit):
        seen.append(batch)
        return original(batch, limit)

    trainer.signal = spy
    return seen


def is_what_enumeration_says(batch, rows, tree, exact, index):
    "Are these rows of a batch those of the tree's law at the paths `index`?"
    pairs = (
        (batch.rewards, tree.rewards),
        (batch.cost[:, :3], exact.cost),
        (batch.logp[:, :3], exact.logp),
        (batch.teacher_logp[:, :3], exact.teacher_logp),
    )
    return all(worst(got[rows], want[index]) < 1e-10 for got, want in pairs)


@pytest.mark.parametrize("extra", [0, 1], ids=["actions only", "with EOS"])
def test_the_trainer_measures_what_enumeration_says(tmp_path, extra):
    "Rewards, costs and log-probabilities of the loop are those of the table, at every update."
    trees = [random_tree(0), random_tree(1)]
    cut_off = 0.0 if extra else None
    lengths = dict(max_completion_length=3 + extra, truncated_reward=cut_off)
    trainer = tabular_trainer(tmp_path, trees, noise(2, 13, 3), **lengths)
    seen = observe(trainer)
    for _ in range(3):
        table = trainer.model.table.detach().clone()
        trainer.step()
        batch, rollout = seen[-1], trainer.rollout
        assert set(rollout.columns["tree"]) == {0, 1}
        assert rollout.terminated.all() == bool(extra)
        assert rollout.completion_ids.shape == (32, 3 + extra)
        for k, tree in enumerate(trees):
            rows = torch.tensor(rollout.columns["tree"]) == k
            index = trajectory_index(tree, rollout.completion_ids[rows])
            assert is_what_enumeration_says(batch, rows, tree, law(tree, table[k]), index)
        assert batch.cost.dtype == torch.float64
        assert batch.cost[:, 3:].abs().sum() == 0
        assert batch.logp[:, 3:].abs().sum() == 0
        assert not torch.equal(table, trainer.model.table.detach())


def test_the_trainer_improves_the_exact_value(tmp_path):
    "Training must raise the exact expected reward, or the table would teach nothing about it."
    tree, start = random_tree(3), random_tree(3).teacher
    size = dict(max_steps=20, per_device_train_batch_size=128, num_generations=128)
    trainer = tabular_trainer(tmp_path, [tree], start, **size)
    trainer.train()
    after = law(tree, trainer.model.table[0].detach())
    assert after.value() > law(tree, start).value() + 0.1
    assert after.expect(after.cost.sum(-1)) > 0.05


def test_a_trained_table_is_an_ordinary_model_folder(tmp_path):
    "Saved by the trainer, loaded by path: same float64 table, same tokenizer, a pair as any other."
    tree = random_tree(4, vocab=4, depth=2)
    trainer = tabular_trainer(tmp_path, [tree], noise(5, 4))
    trainer.step()
    trainer.save_model(tmp_path / "student")
    again = load_model(tmp_path / "student", dtype="auto")
    tok = load_tokenizer(tmp_path / "student")
    assert again.table.dtype == torch.float64 and torch.equal(again.table, trainer.model.table)
    check_pair(tok, trainer.processing_class)
    check_vocab(again, tok, "student")
    assert again.config.actions == 4 and again.config.depth == 2
    records = evaluate_records(
        again,
        tabular_lm(tree),
        tabular_dataset(tree),
        tok,
        tabular_reward(tree),
        Budget(1.0),
        sampling=Sampling(num_generations=8, max_completion_length=3),
    )
    exact = law(tree, again.table[0].detach())
    for r in records:
        i = int(trajectory_index(tree, torch.tensor([r["completion_ids"]])))
        cost = [*exact.cost[i].tolist(), 0.0]
        assert r["terminated"] and r["reward"] == tree.rewards[i]
        assert r["cost_per_token"] == pytest.approx(cost, abs=1e-10)


@pytest.mark.parametrize("vocab,depth", [(2, 1), (2, 4), (3, 2), (4, 3)])
def test_samples_follow_the_table(vocab, depth):
    "The rollout samples trajectories with their exact probabilities, whatever the tree's shape."
    tree = random_tree(vocab + depth, vocab, depth)
    logits = noise(*tree.teacher.shape)
    student, _, tok = tabular_pair(tree, logits)
    sampling = Sampling(num_generations=20000, max_completion_length=depth + 1)
    generator = torch.Generator().manual_seed(0)
    rollout = generate(student, tok, ["<0>"], sampling=sampling, generator=generator)
    index, exact = trajectory_index(tree, rollout.completion_ids), law(tree, logits)
    assert rollout.terminated.all()
    assert worst(rollout.sampled_logps.sum(-1), exact.logp.sum(-1)[index]) < 1e-10
    expected = exact.prob * 20000
    counts = index.bincount(minlength=len(tree.rewards))
    chi2 = ((counts - expected).square() / expected).sum()
    assert chi2 < len(expected) + 5 * (2 * len(expected)) ** 0.5
    assert rollout.completions[0] == " ".join(map(str, tree.paths[index[0]].tolist()))


# ---- exact solvers -----------------------------------------------------------------------------

SHAPES = [(v, t) for v in (2, 3, 4) for t in (1, 2, 3, 4)]
shapes, seeds = st.sampled_from(SHAPES), st.integers(0, 10**6)
limits = st.one_of(st.just(0.0), st.floats(1e-6, 3.0), st.just(math.inf))


def spends(tree, logits):
    "What every trajectory spends of a budget on the state KL."
    return law(tree, logits).spent(Budget(math.inf))


def value_of(tree, logits):
    "The expected reward of a policy."
    return float(law(tree, logits).value())


@given(seeds, st.integers(2, 5), st.one_of(limits, st.floats(0, 1e-6)), st.booleans())
def test_tilt_is_feasible_and_no_rival_beats_it(seed, vocab, kl, ties):
    "Every solver stands on this: a tilt that overspends or leaves something falsifies all of them."
    mu, worth = noise(40, vocab, seed=seed).log_softmax(-1), noise(40, vocab, seed=seed + 1)
    if ties:
        worth[:, 1] = worth.max(-1).values
        worth[:, 0] = worth[:, 1]

    def cost(logp):
        return (logp.exp() * (logp - mu)).sum(-1)

    def earned(logp):
        return (logp.exp() * worth).sum(-1)

    logp, price = tilt(mu, worth, torch.full((40,), kl, dtype=torch.float64))
    assert (cost(logp) <= kl + 1e-12).all() and (price >= 0).all()
    assert torch.allclose(logp.exp().sum(-1), torch.ones(40, dtype=torch.float64))
    rival = (logp + 0.2 * noise(50, 40, vocab, seed=seed + 2)).log_softmax(-1)
    no_better = earned(rival) - earned(logp) <= 1e-9
    assert (no_better | (cost(rival) > kl)).all()
    if kl == math.inf:
        assert torch.allclose(earned(logp), worth.max(-1).values) and (price == 0).all()
    if kl == 0:
        assert torch.equal(logp, mu)
    if ties:  # equally good answers keep the teacher's proportion
        assert torch.allclose(logp[:, 0] - logp[:, 1], mu[:, 0] - mu[:, 1], atol=1e-9)


@given(shapes, seeds)
def test_a_law_over_trajectories_is_a_policy(shape, seed):
    "Closed forms are laws over trajectories; as logits they must be the same law, zeros included."
    tree = random_tree(seed, *shape)
    paths = len(tree.rewards)
    prob = noise(paths, seed=seed).softmax(-1) * (torch.arange(paths) % 3 != 1)
    prob = prob / prob.sum()
    assert worst(law(tree, policy_of(tree, prob)).prob, prob) < 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hard_optimum_on_every_shape(shape):
    "Feasible, between random policies and the expected-KL optimum, growing with d, and certified."
    tree, before = random_tree(sum(shape), *shape, binary=shape[0] != 3), -math.inf
    for d in (0.0, 0.05, 0.4, math.inf):
        o = hard_optimum(tree, d, grid=24 if tree.depth == 4 else 48)
        expected = expected_optimum(tree, d).value
        assert spends(tree, o.logits).max() <= d + 1e-9
        assert abs(value_of(tree, o.logits) - o.value) < 1e-12
        assert before - 1e-9 <= o.value <= o.bound + 1e-12
        assert o.value <= expected + 1e-9
        assert value_of(tree, random_policy(tree, d, 200)) <= o.value + 1e-9
        if d == 0:
            assert abs(o.value - value_of(tree, tree.teacher)) < 1e-12
        if d == math.inf:
            assert o.value == pytest.approx(float(tree.rewards.max()), abs=1e-12)
        if tree.depth == 1:
            assert o.value == pytest.approx(expected, abs=1e-9)
        before = o.value


@settings(max_examples=8)
@given(st.sampled_from([(2, 2), (2, 3), (3, 2), (4, 2)]), seeds, st.floats(0.02, 1.0))
def test_hard_optimum_agrees_with_constrained_optimisation(shape, seed, d):
    "SLSQP knows nothing of tilts, grids or Bellman equations: the same value, never a better one."
    tree = random_tree(seed, *shape)
    starts = [random_policy(tree, d, 300, seed=k) for k in (0, 1)]
    found = max(value_of(tree, refine(tree, start, d)) for start in starts)
    assert -1e-3 < found - hard_optimum(tree, d).value < 1e-6


def test_bounds_close_in_as_the_grid_grows():
    "An upper bound that did not come down would certify nothing."
    tree, gaps = random_tree(6), []
    exact, half = hard_optimum(tree, 0.5).value, hard_optimum(tree, 0.25).value
    for grid in (16, 32, 64):
        z, lower, upper = hard_curve(tree, 0.5, grid)
        middle = grid // 2
        gaps.append(float((upper - lower)[-1]))
        assert (lower <= upper + 1e-12).all() and float(z[middle]) == 0.25
        assert lower[-1] <= exact + 1e-9 <= upper[-1] + 2e-9
        assert lower[middle] <= half + 1e-9 <= upper[middle] + 2e-9
        assert lower[middle] > half - 5e-3
    assert all(a > 1.7 * b for a, b in zip(gaps, gaps[1:])) and gaps[-1] < 1e-2


def test_ties_keep_the_teacher():
    "Nothing to gain: nothing spent. Equally good answers are not played off against each other."
    tree = random_tree(0)
    flat = TreeCMDP(tree.teacher, torch.full((27,), 0.5, dtype=torch.float64), 3)
    for d in (0.0, 0.3, math.inf):
        o = hard_optimum(flat, d)
        assert o.value == pytest.approx(0.5, abs=1e-12)
        if d < 1:
            assert spends(flat, o.logits).max() < 1e-12 and o.prices.max() < 1e-12
    pair = TreeCMDP(numbers([0.5, 0.3, 0.2]).log(), numbers(0.0, 1.0, 1.0), 1)
    enough = -math.log(0.5) + 1e-9
    for solve in (hard_optimum, expected_optimum, max_divergence_optimum):
        o = solve(pair, enough)
        assert o.value == pytest.approx(1.0)
        assert torch.allclose(o.logits.exp()[0], numbers(0.0, 0.6, 0.4))


def test_what_the_teacher_cannot_say_is_never_bought():
    "A reward where the teacher has probability 0 costs infinitely much, not a finite stand-in."
    row = numbers([math.log(0.7), math.log(0.3), IMPOSSIBLE])
    tree = TreeCMDP(row, numbers(0.0, 0.5, 1.0), 1)
    for solve in (hard_optimum, expected_optimum, max_divergence_optimum, surprisal_optimum):
        for d in (1.3, 5.0, math.inf):
            o = solve(tree, d)
            assert o.value == pytest.approx(0.5) and o.logits[0, 2].exp() == 0
    with pytest.raises(ValueError, match="IMPOSSIBLE"):
        TreeCMDP(row.masked_fill(row < -1, -math.inf), tree.rewards, 1)


@given(shapes, seeds, st.floats(0, 3))
def test_max_divergence_is_a_linear_program(shape, seed, d):
    "Filling by reward is the optimum of the program it claims to solve, for rewards of any value."
    tree = random_tree(seed, *shape, binary=False)
    mu, o = law(tree, tree.teacher).prob.numpy(), max_divergence_optimum(tree, d)
    caps = [(0, math.exp(d) * m) for m in mu]
    lp = linprog(-tree.rewards.numpy(), A_eq=[[1.0] * len(mu)], b_eq=[1], bounds=caps)
    assert o.value == pytest.approx(-lp.fun, abs=1e-7)
    ratio = law(tree, o.logits, "log_ratio")
    assert ratio.spent(Budget(d)).max() <= d + 1e-9
    prefixes = ratio.cost.cumsum(-1)[ratio.prob > 0]
    assert prefixes.max() <= d + 1e-9


@given(shapes, seeds, st.floats(0.5, 6))
def test_surprisal_optimum_is_the_best_allowed_trajectory(shape, seed, d):
    "With a cost that no policy changes, the best trajectory within the limit is the answer."
    tree = random_tree(seed, *shape, binary=False)
    allowed = law(tree, tree.teacher, "surprisal").cost.sum(-1) <= d
    if not allowed.any():
        with pytest.raises(ValueError, match="allow no trajectory"):
            surprisal_optimum(tree, d)
        return
    o = surprisal_optimum(tree, d)
    assert o.value == pytest.approx(float(tree.rewards[allowed].max()))
    assert law(tree, o.logits, "surprisal").violation(Budget(d)) == 0


@given(seeds, st.floats(0.05, 20))
def test_a_price_solves_the_expected_problem_for_what_it_spends(seed, lam):
    "For the expected limit some multiplier is exact; the two closed forms must say so."
    tree = random_tree(seed, binary=False)
    soft = soft_optimum(tree, lam)
    spent = float(law(tree, soft.logits).expect(spends(tree, soft.logits)))
    hard = expected_optimum(tree, spent)
    assert hard.value == pytest.approx(soft.value, abs=1e-7)
    assert float(hard.prices) == pytest.approx(lam, rel=1e-3)


# ---- costs that no policy changes: the linear program and its dual -----------------------------


def totals_of(tree, costs):
    "The cost of every trajectory, (m, B)."
    return costs[:, tree.nodes, tree.paths].sum(-1)


def best_mixture(tree, totals, limits):
    "Knows nothing of flows: every basis of the program over trajectories and slacks is tried."
    m = len(limits)
    A = np.block([[totals, np.eye(m)], [np.ones((1, totals.shape[1])), np.zeros((1, m))]])
    bases = np.array(list(itertools.combinations(range(A.shape[1]), m + 1)))
    B = A[:, bases].transpose(1, 0, 2)
    regular = np.abs(np.linalg.det(B)) > 1e-9
    right = np.tile(np.append(limits, 1.0)[:, None], (int(regular.sum()), 1, 1))
    x = np.linalg.solve(B[regular], right)[..., 0]
    earned = (x * np.append(tree.rewards, np.zeros(m))[bases[regular]]).sum(1)
    return earned[(x >= -1e-12).all(1)].max()


@given(st.sampled_from([(2, 1), (2, 3), (3, 2), (3, 3), (4, 2)]), seeds, st.integers(1, 2))
def test_occupancy_program_equals_enumeration(shape, seed, m):
    "The program over flows and the best mixture of trajectories are one problem: equal to 1e-8."
    tree = random_tree(seed, *shape, binary=False)
    costs = noise(m, *tree.teacher.shape, seed=seed)
    totals = totals_of(tree, costs)
    limit = totals @ noise(len(tree.rewards), seed=seed + 1).softmax(-1)
    o = occupancy_optimum(tree, costs, limit)
    assert abs(o.value - best_mixture(tree, totals.numpy(), limit.numpy())) < 1e-8
    assert abs(o.value - o.bound) < 1e-8
    assert (totals @ law(tree, o.logits).prob <= limit + 1e-8).all() and (o.prices >= 0).all()


def scipy_minimum(dual, m):
    "The minimum of a dual by a general-purpose minimiser."

    def value_and_slope(x):
        return dual.solve(x)[:2]

    how = dict(method="L-BFGS-B", bounds=[(0, None)] * m, options={"ftol": 1e-14, "gtol": 1e-10})
    return minimize(value_and_slope, np.zeros(m), jac=True, **how).fun


@settings(max_examples=10)
@given(seeds, st.integers(1, 3), st.sampled_from([1.0, 0.1, 0.02]))
def test_regularised_dual_is_minimised_and_tends_to_the_program(seed, m, temperature):
    "Three minimisers find one minimum, within a temperature's reach of the linear program."
    tree = random_tree(seed, binary=False)
    costs = noise(m, 13, 3, seed=seed)
    likely = law(tree, tree.teacher).prob ** 2
    limit = totals_of(tree, costs) @ (likely / likely.sum()) + 0.02
    dual = regularised_dual(tree, costs, limit, temperature)
    lam, values = cutting_planes(dual)
    other = scipy_minimum(dual, m)
    assert abs(min(values) - other) < 2e-6
    assert (lam >= 0).all() and lam.sum() <= dual.radius + 1e-9
    if m == 1:
        assert abs(min(bisection(dual)[1]) - other) < 2e-6
    assert min(dual_ascent(dual, 50)[1]) >= other - 1e-9
    top = occupancy_optimum(tree, costs, limit).value
    reach = temperature * law(tree, tree.teacher, "surprisal").cost.sum(-1).max()
    assert top - reach - 1e-6 <= other <= top + 1e-6


def test_cutting_planes_says_when_it_gave_up():
    "A gap that is too large must not be returned as an answer."
    dual = regularised_dual(random_tree(0), noise(3, 13, 3), [0.0, 0.0, 0.0], 0.1)
    with pytest.raises(RuntimeError, match="max_cuts=2"):
        cutting_planes(dual, 1e-9, max_cuts=2)


# ---- the witnesses -----------------------------------------------------------------------------


@given(shapes, seeds, limits)
def test_mixing_with_the_teacher_makes_any_policy_fit(shape, seed, d):
    "What comes out fits on every trajectory, and what fitted before comes out unchanged."
    tree = random_tree(seed, *shape)
    mixed = within_budget(tree, tree.teacher + 3 * noise(3, *tree.teacher.shape, seed=seed), d)
    for logits in mixed:
        assert spends(tree, logits).max() <= d + 1e-9
    assert worst(within_budget(tree, mixed, d).exp(), mixed.exp()) < 1e-6
    if d == 0:
        assert worst(mixed.exp(), tree.teacher.exp()) < 1e-12


def test_hinge_is_exact_above_the_price_only():
    "With too small a coefficient it overspends; with a large enough one it reaches the optimum."
    tree, d = random_tree(2, 2, 3), 0.2
    o = hard_optimum(tree, d)
    last_step = o.prices[tree.nodes[:, -1]]
    mean = float(law(tree, o.logits).expect(last_step))
    enough = hinge_policy(tree, d, 1.5 * float(o.prices.max()))
    too_little = hinge_policy(tree, d, 0.5 * mean)
    assert abs(value_of(tree, within_budget(tree, enough, d)) - o.value) < 1e-3
    assert spends(tree, enough).max() < d + 1e-3
    assert spends(tree, too_little).max() > d + 0.05


# ---- bad input ---------------------------------------------------------------------------------


def dual_of(tree, costs, limits, temperature=1.0):
    return regularised_dual(tree, costs, limits, temperature)


BAD = {
    "hard-negative": (lambda t: hard_optimum(t, -1.0), "nats >= 0"),
    "hard-nan": (lambda t: hard_optimum(t, math.nan), "nats >= 0"),
    "hard-no-grid": (lambda t: hard_optimum(t, 0.5, grid=0), "grid"),
    "hard-half-a-grid": (lambda t: hard_optimum(t, 0.5, grid=2.5), "grid"),
    "curve-infinite": (lambda t: hard_curve(t, math.inf), "finite"),
    "curve-zero": (lambda t: hard_curve(t, 0.0), "> 0"),
    "expected-negative": (lambda t: expected_optimum(t, -1e-9), "nats >= 0"),
    "soft-no-price": (lambda t: soft_optimum(t, 0), "lam"),
    "surprisal-too-little": (lambda t: surprisal_optimum(t, 0.01), "allow no trajectory"),
    "lp-shape": (lambda t: occupancy_optimum(t, t.teacher[:2], [1.0]), "costs"),
    "lp-limits": (
        lambda t: occupancy_optimum(t, -t.teacher, [1.0, 2.0]),
        "one finite number for each",
    ),
    "lp-infeasible": (lambda t: occupancy_optimum(t, -t.teacher, [0.01]), "no policy"),
    "lp-nan": (lambda t: occupancy_optimum(t, -t.teacher, [math.nan]), "limits"),
    "dual-infeasible": (lambda t: dual_of(t, -t.teacher, [0.01]), "strictly"),
    "dual-temperature": (lambda t: dual_of(t, -t.teacher, [9.0], -1.0), "temperature"),
    "bisection-two": (lambda t: bisection(dual_of(t, noise(2, 13, 3), [9.0, 9.0])), "one limit"),
    "bisection-tol": (lambda t: bisection(dual_of(t, -t.teacher, [3.0]), 0.0), "tol"),
    "within-negative": (lambda t: within_budget(t, t.teacher, -1.0), "nats >= 0"),
    "hinge-negative": (lambda t: hinge_policy(t, -1.0), "nats >= 0"),
    "hinge-coef": (lambda t: hinge_policy(t, 1.0, 0.0), "coef"),
    "random-none": (lambda t: random_policy(t, 1.0, 0), "samples"),
    "one-state": (lambda t: one_state(0.0), "strictly between"),
    "tree-vocab": (lambda t: random_tree(0, vocab=1), "vocab"),
    "tree-depth": (lambda t: random_tree(0, depth=0), "depth"),
    "lm-none": (lambda t: tabular_lm([]), "at least one"),
    "lm-two-shapes": (lambda t: tabular_lm([t, random_tree(0, 2, 3)]), "one vocabulary"),
    "lm-logits": (lambda t: tabular_lm(t, torch.zeros(2, 13, 3)), "logits must be"),
    "lm-actions": (lambda t: TabularConfig(actions=1), "actions"),
}


@pytest.mark.parametrize("call,says", BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call, says):
    "One clear error, before anything is computed."
    with pytest.raises(ValueError, match=says):
        call(random_tree(0))
