"Methods as functions of a batch, and the loss they share."

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmdp_nbdev.budget import Budget
from cmdp_nbdev.methods import METHODS, method_settings, register_method
from cmdp_nbdev.objective import (
    Batch,
    Signal,
    group_advantage,
    group_scale,
    group_stats,
    signal_loss,
)
from cmdp_nbdev.task import chain_reward

BUILT_IN = tuple(METHODS)
NAN = float("nan")
close = torch.testing.assert_close


def batch(seed=0, groups=3, size=4, T=5, extra=0):
    "Random trajectories; NaN in the padding, `extra` more padded columns."
    g = torch.Generator().manual_seed(seed)
    B, wide = groups * size, T + extra
    mask = torch.zeros(B, wide, dtype=torch.long)
    mask[:, :T] = (torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)).long()

    def table():
        x = torch.full((B, wide), NAN, dtype=torch.float64)
        x[:, :T] = torch.rand(B, T, generator=g, dtype=torch.float64)
        return x.masked_fill(mask == 0, NAN)

    rewards = torch.randint(0, 3, (B,), generator=g).double()
    logp, teacher_logp, cost = -table(), -table(), table()
    group_ids = torch.arange(B) // size
    return Batch(rewards, group_ids, mask, logp, teacher_logp, {"divergence": cost})


def take(b, rows):
    "The same batch with its rows in another order."
    tables = (x[rows] for x in (b.mask, b.logp, b.teacher_logp))
    costs = {k: v[rows] for k, v in b.costs.items()}
    return Batch(b.rewards[rows], b.group_ids[rows], *tables, costs)


def widen(b, extra):
    "The same batch with more padded columns."

    def wide(x, fill=NAN):
        return torch.cat([x, torch.full((len(x), extra), fill, dtype=x.dtype)], 1)

    costs = {k: wide(v) for k, v in b.costs.items()}
    tables = wide(b.mask, 0), wide(b.logp), wide(b.teacher_logp)
    return Batch(b.rewards, b.group_ids, *tables, costs)


def by_token(advantage, mask):
    "An advantage per trajectory or token, as one per token."
    return advantage if advantage.dim() == 2 else advantage[:, None].expand(mask.shape)


def answer(method, b, budget=Budget(0.9), **settings):
    "Advantage and multiplier of a method, both (B, T), 0 outside the mask."
    signal = METHODS[method](b, budget, {}, **settings)
    tables = by_token(signal.advantage, b.mask), signal.multipliers["divergence"]
    advantage, multiplier = (torch.where(b.mask.bool(), x, 0.0) for x in tables)
    return advantage, multiplier


BUDGETS = [Budget(0.9), Budget(0.3, "mean"), Budget(0.5, "prefix_mean", 1)]


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: b.aggregate)
@pytest.mark.parametrize("method", BUILT_IN)
def test_signals_are_finite_inside_the_mask(method, budget):
    "NaN in the padding, or a group without spread, must not reach the weights."
    b = batch()
    b.rewards[:4] = 1.0  # no spread
    advantage, multiplier = answer(method, b, budget)
    assert advantage.isfinite().all()
    assert multiplier.isfinite().all()
    assert (multiplier >= 0).all()
    assert advantage.abs().sum() + multiplier.sum() > 0


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: b.aggregate)
@pytest.mark.parametrize("method", BUILT_IN)
@given(seed=st.integers(0, 1000))
def test_row_order_does_not_matter(method, budget, seed):
    "Groups are found by their id, not their place: gathering from several devices reorders rows."
    b = batch(seed)
    rows = torch.randperm(len(b.rewards), generator=torch.Generator().manual_seed(seed))
    for x, y in zip(answer(method, take(b, rows), budget), answer(method, b, budget)):
        close(x, y[rows])


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: b.aggregate)
@pytest.mark.parametrize("method", BUILT_IN)
@given(seed=st.integers(0, 1000), extra=st.integers(1, 4))
def test_right_padding_does_not_matter(method, budget, seed, extra):
    "A longer neighbour in the batch must not change anybody's objective."
    b = batch(seed)
    T = b.mask.shape[1]
    for x, y in zip(answer(method, widen(b, extra), budget), answer(method, b, budget)):
        close(x[:, :T], y)
        assert (x[:, T:] == 0).all()


@pytest.mark.parametrize("limit", [1e6, math.inf])
@pytest.mark.parametrize("method", ["cmdp", "saute"])
def test_step_gated_methods_are_grpo_under_a_budget_nobody_exceeds(method, limit):
    "A constraint that does not bind must not change the objective."
    for x, y in zip(answer(method, batch(), Budget(limit)), answer("grpo", batch())):
        close(x, y)


@pytest.mark.parametrize("limit", [1e6, math.inf])
def test_smooth_gate_is_grpo_under_a_huge_budget(limit):
    "The gate's width is a share of the budget: what is left of it is sigma(-1/width), and no NaN."
    b = batch()
    smooth = dict(coef=5.0, width=0.01, scale_rewards="none")
    advantage, multiplier = answer("cmdp", b, Budget(limit), **smooth)
    free_advantage, free_multiplier = answer("grpo", b, scale_rewards="none")
    close(advantage, free_advantage)
    close(multiplier, free_multiplier)


def test_smooth_gate_becomes_the_step_gate():
    "With a narrow gate it is the step-gated reward with the step multiplier, nothing else."
    b, budget = batch(1), Budget(0.9)
    spent = budget.spent(b.cost, b.mask)
    over = spent > 0.9
    assert 0 < over.sum() < len(spent)
    assert ((spent - 0.9).abs() > 1e-3).all()
    narrow = dict(penalty=2.0, coef=4.0, width=1e-6, scale_rewards="none")
    advantage, multiplier = answer("cmdp", b, budget, **narrow)
    gated = torch.where(spent <= 0.9, b.rewards, -(2.0 + 4.0 * spent))
    of_gated = group_advantage(gated, b.group_ids, "none")
    close(advantage, torch.where(b.mask.bool(), of_gated[:, None], 0.0))
    close(multiplier, 4.0 * b.mask.double() * over[:, None])


def test_soft_without_weight_is_grpo_and_gkd_is_its_other_half():
    "The fixed multiplier is a line between two methods; its ends must be them."
    b = batch()
    for x, y in zip(answer("soft", b, lam=0.0), answer("grpo", b)):
        close(x, y)
    advantage, multiplier = answer("gkd", b)
    close(answer("soft", b, lam=1.0)[1], multiplier)
    assert (advantage == 0).all()


def test_cmdp_scales_both_terms_alike():
    "Else the weight of the divergence would change with the spread of the rewards."
    b, budget = batch(2), Budget(0.9)

    def cmdp(scale_rewards):
        return METHODS["cmdp"](b, budget, {}, coef=2.0, scale_rewards=scale_rewards)

    raw, scaled = cmdp("none"), cmdp("group")
    ratio = raw.advantage / scaled.advantage
    shown = budget.violated(b.cost, b.mask) & (raw.advantage.abs() > 1e-9)
    assert shown.any()
    for i in shown.nonzero().flatten().tolist():
        close(raw.multiplier[i, 0] / scaled.multiplier[i, 0], ratio[i])


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_group_statistics_against_a_loop(seed, groups, size):
    "Group means and deviations are the baseline of every method."
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(groups * size, generator=g, dtype=torch.float64)
    ids = torch.randperm(groups, generator=g).repeat_interleave(size) * 7
    x[torch.rand(len(x), generator=g) < 0.2] = NAN
    mean, std = group_stats(x, ids)
    for i in range(len(x)):
        mine = x[(ids == ids[i]) & ~x.isnan()]
        if len(mine):
            close(mean[i], mine.mean())
        close(std[i], mine.std() if len(mine) > 1 else torch.zeros_like(std[i]))


def test_groups_without_a_reward():
    "Where no reward function applies, nothing is learnt of the task; others are not disturbed."
    x, ids = torch.tensor([NAN, NAN, 1.0, 0.0, NAN]), torch.tensor([0, 0, 1, 1, 1])
    for scale in ("group", "none"):
        a = group_advantage(x, ids, scale)
        assert a[:2].tolist() == [0, 0]
        assert a[4] == 0
        assert a[2] == -a[3] != 0
    none, one_group = torch.full((4,), NAN), torch.zeros(4)
    assert group_advantage(none, one_group).tolist() == [0.0] * 4
    assert (group_scale(none, one_group) > 0).all()


@pytest.mark.parametrize("method", BUILT_IN)
def test_methods_survive_rewards_that_do_not_apply(method):
    "A column without an answer gives NaN rewards; the divergence must still be learnt, no NaN."
    b = batch()
    b.rewards[:6] = NAN
    advantage, multiplier = answer(method, b)
    assert advantage.isfinite().all()
    assert multiplier.isfinite().all()
    if method not in ("minillm", "kdrl", "dual", "pid"):
        assert (advantage[:4] == 0).all()  # these four carry the divergence in the advantage, too


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_advantage_is_centred_and_free_of_the_unit(seed, unit):
    "Rewards in per cent instead of shares must train the same way."
    b = batch(seed)
    a = group_advantage(b.rewards, b.group_ids)
    assert a.reshape(3, 4).sum(1).abs().max() < 1e-9
    close(group_advantage(unit * b.rewards, b.group_ids), a)


# ---- the loss ------------------------------------------------------------------------------------


def test_scales_by_hand():
    "A group's deviation and a quarter of the batch's; one row, one value or none: 1."
    x, groups = torch.tensor([1.0, 3.0, 2.0, 6.0]), torch.tensor([0, 0, 1, 1])
    whole = math.sqrt((4 + 0 + 1 + 9) / 3)
    by_group = [math.sqrt(2) + whole / 4] * 2 + [math.sqrt(8) + whole / 4] * 2
    close(group_scale(x, groups), torch.tensor(by_group))
    close(group_scale(x, groups, "batch"), torch.full((4,), whole))
    close(group_scale(x, groups, "none"), torch.ones(4))
    for kind in ("group", "batch"):
        for flat in ([0.7] * 4, [NAN] * 4, [NAN, 5.0, NAN, NAN]):
            assert group_scale(torch.tensor(flat), groups, kind).tolist() == [1.0] * 4
    mean, std = group_stats(torch.tensor([2.0, NAN, NAN, NAN, 4.0]), torch.tensor([0, 0, 1, 1, 2]))
    assert mean.tolist() == [2, 2, 0, 0, 4] and std.tolist() == [0] * 5
    with pytest.raises(ValueError, match="scale_rewards 'token' is unknown; choose one of group"):
        group_scale(x, groups, "token")


def numbers(*rows):
    "A float64 table that can be differentiated."
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def test_loss_by_hand():
    "multiplier*cost - advantage*ratio, averaged over tokens, by hand."
    logp, cost = numbers([-1.0, -2.0, 5.0]), numbers([0.5, 0.25, 9.0])
    signal = Signal(torch.tensor([2.0]), torch.tensor([[3.0, 1.0, 7.0]]))
    loss = signal_loss(signal, logp, {"divergence": cost}, torch.tensor([[1, 1, 0]]))
    assert loss.item() == pytest.approx((3 * 0.5 - 2 + 1 * 0.25 - 2) / 2)
    loss.backward()
    assert logp.grad.tolist() == [[-1.0, -1.0, 0.0]]
    assert cost.grad.tolist() == [[1.5, 0.5, 0.0]]


def clipped_loss(logp, old, advantage, **epsilon):
    "The loss of one token whose multiplier is 0."
    zero = torch.zeros_like(old)
    signal, costs = Signal(torch.tensor([advantage]), zero), {"divergence": zero}
    return signal_loss(signal, logp, costs, torch.ones(1, 1), old_logp=old, **epsilon)


@pytest.mark.parametrize(
    "ratio,advantage,expected,slope",
    [
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.2, 0.0),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
        (1.25, 1.0, -1.2, 0.0),
    ],
)
def test_clipped_ratio_by_hand(ratio, advantage, expected, slope):
    "PPO's pessimistic clip: no push beyond 1 ± epsilon along the advantage, full gradient back."
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    loss = clipped_loss(logp, old, advantage, epsilon=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert logp.grad.item() == pytest.approx(slope)


def test_epsilon_is_a_fifth_where_nobody_says():
    "On both sides."
    old = torch.zeros(1, 1, dtype=torch.float64)
    assert clipped_loss(old + 2, old, 1.0).item() == pytest.approx(-1.2)
    assert clipped_loss(old - 2, old, -1.0).item() == pytest.approx(0.8)


def test_epsilon_high_widens_the_upper_clip_only():
    "DAPO's clip-higher needs two different bounds."
    old = torch.zeros(1, 1, dtype=torch.float64)

    def loss(ratio, advantage):
        logp = old + math.log(ratio)
        return clipped_loss(logp, old, advantage, epsilon=0.2, epsilon_high=0.4).item()

    assert loss(2.0, 1.0) == pytest.approx(-1.4)
    assert loss(0.1, -1.0) == pytest.approx(0.8)


def test_clip_never_binds_on_policy():
    "With one optimiser step per rollout the ratio is 1: the gradient is that without clipping."
    b = batch()
    logp, costs = b.logp.nan_to_num().requires_grad_(), {"divergence": b.cost.nan_to_num()}
    signal = METHODS["grpo"](b, Budget(1.0), {})
    plain = -signal.advantage[:, None] * b.mask / b.mask.sum()
    for old_logp in (None, logp.detach()):
        loss = signal_loss(signal, logp, costs, b.mask, old_logp=old_logp)
        close(torch.autograd.grad(loss, logp)[0], plain)
    assert plain.any()


@pytest.mark.parametrize("size", [1, 5, 7])
def test_splitting_the_batch_adds_up(size):
    "Gradient accumulation must give the loss of the whole batch, for a (B, T) advantage as well."
    b = batch(3)
    logp, cost = b.logp.nan_to_num(), b.cost.nan_to_num()
    signal = METHODS["cmdp-rate"](b, Budget(0.9), {})
    signal = Signal(signal.advantage[:, None] * torch.linspace(0, 1, 5), signal.multiplier)
    whole = signal_loss(signal, logp, {"divergence": cost}, b.mask)

    def part(i):
        own, costs = Signal(signal.advantage[i], signal.multiplier[i]), {"divergence": cost[i]}
        return signal_loss(own, logp[i], costs, b.mask[i], num_tokens=b.mask.sum())

    close(sum(part(i) for i in torch.arange(12).split(size)), whole)


def test_one_multiplier_per_cost():
    "A method may price several costs; each must meet its own multiplier."
    one = torch.ones(1, 2)
    costs, multipliers = {"divergence": one, "length": 10 * one}, {"divergence": 2.0 * one}
    signal = Signal(torch.zeros(1), multipliers | {"length": 0.5 * one})
    assert signal_loss(signal, 0 * one, costs, one).item() == 7.0


# ---- the registry --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "soft"])
def test_a_taken_name_is_refused(name, own_methods):
    "A user's method must not silently replace a built-in one, whatever its function is called."
    before = own_methods[name]

    def mine(batch, budget, state):
        return None

    with pytest.raises(ValueError, match=f"'{name}' is registered already; choose another name"):
        register_method(name)(mine)
    # defined at the top of a user's module, under the built-in's name
    namespace = {"__name__": "users_module"}
    exec(f"def {name}(batch, budget, state): return None", namespace)
    with pytest.raises(ValueError, match="registered already"):
        register_method(name)(namespace[name])
    assert own_methods[name] is before


def test_redefining_the_same_method_is_allowed(own_methods):
    "Running a notebook cell twice must work."

    def define():
        @register_method("again")
        def again(batch, budget, state):
            return None

        return again

    define()
    assert define() is own_methods["again"].function


def test_unknown_method_lists_the_known_ones():
    "A typo in a method's name must end with the list to choose from."
    with pytest.raises(ValueError, match="'grpoo' is unknown; choose one of .*grpo.*cmdp-rate"):
        method_settings("grpoo")


def test_a_users_method_trains(own_methods, make_trainer):
    "The registry is the extension point: settings, state and metrics must reach the trainer."

    @register_method("growing")
    def growing(batch, budget, state, *, rate: float = 0.5, scale_rewards: str = "group") -> Signal:
        state["calls"] = state.get("calls", 0) + 1
        lam = rate * state["calls"]
        advantage = group_advantage(batch.rewards, batch.group_ids, scale_rewards)
        return Signal(advantage, lam * batch.mask, {"lam": lam})

    trainer = make_trainer(method="growing", method_kwargs={"rate": 2.0}, reward_funcs=chain_reward)
    assert [trainer.step()["lam"] for _ in range(2)] == [2.0, 4.0]
    assert trainer.method_state == {"calls": 2}
    with pytest.raises(ValueError, match="has no setting speed; it has rate, scale_rewards"):
        make_trainer(method="growing", method_kwargs={"speed": 1})


@pytest.mark.parametrize("limit", [0.0, math.inf])
def test_smooth_gate_without_room(limit):
    "A budget of 0, or none at all, leaves no width for a sigmoid: the gate is the step, no NaN."
    b = batch()
    smooth = dict(coef=2.0, width=0.15, scale_rewards="none")
    signal = METHODS["cmdp"](b, Budget(limit), {}, **smooth)
    want = torch.tensor(2.0 if limit == 0 else 0.0, dtype=torch.float64)
    assert torch.allclose(signal.multiplier[b.mask.bool()], want)
    assert signal.advantage.isfinite().all()
