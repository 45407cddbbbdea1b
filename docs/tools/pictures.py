"""Take the pictures of the documents from the report of a real run: `make demo`, then run this file.

Each picture is one or several parts of the page, from the top of one element to the foot of another.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parents[1] / "pictures"
WIDTH = 1100
GAP = 24
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def section(name: str) -> str:
    return f"section[aria-labelledby={name}]"


PICTURES = {
    "report": [
        ("header h1", ".verdict"),
        (f"{section('ladder')} h2", f"{section('ladder')} .grid"),
    ],
}


def take_pictures(report: Path, folder: Path) -> None:
    """Write `folder/NAME.png` for each of `PICTURES`, with few enough colours to stay small in the repository.

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
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, device_scale_factor=1.5)
        page.goto(report.resolve().as_uri())
        for name, parts in PICTURES.items():
            picture = stack([cut(page, *part) for part in parts])
            # The page has few colours beside the patches, and a palette takes a third of the bytes.
            picture.quantize(128, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)
        browser.close()


def cut(page: Page, first: str, last: str) -> Image.Image:
    """Return the page from the top of the element `first` to the foot of `last`."""
    top = page.locator(first).first.bounding_box()["y"]
    box = page.locator(last).first.bounding_box()
    margin = GAP / 2
    clip = {"x": 0, "y": top - margin, "width": WIDTH, "height": box["y"] + box["height"] - top + 2 * margin}
    return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")


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
    parser.add_argument("--folder", type=Path, default=FOLDER)
    take_pictures(**vars(parser.parse_args()))
