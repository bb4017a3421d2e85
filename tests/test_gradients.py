"""The central check: every gradient against full enumeration, in float64.

The policy is a table over three tokens and three steps, so all 27 sequences can be listed.
"""

import itertools

import pytest
import torch

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.cost import token_divergence, token_logps
from cmdp_nbdev.mdp import to_go
from cmdp_nbdev.methods import METHODS, cmdp, gkd, grpo, saute, soft
from cmdp_nbdev.objective import Batch, Signal, signal_loss

V = T = 3
PATHS = torch.tensor(list(itertools.product(range(V), repeat=T)))  # all 27 sequences
PREFIXES = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]  # 13 states
STATES = {prefix: i for i, prefix in enumerate(PREFIXES)}
NODES = torch.tensor([[STATES[tuple(p[:t])] for t in range(T)] for p in PATHS.tolist()])
MASK = torch.ones(len(PATHS), T)
REWARD = (PATHS.sum(-1) % 2 == 0).double() + 0.3 * PATHS[:, 0]
NOTHING = torch.zeros(len(PATHS), T, dtype=torch.float64)
ONE = Budget(1.0)


class Enumeration:
    "A tabular policy, a tabular teacher, and expectations over every sequence."

    def __init__(self, seed):
        g = torch.Generator().manual_seed(seed)
        shape = (len(STATES), V)
        self.theta = torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
        self.teacher = torch.randn(shape, generator=g, dtype=torch.float64)
        self.teacher_logp = token_logps(self.teacher[NODES], PATHS)

    def measure(self):
        "Log-probabilities and exact per-token KL, both (27, 3), and each sequence's probability."
        logits = self.theta[NODES]
        logp = token_logps(logits, PATHS)
        return logp, token_divergence(logits, self.teacher[NODES]), logp.sum(-1).exp()

    def grad(self, value):
        "Gradient of a scalar with respect to the policy's table."
        return torch.autograd.grad(value, self.theta, retain_graph=True)[0]

    def batch(self):
        "What a method sees: all sequences as one group."
        logp, cost, _ = self.measure()
        group = torch.zeros(len(PATHS), dtype=torch.long)
        costs = {"divergence": cost.detach()}
        return Batch(REWARD, group, MASK, logp.detach(), self.teacher_logp, costs)

    def expected(self, advantage, multiplier):
        """Gradient of E[signal_loss], each sequence weighted by its (detached) probability.

        Times T, since the loss is a mean over tokens.
        """
        logp, cost, prob = self.measure()
        losses = []
        for i in range(len(PATHS)):
            row = slice(i, i + 1)
            signal = Signal(advantage[row], multiplier[row])
            losses.append(signal_loss(signal, logp[row], {"divergence": cost[row]}, MASK[:1]))
        return self.grad((prob.detach() * torch.stack(losses)).sum() * T)

    def of(self, signal):
        "The same for what a method answered."
        return self.expected(signal.advantage.double(), signal.multiplier)

    def method(self, name, budget=ONE, **settings):
        "The expected gradient of a registered method."
        return self.of(METHODS[name](self.batch(), budget, {}, **settings))

    def path_kl(self):
        "KL(student||teacher) over whole sequences, with gradient."
        _, _, prob = self.measure()
        return (prob * (prob.log() - self.teacher_logp.sum(-1))).sum()


@pytest.fixture(params=[0, 1, 2])
def world(request):
    return Enumeration(request.param)


def close(a, b, tol=1e-10):
    assert (a - b).abs().max() < tol, float((a - b).abs().max())


def test_the_enumeration_is_complete(world):
    "If the probabilities did not sum to one, every test below would compare two wrong numbers."
    _, cost, prob = world.measure()
    close(prob.sum(), torch.tensor(1.0, dtype=torch.float64))
    close((prob * cost.sum(-1)).sum(), world.path_kl())  # the chain rule of the KL


@pytest.mark.parametrize("include_now", [True, False])
def test_score_function_plus_pathwise_is_the_true_gradient(world, include_now):
    """Otherwise a constrained KL would be pushed in a direction that does not lower it.

    The cost of now has no score-function part: its mean over actions is a constant.
    """
    _, cost, prob = world.measure()
    truth, c = world.grad((prob * cost.sum(-1)).sum()), cost.detach()
    future = to_go(c, MASK) - (0 if include_now else c)
    close(world.expected(-future, MASK.double()), truth)
    assert truth.norm() > 1e-2


def test_pathwise_alone_is_not_the_gradient_of_the_trajectory_kl(world):
    "GKD drops the sampling term; a test that could not tell would prove nothing above."
    _, cost, prob = world.measure()
    truth = world.grad((prob * cost.sum(-1)).sum())
    pathwise = world.grad((prob.detach() * cost.sum(-1)).sum())
    close(world.of(gkd(world.batch(), ONE, {})), pathwise)
    assert (pathwise - truth).norm() > 1e-2 * truth.norm()


def test_detached_exact_kl_as_immediate_reward_has_no_gradient(world):
    "The trap: an exact KL used as the reward of its own token teaches nothing at all."
    _, cost, _ = world.measure()
    close(world.expected(-cost.detach(), NOTHING), torch.zeros_like(world.theta))


def test_detached_exact_kl_sum_as_only_reward_is_wrong(world):
    "The trap's second half: summed over the sequence it has a gradient, but not the KL's."
    _, cost, prob = world.measure()
    truth = world.grad((prob * cost.sum(-1)).sum())
    wrong = world.expected(-to_go(cost.detach(), MASK), NOTHING)
    assert wrong.norm() > 1e-3
    assert (wrong - truth).norm() > 0.2 * truth.norm()


def test_k1_return_to_go_is_the_true_gradient(world):
    "The sampled log-ratio, unlike the exact KL, may be used as a reward."
    logp, cost, prob = world.measure()
    k1 = (logp - world.teacher_logp).detach()
    truth = world.grad((prob * cost.sum(-1)).sum())
    close(world.expected(-to_go(k1, MASK), NOTHING), truth)


def test_grpo_is_the_gradient_of_the_expected_reward(world):
    "GRPO must maximise E[R]; the group baseline may change the variance but not the mean."
    _, _, prob = world.measure()
    got = world.of(grpo(world.batch(), ONE, {}, scale_rewards="none"))
    close(got, world.grad(-(prob * REWARD).sum()))


@pytest.mark.parametrize("lam", [0.0, 0.7, 3.0])
def test_soft_is_grpo_plus_lambda_times_pathwise(world, lam):
    "`lam` must be the weight of the divergence, in the unit of the reward."
    _, cost, prob = world.measure()
    truth = world.grad(-(prob * REWARD).sum() + lam * (prob.detach() * cost.sum(-1)).sum())
    close(world.of(soft(world.batch(), ONE, {}, lam=lam, scale_rewards="none")), truth)


def test_cmdp_is_the_gradient_of_the_modified_reward(world):
    """The paper's objective with phi = coef*D, the step itself without gradient.

    Score function of the modified reward plus the pathwise gradient of D on violators.
    """
    _, cost, prob = world.measure()
    spent, n, coef = cost.sum(-1), 2.0, 1.5
    limit = float(spent.detach().median())
    over = (spent.detach() > limit).double()
    assert 0 < over.sum() < len(over)
    objective = (prob * ((1 - over) * REWARD - over * (n + coef * spent))).sum()
    settings = dict(penalty=n, coef=coef, scale_rewards="none")
    close(world.of(cmdp(world.batch(), Budget(limit), {}, **settings)), world.grad(-objective))


def test_saute_has_no_direction_when_everybody_violates(world):
    "The documented failure of a constant penalty: nothing points back to the teacher; phi does."
    everybody = Budget(0.0)
    lost = saute(world.batch(), everybody, {}, penalty=5.0, scale_rewards="none")
    close(world.of(lost), torch.zeros_like(world.theta))
    graded = cmdp(world.batch(), everybody, {}, scale_rewards="none")
    assert world.of(graded).norm() > 1e-2


@pytest.mark.parametrize(
    "method,settings",
    [
        ("soft", dict(lam=0.7, complete=True)),
        ("dual", dict(init=0.7, lr=0.0)),
        ("pid", dict(init=0.7, kp=0.0, ki=0.0, kd=0.0)),
    ],
)
def test_complete_lagrangians_follow_the_true_gradient(world, method, settings):
    "A multiplier that the mean divergence moves must meet its gradient, sampling included."
    _, cost, prob = world.measure()
    truth = world.grad(-(prob * REWARD).sum() + 0.7 * (prob * cost.sum(-1)).sum())
    got = world.method(method, scale_rewards="none", **settings)
    close(got, truth if method == "soft" else truth / 1.7)


def between_two(values):
    "A limit between two trajectories: at the kink itself the reference has no gradient."
    return float(values.detach().median()) + 1e-6


def test_hinge_is_the_gradient_of_the_exact_penalty(world):
    "E[R - coef*(D - d)+] is differentiable almost everywhere; its gradient is the whole method."
    _, cost, prob = world.measure()
    spent = cost.sum(-1)
    limit = between_two(spent)
    truth = world.grad(-(prob * (REWARD - 2.0 * (spent - limit).clamp(min=0))).sum())
    close(world.method("hinge", Budget(limit), coef=2.0, scale_rewards="none"), truth)


def test_minillm_is_the_gradient_of_the_sequence_divergence(world):
    "Single-step plus long-term part, without length normalisation: KL(student||teacher)."
    truth = world.grad(world.path_kl())
    close(world.method("minillm", length_normalization=False), truth)


def test_weakest_link_is_the_gradient_of_its_reward(world):
    "Its cost does not depend on the policy: the score function of its reward is everything."
    _, _, prob = world.measure()
    means = -world.teacher_logp.cumsum(-1) / torch.arange(1, T + 1)
    limit = float(means.median())
    bad = (means > limit).cummax(-1).values
    assert bad.any(-1).any() and not bad.any(-1).all()
    reward = torch.where(bad.any(-1), -1.5 * bad.sum(-1), REWARD)
    got = world.method("weakest-link", limit=limit, penalty=1.5, scale_rewards="none")
    close(got, world.grad(-(prob * reward).sum()))


def test_chance_dual_has_the_score_function_of_the_violation_probability(world):
    """What it shares with every constraint on a rate: E[R - lam*1{D > d}].

    The step itself has no gradient; the method's pathwise part comes on top.
    """
    _, cost, prob = world.measure()
    spent = cost.sum(-1)
    limit = between_two(spent)
    over = (spent.detach() > limit).double()
    settings = dict(init=0.8, lr=0.0, scale_rewards="none")
    signal = METHODS["chance-dual"](world.batch(), Budget(limit), {}, **settings)
    score = world.of(Signal(signal.advantage, NOTHING))
    close(score, world.grad(-(prob * (REWARD - 0.8 * over)).sum()))
    pathwise = world.of(Signal(torch.zeros(len(PATHS)), signal.multiplier))
    excess = (prob.detach() * (spent - limit).clamp(min=0)).sum()
    close(pathwise, world.grad(0.8 * excess))


def test_a_sampled_log_ratio_as_a_loss_has_no_gradient(world):
    """Why log_ratio is refused where the multiplier is the same for every completion.

    On average nothing is pushed anywhere; weighted by what was spent it is a score function.
    """
    logp, cost, prob = world.measure()
    ratio = (logp - world.teacher_logp).sum(-1)
    close(world.grad((prob.detach() * ratio).sum()), torch.zeros_like(world.theta))
    gate = torch.sigmoid(cost.sum(-1)).detach()
    assert world.grad((prob.detach() * gate * ratio).sum()).norm() > 1e-2


def test_advantage_and_multiplier_are_detached(world):
    "A gradient through the signal would optimise something else than stated."
    logp, cost, _ = world.measure()
    live = Signal(cost.sum(-1), cost)  # both carry gradients
    still = Signal(cost.sum(-1).detach(), cost.detach())
    with_live = world.grad(signal_loss(live, logp, {"divergence": cost}, MASK))
    with_still = world.grad(signal_loss(still, logp, {"divergence": cost}, MASK))
    close(with_live, with_still, 1e-14)
