"The mutants of studies/mutants are valid, each has one error, and a planted error is noticed."

import sys
from itertools import islice

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "studies" / "mutants"))
import hunt  # noqa: E402
import mutants  # noqa: E402
import survey  # noqa: E402

SOURCES = {m: (ROOT / f"cmdp_nbdev/{m}.py").read_text(encoding="utf-8") for m in ("budget", "mdp")}
TOY = """
def f(x: int = 1, *, word="sum") -> int:
    "Adds 1 to x < 2."
    if x < 0:
        raise ValueError(f"x must be >= {0}")
    return max(x.detach()[1:], -x) + 1
"""


def test_what_is_changed_and_what_is_not():
    "Every operator of a small function by hand; no docstring, annotation or message."
    made = [m for place in mutants.places("toy", TOY) for m in place]
    heads = {"if x <= 0:", "if x >= 0:", "if not (x < 0):", "if True:", "if False:", "if x < 1:"}
    assert {m.after for m in made if "x < 0" in m.before} == heads
    returned = {m.after.removeprefix("return ") for m in made if m.before.startswith("return")}
    assert {
        "None",
        "max(x.detach()[1:], -x) - 1",
        "max(x.detach()[1:], x) + 1",
        "min(x.detach()[1:], -x) + 1",
        "max(x[1:], -x) + 1",
        "max(x.detach()[1 + 1:], -x) + 1",
        "max(x.detach()[1:], -x) + 0",
    } <= returned
    heads = {m.after for m in made if m.before.startswith("def")}
    assert 'def f(x: int = 0, *, word="sum") -> int:' in heads
    assert 'def f(x: int = 1, *, word="another") -> int:' in heads
    assert not any("Adds" in m.before or "raise" in m.before for m in made)


def test_a_seed_gives_the_same_mutants_and_each_is_another_valid_source():
    "A stopped study goes on with the same sample, and lines keep their numbers."
    found, again, other = (list(islice(mutants.sample(SOURCES, seed), 25)) for seed in (0, 0, 1))
    assert found == again != other
    assert len({m.key for m in found}) == len({m.text(SOURCES[m.module]) for m in found}) == 25
    for m in found:
        text, source = m.text(SOURCES[m.module]), SOURCES[m.module]
        assert mutants.compiles(text) and text.count("\n") == source.count("\n")
        assert m.before != m.after and text != source


def test_the_tests_of_a_line():
    "The statement's own lines, a function for its defaults; the fastest tests first."
    assert survey.stretch(TOY, 4) == range(4, 5) and survey.stretch(TOY, 6) == range(6, 7)
    assert survey.stretch(TOY, 2) == range(2, 7)
    rows = [("a", 2.0, [4]), ("b", 1.0, [4, 6]), ("c", 0.1, [6]), ("d", 90.0, [4])]
    tests = [{"test": t, "seconds": s, "lines": {"toy": lines}} for t, s, lines in rows]
    assert survey.related(tests, "toy", range(4, 5)) == {"b": 1.0, "a": 2.0}


PLANTED = {
    "return self.spent(cost, mask) >= self.limit": "caught",
    "return self.spent(cost, mask) <= self.limit": "caught",
    "return None": "caught",
    "a = (1 - level) * 2": "survived",  # the tiny test below knows nothing of it
}
TINY = """
import torch
from cmdp_nbdev.budget import Budget

def test_limit():
    spends = torch.tensor([[1.0], [2.0]])
    assert Budget(1.0).violated(spends, torch.ones(2, 1)).tolist() == [False, True]
"""


@pytest.mark.filterwarnings("ignore")
def test_planted_errors_are_caught(tmp_path):
    "Three errors in the judgement itself; one elsewhere survives a test that does not look there."
    (tmp_path / "test_tiny.py").write_text(TINY)
    source, path = SOURCES["budget"], ROOT / "cmdp_nbdev" / "budget.py"
    every = [m for place in mutants.places("budget", source) for m in place]
    spots = ("return self.spent(cost, mask) > self.limit", "a = (1 - level) / 2")
    planted = {m.after: m for m in every if m.before in spots and m.after in PLANTED}
    verdicts = tmp_path / "verdicts.txt"

    def judge(warm):
        seconds = dict.fromkeys(warm.items, 1.0)
        for after, mutant in planted.items():
            changed = hunt.changed_functions(path, source, mutant.text(source))
            verdict, _ = warm.hunt(path, changed, seconds)
            with verdicts.open("a") as file:
                file.write(f"{after}\t{verdict}\n")

    def inside(say):
        hunt.Warm([f"--rootdir={tmp_path}", str(tmp_path)], judge).run()
        say("done")

    assert hunt.forked(inside, 60) == ("done", "")
    assert dict(line.split("\t") for line in verdicts.read_text().splitlines()) == PLANTED
