"What a price per nat leads to: the closed form against the law of whole completions."

import numpy as np
import pytest

from cmdp_nbdev.task import Flaw
from cmdp_nbdev.theory.price import judged, outcomes, priced, prompt_kinds

TWO = "1+1*7*7="  # two flawed steps


@pytest.mark.parametrize("lam", [0.05, 0.3, 2.0])
def test_the_optimum_is_the_teacher_reweighted(lam):
    "Of all trajectories at once: probability proportional to the teacher's times exp(R / lam)."
    right = outcomes(TWO)
    weight = np.exp(right / lam)
    value, probability, spent = priced(right, lam)
    np.testing.assert_allclose(probability, weight / weight.sum(), rtol=1e-9)
    assert value == pytest.approx(lam * np.log(weight.mean()))
    assert (probability * (right - lam * spent)).sum() == pytest.approx(value)


def test_a_dear_nat_leaves_the_teacher_and_a_cheap_one_the_right_answer():
    "And what the right answer spends then: log 2 a flawed step."
    right = outcomes(TWO)
    assert judged(right, 1e6, 0.1) == pytest.approx((1, right.mean()), abs=1e-5)
    assert judged(right, 0.01, 2 * np.log(2) + 1e-6) == pytest.approx((1, 1))
    assert judged(right, 0.01, 2 * np.log(2) - 1e-6)[1] < 1e-9


def test_kinds_share_their_outcomes():
    "Prompts that a price cannot tell apart are one kind, with the share of all of them."
    prompts = ["1+1+1=", "2-1+3=", "1+1*7=", "2+2*5=", TWO]
    examples, kinds, shares = prompt_kinds(prompts)
    assert examples == ["1+1+1=", "1+1*7=", TWO]
    assert [kind.ndim for kind in kinds] == [0, 1, 2]
    np.testing.assert_allclose(shares, [0.4, 0.4, 0.2])
    nobody = Flaw(prob=0.5, min_operand=10)
    assert len(prompt_kinds(prompts, nobody)[1]) == 1


def test_bad_input():
    "One sentence that names the argument."
    with pytest.raises(ValueError, match="lam must be > 0.*got 0"):
        priced(outcomes(TWO), 0)
    with pytest.raises(ValueError, match="prompts must hold at least one"):
        prompt_kinds([])
