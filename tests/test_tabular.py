"The tabular laboratory: trees, their language model in the production code, exact solvers against each other."

import itertools
import math

import numpy as np
import pytest
import torch
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
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.evaluate import evaluate_records
from cmdp_nbdev.model import check_pair, check_vocab, load_model, load_tokenizer
from cmdp_nbdev.rollout import generate
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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
    return CMDPTrainer(
        student,
        teacher,
        tabular_reward(trees),
        CMDPConfig(**{**args, **config}),
        tabular_dataset(trees),
        tabular_dataset(trees),
        tok,
    )


def observe(trainer):
    "Record the batches that the trainer's method sees."
    seen, original = [], trainer._global_batch

    def spy(*args):
        out = original(*args)
        seen.append(out[0])
        return out

    trainer._global_batch = spy
    return seen


@pytest.mark.parametrize("extra", [0, 1], ids=["actions only", "with EOS"])
def test_the_trainer_measures_what_enumeration_says(tmp_path, extra):
    "Rewards, costs and log-probabilities of the production loop must be those of the table, to the last digits, at every update."
    trees = [random_tree(0), random_tree(1)]
    trainer = tabular_trainer(
        tmp_path,
        trees,
        noise(2, 13, 3),
        max_completion_length=3 + extra,
        truncated_reward=None if not extra else 0.0,
    )
    seen = observe(trainer)
    for _ in range(3):
        table = trainer.model.table.detach().clone()
        trainer.step()
        batch, rollout = seen[-1], trainer.rollout
        assert (
            set(rollout.columns["tree"]) == {0, 1}
            and rollout.terminated.all() == bool(extra)
            and rollout.completion_ids.shape == (32, 3 + extra)
        )
        for k, tree in enumerate(trees):
            rows = torch.tensor(rollout.columns["tree"]) == k
            exact, index = law(tree, table[k]), trajectory_index(tree, rollout.completion_ids[rows])
            for got, want in (
                (batch.rewards, tree.rewards),
                (batch.cost[:, :3], exact.cost),
                (batch.logp[:, :3], exact.logp),
                (batch.teacher_logp[:, :3], exact.teacher_logp),
            ):
                assert (got[rows] - want[index]).abs().max() < 1e-10
        assert (
            batch.cost.dtype == torch.float64
            and batch.cost[:, 3:].abs().sum() == 0
            and batch.logp[:, 3:].abs().sum() == 0
        )
        assert not torch.equal(table, trainer.model.table.detach())


def test_the_trainer_improves_the_exact_value(tmp_path):
    "Training must raise the exact expected reward, or the tabular model would teach nothing about the trainer."
    tree, start = random_tree(3), random_tree(3).teacher
    trainer = tabular_trainer(
        tmp_path, [tree], start, max_steps=20, per_device_train_batch_size=128, num_generations=128
    )
    trainer.train()
    after = law(tree, trainer.model.table[0].detach())
    assert (
        after.value() > law(tree, start).value() + 0.1 and after.expect(after.cost.sum(-1)) > 0.05
    )


def test_a_trained_table_is_an_ordinary_model_folder(tmp_path):
    "Saved by the trainer, loaded by path: same table in float64, same tokenizer, and the trainer accepts the folder."
    tree = random_tree(4, vocab=4, depth=2)
    trainer = tabular_trainer(tmp_path, [tree], noise(5, 4))
    trainer.step()
    trainer.save_model(tmp_path / "student")
    again, tok = (
        load_model(tmp_path / "student", dtype="auto"),
        load_tokenizer(tmp_path / "student"),
    )
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
        num_generations=8,
        max_completion_length=3,
    )
    exact = law(tree, again.table[0].detach())
    for r in records:
        i = int(trajectory_index(tree, torch.tensor([r["completion_ids"]])))
        assert (
            r["terminated"]
            and r["reward"] == tree.rewards[i]
            and r["cost_per_token"] == pytest.approx([*exact.cost[i].tolist(), 0.0], abs=1e-10)
        )


@pytest.mark.parametrize("vocab,depth", [(2, 1), (2, 4), (3, 2), (4, 3)])
def test_samples_follow_the_table(vocab, depth):
    "The rollout must sample the trajectories of the table with their exact probabilities, whatever the shape of the tree."
    tree = random_tree(vocab + depth, vocab, depth)
    logits = noise(*tree.teacher.shape)
    student, _, tok = tabular_pair(tree, logits)
    rollout = generate(
        student,
        tok,
        ["<0>"],
        num_generations=20000,
        max_completion_length=depth + 1,
        generator=torch.Generator().manual_seed(0),
    )
    index, exact = trajectory_index(tree, rollout.completion_ids), law(tree, logits)
    assert (
        rollout.terminated.all()
        and (rollout.sampled_logps.sum(-1) - exact.logp.sum(-1)[index]).abs().max() < 1e-10
    )
    expected = exact.prob * 20000
    chi2 = ((index.bincount(minlength=len(tree.rewards)) - expected).square() / expected).sum()
    assert chi2 < len(expected) + 5 * (2 * len(expected)) ** 0.5
    assert rollout.completions[0] == " ".join(map(str, tree.paths[index[0]].tolist()))


# ---- exact solvers --------------------------------------------------------------------------------------------------

SHAPES = [(v, t) for v in (2, 3, 4) for t in (1, 2, 3, 4)]
shapes, seeds = st.sampled_from(SHAPES), st.integers(0, 10**6)
limits = st.one_of(st.just(0.0), st.floats(1e-6, 3.0), st.just(math.inf))


def spends(tree, logits):
    return law(tree, logits).spent(Budget(math.inf))


@given(seeds, st.integers(2, 5), st.one_of(limits, st.floats(0, 1e-6)), st.booleans())
def test_tilt_is_feasible_and_no_rival_beats_it(seed, vocab, kl, ties):
    "Every solver stands on this; a tilt that overspends or leaves something on the table falsifies all of them."
    mu, worth = noise(40, vocab, seed=seed).log_softmax(-1), noise(40, vocab, seed=seed + 1)
    if ties:
        worth[:, 1] = worth.max(-1).values
        worth[:, 0] = worth[:, 1]

    def cost(logp):
        return (logp.exp() * (logp - mu)).sum(-1)

    logp, price = tilt(mu, worth, torch.full((40,), kl, dtype=torch.float64))
    mean = (logp.exp() * worth).sum(-1)
    assert (
        (cost(logp) <= kl + 1e-12).all()
        and (price >= 0).all()
        and torch.allclose(logp.exp().sum(-1), torch.ones(40, dtype=torch.float64))
    )
    rival = (logp + 0.2 * noise(50, 40, vocab, seed=seed + 2)).log_softmax(-1)
    assert ((((rival.exp() * worth).sum(-1) - mean) <= 1e-9) | (cost(rival) > kl)).all()
    if kl == math.inf:
        assert torch.allclose(mean, worth.max(-1).values) and (price == 0).all()
    if kl == 0:
        assert torch.equal(logp, mu)
    if ties:
        assert torch.allclose(
            logp[:, 0] - logp[:, 1], mu[:, 0] - mu[:, 1], atol=1e-9
        )  # equally good answers keep the teacher's proportion


@given(shapes, seeds)
def test_a_law_over_trajectories_is_a_policy(shape, seed):
    "Closed forms are laws over trajectories; turned into logits they must be the same law, zeros included."
    tree = random_tree(seed, *shape)
    prob = noise(len(tree.rewards), seed=seed).softmax(-1) * (
        torch.arange(len(tree.rewards)) % 3 != 1
    )
    prob = prob / prob.sum()
    assert (law(tree, policy_of(tree, prob)).prob - prob).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hard_optimum_on_every_shape(shape):
    "Feasible on every trajectory, between random feasible policies and the expected-KL optimum, growing with the budget, and certified by its bound."
    tree, before = random_tree(sum(shape), *shape, binary=shape[0] != 3), -math.inf
    for d in (0.0, 0.05, 0.4, math.inf):
        o = hard_optimum(tree, d, grid=24 if tree.depth == 4 else 48)
        assert (
            spends(tree, o.logits).max() <= d + 1e-9
            and abs(float(law(tree, o.logits).value()) - o.value) < 1e-12
        )
        assert (
            before - 1e-9 <= o.value <= o.bound + 1e-12
            and o.value <= expected_optimum(tree, d).value + 1e-9
        )
        assert law(tree, random_policy(tree, d, 200)).value() <= o.value + 1e-9
        if d == 0:
            assert abs(o.value - float(law(tree, tree.teacher).value())) < 1e-12
        if d == math.inf:
            assert o.value == pytest.approx(float(tree.rewards.max()), abs=1e-12)
        if tree.depth == 1:
            assert o.value == pytest.approx(expected_optimum(tree, d).value, abs=1e-9)
        before = o.value


@settings(max_examples=8)
@given(st.sampled_from([(2, 2), (2, 3), (3, 2), (4, 2)]), seeds, st.floats(0.02, 1.0))
def test_hard_optimum_agrees_with_constrained_optimisation(shape, seed, d):
    "SLSQP knows nothing of tilts, grids or Bellman equations; it must find the same value, and never a better one."
    tree = random_tree(seed, *shape)
    o = hard_optimum(tree, d)
    found = max(
        float(law(tree, refine(tree, random_policy(tree, d, 300, seed=k), d)).value())
        for k in (0, 1)
    )
    assert o.value - 1e-3 < found < o.value + 1e-6


def test_bounds_close_in_as_the_grid_grows():
    "An upper bound that did not come down would certify nothing."
    tree, gaps = random_tree(6), []
    exact, half = hard_optimum(tree, 0.5).value, hard_optimum(tree, 0.25).value
    for grid in (16, 32, 64):
        z, lower, upper = hard_curve(tree, 0.5, grid)
        gaps.append(float((upper - lower)[-1]))
        assert (lower <= upper + 1e-12).all() and lower[-1] <= exact + 1e-9 <= upper[-1] + 2e-9
        assert (
            float(z[grid // 2]) == 0.25
            and lower[grid // 2] <= half + 1e-9 <= upper[grid // 2] + 2e-9
            and lower[grid // 2] > half - 5e-3
        )
    assert all(a > 1.7 * b for a, b in zip(gaps, gaps[1:])) and gaps[-1] < 1e-2


def test_ties_keep_the_teacher():
    "Where nothing is to be gained nothing may be spent, and equally good answers must not be played off against each other."
    tree = random_tree(0)
    flat = TreeCMDP(tree.teacher, torch.full((27,), 0.5, dtype=torch.float64), 3)
    for d in (0.0, 0.3, math.inf):
        o = hard_optimum(flat, d)
        assert o.value == pytest.approx(0.5, abs=1e-12)
        if d < 1:
            assert spends(flat, o.logits).max() < 1e-12 and o.prices.max() < 1e-12
    pair = TreeCMDP(
        torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log(),
        torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64),
        1,
    )
    enough = -math.log(0.5)
    for o in (
        hard_optimum(pair, enough + 1e-9),
        expected_optimum(pair, enough + 1e-9),
        max_divergence_optimum(pair, enough + 1e-9),
    ):
        assert o.value == pytest.approx(1.0) and torch.allclose(
            o.logits.exp()[0], torch.tensor([0.0, 0.6, 0.4], dtype=torch.float64)
        )


def test_what_the_teacher_cannot_say_is_never_bought():
    "A reward on a token of teacher probability 0 costs infinitely much; no finite stand-in may make it affordable."
    row = torch.tensor([[math.log(0.7), math.log(0.3), IMPOSSIBLE]], dtype=torch.float64)
    tree = TreeCMDP(row, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 1)
    for solve in (hard_optimum, expected_optimum, max_divergence_optimum, surprisal_optimum):
        for d in (1.3, 5.0, math.inf):
            assert (
                solve(tree, d).value == pytest.approx(0.5)
                and solve(tree, d).logits[0, 2].exp() == 0
            )
    with pytest.raises(ValueError, match="IMPOSSIBLE"):
        TreeCMDP(row.masked_fill(row < -1, -math.inf), tree.rewards, 1)


@given(shapes, seeds, st.floats(0, 3))
def test_max_divergence_is_a_linear_program(shape, seed, d):
    "Filling by reward must be the optimum of the program it claims to solve, for rewards of any value."
    tree = random_tree(seed, *shape, binary=False)
    mu, o = law(tree, tree.teacher).prob.numpy(), max_divergence_optimum(tree, d)
    lp = linprog(
        -tree.rewards.numpy(),
        A_eq=[[1.0] * len(mu)],
        b_eq=[1],
        bounds=[(0, math.exp(d) * m) for m in mu],
    )
    assert o.value == pytest.approx(-lp.fun, abs=1e-7)
    assert law(tree, o.logits, "log_ratio").spent(Budget(d)).max() <= d + 1e-9
    assert (
        law(tree, o.logits, "log_ratio").cost.cumsum(-1)[law(tree, o.logits).prob > 0].max()
        <= d + 1e-9
    )  # every prefix, too


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
    assert (
        o.value == pytest.approx(float(tree.rewards[allowed].max()))
        and law(tree, o.logits, "surprisal").violation(Budget(d)) == 0
    )


@given(seeds, st.floats(0.05, 20))
def test_a_price_solves_the_expected_problem_for_what_it_spends(seed, lam):
    "For the expected limit some multiplier is exact; the two closed forms must say so."
    tree = random_tree(seed, binary=False)
    soft = soft_optimum(tree, lam)
    spent = float(law(tree, soft.logits).expect(spends(tree, soft.logits)))
    hard = expected_optimum(tree, spent)
    assert hard.value == pytest.approx(soft.value, abs=1e-7) and float(
        hard.prices
    ) == pytest.approx(lam, rel=1e-3)


def best_mixture(tree, totals, limits):
    "Independent of flows: the best mixture of trajectories, every basis of the program over trajectories and slacks tried."
    m = len(limits)
    A = np.block([[totals, np.eye(m)], [np.ones((1, totals.shape[1])), np.zeros((1, m))]])
    bases = np.array(list(itertools.combinations(range(A.shape[1]), m + 1)))
    B = A[:, bases].transpose(1, 0, 2)
    regular = np.abs(np.linalg.det(B)) > 1e-9
    x = np.linalg.solve(
        B[regular], np.tile(np.append(limits, 1.0)[:, None], (int(regular.sum()), 1, 1))
    )[..., 0]
    return (
        (x * np.append(tree.rewards, np.zeros(m))[bases[regular]])
        .sum(1)[(x >= -1e-12).all(1)]
        .max()
    )


@given(st.sampled_from([(2, 1), (2, 3), (3, 2), (3, 3), (4, 2)]), seeds, st.integers(1, 2))
def test_occupancy_program_equals_enumeration(shape, seed, m):
    "The linear program over flows and the best mixture of trajectories are one problem; they must agree to 1e-8."
    tree = random_tree(seed, *shape, binary=False)
    costs = noise(m, *tree.teacher.shape, seed=seed)
    totals = costs[:, tree.nodes, tree.paths].sum(-1)
    limit = totals @ noise(len(tree.rewards), seed=seed + 1).softmax(-1)
    o = occupancy_optimum(tree, costs, limit)
    assert (
        abs(o.value - best_mixture(tree, totals.numpy(), limit.numpy())) < 1e-8
        and abs(o.value - o.bound) < 1e-8
    )
    assert (totals @ law(tree, o.logits).prob <= limit + 1e-8).all() and (o.prices >= 0).all()


@settings(max_examples=10)
@given(seeds, st.integers(1, 3), st.sampled_from([1.0, 0.1, 0.02]))
def test_regularised_dual_is_minimised_and_tends_to_the_program(seed, m, temperature):
    "Cutting planes, bisection and a general-purpose minimiser must find one minimum, within a temperature's reach of the linear program."
    tree = random_tree(seed, binary=False)
    costs = noise(m, 13, 3, seed=seed)
    totals = costs[:, tree.nodes, tree.paths].sum(-1)
    limit = (
        totals @ (law(tree, tree.teacher).prob ** 2 / (law(tree, tree.teacher).prob ** 2).sum())
        + 0.02
    )
    dual = regularised_dual(tree, costs, limit, temperature)
    lam, values = cutting_planes(dual)
    other = minimize(
        lambda x: dual.solve(x)[:2],
        np.zeros(m),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * m,
        options={"ftol": 1e-14, "gtol": 1e-10},
    ).fun
    assert abs(min(values) - other) < 2e-6 and (lam >= 0).all() and lam.sum() <= dual.radius + 1e-9
    if m == 1:
        assert abs(min(bisection(dual)[1]) - other) < 2e-6
    assert min(dual_ascent(dual, 50)[1]) >= other - 1e-9
    top, reach = (
        occupancy_optimum(tree, costs, limit).value,
        temperature * law(tree, tree.teacher, "surprisal").cost.sum(-1).max(),
    )
    assert top - reach - 1e-6 <= other <= top + 1e-6


@given(shapes, seeds, limits)
def test_mixing_with_the_teacher_makes_any_policy_fit(shape, seed, d):
    "The random search stands on it: what comes out fits on every trajectory, and what fitted before comes out unchanged."
    tree = random_tree(seed, *shape)
    mixed = within_budget(tree, tree.teacher + 3 * noise(3, *tree.teacher.shape, seed=seed), d)
    for logits in mixed:
        assert spends(tree, logits).max() <= d + 1e-9
    assert (within_budget(tree, mixed, d).exp() - mixed.exp()).abs().max() < 1e-6
    if d == 0:
        assert (mixed.exp() - tree.teacher.exp()).abs().max() < 1e-12


def test_hinge_is_exact_above_the_price_only():
    "An exact penalty with too small a coefficient overspends; with a large enough one it reaches the hard optimum."
    tree, d = random_tree(2, 2, 3), 0.2
    o = hard_optimum(tree, d)
    mean = float(
        law(tree, o.logits).expect(o.prices[tree.nodes[:, -1]])
    )  # of the last step's prices
    enough, too_little = (
        hinge_policy(tree, d, 1.5 * float(o.prices.max())),
        hinge_policy(tree, d, 0.5 * mean),
    )
    assert (
        abs(float(law(tree, within_budget(tree, enough, d)).value()) - o.value) < 1e-3
        and spends(tree, enough).max() < d + 1e-3
    )
    assert spends(tree, too_little).max() > d + 0.05


@pytest.mark.parametrize(
    "call,says",
    [
        (lambda t: hard_optimum(t, -1.0), "nats >= 0"),
        (lambda t: hard_optimum(t, math.nan), "nats >= 0"),
        (lambda t: expected_optimum(t, -1e-9), "nats >= 0"),
        (lambda t: hard_optimum(t, 0.5, grid=0), "grid"),
        (lambda t: hard_curve(t, math.inf), "finite"),
        (lambda t: hard_curve(t, 0.0), "> 0"),
        (lambda t: soft_optimum(t, 0), "lam"),
        (lambda t: surprisal_optimum(t, 0.01), "allow no trajectory"),
        (lambda t: occupancy_optimum(t, t.teacher[:2], [1.0]), "costs"),
        (lambda t: occupancy_optimum(t, -t.teacher, [1.0, 2.0]), "one finite number for each"),
        (lambda t: occupancy_optimum(t, -t.teacher, [0.01]), "no policy"),
        (lambda t: occupancy_optimum(t, -t.teacher, [math.nan]), "limits"),
        (lambda t: regularised_dual(t, -t.teacher, [0.01], 1.0), "strictly"),
        (lambda t: regularised_dual(t, -t.teacher, [9.0], -1.0), "temperature"),
        (lambda t: bisection(regularised_dual(t, noise(2, 13, 3), [9.0, 9.0], 1.0)), "one limit"),
        (lambda t: within_budget(t, t.teacher, -1.0), "nats >= 0"),
        (lambda t: hinge_policy(t, -1.0), "nats >= 0"),
        (lambda t: hinge_policy(t, 1.0, 0.0), "coef"),
        (lambda t: one_state(0.0), "strictly between"),
        (lambda t: tabular_lm([]), "at least one"),
        (lambda t: tabular_lm([t, random_tree(0, 2, 3)]), "one vocabulary"),
        (lambda t: tabular_lm(t, torch.zeros(2, 13, 3)), "logits must be"),
        (lambda t: random_tree(0, vocab=1), "vocab"),
        (lambda t: random_tree(0, depth=0), "depth"),
        (lambda t: random_policy(t, 1.0, 0), "samples"),
        (lambda t: hard_optimum(t, 0.5, grid=2.5), "grid"),
        (lambda t: bisection(regularised_dual(t, -t.teacher, [3.0], 1.0), 0.0), "tol"),
        (lambda t: TabularConfig(actions=1), "actions"),
    ],
)
def test_bad_arguments_are_named(call, says):
    "One clear error, before anything is computed."
    with pytest.raises(ValueError, match=says):
        call(random_tree(0))


def test_cutting_planes_says_when_it_gave_up():
    "A gap that is too large must not be returned as an answer."
    dual = regularised_dual(random_tree(0), noise(3, 13, 3), [0.0, 0.0, 0.0], 0.1)
    with pytest.raises(RuntimeError, match="max_cuts=2"):
        cutting_planes(dual, 1e-9, max_cuts=2)
