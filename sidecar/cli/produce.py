"""``sidecar produce``: sample messages for demonstrations and load, published with confirms.

What is sent is made by `sidecar.cli.samples`; here is how: in chunks, some of them unconfirmed at a time, at a rate.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import click

from sidecar.amqp.publisher_connection import open_publisher_connection
from sidecar.cli.samples import BAD, STRANGE, Samples
from sidecar.config.broker import connect_options, topology
from sidecar.config.settings import load_amqp
from sidecar.errors import BrokerError, ConfigError
from sidecar.ports import OutboundMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

    from sidecar.cli.samples import Sample
    from sidecar.config.settings import AmqpSettings

CHUNK_MESSAGES = 500
CHUNK_BYTES = 1 << 20
WINDOW_CHUNKS = 8
"""The unconfirmed: at most 4,000 messages, and 8 MiB but for a message that is larger by itself."""

_CHUNKS_PER_SECOND = 20  # at a limited rate: smooth enough to be called one
_LINE_SECONDS = 5.0
_MAX_SHORT_STRING = 255


class Route(NamedTuple):
    """Where messages are published."""

    exchange: str
    routing_key: str

    def __str__(self) -> str:
        """Name it for people."""
        if not self.exchange:
            return f"the queue {self.routing_key!r}"
        return f"the exchange {self.exchange!r} with the routing key {self.routing_key!r}"


class PublishStats:
    """What was published so far.

    Attributes:
        published: messages that were written.
        confirmed: those that the broker took.
        refused: the others that it answered, by its reason.
        kinds: those that were written, by `sidecar.cli.samples.Kind.name`.
        body_bytes: what their bodies have together.
    """

    def __init__(self) -> None:
        self.published = 0
        self.confirmed = 0
        self.refused: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.body_bytes = 0


class PublishPort(Protocol):
    """What is needed of `sidecar.amqp.publisher_connection.Producer`."""

    async def publish(self, messages: list[OutboundMessage]) -> list[str | None]:
        """Publish messages; return for each None, or why the broker refused it."""
        ...


class Sender:
    """Publishes samples in chunks, with several of them unconfirmed.

    Args:
        port: publishes.
        route: where to.
        rate: messages a second; 0: as many as it takes.
        tally: is kept.
        on_progress: called when something was confirmed.
    """

    def __init__(
        self,
        port: PublishPort,
        route: Route,
        *,
        rate: float = 0.0,
        tally: PublishStats | None = None,
        on_progress: Callable[[PublishStats], None] | None = None,
    ) -> None:
        self.tally = tally or PublishStats()
        self._port = port
        self._exchange = route.exchange.encode()
        self._routing_key = route.routing_key.encode()
        self._rate = rate
        self._on_progress = on_progress
        self._window = asyncio.Semaphore(WINDOW_CHUNKS)

    async def send(self, samples: Iterator[Sample], stop: asyncio.Event) -> None:
        """Publish until `samples` end or `stop` is set, and wait for all confirms.

        Raises:
            BrokerError: the connection was lost, or nothing is bound to the route.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        taken = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                while not stop.is_set():
                    chunk = self._chunk(samples)
                    if not chunk:
                        break
                    await self._window.acquire()
                    tasks.create_task(self._publish(chunk))
                    taken += len(chunk)
                    pause = began + taken / self._rate - loop.time() if self._rate else 0.0
                    with suppress(TimeoutError):
                        # Also without a pause: what was confirmed has to be read between two chunks.
                        await asyncio.sleep(0) if pause <= 0 else await asyncio.wait_for(stop.wait(), pause)
        except BaseExceptionGroup as group:
            broker_errors, others = group.split(BrokerError)
            if others is not None or broker_errors is None:
                raise
            raise _first(broker_errors) from None

    def _chunk(self, samples: Iterator[Sample]) -> list[Sample]:
        most = min(CHUNK_MESSAGES, max(1, int(self._rate / _CHUNKS_PER_SECOND))) if self._rate else CHUNK_MESSAGES
        chunk: list[Sample] = []
        size = 0
        for sample in islice(samples, most):
            chunk.append(sample)
            size += len(sample.body)
            if size >= CHUNK_BYTES:
                break
        return chunk

    async def _publish(self, chunk: list[Sample]) -> None:
        exchange, routing_key = self._exchange, self._routing_key
        copies = [OutboundMessage(exchange, routing_key, sample.properties, sample.body, b"") for sample in chunk]
        self.tally.published += len(chunk)
        self.tally.body_bytes += sum(len(sample.body) for sample in chunk)
        self.tally.kinds.update(sample.kind.name for sample in chunk)
        refusals = [refusal for refusal in await self._port.publish(copies) if refusal is not None]
        self._window.release()
        self.tally.confirmed += len(chunk) - len(refusals)
        self.tally.refused.update(refusals)
        unroutable = next((refusal for refusal in refusals if refusal.startswith("unroutable")), None)
        if unroutable is not None:  # all go the same way, so none of the others will arrive either
            raise BrokerError(f"nothing is bound there ({unroutable})")
        if self._on_progress is not None:
            self._on_progress(self.tally)


def _first(group: BaseExceptionGroup[BrokerError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@click.command("produce")
@click.option(
    "--count", default=10_000, show_default=True, type=click.IntRange(min=0), help="Messages; 0: until stopped."
)
@click.option("--rate", default=0.0, show_default=True, type=click.FloatRange(min=0), help="Per second; 0: no limit.")
@click.option(
    "--size",
    default=512,
    show_default=True,
    type=click.IntRange(min=1),
    help="Bytes of a body. Below 400 or so fields are left out; 120 is about the least.",
)
@click.option(
    "--bad-ratio",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="The share of bad messages, in eight different ways.",
)
@click.option(
    "--keys",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Draw message ids from so many; 0: every id is another.",
)
@click.option("--queue", help="The queue to declare and publish to.  [default: SIDECAR_AMQP_QUEUE, the first]")
@click.option("--exchange", help="Publish there, bound as `run` does it.  [default: SIDECAR_AMQP_EXCHANGE, or none]")
@click.option("--routing-key", help="[default: SIDECAR_AMQP_ROUTING_KEYS, the first, or the queue's name]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="The same seed, the same messages.  [default: chance]")
@click.option("--no-ids", is_flag=True, help="Publish without message_id.")
@click.option("--quiet", is_flag=True, help="No progress, only the account.")
def command(
    *,
    count: int,
    rate: float,
    size: int,
    bad_ratio: float,
    keys: int,
    queue: str | None,
    exchange: str | None,
    routing_key: str | None,
    seed: int | None,
    no_ids: bool,
    quiet: bool,
) -> None:
    """Publish sample orders: load, and something to look at.

    Every message is confirmed by the broker. The exit status is 0 when all of them were.
    """
    given = {"amqp_queue": (queue,) if queue is not None else None, "amqp_exchange": exchange}
    settings = load_amqp(os.environ, **given)
    if routing_key is not None:
        if not settings.amqp_exchange:
            raise click.UsageError("--routing-key needs an exchange (--exchange); without one --queue says where to.")
        settings = load_amqp(os.environ, **given, amqp_routing_keys=(routing_key,))
    route = _route(settings)
    if seed is None:
        seed = random.SystemRandom().getrandbits(32)
    samples = iter(Samples(seed, size_bytes=size, bad_ratio=bad_ratio, keys=keys, with_ids=not no_ids))
    tally = PublishStats()
    began = time.monotonic()
    failure = None
    with _Progress(count, shown=not quiet) as progress:
        try:
            sender = partial(Sender, route=route, rate=rate, tally=tally, on_progress=progress.show)
            asyncio.run(_produce(settings, islice(samples, count) if count else samples, sender))
        except BrokerError as error:
            failure = str(error)
        except KeyboardInterrupt:  # asked twice
            failure = "stopped before RabbitMQ had confirmed everything"
    if tally.published:
        click.echo(format_summary(tally, str(route), seed, time.monotonic() - began))
    if failure is not None:
        what = f"publishing to {route} ended" if tally.published else f"can't publish to {route}"
        click.echo(f"sidecar: {what}: {failure}", err=True)
    elif tally.published < count:
        click.echo(f"sidecar: stopped before all {count:,} were published", err=True)
    if failure is not None or tally.confirmed < max(count, tally.published):
        sys.exit(1)


async def _produce(
    settings: AmqpSettings, samples: Iterator[Sample], make_sender: Callable[[PublishPort], Sender]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one doesn't wait for confirms
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    urls = tuple(url.get_secret_value() for url in settings.amqp_url)
    producer = await open_publisher_connection(urls, topology(settings), connect_options(settings))
    try:
        await make_sender(producer).send(samples, stop)
    finally:
        await producer.close()


def _route(settings: AmqpSettings) -> Route:
    queue = settings.amqp_queue[0]
    route = Route(settings.amqp_exchange or "", settings.amqp_routing_keys[0] if settings.amqp_routing_keys else queue)
    if not route.exchange:
        route = Route("", queue)  # the default exchange: a routing key is a queue's name
    problems = [
        f"{what} has {len(text.encode())} bytes; AMQP takes {_MAX_SHORT_STRING}"
        for what, text in (("the exchange's name", route.exchange), ("the routing key", route.routing_key))
        if len(text.encode()) > _MAX_SHORT_STRING
    ]
    if problems:
        raise ConfigError(problems)
    return route


def format_summary(tally: PublishStats, where: str, seed: int, seconds: float) -> str:
    """Return what was published, in sentences for people.

    Args:
        tally: of the whole run.
        where: the route in words.
        seed: of the samples.
        seconds: that it took.
    """
    rate = tally.published / seconds if seconds else 0.0
    megabytes = tally.body_bytes / 1e6
    taken = "all confirmed" if tally.confirmed == tally.published else f"{tally.confirmed:,} confirmed"
    size = f"{tally.published:,} messages ({megabytes:,.1f} MB)"
    lines = [f"Published {size} to {where}, {taken}, in {seconds:,.1f} s: {rate:,.0f}/s."]
    lines += [f"RabbitMQ refused {count:,}: {reason}." for reason, count in tally.refused.most_common()]
    for kinds, what in ((BAD, "bad"), (STRANGE, "good, but strange")):
        found = [(kind.name, tally.kinds[kind.name]) for kind in kinds if tally.kinds[kind.name]]
        if found:
            each = ", ".join(f"{count:,} {name}" for name, count in found)
            lines.append(f"{sum(count for _, count in found):,} of them are {what}: {each}.")
    lines.append(f"Seed: {seed} (--seed {seed} publishes the same again).")
    return "\n".join(lines)


class _Progress:
    """A bar on a terminal, otherwise a line every few seconds, or nothing; on standard error."""

    def __init__(self, count: int, *, shown: bool) -> None:
        self._count = count
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began = self._told = time.monotonic()
        self._shown = shown
        if shown and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("publishing", total=count or None, rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, tally: PublishStats) -> None:
        """Show how far it is; cheap enough to be called for each chunk."""
        now = time.monotonic()
        rate = tally.confirmed / max(now - self._began, 1e-3)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=tally.confirmed, rate=f"{rate:,.0f}/s")
        elif self._shown and now - self._told >= _LINE_SECONDS:
            self._told = now
            of_all = f" of {self._count:,}" if self._count else ""
            click.echo(f"{tally.confirmed:,}{of_all} confirmed, {rate:,.0f}/s", err=True)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("confirmed"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
