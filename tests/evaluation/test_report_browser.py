"""The report as a reader sees it, in Chromium: from disk, on a laptop, in a narrow window and in print."""

import io
import shutil

import pytest
from fabricated_evaluation import fabricate_evaluation, list_synthetic_datasets
from PIL import Image

from histolab_sft.embedded.synthetic import write_synthetic_patches
from histolab_sft.evaluation.html_report import write_report

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH (apt-get install chromium)"),
]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SIZES = {"laptop": (1366, 768), "narrow": (420, 860)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Address of a report of two data sets with everything in it."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_synthetic_patches(folder / "patches", {"crc": 24, "pcam": 60})
        datasets = list_synthetic_datasets(["crc", "pcam"])
        results, tables, patches = fabricate_evaluation(folder, datasets, sensitivity="all", sensitivity_samples=27)
    write_report(results, tables, patches, folder / "evaluation")
    return (folder / "evaluation" / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(params=SIZES)
def page(request, browser, report):
    """The open report, with what it logged and asked for as attributes of the test's own lists."""
    width, height = SIZES[request.param]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.logged, page.asked = [], []
    page.on("console", lambda message: page.logged.append(message.text))
    page.on("pageerror", lambda error: page.logged.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(report)
    yield page
    page.close()


def test_the_report_opens_without_an_error_and_asks_for_nothing(page, report):
    assert page.logged == []
    assert [url for url in page.asked if not url.startswith("data:")] == [report]


def test_every_picture_is_drawn(page):
    assert page.locator("img").count() > 30
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)")
    assert broken == []


def test_nothing_sticks_out_of_the_window_but_tables_that_scroll(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    outside = page.evaluate(
        "[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll')"
        " && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_every_link_of_the_contents_leads_to_a_heading(page):
    for link in page.locator("nav a").all():
        target = page.locator(f"[id='{link.get_attribute('href')[1:]}']")
        assert target.evaluate("e => e.tagName") == "H2"


def test_text_is_dark_enough_on_its_ground(page):
    colours = page.evaluate(
        "[...document.querySelectorAll('p, td, th, li, a, code, figcaption, h1, h2, h3, h4, dd, .interval')]"
        ".map(e => getComputedStyle(e).color)"
    )
    # 4.5 is level AA of WCAG 2.2 for small text; the palest ground that text stands on is nearly white.
    assert all(contrast(colour) >= 4.5 for colour in set(colours))


def test_the_picture_of_the_page_is_of_figures_and_not_blank(page):
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as image:
        assert image.height > 2000
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
    assert len(colours) > 500


def test_the_report_prints_on_paper_with_every_data_set_on_a_new_page(browser, report):
    page = browser.new_page()
    page.goto(report)
    document = page.pdf(prefer_css_page_size=True, print_background=True)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("h2.dataset").first.evaluate("e => getComputedStyle(e).breakBefore") == "page"
    page.close()
    assert document.startswith(b"%PDF") and 5 <= document.count(b"/Type /Page\n") <= 30


def contrast(colour):
    """Contrast of an `rgb(r, g, b)` against the warning's ground, by WCAG 2.2."""

    def luminance(channels):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (c / 255 for c in channels)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    channels = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return (luminance((253, 243, 242)) + 0.05) / (luminance(channels) + 0.05)
