"""The worker's web server with /health, /ready and /metrics (contract 8.1); for people: `streams.page`."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import faust
from aiohttp import web
from faust.web.drivers.aiohttp import Web as FaustWeb
from faust.web.views import View

from streams.metrics import CONTENT_TYPE, Metrics

logger = logging.getLogger(__name__)

# Probes give up after 5 s.
READINESS_TIMEOUT: Final = 4.0
_TAKEN: Final = {
    errno.EADDRINUSE: "SERVER_PORT: port {port} is taken",
    errno.EACCES: "SERVER_PORT: port {port} is not allowed",
    errno.EADDRNOTAVAIL: "SERVER_BIND: address {bind} is not there",
    errno.EAFNOSUPPORT: "SERVER_BIND: address {bind} is not there",
}


class PortTaken(SystemExit):
    """The HTTP port cannot be opened; ends the worker with exit code 1 (C17)."""


@web.middleware
async def _told_nothing(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer 500 without a trace: aiohttp sends one when the loop is in debug mode."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception:
        logger.exception("a page could not be made")
        return web.Response(status=500, text="500: Internal Server Error")


class Web(FaustWeb):
    """Faust's web server without pages of its own, and with a clear end when its port is taken."""

    default_blueprints = ()
    production_blueprints = ()
    debug_blueprints = ()
    optional_blueprints = ()

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self.web_app.middlewares.append(_told_nothing)

    async def start_server(self) -> None:
        """Listen. Raises `PortTaken` when the port cannot be opened."""
        try:
            await super().start_server()
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            conf = self.app.conf
            logger.error("%s", _TAKEN[error.errno].format(port=conf.web_port, bind=conf.web_bind))
            raise PortTaken(1) from None


class _AnyMethod(View):
    """A page that answers every method like GET."""

    async def post(self, request: Any, **kwargs: Any) -> Any:
        """The same answer."""
        return await self.get(request, **kwargs)

    patch = delete = put = options = search = post


def register(
    app: faust.App,
    *,
    metrics: Metrics | None,
    readiness: Callable[[], Awaitable[Mapping[str, str]]],
    version: str,
) -> None:
    """Put the pages on the app's web server; /metrics only with `metrics`.

    `readiness` returns what is not ready, as name and reason, and nothing when all is.
    """

    async def health(_: View, __: Any) -> Any:
        return _answer(200, {"status": "UP", "version": version})

    async def ready(_: View, __: Any) -> Any:
        reasons = await reasons_of(readiness)
        details = {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **reasons}
        if reasons:
            return _answer(503, {"status": "NOT_READY", "details": details})
        return _answer(200, {"status": "READY", "details": details})

    app.page("/health", base=_AnyMethod, name="health")(health)
    app.page("/ready", name="ready")(ready)
    if metrics is not None:
        _register_metrics(app, metrics)


def _register_metrics(app: faust.App, metrics: Metrics) -> None:
    async def page(_: View, __: Any) -> Any:
        return web.Response(body=await metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    app.page("/metrics", name="metrics")(page)


async def reasons_of(readiness: Callable[[], Awaitable[Mapping[str, str]]]) -> Mapping[str, str]:
    """What is not ready. A check that fails or hangs is a reason too: a probe always gets its answer."""
    try:
        async with asyncio.timeout(READINESS_TIMEOUT):
            return await readiness()
    except TimeoutError:
        return {"readiness": f"not known after {READINESS_TIMEOUT:g} s"}
    except Exception as error:
        logger.exception("readiness could not be checked")
        return {"readiness": f"not known: {type(error).__name__}"}


def _answer(status: int, body: dict[str, Any]) -> web.Response:
    text = json.dumps(body, separators=(",", ":")) + "\n"
    return web.Response(status=status, body=text.encode(), content_type="application/json")
