"""Take the pictures of the documents from the pages of a real run: `make demo`, then run this file.

A picture of the report is one or several parts of it, from one heading to another. That of the page that asks both
models shows it after one question. The map is of a picture that is put together from painted patches.
"""

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

FOLDER = Path(__file__).parents[1] / "pictures"
WIDTH = 1100
MARGIN = 14
FIELD, SIDE = (12, 18), 64  # squares of the map, down and across, and pixels a side of one
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


# Name of the picture -> parts of the page: headings that they begin with, and those above which they end.
PICTURES = {
    "report": [("header h1", "#data"), ("#ladder", "#data-crc")],
    "verdict": [("#verdict", "#data")],
    "data": [("#data", "#overview")],
    "overview": [("#overview", "#ladder")],
    "ladder": [("#ladder", "#data-crc")],
    "scores": [("#data-pcam", "Where it errs")],
    "errors": [("Where it errs", "How far confidence can be believed")],
    "confidence": [("How far confidence can be believed", "What shouldn't matter")],
    "sensitivity": [("What shouldn't matter", "Most confident mistakes")],
    "mistakes": [("Most confident mistakes", "#data-bach")],
}
# Whose headings are taken where each data set has one: with two classes it has every figure.
DATA_SET = "section[aria-labelledby=data-pcam]"


def take_pictures(report: Path, recipe: Path, patch: Path, folder: Path) -> None:
    """Write `folder/NAME.png` for each of `PICTURES`, `app.png` and `map.png`, in a palette, which takes less room.

    Args:
        report: That of the demo.
        recipe: The demo's, whose models are asked about `patch`.

    Raises:
        FileNotFoundError: There is no report, or no Chromium.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("no chromium on the PATH, expected a browser; apt-get install chromium")
    if not report.exists():
        raise FileNotFoundError(f"no report at {report}, expected that of the demo; make demo")
    folder.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, device_scale_factor=1.25)
        page.goto(report.resolve().as_uri())
        for name, parts in PICTURES.items():
            picture = stack([cut(page, *part) for part in parts])
            save(picture, folder / f"{name}.png")
        with serve(recipe) as address:
            save(ask(browser, address, patch), folder / "app.png")
        browser.close()
    save(draw_map(recipe, patch.parents[1]), folder / "map.png")


def draw_map(recipe: Path, patches: Path) -> Image.Image:
    """Return the map of a field in which each folder of `patches` has a region around a point of its own."""
    rng = np.random.default_rng(0)
    classes = [sorted(folder.iterdir()) for folder in sorted(patches.iterdir()) if folder.is_dir()]
    points = rng.uniform((0, 0), FIELD, (len(classes), 2))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "field.png")
        field = Image.new("RGB", (SIDE * FIELD[1], SIDE * FIELD[0]))
        for row, column in np.ndindex(FIELD):
            files = classes[np.square(points - (row + 0.5, column + 0.5)).sum(axis=1).argmin()]
            with Image.open(files[rng.integers(len(files))]) as painted:
                field.paste(painted.convert("RGB"), (SIDE * column, SIDE * row))
        field.save(path)
        command = [sys.executable, "recipes/map.py", "--config", str(recipe), "--dataset", patches.name]
        command += ["--pictures", str(path), "--patch_size", str(SIDE)]
        *_, written = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        with Image.open(Path(written.strip(), "map.png")) as drawn:
            return drawn.convert("RGB").resize((WIDTH, WIDTH * drawn.height // drawn.width), Image.Resampling.LANCZOS)


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture; pages have few colours beside the patches, and a palette takes a third of the bytes."""
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def serve(recipe: Path) -> Iterator[str]:
    """Run `make app` on a free port, and yield the address of its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "recipes/app.py", "--config", str(recipe)]
    server = subprocess.Popen(command, env=os.environ | {"GRADIO_SERVER_PORT": str(port)})
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {server.returncode}, expected a page; see above")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)


def ask(browser: Browser, address: str, patch: Path) -> Image.Image:
    """Return the page after it was asked about `patch`."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 800}, device_scale_factor=1.25)
    page.goto(address)
    page.wait_for_selector("#ask")
    page.set_input_files("#pictures input[type=file]", patch)
    page.wait_for_selector("#pictures img")
    page.click("#ask")
    page.wait_for_function("document.querySelectorAll('#answers [data-system]').length == 2", timeout=120_000)
    page.wait_for_function("!document.querySelector('#answers').innerText.includes('waiting')", timeout=120_000)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    page.close()
    return picture


def cut(page: Page, first: str, until: str) -> Image.Image:
    """Return the page from the heading `first` to where the heading `until` begins."""
    top, foot = (find(page, heading).bounding_box()["y"] - MARGIN for heading in (first, until))
    clip = {"x": 0, "y": top, "width": WIDTH, "height": foot - top}
    return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")


def find(page: Page, heading: str) -> Locator:
    """Return a heading by its id or place, or by its words among those of one data set."""
    if heading.startswith(("#", "header")):
        return page.locator(heading)
    return page.locator(f"{DATA_SET} h3", has_text=heading)


def stack(parts: list[Image.Image]) -> Image.Image:
    """Return the parts below each other on white."""
    picture = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    foot = 0
    for part in parts:
        picture.paste(part, (0, foot))
        foot += part.height
    return picture


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, default=Path("outputs/demo/evaluation/report.html"))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"))
    parser.add_argument("--patch", type=Path, default=Path("data/synthetic/crc/TUM/TUM-S00-0008.tif"))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    take_pictures(**vars(parser.parse_args()))
