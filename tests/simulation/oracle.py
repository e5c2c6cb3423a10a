"""What must hold, by the contract: the judge knows the plan, what the broker saw and what Elasticsearch did.

It asks the product for three things only, its account, its ledgers and whether it is held, in order to hold them
against what it knows.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from tests import invariants
from tests.simulation.scenario import BEACONS, DELAY_FAULTS, SIDECAR_FAULTS

if TYPE_CHECKING:
    from sidecar.pipeline.pipeline import Pipeline
    from sidecar.ports import OutboundMessage
    from tests.fakes.broker import Broker, Queue, SimulatedSession, Stored
    from tests.fakes.elasticsearch import Elasticsearch, Failure, Item, Sent
    from tests.simulation.scenario import Day, Publication
    from tests.simulation.world import Life

DOC_OPENS, DOC_CLOSES = b'{"doc":', b',"doc_as_upsert":true}'
CONFLICT = 409
MESSAGE_BYTES = 1024  # what a message is reckoned at, besides its own bytes
_BLOCKED = ("cluster_block_exception", "index_closed_exception", "security_exception")
_YOUNG_SECONDS = 0.5  # a request that was not waited for longer was cut off without need
_OVER_THE_LIMIT_SECONDS = 2.0
_LOOK_SECONDS = 0.25
_WITHHELD_SECONDS = 2.75  # 2 s by the contract, and how seldom the judge looks
_COPIED_SECONDS = 5.0
_DEAD_LETTERS_WAIT = ("full", "silent", "unroutable", "alarm", "broker away", "session lost", *SIDECAR_FAULTS)
_UNTOLD = ("publication", "errors", "suspect_since", "delivered_at")
_SOURCE_FAULTS = ("proxy 503", "proxy 502", "login", "forbidden", "parameter", "REFUSED", "LOST_BEFORE", "LOST_AFTER")


class Counting(Protocol):
    """One sidecar, and what it was sent."""

    name: str
    pipeline: Pipeline
    sessions: list[SimulatedSession]
    received: int


class Discrepancy(AssertionError):  # noqa: N818 - it is what a person would call it
    """Something doesn't hold.

    Attributes:
        rule: its name, the same for all discrepancies of a kind.
        number: of the message that it is about; None: it is about no single one.
    """

    def __init__(self, rule: str, detail: str, number: int | None = None) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.number = number


class Fate:
    """What is known of a message.

    Attributes:
        deliveries: how often it came to a sidecar.
        delivered_at: the moment of the first time; 0: it didn't come yet.
        returns: how often it went back.
        acks: how often its ack was written.
        applied: how often its operation was applied, or found to be unnecessary.
        conflicts: how often a conflict was answered.
        dead: copies in the dead-letter queue.
        delays: copies in delay queues.
        unknown: how often something happened after which nobody can know whether it is stored: a request without an
            answer or refused as a whole, a delivery that was lost with its channel.
        counted: results that count against it.
        refused: how often it was in a request that was answered with a 413 or 429.
        waits: results for which it waits in place, and which don't count.
        errors: the types of all errors that its items met.
        suspect_since: when a request with it was refused first, in seconds, by the sidecar that sent it.
        blamed: it was refused alone, and another request has succeeded since it was suspected.
        uncertain: an operation of it may be applied long after, or others may overtake it.
        vanished: its queue was deleted with it, and that was nobody's fault here.
    """

    __slots__ = (
        "acks",
        "applied",
        "blamed",
        "conflicts",
        "counted",
        "dead",
        "delays",
        "delivered_at",
        "deliveries",
        "errors",
        "publication",
        "refused",
        "returns",
        "suspect_since",
        "uncertain",
        "unknown",
        "vanished",
        "waits",
    )

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.deliveries = self.returns = self.acks = self.applied = self.conflicts = self.dead = self.delays = 0
        self.unknown = self.counted = self.refused = self.waits = self.delivered_at = 0
        self.errors: dict[str, None] = {}
        self.suspect_since: dict[Life, float] = {}
        self.uncertain = self.blamed = self.vanished = False

    def __repr__(self) -> str:
        """Show what is known."""
        known = {name: getattr(self, name) for name in self.__slots__ if name not in _UNTOLD}
        told = ", ".join(f"{name} {value}" for name, value in known.items() if value)
        return (
            f"{self.publication.body[:40]!r} ({told or 'nothing'}{', ' if self.errors else ''}{', '.join(self.errors)})"
        )


class Judge:
    """Watches a day and judges it.

    Args:
        day: the plan.
        broker: the simulated one.
        elastic: the simulated one.
        lives: of all sidecars there ever were.

    Attributes:
        fates: of every message, by number.
        first: the first discrepancy that was found, or None.
    """

    def __init__(self, day: Day, broker: Broker, elastic: Elasticsearch, lives: list[Life]) -> None:
        self.day = day
        self.setting = day.setting
        self.fates: dict[int, Fate] = {}
        self.first: Discrepancy | None = None
        self.histories: dict[tuple[str, str], list[int]] = {}
        self.nacks = self.rejects = self.acks = self.dead = self.delays = self.losses = 0
        self._broker = broker
        self._elastic = elastic
        self._lives = lives
        self._by_body: dict[bytes, int] = {}
        self._by_source: dict[bytes, int] = {}
        self._open: dict[int, list[tuple[Life, Sent]]] = {}  # the requests in which a message is
        self._moments = itertools.count(1)  # to tell what came first
        self._answered_at: dict[tuple[str, str], dict[int, int]] = {}  # the last moment, by document and message
        self._row_of: dict[int, tuple[Life, int]] = {}  # what no request can be made of: how many fit ones came before
        self._succeeded_sent_at: dict[Life, float] = {}  # when the last request left that was answered item by item
        self._check_at = 0.0
        self._withheld_since: dict[tuple[SimulatedSession, int, int], float] = {}  # by channel and tag
        self._delays_refused = any(fault.kind in DELAY_FAULTS for fault in day.faults)
        # When a sidecar heard that a document is refused: nothing on this day keeps its copy from the dead letters.
        self._refused: dict[int, None] = {}  # the last result of these said so
        self._refused_at: dict[int, float] = {}
        # When a sidecar heard that a target is blocked: messages for it leave room for others.
        self._blocked: dict[int, None] = {}  # the last result of these said so
        self._blocked_at: dict[int, float] = {}
        self._copies_flow = self.setting.on_reject == "dead-letter" and self.setting.coalesce == "none"
        self._copies_flow &= self.setting.reject_guard >= 1000
        self._copies_flow &= not any(fault.kind in _DEAD_LETTERS_WAIT for fault in day.faults)
        self._room_is_left = self._copies_flow and self.setting.on_index_blocked == "delay"

    def fault(self, rule: str, detail: str, number: int | None = None) -> None:
        """Note a discrepancy; it is raised between two turns, for callbacks can't."""
        if self.first is None:
            self.first = Discrepancy(rule, detail, number)

    def _about(self, number: int, rule: str, detail: str = "") -> None:
        self.fault(rule, f"#{number} {self.fates[number]!r}{': ' if detail else ''}{detail}", number)

    # What happens ----------------------------------------------------------------------------------------------------

    def published(self, publication: Publication) -> None:
        """Note a message that was published."""
        number, body = publication.number, publication.body
        self.fates[number] = Fate(publication)
        self._by_body[body] = number
        self._by_source[body] = number
        self._by_source[body.replace(b"\n", b" ")] = number

    def number(self, body: bytes) -> int:
        """Return the number of a message by its body."""
        return self._by_body[body]

    def item_number(self, item: Item) -> int | None:
        """Return the number of the message that an item was made of; None: of none that was published."""
        routing = item.parameters.get("routing")
        if routing is not None:
            return int(str(routing)[1:])
        version = item.parameters.get("version")
        if isinstance(version, int):
            return version - 1
        source = item.source
        if item.action == "update" and source.startswith(DOC_OPENS) and source.endswith(DOC_CLOSES):
            source = source[len(DOC_OPENS) : -len(DOC_CLOSES)]
            if self.setting.coalesce == "merge" and source not in self._by_source:
                return int(str(json.loads(source)["n"]).removeprefix("no "))  # the last of them says who it is
        return self._by_source.get(source)

    def delivered(self, life: Life, session: SimulatedSession, chunk: list[Stored]) -> None:
        """Note deliveries; and see whether there was room for them."""
        life.received += len(chunk)
        if life.stop.is_set():
            life.late.update(dict.fromkeys(chunk))
        for stored in chunk:
            fate = self.fates[self._by_body[stored.body]]
            fate.deliveries += 1
            if fate.publication.unfit:
                self._row_of[fate.publication.number] = life, life.fit
            else:
                life.fit += 1
            fate.delivered_at = fate.delivered_at or next(self._moments)
            # It left the order when it was rejected, and its copy was never confirmed: now it comes late.
            fate.uncertain |= fate.deliveries > 1 and not fate.publication.guilty and self._deserves(fate)
        if session.prefetch > self.setting.prefetch:
            self.fault("prefetch", f"{session.prefetch} asked for, {self.setting.prefetch} configured")
        size = sum(map(_memory_bytes, chunk))
        life.largest_chunk_bytes = max(life.largest_chunk_bytes, size)
        if self.setting.memory_limit_bytes < 1_000_000 and self._over_the_limit(life):
            asyncio.get_running_loop().call_later(_OVER_THE_LIMIT_SECONDS, self._look_at_memory, life, 1)

    def _held(self, life: Life) -> int:
        """What the sidecar holds and may not forget: delivered before SIGTERM, and neither settled nor stored.

        What comes later isn't kept where there is no room: it goes back with the rest when that is answered.
        """
        return sum(
            _memory_bytes(stored)
            for session in life.sessions[-1:]
            for channel in session.channels
            for stored in channel.unacked.values()
            if stored not in life.late and not self._decided(self.fates[self._by_body[stored.body]])
        )

    def _decided(self, fate: Fate) -> bool:
        """Whether nothing more is to be done for a message: its ack may still wait, but it needs no room."""
        discarded = self.setting.on_reject == "discard" and self._deserves(fate)
        gone = fate.applied or fate.conflicts or fate.dead or fate.delays or discarded
        return bool(gone or self._covered(fate))

    def _covered(self, fate: Fate) -> bool:
        """Whether a later operation on the same document was answered, with which this one may have been folded.

        Without versions the later one is that which came later, which numbers tell only of what comes once.
        """
        one = fate.publication
        if self.setting.coalesce == "none" or not one.document:
            return False
        return any(
            at > fate.delivered_at and (number > one.number or self._moved(fate) or self._moved(self.fates[number]))
            for number, at in self._answered_at.get((one.index, one.document), {}).items()
        )

    def _moved(self, fate: Fate) -> bool:
        """Whether a message may come later than one with a higher number, and yet supersede it."""
        return not self.setting.versions and (fate.deliveries > 1 or fate.delays > 0)

    def _over_the_limit(self, life: Life) -> bool:
        return self._held(life) > self.setting.memory_limit_bytes + life.largest_chunk_bytes

    def _look_at_memory(self, life: Life, looks: int) -> None:
        if life.over or not self._over_the_limit(life):
            return
        held, limit = self._held(life), self.setting.memory_limit_bytes
        self.fault(
            "memory", f"{life.name} holds {held} bytes, the limit is {limit}, a chunk {life.largest_chunk_bytes}"
        )

    def acked(self, stored: Stored) -> None:
        """Note an ack: nothing is acked that is nowhere else."""
        number = self._by_body[stored.body]
        fate = self.fates[number]
        fate.acks += 1
        self.acks += 1
        conflict = fate.conflicts and (self.setting.on_conflict == "ack" or self._own_doing(fate))
        discarded = self.setting.on_reject == "discard" and self._deserves(fate)
        if not (fate.applied or conflict or fate.dead or fate.delays or discarded or self._covered(fate)):
            self._about(number, "acked unstored")
        if self.setting.on_reject == "discard":
            self._left(number)

    def _left(self, number: int) -> None:
        """Note that a message left as a reject: of those in a row, no more do than the guard allows.

        A fit one ends the row; those that came behind it let it go on for once each.
        """
        if number not in self._row_of:
            return
        life, row = self._row_of[number]
        life.unfit_left[row] += 1
        if life.unfit_left[row] > self.setting.reject_guard * (1 + life.fit - row):
            self._about(number, "guard", f"{life.unfit_left[row]} rejects in a row left {life.name}")

    @staticmethod
    def _own_doing(fate: Fate) -> bool:
        return bool(fate.unknown or fate.deliveries > 1 or fate.delays)

    def _deserves(self, fate: Fate) -> bool:
        """Whether a message may leave for the dead letters; what spoils whole requests only once that is clear."""
        setting = self.setting
        return (
            (fate.publication.guilty and fate.publication.kind != "poison")
            or fate.blamed
            or (setting.on_index_missing == "dead-letter" and "index_not_found_exception" in fate.errors)
            or (setting.on_index_blocked == "dead-letter" and any(name in fate.errors for name in _BLOCKED))
            or (self._delays_refused and any(name in fate.errors for name in _BLOCKED))
            or (
                self._delays_refused
                and setting.on_index_missing == "delay"
                and "index_not_found_exception" in fate.errors
            )
            or fate.counted >= setting.retry_max_attempts
            or bool(fate.conflicts and setting.on_conflict == "dead-letter" and not fate.applied)
        )

    def copied(self, stored: Stored) -> None:
        """Note a dead letter."""
        number = self._by_body[stored.body]
        fate = self.fates[number]
        fate.dead += 1
        self.dead += 1
        self._left(number)
        if not self._deserves(fate):
            self._about(number, "innocent dead")
        if self.setting.on_reject != "dead-letter":
            self._about(number, "unwanted copy")
        if fate.dead > 1 and not fate.unknown:
            self._about(number, "dead twice")

    def delayed(self, copy: OutboundMessage) -> None:
        """Note a copy in a delay queue."""
        number = self._by_body[copy.body]
        fate = self.fates[number]
        fate.delays += 1
        fate.uncertain = True
        self._blocked_at.pop(number, None)
        self.delays += 1
        if fate.publication.guilty and not fate.errors:
            self._about(number, "guilty delayed")

    def returned(self, stored: Stored, why: str) -> None:
        """Note a delivery that went back to the queue."""
        number = self._by_body[stored.body]
        fate = self.fates[number]
        fate.returns += 1
        self._refused_at.pop(number, None)
        self._blocked_at.pop(number, None)
        if why == "lost":
            fate.unknown += 1
            self.losses += 1
        else:
            self.nacks += 1
            fate.unknown += self._given_back_in_work(number)

    def _given_back_in_work(self, number: int) -> bool:
        """Whether a message went back whose answer may still come, long after it was asked for."""
        now = asyncio.get_running_loop().time()
        return any(now - sent.at >= _YOUNG_SECONDS for _, sent in self._open.get(number, ()))

    def queue_vanished(self, queue: Queue, *, expired: bool) -> None:
        """Note that the queue is deleted with its messages: it never expires while a sidecar is there."""
        present = [life.name for life in self._lives if life.sessions and not life.over]
        if expired and present:
            self.fault("expired", f"the queue had no consumer for {queue.expires_seconds:g} s, beside {present}")
        for stored in [*queue.ready, *self._broker.unsettled(queue.name)]:
            fate = self.fates[self._by_body[stored.body]]
            fate.vanished = fate.uncertain = True

    def queue_created(self, life: Life) -> None:
        """Note that a sidecar created the queue: not if it knew it before, for that would hide a loss."""
        if life.sessions:
            self.fault("recreated", f"{life.name} created the queue that it had consumed from")

    # Requests --------------------------------------------------------------------------------------------------------

    def sent(self, life: Life, sent: Sent) -> None:
        """Note a request: each of its items is what a message asks for, and was delivered."""
        for item in sent.items:
            number = self.item_number(item)
            fate = self.fates.get(number) if number is not None else None
            if fate is None or number is None:
                self.fault("foreign item", f"nobody published {item}")
                return
            self._open.setdefault(number, []).append((life, sent))
            wrong = self._wrong(item, fate.publication)
            if wrong:
                self._about(number, "wrong item", wrong)
            if not fate.deliveries:
                self._about(number, "sent undelivered")
        self._look_at_request(life, sent)

    def _look_at_request(self, life: Life, sent: Sent) -> None:
        """See that a request is no larger than configured, and that neither too many nor rivals are under way."""
        if len(sent.items) > self.setting.batch_max_items:
            self.fault("batch", f"{len(sent.items)} items in a request, {self.setting.batch_max_items} configured")
        if life.client.in_flight > self.setting.bulk_concurrency:
            self.fault("concurrency", f"{life.client.in_flight} requests of {life.name} in flight")
        if life.client.crowded:
            self.fault("crowded", f"two operations of {life.name} in flight on {life.client.crowded}")

    def _wrong(self, item: Item, publication: Publication) -> str:
        setting = self.setting
        action = {"upsert": "update", "mixed": publication.action}.get(setting.action, setting.action)
        if item.action != action:
            return f"{item.action}, not {action}"
        if item.index != publication.index:
            return f"to {item.index}, not {publication.index}"
        expected = publication.document if setting.id_mode == "auto" else ""
        if setting.id_mode != "generated" and (item.document_id or "") != expected:
            return f"id {item.document_id!r}, not {expected!r}"
        if setting.versions and item.parameters.get("version") != publication.number + 1:
            return f"version {item.parameters.get('version')}"
        return ""

    def ended(self, life: Life, sent: Sent) -> None:
        """Note how a request ended for its client."""
        seconds = asyncio.get_running_loop().time() - sent.at
        unknown = sent.outcome != "200" or not _complete(sent)
        cut_off = sent.outcome == "cut off"
        life.well = sent.outcome == "200" and sent.request is not None and sent.request.outcome == "stored"
        if not unknown:
            self._succeeded_sent_at[life] = max(sent.at, self._succeeded_sent_at.get(life, 0.0))
        elif sent.outcome == "400" and b"unrecognized parameter" not in sent.body:  # that is the configuration's fault
            self._suspect(life, sent)
        if cut_off and not life.crashed and seconds < _YOUNG_SECONDS:
            unknown = False  # it wasn't waited for: that excuses nothing
        for item in sent.items:
            number = self.item_number(item)
            if number is None or number not in self.fates:
                continue
            fate = self.fates[number]
            if (life, sent) in self._open.get(number, ()):
                self._open[number].remove((life, sent))
            fate.unknown += unknown
            fate.refused += sent.outcome in ("413", "429")
            # Whatever is refused as a whole, or not answered, may count once it is known not to be an outage.
            fate.counted += unknown
            if self._copies_flow and not unknown and number in self._refused:
                self._refused_at.setdefault(number, asyncio.get_running_loop().time())
            if not unknown and number in self._blocked:
                self._blocked_at.setdefault(number, asyncio.get_running_loop().time())
            fate.uncertain |= cut_off or (sent.request is not None and sent.request.outcome == "late")

    def _suspect(self, life: Life, sent: Sent) -> None:
        """Note what a request that was refused as a whole says of its items.

        One is to blame when it is refused alone and another request has succeeded since: that left after the first
        refusal. (A fault of every request that begins just then is taken for the item's; nobody could tell.)
        """
        for item in sent.items:
            number = self.item_number(item)
            fate = self.fates.get(number) if number is not None else None
            if fate is None:
                continue
            since = fate.suspect_since.setdefault(life, asyncio.get_running_loop().time())
            fate.blamed |= len(sent.items) == 1 and self._succeeded_sent_at.get(life, -1.0) >= since

    def result(self, item: Item, result: int | Failure) -> None:
        """Note what Elasticsearch did with an item."""
        number = self.item_number(item)
        if number is None or number not in self.fates:
            return
        fate = self.fates[number]
        if item.document_id is not None and (isinstance(result, int) or result.status == CONFLICT):
            self._answered_at.setdefault((item.index, item.document_id), {})[number] = next(self._moments)
        self._refused.pop(number, None)
        if isinstance(result, int) or result.error_type not in _BLOCKED:
            self._blocked.pop(number, None)
            self._blocked_at.pop(number, None)
        else:
            self._blocked[number] = None
        if not isinstance(result, int):
            if result.error_type == "document_parsing_exception":
                self._refused[number] = None
            fate.errors[result.error_type] = None
            fate.conflicts += result.status == CONFLICT
            fate.waits += result.error_type in (*_BLOCKED, "index_not_found_exception")
            fate.counted += result.status >= 500 or (result.status == CONFLICT and item.action == "update")
            return
        fate.applied += 1
        if fate.applied > 1 and not fate.unknown:
            self._about(number, "stored twice", "and nothing made its outcome unknown")
        if item.document_id is not None:
            self.histories.setdefault((item.index, item.document_id), []).append(number)

    # Between two turns -----------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Check what must hold at every moment.

        Raises:
            Discrepancy: it doesn't.
        """
        for life in self._lives:
            if not life.over:
                self._look_at_life(life)
        now = asyncio.get_running_loop().time()
        if now >= self._check_at:
            self._check_at = now + _LOOK_SECONDS
            self._look_at_acks(now)
            self._look_at_copies(now)
            self._look_at_room(now)
        if self.first is not None:
            raise self.first

    def _look_at_life(self, life: Life) -> None:
        """See that a sidecar counts what its broker sees."""
        held = life.pipeline.limiter.held
        if life.well and held is not None:
            self.fault("held", f"{life.name} is held, though all of a request was stored: {held}")
        life.well = False
        wrong = miscounted(life)
        if wrong is not None:
            self.fault(*wrong)

    def _look_at_copies(self, now: float) -> None:
        """See that no copy waits for what another destination refuses."""
        for number, since in self._refused_at.items():
            fate = self.fates[number]
            if now - since > _COPIED_SECONDS and not (fate.dead or fate.vanished):
                self._about(number, "held up", f"refused {now - since:.1f} s ago, and not among the dead letters")

    def _look_at_room(self, now: float) -> None:
        """See that messages that wait in place for a blocked target leave room for others, unless all of them wait."""
        for life in self._lives if self._room_is_left else ():
            if life.over or life.stop.is_set() or life.pipeline.held is not None:
                continue
            for session in life.sessions[-1:]:
                unacked = [stored for channel in session.channels for stored in channel.unacked.values()]
                since = [self._blocked_at.get(self._by_body[stored.body], now) for stored in unacked]
                waiting = sum(now - at > _COPIED_SECONDS for at in since)
                if waiting > self.setting.prefetch // 2:
                    self.fault("no room", f"{waiting} messages of {life.name} wait for blocked targets")

    def _look_at_acks(self, now: float) -> None:
        """See that no ack of what is decided is withheld for long, whatever is before it."""
        since: dict[tuple[SimulatedSession, int, int], float] = {}
        for life in self._lives:
            for session in life.sessions[-1:] if not life.over else ():
                for channel in session.channels:
                    ledger = channel.ledger
                    if session.over or ledger.closed or not ledger.ackable:
                        continue
                    for tag in set(channel.unacked).difference(ledger.open_tags()):
                        key = session, ledger.channel, tag
                        since[key] = self._withheld_since.get(key, now)
                        if now - since[key] > _WITHHELD_SECONDS:
                            number = self._by_body[channel.unacked[tag].body]
                            self._about(number, "ack withheld", f"for {now - since[key]:.1f} s")
        self._withheld_since = since

    # At the end ------------------------------------------------------------------------------------------------------

    def conclude(self) -> None:
        """Judge a day that came to its end.

        Raises:
            Discrepancy: something doesn't hold.
        """
        self._judge_places()
        self._judge_order()
        self._judge_accounts()
        self._judge_storms()
        if self.first is not None:
            raise self.first

    def _judge_places(self) -> None:
        dropped = Counter(message.body for queue in self._broker.queues.values() for message in queue.dropped)
        rejected = Counter(message.body for message in self._broker.rejected)
        self.rejects = rejected.total()
        for number, fate in self.fates.items():
            body = fate.publication.body
            if rejected[body] and not self._deserves(fate):
                self._about(number, "innocent dead", "rejected to the broker")
            if dropped[body]:
                self._about(number, "worn", "the broker dropped it: it came back too often")
            discarded = self.setting.on_reject == "discard" and fate.acks and self._deserves(fate)
            stored = fate.applied or ((fate.conflicts or self._covered(fate)) and fate.acks)
            if not (stored or fate.dead or rejected[body] or discarded or fate.vanished):
                self._about(number, "lost")

    def _judge_order(self) -> None:
        setting = self.setting
        documents: dict[tuple[str, str], list[Fate]] = {}
        for fate in self.fates.values():
            one = fate.publication
            if one.document and setting.id_mode == "auto":
                documents.setdefault((one.index, one.document), []).append(fate)
        if setting.id_mode == "auto":
            named = [key for key in self._elastic.documents if not key[1].startswith("made-")]
            foreign = [key for key in named if key not in documents]
            if foreign:
                self.fault("foreign document", f"{foreign}")
        for key, fates in documents.items():
            history = self.histories.get(key, [])
            certain = not any(fate.unknown or fate.returns or fate.uncertain for fate in fates)
            if certain and setting.sidecars == 1 and any(after <= before for before, after in _pairs(history)):
                self.fault("order", f"{key[1]} was written as {history}", history[0])
            self._judge_state(key, fates, history)

    def _judge_state(self, key: tuple[str, str], fates: list[Fate], history: list[int]) -> None:
        setting = self.setting
        raw = self._elastic.documents.get(key)
        state = json.loads(raw)["n"] if raw is not None else None
        if setting.action == "create":
            if history and state not in history:
                self.fault("state", f"{key[1]} is {state}, written were {history}", history[0])
            return
        if setting.versions:
            numbers = [fate.publication.number for fate in fates if fate.applied or (fate.conflicts and fate.acks)]
        elif setting.sidecars == 1 and not any(fate.uncertain or self._undone(fate) for fate in fates):
            numbers = history
        else:
            return
        if not numbers:
            return
        last = self.fates[max(numbers)].publication
        deleted = setting.action == "mixed" and last.action == "delete"
        expected = None if deleted else last.number
        if state != expected:
            self.fault("state", f"{key[1]} is {state}, not {expected}; it was written as {history}", last.number)

    def _undone(self, fate: Fate) -> bool:
        """Whether it was applied, came again, and was refused: what came before it is applied once more, and last."""
        return fate.deliveries > 1 and fate.applied > 0 and self._deserves(fate)

    def _judge_accounts(self) -> None:
        """Where no session was lost, what all sidecars count is exactly what the broker saw."""
        if self.losses or any(life.crashed for life in self._lives) or self._lost_sessions():
            return
        settled: Counter[str] = Counter()
        for life in self._lives:
            for (_, verdict), count in life.pipeline.counters.settled.items():
                settled[verdict] += count
        seen = {
            "requeue": self.nacks,
            "delay": self.delays,
            "dead_letter": self.dead + self.rejects,
            "stale": 0,
        }
        for verdict, count in seen.items():
            if settled[verdict] != count:
                self.fault("account", f"{verdict}: {settled[verdict]} counted, {count} seen; {dict(settled)}")
        if settled["ack"] + settled["discard"] + settled["delay"] + self.dead != self.acks:
            self.fault("account", f"{self.acks} acks seen, counted {dict(settled)}")

    def _lost_sessions(self) -> bool:
        return any(session.lost.done() for life in self._lives for session in life.sessions)

    def _judge_storms(self) -> None:
        """In an outage there are few requests, and few where everything is refused for lack of room."""
        setting = self.setting
        for fault in self.day.faults:
            if fault.share < 1.0 or fault.kind not in (*_SOURCE_FAULTS, "rejecting"):
                continue
            end = fault.at + fault.seconds
            count = sum(fault.at <= request.at < end for request in self._elastic.requests)
            lives = sum(life.began_at < end and (not life.over or life.ended_at > fault.at) for life in self._lives)
            # Those on their way, those that left before the first no came back, halves, then one probe after another.
            each = 3 * setting.bulk_concurrency + 1.3 * fault.seconds + 10
            if count > lives * each + BEACONS:
                self.fault("storm", f"{count} requests in {fault.seconds:.0f} s of {fault.kind}, from {lives} sidecars")


def miscounted(life: Counting) -> tuple[str, str] | None:
    """Return rule and detail if a sidecar doesn't count what its broker sees, or None."""
    account = life.pipeline.counters
    received = account.received.total()
    in_flight = received - account.settled.total()
    opened = 0
    for session in life.sessions[-2:]:
        for channel in session.channels:
            ledger = channel.ledger
            opened += ledger.open
            if ledger.memory_bytes < 0 or (ledger.memory_bytes and not ledger.open):
                return "memory", f"{life.name}: {invariants.memory(ledger)}"
            if not session.over and not ledger.closed and ledger.outstanding != len(channel.unacked):
                return "ledger", f"{ledger}, the broker waits for {len(channel.unacked)}"
    if received != life.received:
        return "account", f"{life.name} was sent {life.received} messages, and counts {received}"
    if why := invariants.pause(life.pipeline):
        return "pause", f"{life.name}: {why}"
    if in_flight != opened or in_flight < 0:
        return "account", f"{life.name} counts {in_flight} in flight, {opened} are open: {account.summary()}"
    return None


def _memory_bytes(stored: Stored) -> int:
    return len(stored.body) + len(stored.properties) + MESSAGE_BYTES


def _complete(sent: Sent) -> bool:
    """Whether an answer says something of each item."""
    try:
        return len(json.loads(sent.body)["items"]) == len(sent.items)
    except (ValueError, KeyError, TypeError):
        return False


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(numbers))
