"""Probes, metrics and the status page, over HTTP; reading only.

They are answered in the loop that does the work: `/livez` answers when it turns, and what is told belongs together.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from contextlib import suppress
from importlib import resources
from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.observability.metrics import Metrics
    from sidecar.observability.status import Status

SAMPLE_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
_UNAVAILABLE = 503
_INLINE = re.compile(rb"<(style|script)>(.*?)</\1>", re.DOTALL)


def _is_own_fault(record: logging.LogRecord) -> bool:
    """Whether a record is not about bytes that are no request: anybody could fill the log with tracebacks of those."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_logger = logging.getLogger(__name__)
_logger.addFilter(_is_own_fault)


def page() -> bytes:
    """Return the status page."""
    return resources.files("sidecar.observability").joinpath("page.html").read_bytes()


def policy(content: bytes) -> str:
    """Return a content security policy that lets a page run what is written in it, talk to us, and nothing else."""
    allowed: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _INLINE.findall(content):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        allowed[kind.decode()].append(f"'sha256-{digest}'")
    return (
        f"default-src 'none'; script-src {' '.join(allowed['script'])}; style-src {' '.join(allowed['style'])}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Server:
    """Answers until it is closed. Made by `open_server`.

    Args:
        status: what is told.
        metrics: likewise, to Prometheus.
    """

    def __init__(self, status: Status, metrics: Metrics) -> None:
        self._status = status
        self._metrics = metrics
        self._page = page()
        self._policy = policy(self._page)
        self._runner: web.AppRunner | None = None
        self._sampling: asyncio.Task[None] | None = None

    async def open(self, host: str | None, port: int) -> str:
        """Listen, and return where, as ``host:port``.

        Raises:
            ConfigError: the address can't be had.
        """
        app = web.Application(middlewares=[_with_safe_headers])
        for path, handler in (
            ("/", self._home),
            ("/status", self._everything),
            ("/metrics", self._scrape),
            ("/livez", self._live),
            ("/startupz", self._started),
            ("/readyz", self._ready),
        ):
            app.router.add_get(path, handler)
        runner = self._runner = web.AppRunner(
            app, handle_signals=False, access_log=None, logger=_logger, shutdown_timeout=_CLOSE_SECONDS
        )
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            await self.close()
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                [f"SIDECAR_HTTP_ADDRESS: {_address(host or '', port)} can't be listened on: {why}"]
            ) from None
        self._sampling = asyncio.create_task(self._sample())
        return _address(*runner.addresses[0][:2])

    async def close(self) -> None:
        """Stop listening; what is being answered has a second."""
        if self._sampling is not None:
            self._sampling.cancel()
            with suppress(asyncio.CancelledError):
                await self._sampling
        if self._runner is not None:
            await self._runner.cleanup()

    async def _sample(self) -> None:
        while True:
            self._status.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    # What is answered ------------------------------------------------------------------------------------------------

    async def _home(self, _: web.Request) -> web.Response:
        headers = {"content-security-policy": self._policy}
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)

    async def _everything(self, _: web.Request) -> web.Response:
        return _json(self._status.everything())

    async def _scrape(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics.render(request.headers.get("accept", ""))
        return web.Response(body=body, headers={"content-type": content_type})

    async def _live(self, _: web.Request) -> web.Response:
        return _json({"live": True})

    async def _started(self, _: web.Request) -> web.Response:
        if self._status.started():
            return _json({"started": True})
        return _json({**self._status.readiness(), "started": False}, _UNAVAILABLE)

    async def _ready(self, _: web.Request) -> web.Response:
        readiness = self._status.readiness()
        return _json(readiness, 200 if readiness["ready"] else _UNAVAILABLE)


async def open_server(address: tuple[str | None, int], status: Status, metrics: Metrics) -> tuple[Server, str]:
    """Return a server that listens, and where it does.

    Raises:
        ConfigError: the address can't be had.
    """
    server = Server(status, metrics)
    return server, await server.open(*address)


@web.middleware
async def _with_safe_headers(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    response = await handler(request)
    response.headers["cache-control"] = "no-store"
    response.headers["x-content-type-options"] = "nosniff"
    response.headers["referrer-policy"] = "no-referrer"
    return response


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value) + b"\n", status=status, content_type="application/json")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
