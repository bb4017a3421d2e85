# Solutions of lesson 02. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% most
my_answer = 99  # 99 completions at 0.808 nats and one at 0: the mean is 0.8

# %% most wrong: not a median
my_answer = 50

# %% most wrong: so does their mean
my_answer = 100

# %% most wrong: more are too
my_answer = 5


# %% remaining
def remaining(costs, limit):
    z = [limit]
    for c in costs:
        z.append(
            z[-1] - c
        )  # every token takes its cost away, and nothing is cut off at zero
    return z


# %% remaining wrong: z_0 is missing
def remaining(costs, limit):
    return [limit - sum(costs[: t + 1]) for t in range(len(costs))]


# %% remaining wrong: after the last token is missing
def remaining(costs, limit):
    return [limit - sum(costs[:t]) for t in range(len(costs))]


# %% remaining wrong: it stops at 0
def remaining(costs, limit):
    return [max(limit - sum(costs[:t]), 0.0) for t in range(len(costs) + 1)]


# %% remaining wrong: the sign is wrong
def remaining(costs, limit):
    return [limit + sum(costs[:t]) for t in range(len(costs) + 1)]


# %% rate
def rate(cost, mask, limit):
    return float(
        (Budget(limit, "mean").spent(cost, mask) <= limit).double().mean()
    )  # nats per token on both sides


# %% rate wrong: compares a sum
def rate(cost, mask, limit):
    return float((Budget(limit).spent(cost, mask) <= limit).double().mean())


# %% rate wrong: width of the batch
def rate(cost, mask, limit):
    return float(((cost * mask).mean(-1) <= limit).double().mean())


# %% rate wrong: average of the whole batch
def rate(cost, mask, limit):
    return float((cost * mask).sum() / mask.sum() <= limit)


# %% rate wrong: padding
def rate(cost, mask, limit):
    return float((cost.mean(-1) <= limit).double().mean())


# %% enough
my_number = 368  # the first n with satisfaction_interval(n, n)[0] >= 0.99

# %% enough wrong: rule of three
my_number = 299

# %% enough wrong: does not mean that a hundred
my_number = 100

# %% enough wrong: below 0.99
my_number = 250

# %% enough wrong: you need fewer
my_number = 4000
