"""The rows that are played on the real servers against the rules of `core.results.policy`: none is without a row."""

from __future__ import annotations

from sidecar.core.results.bulk import Result
from sidecar.core.results.policy import ITEM_RULES, RequestOutcome, classify_item
from tests.integration.test_table import ELSEWHERE, HERE, ROWS


def test_no_rule_is_without_a_row() -> None:
    """Each rule of the table decides at least one of the rows above."""
    decided = {classify_item(Result(row.status, row.error_type), row.op).why for row in ROWS.values()}
    assert {rule.why for rule in ITEM_RULES} <= decided


def test_no_named_type_is_without_a_row() -> None:
    """Each error type that a rule names is the answer of a row."""
    named = {(status, kind) for rule in ITEM_RULES for status in rule.statuses for kind in rule.error_types}
    assert named <= {(row.status, row.error_type) for row in ROWS.values()}


def test_no_course_is_without_a_test() -> None:
    """Each course of a whole request is taken above, or in the test that is named here."""
    assert ELSEWHERE.keys() | HERE == set(RequestOutcome)
