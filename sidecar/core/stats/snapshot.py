"""What the sidecar is doing at one moment: what probes, metrics and the status page tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from sidecar.core.stats.counters import Counters
    from sidecar.core.stats.failures import FailureGroup

Breaker = Literal["closed", "open", "half-open"]


class NotReady(NamedTuple):
    """Why the sidecar doesn't do its work now.

    Attributes:
        reason: one of a few words that a script can look for.
        detail: a sentence for people; empty where there is nothing to add.
    """

    reason: str
    detail: str


class Snapshot(NamedTuple):
    """One moment; taken without an await in between, so all of it belongs together.

    Attributes:
        counters: all counts. It goes on counting: use it before the next await.
        queues: that are consumed from.
        connected: there is a session with RabbitMQ.
        reached_broker: there was one, ever.
        reached_elasticsearch: it answered, ever.
        not_ready: why nothing is consumed or stored, or None.
        held: why nothing but probes is sent, or None.
        held_seconds: for how long.
        next_try_seconds: until something is sent again; 0 when that is possible now.
        breaker: ``closed`` (requests are sent), ``open`` (held) or ``half-open`` (a probe is on its way).
        copies_held: why the route of dead letters takes nothing, or None.
        delays_held: why a delay queue refuses messages, or None.
        in_flight: deliveries that are open, as the ledgers count them, apart from the account.
        in_flight_bytes: what they take of the memory limit.
        bulk_in_flight: requests on their way.
        bulk_limit: how many there may be now.
        prefetch: of the present consumers.
        failures: what failed, by kind, that of the latest first.
    """

    counters: Counters
    queues: tuple[str, ...]
    connected: bool
    reached_broker: bool
    reached_elasticsearch: bool
    not_ready: NotReady | None
    held: str | None
    held_seconds: float
    next_try_seconds: float
    breaker: Breaker
    copies_held: str | None
    delays_held: str | None
    in_flight: int
    in_flight_bytes: int
    bulk_in_flight: int
    bulk_limit: float
    prefetch: int
    failures: list[FailureGroup]
