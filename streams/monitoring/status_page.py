"""The status page of a worker: `/` for a browser, and `/status.json` with its content. Read-only."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import faust
from aiohttp import web
from faust.web.views import View

from streams.monitoring.worker_status import LISTED, MOST_LISTED, Question, WorkerStatus

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

    async def content(_: View, request: Any) -> Any:
        body = await status.body(_question(request.query))
        return web.Response(body=body, content_type="application/json", headers=_HEADERS)

    app.page("/", name="page")(page)
    app.page("/status.json", name="status")(content)


def _question(query: Mapping[str, str]) -> Question:
    """What the address asks for: `company`, or `search`, and `limit`. Raises `HTTPBadRequest`."""
    limit = query.get("limit", str(LISTED))
    if not limit.isascii() or not limit.isdigit():
        raise web.HTTPBadRequest(text="limit: expected a number")
    return Question(
        company=query.get("company"), search=query.get("search", ""), limit=min(int(limit[:9]), MOST_LISTED)
    )


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
