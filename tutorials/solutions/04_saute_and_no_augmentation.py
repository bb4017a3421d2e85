# Solutions of lesson 04. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% passes
my_answer = (
    20  # each of the 20 tokens is charged by the teacher's distribution in its state
)

# %% passes wrong: that is the plain student
my_answer = 0

# %% passes wrong: changes with every token
my_answer = 1

# %% passes wrong: there are 20 such states
my_answer = 21


# %% meter
def safety_state(cost, limit, gamma):
    z = [limit]
    for c in cost:
        z.append((z[-1] - c) / gamma)  # paid first, divided after that
    return z


# %% meter wrong: updated before the first token
def safety_state(cost, limit, gamma):
    z, left = [], limit
    for c in cost:
        left = (left - c) / gamma
        z.append(left)
    return z


# %% meter wrong: it divides
def safety_state(cost, limit, gamma):
    z = [limit]
    for c in cost:
        z.append((z[-1] - c) * gamma)
    return z


# %% meter wrong: at the wrong step
def safety_state(cost, limit, gamma):
    z = [limit]
    for c in cost:
        z.append(z[-1] / gamma - c)
    return z


# %% meter wrong: it ignores gamma
def safety_state(cost, limit, gamma):
    z = [limit]
    for c in cost:
        z.append(z[-1] - c)
    return z


# %% order
def step_rewards(reward, cost, limit, n):
    z, out = limit, []
    for r, c in zip(reward, cost):
        z = z - c  # the token is paid before the gauge is read
        out.append(r if z >= 0 else -n)
    return out


# %% order wrong: z is read before the token is paid
def step_rewards(reward, cost, limit, n):
    z, out = limit, []
    for r, c in zip(reward, cost):
        out.append(r if z >= 0 else -n)
        z = z - c
    return out


# %% order wrong: the sign of the penalty
def step_rewards(reward, cost, limit, n):
    z, out = limit, []
    for r, c in zip(reward, cost):
        z = z - c
        out.append(r if z >= 0 else n)
    return out


# %% order wrong: z = 0 is allowed
def step_rewards(reward, cost, limit, n):
    z, out = limit, []
    for r, c in zip(reward, cost):
        z = z - c
        out.append(r if z > 0 else -n)
    return out


# %% plain
def plain_policy(rows, cost, limit, vocab, depth):
    plain, todo = {}, [(0, limit, depth)]
    while todo:
        node, z, steps = todo.pop()
        plain[node] = rows(node, z)  # the row of this history at its own z
        left = z - cost(node, plain[node])
        if steps > 1:
            todo += [(vocab * node + 1 + a, left, steps - 1) for a in range(vocab)]
    return plain


# %% plain wrong: the row for the full budget
def plain_policy(rows, cost, limit, vocab, depth):
    return {
        node: rows(node, limit) for node in range((vocab**depth - 1) // (vocab - 1))
    }


# %% plain wrong: along each path separately
def plain_policy(rows, cost, limit, vocab, depth):
    plain, z, level = {}, limit, [0]
    for _ in range(depth):
        for node in level:
            plain[node] = rows(node, z)
        z = z - sum(cost(node, plain[node]) for node in level) / len(level)
        level = [vocab * node + 1 + a for node in level for a in range(vocab)]
    return plain
