"""Pictures of the lessons for tutorials/README.md, taken in a real JupyterLab.

The main widget of each, before and after its control is moved:

    python tools/lesson_images.py           all lessons
    python tools/lesson_images.py 03 05     these

Needs what tools/lab.py needs. Writes tutorials/images/NN_name.png and NN_name_moved.png.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lab import Lab, Notebook, Widget
from outputs import TUTORIALS, small_png

IMAGES = TUTORIALS / "images"
MAX_BYTES = 60_000

# lesson -> cell of its main widget, what the text asks to move, and for a live trainer the updates
# at which the pictures are taken
MAIN = {
    "00_start_here": ("panel", {"d": 0.4}),
    "01_generation_is_an_mdp": ("micro", {"follow": True}),
    "02_the_budget": ("panel", {"d": 0.35}),
    "03_why_not_just_lambda": ("explorer", {"d": 1.8}),
    "04_saute_and_no_augmentation": ("panel", {"method": "cmdp"}),
    "05_the_modified_reward": ("multiplier", {"width": 0.3}),
    "06_gradients": ("view", {"method": "cmdp", "d": 0.4}),
    "07_train_it_live": ("live", {}, (60, 400)),  # the beginning and the end
    "08_compare_methods": ("shoot", {"budget": 0.4}),
    "09_a_real_model": ("micro", {"follow": True}),
    "10_your_own_models": ("panel", {"d": 3.4}),
}


def train(widget: Widget, update: int) -> None:
    "Let a live trainer run up to this update, and pause it."
    widget.press("start")
    while int(widget.numbers()["update"]) < update:
        time.sleep(0.2)
    widget.press("pause")
    rests = "() => !/running/.test(document.querySelector('.cmdp .numbers small').textContent)"
    widget.page.wait_for_function(rests)  # after the last update it is evaluated
    widget.page.wait_for_timeout(1500)  # the last drawing


def shoot(widget: Widget, path: Path) -> None:
    "A picture with few colours."
    widget.shot(path)
    path.write_bytes(base64.b64decode(small_png(path.read_bytes(), width=1200, colours=128)))
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path.name} has {path.stat().st_size} bytes, more than {MAX_BYTES}")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def pictures(notebook: Notebook, name: str) -> None:
    "Both pictures of one lesson."
    cell, moves, *updates = MAIN[name]
    notebook.run(cell)
    widget = notebook.widget(cell)
    if updates:
        train(widget, updates[0][0])
    shoot(widget, IMAGES / f"{name}.png")
    widget.set(**moves)
    if updates:
        train(widget, updates[0][1])
    widget.page.wait_for_timeout(1500)  # where the kernel computes, its answer takes a moment
    shoot(widget, IMAGES / f"{name}_moved.png")


def main() -> None:
    "One JupyterLab, one tab for each lesson."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lessons", nargs="*", help="the first digits of their names; all if none")
    args = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with Lab(height=1600) as lab:
        for name in MAIN:
            if args.lessons and name[:2] not in args.lessons:
                continue
            notebook = lab.open(f"{name}.ipynb")
            pictures(notebook, name)
            notebook.page.close()


if __name__ == "__main__":
    main()
