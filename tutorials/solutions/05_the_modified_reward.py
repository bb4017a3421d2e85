# Solutions of lesson 05. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% constant
my_answer = 0.0  # all are paid -20, the mean is -20, and nobody differs from it

# %% constant wrong: is what it is paid
my_answer = -20

# %% constant wrong: all are paid the same
my_answer = -1.5


# %% paid
def paid(reward, spent, limit, n):
    return (
        reward if spent <= limit else -(n + spent)
    )  # outside, being right does not count


# %% paid wrong: the sign of the penalty
def paid(reward, spent, limit, n):
    return reward if spent <= limit else n + spent


# %% paid wrong: the more it would earn
def paid(reward, spent, limit, n):
    return reward if spent <= limit else -n + spent


# %% paid wrong: keeps the budget
def paid(reward, spent, limit, n):
    return reward if spent < limit else -(n + spent)


# %% paid wrong: the penalty is constant
def paid(reward, spent, limit, n):
    return reward if spent <= limit else -n


# %% paid wrong: the task reward is kept
def paid(reward, spent, limit, n):
    return reward - (spent > limit) * (n + spent)


# %% single
def advantages(rewards, group_ids):
    out = torch.zeros_like(rewards)
    for group in group_ids.unique():
        rows = group_ids == group
        if (
            rows.sum() > 1 and rewards[rows].std() > 0
        ):  # a group that cannot compare says nothing
            out[rows] = (rewards[rows] - rewards[rows].mean()) / rewards[rows].std()
    return out


# %% single wrong: a group of one still gives NaN
def advantages(rewards, group_ids):
    out = torch.zeros_like(rewards)
    for group in group_ids.unique():
        rows = group_ids == group
        out[rows] = (rewards[rows] - rewards[rows].mean()) / (
            rewards[rows].std() + 1e-4
        )
    return out


# %% single wrong: has no baseline of its own
def advantages(rewards, group_ids):
    out = rewards.clone()
    for group in group_ids.unique():
        rows = group_ids == group
        if rows.sum() > 1:
            out[rows] = (rewards[rows] - rewards[rows].mean()) / (
                rewards[rows].std() + 1e-4
            )
    return out


# %% single wrong: compared with its own mean
def advantages(rewards, group_ids):
    out = (rewards - rewards.mean()) / rewards.std()
    for group in group_ids.unique():
        if (group_ids == group).sum() == 1:
            out[group_ids == group] = 0
    return out


# %% hinge
def hinge_multiplier(spent, limit, coef):
    return coef * (spent > limit).to(
        spent.dtype
    )  # the slope of the hinge, not its value


# %% hinge wrong: this is the value of the hinge
def hinge_multiplier(spent, limit, coef):
    return coef * (spent - limit).clamp(min=0)


# %% hinge wrong: inside the budget are pulled as well
def hinge_multiplier(spent, limit, coef):
    return torch.full_like(spent, coef)


# %% hinge wrong: the sign
def hinge_multiplier(spent, limit, coef):
    return -coef * (spent > limit).to(spent.dtype)
