"""``sidecar run``: the composition of the real parts."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sidecar import __version__
from sidecar.amqp.session import open_session
from sidecar.app import App
from sidecar.cli import EXIT_FAILED
from sidecar.cli.recipe import choices, recipe
from sidecar.cli.wiring import elasticsearch
from sidecar.core.address import split_address
from sidecar.elastic import mappings
from sidecar.elastic.sink import ElasticSink
from sidecar.errors import RefusedTemplateError, SinkError
from sidecar.indexing import Indexing
from sidecar.ops.logs import configure
from sidecar.ops.status import About
from sidecar.ops.tracing import open_tracing
from sidecar.pipeline import Pipeline
from sidecar.plan import Plan
from sidecar.settings import Settings, load
from sidecar.wiring import connecting

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.elastic.mappings import Template
    from sidecar.ops.http import Server

TOLD_SETTINGS = (
    "index",
    "action",
    "id",
    "batch_max_items",
    "batch_max_bytes",
    "batch_max_age",
    "bulk_concurrency",
    "bulk_timeout",
    "memory_limit",
    "retry_max_attempts",
    "delayed_retry_max_rounds",
    "on_reject",
    "on_conflict",
    "on_index_missing",
    "on_index_blocked",
    "reject_guard",
    "hold_max",
    "shutdown_timeout",
)
_MAPPINGS_PAUSE_SECONDS = 2.0


@click.command("run")
def command() -> None:
    """Run the sidecar until SIGTERM or SIGINT; a second one ends it at once."""
    settings = load(os.environ)
    log = configure(settings.log_level, settings.log_format)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings, log))
    except RefusedTemplateError as error:
        log.error("mappings.refused", reason=str(error))  # noqa: TRY400 - the reason says it all
        sys.exit(EXIT_FAILED)
    except BaseExceptionGroup as group:
        log.exception("sidecar.failed", exc_info=group)
        sys.exit(EXIT_FAILED)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Use uvloop where it is installed (the extra ``fast``): it takes a third off the cost of a message."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _run(settings: Settings, log: FilteringBoundLogger) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_exit, stop)
    templates = mappings.load(Path(settings.mappings_dir)) if settings.mappings_apply and settings.mappings_dir else []
    sink = ElasticSink(elasticsearch(settings))
    dice = random.Random()
    planned = plan(settings)
    tracing = open_tracing(os.environ, planned.recipe, log)
    indexing = Indexing(planned, sink, tracing.spans if tracing is not None else None)
    pipeline = Pipeline(planned, indexing, dice=dice, log=log, wall_clock=time.time)
    urls = tuple(url.get_secret_value() for url in settings.amqp_url)
    app = App(
        pipeline,
        partial(open_session, urls, connecting(settings)),
        dice=dice,
        log=log,
        shutdown_seconds=settings.shutdown_timeout,
    )
    server = None
    try:
        server, address = await _serve(settings, app)
        log.info("sidecar.started", version=__version__, queues=list(settings.amqp_queue), index=settings.index)
        if address is not None:
            log.info("http.listening", address=address)
        await _install(templates, sink, stop, log)
        _tune_garbage_collection()
        await app.run(stop)
    finally:
        await sink.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
        if server is not None:
            await server.close()  # last: until then a probe is told that the sidecar drains


async def _serve(settings: Settings, app: App) -> tuple[Server | None, str | None]:
    """Begin to answer probes and scrapes, where that isn't off; return where.

    Raises:
        ConfigError: the address is taken.
    """
    address = split_address(settings.http_address)
    if address is None:
        return None, None
    from sidecar.ops.http import open_server  # takes memory, and can be off
    from sidecar.ops.metrics import Metrics
    from sidecar.ops.status import Status

    status = Status(app.state, about(settings), clock=time.monotonic, wall_clock=time.time)
    return await open_server(address, status, Metrics(app.state))


def about(settings: Settings) -> About:
    """Return what the status page tells of the settings: what explains the figures, and nothing that can be secret."""
    told: dict[str, object] = {name: getattr(settings, name) for name in TOLD_SETTINGS}
    return About(settings.amqp_queue, told | {"amqp_prefetch": settings.prefetch})


async def _install(
    templates: list[Template], sink: ElasticSink, stop: asyncio.Event, log: FilteringBoundLogger
) -> None:
    """Install templates, however long Elasticsearch is away: without them documents would make mappings of their own.

    Raises:
        RefusedTemplateError: it doesn't take one, and never will.
    """
    tries = 0
    while templates and not stop.is_set():
        try:
            for change in await mappings.apply(sink.ask, templates):
                template = change.template
                log.info("mappings.applied", kind=template.kind, template=template.name, was=change.state)
        except SinkError as error:
            tries += 1
            if tries == 1:
                log.warning("elasticsearch.unreachable", reason=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _MAPPINGS_PAUSE_SECONDS)
        else:
            return


def _tune_garbage_collection() -> None:
    """Look for cycles seldom: messages make none, and looking through thousands of them costs 0.4 µs for each."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _stop_or_exit(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(1)  # asked twice: no clean-up that could hang; the broker takes back what isn't acked
    stop.set()


def plan(settings: Settings) -> Plan:
    """Return what the pipeline is to do."""
    return Plan(
        recipe=recipe(settings),
        batch_max_items=settings.batch_max_items,
        batch_max_bytes=settings.batch_max_bytes,
        batch_max_age_seconds=settings.batch_max_age,
        bulk_concurrency=settings.bulk_concurrency,
        prefetch=settings.prefetch,
        memory_limit_bytes=settings.memory_limit,
        hold_max_seconds=settings.hold_max,
        retry_max_attempts=settings.retry_max_attempts,
        retry_delay_min_seconds=settings.retry_delay_min,
        retry_delay_max_seconds=settings.retry_delay_max,
        delayed_retry_max_rounds=settings.delayed_retry_max_rounds,
        delayed_retry_delay_seconds=settings.delayed_retry_delay,
        choices=choices(settings),
        on_reject=settings.on_reject,
        reject_guard=settings.reject_guard,
        dead_letter_exchange=settings.dead_letter_exchange,
        dead_letter_routing_key=settings.dead_letter_routing_key,
    )
