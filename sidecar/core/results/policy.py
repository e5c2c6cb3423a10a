"""The verdict table: what a result means for the message behind it, and for the request as a whole.

Rules are looked at from the top; the first that fits decides. Nothing else in the program knows a status code.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.results.bulk import Fault, Result


class ResultClass(enum.Enum):
    """What happens to a message after Elasticsearch spoke of its item, or RabbitMQ of what was published."""

    ACK = "ack"
    THROTTLED = "throttled"
    """Never the message's fault: again in place, without limit, and slower."""
    RETRYABLE = "counted"
    """Again in place; each attempt counts."""
    TARGET_BLOCKED = "blocked"
    """Its target takes nothing now, and may again: as configured."""
    TARGET_MISSING = "missing"
    """Its target isn't there: as configured."""
    UNROUTABLE = "unroutable"
    """No queue takes it now, and one may later: as configured."""
    CONFLICT = "conflict"
    """Another version is stored: an ack where that may be our own doing, otherwise as configured."""
    FAILURE_STORE = "failure_store"
    """It is in the data stream's failure store, not in the data stream: as configured."""
    DEAD_LETTER = "dead_letter"


OUTCOMES = {
    ResultClass.ACK: "noop",
    ResultClass.FAILURE_STORE: "failure_store",
    ResultClass.CONFLICT: "conflict",
    ResultClass.THROTTLED: "too_many",
    ResultClass.TARGET_BLOCKED: "failed_client",
    ResultClass.TARGET_MISSING: "failed_client",
    ResultClass.UNROUTABLE: "failed_client",
    ResultClass.RETRYABLE: "failed_server",
    ResultClass.DEAD_LETTER: "failed_client",
}
"""How the documents of a verdict are counted, but for those that were stored."""


class RequestOutcome(enum.Enum):
    """What happens after a whole request failed, or was answered without results."""

    OUTCOME_UNKNOWN = "unknown"
    """Whether it was applied is unknown: the same items again after a pause, nothing counts."""
    THROTTLED = "throttled"
    SPLIT_SIZE = "split_size"
    """Too large: in two, and the size is learned; one item alone is rejected."""
    BISECT = "split_fault"
    """One item spoils it: halved until the item is alone."""
    HOLD = "hold"
    """Nobody's message is at fault, the configuration or a right is: probe, and say why."""


class Rule(NamedTuple):
    """A row: what it fits (an empty set fits all) and what follows."""

    statuses: frozenset[int]
    error_types: frozenset[str]
    actions: frozenset[str]
    result_class: ResultClass
    reason: str = ""
    why: str = ""


def _rule(
    statuses: str, error_types: str, actions: str, result_class: ResultClass, reason: str = "", why: str = ""
) -> Rule:
    return Rule(
        frozenset(int(status) for status in statuses.split()),
        frozenset(error_types.split()),
        frozenset(actions.split()),
        result_class,
        reason,
        why,
    )


_ACK, _DEAD, _MISSING = ResultClass.ACK, ResultClass.DEAD_LETTER, ResultClass.TARGET_MISSING

NACK, NO_ROUTE, FRAME_ERROR = "basic.nack", "NO_ROUTE", "FRAME_ERROR"
"""What RabbitMQ says of a message that is published (``SIDECAR_SINK=amqp``), for Elasticsearch's error types."""

ITEM_RULES = (
    # statuses, error types, actions, verdict, reason of a dead letter, why
    _rule("200 201", "", "", _ACK, why="stored (created, updated, deleted, noop)"),
    _rule("404", "document_missing_exception", "", _DEAD, "rejected", "there is nothing to update"),
    _rule("404", "index_not_found_exception", "", _MISSING, "index-missing", "the target doesn't exist"),
    _rule("409", "", "update upsert", ResultClass.RETRYABLE, why="somebody else wrote the document at the same time"),
    _rule("409", "", "", ResultClass.CONFLICT, "conflict", "the document, or a later version of it, is stored already"),
    _rule("429 503", "", "", ResultClass.THROTTLED, why="Elasticsearch has no room now; never the message's fault"),
    _rule("403", "cluster_block_exception security_exception", "", ResultClass.TARGET_BLOCKED, "index-blocked",
          "the target is write-blocked or forbidden"),
    _rule("400", "index_closed_exception", "", ResultClass.TARGET_BLOCKED, "index-blocked", "the target is closed"),
    _rule("400", "", "", _DEAD, "rejected", "the document or its action can't be stored, now or later"),
    _rule(" ".join(map(str, range(500, 600))), "", "", ResultClass.RETRYABLE, why="a failure inside Elasticsearch"),
)  # fmt: skip
PUBLISH_RULES = (
    # the same of what RabbitMQ says of a message that is published; statuses are AMQP's, and a basic.nack has none
    _rule("0", NACK, "", ResultClass.THROTTLED, why="its queue has no room now; never the message's fault"),
    _rule("312", NO_ROUTE, "", ResultClass.UNROUTABLE, "unroutable", "no queue takes it"),
    _rule("501", FRAME_ERROR, "", _DEAD, "too-large", "its headers don't fit into a frame"),
)
_RULES = PUBLISH_RULES + ITEM_RULES
_NOT_FOUND = 404
_DELETE_OF_NOTHING = _rule("404", "", "delete", _ACK, why="there is nothing to delete")
_IN_FAILURE_STORE = _rule(
    "200 201", "", "", ResultClass.FAILURE_STORE, "failure-store", "the failure store of the data stream took it"
)
_OTHERWISE = _rule("", "", "", _DEAD, "rejected", "an answer that the table doesn't know")


def classify_item(result: Result, action: str) -> Rule:
    """Return the rule for one item's result."""
    if result.status == _NOT_FOUND and not result.error_type and action == "delete":
        return _DELETE_OF_NOTHING
    if result.failure_store and result.status in _IN_FAILURE_STORE.statuses:
        return _IN_FAILURE_STORE
    for rule in _RULES:
        if (
            result.status in rule.statuses
            and (not rule.error_types or result.error_type in rule.error_types)
            and (not rule.actions or action in rule.actions)
        ):
            return rule
    return _OTHERWISE


class Disposition(enum.Enum):
    """What is done with a message, once rule, configuration and its own history are put together."""

    STORED = "stored"
    THROTTLED = "throttled"
    RETRY = "again"
    """In place, after a backoff."""
    RETRY_UNTIL_ROUTABLE = "wait"
    """The same; and where nothing else is taken, everything waits."""
    DELAY = "delay"
    """Round by the delay queue."""
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPolicy:
    """What users decide; the meaning of each is that of the setting of its name."""

    on_conflict: Literal["ack", "dead-letter"] = "ack"
    on_index_missing: Literal["dead-letter", "delay", "hold"] = "dead-letter"
    on_index_blocked: Literal["dead-letter", "delay", "hold"] = "delay"
    on_unroutable: Literal["dead-letter", "delay", "hold"] = "hold"
    on_failure_store: Literal["ack", "dead-letter"] = "ack"
    on_delay_refused: Literal["wait", "dead-letter"] = "wait"


_CHOSEN = {
    "ack": Disposition.STORED,
    "dead-letter": Disposition.DEAD_LETTER,
    "delay": Disposition.DELAY,
    "hold": Disposition.RETRY_UNTIL_ROUTABLE,
}
_ALWAYS = {
    ResultClass.ACK: Disposition.STORED,
    ResultClass.THROTTLED: Disposition.THROTTLED,
    ResultClass.DEAD_LETTER: Disposition.DEAD_LETTER,
}


def decide(rule: Rule, policy: ErrorPolicy, *, may_be_own_write: bool, may_retry: bool, may_delay: bool) -> Disposition:
    """Return what is done with a message.

    Args:
        rule: for its result.
        policy: the configuration.
        may_be_own_write: a conflict may be with an earlier attempt of ours: one that went unanswered, or an earlier
            delivery.
        may_retry: attempts in place are left.
        may_delay: rounds by the delay queue are left, and order doesn't forbid them.
    """
    verdict = rule.result_class
    if verdict is ResultClass.CONFLICT:
        return Disposition.STORED if may_be_own_write else _CHOSEN[policy.on_conflict]
    if verdict is ResultClass.TARGET_MISSING:
        return _CHOSEN[policy.on_index_missing]
    if verdict is ResultClass.TARGET_BLOCKED:
        return _CHOSEN[policy.on_index_blocked]
    if verdict is ResultClass.UNROUTABLE:
        return _CHOSEN[policy.on_unroutable]
    if verdict is ResultClass.FAILURE_STORE:
        return _CHOSEN[policy.on_failure_store]
    if verdict is ResultClass.RETRYABLE:
        return Disposition.RETRY if may_retry else Disposition.DELAY if may_delay else Disposition.DEAD_LETTER
    return _ALWAYS[verdict]


def decide_undelayed(rule: Rule, policy: ErrorPolicy, *, one_target: bool, has_room: Callable[[], bool]) -> Disposition:
    """Return what is done with a message that should be delayed, if its delay queue refuses messages.

    Args:
        rule: for its result.
        policy: the configuration.
        one_target: all messages have the same target. Nothing else can be stored while that is blocked, so all wait.
        has_room: returns whether the message may wait in place.
    """
    if rule.result_class is ResultClass.RETRYABLE or policy.on_delay_refused == "dead-letter":
        return Disposition.DEAD_LETTER
    if one_target:
        return Disposition.RETRY_UNTIL_ROUTABLE
    return Disposition.RETRY if has_room() else Disposition.DEAD_LETTER


_REDIRECTS, _BAD_REQUEST, _TOO_LARGE, _TOO_MANY = 300, 400, 413, 429
_FAILED = 500
_CONFIGURATION_FAULTS = frozenset({"media_type_header_exception", "content_type_header_exception"})
_UNKNOWN_PARAMETER = "unrecognized parameter"


def classify_request(fault: Fault) -> RequestOutcome:
    """Return what follows when a request was answered with something else than results."""
    status = fault.status
    if status == _TOO_MANY:
        return RequestOutcome.THROTTLED
    # A success without results can't be read. A 500 may be one item's work (a date in an index name that Elasticsearch
    # can't reckon with): as an unknown outcome it holds while everything fails, and is narrowed down when probes pass.
    if status >= _FAILED or status < _REDIRECTS:
        return RequestOutcome.OUTCOME_UNKNOWN
    if status == _TOO_LARGE:
        return RequestOutcome.SPLIT_SIZE
    if (
        status == _BAD_REQUEST
        and fault.error_type
        and fault.error_type not in _CONFIGURATION_FAULTS
        and _UNKNOWN_PARAMETER not in fault.reason
    ):
        return RequestOutcome.BISECT
    return RequestOutcome.HOLD
