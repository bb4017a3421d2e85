"""docs/index.html: what is shown to somebody who has installed nothing."""

import re
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from cmdp_nbdev.task import Flaw, parse_prompt, prompt_frontier, write_chain
from cmdp_nbdev.widgets.panel import judge, load_traces

sys.path.insert(0, str(ROOT / "tools"))
import lab as labs
import page as pages

LOADS = re.compile(r'\bsrc="|<link|@import|url\(|fetch\(|import\(|XMLHttpRequest')


def test_the_page_is_up_to_date():
    "What the page shows must be what the committed files say, today."
    assert pages.TARGET.read_text(encoding="utf-8") == pages.render(), "run: python tools/page.py"


def test_the_page_needs_nothing_else():
    "It is opened from a folder, on a plane."
    text = pages.TARGET.read_text(encoding="utf-8")
    assert len(text.encode()) < pages.MAX_BYTES
    assert not LOADS.search(text)
    for path in re.findall(r'href="(\.\./[^"#]+)"', text):
        assert (pages.TARGET.parent / path).exists(), path


def percent(text: str) -> float:
    "The first share in a text."
    return float(re.search(r"([\d.]+)%", text)[1]) / 100


@pytest.fixture(scope="module")
def browser():
    "A Chromium."
    if labs.chromium() is None:
        pytest.skip("no chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=labs.chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser):
    "The page in a window of a phone's width; fails if the console has anything to say."
    tab, said = browser.new_page(viewport={"width": 360, "height": 740}), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(pages.TARGET.as_uri())
    yield tab
    assert not said
    tab.close()


@pytest.mark.slow
def test_the_page_in_a_browser(page):
    "Its numbers are made in JavaScript, and must be those of the package."
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    the_purse(page)
    the_panel(page)
    the_comparison(page)


def the_purse(page):
    "Moved by keys; its best is that of dynamic programming for the prompt it speaks of."
    prompt = "3*6*7*8="
    assert prompt in page.locator("#purse").inner_text()
    _, steps = parse_prompt(prompt)
    assert all(Flaw().hits(*step) for step in steps)
    assert write_chain(prompt) in page.locator("#purse").inner_text()
    page.locator("#p0").focus()
    page.keyboard.press("End")
    said = page.locator("#purse-say")
    assert percent(said.inner_text()) == pytest.approx(0.25)
    assert "0.69 of 0.80 nats" in said.inner_text()
    page.locator("#p1").press("Home")
    assert "overdrawn" in said.inner_text()
    page.get_by_role("button", name="show me the best").click()
    best = prompt_frontier(prompt, 0.8, grid=13)[-1]  # a third of 0.8 is on this grid
    assert "exact optimum" in said.inner_text()
    assert percent(said.inner_text()) == pytest.approx(best, abs=6e-4)


def the_panel(page):
    "Rates of the shipped traces, under a limit that was moved, and the student that goes with it."
    page.locator("#panel-student").select_option("cmdp")
    page.locator("#panel-d").fill("0.45")
    (trace,) = (
        t
        for t in load_traces()
        if (t["label"], t["budget"], t["seed"]) == ("cmdp", 0.4, pages.SEED)
    )
    seen = [
        percent(text) for text in page.locator("#panel-table tr").last.inner_text().split("\t")[1:4]
    ]
    wanted = [judge(trace, 0.45)[k] for k in ("satisfaction_rate", *pages.RATES[::2])]
    np.testing.assert_allclose(seen, wanted, atol=3e-3)  # nats are rounded to thousandths


def the_comparison(page):
    "The default's row is the mean of its rows in the study; another method can be added."
    runs = pd.read_csv(pages.STUDY / "report.csv")
    rows = page.locator("#compare-table tr")
    before = rows.count()
    first = rows.filter(has_text="cmdp-rate").inner_text().split("\t")
    mean = runs.query("name == 'cmdp-rate'")["accuracy_within_budget"].mean()
    assert percent(first[1]) == pytest.approx(mean, abs=6e-4)
    page.locator("#compare-methods").get_by_label("weakest-link").check()
    assert rows.count() == before + 1
    assert "diverged: weakest-link" in page.locator("#compare-say").inner_text()
