"Sauté's safety state, augmented policies and the projections: edges, invariances, errors."

import pytest
import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.theory.augmentation import (
    AugmentedPolicy,
    action_costs,
    augmented_law,
    cap_to_teacher,
    history_policy,
    project_to_teacher,
    restrict_to_budget,
    saute_budget,
    saute_reward,
    saute_state,
)
from cmdp_nbdev.theory.tabular import COSTS, law, max_divergence_optimum, policy_of, random_tree

BUDGETS = [
    Budget(0.2),
    Budget(0.1, "mean"),
    Budget(0.1, "prefix_mean"),
    Budget(0.1, "prefix_mean", burn_in=1),
    Budget(0.1, "prefix_mean", burn_in=9),
]


def name(b):
    return f"{b.aggregate}-{b.burn_in}"


def noise(*shape, seed):
    "Standard normal float64 numbers."
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def policy(tree, seed=0):
    "Random logits for a tree."
    return 1.5 * noise(*tree.teacher.shape, seed=100 + seed)


def numbers(*values):
    "A float64 tensor."
    return torch.tensor(values, dtype=torch.float64)


# ---- the safety state --------------------------------------------------------------------------


def test_padding_does_not_move_the_safety_state():
    "A short completion in a padded batch would seem to earn budget back, or to go on spending."
    cost, mask = torch.tensor([[0.2, 0.3, 7.0, -7.0]]), torch.tensor([[1, 1, 0, 0]])
    z = saute_state(cost, mask, 1.0, discount=0.5)
    assert torch.equal(z[0, 2:], z[0, 2].expand(3)) and z[0, 2] == ((1 - 0.2) / 0.5 - 0.3) / 0.5
    assert saute_reward(torch.ones(1, 4), z, mask).tolist() == [[1, 1, 0, 0]]


def test_an_all_masked_row_keeps_its_budget():
    "An empty completion has spent nothing."
    z = saute_state(torch.full((1, 2), 9.0), torch.zeros(1, 2), 0.5)
    assert z.tolist() == [[0.5, 0.5, 0.5]]


def test_negative_costs_give_back():
    "A log-ratio budget may recover; clamping at the limit would lose what was earned."
    z = saute_state(torch.tensor([[-1.0, 1.5]]), torch.ones(1, 2), 1.0)
    assert z.tolist() == [[1.0, 2.0, 0.5]]


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.3])
def test_normalising_changes_the_unit_only(discount):
    "A policy trained on z in [0, 1] would otherwise mean another budget."
    cost, mask = torch.rand(5, 6, dtype=torch.float64), torch.ones(5, 6)
    z = saute_state(cost, mask, 0.7, discount)
    u = saute_state(cost, mask, 0.7, discount, normalised=True)
    assert torch.allclose(z, 0.7 * u, atol=1e-12) and torch.equal(z >= 0, u >= 0)
    assert torch.allclose(u, saute_state(cost / 0.7, mask, 1.0, discount), atol=1e-9)


@pytest.mark.parametrize("discount", [1.0, 0.99, 0.5])
def test_the_rescaled_budget_is_the_published_formula(discount):
    "Budgets of published runs would be read wrongly."
    T = 20
    published = 3.0 if discount == 1 else 3.0 * (1 - discount**T) / (1 - discount) / T
    assert saute_budget(3.0, discount, T) == pytest.approx(published, rel=1e-12)


def test_gradient_reaches_costs_through_the_safety_state():
    "z must be usable in a loss."
    cost = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    left = saute_state(cost, torch.ones(2, 3), 1.0, 0.5)[:, -1]
    (g,) = torch.autograd.grad(left.sum(), cost)
    assert torch.allclose(g, -numbers(8.0, 4.0, 2.0).expand(2, 3))


# ---- augmented policies ------------------------------------------------------------------------


@pytest.mark.parametrize("cost", COSTS)
def test_action_costs_are_the_costs_of_the_law(cost):
    "Two definitions of one cost would drift apart."
    tree = random_tree(1)
    logits = policy(tree)
    table = action_costs(logits, tree.teacher, cost)
    assert torch.allclose(table[tree.nodes, tree.paths], law(tree, logits, cost).cost, atol=1e-12)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("vocab, depth", [(2, 1), (4, 2), (2, 5)])
def test_theorem_a_on_other_shapes(cost, vocab, depth):
    "The notebook tests three steps; one step and five must agree as well."
    tree = random_tree(2, vocab=vocab, depth=depth)
    rows = noise(len(tree.teacher), 4, vocab, seed=3)
    augmented = AugmentedPolicy(rows, numbers(-0.3, 0.1, 0.4))
    rolled, z = augmented_law(tree, augmented, 0.5, cost, discount=0.8)
    history = law(tree, history_policy(tree, augmented, 0.5, cost, discount=0.8), cost)
    assert torch.allclose(rolled.prob, history.prob, atol=1e-12)
    assert torch.allclose(rolled.cost, history.cost, atol=1e-12)
    assert torch.allclose(z, saute_state(history.cost, tree.mask, 0.5, 0.8), atol=1e-10)


def test_the_policy_gradient_is_the_same_with_and_without_z():
    "Training the augmented table and reading off the history policy must not lose the gradient."
    tree = random_tree(4, vocab=2)
    table = noise(len(tree.teacher), 3, 2, seed=1).requires_grad_()
    augmented = AugmentedPolicy(table, numbers(0.1, 0.3))
    (one,) = torch.autograd.grad(augmented_law(tree, augmented, 0.5)[0].value(), table)
    history = law(tree, history_policy(tree, augmented, 0.5))
    (other,) = torch.autograd.grad(history.value(), table)
    assert torch.allclose(one, other, atol=1e-12) and one.abs().max() > 1e-3


# ---- projections -------------------------------------------------------------------------------

TO_TEACHER = {
    "fallback": (project_to_teacher, "reverse_kl"),
    "cap": (cap_to_teacher, "log_ratio"),
}
PROJECTIONS = {**TO_TEACHER, "restrict": (restrict_to_budget, "surprisal")}


@pytest.mark.parametrize("budget", BUDGETS, ids=name)
@pytest.mark.parametrize("project, cost", TO_TEACHER.values(), ids=TO_TEACHER)
def test_projections_are_feasible_and_leave_feasible_policies_alone(project, cost, budget):
    "A projection that changes what was fine, or leaves a violation, proves nothing."
    for seed in range(10):
        tree = random_tree(seed)
        after = project(tree, policy(tree, seed), budget)
        assert law(tree, after, cost).violation(budget) < 1e-12
        again = law(tree, project(tree, after, budget.scaled(1 + 1e-9)), cost)
        assert torch.allclose(again.prob, law(tree, after, cost).prob, atol=1e-9)


@pytest.mark.parametrize("project, cost", TO_TEACHER.values(), ids=TO_TEACHER)
def test_no_budget_gives_the_teacher(project, cost):
    "With d = 0 nothing but the teacher is feasible."
    tree = random_tree(5)
    p = law(tree, project(tree, policy(tree), Budget(0.0)), cost)
    assert torch.allclose(p.prob, law(tree, tree.teacher).prob, atol=1e-9)


@pytest.mark.parametrize("project, cost", PROJECTIONS.values(), ids=PROJECTIONS)
def test_an_infinite_budget_changes_nothing(project, cost):
    "The unconstrained case must be reachable."
    tree = random_tree(6)
    logits = policy(tree)
    after = law(tree, project(tree, logits, Budget(float("inf"))), cost)
    assert torch.allclose(after.prob, law(tree, logits).prob, atol=1e-12)


def test_the_cap_handles_deterministic_policies():
    "Mass 0 on most prefixes is where a division by zero would hide."
    tree = random_tree(7)
    logits = torch.where(torch.arange(3) == 0, 0.0, -1e4).expand(13, 3).double()
    for budget in BUDGETS:
        after = law(tree, cap_to_teacher(tree, logits, budget), "log_ratio")
        assert after.prob.isfinite().all() and after.violation(budget) < 1e-12
    # as much of it as the cap allows, and the rest elsewhere
    assert after.prob[0] > law(tree, tree.teacher).prob[0]


def test_the_cap_reaches_the_optimum_from_success():
    "Capping the policy that always succeeds gives the optimum of the cap, for a binary reward."
    tree = random_tree(8)
    teacher = law(tree, tree.teacher)
    success = (teacher.logp.sum(-1) + 1e3 * (tree.rewards - 1)).softmax(-1)
    after = law(tree, cap_to_teacher(tree, policy_of(tree, success), Budget(0.3)))
    best = max_divergence_optimum(tree, 0.3).value
    assert after.value().item() == pytest.approx(best, abs=1e-9)
    assert float(teacher.value()) < after.value()


def test_teacher_fallback_reads_the_remaining_budget():
    "For a sum it is the decoding rule: the teacher's row where the own KL exceeds z."
    tree = random_tree(9)
    logits, budget = policy(tree), Budget(0.6)
    after = law(tree, project_to_teacher(tree, logits, budget))
    z, own = saute_state(after.cost, tree.mask, 0.6)[:, :-1], law(tree, logits).cost
    assert torch.equal(after.cost == 0, own > z)


def test_discounted_fallback_keeps_the_discounted_sum():
    "Later costs weigh less, so the policy may keep more of its own rows."
    tree, budget = random_tree(10), Budget(0.6)
    logits, weights = policy(tree), 0.5 ** torch.arange(3, dtype=torch.float64)
    plain = law(tree, project_to_teacher(tree, logits, budget))
    discounted = law(tree, project_to_teacher(tree, logits, budget, 0.5))
    assert (discounted.cost @ weights <= 0.6 + 1e-12).all()
    assert plain.spent(budget).max() <= 0.6
    assert (saute_state(discounted.cost, tree.mask, 0.6, 0.5) >= -1e-9).all()


# ---- bad input ---------------------------------------------------------------------------------

TREE, ONES = random_tree(0), torch.ones(1, 2)
PER_PATH = Budget(torch.ones(27))


def state(limit, **settings):
    return saute_state(ONES, ONES, limit, **settings)


BAD = {
    "limit-negative": (lambda: state(-1.0), "limit"),
    "limit-nan": (lambda: state(float("nan")), "limit"),
    "discount-zero": (lambda: state(1.0, discount=0.0), "discount"),
    "discount-above-1": (lambda: state(1.0, discount=1.1), "discount"),
    "normalised-zero": (lambda: state(0.0, normalised=True), "limit is 0"),
    "horizon": (lambda: saute_budget(1.0, 0.9, 0), "horizon"),
    "penalty": (lambda: saute_reward(ONES, torch.ones(1, 3), ONES, n=-1.0), "penalty"),
    "cost": (lambda: action_costs(torch.zeros(2, 3), torch.zeros(2, 3), "k3"), "choose one of"),
    "edges-number": (
        lambda: AugmentedPolicy(torch.zeros(4, 3, 2), torch.zeros(3)),
        r"edges \(K-1,\)",
    ),
    "edges-order": (
        lambda: AugmentedPolicy(torch.zeros(4, 3, 2), torch.tensor([0.5, 0.2])),
        "increasing",
    ),
    "fallback-limits": (
        lambda: project_to_teacher(TREE, TREE.teacher, PER_PATH),
        "limit must be a number",
    ),
    "cap-limits": (
        lambda: cap_to_teacher(TREE, TREE.teacher, PER_PATH),
        "limit must be a number",
    ),
    "restrict-limits": (
        lambda: restrict_to_budget(TREE, TREE.teacher, PER_PATH),
        "limit must be a number",
    ),
    "fallback-discount": (
        lambda: project_to_teacher(TREE, TREE.teacher, Budget(1.0), discount=2.0),
        "discount",
    ),
    "restrict-none-left": (
        lambda: restrict_to_budget(TREE, TREE.teacher, Budget(0.0)),
        "cheapest spends",
    ),
}


@pytest.mark.parametrize("call, words", BAD.values(), ids=BAD)
def test_bad_input_names_the_argument(call, words):
    "An error that does not say what was wrong costs an hour."
    with pytest.raises(ValueError, match=words):
        call()
