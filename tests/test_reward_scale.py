"The unit of the reward: ten times as large a reward must not be another method."

import pytest
from conftest import SMALL, gradients_of_step, relative

from cmdp_nbdev.model import default_pair
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPConfig, CMDPTrainer


def first_gradient(tmp_path, method: str, scale: float, **settings):
    "The gradient of the first update with the rewards times `scale`, over its norm."

    def scaled(prompts, completions, answer):
        return [scale * r for r in chain_reward(prompts, completions, answer)]

    student, teacher, tokenizer = default_pair()
    config = CMDPConfig(
        method=method,
        method_kwargs=settings,
        output_dir=str(tmp_path / f"{method}-{scale}-{len(settings)}"),
        correct_at=scale,
        **SMALL,
    )
    gradient = gradients_of_step(
        CMDPTrainer(student, teacher, scaled, config, chain_dataset(64), processing_class=tokenizer)
    )[1]
    return gradient / gradient.norm()


@pytest.mark.parametrize(
    "method, settings", [("cmdp-smooth", {}), ("soft", {"lam": 1.2}), ("hinge", {})]
)
def test_the_first_direction_does_not_depend_on_it(tmp_path, method, settings):
    "Else a user's multiplier, and so the divergence, would depend on whether right answers count 1 or 10."
    one = first_gradient(tmp_path, method, 1.0, **settings)
    for scale in (0.1, 10.0):
        change = relative(first_gradient(tmp_path, method, scale, **settings), one)
        assert (
            change < 1e-4 if method != "hinge" else change > 1e-2
        )  # the hinge adds nats to rewards: its coefficient has their unit


def test_without_a_deviation_the_coefficient_has_the_unit_of_the_reward(tmp_path):
    "The check above must be able to fail: a fixed lambda with advantages that are only centred is another method at another scale."
    directions = [
        first_gradient(tmp_path, "soft", scale, lam=0.5, scale_rewards="none")
        for scale in (0.1, 1.0, 10.0)
    ]
    assert (
        relative(directions[0], directions[1]) > 0.1
        and relative(directions[2], directions[1]) > 0.1
    )
