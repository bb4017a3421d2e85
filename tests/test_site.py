"""The site: that every page is found and leads somewhere, without making it."""

import json
import posixpath
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import make_site as sites

PAGES = sites.staged()
LINK = re.compile(r"\]\(([^()\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^(`{3,}).*?^\1", re.M | re.S)


def texts(name: str, source: str) -> list[str]:
    "The prose of a page, without code."
    if not name.endswith(".ipynb"):
        return [FENCE.sub("", source)]
    cells = json.loads(source)["cells"]
    prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return [FENCE.sub("", text) for text in prose]


def links(name: str, source: str) -> list[str]:
    "The relative links of a page, without what follows #."
    found = [a or b for text in texts(name, source) for a, b in LINK.findall(text)]
    return [x.partition("#")[0] for x in found if not re.match(r"[a-zA-Z][\w+.-]*:|#", x)]


@pytest.mark.parametrize("name", [n for n in PAGES if n.endswith((".md", ".ipynb"))])
def test_links_of_a_page(name):
    "In the repository a link leads to a file that is there, on the site to a page that is there."
    source = (ROOT / name).read_text(encoding="utf-8")
    folder = posixpath.dirname(name)
    broken = [x for x in links(name, source) if not (ROOT / folder / x).exists()]
    assert not broken
    places = set(PAGES.values()) | {"index.html"}
    places |= {re.sub(r"\.(md|ipynb)$", ".html", place) for place in places}
    places |= {re.sub(r"README\.(md|html)$", "index.html", place) for place in places}
    here = posixpath.dirname(PAGES[name])
    leads = links(name, sites.page_of(name, PAGES))
    lost = [x for x in leads if posixpath.normpath(posixpath.join(here, x)) not in places]
    assert not lost


def entries(part) -> list[str]:
    "All pages of the navigation."
    if isinstance(part, str):
        return [part]
    parts = part.values() if isinstance(part, dict) else part
    return [name for p in parts for name in entries(p)]


def test_every_page_is_in_the_navigation():
    "A page that no menu names is found by nobody."
    wanted = {place for name, place in PAGES.items() if name.endswith((".md", ".ipynb"))}
    assert set(entries(sites.navigation())) == wanted | {"index.md"}


def test_formulas_become_mathml():
    "Prices and code are no formulas."
    pytest.importorskip("latex2mathml", reason='pip install ".[docs]"')
    made = sites.with_formulas("costs $5 or `$x$`, with $\\lambda\\ge0$ and\n\n$$D\\le d$$\n")
    assert made.count("<math") == 2 and "`$x$`" in made and "costs $5 or" in made
