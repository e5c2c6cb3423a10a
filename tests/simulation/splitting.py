"""Days on which messages hold several documents, by a split or by code, judged document by document.

The faults, servers and sidecars are those of the other days. The judge knows what was published, what Elasticsearch
applied and answered, and what the broker holds. It never asks the product what a document is, or whose it is.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import RETRY_COUNT, Template
from sidecar.core.wire.properties import decode, header, short
from sidecar.library.transforming import hook
from sidecar.sinks.elasticsearch import ElasticsearchSink
from tests.builders import long_string
from tests.builders import properties as raw_properties
from tests.simulation.oracle import CONFLICT, DOC_CLOSES, DOC_OPENS, Fate, Judge
from tests.simulation.rest import remains
from tests.simulation.scenario import Day, draw
from tests.simulation.world import World

if TYPE_CHECKING:
    from typing import Any

    from sidecar import Message
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.ports import OutboundMessage
    from tests.fakes.broker import SimulatedSession, Stored
    from tests.fakes.elasticsearch import Failure, Item, Sent
    from tests.simulation.scenario import Setting
    from tests.simulation.world import Life

_MISSING = "index_not_found_exception"
_BLOCKED = frozenset({
    "cluster_block_exception", "index_closed_exception", "security_exception", "unavailable_shards_exception",
})  # fmt: skip
_FAILED = 500
_PART_BYTES = 512
"""What a document takes of the memory limit beside its bytes, by the documentation."""
_MOST_BYTES = 100_000
_UNTOLD = ("piece", "fate", "suspected_at")


@dataclass(frozen=True, slots=True)
class Splitting:
    """How messages hold documents.

    Attributes:
        mode: ``array``, ``lines``, ``transform``, or ``later``, which is a transform that is asynchronous.
        id_mode: ``auto``, ``none``, ``generated``, or ``template``: each document has an id of its own.
    """

    mode: str = "array"
    id_mode: str = "auto"

    @property
    def has_code(self) -> bool:
        """Whether code makes the documents."""
        return self.mode in ("transform", "later")


class Piece(NamedTuple):
    """A document of a message.

    Attributes:
        number: unlike that of any other document of the day.
        kind: ``good``; ``mapping`` (Elasticsearch refuses it); ``scalar`` (it is no object); ``bare`` (it lacks what a
            template needs).
        document: its own id, where documents have some.
    """

    number: int
    kind: str = "good"
    index: str = "documents"
    document: str = ""

    @property
    def text(self) -> str:
        """Its spelling, unlike that of any other."""
        if self.kind == "scalar":
            return f"{self.number}"
        if self.kind == "bare":
            return f'{{"n":{self.number}}}'
        value = f'"no {self.number}"' if self.kind == "mapping" else f"{self.number}"
        return f'{{"n":{value},"i":"{self.index}","d":"{self.document}"}}'


class Bundle(NamedTuple):
    """A message that will be published.

    Attributes:
        at: virtual seconds.
        number: unlike that of any other message.
        document: its ``message_id``; empty: it has none.
        pieces: its documents.
        whole: what is wrong with the message itself: ``empty``, ``broken``, ``many`` (documents), ``raises``.
        zipped: its body is compressed.
    """

    at: float
    number: int
    mode: str
    document: str = ""
    pieces: tuple[Piece, ...] = ()
    whole: str = ""
    zipped: bool = False
    index: str = ""
    action: str = "index"

    @property
    def kind(self) -> str:
        """What the trace says of it."""
        return self.whole or ", ".join(f"{piece.number} {piece.kind}" for piece in self.pieces)

    @property
    def content(self) -> bytes:
        """The body before it is compressed."""
        texts = [piece.text for piece in self.pieces]
        if self.whole == "empty":
            return b"\n" * self.number if self.mode == "lines" else b"[%s]" % (b" " * self.number)
        if self.whole == "broken":
            return b'[{"n":%d},' % self.number
        if self.whole == "raises":
            return b'["raise",%d]' % self.number
        return ("\n\n".join(texts) + "\n" if self.mode == "lines" else f"[ {' ,'.join(texts)}]").encode()

    @property
    def body(self) -> bytes:
        """The body, unlike that of any other."""
        return gzip.compress(self.content, mtime=0) if self.zipped else self.content

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to be stored of it, and nothing wrong with that."""
        return self.whole == "empty" and self.mode in ("transform", "later")

    @property
    def guilty(self) -> bool:
        """Whether it deserves the dead-letter queue for what it is."""
        return (bool(self.whole) and not self.nothing) or any(piece.kind != "good" for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class SplitDay(Day):
    """A day of messages with several documents."""

    splitting: Splitting = Splitting()


def draw_split(seed: int) -> SplitDay:
    """Return the day of a seed: faults and settings are those of the other days, messages are not."""
    plain = draw(seed)
    rng = random.Random(f"splitting {seed}")
    pick = rng.choice
    mode = pick(("array", "array", "lines", "transform", "later"))
    action = pick(("index", "index", "index", "create", "upsert"))
    id_mode = (
        pick(("auto", "auto", "template", "none", "generated")) if action != "upsert" else pick(("auto", "template"))
    )
    setting = replace(
        plain.setting,
        action=action,
        id_mode="auto",
        versions=action == "index" and id_mode in ("auto", "template") and rng.random() < 0.3,
        sidecars=1,
        coalesce="none",
        consumer_timeout_seconds=0.0,  # a message of many documents may wait for long, one by one
        indices=pick((1, 1, 3)),
        retry_max_attempts=pick((3, 5, 50)),
        on_conflict=pick(("ack", "dead-letter")),
        on_index_missing=pick(("dead-letter", "delay", "delay", "hold")),
        on_index_blocked=pick(("delay", "delay", "delay", "dead-letter")),
    )
    faults = tuple(_of_one_sidecar(fault) for fault in plain.faults)
    splitting = Splitting(mode, id_mode)
    messages: Any = tuple(_bundles(rng, setting, splitting))  # they stand in for those of the other days
    return SplitDay(seed, setting, messages, faults, splitting)


def _of_one_sidecar(fault: Any) -> Any:
    return fault._replace(target="0") if fault.target.isdecimal() and len(fault.target) == 1 else fault


def _bundles(rng: random.Random, setting: Setting, splitting: Splitting) -> list[Bundle]:
    count = rng.choice((3, 12, 30))
    hot = rng.choice((0, 3, 10))
    all_have_ids = setting.versions or setting.action == "upsert" or rng.random() < 0.7
    bad_share = rng.choice((0.0, 0.0, 0.1))
    kinds = ["mapping", "mapping"]
    kinds += ["bare"] if setting.indices > 1 or splitting.id_mode == "template" else []
    kinds += ["scalar"] if not splitting.has_code else []
    wholes = ["empty"] + (
        ["raises", "broken"] if splitting.has_code else ["broken"] if splitting.mode == "array" else []
    )
    wholes += ["many"] if setting.memory_limit_bytes < _MOST_BYTES and not splitting.has_code else []
    number, at = 0, 0.0
    bundles: list[Bundle] = []
    for place in range(1, count + 1):
        whole = rng.choice(wholes) if rng.random() < 0.06 else ""
        pieces = []
        length = (
            rng.choice((1, 1, 2, 3, 3, 7, 20)) if whole != "many" else setting.memory_limit_bytes // _PART_BYTES + 1
        )
        for _ in range(length if whole in ("", "many") else 0):
            number += 1
            kind = rng.choice(kinds) if rng.random() < bad_share and not whole else "good"
            name = f"hot-{rng.randrange(hot)}" if hot and rng.random() < 0.5 else f"id-{number}"
            document = name if splitting.id_mode == "template" else ""
            index_of = int(name.partition("-")[2]) if document else number
            index = "documents" if setting.indices == 1 else f"index-{index_of % 3}"
            pieces.append(Piece(number, kind, index, document))
        document_id = f"m{place}" if all_have_ids or rng.random() < 0.5 else ""
        zipped = rng.random() < 0.2
        bundles.append(Bundle(round(at, 3), place, splitting.mode, document_id, tuple(pieces), whole, zipped))
        at = min(40.0, at + rng.choice((0.0, 0.0, 0.1, 0.7, 4.0)))
    return bundles


def documents(message: Message) -> object:
    """Return the documents of a message, as somebody's own code makes them."""
    made: Any = message.json()
    if made[:1] == ["raise"]:
        raise LookupError(made[1])
    return None if not made else made[0] if len(made) == 1 else made


async def documents_later(message: Message) -> object:
    """Return the same after a while, which differs from message to message."""
    await asyncio.sleep(len(message.body) % 7 / 20)
    return documents(message)


class State:
    """What is known of a document.

    Attributes:
        applied: how often its operation was applied.
        unknown: how often nobody could know whether it was.
        counted: results that count against it.
        errors: the types of all errors that the sidecar was told of.
        last: the last error of them, if that was the last that it was told.
        conflict: it was told of a conflict.
        true_conflict: it was told of one that can't be with itself.
        ids: with which it was sent.
        listed: it stands in a dead letter's list.
        suspect_since: when a request with it was refused first, by the sidecar that sent it.
        blamed: it was refused alone, and another request has succeeded since it was suspected.
    """

    def __init__(self, piece: Piece, fate: Fate) -> None:
        self.piece = piece
        self.fate = fate
        self.applied = self.unknown = self.counted = 0
        self.errors: dict[str, None] = {}
        self.last = ""
        self.conflict = self.true_conflict = self.listed = self.blamed = False
        self.suspect_since: dict[Life, float] = {}
        self.ids: dict[str | None, None] = {}

    def __repr__(self) -> str:
        """Show what is known."""
        known = {name: value for name, value in vars(self).items() if name not in _UNTOLD and value}
        return f"{self.piece.number} {self.piece.kind} {known}"


class SplitJudge(Judge):
    """Judges documents and their messages."""

    day: SplitDay

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.splitting = self.day.splitting
        self.states: dict[int, State] = {}
        self._of: dict[int, list[State]] = {}
        self._results: dict[int, tuple[Item, int | Failure]] = {}
        self._excused: Counter[int] = Counter()
        self._copies_flow = self._room_is_left = False
        self._checked_at = 0.0
        self.seen: Counter[str] = Counter()

    # What is published and delivered ---------------------------------------------------------------------------------

    def published(self, publication: Any) -> None:
        """Note a message and its documents."""
        super().published(publication)
        fate = self.fates[publication.number]
        self._of[publication.number] = []
        for piece in publication.pieces:
            state = self.states[piece.number] = State(piece, fate)
            self._of[publication.number].append(state)

    def _bundle(self, fate: Fate) -> Bundle:
        bundle: Any = fate.publication
        return bundle

    def item_number(self, item: Item) -> int | None:
        """Return the number of the message that an item was made of; None: of none that was published."""
        state = self._state(item)
        return None if state is None else state.fate.publication.number

    def _state(self, item: Item) -> State | None:
        try:
            number = json.loads(self._text(item))["n"]
            return self.states.get(int(str(number).removeprefix("no ")))
        except (ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def _text(item: Item) -> bytes:
        source = item.source
        if item.action == "update" and source.startswith(DOC_OPENS) and source.endswith(DOC_CLOSES):
            return source[len(DOC_OPENS) : -len(DOC_CLOSES)]
        return source

    def delivered(self, life: Life, session: SimulatedSession, chunk: list[Stored]) -> None:
        """Note deliveries."""
        life.received += len(chunk)
        wire = sum(len(stored.body) + len(stored.delivered_properties()) for stored in chunk)
        largest = max(map(self._max_bytes, chunk))  # one message may exceed the room, and a chunk the limit
        life.largest_chunk_bytes = max(life.largest_chunk_bytes, wire + largest)
        for stored in chunk:
            self.fates[self._by_body[stored.body]].deliveries += 1
        if session.prefetch > self.setting.prefetch:
            self.fault("prefetch", f"{session.prefetch} asked for, {self.setting.prefetch} configured")

    # What is decided of documents ------------------------------------------------------------------------------------

    def _own(self, state: State) -> bool:
        return bool(state.unknown or self._own_doing(state.fate))

    def _stored(self, state: State) -> bool:
        """Whether a document is stored, or need not be."""
        settled = self.setting.on_conflict == "ack" or not state.true_conflict
        return bool(state.applied or (state.conflict and settled))

    def _at_fault(self, state: State) -> bool:
        """Whether a document may have its message dead-lettered."""
        setting, errors = self.setting, state.errors
        undelayed = self._delays_refused
        blocked = any(name in errors for name in _BLOCKED)
        return (
            state.piece.kind != "good"
            or state.blamed
            or (state.true_conflict and setting.on_conflict == "dead-letter")
            or (_MISSING in errors and (setting.on_index_missing == "dead-letter" or undelayed))
            or (blocked and (setting.on_index_blocked == "dead-letter" or undelayed))
            or state.counted >= setting.retry_max_attempts
        )

    def _waits(self, state: State) -> bool:
        """Whether a document can't be stored now, so that its message may be delayed."""
        setting = self.setting
        return (
            (state.last == _MISSING and setting.on_index_missing == "delay")
            or (state.last in _BLOCKED and setting.on_index_blocked == "delay")
            or state.counted >= setting.retry_max_attempts
        )

    # What becomes of messages ----------------------------------------------------------------------------------------

    def acked(self, stored: Stored) -> None:
        """Note an ack: all documents are stored, or as many copies are as acks need them."""
        number = self._by_body[stored.body]
        fate, states = self.fates[number], self._of[number]
        bundle = self._bundle(fate)
        fate.acks += 1
        self.acks += 1
        undone = [state for state in states if not self._stored(state)]
        discarded = self.setting.on_reject == "discard" and bundle.guilty
        discarded |= self.setting.on_reject == "discard" and all(map(self._at_fault, undone)) and bool(undone)
        if bundle.nothing or discarded or not (undone or bundle.whole):
            return
        self._excused[number] += 1
        if self._excused[number] > fate.dead + fate.delays:
            self._about(number, "acked unstored", f"{undone}")

    def copied(self, stored: Stored) -> None:
        """Note a dead letter: its list names those at fault, and all others are stored."""
        number = self._by_body[stored.body]
        fate, states = self.fates[number], self._of[number]
        bundle = self._bundle(fate)
        fate.dead += 1
        self.dead += 1
        if self.setting.on_reject != "dead-letter":
            self._about(number, "unwanted copy")
        if fate.dead > 1 and not fate.unknown and not any(state.unknown for state in states):
            self._about(number, "dead twice")
        told = _told(stored.properties)
        if bundle.whole:
            expected = {"many": ["too-large"]}.get(bundle.whole, ["malformed"])
            expected = ["transform-failed"] if self.splitting.has_code else expected
            if bundle.nothing or told["sidecar-reason"] not in expected or told["sidecar-items"]:
                self._about(number, "innocent dead" if bundle.nothing else "wrong letter", f"{told}")
            self.seen[f"dead: {bundle.whole}"] += 1
            return
        places = [int(place) for place in str(told["sidecar-items"]).split(",") if place.isdecimal()]
        listed = [states[place] for place in places]
        if not listed or places != sorted(set(places)):
            self._about(number, "wrong letter", f"{told} lists {places} of {len(states)}")
            return
        for place, state in enumerate(states):
            if place in places:
                state.listed = True
                if not self._at_fault(state):
                    self._about(number, "innocent dead", f"{state}")
            elif not self._stored(state):
                self._about(number, "undecided dead", f"{state} is not in {places}")
        self._check_first(number, listed, places, told)
        self.seen["dead: some of several" if len(places) < len(states) else "dead: all"] += 1
        self.seen["dead: true conflict"] += any(state.true_conflict and state.piece.kind == "good" for state in listed)

    def _check_first(self, number: int, listed: list[State], places: list[int], told: dict[str, Any]) -> None:
        """See that a dead letter speaks of the first document at fault."""
        first, total = listed[0], len(self._of[number])
        reasons = {"mapping": ["rejected"], "scalar": ["malformed", "missing-field"], "bare": ["missing-field"]}.get(
            first.piece.kind
        )
        if (
            reasons is not None
            and not first.counted
            and told["sidecar-reason"] not in reasons
            and not (first.errors.keys() & {_MISSING, *_BLOCKED})
        ):
            self._about(number, "wrong letter", f"{told['sidecar-reason']}, not {reasons}")
        if first.piece.kind in ("good", "mapping") and told["sidecar-index"] != first.piece.index:
            self._about(number, "wrong letter", f"index {told['sidecar-index']}, not {first.piece.index}")
        if first.piece.kind in ("good", "mapping") and told["sidecar-id"] not in (_or_none(one) for one in first.ids):
            self._about(number, "wrong letter", f"id {told['sidecar-id']}, not one of {list(first.ids)}")
        begins = f"{len(places)} of {total} documents can't be stored: {places[0]}: "
        if not str(told["sidecar-error-reason"]).startswith(begins):
            self._about(number, "wrong letter", f"{told['sidecar-error-reason']!r} doesn't begin with {begins!r}")

    def delayed(self, copy: OutboundMessage) -> None:
        """Note a copy in a delay queue: a document waits, no other is undecided, and none will be there twice."""
        number = self._by_body[copy.body]
        fate, states = self.fates[number], self._of[number]
        bundle = self._bundle(fate)
        waiting = [state for state in states if self._waits(state)]
        if not waiting:
            self._about(number, "delayed for nothing", f"{states}")
        for state in states:
            if state not in waiting and not (self._stored(state) or self._at_fault(state)):
                self._about(number, "undecided delayed", f"{state}")
        if len(states) > 1 and any(self._id_of(state) is None for state in states):
            self._about(number, "delayed without ids", f"{states}")
        if (short(copy.properties, "message_id") or b"").decode() != bundle.document:
            self._about(number, "wrong copy", f"{copy.properties!r}")
        counted = decode(header(copy.properties, RETRY_COUNT) or b"I\0\0\0\0")
        if counted and not any(state.counted >= self.setting.retry_max_attempts for state in states):
            self._about(number, "wrong copy", f"{counted} rounds counted, though it only waited")
        fate.delays += 1
        fate.uncertain = True
        self.delays += 1
        self.seen["delayed: one of several" if len(states) > 1 else "delayed: alone"] += 1

    def returned(self, stored: Stored, why: str) -> None:
        """Note a delivery that went back to the queue."""
        number = self._by_body[stored.body]
        fate = self.fates[number]
        fate.returns += 1
        if why == "lost":
            fate.unknown += 1
            self.losses += 1
        else:
            self.nacks += 1

    # Requests --------------------------------------------------------------------------------------------------------

    def sent(self, life: Life, sent: Sent) -> None:
        """Note a request: each of its items is a document that was published and delivered, as it is spelled."""
        for item in sent.items:
            state = self._state(item)
            if state is None:
                self.fault("foreign item", f"nobody published {item}")
                return
            wrong = self._wrong_piece(item, state)
            if wrong:
                self._about(state.fate.publication.number, "wrong item", f"{state}: {wrong}")
            state.ids[item.document_id] = None
        self._look_at_request(life, sent)

    def _id_of(self, state: State) -> str | None:
        """Return the id that the message gives to a document; None: it gives none."""
        bundle, piece = self._bundle(state.fate), state.piece
        if self.splitting.id_mode == "template":
            return piece.document
        if self.splitting.id_mode != "auto" or not bundle.document:
            return None
        if self.splitting.has_code and len(bundle.pieces) == 1:
            return bundle.document
        return f"{bundle.document}-{bundle.pieces.index(piece)}"

    def _wrong_piece(self, item: Item, state: State) -> str:
        setting, piece = self.setting, state.piece
        if not state.fate.deliveries:
            return "it was not delivered"
        if self._bundle(state.fate).whole or piece.kind in ("scalar", "bare"):
            return "no request can be made of it"
        if item.action != {"upsert": "update"}.get(setting.action, setting.action):
            return item.action
        if item.index != piece.index:
            return f"to {item.index}"
        if self._text(item) != piece.text.encode():
            return f"{item.source!r}"
        document_id = self._id_of(state)
        if self.splitting.id_mode == "generated":
            again = state.fate.deliveries > 1 or state.fate.delays > 0 or not state.ids or item.document_id in state.ids
            return "" if item.document_id and again else f"id {item.document_id!r} after {list(state.ids)}"
        if item.document_id != document_id:
            return f"id {item.document_id!r}, not {document_id!r}"
        if setting.versions and item.parameters.get("version") != state.fate.publication.number + 1:
            return f"version {item.parameters.get('version')}"
        return ""

    def result(self, item: Item, result: int | Failure) -> None:
        """Note what Elasticsearch did with an item; the sidecar doesn't know that yet."""
        state = self._state(item)
        if state is None:
            return
        self._results[id(item)] = item, result
        if not isinstance(result, int):
            return
        state.applied += 1
        known = state.unknown or state.fate.deliveries > 1 or (state.fate.delays and self._id_of(state) is not None)
        known = known or (state.fate.delays and len(self._of[state.fate.publication.number]) == 1)
        if state.applied > 1 and not known:
            self._about(state.fate.publication.number, "stored twice", f"{state}")
        if state.piece.kind != "good":
            self._about(state.fate.publication.number, "guilty stored", f"{state}")
        if item.document_id is not None:
            self.histories.setdefault((item.index, item.document_id), []).append(state.piece.number)

    def ended(self, life: Life, sent: Sent) -> None:
        """Note what a sidecar is told of the items of a request."""
        answered = sent.outcome == "200" and _count(sent.body) == len(sent.items)
        life.well = sent.outcome == "200" and sent.request is not None and sent.request.outcome == "stored"
        crowd = json.loads(sent.body)["items"] if answered else []
        if answered:
            self._succeeded_sent_at[life] = max(sent.at, self._succeeded_sent_at.get(life, 0.0))
        for at, item in enumerate(sent.items):
            state = self._state(item)
            if state is None:
                continue
            if not answered:
                state.unknown += 1
                state.counted += 1
                if sent.outcome == "400" and b"unrecognized parameter" not in sent.body:
                    since = state.suspect_since.setdefault(life, asyncio.get_running_loop().time())
                    state.blamed |= len(sent.items) == 1 and self._succeeded_sent_at.get(life, -1.0) >= since
                continue
            ((_, told),) = crowd[at].items()
            self._hear(state, item, int(told["status"]), str(told.get("error", {}).get("type", "")))
            late = sent.request is not None and sent.request.outcome == "late"
            state.fate.uncertain |= late
        if not answered:
            for item in sent.items:
                state = self._state(item)
                if state is not None:
                    state.fate.uncertain |= sent.outcome == "cut off" or (
                        sent.request is not None and sent.request.outcome == "late"
                    )

    def _hear(self, state: State, item: Item, status: int, error: str) -> None:
        state.last = error
        if not error:
            return
        state.errors[error] = None
        several = len(self._of[state.fate.publication.number]) > 1
        # A delayed message leaves the order of its documents: they come behind the others if its queue refuses it.
        state.fate.uncertain |= self._delays_refused and several and error in (_MISSING, *_BLOCKED)
        if status == CONFLICT:
            state.conflict = True
            own = self._own(state)
            state.true_conflict = not own
            self.seen["conflict with itself" if own and state.applied else "conflict"] += 1
        state.counted += status >= _FAILED or (status == CONFLICT and item.action == "update")

    # Memory and what remains -----------------------------------------------------------------------------------------

    def _look_at_life(self, life: Life) -> None:
        super()._look_at_life(life)
        now = asyncio.get_running_loop().time()
        thorough = now >= self._checked_at
        for session in life.sessions[-1:]:
            for channel in session.channels:
                ledger = channel.ledger
                if session.over or ledger.closed:
                    continue
                if ledger.memory_bytes < 0 or (ledger.memory_bytes and not ledger.open):
                    self.fault("memory account", f"{ledger.memory_bytes} bytes held for {ledger.open} open deliveries")
                if thorough:
                    self._checked_at = now + 0.25
                    tags = ledger.open_tags()
                    most = sum(self._max_bytes(channel.unacked[tag]) for tag in tags)
                    if ledger.memory_bytes > most:
                        self.fault(
                            "memory account", f"{ledger.memory_bytes} bytes held, {most} at most for {len(tags)}"
                        )
                    if ledger.memory_bytes > self.setting.memory_limit_bytes + 2 * life.largest_chunk_bytes:
                        limit = self.setting.memory_limit_bytes
                        self.fault("memory", f"{ledger.memory_bytes} bytes held, the limit is {limit}")

    def _max_bytes(self, stored: Stored) -> int:
        """Return what a message may take of the memory limit: header, body, and each document as made and as sent."""
        pieces = self._bundle(self.fates[self._by_body[stored.body]]).pieces
        made = sum(_PART_BYTES + 2 * len(piece.text) + len(DOC_OPENS + DOC_CLOSES) for piece in pieces)
        return len(stored.delivered_properties()) + len(stored.body) + made

    def rested(self, life: Life) -> None:
        """Note that everything is settled: nothing of it may be left in a sidecar."""
        left = remains(life.pipeline)
        if left and not life.client.in_flight:
            self.fault("remains", f"{life.name} still has {', '.join(left)}")

    # At the end ------------------------------------------------------------------------------------------------------

    def _judge_places(self) -> None:
        rejected = Counter(message.body for message in self._broker.rejected)
        dropped = {message.body for queue in self._broker.queues.values() for message in queue.dropped}
        self.rejects = rejected.total()
        for number, fate in self.fates.items():
            bundle, states = self._bundle(fate), self._of[number]
            left = fate.dead or rejected[bundle.body] or (self.setting.on_reject == "discard" and fate.acks)
            if bundle.body in dropped:
                self._about(number, "worn", "the broker dropped it: it came back too often")
            if fate.vanished:
                continue
            if rejected[bundle.body] and not (bundle.guilty or any(map(self._at_fault, states))):
                self._about(number, "innocent dead", "rejected to the broker")
            if bundle.guilty and not left:
                self._about(number, "guilty acked", f"{states}")
            for state in states if not bundle.whole else ():
                if not self._stored(state) and not (left and self._at_fault(state)):
                    self._about(number, "lost", f"{state}")
                if left and self.setting.on_reject == "dead-letter" and not state.listed and not self._stored(state):
                    self._about(number, "lost", f"{state} is in no list")

    def _judge_order(self) -> None:
        documents: dict[tuple[str, str], list[State]] = {}
        for state in self.states.values():
            document_id = self._id_of(state)
            if document_id is not None and not self._bundle(state.fate).whole:
                documents.setdefault((state.piece.index, document_id), []).append(state)
        for key, states in documents.items():
            history = self.histories.get(key, [])
            fates = [state.fate for state in states]
            certain = not any(fate.unknown or fate.returns or fate.uncertain for fate in fates)
            certain = certain and not any(state.unknown for state in states)
            if certain and any(after <= before for before, after in itertools.pairwise(history)):
                self.fault("order", f"{key[1]} was written as {history}", fates[0].publication.number)
            raw = self._elastic.documents.get(key)
            state_now = json.loads(raw)["n"] if raw is not None else None
            if certain and history and self.setting.action != "create" and state_now != history[-1]:
                self.fault("state", f"{key[1]} is {state_now}, written were {history}")
        if self.splitting.id_mode in ("auto", "template"):
            named = [key for key in self._elastic.documents if not key[1].startswith("made-")]
            foreign = [key for key in named if key not in documents]
            if foreign:
                self.fault("foreign document", f"{foreign}")

    def _judge_accounts(self) -> None:
        super()._judge_accounts()
        if self.losses or any(life.crashed for life in self._lives) or self._lost_sessions():
            return
        if self.setting.on_reject != "discard":
            settled = sum(life.pipeline.counters.total("discard") for life in self._lives)
            nothing = sum(self._bundle(fate).nothing and fate.acks for fate in self.fates.values())
            if settled != nothing:
                self.fault("account", f"{settled} discarded, of {nothing} without a document")

    def _judge_storms(self) -> None:
        """What an outage may cost in requests is judged on other days."""


def _told(properties: bytes) -> dict[str, Any]:
    names = ("sidecar-reason", "sidecar-items", "sidecar-index", "sidecar-id", "sidecar-error-reason")
    return {name: decode(header(properties, name.encode()) or b"S\0\0\0\0") for name in names}


def _or_none(document_id: str | None) -> str:
    return document_id or ""


def _count(body: bytes) -> int:
    try:
        return len(json.loads(body)["items"])
    except (ValueError, KeyError, TypeError):
        return -1


class SplitWorld(World):
    """The servers and the sidecars of a day of documents."""

    day: SplitDay
    judge: SplitJudge

    def make_judge(self) -> SplitJudge:
        """Return what judges the day."""
        return SplitJudge(self.day, self.broker, self.elastic, self.lives)

    def make_plan(self) -> PipelineConfig:
        """Return what all sidecars of the day do."""
        setting, splitting = self.day.setting, self.day.splitting
        plan = super().make_plan()
        hooked = hook(documents_later if splitting.mode == "later" else documents)
        encoder_config = EncoderConfig(
            index=Template("documents" if setting.indices == 1 else "{body.i}"),
            action=Template(setting.action),
            id_mode=splitting.id_mode,  # type: ignore[arg-type] # one of them
            id=Template("{body.d}") if splitting.id_mode == "template" else None,
            version=Template("{header.v}") if setting.versions else None,
            split=splitting.mode if not splitting.has_code else "none",  # type: ignore[arg-type] # one of them
            transform=hooked.transform if splitting.has_code else None,
            prepare=hooked.prepare if splitting.mode == "later" else None,
            max_bytes=min(_MOST_BYTES, setting.memory_limit_bytes),
        )
        return replace(plan, encoder_config=encoder_config)

    def sink(self, life: Life) -> ElasticsearchSink:
        """Return the sidecar's own trade."""
        return ElasticsearchSink(self.plan, life.client)

    def properties(self, publication: Any) -> bytes:
        """Return the raw properties of a message."""
        named = {"message_id": publication.document.encode()} if publication.document else {}
        zipped = {"content_encoding": b"gzip"} if publication.zipped else {}
        return raw_properties([(b"v", long_string(b"%d" % (publication.number + 1)))], **named, **zipped)

    def beacon(self, number: int) -> Any:
        """Return a good message of one document."""
        index = "documents" if self.day.setting.indices == 1 else "index-0"
        document = f"beacon-{number}" if self.day.splitting.id_mode == "template" else ""
        piece = Piece(number, "good", index, document)
        return Bundle(0.0, number, self.day.splitting.mode, f"m{number}", (piece,))

    def rested(self) -> None:
        """Look at what the sidecars keep when everything is settled."""
        for life in self._present.values():
            self.judge.rested(life)
