"""The verdict table: what a result means for the message behind it, and for the request as a whole.

Rules are looked at from the top; the first that fits decides. Nothing else in the program knows a status code.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.bulk import Fault, Result


class Verdict(enum.Enum):
    """What happens to a message after Elasticsearch spoke of its item, or RabbitMQ of what was published."""

    ACK = "ack"
    THROTTLED = "throttled"
    """Never the message's fault: again in place, without limit, and slower."""
    COUNTED = "counted"
    """Again in place; each attempt counts."""
    BLOCKED = "blocked"
    """Its target takes nothing now, and may again: as configured."""
    MISSING = "missing"
    """Its target isn't there: as configured."""
    UNROUTABLE = "unroutable"
    """No queue takes it now, and one may later: as configured."""
    CONFLICT = "conflict"
    """Another version is stored: an ack where that may be our own doing, otherwise as configured."""
    FAILURE_STORE = "failure_store"
    """It is in the data stream's failure store, not in the data stream: as configured."""
    DEAD_LETTER = "dead_letter"


OUTCOMES = {
    Verdict.ACK: "noop",
    Verdict.FAILURE_STORE: "failure_store",
    Verdict.CONFLICT: "conflict",
    Verdict.THROTTLED: "too_many",
    Verdict.BLOCKED: "failed_client",
    Verdict.MISSING: "failed_client",
    Verdict.UNROUTABLE: "failed_client",
    Verdict.COUNTED: "failed_server",
    Verdict.DEAD_LETTER: "failed_client",
}
"""How the documents of a verdict are counted, but for those that were stored."""


class Course(enum.Enum):
    """What happens after a whole request failed, or was answered without results."""

    UNKNOWN = "unknown"
    """Whether it was applied is unknown: the same items again after a pause, nothing counts."""
    THROTTLED = "throttled"
    SPLIT_SIZE = "split_size"
    """Too large: in two, and the size is learned; one item alone is rejected."""
    SPLIT_FAULT = "split_fault"
    """One item spoils it: halved until the item is alone."""
    HOLD = "hold"
    """Nobody's message is at fault, the configuration or a right is: probe, and say why."""


class Rule(NamedTuple):
    """A row: what it fits (an empty set fits all) and what follows."""

    statuses: frozenset[int]
    error_types: frozenset[str]
    actions: frozenset[str]
    verdict: Verdict
    reason: str = ""
    why: str = ""


def _rule(statuses: str, error_types: str, actions: str, verdict: Verdict, reason: str = "", why: str = "") -> Rule:
    return Rule(
        frozenset(int(status) for status in statuses.split()),
        frozenset(error_types.split()),
        frozenset(actions.split()),
        verdict,
        reason,
        why,
    )


_ACK, _DEAD = Verdict.ACK, Verdict.DEAD_LETTER

NACK, NO_ROUTE, FRAME_ERROR = "basic.nack", "NO_ROUTE", "FRAME_ERROR"
"""What RabbitMQ says of a message that is published (``SIDECAR_SINK=amqp``), for Elasticsearch's error types."""

ITEM_RULES = (
    # statuses, error types, actions, verdict, reason of a dead letter, why
    _rule("200 201", "", "", _ACK, why="stored (created, updated, deleted, noop)"),
    _rule("404", "document_missing_exception", "", _DEAD, "rejected", "there is nothing to update"),
    _rule("404", "index_not_found_exception", "", Verdict.MISSING, "index-missing", "the target doesn't exist"),
    _rule("409", "", "update upsert", Verdict.COUNTED, why="somebody else wrote the document at the same time"),
    _rule("409", "", "", Verdict.CONFLICT, "conflict", "the document, or a later version of it, is stored already"),
    _rule("429 503", "", "", Verdict.THROTTLED, why="Elasticsearch has no room now; never the message's fault"),
    _rule("403", "cluster_block_exception security_exception", "", Verdict.BLOCKED, "index-blocked",
          "the target is write-blocked or forbidden"),
    _rule("400", "index_closed_exception", "", Verdict.BLOCKED, "index-blocked", "the target is closed"),
    _rule("400", "", "", _DEAD, "rejected", "the document or its action can't be stored, now or later"),
    _rule(" ".join(map(str, range(500, 600))), "", "", Verdict.COUNTED, why="a failure inside Elasticsearch"),
)  # fmt: skip
PUBLISH_RULES = (
    # the same of what RabbitMQ says of a message that is published; statuses are AMQP's, and a basic.nack has none
    _rule("0", NACK, "", Verdict.THROTTLED, why="its queue has no room now; never the message's fault"),
    _rule("312", NO_ROUTE, "", Verdict.UNROUTABLE, "unroutable", "no queue takes it"),
    _rule("501", FRAME_ERROR, "", _DEAD, "too-large", "its headers don't fit into a frame"),
)
_RULES = PUBLISH_RULES + ITEM_RULES
_NOT_FOUND = 404
_DELETE_OF_NOTHING = _rule("404", "", "delete", _ACK, why="there is nothing to delete")
_IN_FAILURE_STORE = _rule(
    "200 201", "", "", Verdict.FAILURE_STORE, "failure-store", "the failure store of the data stream took it"
)
_OTHERWISE = _rule("", "", "", _DEAD, "rejected", "an answer that the table doesn't know")


def judge(result: Result, action: str) -> Rule:
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


class Fate(enum.Enum):
    """What is done with a message, once rule, configuration and its own history are put together."""

    STORED = "stored"
    THROTTLED = "throttled"
    AGAIN = "again"
    """In place, after a backoff."""
    WAIT = "wait"
    """The same; and where nothing else is taken, everything waits."""
    DELAY = "delay"
    """Round by the delay queue."""
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What users decide; the meaning of each is that of the setting of its name."""

    on_conflict: Literal["ack", "dead-letter"] = "ack"
    on_index_missing: Literal["dead-letter", "delay", "hold"] = "dead-letter"
    on_index_blocked: Literal["dead-letter", "delay", "hold"] = "delay"
    on_unroutable: Literal["dead-letter", "delay", "hold"] = "hold"
    on_failure_store: Literal["ack", "dead-letter"] = "ack"
    on_delay_refused: Literal["wait", "dead-letter"] = "wait"


_CHOSEN = {"ack": Fate.STORED, "dead-letter": Fate.DEAD_LETTER, "delay": Fate.DELAY, "hold": Fate.WAIT}
_ALWAYS = {
    Verdict.ACK: Fate.STORED,
    Verdict.THROTTLED: Fate.THROTTLED,
    Verdict.DEAD_LETTER: Fate.DEAD_LETTER,
}


def decide(rule: Rule, choices: Choices, *, own_doing: bool, may_try: bool, may_go_round: bool) -> Fate:
    """Return what is done with a message.

    Args:
        rule: for its result.
        choices: the configuration.
        own_doing: a conflict may be with an earlier attempt of ours: one that went unanswered, or an earlier delivery.
        may_try: attempts in place are left.
        may_go_round: rounds by the delay queue are left, and order doesn't forbid them.
    """
    verdict = rule.verdict
    if verdict is Verdict.CONFLICT:
        return Fate.STORED if own_doing else _CHOSEN[choices.on_conflict]
    if verdict is Verdict.MISSING:
        return _CHOSEN[choices.on_index_missing]
    if verdict is Verdict.BLOCKED:
        return _CHOSEN[choices.on_index_blocked]
    if verdict is Verdict.UNROUTABLE:
        return _CHOSEN[choices.on_unroutable]
    if verdict is Verdict.FAILURE_STORE:
        return _CHOSEN[choices.on_failure_store]
    if verdict is Verdict.COUNTED:
        return Fate.AGAIN if may_try else Fate.DELAY if may_go_round else Fate.DEAD_LETTER
    return _ALWAYS[verdict]


def decide_undelayed(rule: Rule, choices: Choices, *, one_target: bool, has_room: Callable[[], bool]) -> Fate:
    """Return what is done with a message that should be delayed, if its delay queue refuses messages.

    Args:
        rule: for its result.
        choices: the configuration.
        one_target: all messages have the same target. Nothing else can be stored while that is blocked, so all wait.
        has_room: returns whether the message may wait in place.
    """
    if rule.verdict is Verdict.COUNTED or choices.on_delay_refused == "dead-letter":
        return Fate.DEAD_LETTER
    if one_target:
        return Fate.WAIT
    return Fate.AGAIN if has_room() else Fate.DEAD_LETTER


_REDIRECTS, _BAD_REQUEST, _TOO_LARGE, _TOO_MANY = 300, 400, 413, 429
_FAILED = 500
_CONFIGURATION_FAULTS = frozenset({"media_type_header_exception", "content_type_header_exception"})
_UNKNOWN_PARAMETER = "unrecognized parameter"


def judge_request(fault: Fault) -> Course:
    """Return what follows when a request was answered with something else than results."""
    status = fault.status
    if status == _TOO_MANY:
        return Course.THROTTLED
    # A success without results can't be read. A 500 may be one item's work (a date in an index name that Elasticsearch
    # can't reckon with): as an unknown outcome it holds while everything fails, and is narrowed down when probes pass.
    if status >= _FAILED or status < _REDIRECTS:
        return Course.UNKNOWN
    if status == _TOO_LARGE:
        return Course.SPLIT_SIZE
    if (
        status == _BAD_REQUEST
        and fault.error_type
        and fault.error_type not in _CONFIGURATION_FAULTS
        and _UNKNOWN_PARAMETER not in fault.reason
    ):
        return Course.SPLIT_FAULT
    return Course.HOLD
