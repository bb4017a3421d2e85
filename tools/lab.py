"""Drive a real JupyterLab in a headless Chromium: run a notebook, move a widget's controls, look.

    with Lab(theme="dark") as lab:
        notebook = lab.open("00_start_here.ipynb")
        notebook.run("panel")                        # every cell down to the one with this id
        panel = notebook.widget("panel")
        panel.set(d=0.5)
        print(panel.numbers(), panel.blocks()[2]["marks"])
        panel.shot("panel.png")

Needs playwright (its Python package only), JupyterLab and a Chromium on PATH; `missing()` says what
is not there. Nothing of the user's own Jupyter settings is read or written, the notebooks are a
copy, and the server listens on a free port of this machine, behind a random password.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SETTINGS = {  # of JupyterLab: no pop-up about news, every cell in the page, also those far below
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
}


PLACES = {  # of Jupyter's own files
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
}

# ---- what is said to the page -------------------------------------------------------------

READY = """() => {
    const shown = window.jupyterapp?.shell.currentWidget;
    return shown?.context?.isReady && shown.sessionContext.session?.kernel;
}"""
ARRANGE = """async () => {
    await jupyterapp.restored;
    jupyterapp.shell.collapseLeft();
    for (const cell of jupyterapp.shell.currentWidget.content.widgets)
        cell.node.dataset.cell = cell.model.id;
}"""
COMMAND_AT = """async ([id, command]) => {
    const content = jupyterapp.shell.currentWidget.content;
    const ids = content.widgets.map(cell => cell.model.id), i = ids.indexOf(id);
    if (i < 0) return ids.join(", ");
    content.deselectAll();
    content.activeCellIndex = i;
    await jupyterapp.commands.execute(command);
    return null;
}"""
OUTPUTS = """id => jupyterapp.shell.currentWidget.content.widgets
    .map(cell => cell.model)
    .filter(model => model.type === "code" && (!id || model.id === id))
    .flatMap(model => model.outputs.toJSON())"""
TIMES = """(widget, [name, values]) => {
    const input = widget.querySelector(`.head [data-name="${name}"]`);
    widget.cmdpTimes = [];
    for (const value of values) {
        input.value = value;
        input.dispatchEvent(new Event("input", {bubbles: true}));
    }
    return widget.cmdpTimes;
}"""
PAINTED = """() => new Promise(
    done => requestAnimationFrame(() => requestAnimationFrame(done))
)"""

# ---- what it needs ------------------------------------------------------------------------


def chromium() -> str | None:
    "Path of a Chromium or Chrome, None where there is none."
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


def missing() -> str:
    "What is not installed of what Lab needs, as a sentence; empty if nothing is missing."
    packages = ("playwright", "jupyterlab", "anywidget")
    lacks = [name for name in packages if importlib.util.find_spec(name) is None]
    if chromium() is None:
        lacks.append("a Chromium on PATH (Debian: apt-get install chromium fonts-dejavu)")
    return f"not installed: {', '.join(lacks)}" if lacks else ""


# ---- server and browser -------------------------------------------------------------------


class Lab(contextlib.ExitStack):
    """A JupyterLab with a copy of `folder`, and a browser; both end with the `with` block.

    width, height: of the window, in pixels. theme: "light" or "dark". files: further notebooks,
    name -> list of (id, source) code cells. Raises RuntimeError if something is missing or does not
    start.
    """

    def __init__(
        self,
        folder: Path = ROOT / "tutorials",
        width: int = 1280,
        height: int = 1300,
        theme: str = "light",
        files: dict | None = None,
    ):
        super().__init__()
        self.folder, self.files, self.theme = Path(folder), files or {}, theme
        self.width, self.height = width, height

    def __enter__(self) -> Lab:
        super().__enter__()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        if lacks := missing():
            raise RuntimeError(lacks)
        temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.work = Path(self.enter_context(temporary))
        self.root = self.work / "tutorials"
        self.url, self.token = f"http://127.0.0.1:{free_port()}", secrets.token_hex(16)
        self._write_files()
        self._wait_for(self._server())
        self._browser()

    def _write_files(self) -> None:
        "The notebooks, and the settings of JupyterLab."
        unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.png")
        shutil.copytree(self.folder, self.root, ignore=unwanted)
        for name, cells in self.files.items():
            (self.root / name).write_text(json.dumps(notebook(cells)), encoding="utf-8")
        theme = {"apputils-extension/themes": {"theme": THEMES[self.theme]}}
        for name, settings in {**SETTINGS, **theme}.items():
            path = self.work / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings), encoding="utf-8")

    def _server(self) -> subprocess.Popen:
        "Start JupyterLab."
        places = {name: str(self.work / place) for name, place in PLACES.items()}
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        log = self.enter_context(open(self.work / "server.log", "wb"))
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--expose-app-in-browser",
            "--ip=127.0.0.1",
            f"--port={self.url.rsplit(':', 1)[1]}",
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.root}",
            "--allow-root",
        ]
        server = subprocess.Popen(
            command,
            env={**os.environ, **places, **quiet},
            cwd=self.root,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.callback(stop, server)
        return server

    def _wait_for(self, server: subprocess.Popen) -> None:
        "Until the server answers."
        password = {"Authorization": f"token {self.token}"}
        question = urllib.request.Request(f"{self.url}/api/status", headers=password)
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(question, timeout=5).close()
                return
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    said = (self.work / "server.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError("JupyterLab did not start: " + said)
                time.sleep(0.1)

    def _browser(self) -> None:
        "Start Chromium."
        from playwright.sync_api import sync_playwright

        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = self.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium(), args=["--no-sandbox"] if root else []
        )
        self.callback(browser.close)
        self.context = browser.new_context(
            viewport={"width": self.width, "height": self.height},
            color_scheme=self.theme,
            extra_http_headers={"Authorization": f"token {self.token}"},
        )
        self.context.set_default_timeout(60_000)

    def page(self, path: str):
        "A tab at `path` of the server, `/voila/render/panel.ipynb` say."
        page = self.context.new_page()
        page.goto(self.url + path, wait_until="domcontentloaded")
        return page

    def open(self, name: str) -> Notebook:
        "A tab with this notebook and a kernel of its own, the file browser folded away."
        page = self.page(f"/lab/workspaces/{secrets.token_hex(4)}/tree/{name}")
        page.wait_for_function(READY)
        page.evaluate(ARRANGE)
        return Notebook(page)


# ---- a notebook and its widgets -----------------------------------------------------------


class Notebook:
    "A notebook in a tab of JupyterLab. `page`: the tab, for whatever playwright can do."

    def __init__(self, page):
        self.page = page

    def run(self, upto: str | None = None) -> None:
        """Run every cell, or those down to the one with this id, and wait.

        Raises RuntimeError with what a cell said if it failed.
        """
        if upto is None:
            self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
        else:
            self._at(upto, "notebook:run-all-above")
            self.run_cell(upto)
        self._check()

    def run_cell(self, cell: str) -> None:
        "Run one cell, by its id, and wait."
        self._at(cell, "notebook:run-cell")
        self._check()

    def _at(self, cell: str, command: str) -> None:
        "A command of JupyterLab with this cell as the active one."
        found = self.page.evaluate(COMMAND_AT, [cell, command])
        if found is not None:
            raise RuntimeError(f"the notebook has no cell {cell!r}; it has {found}")

    def outputs(self, cell: str | None = None) -> list[dict]:
        "Outputs of a cell (of all cells), as they stand in the file."
        return self.page.evaluate(OUTPUTS, cell)

    def text(self, cell: str) -> str:
        "What a cell printed."
        printed = [out["text"] for out in self.outputs(cell) if out.get("name") == "stdout"]
        return "".join("".join(text) for text in printed)

    def _check(self) -> None:
        for out in self.outputs():
            if out["output_type"] == "error":
                raise RuntimeError(f"a cell failed with {out['ename']}: {out['evalue']}")

    def output(self, cell: str):
        "Locator of what a cell shows."
        return self.page.locator(f'[data-cell="{cell}"] .jp-Cell-outputArea')

    def widget(self, cell: str) -> Widget:
        "The widget that a cell shows, once it is drawn."
        return Widget(self.page, self.page.locator(f'[data-cell="{cell}"] .cmdp').first)

    def theme(self, theme: str) -> None:
        "Change to the light or the dark theme."
        self.page.emulate_media(color_scheme=theme)
        change = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
        self.page.evaluate(change, THEMES[theme])
        changed = "dark => document.body.dataset.jpThemeLight === String(!dark)"
        self.page.wait_for_function(changed, arg=theme == "dark")

    def width(self, width: int) -> None:
        "Make the window this many pixels wide."
        self.page.set_viewport_size({"width": width, "height": self.page.viewport_size["height"]})
        settle(self.page)

    def shot(self, path, cell: str | None = None) -> None:
        "Picture of what a cell shows, or of the window."
        settle(self.page)
        (self.output(cell) if cell else self.page).screenshot(path=path)


class Widget:
    "A widget of cmdp_nbdev.widgets in a page. `at`: its locator."

    def __init__(self, page, at):
        self.page, self.at = page, at
        at.locator("svg[role=img]").first.wait_for()

    def control(self, name: str):
        "Locator of the control of this name (several for boxes to tick)."
        return self.at.locator(f'.head [data-name="{name}"]')

    def set(self, **values) -> None:
        """Move controls by name, with the events of the browser, as a reader's hand would.

        Sliders, menus and boxes. Raises RuntimeError if one does not take the value.
        """
        for name, value in values.items():
            self._set(self.control(name), value)
            if self.values()[name] != value:
                raise RuntimeError(f"{name} was set to {value!r} and is {self.values()[name]!r}")

    def _set(self, control, value) -> None:
        "Move one control, unfolded first if need be."
        control.first.evaluate(
            "e => { const fold = e.closest('details'); if (fold) fold.open = true; }"
        )
        kind = control.first.evaluate("e => e.tagName === 'SELECT' ? 'select' : e.type")
        if kind == "range":
            control.fill(str(value))
        elif kind == "select":  # its options are what JavaScript writes: 1, not 1.0
            whole = isinstance(value, float) and value.is_integer()
            text = json.dumps(int(value) if whole else value, ensure_ascii=False)
            control.select_option(value=text)
        elif isinstance(value, bool):
            control.set_checked(value)
        else:
            for box in control.all():
                box.set_checked(json.loads(box.get_attribute("value")) in value)

    def press(self, label: str) -> None:
        "Click a button by its text."
        self.at.locator(".head").get_by_role("button", name=label, exact=True).click()

    def values(self) -> dict:
        "Values of all controls."
        return json.loads(self.at.get_attribute("data-values"))

    def blocks(self) -> list[dict]:
        "The data behind the picture: what is drawn at this moment."
        return self.at.evaluate("e => e.cmdpBlocks()")

    def numbers(self) -> dict[str, str]:
        "The numbers as text in the page, by their labels."
        labels = self.at.locator(".numbers span").all_text_contents()
        return dict(zip(labels, self.at.locator(".numbers b").all_text_contents()))

    def times(self, name: str, values: list[float]) -> list[float]:
        """Milliseconds from the event of a slider until the page is laid out anew, per value.

        Only where the browser computes (BudgetPanel).
        """
        return self.at.evaluate(TIMES, [name, values])

    def shot(self, path) -> None:
        "Picture of the widget."
        settle(self.page)
        self.at.screenshot(path=path)


def settle(page) -> None:
    "Until two frames have been painted."
    page.evaluate(PAINTED)


# ---- small things -------------------------------------------------------------------------


def notebook(cells: list[tuple[str, str]]) -> dict:
    "A notebook of code cells, given as (id, source)."
    empty = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": kernel},
        "cells": [{**empty, "id": name, "source": source} for name, source in cells],
    }


def free_port() -> int:
    "A port of this machine that nobody listens on."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def stop(server: subprocess.Popen) -> None:
    "End a Jupyter server; at the signal it ends its kernels too."
    if server.poll() is not None:
        return
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
