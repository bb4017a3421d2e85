"""Make the site: the page that needs no Python, the course, the reference and the studies.

    pip install ".[docs]"
    python tools/make_site.py                   write it into _docs/, plain files
    python tools/make_site.py --stage FOLDER    only what mkdocs is given, for a look

Nothing is run: notebooks are shown as they are stored. mkdocs-material with mkdocs-jupyter makes
the pages and the search. Fonts are the reader's own and formulas are MathML (latex2mathml), so no
page needs anything from elsewhere; any web server will do (python -m http.server -d _docs). In what
is copied, links to notebooks become links to their pages, and a link to a file that the site does
not have (code, say) becomes its text.
"""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import page as pages

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "_docs"
PAGES = ("tutorials/*.ipynb", "nbs/*.ipynb", "nbs/widgets/*.ipynb", "nbs/theory/*.ipynb")
TEXTS = ("tutorials/README.md", "studies/README.md", "studies/*/README.md", "recipes/README.md")
PICTURES = ("tutorials/images/*", "studies/*/*.svg", "studies/*/*.png")
MOVED = {
    "README.md": "about.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LEFT_OUT = ("nbs/index.ipynb", "tutorials/panel.ipynb")  # the README; a page for voila
LINKS = {  # of docs/index.html, on the site
    "readme": "about.html",
    "course": "tutorials/index.html",
    "methods": "studies/methods/index.html",
    "theory": "nbs/theory/02_guarantees.html",
}
SETTINGS = {
    "site_name": "cmdp_nbdev",
    "use_directory_urls": False,
    "theme": {
        "name": "material",
        "font": False,
        "features": ["navigation.indexes", "navigation.footer", "search.highlight"],
        "palette": [
            {
                "media": f"(prefers-color-scheme: {scheme})",
                "scheme": name,
                "toggle": {"icon": icon, "name": f"switch to {other}"},
            }
            for scheme, name, icon, other in (
                ("light", "default", "material/weather-night", "dark"),
                ("dark", "slate", "material/weather-sunny", "light"),
            )
        ],
    },
    "plugins": ["search", {"mkdocs-jupyter": {"execute": False, "ignore_h1_titles": True}}],
    "markdown_extensions": ["tables", "attr_list", "md_in_html", "pymdownx.superfences"],
}
LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)|(\b(?:src|href)=\")([^\"]+)(?=\")"
)

# ---- what is on the site --------------------------------------------------------------------


def found(*patterns: str) -> list[str]:
    "Files of the repository, by their paths from its root."
    paths = (path for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    names = [path.relative_to(ROOT).as_posix() for path in paths if path.is_file()]
    return [name for name in names if name not in LEFT_OUT]


def staged() -> dict[str, str]:
    "Path in the repository -> path among the sources of the site."
    return {name: MOVED.get(name, name) for name in [*MOVED, *found(*PAGES, *TEXTS, *PICTURES)]}


def title(name: str) -> str:
    "The title of a page: its first heading."
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
        text = "\n".join("".join(cell["source"]) for cell in cells)
    heading = re.search(r"^# (.+)$", text, re.M)
    return heading[1].replace("`", "") if heading else posixpath.basename(name)


def numbered(*patterns: str) -> list[dict]:
    "Entries of the navigation, each with its title."
    return [{title(name): name} for name in found(*patterns)]


def navigation() -> list:
    "The order of the pages."
    studies = [{posixpath.dirname(name)[8:]: name} for name in found("studies/*/README.md")]
    reference = numbered("nbs/*.ipynb")
    reference += [{"Widgets": numbered("nbs/widgets/*.ipynb")}]
    reference += [{"Theory": numbered("nbs/theory/*.ipynb")}]
    return [
        {"Start": "index.md"},
        {"About": [{"README": "about.md"}, *({title(n): MOVED[n]} for n in list(MOVED)[1:])]},
        {"Course": ["tutorials/README.md", *numbered("tutorials/[0-9]*.ipynb")]},
        {"Reference": reference},
        {"Studies": ["studies/README.md", *studies, {"Recipes": "recipes/README.md"}]},
    ]


# ---- formulas -------------------------------------------------------------------------------

APART = re.compile(r"(^(`{3,})[^\n]*\n.*?^\2[ \t]*$|`[^`\n]+`)", re.M | re.S)  # code
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\d$])", re.S)


def with_formulas(text: str) -> str:
    "Markdown with its formulas as MathML, which browsers draw by themselves."
    from latex2mathml.converter import convert

    def drawn(formula: re.Match) -> str:
        display = "block" if formula[1] else "inline"
        return convert((formula[1] or formula[2]).strip(), display=display).replace("\n", " ")

    parts = APART.split(text)  # a text, code and its fence, a text ...
    return "".join(
        FORMULA.sub(drawn, part) if i % 3 == 0 else part
        for i, part in enumerate(parts)
        if i % 3 < 2
    )


# ---- links ----------------------------------------------------------------------------------


def target_of(link: str, source: str, pages: dict[str, str]) -> str | None:
    "Where a link of the page `source` leads on the site; None if the site has no such file."
    if re.match(r"[a-zA-Z][\w+.-]*:|#", link):
        return link
    path, hash_, anchor = link.partition("#")
    name = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if name == "docs/index.html":
        place = "index.html"
    else:
        folder = posixpath.join(name, "README.md")
        name = folder if folder in pages else name
        if name not in pages:
            return None
        place = pages[name]
    if source.endswith(".ipynb") or place == "index.html":  # mkdocs leaves these links alone
        place = re.sub(r"README\.(md|ipynb)$", "index.html", place)
        place = re.sub(r"\.(md|ipynb)$", ".html", place)
    here = posixpath.dirname(pages[source]) or "."
    return posixpath.relpath(place, here) + hash_ + anchor


def relinked(text: str, source: str, pages: dict[str, str]) -> str:
    "Markdown with the links of the site."

    def rewritten(link: re.Match) -> str:
        if link[4]:
            return link[4] + (target_of(link[5], source, pages) or link[5])
        inside = relinked(link[2], source, pages)
        to = target_of(link[3], source, pages)
        return f"{link[1]}[{inside}]({to})" if to else inside

    return LINK.sub(rewritten, text)


def page_of(name: str, pages: dict[str, str], formulas=lambda text: text) -> str:
    "The source of a page of the site; `formulas` is what is done to its formulas."
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".ipynb"):
        return formulas(relinked(text, name, pages))
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            linked = formulas(relinked("".join(cell["source"]), name, pages))
            cell["source"] = linked.splitlines(keepends=True)
    return json.dumps(notebook)


# ---- making it ------------------------------------------------------------------------------


def stage(folder: Path) -> None:
    "Write what mkdocs is given into a folder: the sources, and its settings."
    pages_, sources = staged(), folder / "sources"
    for name, place in pages_.items():
        path = sources / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".md", ".ipynb")):
            path.write_text(page_of(name, pages_, with_formulas), encoding="utf-8")
        else:
            shutil.copy(ROOT / name, path)
    (sources / "index.md").write_text("# cmdp_nbdev\n", encoding="utf-8")  # its place is taken
    settings = SETTINGS | {"nav": navigation(), "docs_dir": "sources", "site_dir": "site"}
    (folder / "mkdocs.yml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML


def build(target: Path) -> None:
    "Write the site. Raises SystemExit where mkdocs is missing or fails."
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder))
        command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", "mkdocs.yml"]
        done = subprocess.run(command, cwd=folder, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
        if done.returncode:
            raise SystemExit('mkdocs failed; is it there? pip install ".[docs]"')
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(folder) / "site", target)
    (target / "index.html").write_text(pages.render(LINKS), encoding="utf-8")


def main() -> None:
    "See the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", type=Path, metavar="FOLDER", help="write the sources only")
    args = parser.parse_args()
    if args.stage:
        stage(args.stage)
        return
    build(TARGET)
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{TARGET.relative_to(ROOT)}/index.html; {size / 1e6:.0f} MB in all")


if __name__ == "__main__":
    main()
