# Solutions of lesson 10. After each: wrong answers, with words of what the check must
# say to them (tests/test_tutorials.py runs them all).

# %% change
my_answer = {
    "seed",
    "learning_rate",
    "warmup_steps",
    "budget_quantile",
}  # the others only say what is written where and when

# %% change wrong: warmup_steps missing
my_answer = {"seed", "learning_rate", "budget_quantile"}

# %% change wrong: no weight depends on it
my_answer = {"seed", "learning_rate", "warmup_steps", "budget_quantile", "save_steps"}

# %% lengths
my_answer = (
    {20, 60, 200},
    {20, 60},
)  # 0.3 nats per token are under 0.35 at any length; 6, 18 and 60 nats against 20

# %% lengths wrong: the other way round
my_answer = ({20, 60}, {20, 60, 200})

# %% lengths wrong: however many there are
my_answer = ({20}, {20, 60})

# %% lengths wrong: multiply 0.3
my_answer = ({20, 60, 200}, {20})


# %% reward
def own_reward(prompts, completions, final, **kwargs):
    answers = [
        text.rpartition("#")[2] if "#" in text else "" for text in completions
    ]  # all that stands after the last #, nothing without one
    return [None if f is None else float(a == f) for a, f in zip(answers, final)]


# %% reward wrong: being mentioned is not an answer
def own_reward(prompts, completions, final, **kwargs):
    return [
        None if f is None else float(f in text) for text, f in zip(completions, final)
    ]


# %% reward wrong: not how it begins or ends
def own_reward(prompts, completions, final, **kwargs):
    return [
        None if f is None else float("#" in text and text.endswith(f))
        for text, f in zip(completions, final)
    ]


# %% reward wrong: no verdict
def own_reward(prompts, completions, final, **kwargs):
    return [
        float("#" in text and text.rpartition("#")[2] == f)
        for text, f in zip(completions, final)
    ]


# %% reward wrong: the last one counts
def own_reward(prompts, completions, final, **kwargs):
    return [
        None if f is None else float(f in text.split("#")[1:])
        for text, f in zip(completions, final)
    ]


# %% needed
def completions_needed(bound):
    n = 1
    while 1 - satisfaction_interval(n, n)[0] > bound:
        n += 1  # the lower end rises with n
    return n


# %% needed wrong: is not seen at all
def completions_needed(bound):
    return round(1 / bound)


# %% needed wrong: rule of three
def completions_needed(bound):
    return int(np.ceil(np.log(0.05) / np.log(1 - bound)))


# %% needed wrong: not the smallest number
def completions_needed(bound):
    return int(np.ceil(np.log(0.025) / np.log(1 - bound))) + 5


# %% needed wrong: certify only
def completions_needed(bound):
    return int(np.ceil(np.log(0.025) / np.log(1 - bound))) - 1
