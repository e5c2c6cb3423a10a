"""A day on which messages are passed on to another broker (``SIDECAR_SINK=amqp``), as plain data made from a seed."""

from __future__ import annotations

import gzip
import random
import zlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tests.servers.wire import encode_properties
from tests.simulation.scenario import parts_of, unusual, written

FAR_FAULTS = (
    "connection lost", "far away", "far killed", "queue missing", "full", "nacks", "far alarm", "cut", "silent",
    "exchange missing", "channel closed",
)  # fmt: skip
"""What the far broker meets."""
NEAR_FAULTS = ("session lost", "SIGTERM", "kill")
_FAULTS = (*FAR_FAULTS, "queue missing", "far killed", "cut", *NEAR_FAULTS)
EXTRAS = (
    "expiration", "user_id", "CC", "BCC", "transient", "no mode", "x-death", "many headers", "chained", "strange", "",
)  # fmt: skip
"""What the properties of a message hold besides its id."""


class Forwarded(NamedTuple):
    """A message that will be published to the near broker.

    Attributes:
        at: virtual seconds.
        number: unlike that of any other; it is in the body, and in a header.
        document: its ``message_id``; empty: it has none.
        route: the header by which it is addressed; empty: it has none.
        coded: ``gzip``, ``deflate``, or ``broken`` (it says gzip and isn't).
        text: its body isn't JSON.
        extra: one of `EXTRAS`.
        size: of its body, at least.
        header_bytes: of one more header.
        poison: the far broker closes the connection over it.
    """

    at: float
    number: int
    document: str = ""
    route: str = "far-0"
    coded: str = ""
    text: bool = False
    extra: str = ""
    size: int = 0
    header_bytes: int = 0
    poison: bool = False

    @property
    def plain(self) -> bytes:
        """The body before it was compressed."""
        if self.text:
            return b"text %d" % self.number
        poison = ',"x":"poison"' if self.poison else ""
        return b'{"n":%d%s,\n"p":"%s"}' % (self.number, poison.encode(), b"p" * self.size)

    @property
    def body(self) -> bytes:
        """The body as it is published."""
        if self.coded == "gzip":
            return gzip.compress(self.plain, mtime=0)
        return zlib.compress(self.plain) if self.coded == "deflate" else self.plain

    @property
    def properties(self) -> bytes:
        """The properties with which it is published."""
        headers: dict[str | bytes, Any] = {"m": self.number}
        values: dict[str, Any] = {"delivery_mode": 2, "app_id": "shop"}
        if self.route:
            headers["to"] = self.route
        if self.document:
            values["message_id"] = self.document
        if self.coded:
            values["content_encoding"] = "deflate" if self.coded == "deflate" else "gzip"
            values["content_type"] = "text/x-json"
        if self.header_bytes:
            headers["long"] = "h" * self.header_bytes
        self._add_extra(values, headers)
        return encode_properties({**values, "headers": headers})

    def _add_extra(self, values: dict[str, Any], headers: dict[str | bytes, Any]) -> None:
        if self.extra in {"CC", "BCC"}:
            headers[self.extra] = ["elsewhere"]
        elif self.extra == "x-death":
            headers["x-death"] = [{"queue": "earlier", "count": 2}]
            headers["x-first-death-queue"] = "earlier"
        elif self.extra in {"expiration", "user_id"}:
            values[self.extra] = {"expiration": "60000", "user_id": "someone"}[self.extra]
        elif self.extra == "transient":
            values["delivery_mode"] = 1
        elif self.extra == "no mode":
            del values["delivery_mode"]
        elif self.extra == "many headers":
            headers |= {"a": None, "b": True, "c": 1.5, "d": {"e": [1, "x"]}, "timestamp": 1 << 40, "é": "ü"}
            values |= {"priority": 3, "timestamp": 1_600_000_000, "type": "order", "reply_to": "back"}
        elif self.extra == "chained":
            headers["sidecar-exchange"] = "first"
            headers["sidecar-routing-key"] = "first.key"
            headers["sidecar-received-at"] = "2020-01-02T03:04:05.000Z"
            headers["sidecar-copy"] = str(self.number % 7 + 1)  # the token of somebody else's
        elif self.extra == "strange":
            headers["sidecar-routing-key"] = "not all three"
            headers["sidecar-original-CC"] = "mine"


class FarFault(NamedTuple):
    """Something that goes wrong.

    Attributes:
        at: when it begins, in virtual seconds.
        seconds: how long it lasts.
        kind: one of `FAR_FAULTS` or `NEAR_FAULTS`.
        share: of the messages that it meets.
        target: the queue.
        size: for ``cut``: after how many bytes; negative: of those that the broker gets.
        dies_after: (``queue missing``) the broker is killed so many seconds after the queue appeared; 0: it isn't.
    """

    at: float
    seconds: float
    kind: str
    share: float = 1.0
    target: str = "far-0"
    size: int = 0
    dies_after: float = 0.0


@dataclass(frozen=True, slots=True)
class ForwardingSetting:
    """How the sidecar and the servers are set; what the pipeline knows by the same name means the same.

    Attributes:
        routes: how many queues; with one, messages aren't addressed by a header.
        confirms: ``each``, ``chance``, or ``late``: all that came in a while, the last one first.
        appears_at: when the queues are declared, in seconds; 0: long ago.
        dies_after: the broker is killed so many seconds after that; 0: it isn't.
    """

    routes: int = 1
    exchange: str = ""
    envelope: bool = False
    on_unroutable: str = "hold"
    confirms: str = "each"
    frame_max: int = 131_072
    batch_max_items: int = 10
    batch_max_age_seconds: float = 0.5
    bulk_concurrency: int = 4
    prefetch: int = 100
    hold_max_seconds: float = 300.0
    retry_max_attempts: int = 50
    confirm_timeout_seconds: float = 30.0
    shutdown_seconds: float = 25.0
    chunk_items: int = 400
    appears_at: float = 0.0
    dies_after: float = 0.0


@dataclass(frozen=True, slots=True)
class ForwardingDay:
    """Everything that will happen; see `tests.simulation.scenario.Day`."""

    seed: int
    setting: ForwardingSetting
    messages: tuple[Forwarded, ...]
    faults: tuple[FarFault, ...]

    def as_json(self) -> str:
        """Return it as JSON."""
        return written(self)

    def unusual(self) -> dict[str, object]:
        """Return the settings that differ from the usual ones."""
        return unusual(self.setting)

    @classmethod
    def from_json(cls, text: str) -> ForwardingDay:
        """Return what `as_json` wrote."""
        return cls(*parts_of(text, ForwardingSetting, Forwarded, FarFault))


def draw_forwarding(seed: int) -> ForwardingDay:
    """Return the day of a seed."""
    rng = random.Random(f"forwarding {seed}")
    setting = _setting(rng)
    messages = _messages(rng, setting)
    if any(one.poison for one in messages):
        setting = replace(setting, retry_max_attempts=5)  # found out about in a day
    return ForwardingDay(seed, setting, messages, _faults(rng, setting))


def _setting(rng: random.Random) -> ForwardingSetting:
    pick = rng.choice
    batch = pick((1, 5, 10, 10, 30))
    young = rng.random() < 0.2
    return ForwardingSetting(
        routes=pick((1, 1, 3)),
        exchange=pick(("", "", "far")),
        envelope=rng.random() < 0.35,
        on_unroutable=pick(("hold", "hold", "hold", "dead-letter", "delay")),
        confirms=pick(("each", "chance", "chance", "late")),
        frame_max=pick((4096, 4096, 131_072)),
        batch_max_items=batch,
        batch_max_age_seconds=pick((0.05, 0.5)),
        bulk_concurrency=pick((1, 2, 4)),
        prefetch=max(8, batch * pick((2, 5, 10))),
        hold_max_seconds=pick((20.0, 300.0)),
        confirm_timeout_seconds=pick((5.0, 30.0)),
        chunk_items=pick((3, 400)),
        appears_at=round(rng.uniform(0.1, 5.0), 3) if young else 0.0,
        dies_after=round(rng.uniform(0.01, 3.0), 3) if young and rng.random() < 0.5 else 0.0,
    )


def _messages(rng: random.Random, setting: ForwardingSetting) -> tuple[Forwarded, ...]:
    count = rng.choice((5, 20, 40, 80))
    hot = rng.choice((0, 2, 5))
    poison = rng.randrange(count) if rng.random() < 0.08 else -1
    odd_share = rng.choice((0.0, 0.1, 0.5))
    at, messages = 0.0, list[Forwarded]()
    while len(messages) < count:
        for _ in range(min(count - len(messages), rng.choice((1, 1, 5, 40)))):
            number = len(messages)
            # Behind a poisonous one with the same id others wait: if they are all that there is, nobody can tell why.
            document = f"hot-{rng.randrange(hot)}" if hot and rng.random() < 0.6 else rng.choice(("", f"id-{number}"))
            route = f"far-{rng.randrange(setting.routes)}"
            one = Forwarded(round(at, 3), number, document, route)
            if number == poison:
                one = one._replace(document=f"id-{number}", poison=True)
            messages.append(_odd(rng, one, setting) if rng.random() < odd_share else one)
        at = min(30.0, at + rng.choice((0.0, 0.1, 0.7, 4.0)))
    return tuple(messages)


def _odd(rng: random.Random, one: Forwarded, setting: ForwardingSetting) -> Forwarded:
    """Return a message that differs from most."""
    odd = rng.choice(("coded", "text", "extra", "extra", "extra", "size", "size", "header", "route"))
    room = setting.frame_max - 20  # what properties may have
    if odd == "coded" and not one.poison:
        return one._replace(coded=rng.choice(("gzip", "gzip", "deflate", "broken")))
    if odd == "text" and not one.poison:
        return one._replace(text=True)
    if odd == "extra":
        return one._replace(extra=rng.choice(EXTRAS))
    if odd == "size":
        return one._replace(size=rng.choice((4066, 4080, 5_000, 70_000, 70_000, 200_000)))
    if odd == "header":  # about as much as there is room for, or far more
        return one._replace(header_bytes=rng.choice((room - rng.randrange(350), room + 500, 1_000)))
    if odd == "route" and setting.routes > 1:
        return one._replace(route=rng.choice(("", "r" * 256, "r" * 255)))
    return one


def _faults(rng: random.Random, setting: ForwardingSetting) -> tuple[FarFault, ...]:
    faults = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        kind = rng.choice(_FAULTS)
        if kind == "exchange missing" and not setting.exchange:
            kind = "queue missing"
        at = rng.uniform(0.0, 25.0) if rng.random() < 0.5 else rng.uniform(0.0, 3.0)
        seconds = rng.choice((rng.uniform(0.1, 2.0), rng.uniform(0.1, 20.0)))
        if kind == "far alarm":
            seconds *= 4.0  # longer than a confirm may take otherwise
        faults.append(
            FarFault(
                round(at, 3),
                0.0 if kind in {"connection lost", "channel closed", "session lost", "cut"} else round(seconds, 3),
                kind,
                1.0 if rng.random() < 0.5 else round(rng.uniform(0.1, 0.9), 2),
                f"far-{rng.randrange(setting.routes)}",
                rng.choice((1, -1)) * rng.choice((rng.randrange(300, 700), rng.randrange(20_000)))
                if kind == "cut"
                else 0,
                round(rng.uniform(0.01, 3.0), 3) if kind == "queue missing" and rng.random() < 0.5 else 0.0,
            )
        )
    return tuple(sorted(faults))
