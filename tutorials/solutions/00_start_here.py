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


# %% limit
def limit_for(spent, share):
    return suggest_budget(spent, share)  # the quantile of what is spent


# %% limit wrong: scales the dearest completion
def limit_for(spent, share):
    return share * max(spent)


# %% limit wrong: the mean is no quantile
def limit_for(spent, share):
    return sum(spent) / len(spent)


# %% limit wrong: quantile of 1 - share
def limit_for(spent, share):
    return suggest_budget(spent, 1 - share)
