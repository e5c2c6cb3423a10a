"""The trade of a program's own code: a batch goes to a function, and each message gets the verdict that it gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import islice, takewhile
from typing import TYPE_CHECKING, cast

from sidecar.core.encoding.correlation_encoder import CorrelationEncoder
from sidecar.core.scheduling.batcher import Batch
from sidecar.core.wire.republish import Failure, delay_rounds, delay_seconds, milliseconds
from sidecar.library.exceptions import error_location, is_own_cancellation
from sidecar.library.messages import Message
from sidecar.library.verdicts import ACK, VERDICTS, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sidecar.core.message import Message as Delivery
    from sidecar.library.settings import ConsumerSettings
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.pipeline.work import Encoder, Workplace

    Verdicts = AsyncIterator[Verdict] | Awaitable[Verdict | Iterable[Verdict]]
    """One verdict a message, in order: yielded, or returned; or a single one, returned for all of them."""
    Process = Callable[[list[Message]], Verdicts]


class HandlerSink:
    """Has batches processed by a function.

    Args:
        config: what to do.
        process: the function.
        settings: what follows where it gives no verdict.
    """

    def __init__(self, config: PipelineConfig, process: Process, settings: ConsumerSettings) -> None:
        self._config = config
        self._process = process
        self._settings = settings

    async def check(self) -> str | None:
        """Return None: whether the function can do its work, it says message by message."""
        return None

    def encoder(self, make_id: Callable[[], str]) -> Encoder:  # noqa: ARG002 - nothing needs an id here
        """Return what finds out which group messages belong to, where they say so."""
        return CorrelationEncoder(self._config.encoder_config)

    def employ(self, place: Workplace) -> Calls:
        """Return what calls the function."""
        return Calls(self._config, self._process, self._settings, place)


class Calls:
    """Calls the function and has its verdicts carried out.

    Args:
        config: what to do.
        process: the function.
        settings: what follows where it gives no verdict.
        place: where the verdicts take effect.
    """

    def __init__(self, config: PipelineConfig, process: Process, settings: ConsumerSettings, place: Workplace) -> None:
        self._config = config
        self._process = process
        self._on_exception = VERDICTS[settings.on_exception]
        self._on_missing = VERDICTS[settings.on_missing_verdict]
        self._max_bytes = config.encoder_config.max_bytes
        self._settling = place.settling
        self._outbox = place.send_queue
        self._counters = place.counters
        self._wall_clock = place.wall_clock
        self._log = place.log

    async def carry_out(self, batch: Batch, *, probe: bool) -> None:  # noqa: ARG002 - there are no holds to probe
        """Have a batch processed, and settle its messages one by one."""
        clock = asyncio.get_running_loop().time
        began_at = clock()
        messages = batch.messages
        verdicts, error_type = await self._verdicts(messages)
        self._counters.bulk_seconds.observe(clock() - began_at)
        if verdicts.count(ACK) == len(messages):  # most of them; it compares by identity, in C
            self._settling.ack(messages)
        else:
            await self._settle(messages, verdicts, error_type)

    async def _verdicts(self, messages: list[Delivery]) -> tuple[list[Verdict], str]:
        """Return a verdict for each message, and the type of the exception that gave some of them.

        Verdicts belong to messages by position. Only those before the first value that is not a verdict are used; none
        are used if there are too few values or too many, because it is unknown which position is wrong.
        """
        count = len(messages)
        values: list[object] = []
        try:
            why = await self._call(messages, values)
        except (Exception, asyncio.CancelledError) as error:
            if is_own_cancellation(error):
                raise
            verdicts = self._used(values, count)
            others = count - len(verdicts)
            return verdicts + [self._after(error, others)] * others, type(error).__name__
        verdicts = self._used(values, count)
        if len(verdicts) == count:
            return verdicts, ""
        if len(values) == count:
            why = f"{_describe(values, verdicts)}; it and the verdicts after it are not used"
        else:
            verdicts = []
            many = "more than " if len(values) > count else ""
            why = why or f"{many}{min(len(values), count)} verdicts for {count} messages"
            self._log.error("handler.miscounted", messages=count, verdicts=len(values), detail=why)
        others = count - len(verdicts)
        return verdicts + [self._on_missing.because("no-verdict", why)] * others, ""

    async def _call(self, messages: list[Delivery], values: list[object]) -> str:
        """Call the function, and add its values to `values`: at most one more than there are messages.

        Values before an exception stay. Returns why there are none, or an empty text.
        """
        limit = len(messages) + 1
        answer: object = self._process([Message(message, self._max_bytes) for message in messages])
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, Verdict):
            values += [answer] * len(messages)
        elif isinstance(answer, AsyncIterable):
            await _take(answer, values, limit)
        elif isinstance(answer, Iterable) and not isinstance(answer, str | bytes | Mapping | AbstractSet):
            values.extend(islice(answer, limit))  # its values before an exception stay
        else:
            return f"the function returned {type(answer).__name__}, not a verdict for each message in order"
        return ""

    def _used(self, values: list[object], count: int) -> list[Verdict]:
        """Return the verdicts before the first value that is not one; none if there are more values than messages."""
        verdicts = cast("list[Verdict]", values)
        if not set(map(type, values)) <= {Verdict}:  # in C, because this is nearly always true
            verdicts = cast("list[Verdict]", list(takewhile(lambda value: isinstance(value, Verdict), values)))
        if len(verdicts) < len(values):
            self._log.error("handler.not_a_verdict", detail=_describe(values, verdicts), messages=count - len(verdicts))
        return [] if len(values) > count else verdicts

    def _after(self, error: BaseException, others: int) -> Verdict:
        """Return the verdict for the messages that have none after an exception."""
        where = error_location(error)
        # Not its text, which may quote the message. The traceback has it, for whoever wants to see that.
        self._log.error("handler.failed", error_type=type(error).__name__, where=where, messages=others)
        self._log.debug("handler.traceback", exc_info=error)
        return self._on_exception.because("exception", f"{type(error).__name__} at {where}")

    async def _settle(self, messages: list[Delivery], verdicts: list[Verdict], error_type: str) -> None:
        by_kind: dict[str, list[tuple[Delivery, Verdict]]] = {kind: [] for kind in VERDICTS}
        for message, verdict in zip(messages, verdicts, strict=True):
            by_kind[verdict.kind].append((message, verdict))
        done, discarded, requeued = (
            [message for message, _ in by_kind[kind]] for kind in ("ack", "discard", "requeue")
        )
        rejected = [self._letter(message, verdict, error_type) for message, verdict in by_kind["dead-letter"]]
        delayed = [self._round(message, verdict, error_type) for message, verdict in by_kind["delay"]]
        delayed = self._wait_in_place(delayed)
        rejected += [failure for failure in delayed if not failure.delay_milliseconds]
        delayed = [failure for failure in delayed if failure.delay_milliseconds]
        settling = self._settling
        if done:
            settling.ack(done)
        if discarded:
            settling.ack_as(discarded, "discard")
        if rejected:
            settling.dead_letter(rejected)
        if delayed:
            for failure in delayed:
                failure.message.attempts += 1  # `Settler.retry_undelayed` takes it back
            settling.delay(delayed)
        if requeued:
            await settling.requeue(requeued)

    def _wait_in_place(self, delayed: list[Failure]) -> list[Failure]:
        """Hold messages in place whose delay queue refuses messages; return the others, as copies and dead letters."""
        settling, now = self._settling, asyncio.get_running_loop().time()
        leaving = []
        for failure in delayed:
            message, length = failure.message, failure.delay_milliseconds
            if not length or not settling.republisher.delays_refused(message.ledger.queue, length):
                leaving.append(failure)
            elif settling.waiting_room.admit(message):
                message.attempts += 1
                batch = Batch([message], message.bulk_bytes, now)
                batch.ready_at = now + length / 1000
                batch.mergeable = True
                self._outbox.put_back(batch)
            else:
                leaving.append(failure._replace(delay_milliseconds=0, delay_rounds=0))
        return leaving

    @staticmethod
    def _letter(message: Delivery, verdict: Verdict, error_type: str, otherwise: str = "rejected") -> Failure:
        return Failure(message, verdict.reason or otherwise, verdict.detail, error_type=error_type)

    def _round(self, message: Delivery, verdict: Verdict, error_type: str) -> Failure:
        """Return a message's copy for the delay queue, or for the dead letters when it went round often enough."""
        before = delay_rounds(message) + message.attempts
        if before >= self._config.delayed_retry_max_rounds:
            detail = f"after {before} rounds: {verdict.reason or 'delayed'} {verdict.detail}".rstrip()
            return Failure(message, "retries-exhausted", detail, error_type=error_type)
        seconds = verdict.seconds
        if seconds is None:
            first_seconds = self._config.delayed_retry_delay_seconds
            seconds = delay_seconds(message, first_seconds, counted=True, now=self._wall_clock())
        failure = self._letter(message, verdict, error_type, "delayed")
        return failure._replace(delay_milliseconds=milliseconds(seconds), delay_rounds=before + 1)


def _describe(values: list[object], verdicts: list[Verdict]) -> str:
    """Name the first value that is not a verdict, by its position and type: its text may quote the message."""
    at = len(verdicts)
    return f"value {at + 1} of the batch is of type {type(values[at]).__name__}, not a verdict"


async def _take(given: AsyncIterable[object], values: list[object], limit: int) -> None:
    """Add what an asynchronous iterable gives to `values`; one that gives `limit` values is closed."""
    async for value in given:
        values.append(value)
        if len(values) == limit:
            break
    if isinstance(given, AsyncGenerator):
        await given.aclose()
