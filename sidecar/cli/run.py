"""``sidecar run``: the composition of the real parts."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import click

from sidecar import __version__
from sidecar.amqp.connection import forget_leftovers
from sidecar.amqp.session import open_session
from sidecar.cli import EXIT_FAILED
from sidecar.cli.recipe import encoder_config, error_policy
from sidecar.config.broker import connecting
from sidecar.config.settings import Settings, load
from sidecar.core.address import split_address
from sidecar.core.far import ELASTICSEARCH, SINK
from sidecar.errors import RefusedTemplateError
from sidecar.observability.logs import configure
from sidecar.observability.status import StaticInfo
from sidecar.pipeline.app import App
from sidecar.pipeline.config import PipelineConfig
from sidecar.pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.cli.far import FarSide
    from sidecar.observability.http import Server

_STATUS_SETTINGS = (
    "batch_max_items",
    "batch_max_bytes",
    "batch_max_age",
    "bulk_concurrency",
    "bulk_timeout",
    "memory_limit",
    "retry_max_attempts",
    "delayed_retry_max_rounds",
    "on_reject",
    "on_delay_refused",
    "reject_guard",
    "hold_max",
    "shutdown_timeout",
)
_TOLD_OF_INDEXING = ("index", "action", "id", "on_conflict", "on_index_missing", "on_index_blocked", "on_failure_store")
_TOLD_OF_FORWARDING = ("sink", "sink_exchange", "sink_routing_key", "sink_envelope", "on_unroutable")


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
    loop.set_exception_handler(forget_leftovers)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_exit, stop)
    rng = random.Random()
    config = pipeline_config(settings)
    urls = tuple(url.get_secret_value() for url in settings.amqp_url)
    connect = partial(open_session, urls, connecting(settings))
    far = _far_side(settings, config, log)  # after all that may fail: from here on there is something to close
    pipeline = Pipeline(config, far.sink, rng=rng, log=log, wall_clock=time.time)
    app = App(pipeline, connect, rng=rng, log=log, shutdown_seconds=settings.shutdown_timeout)
    server = None
    try:
        server, address = await _serve(settings, app)
        log.info("sidecar.started", version=__version__, queues=list(settings.amqp_queue), **far.told)
        if address is not None:
            log.info("http.listening", address=address)
        await far.prepare(stop, app.note_startup)
        _tune_garbage_collection()
        await app.run(stop)
    finally:
        await far.close()
        if server is not None:
            await server.close()  # last: until then a probe is told that the sidecar drains


def _far_side(settings: Settings, config: PipelineConfig, log: FilteringBoundLogger) -> FarSide:
    """Return what takes the messages; the other one's client isn't even loaded.

    Raises:
        ConfigError: settings that can't work.
    """
    if settings.sink == "amqp":
        from sidecar.cli import forwarding

        return forwarding.far_side(settings, config, log)
    from sidecar.cli import indexing

    return indexing.far_side(settings, config, log)


async def _serve(settings: Settings, app: App) -> tuple[Server | None, str | None]:
    """Begin to answer probes and scrapes, where that isn't off; return where.

    Raises:
        ConfigError: the address is taken.
    """
    address = split_address(settings.http_address)
    if address is None:
        return None, None
    from sidecar.observability.http import open_server  # takes memory, and can be off
    from sidecar.observability.metrics import Metrics
    from sidecar.observability.status import Status

    status = Status(app.snapshot, about(settings), clock=time.monotonic, wall_clock=time.time)
    return await open_server(address, status, Metrics(app.snapshot))


def about(settings: Settings) -> StaticInfo:
    """Return what the status page tells of the settings: what explains the figures, and nothing that can be secret."""
    names = _TOLD_OF_FORWARDING if settings.sink == "amqp" else _TOLD_OF_INDEXING
    told: dict[str, object] = {name: getattr(settings, name) for name in (*names, *_STATUS_SETTINGS)}
    return StaticInfo(settings.amqp_queue, told | {"amqp_prefetch": settings.prefetch})


def _tune_garbage_collection() -> None:
    """Look for cycles seldom: messages make none, and looking through thousands of them costs 0.4 µs for each."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _stop_or_exit(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(1)  # asked twice: no clean-up that could hang; the broker takes back what isn't acked
    stop.set()


def pipeline_config(settings: Settings) -> PipelineConfig:
    """Return what the pipeline is to do."""
    return PipelineConfig(
        encoder_config=encoder_config(settings),
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
        error_policy=error_policy(settings),
        on_reject=settings.on_reject,
        reject_guard=settings.reject_guard,
        dead_letter_exchange=settings.dead_letter_exchange,
        dead_letter_routing_key=settings.dead_letter_routing_key,
        merges_batches=settings.sink != "amqp",  # they leave in the order in which they were complete
        far=SINK if settings.sink == "amqp" else ELASTICSEARCH,
    )
