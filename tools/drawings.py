"""The drawings of the course, as SVG: the map of the argument, and one for each of its turns.

    python tools/drawings.py            write tutorials/images/*.svg anew
    python tools/drawings.py map        those whose names begin so

Every drawing has a ground of its own, so it can be read on a light page, a dark one and on paper.
Numbers in a drawing are computed with the library.
"""

from __future__ import annotations

import argparse
import math
from html import escape
from pathlib import Path

from cmdp_nbdev.task import tilt
from cmdp_nbdev.theory.tabular import three_answers

IMAGES = Path(__file__).resolve().parents[1] / "tutorials" / "images"
BLUE, ORANGE, GREEN, RED = "blue", "orange", "green", "red"  # classes of STYLE
STYLE = """
.ground{fill:#ffffff;stroke:#c9ccd1} text{fill:#1d2126;font-family:system-ui,sans-serif}
.soft{fill:#5a626c} .box{fill:#f4f6f8;stroke:#8a929c} .here{fill:#d7e8f7;stroke:#0072b2}
.line{stroke:#5a626c;fill:none} .tip{fill:#5a626c} .grid{stroke:#d9dce0;fill:none}
.blue{fill:#0072b2;stroke:#0072b2} .orange{fill:#b85c00;stroke:#b85c00}
.green{fill:#00785a;stroke:#00785a} .red{fill:#c23b00;stroke:#c23b00}
text.blue,text.orange,text.green,text.red{stroke:none} .no{fill:none}
@media screen and (prefers-color-scheme:dark){
.ground{fill:#1b1e23;stroke:#4a5059} text{fill:#e8eaed} .soft{fill:#a9b0b9}
.box{fill:#262b32;stroke:#78818c} .here{fill:#123a59;stroke:#56b4e9}
.line{stroke:#a9b0b9} .tip{fill:#a9b0b9} .grid{stroke:#3a4048}
.blue{fill:#56b4e9;stroke:#56b4e9} .orange{fill:#e69f00;stroke:#e69f00}
.green{fill:#2fc79b;stroke:#2fc79b} .red{fill:#ff7f50;stroke:#ff7f50} .no{fill:none}}
"""
DASH = 'stroke-dasharray="6 4"'


class Drawing:
    """An SVG of this size in steps. `title` is what a screen reader says.

    kind: classes of STYLE, parted by spaces.
    """

    def __init__(self, width: int, height: int, title: str):
        self.size, self.title, self.parts = (width, height), title, []
        self.rect(1, 1, width - 2, height - 2, "ground", r=8)

    def rect(self, x, y, w, h, kind: str, r: float = 4) -> None:
        "A box with round corners."
        place = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"'
        self.parts.append(f'<rect {place} rx="{r}" class="{kind}"/>')

    def text(self, x, y, said: str, kind: str = "", size=14, anchor="middle", bold=False) -> None:
        "A line of text; y is its foot."
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"'
        self.parts.append(f'<text {place} class="{kind}"{weight}>{escape(said)}</text>')

    def line(self, points, kind: str = "line", width=1.5, dash=False) -> None:
        "A line through points (x, y)."
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        look = f'class="{kind} no" stroke-width="{width}" {DASH if dash else ""}'
        self.parts.append(f'<path d="M{path}" {look}/>')

    def arrow(self, points, kind: str = "line", width=1.5, dash=False) -> None:
        "A line that ends in a tip."
        (x0, y0), (x, y) = points[-2:]
        along = math.atan2(y - y0, x - x0)
        back, side = 9, 4.5

        def corner(sign):
            u, v = -back, sign * side
            cos, sin = math.cos(along), math.sin(along)
            return f"{x + u * cos - v * sin:.1f} {y + u * sin + v * cos:.1f}"

        foot = (x - 6 * math.cos(along), y - 6 * math.sin(along))
        self.line([*points[:-1], foot], kind, width, dash)
        filled = "tip" if kind == "line" else kind
        tip = f"M{x:g} {y:g}L{corner(1)}L{corner(-1)}Z"
        self.parts.append(f'<path d="{tip}" class="{filled}" stroke="none"/>')

    def dot(self, x, y, kind: str, r: float = 6) -> None:
        "A filled circle."
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" class="{kind}"/>')

    def svg(self) -> str:
        "The file."
        w, h = self.size
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}"'
        head += f' height="{h}" role="img"><title>{escape(self.title)}</title>'
        return f"{head}<style>{STYLE}</style>\n" + "\n".join(self.parts) + "\n</svg>\n"


DRAWINGS = {}  # file name without .svg -> function that returns its Drawing


def drawing(function):
    "Decorator: this function makes images/<its name>.svg."
    DRAWINGS[function.__name__] = function
    return function


# ---- the map of the argument --------------------------------------------------------------

# lessons, short name, the claim in two lines
MAP = (
    ((0,), "The problem", ("a teacher that is", "wrong now and then")),
    ((1, 2), "A CMDP", ("most reward, a limit", "on every completion")),
    ((3,), "Why not λ", ("some best answers", "have no price")),
    ((4,), "Sauté", ("a meter of what is left", "in the state")),
    ((4,), "No meter", ("the text contains it:", "no augmentation")),
    ((5,), "Reward", ("R within the limit,", "−(n + φ) outside")),
    ((5,), "Guarantee", ("any n > −Rmin:", "no optimum breaks d")),
    ((6,), "Gradient", ("two parts,", "both are needed")),
    ((7, 8), "A network", ("trained and compared:", "it gets a rate")),
    ((9, 10), "Real models", ("what is kept there,", "and what is not")),
)


def numbers_of(lessons) -> str:
    "Lessons as the course numbers them."
    return " · ".join(f"{n:02}" for n in lessons)


@drawing
def map() -> Drawing:
    "The whole argument of the course, with the lesson of each step."
    said = "; ".join(f"{name}: {' '.join(lines)}" for _, name, lines in MAP)
    d = Drawing(960, 286, f"The argument of the course in ten steps. {said}.")
    wide, high, gap = 164, 106, 26
    for k, (lessons, name, lines) in enumerate(MAP):
        row, column = divmod(k, 5)
        x, y = 18 + column * (wide + gap), 22 + row * (high + 32)
        d.rect(x, y, wide, high, "box", r=8)
        d.text(x + wide / 2, y + 24, numbers_of(lessons), "soft", 13)
        d.text(x + wide / 2, y + 48, name, "blue", 17, bold=True)
        for i, line in enumerate(lines):
            d.text(x + wide / 2, y + 70 + 18 * i, line, size=13.5)
        if column < 4:
            d.arrow([(x + wide + 2, y + high / 2), (x + wide + gap - 2, y + high / 2)])
    turn, right, left = 22 + high + 16, 18 + 4 * (wide + gap) + wide / 2, 18 + wide / 2
    d.arrow([(right, 22 + high), (right, turn), (left, turn), (left, 22 + high + 32)])
    return d


def strip(lesson: int) -> Drawing:
    "The steps in one row, with those of a lesson marked: what every lesson opens with."
    names = ", ".join(name for lessons, name, _ in MAP if lesson in lessons)
    d = Drawing(960, 56, f"You are here in the argument of the course: {names}.")
    wide = 94
    for k, (lessons, name, _) in enumerate(MAP):
        x, here = 10 + k * wide, lesson in lessons
        d.rect(x + 3, 8, wide - 12, 40, "here" if here else "box", r=6)
        d.text(x + wide / 2 - 3, 24, numbers_of(lessons), "soft", 11)
        d.text(x + wide / 2 - 3, 40, name, "blue" if here else "", 12, bold=here)
        if k < 9:
            d.arrow([(x + wide - 9, 28), (x + wide + 3, 28)], width=1)
    return d


for lesson in range(11):
    DRAWINGS[f"map_{lesson:02}"] = lambda lesson=lesson: strip(lesson)


# ---- one for each turn of the argument ----------------------------------------------------


@drawing
def purse() -> Drawing:
    "Lesson 00: what one purse of 0.8 nats buys, spent on one, two or three flawed steps."
    d = Drawing(760, 232, "Three ways to spend 0.8 nats on three flawed steps.")
    d.text(20, 32, "three flawed steps, a purse of 0.8 nats", anchor="start", bold=True)
    d.text(740, 32, "all three right", anchor="end", bold=True)
    scale, left = 440 / 0.8, 130
    for row, steps in enumerate((1, 2, 3)):
        spends = [0.8 / steps] * steps if steps > 1 else [math.log(2), 0.8 - math.log(2)]
        right = [float(tilt(k, 0.5)) for k in spends] + [0.5] * (3 - len(spends))
        y, x = 56 + 56 * row, left
        name = ("one for sure", "two in half", "all alike")[row]
        d.text(20, y + 24, name, anchor="start")
        for k, p in zip(spends, right):
            d.rect(x + 1, y, k * scale - 2, 36, "box")
            if k * scale > 60:
                d.text(x + k * scale / 2, y + 23, f"{k:.2f} → {p:.2f}", size=13)
            x += k * scale
        d.text(680, y + 24, f"{math.prod(right):.0%}", "blue", 18, bold=True)
    return d


@drawing
def tree() -> Drawing:
    "Lesson 01: states, actions, costs, and the tree that they form."
    d = Drawing(760, 300, "Generation as a tree: states, tokens as actions, a cost in each state.")
    levels = [[150], [80, 220], [45, 115, 185, 255]]
    at = [(70, levels[0][0]), *[(290, y) for y in levels[1]], *[(510, y) for y in levels[2]]]
    texts = ["3*7=", "3*7=1", "3*7=2", "3*7=1#", "3*7=1;", "3*7=2#", "3*7=2;"]
    taken = {0, 1, 3}
    for k, (x, y) in enumerate(at):
        if k:
            (px, py), on = at[(k - 1) // 2], k in taken
            d.arrow([(px + 52, py), (x - 44, y)], "blue" if on else "line", 3 if on else 1.5)
        d.rect(x - 44, y - 16, 96, 32, "here" if k in taken else "box", r=8)
        d.text(x + 4, y + 5, texts[k], size=14)
    d.text(176, 88, "action a₀ = 1", "blue", 13)
    d.text(400, 42, "action a₁ = #", "blue", 13)
    d.text(20, 190, "state s₀, which", "soft", 13, "start")
    d.text(20, 208, "costs c₀ = KL(π‖μ)", "soft", 13, "start")
    d.text(294, 115, "state s₁, costs c₁", "soft", 13)
    for y, said in ((45, "R, D = c₀ + c₁ + c₂"), (255, "another leaf")):
        d.arrow([(562, y), (600, y)], "line", 1.5, dash=True)
        d.text(606, y + 5, said, size=13, anchor="start")
    d.text(20, 284, "Each state has one past: the tokens in it.", "soft", 13, "start")
    return d


def bars(d: Drawing, x: float, heights, limit: float, foot: float, scale: float) -> None:
    "Completions as bars, the ones over the limit in red."
    for k, h in enumerate(heights):
        kind = "red" if h > limit else "blue"
        d.rect(x + 34 * k, foot - scale * h, 22, scale * h, kind, r=2)
    left, right, line = x - 12, x + 34 * len(heights), foot - scale * limit
    d.line([(left, foot), (right, foot)])
    d.line([(left, line), (right, line)], dash=True)


@drawing
def every_or_mean() -> Drawing:
    "Lesson 02: a limit on every completion, and one on their mean."
    d = Drawing(760, 250, "A limit on every completion, and the same limit on the mean.")
    every = [0.7, 0.35, 0.8, 0.6, 0.78, 0.5, 0.8, 0.72]
    mean = [0.2, 1.5, 0.1, 1.3, 0.3, 1.6, 0.2, 1.2]
    for x, title, heights in ((60, "every D ≤ d", every), (430, "mean of D ≤ d", mean)):
        d.text(x + 130, 30, title, bold=True)
        bars(d, x, heights, 0.8, 200, 90)
        d.text(x + 272, 204 - 72, "d", size=14, anchor="start")
        over = sum(h > 0.8 for h in heights)
        average = sum(heights) / len(heights)
        d.text(x + 130, 228, f"mean {average:.2f}, over: {over} of 8", "soft", 13)
    return d


@drawing
def chord() -> Drawing:
    "Lesson 03: the answer that no price selects, and the sweep that jumps past it."
    d = Drawing(760, 330, "Left: answer b lies below the chord from a to g. Right: the sweep of λ.")
    answers = three_answers()
    costs, rewards = (-answers.teacher[0]).tolist(), answers.rewards.tolist()

    def X(c):
        return 60 + 95 * c

    def Y(r):
        return 260 - 190 * r

    d.line([(60, 40), (60, 260), (360, 260)])
    d.text(210, 300, "cost −log μ(y), nats", "soft", 13)
    d.text(66, 32, "reward", "soft", 13, "start")
    d.line([(X(costs[0]), Y(rewards[0])), (X(costs[2]), Y(rewards[2]))], "orange", 2, dash=True)
    d.line([(X(2), 50), (X(2), 260)], "line", 1.5, dash=True)
    d.text(X(2) + 4, 278, "d = 2", size=13)
    for name, c, r in zip("abg", costs, rewards):
        over = c > 2
        d.dot(X(c), Y(r), "red" if over else "blue")
        d.text(X(c) + 14, Y(r) + (16 if name == "b" else -8), name, size=16, bold=True)
    d.text(78, 120, "the chord: all that", "orange", 13, "start")
    d.text(78, 137, "a price can touch", "orange", 13, "start")
    sweep(d, costs, (rewards[2] - rewards[0]) / (costs[2] - costs[0]))
    return d


def sweep(d: Drawing, costs: list[float], at: float) -> None:
    "What the best answer costs at each price λ: it jumps from g to a, past b."

    def X(lam):
        return 430 + 380 * lam

    def Y(c):
        return 260 - 68 * c

    d.line([(430, 40), (430, 260), (730, 260)])
    d.text(580, 300, "price λ, reward per nat", "soft", 13)
    d.text(436, 32, "cost of the best answer", "soft", 13, "start")
    d.line([(430, Y(2)), (730, Y(2))], "line", 1.5, dash=True)
    d.text(726, Y(2) - 7, "d = 2", size=13, anchor="end")
    d.line([(430, Y(costs[2])), (X(at), Y(costs[2]))], "red", 4)
    d.line([(X(at), Y(costs[0])), (730, Y(costs[0]))], "blue", 4)
    d.line([(X(at), Y(costs[2])), (X(at), Y(costs[0]))], "line", 1, dash=True)
    d.text(X(at / 2), Y(costs[2]) - 8, "g", "red", 16, bold=True)
    d.text(650, Y(costs[0]) - 8, "a", "blue", 16, bold=True)
    d.dot(X(at), Y(costs[1]), "box", 6)
    d.text(X(at) + 12, Y(costs[1]) + 18, "b, never chosen", size=13, anchor="start")
    d.text(X(at), 278, f"{at:.2f}", size=13)


@drawing
def who_needs_the_teacher() -> Drawing:
    "Lesson 04: in training both students need the teacher, in use only the told one."
    d = Drawing(760, 230, "In training both kinds need the teacher; in use only the told one does.")
    for x, title in ((330, "while training"), (600, "in use")):
        d.text(x, 32, title, bold=True)
    rows = (("told student  π(a | s, z)", 82, True), ("plain student  π(a | s)", 168, False))
    for name, y, told in rows:
        d.text(20, y + 5, name, size=15, anchor="start", bold=True)
        for x, needs in ((330, True), (600, told)):
            d.rect(x - 110, y - 26, 92, 46, "here", r=8)
            d.text(x - 64, y + 2, "student", size=14)
            if needs:
                d.rect(x + 22, y - 26, 92, 46, "box", r=8)
                d.text(x + 68, y + 2, "teacher", "orange", 14)
                d.arrow([(x + 22, y - 3), (x - 16, y - 3)], "orange", 2)
            else:
                d.text(x + 62, y + 2, "no teacher", "green", 14, bold=True)
    d.text(330, 120, "z, and the cost of every token", "soft", 12.5)
    d.text(600, 120, "z, at every token", "soft", 12.5)
    d.text(330, 206, "the cost of every token", "soft", 12.5)
    d.text(600, 206, "and nobody reads a meter", "soft", 12.5)
    return d


@drawing
def reward() -> Drawing:
    "Lesson 05: what a completion is paid, by what it spends."
    d = Drawing(760, 300, "The modified reward: R up to the limit, then a jump, then a slope.")

    def X(spent):
        return 70 + 230 * spent

    def Y(paid):
        return 100 - 55 * paid

    d.line([(70, 30), (70, 270)])
    d.line([(70, Y(0)), (700, Y(0))])
    d.text(690, Y(0) - 8, "spent D, nats", "soft", 13, "end")
    d.text(62, Y(1) + 5, "1", size=13, anchor="end")
    d.text(62, Y(0) + 5, "0", size=13, anchor="end")
    d.line([(X(0.8), 30), (X(0.8), 262)], "line", 1.5, dash=True)
    d.text(X(0.8), 284, "d", size=15)
    for paid, said in ((1, "right: R = 1"), (0, "wrong: R = 0")):
        d.line([(X(0), Y(paid)), (X(0.8), Y(paid))], "blue", 4)
        d.text(X(0.05), Y(paid) - 8, said, "blue", 13, "start")
    d.line([(X(0.8), Y(-1.8)), (X(1.9), Y(-2.9))], "red", 4)
    d.text(X(1.35), Y(-1.9), "−(n + φ), φ = D: the slope is φ", "red", 13, "start")
    d.arrow([(X(0.8) + 14, Y(1)), (X(0.8) + 14, Y(-1.75))], "orange", 2)
    d.text(X(0.8) + 24, Y(-0.7), "the jump is n + d + R", "orange", 13, "start")
    return d


@drawing
def doomed() -> Drawing:
    "Lesson 05: the doomed prefix, before and after the fall back to the teacher."
    d = Drawing(760, 270, "Where the budget breaks, the student falls back to the teacher.")
    branch(d, 20, "π: one prefix breaks the limit", "red", "−n − φ", "costs more than is left")
    branch(d, 390, "π′: from there on the teacher", "blue", "R ≥ Rmin", "π′ = μ: costs 0")
    return d


def branch(d: Drawing, x: float, title: str, kind: str, pay: str, cost: str) -> None:
    "A start and two prefixes; the lower one is drawn as `kind`, and what it is paid."
    d.text(x + 170, 30, title, bold=True)
    start, up, down = (x + 40, 140), (x + 180, 90), (x + 180, 195)
    for at, color, said, paid in ((up, "blue", "s₁", "R"), (down, kind, "s₂", pay)):
        d.arrow([start, at], "line", 2)
        for dy in (-26, 26):
            d.arrow([(at[0] + 10, at[1]), (at[0] + 80, at[1] + dy)], color, 2)
            d.text(at[0] + 88, at[1] + dy + 5, paid, color, 14, "start")
        d.dot(*at, color, 8)
        d.text(at[0], at[1] - 14, said, size=14)
    d.dot(*start, "blue", 8)
    d.text(start[0], start[1] - 14, "s₀", size=14)
    d.text(down[0] - 30, down[1] + 52, cost, kind if kind == "red" else "green", 13)


@drawing
def two_parts() -> Drawing:
    "Lesson 06: the two ways in which a student changes what it is expected to spend."
    d = Drawing(760, 290, "Two parts of the gradient: the cost where you are, and where you go.")
    s, up, down = (150, 150), (420, 80), (420, 220)
    for x, y, name in ((*s, "s₀"), (*up, "s₁"), (*down, "s₂")):
        d.dot(x, y, "box", 14)
        d.text(x, y + 5, name, size=14)
    d.arrow([(164, 146), (404, 84)], "line", 2)
    d.arrow([(164, 154), (404, 216)], "line", 2)
    d.text(440, 66, "little is spent from here on", "soft", 13, "start")
    d.text(440, 244, "much is spent from here on", "soft", 13, "start")
    d.arrow([(300, 210), (300, 96)], "orange", 4)
    d.text(316, 150, "score function: go elsewhere", "orange", 14, "start", bold=True)
    d.text(316, 170, "∇log π(a) · (what is spent later)", "orange", 13, "start")
    for k, (ours, theirs) in enumerate(((58, 30), (14, 42))):
        d.rect(40 + 34 * k, 150 - ours, 14, ours, "blue", r=1)
        d.rect(55 + 34 * k, 150 - theirs, 14, theirs, "box", r=1)
    d.arrow([(46, 80), (46, 112)], "blue", 3)
    d.arrow([(81, 142), (81, 106)], "blue", 3)
    d.text(24, 200, "pathwise: be nearer", "blue", 14, "start", bold=True)
    d.text(24, 220, "to the teacher here", "blue", 14, "start", bold=True)
    d.text(24, 240, "∇C(s₀)", "blue", 13, "start")
    d.text(24, 176, "π and μ in s₀", "soft", 13, "start")
    return d


def main(argv: list[str] | None = None) -> None:
    "Write those that were asked for."
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("names", nargs="*", help="the first letters of their names; all if none")
    names = parser.parse_args(argv).names
    for name, make in DRAWINGS.items():
        if not names or name.startswith(tuple(names)):
            (IMAGES / f"{name}.svg").write_text(make().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
