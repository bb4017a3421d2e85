# Solutions of lesson 00. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% corrections
my_answer = 2  # log 2 = 0.69 nats each: two cost 1.39, three 2.08

# %% corrections wrong: divides by the teacher's probability
my_answer = 3

# %% corrections wrong: another one still fits
my_answer = 1


# %% satisfaction
def satisfaction_rate(spent, limit):
    return sum(s <= limit for s in spent) / len(
        spent
    )  # the question is asked of every completion


# %% satisfaction wrong: about the average
def satisfaction_rate(spent, limit):
    return sum(spent) / len(spent) <= limit


# %% satisfaction wrong: breaks the limit
def satisfaction_rate(spent, limit):
    return sum(s > limit for s in spent) / len(spent)


# %% satisfaction wrong: exactly the limit
def satisfaction_rate(spent, limit):
    return sum(s < limit for s in spent) / len(spent)


# %% divide
def divide(q, d):
    "Small steps to where the product grows most for a nat, until the purse is empty."
    p, left = list(q), d
    while True:
        offers = []
        for k, x in enumerate(p):
            y = min(x + 0.005, 1.0)
            cost = correction_cost(y, q[k]) - correction_cost(x, q[k])
            if x < 1 and cost <= left:
                offers.append((np.log(y / x) / cost, k, y, cost))
        if not offers:
            return p
        _, k, y, cost = max(offers)
        p[k], left = y, left - cost


# %% divide wrong: overdrawn
def divide(q, d):
    return [1.0 for _ in q]


# %% divide wrong: score
def divide(q, d):
    return list(q)  # imitates, and leaves the purse full


# %% divide wrong: instead of 3
def divide(q, d):
    return [0.5]
