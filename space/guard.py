"""
Refuse requests that the page does not need, are too large, or name an address to download. Delete old files, and
uploads that were broken off.
"""

import contextlib
import threading
import time
from pathlib import Path

import gradio as gr
from gradio import processing_utils
from limits import KEEP_FILES, MAX_CHARACTERS, MAX_FILE
from starlette.datastructures import Headers
from starlette.responses import JSONResponse


# The routes below /gradio_api/ that are served. Left out: file=, proxy= and component_server, which give out files and
# answers of other servers; run and api, which do not wait in the queue.
ROUTES = {"app_id", "call", "cancel", "heartbeat", "info", "openapi.json", "queue", "reset", "startup-events",
          "theme.css", "upload", "upload_progress"}  # fmt: skip
MAX_UPLOAD = MAX_FILE * 1_000_000 + 100_000  # bytes: one file, and what multipart/form-data adds
MAX_BODY = 12 * MAX_CHARACTERS + 100_000  # bytes: JSON has up to 12 for a character


class Guard:
    """An ASGI middleware around Gradio's app."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        response = refusal(scope) if scope["type"] == "http" else None
        await (response or self.app)(scope, receive, send)


def refusal(scope) -> JSONResponse | None:
    """The answer to a request that is not served, else None."""
    _, is_api, rest = scope["path"].partition("/gradio_api/")
    name = rest.split("/")[0]
    if is_api and name not in ROUTES:
        return JSONResponse({"detail": "This page does not serve that."}, 404)
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return None
    length = Headers(scope=scope).get("content-length", "")
    limit = MAX_UPLOAD if name == "upload" else MAX_BODY
    if not length.isdecimal() or int(length) > limit:
        return JSONResponse({"detail": f"A request of more than {limit:,} bytes, or of no stated length."}, 413)
    return None


def refuse_downloads() -> None:
    """Refuse a request that names an address as its file: Gradio would download it."""

    async def refuse(url: str, *_, **__):
        raise gr.Error("This page fetches no addresses: upload the file.", print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse


def keep_clean(folder: Path) -> None:
    """Start a thread that calls `delete_old` every `KEEP_FILES` seconds."""

    def look():
        while True:
            time.sleep(KEEP_FILES)
            delete_old(folder)

    threading.Thread(target=look, daemon=True).start()


def delete_old(folder: Path) -> None:
    """Delete files and empty folders that have not changed for `KEEP_FILES` seconds."""
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):  # gone by now, or a folder with something in it
            if time.time() - path.lstat().st_mtime > KEEP_FILES:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
