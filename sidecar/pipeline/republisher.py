"""Copies for the dead-letter and delay queues: published, confirmed, and only then is the original acked.

Destinations are independent. One that refuses its copies is tried at growing intervals, while copies for the others
are published. Dead letters wait until their destination accepts them; one at a time is published as a probe. Messages
that a delay queue refuses go back to the pipeline, which retries them in place, and the queue is probed without them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

from sidecar.core.flow.limiter import backoff_seconds
from sidecar.core.wire.frames import properties_limit
from sidecar.core.wire.names import dead_letter_queue, delay_queue
from sidecar.core.wire.republish import dead_letter_headers, delay_headers, republish_properties
from sidecar.errors import BrokerError
from sidecar.ports import OutboundMessage, Undeclared, Unroutable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.message import Message
    from sidecar.core.stats.counters import Settled
    from sidecar.core.wire.republish import Failure
    from sidecar.ports import BrokerSession

_PUBLISH_BATCH = 500
_TRIES_KEPT_SECONDS = 600.0
_DECLARE_IT = (
    "create this queue beforehand (docs/deployment.md lists the delay queues and their arguments), give the user the "
    "configure permission for it, or raise the virtual host's max-queues"
)
_NO_QUEUE = "there is no such queue: declare it, as a durable quorum queue, or restart the sidecar if it may create it"
_BIND_A_QUEUE = "no queue receives that: bind one to the exchange with this routing key"
_CREATED_AGAIN = "the sidecar looks for it, and creates it again if it may; find out what deleted it"
_MAKE_ROOM = "see that the queue has room (x-max-length, a policy) and a leader, and that the user may write to it"


class CopySettler(Protocol):
    """What the copies' originals are settled by: the pipeline."""

    def on_copies_confirmed(self, messages: list[Message], verdict: Settled) -> None:
        """Ack messages whose copies were confirmed, and count them as `verdict`."""
        ...

    def forget(self, messages: list[Message]) -> None:
        """Forget messages whose epoch is over."""
        ...

    def retry_undelayed(self, failures: list[Failure]) -> None:
        """Retry in place the messages that their delay queue refused."""
        ...

    def target(self, message: Message) -> tuple[str, str, bytes]:
        """Return action, index and id of a message, as far as they are known."""
        ...

    def on_republished(self) -> None:
        """Take notice: something was settled, or a hold began or ended."""
        ...


class DeadLetterRoute:
    """Where copies go.

    Args:
        exchange: for dead letters; empty for the default exchange.
        routing_key: for dead letters; None for ``<queue>.dead``.
        delay_min_seconds: the first pause after a refusal.
        delay_max_seconds: the longest pause.
    """

    def __init__(
        self, exchange: str, routing_key: str | None, delay_min_seconds: float, delay_max_seconds: float
    ) -> None:
        self.exchange = exchange.encode()
        self.routing_key = routing_key
        self.delay_min_seconds = delay_min_seconds
        self.delay_max_seconds = delay_max_seconds


class Destination:
    """An exchange and a routing key for copies, with the copies that wait for it.

    Args:
        exchange: empty for the default exchange.
        routing_key: there.
        delay: for a delay queue: the queue that messages come back to, and after how many milliseconds.

    Attributes:
        queued: what waits to be published.
        refused_tries: in a row. While there are any, one copy at a time is published.
        ready_at: when to try next, in seconds of the loop's clock.
        refusal: why it refuses copies, or None.
        on_trial: (delay queues) it refused the last copy, but it exists, so the next copy tries it.
    """

    def __init__(self, exchange: bytes, routing_key: bytes, delay: tuple[str, int] | None) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.delay = delay
        self.queued: deque[Failure] = deque()
        self.refused_tries = 0
        self.ready_at = 0.0
        self.refusal: str | None = None
        self.on_trial = False

    @property
    def due_at(self) -> float | None:
        """When to publish or probe next, in seconds of the loop's clock; None: never, as it stands."""
        if self.queued:
            return 0.0 if self.on_trial else self.ready_at
        return self.ready_at if self.delay is not None and self.refusal is not None else None

    @property
    def name(self) -> str:
        """What it is called: with the default exchange a routing key is the name of a queue."""
        key = self.routing_key.decode(errors="replace")
        return f"exchange {self.exchange.decode(errors='replace')!r}, routing key {key!r}" if self.exchange else key

    @property
    def reason(self) -> str:
        """Where it is, why it accepts nothing, and what to do, in a sentence."""
        return f"{self.name}: {self.refusal}; {self.fix}"

    @property
    def fix(self) -> str:
        """What to do so that it accepts messages again."""
        if isinstance(self.refusal, Undeclared):
            return _DECLARE_IT
        if isinstance(self.refusal, Unroutable):
            return _CREATED_AGAIN if self.delay is not None else _BIND_A_QUEUE if self.exchange else _NO_QUEUE
        return _MAKE_ROOM


class Republisher:
    """Publishes copies of messages and settles their originals.

    Args:
        route: where they go.
        settler: settles the originals.
        log: where a hold is told.
        wall_clock: seconds since 1970.

    Attributes:
        held: why dead letters are refused, or None.
        delays_held: why messages can't be delayed, or None.
    """

    def __init__(
        self, route: DeadLetterRoute, settler: CopySettler, log: FilteringBoundLogger, wall_clock: Callable[[], float]
    ) -> None:
        self.held: str | None = None
        self.delays_held: str | None = None
        self._route = route
        self._settler = settler
        self._log = log
        self._wall_clock = wall_clock
        self._session: BrokerSession | None = None
        self._destinations: dict[tuple[bytes, bytes], Destination] = {}
        self._blocked_by: str | None = None  # an alarm
        self._unconfirmed = 0
        self._copies = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()  # no copy is on its way or may leave now
        self._idle.set()

    @property
    def idle(self) -> bool:
        """Whether no copy waits or is on its way."""
        return not (self._unconfirmed or any(one.queued for one in self._destinations.values()))

    @property
    def moving(self) -> bool:
        """Whether copies are on their way, or may leave now."""
        return not self._idle.is_set()

    @property
    def unconfirmed(self) -> bool:
        """Whether copies are published whose confirm isn't there yet."""
        return bool(self._unconfirmed)

    def attach(self, session: BrokerSession) -> None:
        """Publish by `session` from now on."""
        self._session = session
        session.on_blocked = self._blocked
        for one in self._destinations.values():
            if one.refusal is not None:
                one.on_trial, one.ready_at = False, 0.0  # another broker perhaps, or the reason why it was restarted
        self._wake.set()

    def detach(self) -> None:
        """Note that the session was lost."""
        self._session = self._blocked_by = None
        for one in self._destinations.values():
            if one.delay is None:
                one.refusal = None
        self._look()

    def drop_stale(self) -> list[Message]:
        """Forget letters whose originals the broker has again; return these."""
        gone: list[Message] = []
        for one in self._destinations.values():
            gone += [failure.message for failure in one.queued if failure.message.ledger.closed]
            one.queued = deque(failure for failure in one.queued if not failure.message.ledger.closed)
        self._look()
        return gone

    def enqueue(self, failures: Iterable[Failure]) -> None:
        """Publish copies in order; those for a delay queue that refuses messages are retried in place."""
        undelayed: list[Failure] = []
        gone: list[Message] = []
        for failure in failures:
            one = self._destination(failure)
            if failure.message.ledger.closed:
                gone.append(failure.message)
            elif one.delay is not None and one.refusal is not None and not one.on_trial:
                undelayed.append(failure)
            else:
                one.queued.append(failure)
        self._look()
        self._wake.set()
        self._settler.forget(gone)
        if undelayed:
            self._settler.retry_undelayed(undelayed)

    def delays_refused(self, queue: str, milliseconds: int) -> bool:
        """Whether the delay queue is known to refuse messages now."""
        one = self._destinations.get((b"", delay_queue(queue, milliseconds).encode()))
        return one is not None and one.refusal is not None and not one.on_trial

    async def wait_idle(self) -> None:
        """Wait until every copy is confirmed, or it is clear that none will be for now."""
        await self._idle.wait()

    # Publishing ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._sleep()
            session = self._session
            if session is None:
                continue
            try:
                await self._try_delays(session)
                await self._publish(session)
            except BrokerError:
                self._session = None  # whoever holds it learns of that
            self._forget_idle()
            self._look()
            self._settler.on_republished()

    async def _sleep(self) -> None:
        """Sleep until a destination is due or something changed."""
        moments = [one.due_at for one in self._destinations.values()] if self._session is not None else []
        until = min((moment for moment in moments if moment is not None), default=None)
        self._wake.clear()
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _try_delays(self, session: BrokerSession) -> None:
        """Probe delay queues that refused messages, by declaring them.

        A declare doesn't show whether a queue is full or has no leader, so the next message tries it. If none comes
        within the next pause, the queue counts as one that accepts messages.

        Raises:
            BrokerError: the session was lost.
        """
        for one in list(self._destinations.values()):
            if one.delay is None or one.refusal is None or one.queued or one.ready_at > self._now():
                continue
            refusal = await session.find_delay_queue(*one.delay)
            if refusal is not None:
                self._refuse(one, refusal)
            elif one.on_trial or isinstance(one.refusal, Undeclared):
                self._resume(one)
            else:
                one.on_trial = True
                one.ready_at = self._now() + self._pause(one.refused_tries)

    async def _publish(self, session: BrokerSession) -> None:
        """Publish what may leave now.

        Raises:
            BrokerError: the session was lost.
        """
        now = self._now()
        due = [one for one in self._destinations.values() if one.queued and (one.on_trial or one.ready_at <= now)]
        failures: list[Failure] = []
        for one in due:
            count = 1 if one.refused_tries else max(1, _PUBLISH_BATCH // len(due))  # a single one as a probe
            failures += [one.queued.popleft() for _ in range(min(count, len(one.queued)))]
        if not failures:
            return
        self._unconfirmed = len(failures)
        self._look()
        try:
            refusals = await session.publish([self._copy(failure, session.frame_max) for failure in failures])
        except BrokerError as error:
            self._put_back(failures, str(error))
            raise
        finally:
            self._unconfirmed = 0
        self._settle(failures, refusals)

    def _put_back(self, failures: list[Failure], reason: str) -> None:
        """Keep the copies that a lost session left without an answer, if their originals are still open.

        The copies may be why it was lost; the pause lets the next session settle other messages first.
        """
        for one in dict.fromkeys(self._destination(failure) for failure in failures):
            one.refused_tries += 1
            one.ready_at = self._now() + self._pause(one.refused_tries)
            if one.refused_tries > 1:
                self._set_blocked(one, reason)
        for failure in reversed(failures):
            if _is_open(failure):
                self._destination(failure).queued.appendleft(failure)
        self._settler.forget([failure.message for failure in failures if not _is_open(failure)])

    def _settle(self, failures: list[Failure], refusals: list[str | None]) -> None:
        # If the epoch ended in the meantime, the broker has the originals again.
        ours = [(failure, refusal) for failure, refusal in zip(failures, refusals, strict=True) if _is_open(failure)]
        self._settler.forget([failure.message for failure in failures if not _is_open(failure)])
        taken = [failure for failure, refusal in ours if refusal is None]
        for verdict in ("dead_letter", "delay"):
            messages = [failure.message for failure in taken if failure.verdict == verdict]
            if messages:
                self._settler.on_copies_confirmed(messages, verdict)
        refused: dict[Destination, list[tuple[Failure, str]]] = {}
        for failure, refusal in ours:
            if refusal is not None:
                refused.setdefault(self._destination(failure), []).append((failure, refusal))
        for one in dict.fromkeys(map(self._destination, taken)):
            one.refused_tries = 0
            if one not in refused:
                self._resume(one)
        undelayed: list[Failure] = []
        for one, some in refused.items():
            self._refuse(one, some[0][1])
            failures = [failure for failure, _ in some]
            if one.delay is None:
                one.queued.extend(failures)  # at the end, so that another one is the next probe
            else:
                undelayed += [*failures, *one.queued]
                one.queued.clear()
        if undelayed:
            self._settler.retry_undelayed(undelayed)

    # Destinations ----------------------------------------------------------------------------------------------------

    def _destination(self, failure: Failure) -> Destination:
        queue, milliseconds = failure.message.ledger.queue, failure.delay_milliseconds
        if milliseconds:
            exchange, key = b"", delay_queue(queue, milliseconds).encode()
        else:
            exchange, key = self._route.exchange, (self._route.routing_key or dead_letter_queue(queue)).encode()
        known = self._destinations.get((exchange, key))
        if known is None:
            delay = (queue, milliseconds) if milliseconds else None
            known = self._destinations[exchange, key] = Destination(exchange, key, delay)
        return known

    def _forget_idle(self) -> None:
        """Drop destinations in their normal state: the user's own code may choose any number of delays.

        One that counts as accepting copies again, but has not accepted one yet, keeps its tries for a while.
        """
        long_ago = self._now() - _TRIES_KEPT_SECONDS
        self._destinations = {
            name: one
            for name, one in self._destinations.items()
            if one.queued or one.refusal is not None or (one.refused_tries and one.ready_at > long_ago)
        }

    def _refuse(self, one: Destination, reason: str) -> None:
        one.on_trial = False
        one.refused_tries += 1
        one.ready_at = self._now() + self._pause(one.refused_tries)
        self._set_blocked(one, reason)

    def _resume(self, one: Destination) -> None:
        one.on_trial = False
        self._set_blocked(one, None)

    def _pause(self, tries: int) -> float:
        return backoff_seconds(tries, 1.0, self._route.delay_min_seconds, self._route.delay_max_seconds)

    def _set_blocked(self, one: Destination, refusal: str | None) -> None:
        """Note why a destination refuses copies, and log a change."""
        if refusal == one.refusal:
            return
        one.refusal = refusal
        queue = one.routing_key.decode(errors="replace")
        if one.delay is None:
            if refusal is not None:
                self._log.error(
                    "dead_letters.held",
                    reason=refusal,
                    exchange=one.exchange.decode(errors="replace"),
                    routing_key=queue,
                    fix=one.fix,
                )
            else:
                self._log.info("dead_letters.resumed", routing_key=queue)
        elif refusal is not None:
            self._log.error("delays.held", queue=queue, reason=refusal, fix=one.fix)
        else:
            self._log.info("delays.resumed", queue=queue)

    def _blocked(self, reason: str | None) -> None:
        """Note that RabbitMQ is short of resources: copies wait at its door, and nothing needs to be done."""
        if reason is not None:
            reason = f"RabbitMQ accepts no messages at the moment: {reason}"
            self._log.error("dead_letters.held", reason=reason)
        elif self._blocked_by is not None:
            self._log.info("dead_letters.resumed")
        self._blocked_by = reason
        self._look()
        self._settler.on_republished()

    def _look(self) -> None:
        """See what is held, and whether anything moves."""
        dead = (one.reason for one in self._destinations.values() if one.delay is None and one.refusal is not None)
        delays = (
            one.reason for one in self._destinations.values() if one.delay is not None and one.refusal is not None
        )
        self.held = self._blocked_by or next(dead, None)
        self.delays_held = next(delays, None)
        may_leave = any(one.queued and (not one.refused_tries or one.on_trial) for one in self._destinations.values())
        if self._session is not None and self._blocked_by is None and (self._unconfirmed or may_leave):
            self._idle.clear()
        else:
            self._idle.set()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _copy(self, failure: Failure, frame_max: int) -> OutboundMessage:
        message = failure.message
        action, index, document_id = self._settler.target(message)
        self._copies += 1
        token = b"%d" % self._copies
        now = self._wall_clock()
        if failure.delay_milliseconds:
            added = delay_headers(failure, token=token, document_id=document_id, now=now)
        else:
            added = dead_letter_headers(
                failure, token=token, action=action, index=index, document_id=document_id, failed_at=now
            )
        properties = republish_properties(message.properties, added, properties_limit(frame_max))
        one = self._destination(failure)
        return OutboundMessage(one.exchange, one.routing_key, properties, message.body, token, one.delay)


def _is_open(failure: Failure) -> bool:
    return failure.message.ledger.is_open(failure.message)
