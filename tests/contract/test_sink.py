"""What the pipeline relies on in a sink, held against the simulated and the real Elasticsearch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sidecar.core.results import bulk
from sidecar.errors import SinkError
from tests.fakes.elasticsearch import TARGET_FAILURES

if TYPE_CHECKING:
    from sidecar.core.results.bulk import Result
    from tests.contract.backends import SinkSide


def line(action: str, source: bytes | None = b'{"n":1}', **parameters: object) -> bytes:
    """Return an action line and its source."""
    head = json.dumps({action: parameters}, separators=(",", ":")).encode() + b"\n"
    return head + source + b"\n" if source is not None else head


async def ask(sink: SinkSide, *lines: bytes) -> list[Result]:
    """Send lines and return the results, as the pipeline reads them."""
    answer = await sink.bulk(b"".join(lines))
    assert answer.status == 200, answer
    results = bulk.results(answer.body, len(lines))
    assert results is not None, answer
    return results


GOOD = line("index", _id="good")

ITEM_FAULTS = {
    "malformed JSON": (line("index", b'{"n":1', _id="x"), 400, "document_parsing_exception"),
    "not JSON": (line("index", b"hello", _id="x"), 400, "document_parsing_exception"),
    "array": (line("index", b"[1]", _id="x"), 400, "document_parsing_exception"),
    "number": (line("index", b"17", _id="x"), 400, "document_parsing_exception"),
    "invalid UTF-8": (line("index", b'{"a":"\xff"}', _id="x"), 400, "document_parsing_exception"),
    "trailing garbage": (line("index", b'{"n":1}}', _id="x"), 400, "document_parsing_exception"),
    "duplicate key": (line("index", b'{"n":1,"n":2}', _id="x"), 400, "document_parsing_exception"),
    "empty source": (line("index", b"", _id="x"), 400, "document_parsing_exception"),
    "two documents": (line("index", b'{"n":1}{"n":2}', _id="x"), 400, "illegal_argument_exception"),
    "mapping conflict": (line("index", b'{"n":"no"}', _id="x"), 400, "document_parsing_exception"),
    "mapping conflict, own id": (line("index", b'{"n":"no"}'), 400, "document_parsing_exception"),
    "empty id": (line("index", _id=""), 400, "illegal_argument_exception"),
    "bad index name": (line("index", _index="Upper*", _id="x"), 400, "invalid_index_name_exception"),
    "update of nothing": (line("update", b'{"doc":{"n":1}}', _id="none"), 404, "document_missing_exception"),
    "create of what exists": (line("create", _id="there"), 409, "version_conflict_engine_exception"),
    "old version": (
        line("index", _id="versioned", version=7, version_type="external"), 409, "version_conflict_engine_exception",
    ),
    "same version": (
        line("index", _id="versioned", version=8, version_type="external"), 409, "version_conflict_engine_exception",
    ),
    "delete of nothing": (line("delete", None, _id="none"), 404, ""),
}  # fmt: skip

REQUEST_FAULTS = {
    "line break in a source": (line("index", b'{"n":\n1}', _id="x"), None),
    "id over 512 bytes": (line("index", _id="x" * 513), "action_request_validation_exception"),
    "version without id": (line("index", version=1, version_type="external"), "action_request_validation_exception"),
    "negative version": (
        line("index", _id="x", version=-1, version_type="external"), "action_request_validation_exception",
    ),
    "external version on create": (
        line("create", _id="x", version=1, version_type="external"), "action_request_validation_exception",
    ),
    "unknown field of an update": (line("update", b'{"dok":{}}', _id="x"), "x_content_parse_exception"),
    "unknown action": (line("upsert", _id="x"), "illegal_argument_exception"),
    "unknown parameter": (line("index", _id="x", _parent="y"), "illegal_argument_exception"),
    "no last line break": (line("index", _id="x")[:-1], "illegal_argument_exception"),
}  # fmt: skip


def test_the_answer_to_stored_items_is_what_is_counted(sink: SinkSide) -> None:
    """To the byte, for the pipeline tells success without parsing it."""

    async def scenario() -> None:
        answer = await sink.bulk(line("index", _id="a") + line("create", _id="b") + line("index"))
        assert answer.body == (
            b'{"errors":false,"items":[{"index":{"status":201}},{"create":{"status":201}},{"index":{"status":201}}]}'
        )
        assert answer.status == 200
        assert answer.retry_after_seconds == 0.0
        assert bulk.all_stored(answer.body, 3)
        assert not bulk.all_stored(answer.body, 2)
        assert bulk.results(answer.body, 2) is None
        assert bulk.results(answer.body, 4) is None

    sink.play(scenario)


def test_statuses_tell_created_from_written_again(sink: SinkSide) -> None:
    """201 and 200; a document of its own id is always new."""

    async def scenario() -> None:
        first = await ask(sink, line("index", _id="a"), line("index"))
        second = await ask(sink, line("index", _id="a"), line("index"), line("delete", None, _id="a"))
        assert [result.status for result in first + second] == [201, 201, 200, 201, 200]
        assert sink.document("a") is None

    sink.play(scenario)


@pytest.mark.parametrize("name", list(ITEM_FAULTS))
def test_a_fault_of_one_item_is_that_items_result(sink: SinkSide, name: str) -> None:
    """Status and type are those of the verdict table; the neighbours are stored; results come in order."""
    item, status, error_type = ITEM_FAULTS[name]

    async def scenario() -> None:
        await ask(sink, line("index", _id="there"), line("index", _id="versioned", version=8, version_type="external"))
        answer = await sink.bulk(GOOD + item + line("index", _id="behind"))
        assert not bulk.all_stored(answer.body, 3)  # to delete nothing is no error, but nothing was stored either
        results = bulk.results(answer.body, 3)
        assert results is not None, answer
        before, result, behind = results
        assert (before.status, behind.status) == (201, 201)
        assert (result.status, result.error_type) == (status, error_type), result
        assert bool(result.reason) == bool(error_type)
        assert sink.document("good") == sink.document("behind") == {"n": 1}

    sink.play(scenario)


@pytest.mark.parametrize("name", list(REQUEST_FAULTS))
def test_a_fault_that_spoils_the_request_is_a_400_with_a_type(sink: SinkSide, name: str) -> None:
    """No results at all, and the type says whose fault it may be."""
    item, error_type = REQUEST_FAULTS[name]

    async def scenario() -> None:
        answer = await sink.bulk(GOOD + item)
        assert answer.status == 400, answer
        fault = bulk.fault(answer.status, answer.body)
        assert fault.error_type
        assert fault.reason
        if error_type is not None:
            assert fault.error_type == error_type, fault

    sink.play(scenario)


def test_operations_on_one_document_in_one_request_are_applied_in_order(sink: SinkSide) -> None:
    """The last one wins where there is room for all."""

    async def scenario() -> None:
        results = await ask(
            sink,
            line("index", b'{"n":1}', _id="a"),
            line("index", b'{"n":2}', _id="a"),
            line("delete", None, _id="a"),
            line("create", b'{"n":3}', _id="a"),
        )
        assert [result.status for result in results] == [201, 200, 200, 201]
        assert sink.document("a") == {"n": 3}

    sink.play(scenario)


def test_external_versions_order_what_comes_late(sink: SinkSide) -> None:
    """A higher one is stored, an equal one only with ``external_gte``."""

    async def scenario() -> None:
        results = await ask(
            sink,
            line("index", b'{"n":5}', _id="a", version=5, version_type="external"),
            line("index", b'{"n":4}', _id="a", version=4, version_type="external"),
            line("index", b'{"n":6}', _id="a", version=5, version_type="external_gte"),
            line("delete", None, _id="a", version=9, version_type="external"),
            line("index", b'{"n":8}', _id="a", version=8, version_type="external"),
        )
        assert [result.status for result in results] == [201, 409, 200, 200, 409]
        assert sink.document("a") is None

    sink.play(scenario)


def test_a_delete_of_nothing_leaves_its_version_behind(sink: SinkSide) -> None:
    """What is older and comes later is not stored again."""

    async def scenario() -> None:
        results = await ask(
            sink,
            line("delete", None, _id="a", version=9, version_type="external"),
            line("index", b'{"n":8}', _id="a", version=8, version_type="external"),
            line("index", b'{"n":10}', _id="a", version=10, version_type="external"),
        )
        assert [(result.status, bool(result.error_type)) for result in results] == [
            (404, False), (409, True), (201, False),
        ]  # fmt: skip

    sink.play(scenario)


@pytest.mark.parametrize("why", list(TARGET_FAILURES))
def test_an_index_that_takes_nothing_is_told_item_by_item(sink: SinkSide, why: str) -> None:
    """Blocked, closed or missing: status and type of the verdict table, and the neighbours are stored."""

    async def scenario() -> None:
        index = sink.refusing(why)
        # A delete is what doesn't make a missing index.
        before, refused, behind = await ask(
            sink, GOOD, line("delete", None, _index=index, _id="x"), line("index", _id="behind")
        )
        assert (before.status, behind.status) == (201, 201)
        assert (refused.status, refused.error_type) == TARGET_FAILURES[why][:2], refused
        assert refused.reason

    sink.play(scenario)


@pytest.mark.parametrize("absent", [False, True])
def test_a_look_tells_whether_anybody_is_there(sink: SinkSide, absent: bool) -> None:
    """None, or what is wrong."""

    async def scenario() -> None:
        assert bool(await sink.unavailable(absent=absent)) is absent

    sink.play(scenario)


def test_updates_merge_and_upsert(sink: SinkSide) -> None:
    """A part of a document; a whole one where there is none; nothing where nothing changes."""

    async def scenario() -> None:
        results = await ask(
            sink,
            line("update", b'{"doc":{"n":1},"doc_as_upsert":true}', _id="a"),
            line("update", b'{"doc":{"m":2}}', _id="a"),
            line("update", b'{"doc":{"m":2}}', _id="a"),
        )
        assert [result.status for result in results] == [201, 200, 200]
        assert sink.document("a") == {"n": 1, "m": 2}

    sink.play(scenario)


def test_a_body_that_is_too_large_is_a_413(sink: SinkSide) -> None:
    """An answer, not a broken connection: it tells that the request must be split."""

    async def scenario() -> None:
        most = sink.max_content_bytes()
        filler = b"x" * 10_000
        item = line("index", b'{"x":"%s"}' % filler)
        answer = await sink.bulk(item * (most // len(item) + 2))
        assert answer.status == 413, answer

    sink.play(scenario)


def test_where_nobody_listens_there_is_no_answer(sink: SinkSide) -> None:
    """`SinkError`: the outcome is unknown."""

    async def scenario() -> None:
        with pytest.raises(SinkError):
            await sink.absent(GOOD)

    sink.play(scenario)
