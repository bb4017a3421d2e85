"""Random mutants of a module: its source with one small error, everything else as it was.

    for mutant in sample(sources, seed=0):
        print(mutant.line, mutant.before, "->", mutant.after)

Not touched: docstrings, annotations, error messages and warnings, `__all__`. A mutant keeps the
numbers of all lines, so tracebacks and coverage fit.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass

# comparison -> its neighbour, and its opposite
TURNED = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
OTHER_NAME = {"min": "max", "any": "all", "minimum": "maximum", "argmin": "argmax", "ceil": "floor"}
OTHER_NAME |= {b: a for a, b in OTHER_NAME.items()}
DROPPED = {"detach", "clamp", "abs", "float", "clone", "nan_to_num"}


@dataclass(frozen=True)
class Change:
    "Characters `start`..`end` of a source, and what stands there instead."

    operator: str
    start: int
    end: int
    new: str


@dataclass(frozen=True)
class Mutant:
    """One error in one module, known by its first five fields, wherever the lines move to.

    `before` and `after`: the lines it is in, stripped and joined; `nth`: of all changes of a
    function that read so, counted from 0.
    """

    module: str
    function: str
    before: str
    after: str
    nth: int
    line: int
    change: Change

    @property
    def key(self) -> tuple:
        "What tells it from all others."
        return self.module, self.function, self.before, self.after, self.nth

    def text(self, source: str) -> str:
        "The module's source with the error in it."
        return source[: self.change.start] + self.change.new + source[self.change.end :]


class _Sites(ast.NodeVisitor):
    "Collects, for every place that can be changed, its changes."

    def __init__(self, source: str):
        self.source, self.sites, self.scope = source, [], []
        lines = source.splitlines(keepends=True)
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line))
        self.lines = lines
        self.visit(ast.parse(source))

    # ---- where things stand

    def at(self, line: int, column: int) -> int:
        "The character at a line (from 1) and a column in bytes."
        return self.starts[line - 1] + len(
            self.lines[line - 1].encode()[:column].decode(errors="ignore")
        )

    def span(self, node: ast.AST) -> tuple[int, int]:
        "First character of a node, and the one after its last."
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.AST) -> str:
        "The source of a node."
        return self.source[slice(*self.span(node))]

    def add(self, *changes: tuple[str, int, int, str]) -> None:
        "A place, with what can be done there."
        self.sites.append((".".join(self.scope), [Change(*change) for change in changes]))

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> tuple[int, int, str]:
        "The operator `old` between two nodes, to be replaced."
        start, end = self.span(left)[1], self.span(right)[0]
        found = self.source.index(old, start, end)
        return found, found + len(old), new

    # ---- what is left alone

    def visit_Raise(self, node):
        "Error messages."

    def visit_JoinedStr(self, node):
        "Messages."

    def visit_Assign(self, node):
        "`__all__` and names of files say nothing that could be wrong."
        if not (isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"):
            self.generic_visit(node)

    def visit_AnnAssign(self, node):
        "The value only; that of a field is its default."
        if node.value is not None:
            self.default(node.value)

    # ---- scopes, defaults

    def visit_ClassDef(self, node):
        "Its body."
        self.scope.append(node.name)
        for part in (*node.decorator_list, *node.body):
            self.visit(part)
        self.scope.pop()

    def visit_FunctionDef(self, node):
        "Defaults and body, no annotations."
        self.scope.append(node.name)
        for part in node.decorator_list:
            self.visit(part)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.default(default)
        for part in node.body:
            self.visit(part)
        self.scope.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def default(self, node):
        "A default: another number, another truth, another word."
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
            self.add(("default changed", *self.span(node), '"another"'))
        elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            self.add(*self.numbers(node, "default changed"))
        else:
            self.visit(node)

    # ---- the operators

    def visit_Compare(self, node):
        "A comparison turned."
        left = node.left
        for operator, right in zip(node.ops, node.comparators):
            old = _WORDS[type(operator)]
            self.add(
                *(
                    ("comparison turned", *self.between(left, right, old, new))
                    for new in TURNED[type(operator)]
                )
            )
            left = right
        self.generic_visit(node)

    def visit_BinOp(self, node):
        "Plus for minus, times for divided by; not between types."
        if type(node.op) in ARITHMETIC and not _is_text(node):
            old, new = ARITHMETIC[type(node.op)]
            name = "sign flipped" if old in "+-" else "operator changed"
            self.add((name, *self.between(node.left, node.right, old, new)))
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        "`+=` for `-=`."
        if isinstance(node.op, (ast.Add, ast.Sub)) and not _is_text(node):
            old, new = ARITHMETIC[type(node.op)]
            self.add(("sign flipped", *self.between(node.target, node.value, old + "=", new + "=")))
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        "A minus, a not or a ~ left out."
        start, inner = self.span(node)[0], self.span(node.operand)[0]
        name = "sign flipped" if isinstance(node.op, ast.USub) else "boolean negated"
        self.add((name, start, inner, ""))
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        "`and` for `or`."
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            self.add(("and / or", *self.between(left, right, old, new)))
        self.generic_visit(node)

    def numbers(self, node, name):
        "Other values for a number or a truth."
        start, end = self.span(node)
        value = node.value
        if isinstance(value, bool):
            others = [not value]
        else:
            others = [x for x in (1 - value, value + 1, value * 2) if x != value]
        return [(name, start, end, repr(x)) for x in dict.fromkeys(others)]

    def visit_Constant(self, node):
        "A number or a truth changed; texts stay."
        if isinstance(node.value, (int, float)):
            self.add(*self.numbers(node, "constant changed"))

    def condition(self, test):
        "A condition that always or never holds, or holds when it should not."
        start, end = self.span(test)
        self.add(
            ("boolean negated", start, end, f"not ({self.text(test)})"),
            ("always", start, end, _padded("True", self.text(test))),
            ("never", start, end, _padded("False", self.text(test))),
        )
        self.visit(test)

    def visit_If(self, node):
        "An arm that is always, or never, taken."
        self.condition(node.test)
        for part in (*node.body, *node.orelse):
            self.visit(part)

    def visit_IfExp(self, node):
        "The same inside an expression."
        self.condition(node.test)
        self.visit(node.body)
        self.visit(node.orelse)

    def visit_Return(self, node):
        "A value that is not returned."
        if node.value is not None:
            start, end = self.span(node.value)
            self.add(("return dropped", start, end, _padded("None", self.text(node.value))))
            self.visit(node.value)

    def visit_Expr(self, node):
        "A call that is not made; docstrings and warnings stay."
        if isinstance(node.value, ast.Call) and "warn" not in self.text(node.value.func):
            start, end = self.span(node)
            self.add(("call dropped", start, end, _padded("pass", self.text(node))))
            self.visit(node.value)
        elif isinstance(node.value, (ast.Yield, ast.YieldFrom, ast.Await)):
            self.generic_visit(node)

    def visit_Call(self, node):
        "min for max, any for all; `.detach()` and its like left out."
        name = node.func
        if isinstance(name, ast.Attribute) and name.attr in DROPPED:
            self.add(("method dropped", self.span(name.value)[1], self.span(node)[1], ""))
        last = name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")
        if last in OTHER_NAME:
            end = self.span(name)[1]
            self.add(("min / max", end - len(last), end, OTHER_NAME[last]))
        for word in node.keywords:
            if word.arg in ("min", "max") and last == "clamp":
                start = self.at(word.lineno, word.col_offset)
                self.add(("min / max", start, start + 3, OTHER_NAME[word.arg]))
        self.generic_visit(node)

    def visit_Slice(self, node):
        "One further at an end."
        for end in (node.lower, node.upper):
            if end is not None:
                stop = self.span(end)[1]
                self.add(*(("slice moved", stop, stop, by) for by in (" + 1", " - 1")))
        self.generic_visit(node)


_WORDS = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}


def _is_text(node: ast.AST) -> bool:
    "Whether texts are joined here."
    kinds = (ast.JoinedStr,)
    return any(
        isinstance(part, kinds) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in ast.iter_child_nodes(node)
    )


def _padded(new: str, old: str) -> str:
    "`new` on as many lines as `old`."
    lines = old.count("\n")
    return f"({new}{chr(10) * lines})" if lines else new


def _line_ends(source: str, start: int, end: int) -> tuple[int, int]:
    "The stretch from `start` to `end`, made longer to whole lines."
    last = source.find("\n", end)
    return source.rfind("\n", 0, start) + 1, last if last >= 0 else len(source)


def _on_one_line(text: str) -> str:
    "Lines stripped and joined."
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def places(module: str, source: str) -> list[list[Mutant]]:
    "For every place of a module's source, the mutants of it."
    found, same = [], {}
    for function, changes in _Sites(source).sites:
        made = []
        for change in changes:
            first, last = _line_ends(source, change.start, change.end)
            before = _on_one_line(source[first:last])
            new = source[first : change.start] + change.new + source[change.end : last]
            what = (module, function, before, _on_one_line(new))
            same[what] = same.get(what, -1) + 1
            line = source.count("\n", 0, change.start) + 1
            if what[2] != what[3]:
                made.append(Mutant(*what, same[what], line, change))
        found.append(made)
    return found


def compiles(text: str) -> bool:
    "Whether it is Python still."
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def sample(sources: dict[str, str], seed: int = 0) -> Iterator[Mutant]:
    "All places of all modules in random order, one random mutant at each: a prefix is a sample."
    chance = random.Random(seed)
    every = [place for module, source in sources.items() for place in places(module, source)]
    chance.shuffle(every)
    for place in every:
        chance.shuffle(place)
        for mutant in place:
            if compiles(mutant.text(sources[mutant.module])):
                yield mutant
                break
