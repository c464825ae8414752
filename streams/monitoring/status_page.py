"""The status page of a worker: `/` for a browser, and `/status.json` with its content. Read-only."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, Final

import faust
from aiohttp import web
from faust.web.views import View

from streams.monitoring.worker_status import WorkerStatus

_FOLDER: Final = Path(__file__).parent / "static"
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def register(app: faust.App, status: WorkerStatus) -> None:
    """Add both pages to the app's web server; they answer GET and HEAD only."""
    document, policy = _document()

    async def page(_: View, __: Any) -> Any:
        return web.Response(
            body=document,
            content_type="text/html",
            charset="utf-8",
            headers={**_HEADERS, "Content-Security-Policy": policy},
        )

    async def content(_: View, __: Any) -> Any:
        return web.Response(body=await status.body(), content_type="application/json", headers=_HEADERS)

    app.page("/", name="page")(page)
    app.page("/status.json", name="status")(content)


def _document() -> tuple[bytes, str]:
    """The page as one document, and the content security policy that allows its own script and style only."""
    html, style, script = (
        (_FOLDER / f"status.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    document = html.replace("{{style}}", style).replace("{{script}}", script)
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "connect-src": "'self'",
        # For the icon, which the script draws.
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return document.encode(), "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
