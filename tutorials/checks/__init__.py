"""What the exercises answer: a module for each lesson, a function for each exercise.

A check says one of three things and never stops the notebook: not tried yet (with the
hint), wrong (with the reason), right. Solutions are in ../solutions.
"""

from __future__ import annotations

import functools
from html import escape


class Wrong(Exception):
    "An answer is wrong; the text says why."


def need(condition, why: str) -> None:
    "Raise Wrong with the reason `why` unless `condition`."
    if not condition:
        raise Wrong(why)


class Verdict:
    """What a check says.

    status: 'untried', 'wrong' or 'right'; text: what it means; hint: what opens below,
    unless it is right.
    """

    SIGNS = {
        "untried": "○ Not tried yet.",
        "wrong": "✗ Not right.",
        "right": "✓ Right.",
    }
    COLOURS = {"untried": "#7F7F7F", "wrong": "#D55E00", "right": "#009E73"}

    def __init__(self, status: str, text: str = "", hint: str = ""):
        self.status = status
        self.text = text
        self.hint = "" if status == "right" else hint

    def __repr__(self):
        hint = f"Hint: {self.hint}" if self.hint else ""
        return " ".join(filter(None, [self.SIGNS[self.status], self.text, hint]))

    def _repr_html_(self):
        style = f"border-left:4px solid {self.COLOURS[self.status]};padding:2px 10px"
        said = f"<b>{self.SIGNS[self.status]}</b> {escape(self.text)}"
        hint = f"<summary>Hint</summary>{escape(self.hint)}" if self.hint else ""
        more = f"<details>{hint}</details>" if hint else ""
        return f'<div style="{style}">{said}{more}</div>'


def exercise(hint: str):
    """Turn `check(answer) -> text` into a function that returns a Verdict.

    The check calls `need` for each classic mistake and returns what to say when all is
    well. An answer that is None, or code that raises NotImplementedError, is untried;
    any other exception of the learner's code is a wrong answer that says what it was.
    """

    def wrap(check):
        @functools.wraps(check)
        def verdict(answer=None) -> Verdict:
            if answer is None:
                return Verdict("untried", hint=hint)
            if getattr(answer, "shape", None) == ():  # a number of numpy or torch
                answer = answer.item()
            try:
                return Verdict("right", check(answer))
            except NotImplementedError:
                return Verdict("untried", hint=hint)
            except Wrong as e:
                return Verdict("wrong", str(e), hint)
            except Exception as e:
                return Verdict("wrong", f"It raised {type(e).__name__}: {e}", hint)

        verdict.hint = hint
        return verdict

    return wrap
