"""Serve the page: from a folder of its own, to the paths that the page needs and no others."""

import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from urllib.parse import urlsplit

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from histolab_sft.data.pictures.decoding import MAX_PIXELS
from histolab_sft.files import unfinished_folder
from histolab_sft.signals import ending_on_signals
from histolab_sft.tasks.answer_forms import MARK_STYLE

logger = logging.getLogger(__name__)

LOCAL = "127.0.0.1"
MAX_FILE_SIZE = "10mb"
MAX_STORED = 2**30  # bytes of uploads and results of all visitors together
PREFIX = "histolab-demo-"  # of the folder that they lie in
QUEUE = 64  # what may wait; more is turned away
# One model, one question at a time; what waits, waits in the queue.
ON_THE_MODEL = {"concurrency_limit": 1, "concurrency_id": "model"}
MAX_MESSAGE = 2**20  # bytes of a request that isn't an upload: a page's message has some thousand
API = "/gradio_api"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon")
CALLS = ("startup-events", "heartbeat/", "queue/join", "queue/data", "upload", "cancel", "reset", "file=/", "info")
FILES = ("/assets/", "/static/", *(f"{API}/{call}" for call in CALLS))
# Gradio takes a dropped file only as long as no picture is shown; a person drops it on the picture just as well.
DROP_ON_PICTURE = """() => {
  const find = (event) => event.dataTransfer?.types.includes("Files") && event.target.closest?.("#pictures");
  document.addEventListener("dragover", (event) => find(event) && event.preventDefault(), true);
  document.addEventListener("drop", (event) => {
    const input = find(event) && find(event).querySelector("input[type=file]");
    if (!input) return;
    event.preventDefault();
    event.stopPropagation();
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);
}"""
# Fonts of the system: the page loads nothing from elsewhere.
THEME = gr.themes.Base(
    primary_hue="purple",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(
    # Gradio's own greys and hues are too pale to read.
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_200",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_200",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
)


@contextmanager
def own_folder() -> Iterator[Path]:
    """Work in an empty folder where uploads and results also go; it is deleted at every end that a process can see.

    What a demo has left that was killed goes when the next one starts: nobody holds the lock of its folder any more.
    """
    with ending_on_signals(), unfinished_folder(gettempdir(), PREFIX) as folder, chdir(folder):
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "files").resolve())
        yield folder


def serve(page: gr.Blocks, host: str | None = LOCAL, port: int | None = None, block: bool = True) -> str:
    """Serve the page and return its address, with `block` only after the server was stopped.

    Args:
        host: Where to listen. None leaves it to `GRADIO_SERVER_NAME`, as a Space sets it; requests then may name any
            host, which on this machine they may not (DNS rebinding).
        port: By default the first free one from 7860 on.
    """
    # Gradio opens pictures too, before the project's own limit is asked. Pillow refuses at twice this number.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    middleware = [
        Middleware(refuse_other_requests),
        Middleware(hide_folder, folder=Path(os.environ["GRADIO_TEMP_DIR"])),
    ]
    if host == LOCAL:
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost"]))
    page.queue(max_size=QUEUE, api_open=False, default_concurrency_limit=2)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_FILE_SIZE,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        theme=THEME,
        css=MARK_STYLE,
        js=DROP_ON_PICTURE,
        css_paths=Path(__file__).with_name("style.css"),
        app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None},
        quiet=True,
        prevent_thread_lock=True,
    )
    logger.info("the demo runs at %s (Ctrl+C ends it)", address)
    if block:
        page.block_thread()
    return address


def refuse_other_requests(app: Callable[..., Awaitable]) -> Callable[..., Awaitable]:
    """Wrap an ASGI app: what the page doesn't ask for isn't found, and only uploads may be large."""

    async def guarded(scope, receive, send):
        if scope["type"] == "http" and (refusal := _refuse(scope)):
            await refusal(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded


def hide_folder(app: Callable[..., Awaitable], folder: Path) -> Callable[..., Awaitable]:
    """Wrap an ASGI app: the folder of uploads has another name in what goes out, and its own in what comes in.

    Gradio names its files by absolute paths, which tell where this machine keeps its temporary files. The other name
    is as long, so that no length of a message changes.
    """
    inside = str(folder).encode()
    outside = b"/files".ljust(len(inside), b"-")

    async def hidden(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)

        async def receive_inside():
            message = await receive()
            return message | {"body": message["body"].replace(outside, inside)} if message.get("body") else message

        async def send_outside(message):
            if message.get("body"):
                message = message | {"body": message["body"].replace(inside, outside)}
            await send(message)

        asked = scope["path"].replace(outside.decode(), inside.decode())
        await app(scope | {"path": asked, "raw_path": asked.encode()}, receive_inside, send_outside)

    return hidden


def _refuse(scope: dict) -> PlainTextResponse | None:
    path, headers = scope["path"], dict(scope["headers"])
    if path not in PAGES and not path.startswith(FILES):
        return PlainTextResponse("Not found", 404)
    if scope["method"] not in ("GET", "HEAD", "OPTIONS") and _comes_from_elsewhere(headers):
        return PlainTextResponse("This page takes nothing from other sites", 403)
    if scope["method"] != "POST":
        return None
    length = headers.get(b"content-length", b"")
    size = int(length) if length.isdigit() else None
    if not path.startswith(f"{API}/upload"):
        return PlainTextResponse("Too large", 413) if size is None or size > MAX_MESSAGE else None
    if size is None:
        return PlainTextResponse("Length required", 411)
    if measure_stored() + size > MAX_STORED:
        return PlainTextResponse("The demo holds as many pictures as it may; try again in an hour", 507)
    return None


def _comes_from_elsewhere(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser says that another site's page sends this request; what is no browser says nothing."""
    if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
        return True
    origin, host = headers.get(b"origin"), headers.get(b"host", b"")
    return origin is not None and urlsplit(origin).netloc != host


def measure_stored() -> int:
    """Return the bytes of all uploads and results that the demo holds."""
    files = (Path(folder, name) for folder, _, names in os.walk(os.environ["GRADIO_TEMP_DIR"]) for name in names)
    total = 0
    for path in files:
        with suppress(FileNotFoundError):  # Gradio deletes what is too old at any time
            total += path.stat().st_size
    return total
