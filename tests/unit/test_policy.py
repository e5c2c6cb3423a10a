"""`sidecar.core.results.policy`: each row of the contract's tables of verdicts."""

from __future__ import annotations

import pytest

from sidecar.core.results.bulk import Fault, Result
from sidecar.core.results.policy import (
    FRAME_ERROR,
    ITEM_RULES,
    NACK,
    NO_ROUTE,
    PUBLISH_RULES,
    Disposition,
    ErrorPolicy,
    RequestOutcome,
    ResultClass,
    classify_item,
    classify_request,
    decide,
    decide_undelayed,
)

ACTIONS = ("index", "create", "update", "upsert", "delete")
WRITES = ("index", "create", "delete")

ITEMS = [
    # status, error type, actions, verdict, reason of a dead letter
    (200, "", ACTIONS, ResultClass.ACK, ""),
    (201, "", ACTIONS, ResultClass.ACK, ""),
    (404, "", ("delete",), ResultClass.ACK, ""),
    (404, "document_missing_exception", ("update",), ResultClass.DEAD_LETTER, "rejected"),
    (409, "version_conflict_engine_exception", WRITES, ResultClass.CONFLICT, "conflict"),
    (409, "version_conflict_engine_exception", ("update", "upsert"), ResultClass.RETRYABLE, ""),
    (429, "es_rejected_execution_exception", ACTIONS, ResultClass.THROTTLED, ""),
    (429, "circuit_breaking_exception", ACTIONS, ResultClass.THROTTLED, ""),
    (429, "cluster_block_exception", ACTIONS, ResultClass.THROTTLED, ""),
    (429, "a_type_nobody_knows", ACTIONS, ResultClass.THROTTLED, ""),
    (503, "unavailable_shards_exception", ACTIONS, ResultClass.THROTTLED, ""),
    (503, "", ACTIONS, ResultClass.THROTTLED, ""),
    (404, "index_not_found_exception", ACTIONS, ResultClass.TARGET_MISSING, "index-missing"),
    (400, "index_closed_exception", ACTIONS, ResultClass.TARGET_BLOCKED, "index-blocked"),
    (403, "cluster_block_exception", ACTIONS, ResultClass.TARGET_BLOCKED, "index-blocked"),
    (403, "security_exception", ACTIONS, ResultClass.TARGET_BLOCKED, "index-blocked"),
    (400, "document_parsing_exception", ACTIONS, ResultClass.DEAD_LETTER, "rejected"),
    (400, "mapper_parsing_exception", ACTIONS, ResultClass.DEAD_LETTER, "rejected"),
    (400, "strict_dynamic_mapping_exception", ACTIONS, ResultClass.DEAD_LETTER, "rejected"),
    (400, "illegal_argument_exception", ACTIONS, ResultClass.DEAD_LETTER, "rejected"),
    (400, "invalid_index_name_exception", ACTIONS, ResultClass.DEAD_LETTER, "rejected"),
    (400, "", ACTIONS, ResultClass.DEAD_LETTER, "rejected"),
    *((status, "some_exception", ACTIONS, ResultClass.RETRYABLE, "") for status in range(500, 600) if status != 503),
]


@pytest.mark.parametrize(("status", "error_type", "actions", "verdict", "reason"), ITEMS)
def test_result_of_an_item(
    status: int, error_type: str, actions: tuple[str, ...], verdict: ResultClass, reason: str
) -> None:
    """Each row of "result of an item"."""
    for action in actions:
        rule = classify_item(Result(status, error_type), action)
        assert (rule.result_class, rule.reason) == (verdict, reason)
        assert rule.why


@pytest.mark.parametrize(("choice", "fate"), [("ack", Disposition.STORED), ("dead-letter", Disposition.DEAD_LETTER)])
def test_what_a_failure_store_took_is_as_configured(choice: str, fate: Disposition) -> None:
    """Elasticsearch says 201, but the data stream doesn't have it."""
    rule = classify_item(Result(201, failure_store=True), "create")
    assert (rule.result_class, rule.reason) == (ResultClass.FAILURE_STORE, "failure-store")
    error_policy = ErrorPolicy(on_failure_store=choice)  # type: ignore[arg-type] # one of them
    assert decide(rule, error_policy, may_be_own_write=False, may_retry=True, may_delay=True) is fate


def test_a_failure_that_no_failure_store_took_is_judged_by_its_status() -> None:
    """It may be told with a failure all the same: the failure store is full, or there is none."""
    failed = Result(400, "document_parsing_exception", failure_store=True)
    assert classify_item(failed, "create").result_class is ResultClass.DEAD_LETTER


@pytest.mark.parametrize("status", [100, 301, 402, 404, 405, 410, 418, 451, 0])
def test_a_result_that_nobody_knows_is_the_messages_end_but_not_its_loss(status: int) -> None:
    """It can't be retried for ever, nor counted as stored: a dead letter, where somebody sees it."""
    assert classify_item(Result(status, "unheard_of"), "index").result_class is ResultClass.DEAD_LETTER


def test_only_a_success_or_a_deleted_nothing_is_acked() -> None:
    """No other status and type may end in an ack by the table."""
    for status in range(100, 600):
        for kind in ("", "document_missing_exception", "index_not_found_exception", "security_exception"):
            for action in ACTIONS:
                if classify_item(Result(status, kind), action).result_class is ResultClass.ACK:
                    assert status in (200, 201) or (status, kind, action) == (404, "", "delete")


def test_a_delete_in_a_missing_index_is_not_a_deleted_nothing() -> None:
    """That one has an error."""
    assert classify_item(Result(404, "index_not_found_exception"), "delete").reason == "index-missing"


def test_what_is_dead_lettered_has_a_reason_of_the_contract() -> None:
    """The header ``sidecar-reason`` is an interface."""
    reasons = {rule.reason for rule in ITEM_RULES if rule.result_class is ResultClass.DEAD_LETTER}
    assert reasons <= {"rejected", "index-missing"}


REQUESTS = [
    # status, error type, reason, course
    *(
        (status, kind, "", RequestOutcome.OUTCOME_UNKNOWN)
        for status in (502, 503, 504)
        for kind in ("", "some_exception")
    ),
    (200, "", "the answer is not one of Elasticsearch's", RequestOutcome.OUTCOME_UNKNOWN),
    (204, "", "", RequestOutcome.OUTCOME_UNKNOWN),
    (429, "", "", RequestOutcome.THROTTLED),
    (429, "es_rejected_execution_exception", "full", RequestOutcome.THROTTLED),
    (429, "circuit_breaking_exception", "", RequestOutcome.THROTTLED),
    (413, "", "", RequestOutcome.SPLIT_SIZE),
    (413, "content_too_long_exception", "", RequestOutcome.SPLIT_SIZE),
    (400, "action_request_validation_exception", "id is too long", RequestOutcome.BISECT),
    (400, "x_content_parse_exception", "[1:2] bad", RequestOutcome.BISECT),
    (400, "x_content_e_o_f_exception", "", RequestOutcome.BISECT),
    (400, "illegal_argument_exception", "Malformed action/metadata line [3]", RequestOutcome.BISECT),
    (400, "media_type_header_exception", "Accept version must be either version 8 or 7", RequestOutcome.HOLD),
    (400, "illegal_argument_exception", "request [/_bulk] contains unrecognized parameter: [x]", RequestOutcome.HOLD),
    (
        400,
        "illegal_argument_exception",
        "request [/_bulk] contains unrecognized parameters: [x], [y]",
        RequestOutcome.HOLD,
    ),
    (400, "", "the answer is not one of Elasticsearch's", RequestOutcome.HOLD),
    (401, "security_exception", "missing authentication credentials", RequestOutcome.HOLD),
    (403, "security_exception", "action is unauthorized", RequestOutcome.HOLD),
    (404, "index_not_found_exception", "no such index", RequestOutcome.HOLD),
    (404, "", "", RequestOutcome.HOLD),
    (405, "", "Incorrect HTTP method", RequestOutcome.HOLD),
    (300, "", "", RequestOutcome.HOLD),
    (301, "", "", RequestOutcome.HOLD),
    (406, "media_type_header_exception", "", RequestOutcome.HOLD),
    (410, "", "", RequestOutcome.HOLD),
    (500, "illegal_state_exception", "", RequestOutcome.OUTCOME_UNKNOWN),
]


@pytest.mark.parametrize(("status", "error_type", "reason", "course"), REQUESTS)
def test_result_of_the_whole_request(status: int, error_type: str, reason: str, course: RequestOutcome) -> None:
    """Each row of "result of the whole request"."""
    assert classify_request(Fault(status, error_type, reason)) is course


def test_no_course_is_a_dead_letter() -> None:
    """A fault of ours, or an outage, that fails every request can't empty the queue into the dead letters."""
    assert {outcome.value for outcome in RequestOutcome} == {
        "unknown",
        "throttled",
        "split_size",
        "split_fault",
        "hold",
    }


def fate(status: int, error_type: str = "", error_policy: ErrorPolicy | None = None, **known: bool) -> Disposition:
    """Return what is done with an ``index`` operation that met a result."""
    circumstances = {"may_be_own_write": False, "may_retry": True, "may_delay": True, **known}
    return decide(classify_item(Result(status, error_type), "index"), error_policy or ErrorPolicy(), **circumstances)


def test_what_the_configuration_has_no_say_in() -> None:
    """Success, lack of room, and what can never be stored."""
    assert fate(201) is Disposition.STORED
    assert fate(429) is fate(503) is Disposition.THROTTLED
    assert fate(400, "document_parsing_exception") is Disposition.DEAD_LETTER


def test_a_conflict_with_ones_own_work_is_a_success_whatever_is_configured() -> None:
    """Otherwise users choose what it means."""
    strict = ErrorPolicy(on_conflict="dead-letter")
    assert fate(409) is Disposition.STORED
    assert fate(409, error_policy=strict) is Disposition.DEAD_LETTER
    assert fate(409, error_policy=strict, may_be_own_write=True) is Disposition.STORED


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("dead-letter", Disposition.DEAD_LETTER),
        ("delay", Disposition.DELAY),
        ("hold", Disposition.RETRY_UNTIL_ROUTABLE),
    ],
)
def test_users_choose_what_a_target_that_takes_nothing_means(choice: str, expected: Disposition) -> None:
    """A missing one and a blocked one, each by its own setting; attempts and rounds have nothing to do with it."""
    missing = ErrorPolicy(on_index_missing=choice)  # type: ignore[arg-type]
    blocked = ErrorPolicy(on_index_blocked=choice)  # type: ignore[arg-type]
    for known in ({}, {"may_retry": False, "may_delay": False}):
        assert fate(404, "index_not_found_exception", missing, **known) is expected
        assert fate(403, "cluster_block_exception", blocked, **known) is expected
    assert fate(404, "index_not_found_exception", blocked) is Disposition.DEAD_LETTER
    assert fate(403, "cluster_block_exception", missing) is Disposition.DELAY


def test_a_failure_is_tried_again_in_place_then_round_then_never() -> None:
    """Other 5xx: counted attempts, counted rounds, the dead letters."""
    assert fate(500) is Disposition.RETRY
    assert fate(500, may_retry=False) is Disposition.DELAY
    assert fate(500, may_retry=False, may_delay=False) is Disposition.DEAD_LETTER
    assert fate(500, may_delay=False) is Disposition.RETRY


def test_what_is_published_has_rows_of_its_own() -> None:
    """Confirmed, refused, unroutable, or too large for a frame: none of them is taken for Elasticsearch's."""
    found = {result: classify_item(Result(*result), "publish") for result in [(200, ""), (0, NACK), (312, NO_ROUTE)]}
    assert [rule.result_class for rule in found.values()] == [
        ResultClass.ACK,
        ResultClass.THROTTLED,
        ResultClass.UNROUTABLE,
    ]
    assert found[312, NO_ROUTE].reason == "unroutable"
    large = classify_item(Result(501, FRAME_ERROR), "publish")
    assert (large.result_class, large.reason) == (ResultClass.DEAD_LETTER, "too-large")
    assert classify_item(Result(501, "not_implemented"), "index").result_class is ResultClass.RETRYABLE
    assert classify_item(Result(312), "index").result_class is ResultClass.DEAD_LETTER
    assert {rule.reason for rule in PUBLISH_RULES} == {"", "unroutable", "too-large"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("hold", Disposition.RETRY_UNTIL_ROUTABLE),
        ("delay", Disposition.DELAY),
        ("dead-letter", Disposition.DEAD_LETTER),
    ],
)
def test_users_choose_what_it_means_that_no_queue_takes_a_message(choice: str, expected: Disposition) -> None:
    """``SIDECAR_ON_UNROUTABLE``."""
    rule = classify_item(Result(312, NO_ROUTE), "publish")
    error_policy = ErrorPolicy(on_unroutable=choice)  # type: ignore[arg-type]
    assert decide(rule, error_policy, may_be_own_write=False, may_retry=True, may_delay=True) is expected


@pytest.mark.parametrize(
    ("status", "error_type", "on_refused", "one_target", "has_room", "expected"),
    [
        (400, "index_closed_exception", "wait", False, True, Disposition.RETRY),
        (400, "index_closed_exception", "wait", False, False, Disposition.DEAD_LETTER),
        (400, "index_closed_exception", "wait", True, False, Disposition.RETRY_UNTIL_ROUTABLE),
        (400, "index_closed_exception", "dead-letter", False, True, Disposition.DEAD_LETTER),
        (400, "index_closed_exception", "dead-letter", True, True, Disposition.DEAD_LETTER),
        (404, "index_not_found_exception", "wait", False, True, Disposition.RETRY),
        (500, "internal_server_error", "wait", False, True, Disposition.DEAD_LETTER),
    ],
)
def test_what_cannot_be_delayed_waits_in_place_or_is_dead_lettered(
    status: int, error_type: str, on_refused: str, one_target: bool, has_room: bool, expected: Disposition
) -> None:
    """What used up its attempts never waits; what waits for its target does, as long as others have room."""
    rule = classify_item(Result(status, error_type), "index")
    error_policy = ErrorPolicy(on_delay_refused=on_refused)  # type: ignore[arg-type]
    assert decide_undelayed(rule, error_policy, one_target=one_target, has_room=lambda: has_room) is expected
