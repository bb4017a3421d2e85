# Solutions of lesson 09. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% steps
my_answer = {0.01, 0.1}  # the gap is 0.0078, and half of it is rounded away

# %% steps wrong: rounded away
my_answer = {0.001, 0.01, 0.1}

# %% steps wrong: 0.01 missing
my_answer = {0.1}


# %% accuracy
def accuracy(rewards, terminated):
    return float((rewards * terminated).mean())  # cut off: not right, but counted


# %% accuracy wrong: never stops would profit
def accuracy(rewards, terminated):
    return float(rewards.mean())


# %% accuracy wrong: by rambling
def accuracy(rewards, terminated):
    return float(rewards[terminated].mean())


# %% share
def share_of_nats(costs, chosen):
    inside = sum(c for row, keep in zip(costs, chosen) for c, k in zip(row, keep) if k)
    return inside / sum(map(sum, costs))  # one division, at the end


# %% share wrong: mean of the shares
def share_of_nats(costs, chosen):
    return float(
        np.mean(
            [
                sum(c for c, k in zip(row, keep) if k) / sum(row)
                for row, keep in zip(costs, chosen)
            ]
        )
    )


# %% share wrong: share of the tokens
def share_of_nats(costs, chosen):
    return sum(map(sum, chosen)) / sum(map(len, chosen))


# %% share wrong: their share of all nats
def share_of_nats(costs, chosen):
    return sum(c for row, keep in zip(costs, chosen) for c, k in zip(row, keep) if k)
