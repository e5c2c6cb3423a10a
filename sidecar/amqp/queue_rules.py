"""What a queue's properties do to the sidecar's promise: for the start of a session, and for ``sidecar check``.

docs/queues.md has the same rules as a table, with what RabbitMQ was seen to do. Pure: properties in, findings out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.amqp.topology import EXCLUSIVE
from sidecar.core.check import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidecar.amqp.queue_properties import QueueProperties
    from sidecar.core.check import Severity

    Rule = Callable[[QueueProperties, int], tuple[Severity, str, str] | None]

QUEUES_PAGE = "docs/queues.md"
LOW_DELIVERY_LIMIT = 100
_LIMITS = ("x-max-length", "x-max-length-bytes")
_DEFAULT_DELIVERY_LIMIT = 20
_FIRST_WITH_DEFAULT_LIMIT = 4  # RabbitMQ's major version
_LONG_EXPIRES_SECONDS = 24 * 3600.0


def queue_findings(queue: str, properties: QueueProperties, major_version: int) -> list[Finding]:
    """Return what is to be said of a work queue; a problem is a reason not to consume from it.

    Args:
        queue: its name.
        properties: as RabbitMQ told them.
        major_version: of RabbitMQ; 0: unknown.
    """
    found: Iterable[tuple[Severity, str, str] | None] = (rule(properties, major_version) for rule in _RULES)
    return [Finding(one[0], f"queue {queue!r}", one[1], one[2]) for one in found if one is not None]


def dead_letter_findings(queue: str, properties: QueueProperties) -> list[Finding]:
    """Return why dead letters don't stay in their queue."""
    arguments = properties.arguments
    reasons = [
        *(["it isn't durable"] if not properties.durable else []),
        *(["it is auto-delete, so looking at it deletes it"] if properties.auto_delete else []),
        *(f"{name}={arguments[name]}" for name in ("x-expires", "x-message-ttl") if name in arguments),
        *(f"{name}={arguments[name]}" for name in _LIMITS if name in arguments and _drops(properties)),
    ]
    if not reasons:
        return []
    what = f"dead letters don't stay there: {', '.join(reasons)}"
    return [Finding("warning", f"dead-letter queue {queue!r}", what, "nothing needs to be done if that is on purpose")]


def delivery_limit(properties: QueueProperties, major_version: int) -> int | None:
    """Return how often a message may come back before RabbitMQ drops it; None: for ever."""
    if properties.queue_type != "quorum":
        return None
    limit = properties.number("x-delivery-limit")
    if limit is None:
        return _DEFAULT_DELIVERY_LIMIT if major_version >= _FIRST_WITH_DEFAULT_LIMIT else None
    return limit if limit >= 0 else None


def expires_seconds(properties: QueueProperties) -> float | None:
    """Return after how long without a consumer RabbitMQ deletes the queue; None: never, but by a policy."""
    milliseconds = properties.number("x-expires")
    return None if milliseconds is None else milliseconds / 1000


def _auto_delete(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if not properties.auto_delete:
        return None
    what = (
        "it is auto-delete: RabbitMQ deletes it with its messages when the last consumer goes, so at each restart of "
        "the sidecar; it isn't consumed"
    )
    return "problem", what, "delete it while it is empty, and declare it without auto-delete"


def _exclusive(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if not properties.exclusive:
        return None
    return "problem", f"it is exclusive: {EXCLUSIVE}", "declare the queue without exclusive, or name another one"


def _stream(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if properties.queue_type != "stream":
        return None
    what = "it is a stream, which can't be consumed as a queue is: nothing is ever given back to it"
    return "problem", what, "name a quorum or classic queue that is bound to the same source"


def _expires(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    seconds = expires_seconds(properties)
    if seconds is None:
        return None
    what = (
        f"it expires (x-expires): RabbitMQ deletes it with its messages after {seconds:g} s without a consumer. The "
        "sidecar keeps it while it is connected, but not while it is restarted or away"
    )
    severity: Severity = "warning" if seconds < _LONG_EXPIRES_SECONDS else "note"
    return severity, what, "declare the queue without x-expires, or make it longer than any restart or outage"


def _transient(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if properties.durable:
        return None
    what = "it isn't durable: RabbitMQ deletes it with its messages when the broker restarts"
    return "warning", what, "declare it durable, or its messages are gone when the broker restarts"


def _max_length(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    limits = [name for name in _LIMITS if name in properties.arguments]
    if not limits:
        return None
    told = " and ".join(f"{name}={properties.arguments[name]}" for name in limits)
    if _drops(properties):
        what = f"it drops messages when it is full ({told}, drop-head), also those that are given back to it"
        mend = "set x-overflow to reject-publish, so that publishers are told, or take the limit off"
        return "warning", what, mend
    what = f"it refuses messages when it is full ({told}), delayed retries that come back included; those wait"
    return "note", what, "nothing needs to be done, if publishers wait for confirms"


def _drops(properties: QueueProperties) -> bool:
    return str(properties.arguments.get("x-overflow", "drop-head")) == "drop-head"


def _message_ttl(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    milliseconds = properties.number("x-message-ttl")
    if milliseconds is None:
        return None
    what = (
        f"its messages expire {milliseconds / 1000:g} s after they were published (x-message-ttl): in an outage what "
        "waits there, or is given back later than that, is dropped or dead-lettered by RabbitMQ"
    )
    return "warning", what, "make x-message-ttl longer than any outage, or take it off"


def _priorities(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if "x-max-priority" not in properties.arguments:
        return None
    what = "it has priorities (x-max-priority): a message can overtake an earlier one for the same document"
    return "note", what, "set SIDECAR_VERSION where the order of writes matters"


def _single_active_consumer(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    if properties.arguments.get("x-single-active-consumer") is not True:
        return None
    what = "it serves one consumer at a time (x-single-active-consumer): further sidecars are ready, and get nothing"
    return "note", what, "nothing needs to be done, if that is on purpose"


def _delivery_limit(properties: QueueProperties, major_version: int) -> tuple[Severity, str, str] | None:
    limit = delivery_limit(properties, major_version)
    if limit is None or limit >= LOW_DELIVERY_LIMIT:
        return None
    what = (
        f"RabbitMQ drops (or dead-letters) a message that comes back more than {limit} times (x-delivery-limit); long "
        "outages of Elasticsearch cost it some of these"
    )
    mend = (
        "give it a large x-delivery-limit (a new queue, or a policy): a message that comes back more often is dropped, "
        "or dead-lettered without a reason"
    )
    return "warning", what, mend


def _own_dead_lettering(properties: QueueProperties, _: int) -> tuple[Severity, str, str] | None:
    exchange = properties.arguments.get("x-dead-letter-exchange")
    if exchange is None:
        return None
    what = (
        f"it has a dead-letter exchange of its own ({exchange!r}): what RabbitMQ drops (by a limit, a time to live) "
        "goes there, without the reason; the sidecar's own dead letters go their own way"
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
