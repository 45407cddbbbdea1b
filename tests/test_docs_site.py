"""The documents as a site: every key and every message has its place, and the pages build without a warning."""

import ast
import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trl
import yaml

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.checks import check_values
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.external import ExternalConfig
from histolab_sft.config.phase import PhaseConfig

pytest.importorskip("mkdocs", reason="needs the package mkdocs")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the package axe-playwright-python")


def load_hook(name):
    spec = importlib.util.spec_from_file_location(name, Path("docs/tools", f"{name}.py"))
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return hook


REFERENCE = load_hook("reference")
KEYS = [(kind, entry) for _, kind, _ in REFERENCE.SECTIONS for entry in REFERENCE.list_keys(kind)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "entry"), KEYS, ids=lambda part: getattr(part, "name", ""))
def test_every_key_of_the_reference_has_a_text_and_an_example_that_the_recipe_takes(kind, entry):
    example = REFERENCE.find_example(entry.name, kind)
    assert len(REFERENCE.explain(entry, kind)) > 10
    value = yaml.safe_load(example)
    assert list(value) == [entry.name]
    if kind in (HistoArguments, ModelConfig, trl.SFTConfig):
        check_values(value, [kind])


def test_the_reference_has_every_key_of_this_project_and_every_key_of_a_recipe():
    listed = {(kind, entry.name) for kind, entry in KEYS}
    own = {
        (kind, entry.name)
        for kind in (HistoArguments, DatasetConfig, PhaseConfig)
        for entry in dataclasses.fields(kind)
        if entry.init
    }
    assert own <= listed
    assert {name for kind, name in listed if kind is ExternalConfig} == {"class_names", "external_of", "leaks"}
    names = {name for _, name in listed}
    for path in Path("recipes").glob("*.yaml"):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(recipe) <= names
    page = REFERENCE.write_page()
    assert [name for kind, name in listed if f"\n### `{name}` {{ #" not in page] == []


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", Path("docs/recipes.md").read_text(), re.DOTALL))
def test_the_lines_to_copy_are_keys_and_values_that_a_recipe_takes(block):
    keys = yaml.safe_load(block)
    check_values(keys, [HistoArguments, ModelConfig, trl.SFTConfig])
    assert [DatasetConfig(**entry).name for entry in keys.get("datasets", [])] or "datasets" not in keys


def read_texts():
    """Every text in the code, with what is put in left out."""
    for path in Path("histolab_sft").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "…".join(part.value for part in node.values if isinstance(part, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.slow
def test_every_message_that_troubleshooting_quotes_is_one_of_the_code():
    texts = "\n".join(read_texts())
    quoted = re.findall(r"^\*\*`(.+)`\*\*$", Path("docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 40
    assert [part for part in quoted if part not in texts] == []


@pytest.mark.slow
def test_the_page_of_messages_has_every_cure():
    messages = load_hook("messages")
    page = messages.write_page()
    assert page.count("\n| ") > 400
    assert "| unknown key in …: … | correct or remove it |" in page


def test_every_picture_of_the_report_is_cut_at_headings_that_it_has():
    pictures = load_hook("pictures")
    templates = "".join(path.read_text() for path in Path("histolab_sft/evaluation").glob("*.jinja"))
    headings = {heading for parts in pictures.PICTURES.values() for part in parts for heading in part}
    own = {heading for heading in headings if not heading.startswith(("#data-", "header"))}
    assert [h for h in own if f'id="{h[1:]}"' not in templates and f">{h}<" not in templates] == []
    assert {f"{name}.png" for name in (*pictures.PICTURES, "app", "map")} == {
        path.name for path in Path("docs/pictures").iterdir()
    }


CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
NAV = yaml.safe_load(Path("mkdocs.yml").read_text(encoding="utf-8"))["nav"]
SITE_PAGES = [
    path.removesuffix("index.md").replace(".md", "/")
    for entry in NAV
    for value in entry.values()
    for path in ([value] if isinstance(value, str) else [page for part in value for page in part.values()])
]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH (apt-get install chromium)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Address of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with pytest.importorskip("playwright.sync_api").sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", SITE_PAGES)
def test_every_page_of_the_site_opens_without_a_fault(site, browser, name, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    logged, asked = [], []
    page.on("console", lambda message: logged.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(site + name, wait_until="networkidle")
    assert logged == []
    assert [url for url in asked if not url.startswith((site, "data:", "blob:"))] == []
    assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)") == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    found = axe.Axe().run(page, context="main", options={"resultTypes": ["violations"]})
    grave = [entry for entry in found.response["violations"] if entry["impact"] in ("serious", "critical")]
    assert [(entry["id"], entry["nodes"][0]["html"][:120]) for entry in grave] == []
    page.close()
