"""`sidecar.core.policy`: each row of the contract's tables of verdicts."""

from __future__ import annotations

import pytest

from sidecar.core.bulk import Fault, Result
from sidecar.core.policy import (
    FRAME_ERROR,
    ITEM_RULES,
    NACK,
    NO_ROUTE,
    PUBLISH_RULES,
    Choices,
    Course,
    Fate,
    Verdict,
    decide,
    decide_undelayed,
    judge,
    judge_request,
)

ACTIONS = ("index", "create", "update", "upsert", "delete")
WRITES = ("index", "create", "delete")

ITEMS = [
    # status, error type, actions, verdict, reason of a dead letter
    (200, "", ACTIONS, Verdict.ACK, ""),
    (201, "", ACTIONS, Verdict.ACK, ""),
    (404, "", ("delete",), Verdict.ACK, ""),
    (404, "document_missing_exception", ("update",), Verdict.DEAD_LETTER, "rejected"),
    (409, "version_conflict_engine_exception", WRITES, Verdict.CONFLICT, "conflict"),
    (409, "version_conflict_engine_exception", ("update", "upsert"), Verdict.COUNTED, ""),
    (429, "es_rejected_execution_exception", ACTIONS, Verdict.THROTTLED, ""),
    (429, "circuit_breaking_exception", ACTIONS, Verdict.THROTTLED, ""),
    (429, "cluster_block_exception", ACTIONS, Verdict.THROTTLED, ""),
    (429, "a_type_nobody_knows", ACTIONS, Verdict.THROTTLED, ""),
    (503, "unavailable_shards_exception", ACTIONS, Verdict.THROTTLED, ""),
    (503, "", ACTIONS, Verdict.THROTTLED, ""),
    (404, "index_not_found_exception", ACTIONS, Verdict.MISSING, "index-missing"),
    (400, "index_closed_exception", ACTIONS, Verdict.BLOCKED, "index-blocked"),
    (403, "cluster_block_exception", ACTIONS, Verdict.BLOCKED, "index-blocked"),
    (403, "security_exception", ACTIONS, Verdict.BLOCKED, "index-blocked"),
    (400, "document_parsing_exception", ACTIONS, Verdict.DEAD_LETTER, "rejected"),
    (400, "mapper_parsing_exception", ACTIONS, Verdict.DEAD_LETTER, "rejected"),
    (400, "strict_dynamic_mapping_exception", ACTIONS, Verdict.DEAD_LETTER, "rejected"),
    (400, "illegal_argument_exception", ACTIONS, Verdict.DEAD_LETTER, "rejected"),
    (400, "invalid_index_name_exception", ACTIONS, Verdict.DEAD_LETTER, "rejected"),
    (400, "", ACTIONS, Verdict.DEAD_LETTER, "rejected"),
    *((status, "some_exception", ACTIONS, Verdict.COUNTED, "") for status in range(500, 600) if status != 503),
]


@pytest.mark.parametrize(("status", "error_type", "actions", "verdict", "reason"), ITEMS)
def test_result_of_an_item(
    status: int, error_type: str, actions: tuple[str, ...], verdict: Verdict, reason: str
) -> None:
    """Each row of "result of an item"."""
    for action in actions:
        rule = judge(Result(status, error_type), action)
        assert (rule.verdict, rule.reason) == (verdict, reason)
        assert rule.why


@pytest.mark.parametrize(("choice", "fate"), [("ack", Fate.STORED), ("dead-letter", Fate.DEAD_LETTER)])
def test_what_a_failure_store_took_is_as_configured(choice: str, fate: Fate) -> None:
    """Elasticsearch says 201, but the data stream doesn't have it."""
    rule = judge(Result(201, failure_store=True), "create")
    assert (rule.verdict, rule.reason) == (Verdict.FAILURE_STORE, "failure-store")
    choices = Choices(on_failure_store=choice)  # type: ignore[arg-type] # one of them
    assert decide(rule, choices, own_doing=False, may_try=True, may_go_round=True) is fate


def test_a_failure_that_no_failure_store_took_is_judged_by_its_status() -> None:
    """It may be told with a failure all the same: the failure store is full, or there is none."""
    failed = Result(400, "document_parsing_exception", failure_store=True)
    assert judge(failed, "create").verdict is Verdict.DEAD_LETTER


@pytest.mark.parametrize("status", [100, 301, 402, 404, 405, 410, 418, 451, 0])
def test_a_result_that_nobody_knows_is_the_messages_end_but_not_its_loss(status: int) -> None:
    """It can't be retried for ever, nor counted as stored: a dead letter, where somebody sees it."""
    assert judge(Result(status, "unheard_of"), "index").verdict is Verdict.DEAD_LETTER


def test_only_a_success_or_a_deleted_nothing_is_acked() -> None:
    """No other status and type may end in an ack by the table."""
    for status in range(100, 600):
        for kind in ("", "document_missing_exception", "index_not_found_exception", "security_exception"):
            for action in ACTIONS:
                if judge(Result(status, kind), action).verdict is Verdict.ACK:
                    assert status in (200, 201) or (status, kind, action) == (404, "", "delete")


def test_a_delete_in_a_missing_index_is_not_a_deleted_nothing() -> None:
    """That one has an error."""
    assert judge(Result(404, "index_not_found_exception"), "delete").reason == "index-missing"


def test_what_is_dead_lettered_has_a_reason_of_the_contract() -> None:
    """The header ``sidecar-reason`` is an interface."""
    reasons = {rule.reason for rule in ITEM_RULES if rule.verdict is Verdict.DEAD_LETTER}
    assert reasons <= {"rejected", "index-missing"}


REQUESTS = [
    # status, error type, reason, course
    *((status, kind, "", Course.UNKNOWN) for status in (502, 503, 504) for kind in ("", "some_exception")),
    (200, "", "the answer is not one of Elasticsearch's", Course.UNKNOWN),
    (204, "", "", Course.UNKNOWN),
    (429, "", "", Course.THROTTLED),
    (429, "es_rejected_execution_exception", "full", Course.THROTTLED),
    (429, "circuit_breaking_exception", "", Course.THROTTLED),
    (413, "", "", Course.SPLIT_SIZE),
    (413, "content_too_long_exception", "", Course.SPLIT_SIZE),
    (400, "action_request_validation_exception", "id is too long", Course.SPLIT_FAULT),
    (400, "x_content_parse_exception", "[1:2] bad", Course.SPLIT_FAULT),
    (400, "x_content_e_o_f_exception", "", Course.SPLIT_FAULT),
    (400, "illegal_argument_exception", "Malformed action/metadata line [3]", Course.SPLIT_FAULT),
    (400, "media_type_header_exception", "Accept version must be either version 8 or 7", Course.HOLD),
    (400, "illegal_argument_exception", "request [/_bulk] contains unrecognized parameter: [x]", Course.HOLD),
    (400, "illegal_argument_exception", "request [/_bulk] contains unrecognized parameters: [x], [y]", Course.HOLD),
    (400, "", "the answer is not one of Elasticsearch's", Course.HOLD),
    (401, "security_exception", "missing authentication credentials", Course.HOLD),
    (403, "security_exception", "action is unauthorized", Course.HOLD),
    (404, "index_not_found_exception", "no such index", Course.HOLD),
    (404, "", "", Course.HOLD),
    (405, "", "Incorrect HTTP method", Course.HOLD),
    (300, "", "", Course.HOLD),
    (301, "", "", Course.HOLD),
    (406, "media_type_header_exception", "", Course.HOLD),
    (410, "", "", Course.HOLD),
    (500, "illegal_state_exception", "", Course.UNKNOWN),
]


@pytest.mark.parametrize(("status", "error_type", "reason", "course"), REQUESTS)
def test_result_of_the_whole_request(status: int, error_type: str, reason: str, course: Course) -> None:
    """Each row of "result of the whole request"."""
    assert judge_request(Fault(status, error_type, reason)) is course


def test_no_course_is_a_dead_letter() -> None:
    """A fault of ours, or an outage, that fails every request can't empty the queue into the dead letters."""
    assert {course.name for course in Course} == {"UNKNOWN", "THROTTLED", "SPLIT_SIZE", "SPLIT_FAULT", "HOLD"}


def fate(status: int, error_type: str = "", choices: Choices | None = None, **known: bool) -> Fate:
    """Return what is done with an ``index`` operation that met a result."""
    circumstances = {"own_doing": False, "may_try": True, "may_go_round": True, **known}
    return decide(judge(Result(status, error_type), "index"), choices or Choices(), **circumstances)


def test_what_the_configuration_has_no_say_in() -> None:
    """Success, lack of room, and what can never be stored."""
    assert fate(201) is Fate.STORED
    assert fate(429) is fate(503) is Fate.THROTTLED
    assert fate(400, "document_parsing_exception") is Fate.DEAD_LETTER


def test_a_conflict_with_ones_own_work_is_a_success_whatever_is_configured() -> None:
    """Otherwise users choose what it means."""
    strict = Choices(on_conflict="dead-letter")
    assert fate(409) is Fate.STORED
    assert fate(409, choices=strict) is Fate.DEAD_LETTER
    assert fate(409, choices=strict, own_doing=True) is Fate.STORED


@pytest.mark.parametrize(
    ("choice", "expected"), [("dead-letter", Fate.DEAD_LETTER), ("delay", Fate.DELAY), ("hold", Fate.WAIT)]
)
def test_users_choose_what_a_target_that_takes_nothing_means(choice: str, expected: Fate) -> None:
    """A missing one and a blocked one, each by its own setting; attempts and rounds have nothing to do with it."""
    missing = Choices(on_index_missing=choice)  # type: ignore[arg-type]
    blocked = Choices(on_index_blocked=choice)  # type: ignore[arg-type]
    for known in ({}, {"may_try": False, "may_go_round": False}):
        assert fate(404, "index_not_found_exception", missing, **known) is expected
        assert fate(403, "cluster_block_exception", blocked, **known) is expected
    assert fate(404, "index_not_found_exception", blocked) is Fate.DEAD_LETTER
    assert fate(403, "cluster_block_exception", missing) is Fate.DELAY


def test_a_failure_is_tried_again_in_place_then_round_then_never() -> None:
    """Other 5xx: counted attempts, counted rounds, the dead letters."""
    assert fate(500) is Fate.AGAIN
    assert fate(500, may_try=False) is Fate.DELAY
    assert fate(500, may_try=False, may_go_round=False) is Fate.DEAD_LETTER
    assert fate(500, may_go_round=False) is Fate.AGAIN


def test_what_is_published_has_rows_of_its_own() -> None:
    """Confirmed, refused, unroutable, or too large for a frame: none of them is taken for Elasticsearch's."""
    found = {result: judge(Result(*result), "publish") for result in [(200, ""), (0, NACK), (312, NO_ROUTE)]}
    assert [rule.verdict for rule in found.values()] == [Verdict.ACK, Verdict.THROTTLED, Verdict.UNROUTABLE]
    assert found[312, NO_ROUTE].reason == "unroutable"
    large = judge(Result(501, FRAME_ERROR), "publish")
    assert (large.verdict, large.reason) == (Verdict.DEAD_LETTER, "too-large")
    assert judge(Result(501, "not_implemented"), "index").verdict is Verdict.COUNTED
    assert judge(Result(312), "index").verdict is Verdict.DEAD_LETTER
    assert {rule.reason for rule in PUBLISH_RULES} == {"", "unroutable", "too-large"}


@pytest.mark.parametrize(
    ("choice", "expected"), [("hold", Fate.WAIT), ("delay", Fate.DELAY), ("dead-letter", Fate.DEAD_LETTER)]
)
def test_users_choose_what_it_means_that_no_queue_takes_a_message(choice: str, expected: Fate) -> None:
    """``SIDECAR_ON_UNROUTABLE``."""
    rule = judge(Result(312, NO_ROUTE), "publish")
    choices = Choices(on_unroutable=choice)  # type: ignore[arg-type]
    assert decide(rule, choices, own_doing=False, may_try=True, may_go_round=True) is expected


@pytest.mark.parametrize(
    ("status", "error_type", "on_refused", "one_target", "has_room", "expected"),
    [
        (400, "index_closed_exception", "wait", False, True, Fate.AGAIN),
        (400, "index_closed_exception", "wait", False, False, Fate.DEAD_LETTER),
        (400, "index_closed_exception", "wait", True, False, Fate.WAIT),
        (400, "index_closed_exception", "dead-letter", False, True, Fate.DEAD_LETTER),
        (400, "index_closed_exception", "dead-letter", True, True, Fate.DEAD_LETTER),
        (404, "index_not_found_exception", "wait", False, True, Fate.AGAIN),
        (500, "internal_server_error", "wait", False, True, Fate.DEAD_LETTER),
    ],
)
def test_what_cannot_be_delayed_waits_in_place_or_is_dead_lettered(
    status: int, error_type: str, on_refused: str, one_target: bool, has_room: bool, expected: Fate
) -> None:
    """What used up its attempts never waits; what waits for its target does, as long as others have room."""
    rule = judge(Result(status, error_type), "index")
    choices = Choices(on_delay_refused=on_refused)  # type: ignore[arg-type]
    assert decide_undelayed(rule, choices, one_target=one_target, has_room=lambda: has_room) is expected
