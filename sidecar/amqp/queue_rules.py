"""Findings about the properties of a queue, for the start of a session and for ``sidecar check``.

docs/queues.md has the same rules as a table, with the measured behaviour of RabbitMQ. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.amqp.topology import EXCLUSIVE
from sidecar.core.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidecar.amqp.queue_properties import QueueProperties
    from sidecar.core.findings import Severity

    Rule = Callable[[QueueProperties, int], tuple[Severity, str, str] | None]

QUEUES_PAGE = "docs/queues.md"
LOW_DELIVERY_LIMIT = 100
_LIMITS = ("x-max-length", "x-max-length-bytes")
_DEFAULT_DELIVERY_LIMIT = 20
_DEFAULT_LIMIT_SINCE = 4  # RabbitMQ's major version
_LONG_EXPIRES_SECONDS = 24 * 3600.0


def queue_findings(queue: str, properties: QueueProperties, major_version: int) -> list[Finding]:
    """Return the findings about a work queue; a problem is a reason not to consume from it.

    Args:
        queue: its name.
        properties: of the queue.
        major_version: of RabbitMQ; 0: unknown.
    """
    found: Iterable[tuple[Severity, str, str] | None] = (rule(properties, major_version) for rule in _RULES)
    return [Finding(one[0], f"queue {queue!r}", one[1], one[2]) for one in found if one is not None]


def dead_letter_findings(queue: str, properties: QueueProperties) -> list[Finding]:
    """Return why a dead-letter queue loses dead letters."""
    arguments = properties.arguments
    reasons = [
        *(["it isn't durable"] if not properties.durable else []),
        *(["it is auto-delete, so reading it deletes it"] if properties.auto_delete else []),
        *(f"{name}={arguments[name]}" for name in ("x-expires", "x-message-ttl") if name in arguments),
        *(f"{name}={arguments[name]}" for name in _LIMITS if name in arguments and _drops(properties)),
    ]
    if not reasons:
        return []
    what = f"dead letters can be lost from it: {', '.join(reasons)}"
    return [Finding("warning", f"dead-letter queue {queue!r}", what, "nothing needs to be done if that is on purpose")]


def delivery_limit(properties: QueueProperties, major_version: int) -> int | None:
    """Return how often a message may be redelivered before RabbitMQ drops it; None: any number of times."""
    if properties.queue_type != "quorum":
        return None
    limit = properties.number("x-delivery-limit")
    if limit is None:
        return _DEFAULT_DELIVERY_LIMIT if major_version >= _DEFAULT_LIMIT_SINCE else None
    return limit if limit >= 0 else None


def expires_seconds(properties: QueueProperties) -> float | None:
    """Return after how long without a consumer RabbitMQ deletes the queue; None: never, unless a policy says so."""
    milliseconds = properties.number("x-expires")
    return None if milliseconds is None else milliseconds / 1000


def _auto_delete(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if not properties.auto_delete:
        return None
    what = (
        "it is auto-delete: RabbitMQ deletes it with its messages when its last consumer is cancelled, so at each "
        "restart of the sidecar. The sidecar doesn't consume from it"
    )
    return "problem", what, "delete it while it is empty, and declare it without auto-delete"


def _exclusive(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if not properties.exclusive:
        return None
    return "problem", f"it is exclusive: {EXCLUSIVE}", "declare the queue without exclusive, or name another one"


def _stream(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if properties.queue_type != "stream":
        return None
    what = "it is a stream: messages can't be requeued to a stream, so the sidecar doesn't consume from it"
    return "problem", what, "name a quorum or classic queue with the same bindings"


def _expires(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    seconds = expires_seconds(properties)
    if seconds is None:
        return None
    what = (
        f"it expires (x-expires): RabbitMQ deletes it with its messages after {seconds:g} s without a consumer. The "
        "sidecar keeps it while it is connected, but not during a restart or without a connection"
    )
    severity: Severity = "warning" if seconds < _LONG_EXPIRES_SECONDS else "note"
    return severity, what, "declare the queue without x-expires, or make it longer than any restart or outage"


def _transient(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if properties.durable:
        return None
    what = "it isn't durable: RabbitMQ deletes it with its messages when the broker restarts"
    return "warning", what, "declare it durable"


def _max_length(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    limits = [name for name in _LIMITS if name in properties.arguments]
    if not limits:
        return None
    limits_text = " and ".join(f"{name}={properties.arguments[name]}" for name in limits)
    if _drops(properties):
        what = f"it drops messages when it is full ({limits_text}, drop-head), also requeued ones"
        fix = "set x-overflow to reject-publish, so that publishers get a nack, or remove the limit"
        return "warning", what, fix
    what = (
        f"it refuses messages when it is full ({limits_text}), also delayed retries, which then wait in the delay queue"
    )
    return "note", what, "nothing needs to be done if publishers wait for confirms"


def _drops(properties: QueueProperties) -> bool:
    return str(properties.arguments.get("x-overflow", "drop-head")) == "drop-head"


def _message_ttl(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    milliseconds = properties.number("x-message-ttl")
    if milliseconds is None:
        return None
    what = (
        f"its messages expire {milliseconds / 1000:g} s after they were published (x-message-ttl): RabbitMQ drops or "
        "dead-letters messages that wait longer in an outage, or are requeued later"
    )
    return "warning", what, "make x-message-ttl longer than any outage, or remove it"


def _priorities(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if "x-max-priority" not in properties.arguments:
        return None
    what = "it has priorities (x-max-priority): a message can overtake an earlier one for the same document"
    return "note", what, "set SIDECAR_VERSION if the order of writes matters"


def _single_active_consumer(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if properties.arguments.get("x-single-active-consumer") is not True:
        return None
    what = "it serves one consumer at a time (x-single-active-consumer): other sidecars are ready, but get no messages"
    return "note", what, "nothing needs to be done if that is on purpose"


def _delivery_limit(properties: QueueProperties, major_version: int) -> tuple[Severity, str, str] | None:
    limit = delivery_limit(properties, major_version)
    if limit is None or limit >= LOW_DELIVERY_LIMIT:
        return None
    what = (
        f"RabbitMQ drops (or dead-letters) a message that is redelivered more than {limit} times (x-delivery-limit), "
        "and each long outage of Elasticsearch is a redelivery or more"
    )
    fix = (
        "give it a large x-delivery-limit (a new queue, or a policy); otherwise RabbitMQ drops messages, or "
        "dead-letters them without a reason"
    )
    return "warning", what, fix


def _own_dead_lettering(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    exchange = properties.arguments.get("x-dead-letter-exchange")
    if exchange is None:
        return None
    what = (
        f"it has a dead-letter exchange of its own ({exchange!r}): messages that RabbitMQ drops (by a limit "
        "or x-message-ttl) go there without a reason; the sidecar's dead letters don't"
    )
    return "note", what, "nothing needs to be done; SIDECAR_ON_REJECT=broker sends all rejects there"


_RULES: tuple[Rule, ...] = (
    _auto_delete,
    _exclusive,
    _stream,
    _expires,
    _transient,
    _max_length,
    _message_ttl,
    _priorities,
    _single_active_consumer,
    _delivery_limit,
    _own_dead_lettering,
)
