"""The worker's web server: /health, /ready and /metrics."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn

import faust
from aiohttp import web
from faust.web.drivers.aiohttp import Web as FaustWeb
from faust.web.views import View

from streams.monitoring import exposition
from streams.monitoring.metrics import Metrics

logger = logging.getLogger(__name__)

# Probes give up after 5 s.
READINESS_TIMEOUT: Final = 4.0
# Companies in trouble that /ready names.
LISTED_TROUBLES: Final = 100
# Seconds to answer pending requests at a stop; then their connections are closed.
CLOSE_SECONDS: Final = 1.0
# The log line for each reason why a port cannot be opened.
_PORT_ERRORS: Final = {
    errno.EADDRINUSE: "SERVER_PORT: port {port} is taken at {bind}",
    errno.EACCES: "SERVER_PORT: port {port} is not allowed",
    errno.EADDRNOTAVAIL: "SERVER_BIND: address {bind} is not there",
    errno.EAFNOSUPPORT: "SERVER_BIND: address {bind} is not there",
}
_WILDCARDS: Final = frozenset(("0.0.0.0", "::"))


class PortTaken(SystemExit):
    """The HTTP port cannot be opened; ends the worker with exit code 1."""


@web.middleware
async def _without_trace(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer an unexpected error with 500 and no stack trace, which aiohttp adds when the loop is in debug mode."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception:
        logger.exception("a page could not be made")
        return web.Response(status=500, text="500: Internal Server Error")


class Web(FaustWeb):
    """Faust's web server without its own pages; ends the worker with one log line when the port cannot be opened."""

    default_blueprints = ()
    production_blueprints = ()
    debug_blueprints = ()
    optional_blueprints = ()

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self.web_app.middlewares.append(_without_trace)
        self._runner = web.AppRunner(self.web_app, access_log=None, shutdown_timeout=CLOSE_SECONDS)

    async def start_server(self) -> None:
        """Listen on each address of `web_bind`, which are separated by commas.

        On a machine without IPv6 `::` is left out, without IPv4 `0.0.0.0`, unless it is the only one. Raises
        `PortTaken` when the port cannot be opened on another address.
        """
        await self._runner.setup()
        absent: dict[str, OSError] = {}
        for address in self.app.conf.web_bind.split(","):
            try:
                await web.TCPSite(self._runner, address, self.app.conf.web_port).start()
            except OSError as error:
                if address not in _WILDCARDS or not _is_absent(error):
                    self._refuse(address, error)
                absent[address] = error
        if not self._runner.sites:
            self._refuse(*next(iter(absent.items())))
        for address in absent:
            logger.info("not listening on %s: this machine has no such addresses", address)

    def _refuse(self, address: str, error: OSError) -> NoReturn:
        number = errno.EADDRNOTAVAIL if _is_absent(error) else error.errno or 0
        text = _PORT_ERRORS.get(number, "SERVER_BIND: cannot listen on {bind}: {error}")
        logger.error("%s", text.format(port=self.app.conf.web_port, bind=address, error=os.strerror(number)))
        raise PortTaken(1) from None


def _is_absent(error: OSError) -> bool:
    """Whether this machine has no such address, or none of its family, where asyncio gives no error number."""
    unknown = error.errno is None or isinstance(error, socket.gaierror)
    return unknown or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class _AnyMethod(View):
    """A view that answers every method like GET."""

    async def post(self, request: Any, **kwargs: Any) -> Any:
        """The same answer."""
        return await self.get(request, **kwargs)

    patch = delete = put = options = search = post


def register(
    app: faust.App,
    *,
    metrics: Metrics | None,
    readiness: Callable[[], Awaitable[Mapping[str, str]]],
    troubles: Callable[[], Mapping[str, str]] = dict,
    version: str,
) -> None:
    """Add the pages to the app's web server; /metrics only with `metrics`.

    `readiness` returns the reasons not to be ready by part; none when the worker is ready. `troubles` are those of
    single companies of a fleet, which are listed only.
    """

    async def health(_: View, __: Any) -> Any:
        return _answer(200, {"status": "UP", "version": version})

    async def ready(_: View, __: Any) -> Any:
        reasons = await reasons_of(readiness)
        details: dict[str, Any] = {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **reasons}
        if listed := troubles():
            details["companies"] = dict(itertools.islice(listed.items(), LISTED_TROUBLES))
        if reasons:
            return _answer(503, {"status": "NOT_READY", "details": details})
        return _answer(200, {"status": "READY", "details": details})

    app.page("/health", base=_AnyMethod, name="health")(health)
    app.page("/ready", name="ready")(ready)
    if metrics is not None:

        async def page(_: View, request: Any) -> Any:
            return await exposition.send(request, await metrics.page())

        app.page("/metrics", name="metrics")(page)


async def reasons_of(readiness: Callable[[], Awaitable[Mapping[str, str]]]) -> Mapping[str, str]:
    """The reasons not to be ready. A check that fails or hangs is one too, so that a probe always gets an answer."""
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
