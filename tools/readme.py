"""Write README.md from nbs/index.ipynb, without quarto.

    python tools/readme.py            write README.md
    python tools/readme.py --check    exit 1, with a diff, if README.md is not what the notebook gives
    python tools/readme.py --block install-and-run
                                      print the fenced block after the comment <!-- ci: install-and-run -->

Markdown cells are taken as they are, with relative links rewritten from nbs/ to the root of the repository.
Code cells become python fences, their text outputs plain fences. A cell that begins with `#| hide` is left out;
`#| echo: false` keeps only its output. Other directive lines are dropped.
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


def from_root(target: str, folder: str = "nbs") -> str:
    "A link as written in `folder`, as seen from the root. URLs, anchors and absolute paths stay."
    if re.match(r"[a-zA-Z][\w+.-]*:|[#/]", target):
        return target
    path, hash_, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(folder, path)) + hash_ + anchor


def relink(text: str) -> str:
    "Markdown with its relative links rewritten, except inside fenced code."

    def fix(part):
        return LINKS.sub(lambda m: (m[1] or m[3]) + from_root(m[2] or m[4]), part)

    out, end = [], 0
    for m in FENCE.finditer(text):
        out += [fix(text[end : m.start()]), m[0]]
        end = m.end()
    return "".join(out) + fix(text[end:])


def fenced(text: str, language: str = "") -> str:
    "`text` in a fence that is longer than any fence inside it."
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"^`+", text, re.M)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def output_blocks(outputs: list[dict]) -> list[str]:
    "The outputs that text can show: markdown as it is, plain text in fences. Standard error and pictures are left out."
    blocks, printed = [], ""
    for out in outputs:
        data = out.get("data", {})
        if out["output_type"] == "stream" and out["name"] == "stdout":
            printed += "".join(out["text"])
            continue
        if "text/markdown" in data:
            block = "".join(data["text/markdown"]).strip()
        elif "text/plain" in data and not any(k.startswith("image/") for k in data):
            block = fenced("".join(data["text/plain"]))
        else:
            continue
        if printed.strip():
            blocks.append(fenced(printed))
        blocks.append(block)
        printed = ""
    if printed.strip():
        blocks.append(fenced(printed))
    return [re.sub(r"\x1b\[[0-9;]*m", "", b) for b in blocks]


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
    shown = (
        [fenced(code, "python")]
        if code and not any(re.fullmatch(r"echo:\s*false", d) for d in directives)
        else []
    )
    return shown + output_blocks(cell["outputs"])


def render(notebook: dict) -> str:
    "The README text of a notebook. Raises ValueError if an output shows where this checkout lies."
    text = "\n\n".join(b for cell in notebook["cells"] for b in cell_blocks(cell) if b) + "\n"
    if str(ROOT) in text:
        raise ValueError(
            f"the notebook contains the path of this checkout, {ROOT}: run it so that it prints relative paths"
        )
    return text


def marked_block(readme: str, name: str) -> str:
    "The content of the fenced bash block right after `<!-- ci: name -->`."
    found = re.findall(
        rf"<!-- ci: {re.escape(name)} -->\s*\n```(?:bash|sh)\n(.*?)^```", readme, re.M | re.S
    )
    if len(found) != 1:
        raise ValueError(
            f"README.md must have exactly one ```bash block right after <!-- ci: {name} -->, found {len(found)}"
        )
    return found[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="only compare; exit 1 with a diff if they differ"
    )
    parser.add_argument(
        "--block", metavar="NAME", help="print the command block of README.md with this marker"
    )
    args = parser.parse_args()
    try:
        old = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if args.block:
            print(marked_block(old, args.block), end="")
            return 0
        if not SOURCE.exists():
            raise ValueError("nbs/index.ipynb, the source of README.md, does not exist")
        new = render(json.loads(SOURCE.read_text(encoding="utf-8")))
    except ValueError as e:
        print(f"readme: {e}", file=sys.stderr)
        return 1
    if not args.check:
        if new != old:
            TARGET.write_text(new, encoding="utf-8")
        print("README.md " + ("written" if new != old else "is up to date"))
        return 0
    if new == old:
        print("README.md agrees with nbs/index.ipynb")
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(
            old.splitlines(True), new.splitlines(True), "README.md", "nbs/index.ipynb"
        )
    )
    print(
        "readme: README.md differs from nbs/index.ipynb; edit the notebook, then run: python tools/readme.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
