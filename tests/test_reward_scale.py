"The unit of the reward: ten times as large a reward must not be another method."

import pytest
from conftest import SMALL, embedded, gradients_of_step, relative

from cmdp_nbdev.model import default_pair
from cmdp_nbdev.task import chain_dataset, chain_reward
from cmdp_nbdev.trainer import CMDPTrainer


def first_gradient(tmp_path, method: str, scale: float, **settings):
    "The gradient of the first update with the rewards times `scale`, over its norm."

    def scaled(prompts, completions, answer):
        return [scale * r for r in chain_reward(prompts, completions, answer)]

    student, teacher, tokenizer = default_pair()
    config = embedded(
        method=method,
        method_kwargs=settings,
        output_dir=str(tmp_path / f"{method}-{scale}-{len(settings)}"),
        correct_at=scale,
        **SMALL,
    )
    data = chain_dataset(64)
    trainer = CMDPTrainer(student, teacher, scaled, config, data, processing_class=tokenizer)
    _, gradient = gradients_of_step(trainer)
    return gradient / gradient.norm()


@pytest.mark.parametrize("scale", [0.1, 10.0])
@pytest.mark.parametrize("method, settings", [("cmdp-rate", {}), ("soft", {"lam": 1.2})])
def test_the_first_direction_does_not_depend_on_it(tmp_path, method, settings, scale):
    "Else a user's multiplier would depend on whether right answers count 1 or 10."
    one = first_gradient(tmp_path, method, 1.0, **settings)
    assert relative(first_gradient(tmp_path, method, scale, **settings), one) < 1e-4


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_hinge_has_a_coefficient_in_the_unit_of_the_reward(tmp_path, scale):
    "It adds nats to rewards: at another scale its direction is another one."
    one = first_gradient(tmp_path, "hinge", 1.0)
    assert relative(first_gradient(tmp_path, "hinge", scale), one) > 1e-2


def test_without_a_deviation_the_coefficient_has_the_unit_of_the_reward(tmp_path):
    "The first check must be able to fail: with centred advantages only, lambda has a unit."

    def direction(scale):
        return first_gradient(tmp_path, "soft", scale, lam=0.5, scale_rewards="none")

    one = direction(1.0)
    assert relative(direction(0.1), one) > 0.1
    assert relative(direction(10.0), one) > 0.1
