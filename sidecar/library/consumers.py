"""Consumers for code of one's own: the life around a pipeline whose work is a function.

    class Orders(BatchConsumer):
        async def process(self, batch):
            for message in batch:
                yield ACK if store(message) else DEAD_LETTER

    asyncio.run(Orders(amqp_queue="orders").run())

The names for use are those of `sidecar`; this module is where they are at home.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Self, Unpack, cast

import structlog

from sidecar.amqp.session import open_session
from sidecar.config.broker import connecting
from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.far import HANDLER
from sidecar.library.handler_sink import HandlerSink
from sidecar.library.settings import load
from sidecar.pipeline.app import App
from sidecar.pipeline.config import PipelineConfig
from sidecar.pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from structlog.typing import FilteringBoundLogger, Processor

    from sidecar.library.handler_sink import Process, Verdicts
    from sidecar.library.messages import Message
    from sidecar.library.settings import ConsumerSettings, Options
    from sidecar.library.verdicts import Verdict
    from sidecar.pipeline.app import Connect

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _BaseConsumer(ABC):
    """Start, run and stop: what all consumers have in common.

    Args:
        prefix: what names in the environment and in ``.env`` begin with (``"ORDERS_"``: ``ORDERS_AMQP_QUEUE``); None
            reads neither.
        log: structlog's; by default one that writes to the logger ``sidecar`` of `logging`.
        options: settings in code; they count for more than the environment.

    Attributes:
        settings: as they were read.

    Raises:
        ConfigError: with every problem.
    """

    def __init__(
        self, *, prefix: str | None = None, log: FilteringBoundLogger | None = None, **options: Unpack[Options]
    ) -> None:
        self.settings: ConsumerSettings = load(prefix, options)
        self._log = log if log is not None else _logger()
        self._app: App | None = None
        self._task: asyncio.Task[None] | None = None
        self._starting = False
        self._stop = asyncio.Event()

    async def on_start(self) -> None:  # noqa: B027 - a hook
        """Get ready: called before anything is consumed. What it raises, `start` raises."""

    async def on_stop(self) -> None:  # noqa: B027 - a hook
        """Clean up: called once, when nothing is in work any more, whatever ended it."""

    @property
    def is_running(self) -> bool:
        """Whether it was started, and neither stopped nor ended by a fault."""
        return self._task is not None and not self._task.done() and not self._stop.is_set()

    @property
    def is_healthy(self) -> bool:
        """Whether it consumes: connected, not draining, and with a dead-letter route that takes what is published."""
        return self.is_running and self._app is not None and self._app.snapshot().not_ready is None

    @property
    def unready(self) -> str | None:
        """Why it isn't healthy, in words; None where it is."""
        if self._app is None or not self.is_running:
            return "not running"
        unready = self._app.snapshot().not_ready
        return None if unready is None else f"{unready.reason}: {unready.detail}"

    def counts(self) -> dict[str, int]:
        """Return what became of the messages of this run: received is the sum of all others."""
        return {} if self._app is None else self._app.snapshot().counters.summary()

    async def start(self) -> None:
        """Begin, in the background; it reconnects by itself. It returns at once, whether there is a broker or not.

        Raises:
            RuntimeError: it runs already.
        """
        if self._task is not None or self._starting:
            raise RuntimeError(f"{type(self).__name__} runs already")
        self._starting = True
        try:
            await self.on_start()
        finally:
            self._starting = False
        rng, settings = random.Random(), self.settings
        config = self._config()
        pipeline = Pipeline(
            config, HandlerSink(config, self._process(), settings), rng=rng, log=self._log, wall_clock=time.time
        )
        shutdown_seconds = settings.shutdown_timeout
        self._app = App(pipeline, self._connect(), rng=rng, log=self._log, shutdown_seconds=shutdown_seconds)
        self._task = asyncio.create_task(self._live(self._app), name=type(self).__name__)

    async def _live(self, app: App) -> None:
        try:
            await app.run(self._stop)
        finally:
            await self.on_stop()

    async def stop(self) -> None:
        """Drain and stop: what is in work is waited for, up to ``shutdown_timeout``; the rest goes back, in order.

        Raises:
            ExceptionGroup: a fault ended it; what was not settled is with the broker.
        """
        task = self._task
        if task is None:
            return
        self._stop.set()
        try:
            await self.wait()
        finally:
            if task.done() and self._task is task:  # it may have been started again since
                self._task, self._stop = None, asyncio.Event()

    async def wait(self) -> None:
        """Wait for the end, whatever brings it.

        Raises:
            ExceptionGroup: a fault ended it.
        """
        if self._task is not None:
            await asyncio.shield(self._task)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT, then drain; a second signal has its usual effect, and loses nothing either.

        Raises:
            ExceptionGroup: a fault ended it.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._asked_to_stop)
        try:
            async with self:
                await self.wait()
        finally:
            _usual_signals()

    def _asked_to_stop(self) -> None:
        _usual_signals()
        self._stop.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @abstractmethod
    def _process(self) -> Process:
        """Return what does the work."""

    def _connect(self) -> Connect:
        settings = self.settings
        urls = tuple(url.get_secret_value() for url in settings.amqp_url)
        return partial(open_session, urls, connecting(settings))

    def _config(self) -> PipelineConfig:
        settings = self.settings

        def template(text: str | None) -> Template | None:
            return Template(text) if text is not None else None

        encoder_config = EncoderConfig(
            index=Template(""),  # there is neither index nor action here, and dead letters name none
            action=Template(""),
            max_bytes=settings.memory_limit,
            batch_key=template(settings.batch_key),
            batch_flush_when=template(settings.batch_flush_when),
            batch_complete_count=template(settings.batch_complete_count),
        )
        return PipelineConfig(
            encoder_config=encoder_config,
            batch_max_items=settings.batch_max_items,
            batch_max_bytes=settings.batch_max_bytes,
            batch_max_age_seconds=settings.batch_max_age,
            merges_batches=False,  # a batch is what was gathered: of one key, say
            bulk_concurrency=settings.workers,
            prefetch=settings.prefetch,
            memory_limit_bytes=settings.memory_limit,
            retry_delay_min_seconds=settings.retry_delay_min,
            retry_delay_max_seconds=settings.retry_delay_max,
            delayed_retry_max_rounds=settings.delayed_retry_max_rounds,
            delayed_retry_delay_seconds=settings.delayed_retry_delay,
            on_reject=settings.on_reject,
            reject_guard=settings.reject_guard,
            far=HANDLER,
            dead_letter_exchange=settings.dead_letter_exchange,
            dead_letter_routing_key=settings.dead_letter_routing_key,
        )


class BatchConsumer(_BaseConsumer):
    """Takes messages in batches: subclass it and write `process`.

    Args:
        prefix: what names in the environment and in ``.env`` begin with; None reads neither.
        log: structlog's; by default one that writes to the logger ``sidecar`` of `logging`.
        options: settings in code, as in `Options`.
    """

    @abstractmethod
    def process(self, batch: list[Message]) -> Verdicts:
        """Do the work of a batch, and say of each message what becomes of it.

        An asynchronous generator that yields one verdict a message, in order, or a coroutine that returns them, or one
        for all. Up to ``workers`` calls are at work at once. A message may come again though its work is done (after a
        crash, or a lost connection): the work must bear that.

        An exception is no loss: verdicts that were yielded before it count, the others get ``on_exception``. A batch
        with too few verdicts, or too many, is not guessed at: all its messages get ``on_missing_verdict``. So do the
        messages from the first value that is not a verdict.

        Args:
            batch: one message or more, in the order of the queue.
        """

    def _process(self) -> Process:
        return self.process


class Consumer(_BaseConsumer):
    """Takes messages one by one: subclass it and write `process`. Arguments as with `BatchConsumer`.

    With ``amqp_prefetch=1`` a message is only taken when the one before is done, which is right for long jobs.
    """

    def __init__(
        self, *, prefix: str | None = None, log: FilteringBoundLogger | None = None, **options: Unpack[Options]
    ) -> None:
        options["batch_max_items"] = 1
        super().__init__(prefix=prefix, log=log, **options)

    @abstractmethod
    async def process(self, message: Message) -> Verdict:
        """Do the work of a message and say what becomes of it; an exception means ``on_exception``.

        Up to ``workers`` calls are at work at once.
        """

    def _process(self) -> Process:
        return self._one_by_one

    async def _one_by_one(self, batch: list[Message]) -> AsyncIterator[Verdict]:
        for message in batch:
            yield await self.process(message)


class _Function(BatchConsumer):
    """A batch consumer whose work is a function that stands by itself."""

    function: Process

    def process(self, batch: list[Message]) -> Verdicts:
        """Do the work of a batch."""
        return self.function(batch)


async def consume(process: Process, *, prefix: str | None = None, **options: Unpack[Options]) -> None:
    """Have a function process batches until SIGTERM or SIGINT.

    Args:
        process: as `BatchConsumer.process`, without ``self``.
        prefix: as with `BatchConsumer`.
        options: as with `BatchConsumer`.
    """
    consumer = _Function(prefix=prefix, **options)
    consumer.function = process
    await consumer.run()


def _usual_signals() -> None:
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.remove_signal_handler(number)


def _logger() -> FilteringBoundLogger:
    """Return a logger for a program that has its own way of logging: events go through `logging`."""
    processors: list[Processor] = [
        structlog.stdlib.filter_by_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["event"]),
    ]
    log = structlog.wrap_logger(
        logging.getLogger("sidecar"), processors=processors, wrapper_class=structlog.stdlib.BoundLogger
    )
    return cast("FilteringBoundLogger", log)
