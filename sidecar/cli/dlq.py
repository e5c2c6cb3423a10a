"""``sidecar dlq``: dead letters listed, shown, replayed and purged.

How letters are taken and given back is decided in `sidecar.amqp.dead_letter_queue`, what they say and become in
`sidecar.core.dead_letters.dead_letter`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

import click

from sidecar.amqp.dead_letter_queue import (
    REFRESH_AT_DELIVERIES,
    REPLAY_PREFETCH,
    SCAN_PREFETCH,
    Replayer,
    ScanAction,
    ScanResult,
    open_dead_letter_queue,
    refresh_queue,
    scan,
)
from sidecar.cli import EXIT_FAILED
from sidecar.config.broker import connect_options
from sidecar.config.settings import PREFIX, load_amqp
from sidecar.core.dead_letters.dead_letter import (
    DeadLetterFilter,
    DeadLetterSummary,
    header_values,
    property_values,
    replay_obstacle,
)
from sidecar.core.wire.names import dead_letter_queue
from sidecar.core.wire.properties import PropertiesError
from sidecar.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from rich.progress import Progress

    from sidecar.amqp.connection import ConnectOptions
    from sidecar.amqp.dead_letter_queue import DeadLetterQueue
    from sidecar.config.settings import AmqpSettings
    from sidecar.core.dead_letters.dead_letter import DeadLetter, DeadLetterGroup
    from sidecar.core.message import Message

DEFAULT_MAX_REPLAYS = 3
_WIDTH = 160  # of tables that go to a file
_LINE_SECONDS = 5.0
_COUNTS = "letters"  # the column that holds numbers

Returned = TypeVar("Returned")

_queue_option = click.option(
    "--queue", help=f"The dead-letter queue.  [default: that of {PREFIX}AMQP_QUEUE, <queue>.dead]"
)
_format_option = click.option(
    "--format",
    "style",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="For people, or one JSON document.",
)


def _choice_options(function: Callable[..., None]) -> Callable[..., None]:
    for name, parameter, text in (
        ("--id", "ids", "message_id or document id"),
        ("--index", "indices", "index"),
        ("--error-type", "error_types", "error type"),
        ("--reason", "reasons", "reason"),
    ):
        what = f"Only letters with this {text}; * and ? stand for anything. May be given several times."
        function = click.option(name, parameter, multiple=True, metavar="PATTERN", help=what)(function)
    return function


@click.group("dlq")
def command() -> None:
    """Look at dead letters, put them back into their queue, or remove them.

    The sidecar may go on running. What is looked at goes back to its place.
    """


# list ----------------------------------------------------------------------------------------------------------------


@command.command("list")
@_queue_option
@_choice_options
@_format_option
def list_letters(*, queue: str | None, style: str, **choice: tuple[str, ...]) -> None:
    """Group the letters by reason, error type and index."""
    wanted = DeadLetterFilter(**choice)
    dlq = _DlqCommand.of(queue)

    async def look(box: DeadLetterQueue, stop: asyncio.Event) -> DeadLetterSummary:
        grouping = DeadLetterSummary()
        with _progress("looking", box.ready) as advance:

            def judge(dead_letter: DeadLetter, _: Message) -> ScanAction:
                if wanted.matches(dead_letter):
                    grouping.add(dead_letter)
                advance(dead_letter.position)
                return ScanAction.KEEP

            await dlq.look(box, judge, stop)
        return grouping

    grouping = dlq.run(look)
    if style == "json":
        groups = [_group(group) for group in grouping.groups()]
        _write_json({"queue": dlq.queue, "letters": grouping.count, "groups": groups})
    else:
        _print_groups(dlq.queue, grouping)


def _group(group: DeadLetterGroup) -> dict[str, object]:
    example = group.example
    return {
        "reason": example.reason,
        "error_type": example.error_type,
        "index": example.index_name,
        "count": group.count,
        "oldest": group.oldest or None,
        "newest": group.newest or None,
        "example": {
            "position": example.position,
            "message_id": example.message_id,
            "id": example.document_id,
            "error_reason": example.error_reason,
        },
    }


def _print_groups(queue: str, grouping: DeadLetterSummary) -> None:
    if not grouping.count:
        click.echo(f"No dead letters in {queue}.")
        return
    rows = [
        (
            f"{group.count:,}",
            group.example.reason,
            group.example.error_type,
            group.example.index_name,
            _short_time(group.oldest),
            _short_time(group.newest),
            group.example.name,
        )
        for group in grouping.groups()
    ]
    _print_table(("letters", "reason", "error type", "index", "oldest", "newest", "for example"), rows)
    click.echo(f"{grouping.count:,} dead letters in {queue}. One in full: sidecar dlq show --id ID")


def _short_time(moment: str) -> str:
    return moment[:19].replace("T", " ")


# show ----------------------------------------------------------------------------------------------------------------


@command.command("show")
@click.argument("position", type=click.IntRange(min=1), required=False)
@click.option("--id", "pattern", metavar="PATTERN", help="The first with this message_id or document id; * and ? too.")
@click.option("--body", "only_body", is_flag=True, help="Write the body's bytes to standard output, and nothing else.")
@_queue_option
@_format_option
def show_letter(*, position: int | None, pattern: str | None, only_body: bool, queue: str | None, style: str) -> None:
    """Show one letter in full, by its POSITION in the queue (1: the next) or by --id."""
    if (position is None) == (pattern is None):
        raise click.UsageError("say which letter: its POSITION, or --id PATTERN")
    dlq = _DlqCommand.of(queue)
    choice = DeadLetterFilter(ids=(pattern,) if pattern is not None else ())

    async def look(box: DeadLetterQueue, stop: asyncio.Event) -> tuple[DeadLetter, Message] | None:
        found: list[tuple[DeadLetter, Message]] = []

        def judge(dead_letter: DeadLetter, message: Message) -> ScanAction:
            if dead_letter.position != position if position is not None else not choice.matches(dead_letter):
                return ScanAction.KEEP
            found.append((dead_letter, message))
            return ScanAction.STOP

        await dlq.look(box, judge, stop, window=REPLAY_PREFETCH)
        return found[0] if found else None

    found = dlq.run(look)
    if found is None:
        which = f"at position {position}" if position is not None else f"with an id like {pattern!r}"
        _fail(f"there is no letter {which} in {dlq.queue!r}")
    dead_letter, message = found
    if only_body:
        sys.stdout.buffer.write(message.body)
        sys.stdout.buffer.flush()
    elif style == "json":
        _write_json(_whole(dead_letter, message))
    else:
        _print_letter(dead_letter, message)


def _whole(dead_letter: DeadLetter, message: Message) -> dict[str, object]:
    try:
        properties, headers = property_values(message), header_values(message)
    except PropertiesError:
        properties, headers = {}, []
    told: dict[str, object] = {
        "position": dead_letter.position,
        "exchange": message.exchange.decode(errors="backslashreplace"),
        "routing_key": message.routing_key.decode(errors="backslashreplace"),
        "properties": properties,
        "headers": [{"name": name, "value": value} for name, value in headers],
    }
    try:
        return {**told, "body": message.body.decode()}
    except UnicodeDecodeError:
        return {**told, "body_base64": base64.b64encode(message.body).decode()}


def _print_letter(dead_letter: DeadLetter, message: Message) -> None:
    told = _whole(dead_letter, message)
    rows = [("position", str(dead_letter.position)), *((name, str(told[name])) for name in ("exchange", "routing_key"))]
    properties, headers = told["properties"], told["headers"]
    assert isinstance(properties, dict)
    assert isinstance(headers, list)
    rows += [(name, _value(value)) for name, value in properties.items()]
    rows += [(f"header {header['name']}", _value(header["value"])) for header in headers]
    _print_table(("property", "value"), rows)
    click.echo(f"Body, {len(message.body):,} bytes:\n")
    click.echo(_printable(message.body.decode(errors="backslashreplace"), "\n\t"))


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# replay --------------------------------------------------------------------------------------------------------------


@command.command("replay")
@_queue_option
@_choice_options
@click.option("--limit", type=click.IntRange(min=1), help="Replay at most so many.  [default: all]")
@click.option("--rate", default=0.0, show_default=True, type=click.FloatRange(min=0), help="Per second; 0: no limit.")
@click.option(
    "--max-replays",
    default=DEFAULT_MAX_REPLAYS,
    show_default=True,
    type=click.IntRange(min=1),
    help="Skip a message that was replayed so often and came back each time.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be replayed, and change nothing.")
@_format_option
def replay(
    *,
    queue: str | None,
    limit: int | None,
    rate: float,
    max_replays: int,
    dry_run: bool,
    style: str,
    **choice: tuple[str, ...],
) -> None:
    """Put letters back into the queues that they came from.

    Each is published, confirmed, and only then removed here: an end in the middle loses nothing; at worst the last ones
    are in both places. Exit status: 1 where a letter couldn't be published; skipped ones are no failure.
    """
    dlq = _DlqCommand.of(queue)
    plan = _ReplaySelection(DeadLetterFilter(**choice), limit, max_replays, dry_run=dry_run)
    sender, stopped = dlq.run(lambda box, stop: _replay(dlq, box, plan, rate, stop))
    queues, skipped = plan.queues if dry_run else sender.queues, plan.skipped
    told = _ReplayReport("would replay" if dry_run else "replayed", queues, skipped, sender.refusals)
    done = queues.total()
    if style == "json":
        _write_json(
            {
                "queue": dlq.queue,
                "dry_run": dry_run,
                "replayed": 0 if dry_run else done,
                "would_replay": done if dry_run else 0,
                "queues": dict(queues),
                "expiring": sender.expiring,
                "skipped": [{"why": why, "count": count} for why, count in skipped.most_common()],
                "refused": [
                    {"queue": name, "why": why, "count": count} for (name, why), count in sender.refusals.most_common()
                ],
                "stopped": stopped,
            }
        )
    else:
        _print_replay(dlq.queue, told, done, sender.expiring)
    if stopped:
        click.echo("sidecar: stopped before the end; the other letters are where they were", err=True)
    if sender.refusals or stopped:
        sys.exit(EXIT_FAILED)


class _ReplaySelection:
    """Which letters are replayed.

    Args:
        choice: which are meant.
        limit: at most so many.
        max_replays: see `obstacle`.
        dry_run: none of them is.

    Attributes:
        queues: how many go to which queue.
        skipped: how many don't go, and why.
    """

    def __init__(self, choice: DeadLetterFilter, limit: int | None, max_replays: int, *, dry_run: bool) -> None:
        self.queues: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.limit = limit
        self.dry_run = dry_run
        self._choice = choice
        self._max_replays = max_replays
        self._chosen = 0

    def judge(self, dead_letter: DeadLetter, _: Message) -> ScanAction:
        """Say what is done with a letter."""
        if self.limit is not None and self._chosen >= self.limit:
            return ScanAction.STOP
        if not self._choice.matches(dead_letter):
            return ScanAction.KEEP
        why = replay_obstacle(dead_letter, self._max_replays)
        if why is not None:
            self.skipped[why] += 1
            return ScanAction.KEEP
        self._chosen += 1
        self.queues[dead_letter.queue] += 1
        return ScanAction.KEEP if self.dry_run else ScanAction.TAKE


async def _replay(
    dlq: _DlqCommand, box: DeadLetterQueue, plan: _ReplaySelection, rate: float, stop: asyncio.Event
) -> tuple[Replayer, bool]:
    """Replay letters; return what came of them, and whether it was stopped before the end."""
    with _progress("replaying", min(box.ready, plan.limit or box.ready)) as advance:
        sender = Replayer(box, rate=rate, stop=stop, on_progress=advance)
        if plan.dry_run:
            await dlq.look(box, plan.judge, stop)
            return sender, False
        try:
            result = await scan(box, plan.judge, sender.act, window=REPLAY_PREFETCH, at_once=sender.at_once, stop=stop)
            await dlq.refresh(box, result, stop)
        except BrokerError as error:
            told = f"{sender.queues.total():,} letters were replayed; a few more may be in both places"
            raise BrokerError(f"{error} ({told})") from error
    return sender, result.stopped


class _ReplayReport(NamedTuple):
    verb: str
    queues: Counter[str]
    skipped: Counter[str]
    refusals: Counter[tuple[str, str]]


def _print_replay(queue: str, told: _ReplayReport, done: int, expiring: int) -> None:
    where = ", ".join(f"{count:,} to {name}" for name, count in told.queues.most_common() if len(told.queues) > 1)
    to = next(iter(told.queues), "") if len(told.queues) == 1 else ""
    click.echo(
        _printable(
            f"{told.verb.capitalize()} {done:,} letters of {queue}{f' to {to}' if to else ''}"
            f"{f': {where}' if where else ''}."
        )
    )
    if expiring:
        click.echo(f"{expiring:,} of them have an expiration of their own, which counts from now.")
    for why, count in told.skipped.most_common():
        click.echo(_printable(f"Skipped {count:,}: {why}."))
    for (name, why), count in told.refusals.most_common():
        click.echo(_printable(f"RabbitMQ took {count:,} not to {name!r}: {why}. They stay in {queue}."))
        if why.startswith("unroutable"):
            click.echo(_printable(f"  -> create the queue {name!r} (sidecar run does it), and replay again"))


# purge ---------------------------------------------------------------------------------------------------------------


@command.command("purge")
@_queue_option
@_choice_options
@click.option("--yes", is_flag=True, help="Don't ask.")
@_format_option
def purge(*, queue: str | None, yes: bool, style: str, **choice: tuple[str, ...]) -> None:
    """Remove letters for good, after a question.

    Only what was counted before the question is removed, not what arrives meanwhile.
    """
    wanted = DeadLetterFilter(**choice)
    dlq = _DlqCommand.of(queue)
    found, counted = dlq.run(lambda box, stop: _count(box, wanted, stop))
    refused = bool(found) and not yes and not _confirm(f"Remove {found:,} letters from {dlq.queue} for good?")
    if counted.seen and (refused or not found):
        dlq.run(lambda box, stop: dlq.refresh(box, counted, stop))
    if refused:
        _fail("nothing was removed")
    removed = dlq.run(lambda box, stop: _remove(dlq, box, wanted, found, stop)) if found else 0
    if style == "json":
        _write_json({"queue": dlq.queue, "purged": removed})
    else:
        click.echo(f"Removed {removed:,} letters from {dlq.queue}.")
    if removed < found:
        _fail(f"{found - removed:,} letters were not removed: stopped, or somebody else took them")


def _confirm(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # no answer
        click.echo(err=True)
        return False


async def _look(
    box: DeadLetterQueue,
    judge: Callable[[DeadLetter, Message], ScanAction],
    stop: asyncio.Event,
    *,
    window: int = SCAN_PREFETCH,
) -> ScanResult:
    """Have letters judged, and return what was seen of them.

    Raises:
        _StoppedError: SIGTERM or SIGINT came first.
    """
    result = await scan(box, judge, window=window, stop=stop)
    if result.stopped:
        raise _StoppedError
    return result


async def _count(box: DeadLetterQueue, wanted: DeadLetterFilter, stop: asyncio.Event) -> tuple[int, ScanResult]:
    """Return how many letters are meant. None is refreshed yet: they would go behind those that arrive meanwhile."""
    if not any(wanted):
        return box.ready, ScanResult()
    found = 0

    def judge(dead_letter: DeadLetter, _: Message) -> ScanAction:
        nonlocal found
        found += wanted.matches(dead_letter)
        return ScanAction.KEEP

    result = await _look(box, judge, stop)
    return found, result


async def _remove(
    dlq: _DlqCommand, box: DeadLetterQueue, wanted: DeadLetterFilter, most: int, stop: asyncio.Event
) -> int:
    chosen = 0

    def judge(dead_letter: DeadLetter, _: Message) -> ScanAction:
        nonlocal chosen
        if chosen >= most:
            return ScanAction.STOP
        if not wanted.matches(dead_letter):
            return ScanAction.KEEP
        chosen += 1
        return ScanAction.TAKE

    with _progress("removing", most) as advance:
        removed = 0

        async def act(part: list[tuple[DeadLetter, Message]]) -> list[str | None]:
            nonlocal removed
            removed += len(part)
            advance(removed)
            return [None] * len(part)

        try:
            result = await scan(box, judge, act, stop=stop)
            await dlq.refresh(box, result, stop)
        except BrokerError as error:
            raise BrokerError(f"{error} (up to {removed:,} letters were removed)") from error
    return result.done


# What they share -----------------------------------------------------------------------------------------------------


class _DlqCommand:
    """Where a command works: a dead-letter queue.

    Args:
        settings: how to reach the broker.
        queue: the dead-letter queue.
    """

    def __init__(self, settings: AmqpSettings, queue: str) -> None:
        self.queue = queue
        self._settings = settings

    @classmethod
    def of(cls, queue: str | None) -> _DlqCommand:
        """Return the desk for a queue that was named, or for that of the settings."""
        # A queue that is named here is the dead-letter queue itself: nothing is added to its name.
        settings = load_amqp(os.environ, amqp_queue=(queue,) if queue else None, dead_letter_routing_key=queue or None)
        return cls(settings, queue or _dead_letter_queue(settings))

    def run(self, work: Callable[[DeadLetterQueue, asyncio.Event], Awaitable[Returned]]) -> Returned:
        """Do some work on the queue and return what comes of it, or tell why it failed and exit."""
        try:
            return asyncio.run(self._work(connect_options(self._settings), work))
        except BrokerError as error:
            _fail(f"{self.queue!r}: {error}")
        except (_StoppedError, KeyboardInterrupt):
            _fail("stopped before the end; what was not told as done is where it was")

    async def _work(
        self, reaching: ConnectOptions, work: Callable[[DeadLetterQueue, asyncio.Event], Awaitable[Returned]]
    ) -> Returned:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            stop.set()
            for number in (signal.SIGTERM, signal.SIGINT):  # a second one ends it at once
                loop.remove_signal_handler(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        urls = tuple(url.get_secret_value() for url in self._settings.amqp_url)
        box = await open_dead_letter_queue(urls, self.queue, reaching)
        try:
            return await work(box, stop)
        finally:
            await box.close()

    async def look(
        self,
        box: DeadLetterQueue,
        judge: Callable[[DeadLetter, Message], ScanAction],
        stop: asyncio.Event,
        *,
        window: int = SCAN_PREFETCH,
    ) -> None:
        """Look at the letters that are there, and see that they aren't worn out by it."""
        await self.refresh(box, await _look(box, judge, stop, window=window), stop)

    async def refresh(self, box: DeadLetterQueue, result: ScanResult, stop: asyncio.Event) -> None:
        """Give back what was taken, and renew all where one was given back often."""
        if result.missing:
            click.echo(f"sidecar: {result.missing:,} letters went meanwhile: somebody else took them", err=True)
        deliveries = result.deliveries
        if deliveries + 1 < REFRESH_AT_DELIVERIES or stop.is_set():
            return
        await box.begin_again()
        with _progress("renewing", box.ready) as advance:
            renewal = await refresh_queue(box, advance, stop)
        if renewal.refused:
            click.echo(
                f"sidecar: {renewal.refused:,} letters of {self.queue!r} were given back {deliveries + 1} times, and"
                " RabbitMQ refuses new copies of them: a quorum queue drops them at its delivery limit (20 where"
                " nothing else is set). Make room in the queue before you look again",
                err=True,
            )


class _StoppedError(Exception):
    """Somebody asked to stop."""


def _dead_letter_queue(settings: AmqpSettings) -> str:
    if settings.dead_letter_exchange:
        raise click.UsageError(
            f"{PREFIX}DEAD_LETTER_EXCHANGE says only where letters are published: name the queue by --queue"
        )
    names = dict.fromkeys(settings.dead_letter_routing_key or dead_letter_queue(queue) for queue in settings.amqp_queue)
    if len(names) > 1:
        raise click.UsageError(f"there are several dead-letter queues: choose by --queue one of {', '.join(names)}")
    return next(iter(names))


def _fail(why: str) -> NoReturn:
    click.echo(f"sidecar: {why}", err=True)
    sys.exit(EXIT_FAILED)


def _write_json(told: dict[str, object]) -> None:
    click.echo(json.dumps(told, indent=2, ensure_ascii=False, default=str))


def _printable(text: str, kept: str = "") -> str:
    """Return text that does nothing to a terminal but stand there: letters hold what others wrote."""
    return "".join(
        character if character.isprintable() or character in kept else repr(character)[1:-1] for character in text
    )


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column == _COUNTS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console.print(table)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far it is on standard error: a bar on a terminal, otherwise a line every few seconds."""
    if sys.stderr.isatty():
        bar = _bar()
        task = bar.add_task(what, total=total or None)
        with bar:
            yield lambda done: bar.update(task, completed=done)
        return
    told = time.monotonic()

    def advance(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _LINE_SECONDS:
            told = time.monotonic()
            click.echo(f"{what}: {done:,} of {total:,}", err=True)

    yield advance


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
