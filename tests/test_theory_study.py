"The committed results of studies/theory are complete, possible, and what the script computes."

import json
import math
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "studies" / "theory"))
import study  # noqa: E402

ROWS = study.read()


def test_every_job_is_there():
    "A method that was left out, or a tree on which it failed, would make the table a selection."
    jobs = {
        (m, json.dumps(s), b, share)
        for m, s, d, share in study.plan()
        for b in (study.BUDGETS if d is None else (d,))
    }
    assert {study.key(r) for r in ROWS} == jobs
    assert len(ROWS) == len(jobs) * len(study.SEEDS) * len(study.STARTS)
    assert len(study.SEEDS) >= 8 and len(study.BUDGETS) >= 3


def test_same_effort_for_all():
    "Unequal steps or rates would decide the comparison."
    assert {(r["steps"], r["learning_rate"]) for r in ROWS} == {(study.STEPS, study.LEARNING_RATE)}


def test_no_feasible_policy_beats_the_optimum():
    "An optimum that is beaten is none, and every share in the tables would be wrong."
    feasible = [r for r in ROWS if not math.isnan(r["best_feasible"])]
    assert len(feasible) > 1000
    assert all(r["best_feasible"] <= r["optimum"] + 1e-5 for r in feasible)
    assert all(r["final_violation"] > 0 or r["final_value"] <= r["optimum"] + 1e-5 for r in ROWS)


@pytest.mark.slow
def test_a_job_gives_its_rows_again():
    "Whoever reruns a row must get it (a smooth method: where a gate chatters, rounding may change the last digits)."
    job = next(j for j in study.plan() if j[0] == "cmdp-rate" and j[2] == 0.5)
    old = [r for r in ROWS if study.key(r) == (job[0], json.dumps(job[1]), job[2], job[3])]
    for a, b in zip(old, study.train(study.Forest(), *job), strict=True):
        assert (a["seed"], a["start"]) == (b["seed"], b["start"])
        for k in ("final_value", "final_violation", "best_feasible"):
            assert a[k] == pytest.approx(b[k], abs=1e-4), k
