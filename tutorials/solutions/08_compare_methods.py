# Solutions of lesson 08. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% equal
my_answer = {
    "saute",
    "cmdp",
    "hinge",
}  # only these put the budget into the reward that is compared

# %% equal wrong: the budget is only in the multiplier
my_answer = {"saute", "cmdp", "hinge", "soft"}

# %% equal wrong: hinge, saute missing
my_answer = {"cmdp"}


# %% margin
def margin_hinge(rewards, spent, limit, coef, margin):
    return rewards - coef * (spent - margin * limit).clamp(
        min=0
    )  # nothing below the margin, coef for each nat beyond


# %% margin wrong: sign of the penalty
def margin_hinge(rewards, spent, limit, coef, margin):
    return rewards + coef * (spent - margin * limit).clamp(min=0)


# %% margin wrong: without clamp
def margin_hinge(rewards, spent, limit, coef, margin):
    return rewards - coef * (spent - margin * limit)


# %% margin wrong: not at the limit
def margin_hinge(rewards, spent, limit, coef, margin):
    return rewards - coef * (spent - limit).clamp(min=0)


# %% margin wrong: subtract only what lies beyond
def margin_hinge(rewards, spent, limit, coef, margin):
    return rewards - coef * spent


# %% margin wrong: the margin is a share of the limit
def margin_hinge(rewards, spent, limit, coef, margin):
    return rewards - coef * (spent - margin).clamp(min=0)


# %% margin wrong: coef has no effect
def margin_hinge(rewards, spent, limit, coef, margin):
    return rewards - (spent - margin * limit).clamp(min=0)


# %% margin wrong: a constant does not tell
def margin_hinge(rewards, spent, limit, coef, margin):
    return rewards - coef * (spent > margin * limit)


# %% choose
def choose(validation, test):
    best = int(validation.mean(1).argmax())  # the choice does not see the test prompts
    return best, float(test[best].mean())


# %% choose wrong: luckiest of 6 numbers
def choose(validation, test):
    best = int(test.mean(1).argmax())
    return best, float(test[best].mean())


# %% choose wrong: reports the score that made the choice
def choose(validation, test):
    best = int(validation.mean(1).argmax())
    return best, float(validation[best].mean())


# %% choose wrong: through the mean of both
def choose(validation, test):
    best = int((validation.mean(1) + test.mean(1)).argmax())
    return best, float(test[best].mean())


# %% interval
def paired_interval(a, b):
    d = a - b  # what is common to a seed cancels here
    return d.mean(), student_t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))


# %% interval wrong: as if they were independent
def paired_interval(a, b):
    n = len(a)
    return (a - b).mean(), student_t.ppf(0.975, n - 1) * np.sqrt(
        a.var(ddof=1) / n + b.var(ddof=1) / n
    )


# %% interval wrong: 1.96 is for hundreds of seeds
def paired_interval(a, b):
    d = a - b
    return d.mean(), 1.96 * d.std(ddof=1) / np.sqrt(len(d))


# %% interval wrong: spread of one difference
def paired_interval(a, b):
    d = a - b
    return d.mean(), student_t.ppf(0.975, len(d) - 1) * d.std(ddof=1)


# %% interval wrong: ddof=1
def paired_interval(a, b):
    d = a - b
    return d.mean(), student_t.ppf(0.975, len(d) - 1) * d.std() / np.sqrt(len(d))


# %% paper
def paper(batch, budget, state, *, scale_rewards="group"):
    spent = budget.spent(batch.cost, batch.mask)
    over = spent > budget.limit
    reward = torch.where(over, -(1 + spent), batch.rewards)  # first the budget
    advantage = group_advantage(reward, batch.group_ids, scale_rewards)
    weights = spend_weights(budget, batch.cost, batch.mask)
    return Signal(advantage, over.float().unsqueeze(-1) * weights)


# %% paper wrong: nothing tells 1.2 nats from 1.9
def paper(batch, budget, state, *, scale_rewards="group"):
    over = budget.spent(batch.cost, batch.mask) > budget.limit
    reward = torch.where(over, torch.tensor(-1.0), batch.rewards)
    advantage = group_advantage(reward, batch.group_ids, scale_rewards)
    return Signal(advantage, over.float().unsqueeze(-1) * batch.mask)


# %% paper wrong: must be pulled back
def paper(batch, budget, state, *, scale_rewards="group"):
    spent = budget.spent(batch.cost, batch.mask)
    reward = torch.where(spent > budget.limit, -(1 + spent), batch.rewards)
    advantage = group_advantage(reward, batch.group_ids, scale_rewards)
    return Signal(advantage, torch.zeros_like(batch.cost))


# %% paper wrong: worth less than a wrong one inside
def paper(batch, budget, state, *, scale_rewards="group"):
    return METHODS["soft"].function(batch, budget, state, scale_rewards=scale_rewards)
