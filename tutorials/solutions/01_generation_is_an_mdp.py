# Solutions of lesson 01. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% same-state
my_answer = (
    0.0  # both are written in the same state, and the cost is a property of the state
)

# %% same-state wrong: difference of the log-ratios
my_answer = 0.28

# %% same-state wrong: how probable the two characters are
my_answer = -0.31

# %% same-state wrong: same state, and a state has one cost
my_answer = 0.92


# %% mask
def my_mask(ids, eos_ids):
    first = next((k for k, i in enumerate(ids) if i in eos_ids), len(ids))
    return [
        int(k <= first) for k in range(len(ids))
    ]  # up to and including the first end


# %% mask wrong: excludes EOS
def my_mask(ids, eos_ids):
    first = next((k for k, i in enumerate(ids) if i in eos_ids), len(ids))
    return [int(k < first) for k in range(len(ids))]


# %% mask wrong: goes on after the first end
def my_mask(ids, eos_ids):
    last = max((k for k, i in enumerate(ids) if i in eos_ids), default=len(ids) - 1)
    return [int(k <= last) for k in range(len(ids))]


# %% mask wrong: masks everything
def my_mask(ids, eos_ids):
    first = next((k for k, i in enumerate(ids) if i in eos_ids), -1)
    return [int(k <= first) for k in range(len(ids))]


# %% discounted
def discounted_to_go(x, gamma):
    return [
        sum(gamma ** (k - t) * x[k] for k in range(t, len(x))) for t in range(len(x))
    ]  # the discount counts from t


# %% discounted wrong: counts from the start
def discounted_to_go(x, gamma):
    return [sum(gamma**k * x[k] for k in range(t, len(x))) for t in range(len(x))]


# %% discounted wrong: one step too early
def discounted_to_go(x, gamma):
    total, out = 0.0, []
    for r in reversed(x):
        total = gamma * (r + total)
        out.insert(0, total)
    return out


# %% discounted wrong: own step is missing
def discounted_to_go(x, gamma):
    return [
        sum(gamma ** (k - t) * x[k] for k in range(t + 1, len(x)))
        for t in range(len(x))
    ]


# %% discounted wrong: before t
def discounted_to_go(x, gamma):
    return [
        sum(gamma ** abs(k - t) * x[k] for k in range(len(x))) for t in range(len(x))
    ]


# %% shift
def completion_logps(model, ids, num_prompt):
    logits = model(input_ids=ids).logits
    return token_logps(
        logits[:, num_prompt - 1 : -1], ids[:, num_prompt:]
    )  # one position earlier, and the last logits are about a token that is not there


# %% shift wrong: off by one
def completion_logps(model, ids, num_prompt):
    logits = model(input_ids=ids).logits
    return token_logps(logits[:, num_prompt:], ids[:, num_prompt:])


# %% shift wrong: prompt's tokens as well
def completion_logps(model, ids, num_prompt):
    logits = model(input_ids=ids).logits
    return token_logps(logits[:, :-1], ids[:, 1:])


# %% shift wrong: normalise them
def completion_logps(model, ids, num_prompt):
    logits = model(input_ids=ids).logits
    return logits[:, num_prompt - 1 : -1].gather(-1, ids[:, num_prompt:, None])[..., 0]
