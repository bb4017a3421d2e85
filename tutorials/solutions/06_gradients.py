# Solutions of lesson 06. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% surrogate
def surrogate(logp, cost):
    after = cost.flip(-1).cumsum(-1).flip(-1) - cost  # what each token can still change
    return (cost + after.detach() * logp).sum(-1)


# %% surrogate wrong: exact-KL trap
def surrogate(logp, cost):
    return (cost.flip(-1).cumsum(-1).flip(-1).detach() * logp).sum(-1)


# %% surrogate wrong: exact-KL trap
def surrogate(logp, cost):
    return cost.sum(-1).detach() * logp.sum(-1)


# %% surrogate wrong: only the pathwise part
def surrogate(logp, cost):
    return cost.sum(-1)


# %% surrogate wrong: sign of the score part
def surrogate(logp, cost):
    after = cost.flip(-1).cumsum(-1).flip(-1) - cost
    return (cost - after.detach() * logp).sum(-1)


# %% surrogate wrong: plain numbers
def surrogate(logp, cost):
    after = cost.flip(-1).cumsum(-1).flip(-1) - cost
    return (cost + after * logp).sum(-1)


# %% surrogate wrong: a mean over tokens is not the sum
def surrogate(logp, cost):
    after = cost.flip(-1).cumsum(-1).flip(-1) - cost
    return (cost + after.detach() * logp).mean(-1)


# %% loss
def divergence_loss(logp, teacher_logp):
    return (logp - teacher_logp).square() / 2  # k2: its derivative is the log-ratio


# %% loss wrong: FORWARD
def divergence_loss(logp, teacher_logp):
    return torch.exp(teacher_logp - logp) - 1 + logp - teacher_logp


# %% loss wrong: k1 as a loss
def divergence_loss(logp, teacher_logp):
    return logp - teacher_logp


# %% loss wrong: it has no gradient
def divergence_loss(logp, teacher_logp):
    return (logp - teacher_logp).detach() ** 2


# %% penalised
def penalised_loss(logp, cost, reward, lam):
    pay = reward - lam * cost.sum(-1)
    advantage = (pay - pay.mean()).detach()
    return -advantage * logp.sum(-1) + lam * cost.sum(
        -1
    )  # the cost also pulls through its own gradient


# %% penalised wrong: the exact-KL trap
def penalised_loss(logp, cost, reward, lam):
    pay = reward - lam * cost.sum(-1)
    advantage = (pay - pay.mean()).detach()
    return -advantage * logp.sum(-1)


# %% penalised wrong: the sign of the pathwise part
def penalised_loss(logp, cost, reward, lam):
    pay = (reward - lam * cost.sum(-1)).detach()
    return -pay * logp.sum(-1) - lam * cost.sum(-1)


# %% penalised wrong: the divergence left the advantage
def penalised_loss(logp, cost, reward, lam):
    return -(reward - reward.mean()) * logp.sum(-1) + lam * cost.sum(-1)


# %% penalised wrong: the advantage carries a gradient
def penalised_loss(logp, cost, reward, lam):
    return -(reward - lam * cost.sum(-1)) * logp.sum(-1)


# %% penalised wrong: the weight lam
def penalised_loss(logp, cost, reward, lam):
    pay = (reward - lam * cost.sum(-1)).detach()
    return -pay * logp.sum(-1) + cost.sum(-1)


# %% quiet
def quiet(logp, cost, state, prob):
    later = cost.flip(-1).cumsum(-1).flip(-1) - cost  # (B, T)
    baseline = torch.zeros_like(later)
    for t in range(later.shape[1]):
        for s in state[:, t].unique():
            rows = state[:, t] == s
            mean = (prob[rows] * later[rows, t]).sum() / prob[rows].sum()
            baseline[rows, t] = mean  # the same for every token of the state
    return cost.sum(-1) + ((later - baseline).detach() * logp).sum(-1)


# %% quiet wrong: score 0%
def quiet(logp, cost, state, prob):
    later = cost.flip(-1).cumsum(-1).flip(-1) - cost
    return cost.sum(-1) + (later.detach() * logp).sum(-1)


# %% quiet wrong: wrong on average
def quiet(logp, cost, state, prob):
    return cost.sum(-1)  # the pathwise part alone is quiet, and not the gradient
