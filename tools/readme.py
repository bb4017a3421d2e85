"""Write README.md from nbs/index.ipynb, without quarto.

    python tools/readme.py            write README.md
    python tools/readme.py --check    exit 1, with a diff, if README.md is not what it would be
    python tools/readme.py --block install-and-run
                                      print the fenced block after <!-- ci: install-and-run -->

Markdown cells are taken as they are, with relative links rewritten from nbs/ to the root of the
repository. Code cells become python fences, their text outputs plain fences. A cell that begins
with `#| hide` is left out; `#| echo: false` keeps only its output. Other directives are dropped.
"""

from __future__ import annotations

import argparse
import difflib
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
LINKS = re.compile(r"(\]\()([^)\s]+)(?=[)\s])|(\b(?:src|href)=[\"'])([^\"']+)(?=[\"'])")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[`~]*[ \t]*$", re.M | re.S)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


# ---- markdown -----------------------------------------------------------------------------


def from_root(target: str, folder: str = "nbs") -> str:
    "A link as written in `folder`, as seen from the root. URLs, anchors and absolute paths stay."
    if re.match(r"[a-zA-Z][\w+.-]*:|[#/]", target):
        return target
    path, hash_, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(folder, path)) + hash_ + anchor


def relink(text: str) -> str:
    "Markdown with its relative links rewritten, except inside fenced code."

    def rewritten(link: re.Match) -> str:
        return (link[1] or link[3]) + from_root(link[2] or link[4])

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINKS.sub(rewritten, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(parts) + LINKS.sub(rewritten, text[end:])


def fenced(text: str, language: str = "") -> str:
    "`text` in a fence that is longer than any fence inside it."
    inside = [len(ticks) for ticks in re.findall(r"^`+", text, re.M)]
    ticks = "`" * max([3, *(n + 1 for n in inside)])
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


# ---- cells --------------------------------------------------------------------------------


def shown(output: dict) -> tuple[str, str]:
    "What text can show of an output: its kind (printed, value, markdown or nothing) and the text."
    data = output.get("data", {})
    if output["output_type"] == "stream":
        return ("printed", "".join(output["text"])) if output["name"] == "stdout" else ("", "")
    if "text/markdown" in data:
        return "markdown", "".join(data["text/markdown"]).strip()
    if "text/plain" in data and not any(kind.startswith("image/") for kind in data):
        return "value", "".join(data["text/plain"])
    return "", ""  # a picture


def output_blocks(outputs: list[dict]) -> list[str]:
    "Markdown as it is, all other text in fences, what was printed in one piece in one of them."
    blocks, printed = [], ""
    for kind, text in [*map(shown, outputs), ("end", "")]:
        if kind == "printed":
            printed += text
            continue
        if kind and printed.strip():
            blocks.append(fenced(printed))
            printed = ""
        if kind == "value":
            blocks.append(fenced(text))
        elif kind == "markdown":
            blocks.append(text)
    return [COLOURS.sub("", block) for block in blocks]


def cell_blocks(cell: dict) -> list[str]:
    "The markdown blocks of one cell; an empty list for a hidden one."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [relink(source.strip())]
    if cell["cell_type"] != "code":
        return []
    directives = re.findall(r"^#\|\s*(.*?)\s*$", source, re.M)
    if any(d.split()[:1] in (["hide"], ["default_exp"]) for d in directives):
        return []
    code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    silent = any(re.fullmatch(r"echo:\s*false", d) for d in directives)
    blocks = [fenced(code, "python")] if code and not silent else []
    return blocks + output_blocks(cell["outputs"])


def render(notebook: dict) -> str:
    "The README text of a notebook. Raises ValueError if an output shows where this checkout lies."
    blocks = [block for cell in notebook["cells"] for block in cell_blocks(cell) if block]
    text = "\n\n".join(blocks) + "\n"
    if str(ROOT) in text:
        told = f"the notebook contains the path of this checkout, {ROOT}"
        raise ValueError(f"{told}: run it so that it prints relative paths")
    return text


def marked_block(readme: str, name: str) -> str:
    "The content of the fenced bash block right after `<!-- ci: name -->`."
    block = rf"<!-- ci: {re.escape(name)} -->\s*\n```(?:bash|sh)\n(.*?)^```"
    found = re.findall(block, readme, re.M | re.S)
    if len(found) != 1:
        where = f"exactly one ```bash block right after <!-- ci: {name} -->"
        raise ValueError(f"README.md must have {where}, found {len(found)}")
    return found[0]


# ---- command line -------------------------------------------------------------------------


def check(old: str, new: str) -> int:
    "Say whether README.md is as it should be; the exit status."
    if new == old:
        print("README.md agrees with nbs/index.ipynb")
        return 0
    names = "README.md", "nbs/index.ipynb"
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names))
    advice = "edit the notebook, then run: python tools/readme.py"
    print(f"readme: README.md differs from nbs/index.ipynb; {advice}", file=sys.stderr)
    return 1


def write(old: str, new: str) -> int:
    "Write README.md if it changed."
    if new != old:
        TARGET.write_text(new, encoding="utf-8")
    print("README.md " + ("written" if new != old else "is up to date"))
    return 0


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = "only compare; exit 1 with a diff if they differ"
    parser.add_argument("--check", action="store_true", help=about)
    about = "print the command block of README.md with this marker"
    parser.add_argument("--block", metavar="NAME", help=about)
    return parser.parse_args()


def main() -> int:
    "Do what the command line asks for; the exit status."
    args = arguments()
    try:
        old = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if args.block:
            print(marked_block(old, args.block), end="")
            return 0
        if not SOURCE.exists():
            raise ValueError("nbs/index.ipynb, the source of README.md, does not exist")
        new = render(json.loads(SOURCE.read_text(encoding="utf-8")))
    except ValueError as error:
        print(f"readme: {error}", file=sys.stderr)
        return 1
    return check(old, new) if args.check else write(old, new)


if __name__ == "__main__":
    sys.exit(main())
