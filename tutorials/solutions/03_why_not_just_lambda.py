# Solutions of lesson 03. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% switch
my_price = 1 / (2.996 - 0.223)  # reward gained per nat paid, from a to g: 0.361

# %% switch wrong: slope to or from b
my_price = 0.30

# %% switch wrong: the inverse
my_price = 2.77

# %% switch wrong: they do not tie
my_price = 0.5

# %% scale
my_lam = 5.0  # the difference between right and wrong is 10 instead of 1

# %% scale wrong: but not the factor
my_lam = 0.5

# %% scale wrong: wrong direction
my_lam = 0.05

# %% scale wrong: added to all rewards
my_lam = 3.5


# %% step
def dual_step(lam, spent, limit, lr):
    return max(
        0.0, lam + lr * (sum(spent) / len(spent) - limit)
    )  # more expensive if the mean is over, and never below zero


# %% step wrong: the sign is wrong
def dual_step(lam, spent, limit, lr):
    return max(0.0, lam - lr * (sum(spent) / len(spent) - limit))


# %% step wrong: below zero
def dual_step(lam, spent, limit, lr):
    return lam + lr * (sum(spent) / len(spent) - limit)


# %% step wrong: the price never falls
def dual_step(lam, spent, limit, lr):
    return lam + lr * sum(max(s - limit, 0.0) for s in spent) / len(spent)


# %% step wrong: share of violations
def dual_step(lam, spent, limit, lr):
    return lam + lr * sum(s > limit for s in spent) / len(spent)


# %% step wrong: take the mean
def dual_step(lam, spent, limit, lr):
    return max(0.0, lam + lr * (sum(spent) - limit))


# %% step wrong: is multiplied by the price
def dual_step(lam, spent, limit, lr):
    return max(0.0, lam * (1 + lr * (sum(spent) / len(spent) - limit)))


# %% choose
def choose_price(students, limit, target):
    good = [
        lam
        for lam, spent in students.items()
        if sum(s <= limit for s in spent) / len(spent) >= target
    ]  # every completion is asked
    return min(good, default=None)


# %% choose wrong: whether the average is within
def choose_price(students, limit, target):
    good = [lam for lam, spent in students.items() if sum(spent) / len(spent) <= limit]
    return min(good, default=None)


# %% choose wrong: largest price
def choose_price(students, limit, target):
    good = [
        lam
        for lam, spent in students.items()
        if sum(s <= limit for s in spent) / len(spent) >= target
    ]
    return max(good, default=None)


# %% choose wrong: exactly the limit keeps it
def choose_price(students, limit, target):
    good = [
        lam
        for lam, spent in students.items()
        if sum(s < limit for s in spent) / len(spent) >= target
    ]
    return min(good, default=None)


# %% choose wrong: not all completions
def choose_price(students, limit, target):
    good = [lam for lam, spent in students.items() if max(spent) <= limit]
    return min(good, default=None)
