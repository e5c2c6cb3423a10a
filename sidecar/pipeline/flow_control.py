"""When to consume, and how much: the one owner of pausing, resuming, and giving back.

    waiting ──(Elasticsearch answers)──▶ consuming ──(a hold lasts too long)──▶ waiting
                                         │      ▲
                           (memory full) ▼      │ (room again)
                                         pausing ──(longer than the broker bears)──▶ stepped aside

Nothing is consumed before Elasticsearch answers: not at the start, not after a session that ended in a hold, and not
after a hold that was too long to keep messages. Then a window of one batch finds out, and grows.

Memory is bounded at the socket: nothing is read while too much is held. But RabbitMQ resets a connection that it can't
write to for half a minute; so after ten seconds the consumer is cancelled, what is still on the wire is sent back (what
is held stays), and the next consumer asks for no more than fits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from sidecar.core.far import ELASTICSEARCH, Far
from sidecar.core.flow.limiter import probe_pause_seconds
from sidecar.core.wire.republish import delivery_count
from sidecar.errors import BrokerError
from sidecar.pipeline.waking import wait_until

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.flow.prefetch_window import PrefetchWindow
    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.ports import BrokerSession

MAX_PAUSE_SECONDS = 10.0
"""RabbitMQ bears about 30 s."""
_CHECK_MAX_SECONDS = 5.0  # at the start, where somebody waits for it; after a hold looks become as rare as probes
_RESUME_MIN_SECONDS = 30.0
_RESUME_MAX_SECONDS = 300.0
_MIN_PROBES = 3
"""Of different items, before messages are given back: one of them may be what Elasticsearch doesn't survive."""
_PROBE_WAIT_SECONDS = 1.0
_MAX_PROBE_WAITS = 10
_NEAR_LIMIT_DELIVERIES = 15
"""RabbitMQ 4 drops a message of a quorum queue at its 21st delivery unless the queue has another limit."""
_NEAR_LIMIT_LOG_SECONDS = 60.0


class Keeper(Protocol):
    """What holds the messages: the pipeline."""

    @property
    def held(self) -> str | None:
        """Why only probes are sent or no more messages are admitted, or None."""
        ...

    @property
    def requests_held(self) -> bool:
        """Whether only probes are sent."""
        ...

    @property
    def probes(self) -> int:
        """How many probes were sent, ever."""
        ...

    @property
    def probing(self) -> bool:
        """Whether a probe is out."""
        ...

    @property
    def storing(self) -> bool:
        """Whether admitted messages are still being stored, because only admission is held."""
        ...

    @property
    def copies_on_their_way(self) -> bool:
        """Whether copies are published whose confirm isn't there yet."""
        ...

    def probe_now(self) -> None:
        """Probe at once, whatever pause there is."""
        ...

    async def give_back(self) -> None:
        """Write every ack that is due, and have the broker take back the rest, in the order of delivery."""
        ...

    def count_requeued(self, ledger: Ledger, count: int) -> None:
        """Count deliveries that the broker was given back unseen."""
        ...

    def wake(self) -> None:
        """Take notice: there is room, or no more to come."""
        ...


class FlowControl:
    """Consumes for the pipeline as much as may be held.

    Args:
        window: the bounds.
        keeper: holds what came.
        unavailable: says why Elasticsearch can't be used now, or None.
        hold_max_seconds: how long messages are kept in a hold.
        far: how what may be unavailable is called.
        rng: the only source of chance.
        log: where state changes are told.

    Attributes:
        prefetch: of the present consumers, or of the last.
        sink_reached: Elasticsearch answered at least once.
        unavailable_reason: why it couldn't be used when it was last looked at, or None.
        started: consumers of this session were begun, and not given up; they may step aside for a while.
        consuming: the broker delivers.
        discarding: what arrives now is for nobody: the broker gets it back.
    """

    def __init__(
        self,
        window: PrefetchWindow,
        keeper: Keeper,
        unavailable: Callable[[], Awaitable[str | None]],
        *,
        hold_max_seconds: float,
        rng: random.Random,
        log: FilteringBoundLogger,
        far: Far = ELASTICSEARCH,
    ) -> None:
        self.prefetch = window.prefetch(0, 0)
        self.sink_reached = False
        self.unavailable_reason: str | None = None
        self.started = False
        self.consuming = False
        self.discarding = False
        self._window = window
        self._keeper = keeper
        self._unavailable = unavailable
        self._hold_max_seconds = hold_max_seconds
        self._rng = rng
        self._log = log
        self._far = far
        self._session: BrokerSession | None = None
        self._stopping = False
        self._waiting = True  # for Elasticsearch
        self._check_at = 0.0
        self._checks = 0
        self._resume_attempts = 0
        self._held_since: float | None = None
        self._requeue_at = 0.0
        self._probes_before = 0
        self._probe_waits = self._waited_for_probe = 0  # how often the last probe was waited for, and its number
        self._paused_at: float | None = None
        self._settled_items = 0  # since the consumers began
        self._limit_silent_until = 0.0
        self._wake = asyncio.Event()
        self._memory_freed = asyncio.Event()  # something was settled, or the session ended
        self._step_lock = asyncio.Lock()  # the end comes between two steps, never into one

    # What the pipeline tells -----------------------------------------------------------------------------------------

    def attach(self, session: BrokerSession) -> None:
        """Consume from `session` as soon as Elasticsearch is there."""
        self._session = session
        self._wake.set()

    def detach(self) -> None:
        """Note that the session was lost.

        In a hold that may be the work of the broker's consumer timeout: nothing is consumed before there is hope, or
        the next session would end in the same way.
        """
        self._session = None
        self._memory_freed.set()
        self.started = self.consuming = self.discarding = False
        self._paused_at = self._held_since = None
        if self._keeper.held is not None:
            self._wait(0.0)

    def on_delivered(self, chunk: list[Message], size_bytes: int) -> None:
        """Note messages that came and are kept: learn their size, and stop reading when they are too much.

        Args:
            chunk: the messages.
            size_bytes: what they take of the memory limit, all together.
        """
        session = self._session
        if session is None:
            return
        self._window.observe(len(chunk), size_bytes)
        self._pause_if_full(session)
        if chunk[-1].redelivered:
            self._warn_near_delivery_limit(chunk)

    def _pause_if_full(self, session: BrokerSession) -> None:
        # Without consumers nothing comes that takes room, but answers that somebody waits for.
        if self.consuming and self._paused_at is None and self._window.full(*self._held(session)):
            self._paused_at = self._now()
            session.pause()
            self._wake.set()
            self._keeper.wake()

    @property
    def room_bytes(self) -> int:
        """How much more may be held; 0 without a session."""
        return self._window.room_bytes(*self._held(self._session)) if self._session is not None else 0

    async def wait_for_memory(self, unadmitted: Callable[[], int]) -> None:
        """Wait until there is room for what messages hold that came already, or nothing else is held.

        Args:
            unadmitted: says how many messages wait for that.
        """
        while (session := self._session) is not None:
            self._pause_if_full(session)
            size_bytes, items = self._held(session)
            if items <= unadmitted() or not self._window.full(size_bytes, items):
                return
            self._memory_freed.clear()
            await self._memory_freed.wait()

    def on_settled(self, items: int) -> None:
        """Note that messages were settled: there may be room again."""
        self._memory_freed.set()
        self._settled_items += items
        session = self._session
        if session is None:
            return
        if self._paused_at is not None:
            self._resume_if_room(session)
        elif not self.consuming or self._settled_items >= self.prefetch:
            self._wake.set()

    def hold_changed(self) -> None:
        """Note that a hold began or ended."""
        self._wake.set()

    @property
    def waiting(self) -> bool:
        """Whether nothing is consumed before Elasticsearch answers."""
        return self._waiting

    @property
    def exhausted(self) -> bool:
        """Whether nothing more comes before something is settled."""
        session = self._session
        if session is None:
            return False
        full = any(ledger.outstanding >= self.prefetch for ledger in session.ledgers)
        return full or self._paused_at is not None or not self.consuming

    async def stop(self) -> None:
        """Stop for good: when this returns, nothing more comes.

        Raises:
            BrokerError: the session was lost.
        """
        self._stopping = True
        async with self._step_lock:
            session = self._session
            if session is not None and self.consuming:
                self.discarding = self._paused_at is not None  # no room: the broker takes it back with the rest
                self._resume(session)
                await self._cancel(session)

    # Steps -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Consume, pause and give back until cancelled."""
        while True:
            await self._sleep()
            if self._waiting and not self._stopping and self._now() >= self._check_at:
                await self._check_sink()
            try:
                async with self._step_lock:
                    if self._session is not None and not self._stopping:
                        await self._step(self._session)
            except BrokerError:
                self.consuming = False  # the session is lost, and whoever holds it learns of that

    async def _step(self, session: BrokerSession) -> None:
        now = self._now()
        if self._keeper.held is None:
            self._held_since, self._resume_attempts = None, 0
        elif self._held_since is None:
            self._start_hold_timer()
        if self._held_since is not None and now >= self._requeue_at and self._has_messages(session):
            await self._requeue_after_hold(session)
        elif not self.consuming:
            if not self._waiting and self._window.has_headroom(*self._held(session)):
                await self._start_consumer(session)
        elif self._paused_at is not None and now >= self._paused_at + MAX_PAUSE_SECONDS:
            await self._pause_consumer(session)
        elif self._paused_at is None and self._held_since is None and self._settled_items >= self.prefetch:
            await self._grow_prefetch(session)

    async def _sleep(self) -> None:
        """Sleep until something changed, or it is time for the next step."""
        moments = []
        if not self._stopping:
            if self._waiting:
                moments.append(self._check_at)
            if self._held_since is not None and self._session is not None and self._has_messages(self._session):
                moments.append(self._requeue_at)
            if self.consuming and self._paused_at is not None:
                moments.append(self._paused_at + MAX_PAUSE_SECONDS)
        await wait_until(self._wake, min(moments, default=None))

    # Waiting for Elasticsearch ---------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        self._waiting = True
        self._checks = 0
        self._check_at = self._now() + seconds
        self._wake.set()

    async def _check_sink(self) -> None:
        """Look whether Elasticsearch is there; where it is, consuming may begin."""
        reason = self.unavailable_reason = await self._unavailable()
        self._checks += 1
        if reason is not None:
            if self._checks == 1:
                self._log.warning(self._far.unreachable, reason=reason)
            pause = probe_pause_seconds(self._checks, self._rng.random())
            self._check_at = self._now() + (pause if self._keeper.held is not None else min(pause, _CHECK_MAX_SECONDS))
            return
        if self._checks > 1:
            self._log.info(self._far.reached, tries=self._checks)
        self.sink_reached = True
        self._waiting = False
        self._wake.set()

    # Consuming -------------------------------------------------------------------------------------------------------

    async def _start_consumer(self, session: BrokerSession) -> None:
        """Begin to consume; after a hold of requests with one batch, of which a single item goes first."""
        held = self._keeper.held is not None
        if self._keeper.requests_held:  # otherwise what ends the hold may be far behind
            self._window.shrink()
        self.prefetch = self._window.prefetch(*self._held(session))
        self._settled_items = 0
        if held:
            self._start_hold_timer()
        self.consuming = True  # before it is: deliveries come before this knows
        await session.consume(self.prefetch)
        self.started = True
        self._log.info("amqp.consuming", prefetch=self.prefetch)
        if held:
            self._keeper.probe_now()

    async def _grow_prefetch(self, session: BrokerSession) -> None:
        """Ask for more, where more is allowed and would make a difference: each time costs a new consumer."""
        self._window.grow()
        self._settled_items = 0
        if self._window.should_grow(self.prefetch, *self._held(session)):
            await self._cancel(session)
            await self._start_consumer(session)

    async def _pause_consumer(self, session: BrokerSession) -> None:
        """Send back what is on the wire, before the broker loses patience; what is held stays."""
        firsts = [(ledger, ledger.next_tag) for ledger in session.ledgers]
        self.discarding = True
        self._resume(session)
        await self._cancel(session)
        count = 0
        for ledger, first_tag in firsts:
            tags = ledger.mark_requeued_from(first_tag)
            self._keeper.count_requeued(ledger, len(tags))  # at once: the account must add up at any moment
            count += len(tags)
            await session.requeue(ledger, tags)
        self.discarding = False
        self._memory_freed.set()
        self._log.info("amqp.paused", returned=count, reason="as much is held as SIDECAR_MEMORY_LIMIT allows")
        self._keeper.wake()

    def _start_hold_timer(self) -> None:
        self._held_since = self._now()
        self._requeue_at = self._held_since + self._hold_max_seconds
        self._probes_before = self._keeper.probes
        self._probe_waits = self._waited_for_probe = 0

    async def _requeue_after_hold(self, session: BrokerSession) -> None:
        """Give everything back: an outage is too long to sit it out with messages that others could have."""
        probes = self._keeper.probes
        if probes != self._waited_for_probe:
            self._probe_waits, self._waited_for_probe = 0, probes
        # What is on its way would be there twice, or stored twice; a probe that hangs is not waited for.
        keeper = self._keeper
        on_its_way = (
            keeper.copies_on_their_way or keeper.storing or (keeper.probing and self._probe_waits < _MAX_PROBE_WAITS)
        )
        if on_its_way or probes < self._probes_before + _MIN_PROBES:
            self._probe_waits += 1
            self._requeue_at = self._now() + _PROBE_WAIT_SECONDS
            return
        self.discarding = True
        self._resume(session)
        await self._cancel(session)
        self.started = False
        await self._keeper.give_back()
        self.discarding = False
        self._memory_freed.set()
        # Elasticsearch may well answer a look and go on to refuse what is sent. Each such round costs a message one of
        # the deliveries that a quorum queue allows it, so they come seldom.
        pause = (
            min(_RESUME_MAX_SECONDS, _RESUME_MIN_SECONDS * 2.0 ** min(self._resume_attempts - 1, 10))
            if self._resume_attempts
            else 0.0
        )
        self._resume_attempts += 1
        self._wait(pause)
        self._log.warning("amqp.given_back", held_seconds=self._hold_max_seconds, reason=self._keeper.held)

    def _has_messages(self, session: BrokerSession) -> bool:
        """Whether there is something to give back, or may be at any moment."""
        return self.consuming or any(ledger.outstanding for ledger in session.ledgers)

    async def _cancel(self, session: BrokerSession) -> None:
        if self.consuming:
            self.consuming = False
            await session.cancel()

    # Memory ----------------------------------------------------------------------------------------------------------

    def _resume_if_room(self, session: BrokerSession) -> None:
        if self._window.has_headroom(*self._held(session)):
            self._resume(session)

    def _resume(self, session: BrokerSession) -> None:
        if self._paused_at is not None:
            self._paused_at = None
            session.resume()

    @staticmethod
    def _held(session: BrokerSession) -> tuple[int, int]:
        return sum(ledger.memory_bytes for ledger in session.ledgers), sum(ledger.open for ledger in session.ledgers)

    # Wear ------------------------------------------------------------------------------------------------------------

    def _warn_near_delivery_limit(self, chunk: list[Message]) -> None:
        """Warn of messages that came so often that a quorum queue may drop them at the next delivery."""
        now = self._now()
        if now < self._limit_silent_until:
            return
        worst = max(delivery_count(message) for message in chunk)
        if worst >= _NEAR_LIMIT_DELIVERIES:
            self._limit_silent_until = now + _NEAR_LIMIT_LOG_SECONDS
            self._log.warning(
                "amqp.worn",
                queue=chunk[0].ledger.queue,
                deliveries=worst,
                fix="RabbitMQ drops a message at the queue's x-delivery-limit (20 where none is set): raise it",
            )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
