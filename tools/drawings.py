"""The drawings of the course, as SVG: the map of the argument, and one for each of its turns.

    python tools/drawings.py            write tutorials/images/*.svg anew
    python tools/drawings.py map        those whose names begin so

Every drawing has a ground of its own, so it can be read on a light page, a dark one and on paper.
Numbers in a drawing are computed with the library.
"""

from __future__ import annotations

import argparse
import json
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


# ---- the lessons that train ---------------------------------------------------------------


def station(d: Drawing, x, y, size, name: str, lines, kind: str = "box") -> None:
    "A box of this size (width, height) with a name and lines below it."
    wide, high = size
    d.rect(x, y, wide, high, kind, r=8)
    d.text(x + wide / 2, y + 24, name, "blue", 15, bold=True)
    for k, line in enumerate(lines):
        d.text(x + wide / 2, y + 46 + 18 * k, line, size=13)


@drawing
def one_update() -> Drawing:
    "Lesson 07: the seven links of an update, and the two ways in which they close to a loop."
    d = Drawing(760, 330, "One update as a loop of seven links, closed by weights and multiplier.")
    links = (
        ("1 rollout", "the student answers"),
        ("2 divergence", "c = KL(π‖μ), a token"),
        ("3 budget", "D = Σ c,  D ≤ d ?"),
        ("4 reward", "R, or −(n + D) over d"),
        ("5 advantage", "A, and the price λ"),
        ("6 loss", "Σ λ·c − A·log π"),
        ("7 step", "∇, clip, AdamW"),
    )
    columns, wide, high, top, low = (24, 208, 392, 576), 160, 64, 84, 222
    at = [*((x, top) for x in columns), *((x, low) for x in columns[:0:-1])]
    for (x, y), (name, line) in zip(at, links):
        station(d, x, y, (wide, high), name, [line])
    for x in columns[1:]:
        d.arrow([(x - 24, top + high / 2), (x, top + high / 2)], width=2)
    for x in columns[2:]:
        d.arrow([(x, low + high / 2), (x - 24, low + high / 2)], width=2)
    for x, said, kind in ((24, "prompts", "soft"), (208, "teacher, frozen", "orange")):
        d.text(x + wide / 2, 38, said, kind, 14)
        d.arrow([(x + wide / 2, 48), (x + wide / 2, top)], kind if x > 24 else "line", 2)
    d.arrow([(692, top + high), (692, low)], width=2)
    d.line([(208, low + high / 2), (104, low + high / 2)], "blue", 3)
    d.arrow([(104, low + high / 2), (104, top + high)], "blue", 3)
    d.text(116, 192, "new weights:", "blue", 13, "start")
    d.text(116, 210, "other answers", "blue", 13, "start")
    d.arrow([(472, top + high), (472, 185), (620, 185), (620, low)], "orange", 2, dash=True)
    d.text(462, 176, "too many over d: λ rises", "orange", 13, "end")
    d.text(462, 194, "few enough: λ falls", "orange", 13, "end")
    foot = "The default's λ is a feedback: a higher price, less spent, a lower price."
    d.text(380, 314, foot, "soft", 13)
    return d


ENDED = ("accuracy", "right"), ("satisfaction_rate", "within the limit")


@drawing
def whole_run() -> Drawing:
    "Lesson 07: all updates of the live trainer at its defaults, as tools/live_run.py wrote them."
    record = json.loads((IMAGES.parent / "data" / "live_run.json").read_text(encoding="utf-8"))
    rows, target, result = record["rows"], record["target"], record["result"]
    last = rows[-1]["step"]
    d = Drawing(760, 300, f"All {last} updates of the live trainer: shares, and the multiplier.")

    def X(step):
        return 60 + 380 * step / last

    def Y(share):
        return 240 - 190 * share

    d.text(250, 28, "share of completions, means over 20 updates", bold=True)
    for share in (0, 0.5, 1):
        d.line([(60, Y(share)), (440, Y(share))], "line" if share == 0 else "grid", 1)
        d.text(52, Y(share) + 5, f"{share:g}", size=13, anchor="end")
    d.line([(X(40), 44), (X(40), 240)], "line", 1.5, dash=True)
    d.text(X(40) + 6, 232, "the cell above ends here", "soft", 13, "start")
    d.line([(60, Y(target)), (440, Y(target))], "green", 1, dash=True)
    d.text(X(40), 258, "40", size=13)
    d.text(X(46), Y(target) - 6, f"asked for: {target:.0%}", "green", 13, "start")
    d.text(440, 258, f"update {last}", size=13, anchor="end")
    for key, kind in (("accuracy", "blue"), ("satisfaction_rate", "green")):
        d.line([(X(row["step"]), Y(row[key])) for row in rows], kind, 2.5)
    d.text(446, Y(rows[-1]["accuracy"]) - 2, "right", "blue", 13, "start")
    d.text(446, Y(rows[-1]["satisfaction_rate"]) + 14, "within d", "green", 13, "start")
    top = max(row["lam"] for row in rows)
    d.text(630, 28, "multiplier λ", bold=True)
    d.line([(540, 240), (720, 240)], "line", 1)
    d.text(532, 245, "0", size=13, anchor="end")
    d.text(532, 62, f"{top:.1f}", size=13, anchor="end")
    d.text(720, 258, f"{last}", size=13)
    path = [(540 + 180 * row["step"] / last, 240 - 182 * row["lam"] / top) for row in rows]
    d.line(path, "orange", 2.5)
    both = [f"{result[key]:.0%} {said}" for key, said in ENDED]
    foot = f"At its end, on {result['n']} held-out prompts: {' and '.join(both)} (seed 0)."
    d.text(20, 284, foot, "soft", 13, "start")
    return d


@drawing
def fair() -> Drawing:
    "Lesson 08: where two methods lie on two axes, and their difference seed by seed. A sketch."
    d = Drawing(760, 330, "Left: methods on two axes. Right: two methods, compared seed by seed.")
    d.text(210, 28, "two axes, one line to beat", bold=True)
    d.line([(50, 50), (50, 270), (380, 270)])
    d.text(56, 46, "accuracy", "soft", 13, "start")
    d.text(376, 290, "satisfaction: D ≤ d", "soft", 13, "end")
    d.line([(80, 66), (240, 74), (310, 96), (345, 140), (360, 200)], "line", 1.5, dash=True)
    d.text(256, 70, "exact optimum", "soft", 13, "start")
    d.line([(110, 108), (190, 118), (260, 146), (310, 190), (345, 245)], "orange", 2.5)
    d.text(262, 262, "fixed λ", "orange", 13)
    for x, y, bar, kind in ((285, 130, 22, "green"), (170, 128, 30, "red")):
        d.line([(x, y - bar), (x, y + bar)], kind, 2)
        d.line([(x - 14, y), (x + 14, y)], kind, 2)
        d.dot(x, y, kind, 5)
    d.text(276, 174, "above by more", "green", 13, "end")
    d.text(276, 191, "than its bars", "green", 13, "end")
    d.text(158, 166, "not told apart", "red", 13, "end")
    d.text(72, 228, "left: ignores the budget", "soft", 13, "start")
    d.text(72, 246, "right: copies the teacher", "soft", 13, "start")
    seeds(d)
    return d


def seeds(d: Drawing) -> None:
    "Two methods with the same three seeds, and the mean of their differences."
    a, b = (0.62, 0.74, 0.67), (0.56, 0.69, 0.60)

    def Y(share):
        return 214 - 460 * (share - 0.5)

    d.text(580, 28, "one seed, one pair", bold=True)
    d.line([(430, 50), (430, 214), (630, 214)])
    d.text(436, 46, "accuracy", "soft", 13, "start")
    for k, (ours, theirs) in enumerate(zip(a, b)):
        x = 466 + 58 * k
        d.line([(x, Y(theirs)), (x, Y(ours))], "line", 1.5)
        d.dot(x, Y(ours), "blue")
        d.dot(x, Y(theirs), "orange")
        d.text(x, 232, f"seed {k}", size=13)
    difference = [x - y for x, y in zip(a, b)]
    mean = sum(difference) / 3
    spread = math.sqrt(sum((x - mean) ** 2 for x in difference) / 2)
    half = 4.303 * spread / math.sqrt(3)  # t with two degrees of freedom
    d.line([(664, Y(0.5)), (724, Y(0.5))], "line", 1.5, dash=True)
    d.line([(694, Y(0.5 + mean - half)), (694, Y(0.5 + mean + half))], "green", 3)
    d.dot(694, Y(0.5 + mean), "green")
    d.text(694, 232, "0", size=13)
    d.text(694, 140, "difference", size=13)
    d.text(694, 157, f"+{mean:.2f} ± {half:.2f}", "green", 13)
    for k, said in enumerate(
        (
            "The same start, prompts, updates and tuning.",
            "The luck of a seed cancels in the difference.",
            "Then: does its interval contain 0?",
        )
    ):
        d.text(430, 264 + 18 * k, said, "soft", 13, "start")
    d.text(20, 318, "A sketch. The numbers are in the cells.", "soft", 12, "start")


@drawing
def where_nats_go() -> Drawing:
    "Lesson 09: the tokens of a sentence, what each costs, and the budget line."
    d = Drawing(760, 320, "A sentence token by token: nearly all it costs stands on one operator.")
    d.text(20, 32, "“Ben has 4 fewer pens than Ana”, who has 12:", anchor="start")
    tokens = ("Ben", "has", "12", "−", "4", "=", "8", "pens", ".")
    costs = [0.0, 0.0, 0.01, math.log(2), 0.02, 0.0, 0.03, 0.0, 0.0]
    foot, scale, wide, left, spent = 232, 140, 60, 70, 0.0
    d.line([(left - 10, 60), (left - 10, foot), (left + 9 * wide, foot)])
    d.text(left - 18, foot + 4, "0", size=13, anchor="end")
    d.line([(left - 10, foot - scale), (left + 9 * wide, foot - scale)], dash=True)
    d.text(left - 18, foot - scale + 5, "d = 1", size=13, anchor="end")
    path = [(left - 10, foot)]
    for k, (token, cost) in enumerate(zip(tokens, costs)):
        x, flawed = left + k * wide, token == "−"
        d.rect(x + 2, foot + 10, wide - 6, 30, "here" if flawed else "box", r=6)
        d.text(x + wide / 2 - 1, foot + 30, token, "red" if flawed else "", 15, bold=flawed)
        tall = max(2.0, scale * cost)
        d.rect(x + 16, foot - tall, wide - 34, tall, "red" if flawed else "blue", r=2)
        path.append((x + 8, foot - scale * spent))
        spent += cost
        path.append((x + 8, foot - scale * spent))
    d.line([*path, (left + 9 * wide, foot - scale * spent)], "orange", 2.5)
    d.text(left + 9 * wide + 6, foot - scale * spent - 2, "spent D", "orange", 13, "start")
    d.text(
        left + 9 * wide + 6, foot - scale * spent + 15, f"{spent:.2f} nats", "orange", 13, "start"
    )
    d.text(left + 9 * wide + 6, foot - 6, "bars: one token", "soft", 13, "start")
    d.text(left + 3 * wide - 8, 80, "teacher: + or −, a coin", "red", 13, "end")
    d.text(left + 3 * wide - 8, 114, "student: − for sure: log 2", "red", 13, "end")
    d.text(
        left + 5 * wide,
        80,
        f"a second one: {2 * math.log(2):.2f}, over the line",
        "soft",
        13,
        "start",
    )
    d.text(
        20,
        302,
        "Everywhere else both expect the same token, and it costs nearly nothing.",
        "soft",
        13,
        "start",
    )
    return d


@drawing
def road() -> Drawing:
    "Lesson 10: from two folders to a student that runs alone, and which prompts each step sees."
    d = Drawing(760, 330, "The road of a student: check, distil, budget, train, certify, deploy.")
    brought = ("student", "teacher", "prompts", "a reward")
    for k, name in enumerate(brought):
        d.rect(20 + 92 * k, 20, 84, 32, "box", r=8)
        d.text(62 + 92 * k, 41, name, "orange" if name == "teacher" else "", 14)
    d.text(396, 41, "what you bring", "soft", 13, "start")
    steps = (
        ("check", ("same tokens?", "memory, time")),
        ("distil", ("imitate: the", "damage goes")),
        ("budget", ("d, so that a", "share keeps it")),
        ("train", ("R within d;", "checkpoints")),
        ("certify", ("k of n kept d:", "a bound")),
        ("deploy", ("a folder,", "as any other")),
    )
    wide, high, gap, top = 106, 82, 16, 104
    for k, (name, lines) in enumerate(steps):
        x = 20 + k * (wide + gap)
        station(d, x, top, (wide, high), name, lines, "here" if k == 5 else "box")
        if k:
            d.arrow([(x - gap, top + high / 2), (x, top + high / 2)], width=2)
    d.arrow([(73, 56), (73, top)], width=2)

    def span(first, last, y, said, kind):
        "A bar under the steps from first to last."
        x, end = 20 + first * (wide + gap), 20 + last * (wide + gap) + wide
        d.line([(x, y), (end, y)], kind, 5)
        d.text((x + end) / 2, y + 20, said, kind, 13)

    span(0, 4, 210, "the teacher is needed", "orange")
    span(5, 5, 210, "no teacher", "green")
    for first, last, said in (
        (1, 1, "train"),
        (2, 2, "validation"),
        (3, 3, "train"),
        (4, 4, "test, once"),
    ):
        span(first, last, 258, said, "blue")
    d.text(20, 262, "prompts:", size=13, anchor="start")
    foot = (
        "A killed run goes on at its last checkpoint. The bound holds for prompts like the test's."
    )
    d.text(20, 314, foot, "soft", 13, "start")
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
