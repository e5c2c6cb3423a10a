"""What must hold on a day of forwarding: the judge knows the plan, sees both brokers, and models each message."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.servers.wire import decode_properties, decode_table, encode_properties, table_entries
from tests.simulation.oracle import Discrepancy, miscounted

if TYPE_CHECKING:
    from sidecar.ports import OutboundMessage
    from tests.fakes.amqp_server import Connection, Publish, Queue
    from tests.fakes.broker import Broker, SimulatedSession, Stored
    from tests.simulation.forwarding import ForwardingLife
    from tests.simulation.forwarding_scenario import Forwarded, ForwardingDay

WALL_SECONDS = 1_700_000_000.0
FORGETS_SECONDS = 1.0
"""So young must a queue be for a killed broker to forget what is in it."""
ARRIVES_SECONDS = 0.1
"""After so long a confirm has reached a client whose connection lives."""
_ADDED = ("sidecar-copy", "sidecar-exchange", "sidecar-routing-key", "sidecar-received-at")
_COUNT = "sidecar-original-x-delivery-count"


@dataclass(slots=True, eq=False)
class Arrival:
    """A message that the far broker got.

    Attributes:
        queue: that took it; None: none did.
        sure: its confirm has reached the sidecar.
        forgotten: the broker was killed, and its queue was too young.
    """

    publish: Publish
    queue: Queue | None
    life: ForwardingLife | None
    connection: Connection
    sure: bool = False
    forgotten: bool = False

    @property
    def lost(self) -> bool:
        """Whether its channel has ended since."""
        channel = self.connection.channels.get(self.publish.channel)
        return self.connection.ended is not None or channel is None or not channel.open

    @property
    def stored(self) -> bool:
        """Whether it was confirmed, and is there."""
        return self.queue is not None and self.publish.confirmed is True and not self.forgotten


@dataclass(slots=True)
class Fate:
    """What is known of a message."""

    one: Forwarded
    delivered_at: list[float] = field(default_factory=list)
    returns: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    returned: int = 0
    dead: list[str] = field(default_factory=list)
    delays: int = 0
    acks: int = 0
    excused: bool = False  # it was acked for a queue of which nobody could know how young it was

    def __repr__(self) -> str:
        """Show what is known."""
        seen = [
            f"{one.publish.connection}/{one.publish.tag}"
            f"{'+' if one.stored else '-' if one.publish.confirmed is False else '?'}"
            for one in self.arrivals
        ]
        return f"{self.one}: delivered {self.delivered_at}, arrivals {seen}, dead {self.dead}, delays {self.delays}"


class ForwardingJudge:
    """Watches a day and judges it.

    Attributes:
        fates: of every message, by number.
        first: the first discrepancy that was found, or None.
    """

    def __init__(self, day: ForwardingDay, near: Broker, lives: list[ForwardingLife]) -> None:
        self.day = day
        self.setting = day.setting
        self.fates: dict[int, Fate] = {}
        self.first: Discrepancy | None = None
        self._near = near
        self._lives = lives
        self._by_body: dict[bytes, int] = {}
        self._declared_at: dict[Queue, float] = {}
        self._missed: dict[str, float] = {}  # when a sidecar learned last that a queue isn't there
        self._orders: dict[tuple[str, str], list[int]] = {}

    def fault(self, rule: str, detail: str, number: int | None = None) -> None:
        """Note a discrepancy; it is raised between two turns."""
        if self.first is None:
            self.first = Discrepancy(rule, detail, number)

    def _about(self, fate: Fate, rule: str, detail: str = "") -> None:
        self.fault(rule, f"#{fate.one.number} {detail} {fate!r}", fate.one.number)

    # The near broker -------------------------------------------------------------------------------------------------

    def published(self, one: Forwarded) -> None:
        """Note a message that was published."""
        self.fates[one.number] = Fate(one)
        self._by_body[one.body] = one.number
        self._by_body[one.plain] = one.number

    def number(self, body: bytes) -> int:
        """Return the number of a message by its body, as it came or as it is passed on.

        Raises:
            KeyError: nobody published it.
        """
        if self.setting.envelope and body not in self._by_body:
            body = body.partition(b'"body":')[2].removesuffix(b"}")
        return self._by_body[body]

    def delivered(self, life: ForwardingLife, session: SimulatedSession, chunk: list[Stored]) -> None:
        """Note deliveries."""
        life.received += len(chunk)
        for stored in chunk:
            self.fates[self.number(stored.body)].delivered_at.append(_now())
        if session.prefetch > self.setting.prefetch:
            self.fault("prefetch", f"{session.prefetch} asked for, {self.setting.prefetch} configured")

    def came_back(self, stored: Stored) -> None:
        """Note that a message is in its queue again: the broker counts that in a header."""
        self.fates[self.number(stored.body)].returns += 1

    def acked(self, stored: Stored) -> None:
        """Note an ack: nothing is acked that is nowhere else, or only where it may be forgotten."""
        fate = self.fates[self.number(stored.body)]
        fate.acks += 1
        if fate.dead or fate.delays:
            return
        held = [arrival for arrival in fate.arrivals if arrival.stored]
        if not held:
            gone = [one for one in fate.arrivals if one.forgotten and one.publish.confirmed and one.queue is not None]
            fate.excused = any(not self._is_known_to_be_young(one) for one in gone)
            if not fate.excused:
                self._about(fate, "acked unpublished")
            return
        young = [arrival for arrival in held if self._age(arrival.queue) < FORGETS_SECONDS]
        if len(young) == len(held):
            fate.excused = not any(map(self._is_known_to_be_young, young))
            if not fate.excused:
                self._about(fate, "acked too young", f"at {_now():.3f} s")

    def _age(self, queue: Queue | None) -> float:
        return _now() - self._declared_at[queue] if queue is not None else 0.0

    def _is_known_to_be_young(self, arrival: Arrival) -> bool:
        """Whether the sidecar published nothing before the queue was there, or learned that there was none."""
        queue, life = arrival.queue, arrival.life
        if queue is None or life is None or life.first_published_at is None:
            return True
        declared_at = self._declared_at[queue]
        missed_at = life.missed_at.get(arrival.publish.routing_key, -1.0)
        return life.first_published_at >= declared_at or declared_at >= missed_at > self._gone_at(queue)

    def _gone_at(self, queue: Queue) -> float:
        return self._missed.get(queue.name, -1.0)

    def copied(self, stored: Stored) -> None:
        """Note a dead letter, and see that it deserves to be one."""
        fate = self.fates[self.number(stored.body)]
        headers = decode_properties(stored.properties).headers
        reason = str(headers["sidecar-reason"])
        fate.dead.append(reason)
        if reason not in self._deserved(fate):
            self._about(fate, "innocent dead", f"as {reason}: {headers.get('sidecar-error-reason')}")

    def _deserved(self, fate: Fate) -> set[str]:
        """Return the reasons for which a message may be a dead letter; empty: it must be passed on."""
        one, setting = fate.one, self.setting
        if setting.routes > 1 and not one.route:
            return {"missing-field"}
        if (setting.routes > 1 and len(one.route) > 255) or (setting.envelope and (one.text or one.coded == "broken")):
            return {"malformed"}
        reasons = set()
        if self._properties_bytes(fate)[1] > setting.frame_max - 20:
            reasons.add("too-large")
        if one.poison:
            reasons.add("retries-exhausted")
        if fate.returned and setting.on_unroutable == "dead-letter":
            reasons.add("unroutable")
        return reasons

    def must_die(self, fate: Fate) -> bool:
        """Whether a message can't be passed on at all."""
        deserved = self._deserved(fate)
        return bool(deserved & {"missing-field", "malformed"}) or self._properties_bytes(fate)[0] > (
            self.setting.frame_max - 20
        )

    def delayed(self, copy: OutboundMessage) -> None:
        """Note a copy in a delay queue: only what no queue takes may wait there."""
        fate = self.fates[self.number(copy.body)]
        fate.delays += 1
        if self.setting.on_unroutable != "delay" or not fate.returned:
            self._about(fate, "delayed", "for nothing")

    # The far broker --------------------------------------------------------------------------------------------------

    def declared(self, queue: Queue, at: float) -> None:
        """Note when a queue of the far broker was declared."""
        self._declared_at[queue] = at

    def deleted(self, name: str) -> None:
        """Note that a queue of the far broker is gone."""
        self._missed[name] = _now()

    def arrived(
        self, publish: Publish, queue: Queue | None, life: ForwardingLife | None, connection: Connection
    ) -> Arrival | None:
        """Note what the far broker got; see that it is what was to be passed on, and not there already."""
        try:
            number = self.number(publish.body)
        except KeyError:
            self.fault("body", f"nobody published {publish.body[:200]!r}")
            return None
        fate = self.fates[number]
        if self.must_die(fate):
            self._about(fate, "guilty alive", "it was passed on")
        if life is not None and life.first_published_at is None:
            life.first_published_at = _now()
        # When a connection is lost, or a queue turns out to be too young, what was confirmed goes again with the rest.
        sure = any(one.sure and one.stored and not one.lost for one in fate.arrivals)
        if len(fate.delivered_at) == 1 and (sure or fate.acks):
            self._about(fate, "published twice", "and its confirm had come")
        if (
            self.setting.on_unroutable != "hold"
            and len(fate.delivered_at) == 1
            and any(one.sure and one.publish.returned and not one.lost for one in fate.arrivals)
        ):
            self._about(fate, "unroutable again", f"it was to {self.setting.on_unroutable}")
        for rule, detail in self._differences(fate, publish):
            self._about(fate, rule, detail)
        arrival = Arrival(publish, queue, life, connection)
        fate.returned += publish.returned
        fate.arrivals.append(arrival)
        if queue is not None and fate.one.document:
            self._orders.setdefault((fate.one.document, publish.routing_key), []).append(number)
        return arrival

    def killed(self, forgets: bool) -> None:
        """Note that the far broker was killed: queues that are too young are empty when it comes back."""
        for fate in self.fates.values():
            for arrival in fate.arrivals:
                unconfirmed = arrival.publish.confirmed is None
                if self._age(arrival.queue) < FORGETS_SECONDS or (unconfirmed and forgets):
                    arrival.forgotten = True

    # What is passed on -----------------------------------------------------------------------------------------------

    def _expected(self, fate: Fate) -> tuple[dict[str, Any], list[tuple[str | bytes, Any]]]:
        """Return properties and headers with which a message is to be passed on, but for what differs each time."""
        found = decode_properties(fate.one.properties)
        values: dict[str, Any] = dict(found.values)
        own = table_entries(found.header_bytes)
        there = [name for name, _ in own]
        headers: list[tuple[str | bytes, Any]] = []
        for name, value in own:
            if name in {*_ADDED, "sidecar-retry-count"}:
                continue
            moved = f"sidecar-original-{name!s}"
            moves = name in {"CC", "BCC"} or str(name).startswith(("x-death", "x-first-death-"))
            if not moves:
                headers.append((name, value))
            elif moved not in there:
                headers.append((moved, value))
        headers += [
            (f"sidecar-original-{name}", values.pop(name)) for name in ("expiration", "user_id") if name in values
        ]
        mode = values.get("delivery_mode", 2)
        if mode != 2:
            headers.append(("sidecar-original-delivery_mode", mode))
        values["delivery_mode"] = 2
        if self.setting.envelope:
            values.pop("content_encoding", None)
            if "content_type" in values:
                values["content_type"] = "application/json"
        known = dict(own) if fate.one.extra == "chained" else {}  # only who has all three was passed on before
        headers += [
            ("sidecar-copy", "0"),
            ("sidecar-exchange", known.get("sidecar-exchange", "")),
            ("sidecar-routing-key", known.get("sidecar-routing-key", "work")),
            ("sidecar-received-at", known.get("sidecar-received-at", "2023-11-14T22:13:20.250Z")),
        ]
        return values, headers

    def _properties_bytes(self, fate: Fate) -> tuple[int, int]:
        """Return how many bytes a message's properties have at least and at most, when it is passed on."""
        values, headers = self._expected(fate)
        size = len(encode_properties({**values, "headers": dict(headers)}))
        again = len(_COUNT) + 10 if fate.returns else 0
        return size, size + 8 + again

    def _differences(self, fate: Fate, publish: Publish) -> list[tuple[str, str]]:
        """Return in what a message differs from what was to be passed on."""
        one, setting = fate.one, self.setting
        to = (publish.exchange, publish.routing_key)
        expected_to = (setting.exchange, one.route if setting.routes > 1 else "far-0")
        wrong: list[tuple[str, str]] = []
        if to != expected_to or not publish.mandatory:
            wrong.append(("route", f"{to}, not {expected_to}"))
        body = one.body
        if setting.envelope:
            body = publish.body
            wrong += self._wrong_envelope(fate, publish)
        if publish.body != body:
            wrong.append(("body", f"{publish.body[:80]!r}"))
        return wrong + self._wrong_properties(fate, publish)

    def _wrong_properties(self, fate: Fate, publish: Publish) -> list[tuple[str, str]]:
        found = decode_properties(publish.properties)
        values, headers = self._expected(fate)
        wrong = [("properties", f"{found.values}, not {values}")] if found.values != values else []
        actual = table_entries(found.header_bytes)
        told = dict(actual)
        if fate.returns and not fate.delays:
            actual = [(name, value) for name, value in actual if name != _COUNT]
        for name in ("sidecar-copy", "sidecar-received-at"):
            headers = [(key, told.get(name) if key == name else value) for key, value in headers]
        if fate.delays:  # round by the delay queue headers are moved about
            actual, headers = sorted(actual, key=repr), sorted(headers, key=repr)
            actual = [(name, value) for name, value in actual if name != _COUNT]
            if "sidecar-cut" in told:  # no frame of the near broker takes it beside the headers of a delay
                return wrong
        if actual != headers:
            wrong.append(("headers", f"{actual}, not {headers}"))
        if not str(told.get("sidecar-copy")).isdigit():
            wrong.append(("token", f"{told.get('sidecar-copy')!r}"))
        return wrong + self._wrong_time(fate, str(told.get("sidecar-received-at")))

    @staticmethod
    def _wrong_time(fate: Fate, told: str) -> list[tuple[str, str]]:
        if fate.one.extra == "chained":
            return [] if told == "2020-01-02T03:04:05.000Z" else [("received-at", told)]
        seconds = datetime.strptime(told, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp() - WALL_SECONDS
        if any(at - 0.002 <= seconds <= _now() + 0.002 for at in fate.delivered_at):
            return []
        return [("received-at", f"{told}, {seconds:.3f} s")]

    @staticmethod
    def _wrong_envelope(fate: Fate, publish: Publish) -> list[tuple[str, str]]:
        one, body = fate.one, publish.body
        received_at = decode_properties(publish.properties).headers["sidecar-received-at"]
        own = decode_table(decode_properties(one.properties).header_bytes)
        told = json.loads(body)
        expected: dict[str, Any] = {
            "message_id": one.document,
            "exchange": "first" if one.extra == "chained" else "",
            "routing_key": "first.key" if one.extra == "chained" else "work",
            "queue": "work",
            "timestamp": "2020-09-13T12:26:40.000Z" if one.extra == "many headers" else "",
            "received_at": received_at,
            "headers": {name: value for name, value in own.items() if name not in {*_ADDED, "sidecar-retry-count"}},
            "body": json.loads(one.plain),
        }
        expected = {name: value for name, value in expected.items() if value}
        if fate.delays:
            expected.pop("headers")
            told.pop("headers")
        if told != expected or not body.endswith(b',"body":' + one.plain + b"}"):
            return [("envelope", f"{told}, not {expected}")]
        return []

    # Between two turns -----------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Check what must hold at every moment.

        Raises:
            Discrepancy: it doesn't.
        """
        for life in self._lives:
            wrong = None if life.over else miscounted(life)
            if wrong is not None:
                self.fault(*wrong)
        if self.first is not None:
            raise self.first

    # At the end ------------------------------------------------------------------------------------------------------

    def conclude(self) -> None:
        """Judge a day that came to its end.

        Raises:
            Discrepancy: something doesn't hold.
        """
        for fate in self.fates.values():
            there = any(arrival.stored for arrival in fate.arrivals)
            if not (there or fate.dead or fate.excused):
                self._about(fate, "lost")
        for key, numbers in self._orders.items():
            fates = [self.fates[number] for number in numbers]
            certain = not any(len(fate.delivered_at) > 1 or fate.delays or fate.dead for fate in fates)
            if certain and numbers != sorted(numbers):
                self.fault("order", f"{key} arrived as {numbers}", numbers[0])
        if self.first is not None:
            raise self.first


def _now() -> float:
    return asyncio.get_running_loop().time()
