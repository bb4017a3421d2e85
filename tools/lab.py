"""Drive a real JupyterLab in a headless Chromium: open a notebook, run it, move the controls of a widget, read what is drawn.

    with Lab(theme="dark") as lab:
        notebook = lab.open("00_start_here.ipynb")
        notebook.run("panel")                        # every cell down to the one with this id
        panel = notebook.widget("panel")
        panel.set(d=0.5)
        print(panel.numbers(), panel.blocks()[2]["marks"])
        panel.shot("panel.png")

Needs playwright (its Python package only), JupyterLab and a Chromium on PATH; `missing()` says what is not there. Nothing of the user's own Jupyter
settings is read or written, the notebooks are a copy, and the server listens on a free port of this machine, behind a random password.
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
SETTINGS = {  # of JupyterLab: no pop-up about news, and every cell in the page, also those far below
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
}


def chromium() -> str | None:
    "Path of a Chromium or Chrome, None where there is none."
    return next(
        (
            shutil.which(n)
            for n in ("chromium", "chromium-browser", "google-chrome", "chrome")
            if shutil.which(n)
        ),
        None,
    )


def missing() -> str:
    "What is not installed of what Lab needs, as a sentence; empty if nothing is missing."
    lacks = [
        n for n in ("playwright", "jupyterlab", "anywidget") if importlib.util.find_spec(n) is None
    ] + ["a Chromium on PATH (Debian: apt-get install chromium fonts-dejavu)"] * (
        chromium() is None
    )
    return f"not installed: {', '.join(lacks)}" if lacks else ""


class Lab(contextlib.ExitStack):
    """A JupyterLab with a copy of `folder`, and a browser window `width` pixels wide; both end with the `with` block.

    theme: "light" or "dark". files: further notebooks, name -> list of (id, source) code cells. Raises RuntimeError if something is missing or does not start.
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
        self.folder, self.width, self.height, self.theme, self.files = (
            Path(folder),
            width,
            height,
            theme,
            files or {},
        )

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
        from playwright.sync_api import sync_playwright

        self.work = Path(
            self.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        )
        self.root = self.work / "tutorials"
        shutil.copytree(
            self.folder,
            self.root,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "images"),
        )
        for name, cells in self.files.items():
            (self.root / name).write_text(json.dumps(notebook(cells)), encoding="utf-8")
        for name, settings in {
            **SETTINGS,
            "apputils-extension/themes": {"theme": THEMES[self.theme]},
        }.items():
            path = self.work / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings), encoding="utf-8")
        self.url, self.token = f"http://127.0.0.1:{free_port()}", secrets.token_hex(16)
        self._server()
        browser = self.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [],
        )
        self.callback(browser.close)
        self.context = browser.new_context(
            viewport={"width": self.width, "height": self.height},
            color_scheme=self.theme,
            extra_http_headers={"Authorization": f"token {self.token}"},
        )
        self.context.set_default_timeout(60_000)

    def _server(self) -> None:
        "Start JupyterLab and wait until it answers."
        places = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }
        env = {
            **os.environ,
            **{k: str(self.work / v) for k, v in places.items()},
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
        }
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
            command, env=env, cwd=self.root, stdout=log, stderr=log, start_new_session=True
        )
        self.callback(stop, server)
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(
                    urllib.request.Request(
                        f"{self.url}/api/status", headers={"Authorization": f"token {self.token}"}
                    ),
                    timeout=5,
                ).close()
                return
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(
                        "JupyterLab did not start: "
                        + (self.work / "server.log").read_text(errors="replace")[-2000:]
                    )
                time.sleep(0.1)

    def page(self, path: str):
        "A tab at `path` of the server, `/voila/render/panel.ipynb` say."
        page = self.context.new_page()
        page.goto(self.url + path, wait_until="domcontentloaded")
        return page

    def open(self, name: str) -> Notebook:
        "A tab with this notebook and a kernel of its own, the file browser folded away."
        page = self.page(f"/lab/workspaces/{secrets.token_hex(4)}/tree/{name}")
        page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.context?.isReady && window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel"
        )
        page.evaluate(
            """async () => { await jupyterapp.restored; jupyterapp.shell.collapseLeft(); jupyterapp.shell.currentWidget.content.widgets.forEach(c => { c.node.dataset.cell = c.model.id; }); }"""
        )
        return Notebook(page)


class Notebook:
    "A notebook in a tab of JupyterLab. `page`: the tab, for whatever playwright can do."

    def __init__(self, page):
        self.page = page

    def run(self, upto: str | None = None) -> None:
        "Run every cell, or those down to the one with this id, and wait. Raises RuntimeError with what a cell said if it failed."
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
        found = self.page.evaluate(
            """async ([cell, command]) => {
            const content = jupyterapp.shell.currentWidget.content, i = content.widgets.findIndex(c => c.model.id === cell);
            if (i < 0) return content.widgets.map(c => c.model.id).join(", ");
            content.deselectAll(); content.activeCellIndex = i;
            await jupyterapp.commands.execute(command);
            return null; }""",
            [cell, command],
        )
        if found is not None:
            raise RuntimeError(f"the notebook has no cell {cell!r}; it has {found}")

    def outputs(self, cell: str | None = None) -> list[dict]:
        "Outputs of a cell (of all cells), as they stand in the file."
        return self.page.evaluate(
            "cell => jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code' && (!cell || c.model.id === cell)).flatMap(c => c.model.outputs.toJSON())",
            cell,
        )

    def text(self, cell: str) -> str:
        "What a cell printed."
        return "".join(
            x if isinstance(x, str) else "".join(x)
            for o in self.outputs(cell)
            if o.get("name") == "stdout"
            for x in [o["text"]]
        )

    def _check(self) -> None:
        for o in self.outputs():
            if o["output_type"] == "error":
                raise RuntimeError(f"a cell failed with {o['ename']}: {o['evalue']}")

    def output(self, cell: str):
        "Locator of what a cell shows."
        return self.page.locator(f'[data-cell="{cell}"] .jp-Cell-outputArea')

    def widget(self, cell: str) -> Widget:
        "The widget that a cell shows, once it is drawn."
        return Widget(self.page, self.page.locator(f'[data-cell="{cell}"] .cmdp').first)

    def theme(self, theme: str) -> None:
        "Change to the light or the dark theme."
        self.page.emulate_media(color_scheme=theme)
        self.page.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", THEMES[theme]
        )
        self.page.wait_for_function(
            "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=theme == "dark"
        )

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
        "Move controls by name: sliders, menus and boxes as a reader's hand would, with the events of the browser. Raises RuntimeError if one does not take the value."
        for name, value in values.items():
            control = self.control(name)
            kind = control.first.evaluate("e => e.tagName === 'SELECT' ? 'select' : e.type")
            if kind == "range":
                control.fill(str(value))
            elif kind == "select":
                control.select_option(
                    value=json.dumps(
                        int(value) if isinstance(value, float) and value.is_integer() else value,
                        ensure_ascii=False,
                    )
                )  # as JavaScript writes it
            elif isinstance(value, bool):
                control.set_checked(value)
            else:
                for box in control.all():
                    box.set_checked(json.loads(box.get_attribute("value")) in value)
            if self.values()[name] != value:
                raise RuntimeError(f"{name} was set to {value!r} and is {self.values()[name]!r}")

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
        return dict(
            zip(
                self.at.locator(".numbers span").all_text_contents(),
                self.at.locator(".numbers b").all_text_contents(),
            )
        )

    def times(self, name: str, values: list[float]) -> list[float]:
        "Milliseconds from the event of a slider until the page is laid out anew, for each of `values`. Only where the browser computes (BudgetPanel)."
        return self.at.evaluate(
            """(e, [name, values]) => {
            const input = e.querySelector(`.head [data-name="${name}"]`); e.cmdpTimes = [];
            for (const v of values) { input.value = v; input.dispatchEvent(new Event("input", {bubbles: true})); }
            return e.cmdpTimes; }""",
            [name, values],
        )

    def shot(self, path) -> None:
        "Picture of the widget."
        settle(self.page)
        self.at.screenshot(path=path)


def settle(page) -> None:
    "Until two frames have been painted."
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def notebook(cells: list[tuple[str, str]]) -> dict:
    "A notebook of code cells, given as (id, source)."
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}
        },
        "cells": [
            {
                "cell_type": "code",
                "id": name,
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source,
            }
            for name, source in cells
        ],
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
