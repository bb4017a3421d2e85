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

AGGREGATES = [
    Budget(0.2),
    Budget(0.1, "mean"),
    Budget(0.1, "prefix_mean"),
    Budget(0.1, "prefix_mean", burn_in=1),
    Budget(0.1, "prefix_mean", burn_in=9),
]


def name(b):
    return f"{b.aggregate}-{b.burn_in}"


def policy(tree, seed=0, scale=1.5):
    "Random logits for a tree."
    return scale * torch.randn(
        tree.teacher.shape, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64
    )


def test_padding_does_not_move_the_safety_state():
    "A short completion in a padded batch would seem to earn budget back (discount) or to go on spending."
    cost, mask = torch.tensor([[0.2, 0.3, 7.0, -7.0]]), torch.tensor([[1, 1, 0, 0]])
    z = saute_state(cost, mask, 1.0, discount=0.5)
    assert torch.equal(z[0, 2:], z[0, 2].expand(3)) and z[0, 2] == ((1 - 0.2) / 0.5 - 0.3) / 0.5
    assert saute_reward(torch.ones(1, 4), z, mask).tolist() == [[1, 1, 0, 0]]


def test_an_all_masked_row_keeps_its_budget():
    "An empty completion has spent nothing."
    assert saute_state(torch.full((1, 2), 9.0), torch.zeros(1, 2), 0.5).tolist() == [
        [0.5, 0.5, 0.5]
    ]


def test_negative_costs_give_back():
    "A log-ratio budget may recover; clamping at the limit would lose what was earned."
    z = saute_state(torch.tensor([[-1.0, 1.5]]), torch.ones(1, 2), 1.0)
    assert z.tolist() == [[1.0, 2.0, 0.5]]


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.3])
def test_normalising_changes_the_unit_only(discount):
    "A policy trained on z in [0, 1] would otherwise mean another budget."
    cost, mask = torch.rand(5, 6, dtype=torch.float64), torch.ones(5, 6)
    z, u = (
        saute_state(cost, mask, 0.7, discount),
        saute_state(cost, mask, 0.7, discount, normalised=True),
    )
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
    (g,) = torch.autograd.grad(saute_state(cost, torch.ones(2, 3), 1.0, 0.5)[:, -1].sum(), cost)
    assert torch.allclose(g, -torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64).expand(2, 3))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: saute_state(torch.ones(1, 2), torch.ones(1, 2), -1.0), "limit"),
        (lambda: saute_state(torch.ones(1, 2), torch.ones(1, 2), float("nan")), "limit"),
        (
            lambda: project_to_teacher(
                random_tree(0), random_tree(0).teacher, Budget(torch.ones(27))
            ),
            "limit must be a number",
        ),
        (
            lambda: cap_to_teacher(random_tree(0), random_tree(0).teacher, Budget(torch.ones(27))),
            "limit must be a number",
        ),
        (
            lambda: restrict_to_budget(
                random_tree(0), random_tree(0).teacher, Budget(torch.ones(27))
            ),
            "limit must be a number",
        ),
        (lambda: saute_state(torch.ones(1, 2), torch.ones(1, 2), 1.0, discount=0.0), "discount"),
        (lambda: saute_state(torch.ones(1, 2), torch.ones(1, 2), 1.0, discount=1.1), "discount"),
        (
            lambda: saute_state(torch.ones(1, 2), torch.ones(1, 2), 0.0, normalised=True),
            "limit is 0",
        ),
        (lambda: saute_budget(1.0, 0.9, 0), "horizon"),
        (
            lambda: saute_reward(torch.ones(1, 2), torch.ones(1, 3), torch.ones(1, 2), n=-1.0),
            "penalty",
        ),
        (lambda: action_costs(torch.zeros(2, 3), torch.zeros(2, 3), "k3"), "choose one of"),
        (lambda: AugmentedPolicy(torch.zeros(4, 3, 2), torch.zeros(3)), r"edges \(K-1,\)"),
        (lambda: AugmentedPolicy(torch.zeros(4, 3, 2), torch.tensor([0.5, 0.2])), "increasing"),
        (
            lambda: project_to_teacher(
                random_tree(0), random_tree(0).teacher, Budget(1.0), discount=2.0
            ),
            "discount",
        ),
        (
            lambda: restrict_to_budget(random_tree(0), random_tree(0).teacher, Budget(0.0)),
            "cheapest spends",
        ),
    ],
)
def test_bad_input_names_the_argument(call, words):
    "An error that does not say what was wrong costs an hour."
    with pytest.raises(ValueError, match=words):
        call()


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
    g = torch.Generator().manual_seed(3)
    augmented = AugmentedPolicy(
        torch.randn(len(tree.teacher), 4, vocab, generator=g, dtype=torch.float64),
        torch.tensor([-0.3, 0.1, 0.4], dtype=torch.float64),
    )
    rolled, z = augmented_law(tree, augmented, 0.5, cost, discount=0.8)
    history = law(tree, history_policy(tree, augmented, 0.5, cost, discount=0.8), cost)
    assert torch.allclose(rolled.prob, history.prob, atol=1e-12) and torch.allclose(
        rolled.cost, history.cost, atol=1e-12
    )
    assert torch.allclose(z, saute_state(history.cost, tree.mask, 0.5, 0.8), atol=1e-10)


def test_the_policy_gradient_is_the_same_with_and_without_z():
    "Training the augmented table and reading off the history policy must not lose the gradient."
    tree = random_tree(4, vocab=2)
    g = torch.Generator().manual_seed(1)
    table = torch.randn(
        len(tree.teacher), 3, 2, generator=g, dtype=torch.float64, requires_grad=True
    )
    augmented = AugmentedPolicy(table, torch.tensor([0.1, 0.3], dtype=torch.float64))
    (one,) = torch.autograd.grad(augmented_law(tree, augmented, 0.5)[0].value(), table)
    (other,) = torch.autograd.grad(law(tree, history_policy(tree, augmented, 0.5)).value(), table)
    assert torch.allclose(one, other, atol=1e-12) and one.abs().max() > 1e-3


PROJECTIONS = [(project_to_teacher, "reverse_kl"), (cap_to_teacher, "log_ratio")]


@pytest.mark.parametrize("budget", AGGREGATES, ids=name)
@pytest.mark.parametrize("project, cost", PROJECTIONS, ids=["fallback", "cap"])
def test_projections_are_feasible_and_leave_feasible_policies_alone(project, cost, budget):
    "A projection that changes what was fine, or leaves a violation, proves nothing."
    for seed in range(10):
        tree = random_tree(seed)
        after = project(tree, policy(tree, seed), budget)
        assert law(tree, after, cost).violation(budget) < 1e-12
        again = law(tree, project(tree, after, budget.scaled(1 + 1e-9)), cost)
        assert torch.allclose(again.prob, law(tree, after, cost).prob, atol=1e-9)


@pytest.mark.parametrize("project, cost", PROJECTIONS, ids=["fallback", "cap"])
def test_no_budget_gives_the_teacher(project, cost):
    "With d = 0 nothing but the teacher is feasible."
    tree = random_tree(5)
    p = law(tree, project(tree, policy(tree), Budget(0.0)), cost)
    assert torch.allclose(p.prob, law(tree, tree.teacher).prob, atol=1e-9)


@pytest.mark.parametrize(
    "project, cost",
    [*PROJECTIONS, (restrict_to_budget, "surprisal")],
    ids=["fallback", "cap", "restrict"],
)
def test_an_infinite_budget_changes_nothing(project, cost):
    "The unconstrained case must be reachable."
    tree = random_tree(6)
    logits = policy(tree)
    assert torch.allclose(
        law(tree, project(tree, logits, Budget(float("inf"))), cost).prob,
        law(tree, logits).prob,
        atol=1e-12,
    )


def test_the_cap_handles_deterministic_policies():
    "Mass 0 on most prefixes is where a division by zero would hide."
    tree = random_tree(7)
    logits = torch.where(torch.arange(3) == 0, 0.0, -1e4).expand(13, 3).double()
    for budget in AGGREGATES:
        after = law(tree, cap_to_teacher(tree, logits, budget), "log_ratio")
        assert after.prob.isfinite().all() and after.violation(budget) < 1e-12
    assert (
        after.prob[0] > law(tree, tree.teacher).prob[0]
    )  # as much of it as the cap allows, and the rest elsewhere


def test_the_cap_reaches_the_optimum_from_success():
    "Capping the policy that always succeeds gives the max-divergence optimum for a binary reward."
    tree = random_tree(8)
    q = float(law(tree, tree.teacher).value())
    success = (law(tree, tree.teacher).logp.sum(-1) + 1e3 * (tree.rewards - 1)).softmax(-1)
    after = law(tree, cap_to_teacher(tree, policy_of(tree, success), Budget(0.3)))
    assert (
        after.value().item() == pytest.approx(max_divergence_optimum(tree, 0.3).value, abs=1e-9)
        and q < after.value()
    )


def test_teacher_fallback_reads_the_remaining_budget():
    "For a sum it is the decoding rule: the teacher's row where the own KL exceeds z."
    tree = random_tree(9)
    logits, budget = policy(tree), Budget(0.6)
    after = law(tree, project_to_teacher(tree, logits, budget))
    z, own = saute_state(after.cost, tree.mask, 0.6)[:, :-1], law(tree, logits).cost
    assert torch.equal(after.cost == 0, own > z)


def test_discounted_fallback_keeps_the_discounted_sum():
    "Later costs weigh less, so the policy may keep more of its own rows."
    tree = random_tree(10)
    logits, weights = policy(tree), 0.5 ** torch.arange(3, dtype=torch.float64)
    plain, discounted = (
        law(tree, project_to_teacher(tree, logits, Budget(0.6), g)) for g in (1.0, 0.5)
    )
    assert (discounted.cost @ weights <= 0.6 + 1e-12).all() and plain.spent(
        Budget(0.6)
    ).max() <= 0.6
    assert (saute_state(discounted.cost, tree.mask, 0.6, 0.5) >= -1e-9).all()
