# Solutions of lesson 07. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% limit
my_answer = {
    "satisfaction_rate",
    "accuracy_within_budget",
}  # the completions are the same, only these two ask about d

# %% limit wrong: writes the same completions
my_answer = {"satisfaction_rate", "accuracy_within_budget", "spent_mean"}

# %% limit wrong: accuracy_within_budget is missing
my_answer = {"satisfaction_rate"}

# %% limit wrong: give a set with some of the names
my_answer = {"loss"}

# %% silent
my_answer = 8  # both groups of equal rewards, four completions each

# %% silent wrong: negative one
my_answer = 7

# %% silent wrong: not of the batch
my_answer = 0

# %% silent wrong: the number of groups
my_answer = 2


# %% loss
def loss_of(advantage, multiplier, logp, cost, mask):
    return (
        (multiplier * cost - advantage[:, None] * logp) * mask
    ).sum() / mask.sum()  # one mean over all completion tokens


# %% loss wrong: sign of the advantage
def loss_of(advantage, multiplier, logp, cost, mask):
    return ((multiplier * cost + advantage[:, None] * logp) * mask).sum() / mask.sum()


# %% loss wrong: sign of the penalty
def loss_of(advantage, multiplier, logp, cost, mask):
    return ((-multiplier * cost - advantage[:, None] * logp) * mask).sum() / mask.sum()


# %% loss wrong: this is the sum
def loss_of(advantage, multiplier, logp, cost, mask):
    return ((multiplier * cost - advantage[:, None] * logp) * mask).sum()


# %% loss wrong: padding included
def loss_of(advantage, multiplier, logp, cost, mask):
    return ((multiplier * cost - advantage[:, None] * logp) * mask).mean()


# %% loss wrong: padding takes part
def loss_of(advantage, multiplier, logp, cost, mask):
    return (multiplier * cost - advantage[:, None] * logp).mean()


# %% loss wrong: mean of each completion first
def loss_of(advantage, multiplier, logp, cost, mask):
    return (
        ((multiplier * cost - advantage[:, None] * logp) * mask).sum(-1) / mask.sum(-1)
    ).mean()


# %% loss wrong: the cost has no effect
def loss_of(advantage, multiplier, logp, cost, mask):
    return (
        (multiplier * cost.detach() - advantage[:, None] * logp) * mask
    ).sum() / mask.sum()


# %% shift
def completion_logps(model, rollout):
    logits = model(rollout.input_ids, attention_mask=rollout.attention_mask).logits
    T = rollout.completion_ids.shape[1]
    return token_logps(
        logits[:, -T - 1 : -1], rollout.completion_ids
    )  # the logits before a token are those that chose it


# %% shift wrong: predict the one after it
def completion_logps(model, rollout):
    logits = model(rollout.input_ids, attention_mask=rollout.attention_mask).logits
    T = rollout.completion_ids.shape[1]
    return token_logps(logits[:, -T:], rollout.completion_ids)


# %% shift wrong: logits of the prompt
def completion_logps(model, rollout):
    logits = model(rollout.input_ids, attention_mask=rollout.attention_mask).logits
    T = rollout.completion_ids.shape[1]
    return token_logps(logits[:, :T], rollout.completion_ids)


# %% shift wrong: these are logits
def completion_logps(model, rollout):
    logits = model(rollout.input_ids, attention_mask=rollout.attention_mask).logits
    T = rollout.completion_ids.shape[1]
    return logits[:, -T - 1 : -1].gather(-1, rollout.completion_ids[..., None])[..., 0]
