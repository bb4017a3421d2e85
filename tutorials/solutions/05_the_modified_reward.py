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


# %% fall_back
def fall_back(cost, limit):
    spent, out = 0.0, []
    for c in cost:
        if out and out[-1] is None or spent + c > limit + 1e-9:
            out.append(None)  # the teacher writes from here on
        else:
            spent += c
            out.append(c)
    return [c or 0.0 for c in out]


# %% fall_back wrong: changes nothing
def fall_back(cost, limit):
    return cost


# %% fall_back wrong: goes on as before
def fall_back(cost, limit):
    spent, out = 0.0, []
    for c in cost:
        out.append(c if spent + c <= limit + 1e-9 else 0.0)
        spent += out[-1]
    return out


# %% fall_back wrong: one state too late
def fall_back(cost, limit):
    spent, out = 0.0, []
    for c in cost:
        out.append(c if spent <= limit + 1e-9 else 0.0)
        spent += c
    return out


# %% fall_back wrong: although exactly the limit
def fall_back(cost, limit):
    spent, out = 0.0, []
    for c in cost:
        spent += c
        out.append(c if spent < limit - 1e-9 else 0.0)
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


# %% design
def my_pay(R, D, d):
    gate = smooth_gate(D.detach(), 0.95 * d, 0.05 * d)  # nearer and narrower
    return modified_reward(R, D, d, n=1.0, gate=gate)


# %% design wrong: score
def my_pay(R, D, d):
    return modified_reward(R, D, d, n=1.0)  # the paper's: it chatters
