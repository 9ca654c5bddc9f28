"""Draw the pictures of a report, docs/figures/report.gif and report-*.png, in a real browser.

Run `python docs/report_figure.py`, where playwright (`pip install playwright`) and Chromium are installed.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import saliency_lab as sl

FIGURES = Path(__file__).parent / "figures"
SIZE = {"width": 1280, "height": 820}
SHOWN = 960
"""Width of the animation in pixels."""

STOPS = ("#summary", "#accuracy", "#scores", "#explorer", "#audit")
"""The parts of the report that the animation stops at."""
PICTURES = {"#summary": "report-summary.png", "#explorer": "report-explorer.png"}

READING, MOVING = 2200, 90
"""Milliseconds that a part of the report, and a step on the way to the next, are shown."""

STEPS = 4


def write_report(path: Path) -> None:
    """Study the packaged networks on digits, and write the report."""
    data = sl.load_dataset("digits")
    models = {name: sl.load_model(f"digits/{name}") for name in ("standard", "sgt", "at", "asgt")}
    study = sl.Study(models, data.test.sample(200, seed=0))
    study.attribute(["saliency", "integrated_gradients", "smoothgrad"])
    study.score(["pixel_flipping", "sparseness"])
    study.attack("pgd", eps=[0.05, 0.1, 0.2], steps=40)
    study.audit("pgd", eps=0.1, steps=40, images=50)
    sl.report(study, path, baseline="standard", attacked=("pgd", 0.1))


def animate(page: Page) -> None:
    """Scroll from part to part, and keep what the window shows."""
    frames: list[Image.Image] = []
    durations: list[int] = []

    def keep(duration: int) -> None:
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        height = round(SHOWN * shot.height / shot.width)
        frames.append(shot.resize((SHOWN, height), Image.Resampling.LANCZOS))
        durations.append(duration)

    here = 0
    for stop in STOPS:
        top = page.evaluate(
            "id => document.querySelector(id).getBoundingClientRect().top + scrollY - 60", stop
        )
        there = max(0, int(top)) if stop != STOPS[0] else 0
        for step in range(1, STEPS) if there != here else ():
            page.evaluate(
                "y => scrollTo({top: y, behavior: 'instant'})", here + (there - here) * step / STEPS
            )
            keep(MOVING)
        page.evaluate("y => scrollTo({top: y, behavior: 'instant'})", there)
        page.wait_for_timeout(300)
        keep(READING)
        if stop in PICTURES:
            page.screenshot(path=FIGURES / PICTURES[stop])
        here = there
    together = Image.new("RGB", (SHOWN, frames[0].height * len(STOPS)))
    resting = [frame for frame, duration in zip(frames, durations, strict=True) if duration == READING]
    for row, frame in enumerate(resting):
        together.paste(frame, (0, row * frame.height))
    frequent, distinct = (
        together.quantize(128, how).getpalette()[: 3 * 128]
        for how in (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE)
    )
    colours = Image.new("P", (1, 1))
    colours.putpalette(frequent + distinct)
    indexed = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    indexed[0].save(
        FIGURES / "report.gif",
        save_all=True,
        append_images=indexed[1:],
        duration=durations,
        loop=0,
        optimize=True,
    )


def main() -> None:
    """Write the report, open it, and take the pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tools:
        path = Path(folder, "report.html")
        write_report(path)
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(path.as_uri())
        page.wait_for_timeout(1500)
        animate(page)
        browser.close()


if __name__ == "__main__":
    main()
