"""Bugs that are planted into the product, to see whether the simulation finds them: one for each rule that could break.

Each replaces a function of the product for a while. None is far-fetched: most are what a simpler design would do.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import sidecar.pipeline.republisher
import sidecar.pipeline.response_handler
from sidecar.amqp.topology import Seen
from sidecar.core.encoding.encoder import BulkEncoder
from sidecar.core.flow import limiter
from sidecar.core.flow.limiter import Permit, SendLimiter
from sidecar.core.flow.prefetch_window import PrefetchWindow
from sidecar.core.flow.reject_guard import RejectGuard
from sidecar.core.ledger import ACKABLE, SETTLED, UNSETTLED, Ledger, Settlement
from sidecar.core.results import bulk, policy
from sidecar.core.results.bulk import Result
from sidecar.core.scheduling.batcher import Batch, Batcher
from sidecar.core.scheduling.coalesce import Coalescer, Operation
from sidecar.core.scheduling.order import DocumentOrder
from sidecar.core.scheduling.send_queue import SendQueue
from sidecar.core.scheduling.waiting_room import WaitingRoom
from sidecar.core.stats.counters import Counters
from sidecar.core.wire.republish import Failure
from sidecar.pipeline.flow_control import FlowControl
from sidecar.pipeline.pipeline import Pipeline
from sidecar.pipeline.republisher import Republisher
from sidecar.pipeline.response_handler import ResponseHandler
from sidecar.pipeline.settler import Settler
from sidecar.ports import Undeclared
from tests.fakes.broker import SimulatedSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.core.message import Message


class Planted(NamedTuple):
    """A bug.

    Attributes:
        area: ``ack``, ``epoch``, ``order``, ``retry``, ``halving``, ``confirm``, ``drain``, ``account``, …
        breaks: what it does, in words.
        replacements: what is replaced: an object, the name of its attribute, and what takes its place.
    """

    name: str
    area: str
    breaks: str
    replacements: tuple[tuple[Any, str, Any], ...]

    @contextmanager
    def plant(self) -> Iterator[None]:
        """Have the product behave so."""
        with ExitStack() as stack:
            for place, name, new in self.replacements:
                stack.enter_context(mock.patch.object(place, name, new))
            yield


PLANTED: dict[str, Planted] = {}


def planting(into: dict[str, Planted]) -> Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Return a decorator that notes a function as a bug: it takes the place of those named.

    The function's docstring says what it breaks.
    """

    def planted(area: str, *places: tuple[Any, str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def note(function: Callable[..., Any]) -> Callable[..., Any]:
            name = function.__name__.lstrip("_").replace("_", "-")
            breaks = " ".join((function.__doc__ or "").split())
            replaced = tuple((place, attribute, function) for place, attribute in places)
            into[name] = Planted(name, area, breaks, replaced)
            return function

        return note

    return planted


_planted = planting(PLANTED)


# Ack -----------------------------------------------------------------------------------------------------------------

_judge = policy.classify_item
_ACKED = policy.Rule(frozenset(), frozenset(), frozenset(), policy.ResultClass.ACK)
_DEAD = policy.Rule(frozenset(), frozenset(), frozenset(), policy.ResultClass.DEAD_LETTER, "rejected")


@_planted("ack", (sidecar.pipeline.response_handler, "classify_item"))
def _throttled_is_stored(result: Result, action: str) -> policy.Rule:
    """An item that was refused for lack of room (429) is acked."""
    return _ACKED if result.status == 429 else _judge(result, action)


@_planted("ack", (sidecar.pipeline.response_handler, "classify_item"))
def _throttled_is_rejected(result: Result, action: str) -> policy.Rule:
    """An item that was refused for lack of room (429) is a dead letter."""
    return _DEAD if result.status == 429 else _judge(result, action)


@_planted("ack", (Ledger, "take_acks"))
def _multiple_over_a_hole(self: Ledger, *, individually: bool = False) -> list[Settlement]:
    """An ack-multiple covers messages that nothing was decided about."""
    states = self._states
    last = states.rfind(ACKABLE)
    if last < 0:
        return []
    self._open -= states.count(UNSETTLED, 0, last + 1)
    self._stored -= states.count(ACKABLE, 0, last + 1)
    del states[: last + 1]
    self._base += last + 1
    return [Settlement(self._base - 1, multiple=True)]


_collect = Ledger.take_acks


@_planted("ack", (Ledger, "take_acks"))
def _singly_leaves_them_stored(self: Ledger, *, individually: bool = False) -> list[Settlement]:
    """What was acked singly is acked once more by the next multiple."""
    settlements = _collect(self)
    if individually and self._stored:
        at = self._states.find(ACKABLE)
        while at >= 0:
            settlements.append(Settlement(self._base + at, multiple=False))
            at = self._states.find(ACKABLE, at + 1)
    return settlements


@_planted("ack", (bulk, "all_stored"))
def _any_200_is_well(answer: bytes, count: int) -> bool:
    """An answer 200 is taken for success, whatever its items say."""
    return answer.count(b'"status":') >= 1


@_planted("ack", (ResponseHandler, "on_no_response"))
def _unanswered_is_stored(self: ResponseHandler, batch: Batch, reason: str, **_: Any) -> None:
    """A request without an answer is taken for stored."""
    self._on_sink_answered()
    self._ack([message for message in batch.messages if not message.ledger.closed])


@_planted("ack", (bulk, "results"))
def _results_by_count_only(answer: bytes, count: int) -> list[Result] | None:
    """An answer that lacks an item is filled up with a success."""
    found = _results(answer, answer.count(b'"status":'))
    return None if found is None else (found + [Result(200)] * count)[:count]


_results = bulk.results


@_planted("ack", (bulk, "results"))
def _results_shifted(answer: bytes, count: int) -> list[Result] | None:
    """Results belong to their neighbours: a skipped item shifts all that follow."""
    found = _results(answer, count)
    return None if found is None else found[1:] + found[:1]


# Epoch ---------------------------------------------------------------------------------------------------------------


@_planted("epoch", (Ledger, "close"))
def _epoch_never_ends(self: Ledger) -> int:
    """A ledger stays open when its channel is gone."""
    return self._open


@_planted("epoch", (Settler, "ack_as"))
def _tag_of_another_epoch(self: Settler, messages: list[Any], verdict: Any) -> None:
    """A tag is acked on the present channel, whichever channel delivered it."""
    session = self._session
    if session is None:
        return
    (ledger,) = session.ledgers
    for message in messages:
        message.ledger = ledger
    mine = [message for message in messages if ledger.is_open(message)]
    if mine:
        self._counters.settle(ledger.queue, verdict, ledger.mark_stored(mine))
        self._flush_acks(session, ledger)
        self._flow_control.on_settled(len(mine))


@_planted("epoch", (Pipeline, "_forget_closed"))
def _lost_messages_block(self: Pipeline) -> None:
    """What a lost session brought is neither dropped nor cut from the order."""
    self._settler.republisher.drop_stale()
    self._batcher.drop_closed()
    self._send_queue.drop_closed()


_detach = Pipeline.detach


@_planted("epoch", (Pipeline, "_forget_closed"))
def _ghosts_leave_the_order(self: Pipeline) -> None:
    """What is in flight when the session is lost leaves the order: a redelivery doesn't wait for it."""
    self._settler.republisher.drop_stale()
    self.release(self._batcher.drop_closed() + self._send_queue.drop_closed())
    self._order._tail.clear()


# Order ---------------------------------------------------------------------------------------------------------------


@_planted("order", (DocumentOrder, "admit"))
def _no_order(self: DocumentOrder, messages: Any) -> list[Any]:
    """Operations on one document may be in flight together."""
    return list(messages)


@_planted("order", (DocumentOrder, "release"))
def _followers_forgotten(self: DocumentOrder, messages: Any) -> list[Any]:
    """What waits behind an operation on the same document is never let go."""
    for message in messages:
        if message.document_key is not None and self._tail.get(message.document_key) is message:
            del self._tail[message.document_key]
    return []


_enter = DocumentOrder.admit


@_planted("order", (DocumentOrder, "admit"))
def _last_comes_first(self: DocumentOrder, messages: Any) -> list[Any]:
    """Operations on one document that came together are turned round."""
    return _enter(self, list(messages)[::-1])


_retry = ResponseHandler._retry


@_planted("order", (ResponseHandler, "_retry"))
def _retries_free_their_followers(self: ResponseHandler, batch: Batch, *, first: bool = False) -> None:
    """What goes again no longer holds up what follows it on the same document."""
    _retry(self, batch, first=first)
    self._settler.forget(batch.messages)


# Retry ---------------------------------------------------------------------------------------------------------------


@_planted("retry", (ResponseHandler, "_dispose"))
def _all_go_again(self: ResponseHandler, batch: Batch, results: list[Result]) -> Any:
    """When some items were refused for lack of room, the whole request goes again, with what was stored."""
    fates = _sort(self, batch, results)
    return fates._replace(throttled=list(batch.messages)) if fates.throttled else fates


_sort = ResponseHandler._dispose
_again = Batch.subset


@_planted("retry", (Batch, "subset"))
def _the_last_is_forgotten(self: Batch, messages: list[Any]) -> Batch:
    """Of more than three messages that go again, the last is forgotten."""
    return _again(self, messages[:-1] if len(messages) > 3 else messages)


@_planted("retry", (sidecar.pipeline.response_handler, "backoff_seconds"), (limiter, "backoff_seconds"))
def _no_backoff(tries: int, roll: float, least: float, most: float) -> float:
    """What was refused for lack of room goes again at once."""
    return 0.0


@_planted("retry", (limiter, "PROBE_INTERVAL_MIN_SECONDS"), (limiter, "PROBE_INTERVAL_MAX_SECONDS"))
def _no_pause_between_probes() -> None:
    """In an outage probes follow each other without a pause."""


PLANTED["no-pause-between-probes"] = PLANTED["no-pause-between-probes"]._replace(
    replacements=((limiter, "PROBE_INTERVAL_MIN_SECONDS", 0.01), (limiter, "PROBE_INTERVAL_MAX_SECONDS", 0.01))
)

_permit = SendLimiter.permit


@_planted("retry", (SendLimiter, "permit"))
def _no_hold(self: SendLimiter, now: float, in_flight: int, hung: int = 0) -> Permit:
    """An outage stops nothing: requests go on."""
    return Permit.REQUEST if in_flight < self._max_requests else Permit.NOTHING


@_planted("retry", (ResponseHandler, "on_no_response"))
def _an_outage_counts(self: ResponseHandler, batch: Batch, reason: str, *, probe: bool, **_: Any) -> None:
    """An outage counts against the messages in it: the third failure is a dead letter."""
    for message in batch.messages:
        message.times_unanswered = True
        message.attempts += 1
    self._hold("unanswered", reason, probe=probe)
    worn = [message for message in batch.messages if message.attempts >= 3 and not message.ledger.closed]
    if worn:
        self._settler.dead_letter([Failure(message, "retries-exhausted", reason) for message in worn])
    _retry(self, batch.subset([message for message in batch.messages if message.attempts < 3]))


@_planted("retry", (SendLimiter, "on_answer"))
def _a_hold_never_ends(self: SendLimiter) -> bool:
    """An answered probe doesn't end a hold."""
    self._probing = False
    return False


_decide = sidecar.pipeline.response_handler.decide


@_planted("retry", (sidecar.pipeline.response_handler, "decide"))
def _own_conflicts_are_rejects(rule: Any, choices: Any, *, may_be_own_write: bool, **rest: Any) -> Any:
    """A conflict with an earlier attempt of our own is taken for somebody else's."""
    return _decide(rule, choices, may_be_own_write=False, **rest)


@_planted("retry", (sidecar.pipeline.response_handler, "decide"))
def _blocked_is_dead(rule: Any, choices: Any, **rest: Any) -> Any:
    """A message whose target is blocked for a while is a dead letter."""
    dead = rule.result_class is policy.ResultClass.TARGET_BLOCKED
    return policy.Disposition.DEAD_LETTER if dead else _decide(rule, choices, **rest)


@_planted("retry", (RejectGuard, "note"))
def _rejects_before_a_request_do_not_count(self: RejectGuard, outcomes: Any) -> None:
    """The guard doesn't see messages that no request can be made of."""


# Halving -------------------------------------------------------------------------------------------------------------


@_planted("halving", (Batch, "halves"))
def _half_is_lost(self: Batch) -> tuple[Batch, Batch]:
    """The middle one of an odd number is in neither half."""
    middle = len(self.messages) // 2
    return _again(self, self.messages[:middle]), _again(self, self.messages[len(self.messages) - middle :])


@_planted("halving", (Batch, "halves"))
def _halves_overlap(self: Batch) -> tuple[Batch, Batch]:
    """The middle one of an odd number is in both halves."""
    count = len(self.messages)
    return _again(self, self.messages[: (count + 1) // 2]), _again(self, self.messages[count // 2 :])


@_planted("halving", (ResponseHandler, "_bisect"))
def _a_refused_request_blames_all(self: ResponseHandler, batch: Batch, fault: Any, *, probe: bool) -> None:
    """All items of a request that was refused as a whole are dead letters."""
    self._on_sink_answered()
    live = [message for message in batch.messages if not message.ledger.closed]
    self._settler.dead_letter(
        [Failure(message, "rejected", fault.reason, fault.status, fault.error_type) for message in live]
    )


@_planted("halving", (ResponseHandler, "_bisect"))
def _a_lonely_item_is_blamed(self: ResponseHandler, batch: Batch, fault: Any, *, probe: bool) -> None:
    """An item that fails alone is blamed, though nothing else succeeds either."""
    self._succeeded_sent_at = 1e12
    _bisect(self, batch, fault, probe=probe)


_bisect = ResponseHandler._bisect


@_planted("halving", (ResponseHandler, "_split_size"))
def _too_large_goes_again(self: ResponseHandler, batch: Batch, fault: Any, *, probe: bool) -> None:
    """A request that is too large (413) goes again as it is, for ever."""
    self._retry_after_backoff(batch, "throttled")


# Confirm -------------------------------------------------------------------------------------------------------------

_copying_settle = Republisher._settle


@_planted("confirm", (Republisher, "_settle"))
def _returns_ignored(self: Republisher, letters: list[Failure], refusals: list[str | None]) -> None:
    """A copy that came back unroutable, or was refused, is taken for stored."""
    _copying_settle(self, letters, [None] * len(letters))


@_planted("confirm", (Republisher, "enqueue"))
def _acked_before_the_confirm(self: Republisher, letters: Any) -> None:
    """The original is acked when its copy is on its way, not when it is confirmed."""
    letters = [letter for letter in letters if sidecar.pipeline.republisher._is_open(letter)]
    _copying_add(self, letters)
    self._settler.ack_as([letter.message for letter in letters], "dead_letter")


_copying_add = Republisher.enqueue


@_planted("confirm", (Republisher, "_settle"))
def _copied_is_never_acked(self: Republisher, letters: list[Failure], refusals: list[str | None]) -> None:
    """A confirmed copy doesn't settle its original."""


@_planted("confirm", (Republisher, "_settle"))
def _refused_copies_forgotten(self: Republisher, letters: list[Failure], refusals: list[str | None]) -> None:
    """A copy that was refused isn't published again."""
    taken = [letter for letter, refusal in zip(letters, refusals, strict=True) if refusal is None]
    _copying_settle(self, taken, [None] * len(taken))


# Refusals ------------------------------------------------------------------------------------------------------------


@_planted("refusal", (Settler, "retry_undelayed"))
def _undelayed_are_forgotten(self: Settler, letters: list[Failure]) -> None:
    """What no delay queue takes is retried nowhere."""


@_planted("refusal", (Republisher, "_settle"))
def _one_undeclarable_queue_costs_the_turn(
    self: Republisher, letters: list[Failure], refusals: list[str | None]
) -> None:
    """A delay queue that can't be declared is taken for the end of the session: the copies of that turn are dropped."""
    if not any(isinstance(refusal, Undeclared) for refusal in refusals):
        _copying_settle(self, letters, refusals)


_copying_publish = Republisher._publish


@_planted("refusal", (Republisher, "_publish"))
async def _one_refusal_stops_all_copies(self: Republisher, session: Any) -> None:
    """While one destination is not to be tried, no copy is published anywhere."""
    latest = max((one.ready_at for one in self._destinations.values()), default=0.0)
    for one in self._destinations.values():
        one.ready_at = latest
    await _copying_publish(self, session)


_delay = Settler.delay


@_planted("refusal", (Settler, "delay"))
def _followers_go_before_the_delay(self: Settler, letters: list[Failure]) -> None:
    """What follows a message on its document goes on though the delay queue may yet refuse that."""
    _delay(self, letters)
    self._releaser.release(letter.message for letter in letters)


@_planted("refusal", (WaitingRoom, "admit"))
def _all_may_wait_in_place(self: WaitingRoom, message: Message) -> bool:
    """What waits for its target takes up the whole prefetch."""
    return True


@_planted("refusal", (Settler, "_flush_withheld"))
def _acks_wait_for_ever(self: Settler) -> None:
    """An ack behind a hole is written when the hole is filled, and not before."""
    self._ack_timer = None


# Drain ---------------------------------------------------------------------------------------------------------------

_drain = Pipeline.drain


@_planted("drain", (Pipeline, "drain"))
async def _drain_cuts_off(self: Pipeline, sending_until: float, deadline: float) -> None:
    """On SIGTERM requests on their way are cut off, and their messages given back."""
    self._sending = False
    for task in self._in_flight:
        task.cancel()


@_planted("drain", (Pipeline, "drain"))
async def _drain_waits_for_ever(self: Pipeline, sending_until: float, deadline: float) -> None:
    """On SIGTERM the end waits until everything is stored, however long that takes."""
    await _drain(self, sending_until + 1e5, deadline + 1e5)


@_planted("drain", (Pipeline, "give_back"))
async def _drain_acks_all(self: Pipeline) -> None:
    """What isn't stored when the end comes is acked, not given back."""
    session = self._session
    if session is not None:
        for ledger in session.ledgers:
            tags = ledger.open_tags()
            self.counters.settle(ledger.queue, "ack", len(tags))
            session.settle(
                ledger, ledger.take_acks(individually=True) + [Settlement(tag, multiple=False) for tag in tags]
            )
            ledger.close()
        self._forget_closed()
        await session.give_back([(ledger, []) for ledger in session.ledgers])


@_planted("drain", (Pipeline, "give_back"))
async def _withheld_acks_are_dropped(self: Pipeline) -> None:
    """Acks that wait behind a hole are not written before the rest is given back."""
    session = self._session
    if session is None:
        return
    outstanding = []
    for ledger in session.ledgers:
        session.settle(ledger, ledger.take_acks())
        tags = [ledger._base + at for at, state in enumerate(ledger._states) if state != SETTLED]
        outstanding.append((ledger, tags))
        self.counters.settle(ledger.queue, "requeue", ledger.close())
    self._forget_closed()
    await session.give_back(outstanding)


# Account -------------------------------------------------------------------------------------------------------------


@_planted("account", (Pipeline, "count_requeued"))
def _returned_unseen_uncounted(self: Pipeline, ledger: Ledger, count: int) -> None:
    """What goes back unseen is not counted."""


_settle = Counters.settle


@_planted("account", (Counters, "settle"))
def _stale_uncounted(self: Counters, queue: str, verdict: Any, count: int = 1) -> None:
    """What a lost session takes along is not counted."""
    if verdict != "stale":
        _settle(self, queue, verdict, count)


@_planted("account", (Counters, "settle"))
def _delays_count_as_acks(self: Counters, queue: str, verdict: Any, count: int = 1) -> None:
    """What goes round by the delay queue is counted as acked."""
    _settle(self, queue, "ack" if verdict == "delay" else verdict, count)


# Bounds --------------------------------------------------------------------------------------------------------------


@_planted("memory", (PrefetchWindow, "full"))
def _memory_without_end(self: PrefetchWindow, held_bytes: int, held_items: int) -> bool:
    """Whatever is held, reading goes on."""
    return False


@_planted("memory", (FlowControl, "_resume_if_room"))
def _reading_never_resumes(self: FlowControl, session: Any) -> None:
    """Once reading stopped for lack of memory, nothing but the long pause begins it again."""
    if self._window.has_headroom(*self._held(session)):
        self._paused_at = None


@_planted("batch", (SendQueue, "_merge_small"))
def _joined_without_end(self: SendQueue, batch: Batch, now: float) -> None:
    """What goes again is joined to one request, however large that becomes."""
    for other in list(self._retries):
        if other.ready_at <= now:
            self._retries.remove(other)
            batch.messages = batch.messages + other.messages
            batch.body_bytes += other.body_bytes


@_planted("batch", (Batcher, "next_deadline"))
def _an_age_without_a_clock(self: Batcher) -> float | None:
    """Nobody wakes up for a group that comes of age."""
    return None


@_planted("batch", (FlowControl, "on_settled"))
def _nobody_asks_for_more(self: FlowControl, items: int) -> None:
    """Nothing that was settled makes room."""
    self._settled_items += items


_compose = BulkEncoder.encode


@_planted("item", (BulkEncoder, "encode"))
def _ids_forgotten_on_redelivery(self: BulkEncoder, messages: Any, now: float) -> Any:
    """A message that comes again goes without its order's key."""
    composed, rejects = _compose(self, messages, now)
    for message in composed:
        if message.redelivered:
            message.document_key = None
    return composed, rejects


# Coalescing ----------------------------------------------------------------------------------------------------------

_absorb, _fold, _line_up = Coalescer._coalesce_into, Coalescer.fold, DocumentOrder.insert_after


@_planted("coalescing", (Coalescer, "_coalesce_into"))
def _covered_are_forgotten(self: Coalescer, earlier: Message, later: Message) -> bool:
    """What was folded into another is never settled."""
    if not _absorb(self, earlier, later):
        return False
    assert earlier.coalesced is not None
    earlier.coalesced.messages.remove(later)
    return True


@_planted("coalescing", (Coalescer, "fold"))
def _the_first_wins(self: Coalescer, first: Operation, later: Operation) -> Operation | None:
    """Of two operations the earlier one is sent."""
    return first if _fold(self, first, later) is later else None


@_planted("coalescing", (Coalescer, "_latest"))
def _an_older_version_supersedes(self: Coalescer, first: Operation, later: Operation) -> Operation | None:
    """What comes later is sent, whatever the versions say."""
    return later


@_planted("coalescing", (Settler, "_without_coalesced"))
def _all_go_down_with_one(self: Settler, letters: Any) -> list[Failure]:
    """What was folded shares the dead letter of what was sent."""
    return [
        letter._replace(message=one)
        for letter in letters
        for one in (
            letter.message,
            *(letter.message.coalesced.messages if letter.message.coalesced is not None else ()),
        )
    ]


@_planted("coalescing", (DocumentOrder, "insert_after"))
def _taken_apart_the_wrong_way_round(self: DocumentOrder, message: Message, followers: list[Message]) -> None:
    """What was folded, and goes one by one after all, goes the last one first."""
    _line_up(self, message, followers[::-1])


@_planted("coalescing", (Settler, "ack"))
def _the_stored_settle_only_themselves(self: Settler, messages: list[Message]) -> None:
    """What was folded isn't acked with what was stored."""
    self._releaser.release(messages)
    self.ack_as(messages, "ack")


# Queues that vanish --------------------------------------------------------------------------------------------------


@_planted("queue", (Seen, "knows"))
def _recreates_silently(self: Seen, place: str, name: str) -> bool:
    """A queue that was there and is gone is declared again, empty."""
    return False


@_planted("queue", (SimulatedSession, "keeps"))
def _lets_the_lease_run_out(self: SimulatedSession, name: str) -> bool:
    """While nothing is consumed on purpose, nothing keeps a queue that expires."""
    return not self.over and any(channel.ledger.queue == name and channel.consuming for channel in self.channels)
