"The committed results of studies/theory are complete, possible, and what the script computes."

import math
import sys

import pytest
import torch
from conftest import ROOT

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.objective import Batch, Signal, signal_loss
from cmdp_nbdev.reward import smooth_gate
from cmdp_nbdev.theory.tabular import law, random_tree

sys.path.insert(0, str(ROOT / "studies" / "theory"))
import study  # noqa: E402

ROWS = study.read()


def test_every_job_is_there():
    "A method left out, or a tree on which it failed, would make the table a selection."
    keys = [key for job in study.plan() for key in job.keys]
    assert {study.key(row) for row in ROWS} == set(keys)
    assert len(keys) == len(set(keys))
    assert len(ROWS) == len(keys) * len(study.SEEDS) * len(study.STARTS)
    assert len(study.SEEDS) >= 8 and len(study.BUDGETS) >= 3


def test_same_effort_for_all():
    "Unequal steps or rates would decide the comparison."
    effort = {(row["steps"], row["learning_rate"]) for row in ROWS}
    assert effort == {(study.STEPS, study.LEARNING_RATE)}


def test_no_feasible_policy_beats_the_optimum():
    "An optimum that is beaten is none, and every share in the tables would be wrong."
    feasible = [row for row in ROWS if not math.isnan(row["best_feasible"])]
    assert len(feasible) > 1000
    assert all(row["best_feasible"] <= row["optimum"] + 1e-5 for row in feasible)
    kept = [row for row in ROWS if not row["final_violation"] > 0]
    assert all(row["final_value"] <= row["optimum"] + 1e-5 for row in kept)


def test_the_tables_are_those_of_the_file(capsys):
    "Numbers in README.md that the file does not hold could not be checked."
    study.table()
    tables = capsys.readouterr().out.strip()
    readme = (ROOT / "studies" / "theory" / "README.md").read_text(encoding="utf-8")
    assert readme.strip().endswith(tables)


def expected_gradient(tree, logits, method, limit, **settings):
    "Gradient of a method's production loss, every trajectory weighted by its probability."
    theta = logits.clone().requires_grad_()
    p = law(tree, theta)
    seen = {"divergence": p.cost.detach()}
    group = torch.zeros(len(tree.rewards))
    batch = Batch(tree.rewards, group, tree.mask, p.logp.detach(), p.teacher_logp, seen)
    signal = method(batch, Budget(limit), {}, scale_rewards="none", **settings)
    weight = p.prob.detach()
    weighted = Signal(signal.advantage * weight, signal.multiplier * weight[:, None])
    costs = {"divergence": p.cost}
    loss = signal_loss(weighted, p.logp, costs, tree.mask, num_tokens=1)
    return -torch.autograd.grad(loss, theta)[0]


def test_the_fixed_gate_has_the_gradient_of_its_objective():
    "The gate held fixed: the reward it leaves, minus the price times the divergence."
    for seed in range(50):
        tree = random_tree(seed)
        noise = torch.randn(13, 3, generator=torch.Generator().manual_seed(seed))
        logits = tree.teacher + 1.2 * noise.double()
        limit = float(law(tree, logits).cost.sum(-1).quantile(0.45))
        theta = logits.clone().requires_grad_()
        p = law(tree, theta)
        D = p.cost.sum(-1)
        gate = smooth_gate(D.detach() / limit, 0.9, 0.15)
        objective = p.expect((1 - gate) * tree.rewards - (0.3 + 3.0 * gate) * (D - D.detach()))
        (exact,) = torch.autograd.grad(objective, theta)
        found = expected_gradient(tree, logits, study.METHODS["smooth-gate"], limit, **study.GATE)
        assert (found - exact).abs().max() < 1e-10


@pytest.mark.slow
def test_a_job_gives_its_rows_again():
    "Whoever reruns a row must get it (a smooth method: where a gate chatters, rounding decides)."
    job = next(j for j in study.plan() if j.method == "cmdp-rate" and j.budget == 0.5)
    old = [row for row in ROWS if study.key(row) in job.keys]
    for a, b in zip(old, study.train(study.Forest(), job), strict=True):
        assert (a["seed"], a["start"]) == (b["seed"], b["start"])
        for column in ("final_value", "final_violation", "best_feasible"):
            assert a[column] == pytest.approx(b[column], abs=1e-4), column
