"""The demo as a person uses it, in Chromium. Screenshots go to `outputs/demo_screenshots`, to be looked at."""

import base64
import contextlib
import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from demo_run import app_command, running, write_run
from PIL import Image
from record_demo_run import noise, write_record_run

from histolab_sft.embedded.synthetic import write_synthetic_patches

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the package axe-playwright-python")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")

pytestmark = [pytest.mark.model, pytest.mark.browser]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS = [*FLAGS.split(), "--disable-component-update", "--disable-sync"]
SCREENSHOTS = Path(__file__).parents[2] / "outputs" / "demo_screenshots"
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 420, "height": 900}
SECONDS = 60_000
# Of every element with text of its own: the text, its colour and that of the first ground behind it.
READ_COLOURS = """() => [...document.querySelectorAll('button, .hs-card *, .hs-head p, #asked *, #describe *')]
    .filter(element => [...element.childNodes].some(node => node.nodeType == 3 && node.textContent.trim()))
    .map(element => {
        let ground = element;
        while (getComputedStyle(ground).backgroundColor == 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
        const colours = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
        return [element.innerText, ...colours];
    })"""


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_synthetic_patches(tmp_path_factory.mktemp("patches") / "patches", 1)


@pytest.fixture(scope="module")
def address(tmp_path_factory, untrained_model):
    folder = tmp_path_factory.mktemp("place")
    with running(app_command(write_run(folder, untrained_model)), folder) as (_, port):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as page:
        yield page


@pytest.fixture(scope="module")
def record_address(tmp_path_factory, untrained_model):
    folder = tmp_path_factory.mktemp("records")
    with running(app_command(write_record_run(folder, untrained_model)), folder) as (_, port):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def record_page(browser, record_address):
    with opened(browser, record_address) as page:
        yield page


@contextlib.contextmanager
def opened(browser, address):
    """Yield the page, which may ask no other server and mustn't fail."""
    page = browser.new_page(viewport=WIDE)
    page.set_default_timeout(SECONDS)
    page.elsewhere, page.failed = [], []
    page.on("request", lambda request: page.elsewhere.append(request.url) if not is_own(request, address) else None)
    page.on("response", lambda response: page.failed.append(response.url) if response.status >= 400 else None)
    page.on("pageerror", lambda error: page.failed.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#ask")
    yield page
    page.close()
    assert not page.elsewhere, "the page asked another server"
    assert not page.failed


def is_own(request, address):
    return request.url.startswith((address, "data:", "blob:"))


def read_bars(page, system):
    cells = page.locator(f"#answers [data-system={system}] [data-probability]").all()
    return [float(cell.get_attribute("data-probability")) for cell in cells]


def wait_for_words(page):
    page.wait_for_function("document.querySelectorAll('#answers [data-system]').length == 2")
    page.wait_for_function("!document.querySelector('#answers').innerText.includes('waiting')")


def tab_to(page, selector):
    """Press Tab until the focus is on what `selector` names."""
    for _ in range(80):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"no way by keyboard to {selector}")


def test_an_upload_is_answered_by_both_systems_side_by_side(page, patches):
    patch = next(patches.glob("crc/TUM/*.tif"))
    page.screenshot(path=SCREENSHOTS / "start.png", full_page=True)
    page.set_input_files("#pictures input[type=file]", patch)
    page.wait_for_selector("#pictures img")
    page.locator("#describe input").check()
    page.click("#ask")
    wait_for_words(page)
    for system in ("baseline", "finetuned"):
        bars = read_bars(page, system)
        assert len(bars) == 3 and abs(sum(bars) - 1) < 1e-9
    assert read_bars(page, "baseline") != read_bars(page, "finetuned")
    # The evaluation of the run withholds every answer of the fine-tuned model on this data set.
    assert "No answer" in page.inner_text("#answers [data-system=finetuned]")
    assert "No answer" not in page.inner_text("#answers [data-system=baseline]")
    page.wait_for_function("document.querySelectorAll('#reasoned .hs-card').length == 2")
    page.wait_for_function("!document.querySelector('#reasoned').innerText.includes('waiting')")
    assert "no probability" in page.inner_text("#reasoned")
    assert page.locator("#reasoned [data-probability]").count() == 0
    left, right = (page.locator(f"#answers [data-system={name}]").bounding_box() for name in ("baseline", "finetuned"))
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    page.screenshot(path=SCREENSHOTS / "answered.png", full_page=True)


def test_the_research_notice_is_visible_at_once(page):
    notice = page.locator(".hs-notice")
    assert notice.is_visible() and "Research use only" in notice.inner_text()
    assert notice.bounding_box()["y"] < 300


def test_the_choice_of_data_set_is_the_choice_of_classes(page):
    captions = page.locator("#examples .caption-label").all_inner_texts()
    assert captions == ["Adipose", "Stroma", "Tumor"]
    page.locator("#asked input").nth(1).check()
    page.wait_for_function("document.querySelectorAll('#examples img').length == 2")
    page.click("#examples button >> nth=1")
    page.wait_for_selector("#pictures img")
    page.click("#ask")
    wait_for_words(page)
    names = page.locator("#answers [data-system=baseline] th").all_inner_texts()
    assert names == ["Normal", "Tumor"]
    page.locator("#asked input").nth(0).check()
    page.wait_for_selector("#answers .hs-empty")
    page.click("#ask")
    wait_for_words(page)
    assert page.locator("#answers [data-system=baseline] th").count() == 3


def test_the_keyboard_alone_is_enough(page):
    tab_to(page, "#asked label:nth-child(2) input")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('#examples img').length == 2")
    tab_to(page, "#examples button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#pictures img")
    tab_to(page, "#describe input")
    page.keyboard.press("Space")
    assert page.locator("#describe input").is_checked()
    page.keyboard.press("Space")
    tab_to(page, "#ask")
    page.screenshot(path=SCREENSHOTS / "keyboard.png", full_page=True)
    page.keyboard.press("Enter")
    wait_for_words(page)
    assert len(read_bars(page, "finetuned")) == 2
    tab_to(page, "#answers summary")
    page.keyboard.press("Enter")
    assert page.locator("#answers details p").is_visible()


def test_a_picture_that_is_none_gets_a_reason_and_no_path(page, tmp_path):
    (tmp_path / "page.png").write_bytes(b"<html><body>not found</body></html>")
    page.set_input_files("#pictures input[type=file]", tmp_path / "page.png")
    said = page.locator("#notes [role=alert]")
    said.wait_for()
    assert "a picture of a known format" in said.inner_text() and "/" not in said.inner_text()
    page.click("#ask")
    page.wait_for_selector("#answers [role=alert]")
    page.screenshot(path=SCREENSHOTS / "refused.png")


def test_a_doubtful_patch_is_answered_with_a_note(page, tmp_path):
    Image.new("RGB", (48, 48), (245, 244, 246)).save(tmp_path / "glass.png")
    page.set_input_files("#pictures input[type=file]", tmp_path / "glass.png")
    page.wait_for_selector("#notes li")
    assert page.locator("#notes li").count() == 2
    page.click("#ask")
    wait_for_words(page)
    page.screenshot(path=SCREENSHOTS / "notes.png", full_page=True)


def test_a_batch_comes_back_as_a_table(page, patches, tmp_path):
    archive = tmp_path / "patches.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(patches.glob("pcam/*/*.png")) * 2:
            opened.writestr(f"pcam/{path.parent.name}/{len(opened.namelist())}.png", path.read_bytes())
        opened.writestr("pcam/page.png", b"<html></html>")
    single = next(patches.glob("crc/ADI/*.tif"))
    page.locator("#asked input").nth(1).check()
    page.wait_for_function("document.querySelectorAll('#examples img').length == 2")
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files("#batch-upload input[type=file]", [archive, single])
    page.wait_for_selector("#batch-upload .file-preview")
    page.click("#ask-all")
    link = page.locator("#csv a").first
    link.wait_for()
    assert "5 of 6 pictures answered" in page.inner_text("#summary")
    assert "pcam/page.png" in page.inner_text("#summary")
    page.screenshot(path=SCREENSHOTS / "batch.png", full_page=True)
    with page.expect_download() as download:
        link.click()
    text = Path(download.value.path()).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 6 and download.value.suggested_filename == "pcam.csv"
    for row in rows:
        if not row["refused"]:
            for system in ("baseline", "finetuned"):
                assert abs(sum(float(row[f"{system}: {name}"]) for name in ("Normal", "Tumor")) - 1) < 1e-4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_shows_everything_without_scrolling_sideways(page, patches, scheme):
    page.set_viewport_size(NARROW)
    page.emulate_media(color_scheme=scheme)
    page.reload()
    page.wait_for_selector("#ask")
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#pictures img")
    page.click("#ask")
    wait_for_words(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    cards = [page.locator(f"#answers [data-system={name}]").bounding_box() for name in ("baseline", "finetuned")]
    assert cards[0]["y"] + cards[0]["height"] <= cards[1]["y"]
    page.screenshot(path=SCREENSHOTS / f"narrow_{scheme}.png", full_page=True)
    page.get_by_role("tab", name="Batch").click()
    page.wait_for_selector("#ask-all")
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_text_has_enough_contrast(page):
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#pictures img")
    page.click("#ask")
    wait_for_words(page)
    colours = page.evaluate(READ_COLOURS)
    assert len(colours) > 20
    # 4.5 to 1, WCAG 2.2, success criterion 1.4.3
    pale = [text for text, front, back in colours if measure_contrast(front, back) < 4.5]
    assert not pale


@pytest.mark.parametrize("width", [1280, 390])
def test_a_test_row_is_asked_judged_enlarged_and_kept_without_a_barrier(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    find_barriers(page)
    # On a phone the button is in sight wherever the page stands.
    if width < 600:
        assert page.evaluate("window.scrollY") == 0 and page.locator("#ask").bounding_box()["y"] < 900
    page.click("#examples button >> nth=2")
    page.wait_for_selector("#pictures img")
    page.click("#ask")
    wait_for_words(page)
    for system, withheld in (("baseline", False), ("finetuned", True)):
        card = page.locator(f"#answers [data-system={system}]")
        verdict = card.locator(".hs-verdict").inner_text()
        assert "right" in verdict.lower() or "the truth is Tumor" in verdict
        # Bars of an answer that is withheld are grey, those of another have their system's colour.
        colour = card.locator(".hs-track span").first.evaluate("bar => getComputedStyle(bar).backgroundColor")
        assert (colour == "rgb(156, 163, 175)") == withheld
    assert "75.0 % (60.0 to 90.0)" in page.inner_text("#score") and "7 groups" in page.inner_text("#score")
    find_barriers(page)
    page.screenshot(path=SCREENSHOTS / f"judged_{width}.png", full_page=True)
    page.click("#pictures img")
    page.wait_for_selector("#pictures .preview")
    find_barriers(page)
    page.screenshot(path=SCREENSHOTS / f"enlarged_{width}.png")
    page.get_by_role("tab", name="Batch").click()
    find_barriers(page)
    page.get_by_role("tab", name="History").click()
    page.wait_for_selector("#export a")
    assert "Tumor" in page.inner_text("#history tbody") and page.locator("#history tbody tr").count() == 1
    find_barriers(page)
    page.screenshot(path=SCREENSHOTS / f"history_{width}.png")
    with page.expect_download() as download:
        page.locator("#export a").last.click()
    [entry] = json.loads(Path(download.value.path()).read_text())
    assert entry["truth"] == "Tumor" and entry["finetuned_withheld"] and entry["baseline_written"] is not None
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def drop(page, selector, path):
    """Drop a file on an element, as a person does with the mouse."""
    data = page.evaluate_handle(
        """([name, text]) => {
            const data = new DataTransfer(), bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            data.items.add(new File([bytes], name, {type: 'image/png'}));
            return data;
        }""",
        [path.name, base64.b64encode(path.read_bytes()).decode()],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(selector, event, {"dataTransfer": data})


def test_a_picture_is_dropped_on_the_field_and_another_on_the_picture_itself(page, tmp_path):
    for number, size in enumerate((40, 44)):
        Image.new("RGB", (size, size), (200, 80, 160)).save(tmp_path / f"{size}.png")
        before = f"document.querySelector('#notes').innerText.includes('{size} × {size}')"
        drop(page, "#pictures img" if number else "#pictures button", tmp_path / f"{size}.png")
        page.wait_for_function(before)
        assert page.locator("#pictures img").count() == 1


def test_another_picture_takes_the_place_of_the_one_before_and_nothing_is_known_of_it(page, patches):
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#pictures img")
    page.locator("#pictures button[aria-label='Clear']").click()
    page.set_input_files("#pictures input[type=file]", next(patches.glob("crc/TUM/*.tif")))
    page.wait_for_selector("#pictures img")
    page.wait_for_selector("#answers .hs-empty")
    page.click("#ask")
    wait_for_words(page)
    assert page.locator("#answers .hs-verdict").count() == 0


def find_barriers(page):
    """Fail for what axe-core calls serious or worse."""
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    grave = [entry for entry in found if entry["impact"] in ("serious", "critical")]
    assert [(entry["id"], entry["nodes"][0]["html"][:160]) for entry in grave] == []


def choose(page, name):
    """Choose a data set, as a person does."""
    before = page.locator("#question textarea").input_value()
    page.get_by_role("radio", name=f"{name}:").check()
    page.wait_for_function("before => document.querySelector('#question textarea').value != before", arg=before)


# What each task shows of the answer that the adapter has learnt
RECORD_FORMS = {
    "boxes": ("2 boxes", "lesion"),
    "biomarkers": ("cd274_expression", "0.626"),
    "multilabel": ("Dental Caries", "Pulp Diseases"),
    "quantity": ("13",),
    "classification": ("Malignant",),
    "report": ("No effusion.",),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_task_shows_both_answers_in_its_own_form(record_page, tmp_path, scheme):
    page = record_page
    page.emulate_media(color_scheme=scheme)
    page.reload()
    page.wait_for_selector("#ask")
    assert "Research use only" in page.inner_text(".hs-notice")
    noise((320, 240)).save(tmp_path / "one.png")
    page.set_input_files("#pictures input[type=file]", tmp_path / "one.png")
    page.wait_for_selector("#pictures img")
    for name, words in RECORD_FORMS.items():
        choose(page, name)
        page.click("#ask")
        wait_for_words(page)
        shown = page.inner_text("#answers [data-system=finetuned]")
        assert "Unparsed" not in shown and all(word in shown for word in words)
        assert name == "report" or "Unparsed" in page.inner_text("#answers [data-system=baseline]")
        assert page.locator("#answers [data-system=finetuned] img").count() == (name == "boxes")
        page.screenshot(path=SCREENSHOTS / f"record_{name}_{scheme}.png", full_page=True)
        assert not [text for text, *colours in page.evaluate(READ_COLOURS) if measure_contrast(*colours) < 4.5]


def test_records_are_asked_by_keyboard_and_in_a_narrow_window(record_page, tmp_path):
    page = record_page
    page.set_viewport_size(NARROW)
    for number in range(3):
        noise((60 + number, 60)).save(tmp_path / f"{number}.png")
    page.set_input_files("#pictures input[type=file]", [tmp_path / f"{number}.png" for number in range(3)])
    page.wait_for_function("document.querySelectorAll('#pictures img').length == 3")
    tab_to(page, "#asked label:nth-child(6) input")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('#question textarea').disabled")
    tab_to(page, "#ask")
    page.keyboard.press("Enter")
    wait_for_words(page)
    assert "immune_score" in page.inner_text("#answers [data-system=finetuned]")
    tab_to(page, "#answers .hs-cards + details summary")
    page.keyboard.press("Enter")
    assert "LUAD" in page.locator("#answers .hs-cards + details p").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.screenshot(path=SCREENSHOTS / "record_narrow.png", full_page=True)
    # Boxes are asked of one picture.
    choose(page, "boxes")
    page.click("#ask")
    refused = page.locator("#answers [role=alert]")
    refused.wait_for()
    assert "3 pictures, expected at most 1" in refused.inner_text()


def measure_contrast(front, back):
    def luminance(colour):
        if not colour.startswith("rgb("):
            return None
        values = [int(value) / 255 for value in colour[4:-1].split(",")]
        linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lights = [luminance(front), luminance(back)]
    if None in lights:  # a mixed colour, as that of the notice
        return 21
    return (max(lights) + 0.05) / (min(lights) + 0.05)
