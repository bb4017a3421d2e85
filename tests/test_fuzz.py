"A short version of studies/fuzz: nothing that a model writes crashes or hangs a grader."

import time

import pytest

from cmdp_nbdev.words import words_dataset, words_validity
from studies.fuzz import fuzz


def test_a_few_thousand_texts():
    "Another seed than that of the study; the grading process has its own tests."
    found = fuzz.fuzz(3000, seed=1, algebra=0, say=lambda line: None)
    assert found["wrong"] == [] and found["cases"] == sum(found["by_target"].values())
    assert max(found["memory_mb"].values()) - min(found["memory_mb"].values()) < 20
    assert found["processes"]["after"] <= found["processes"]["before"]


def crashes(text):
    raise KeyError(text)


def hangs(text):
    while True:
        text = text[::-1]


def lies(text):
    return 7


@pytest.mark.parametrize(
    "function, said",
    [(crashes, "KeyError"), (hangs, "took more than 0.05 s"), (lies, "answered 7")],
)
def test_what_is_planted_is_found(function, said, monkeypatch):
    "A search that finds nothing must be able to find something."
    monkeypatch.setattr(fuzz, "HANG", 0.05)
    monkeypatch.setattr(fuzz, "TARGETS", {"planted": (function, fuzz.is_text)})
    found = fuzz.fuzz(2, algebra=0, say=lambda line: None)
    assert len(found["wrong"]) == 2 and said in found["wrong"][0]["problem"]


def test_what_was_found():
    "Digits without end: no time that grows with their square, no number that Python refuses."
    told = words_dataset(1, "validation", 0)[0]
    for text in ("7" * 12000, "7" * 5000 + " + 1 = 2.", "1 + 1 = " + "7" * 5000):
        began = time.process_time()
        assert words_validity([told["prompt"]], [text], [told["steps"]]) == [0.0]
        assert time.process_time() - began < 0.5
