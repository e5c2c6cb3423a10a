"""A message becomes a dead letter and is replayed, against a model that is written from the contract.

The model reads and writes properties by `tests.servers.wire`, not by the product. It knows three rules: what the
publisher said comes back byte for byte; what would keep a copy from its queue stays in ``sidecar-original-*``; what
remembers the first delivery stays, and the count of replays goes up.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.dead_letters.dead_letter import (
    DeadLetter,
    DeadLetterFilter,
    DeadLetterSummary,
    read,
    refreshed_properties,
    replay_obstacle,
    replay_properties,
)
from sidecar.core.wire.properties import fields, headers, join_with_headers, split
from sidecar.core.wire.republish import Failure as Rejected
from sidecar.core.wire.republish import dead_letter_headers, republish_properties
from tests.builders import examples, ledger, long_string, message, properties, short_string
from tests.drawing import drew
from tests.servers.wire import decode_properties, table_entries

ROOM = 1 << 20
MEMORY = ("copy", "retry-count", "exchange", "routing-key", "received-at", "id", "replays")
AWKWARD = (b"CC", b"BCC", b"x-death", b"x-first-death-queue", b"x-delivery-count")
NAMES = st.sampled_from([b"k", b"traceparent", b"x-other", *AWKWARD])
VALUES = st.one_of(
    st.binary(max_size=9).map(long_string), st.just(b"V"), st.integers(0, 255).map(lambda one: b"b" + bytes([one]))
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5)
USERS = st.sampled_from(["guest", "shop", None])


class Original(NamedTuple):
    """A message as its publisher sent it."""

    fields: list[tuple[bytes, bytes]]
    values: dict[str, bytes | int]
    queue: str
    exchange: bytes
    routing_key: bytes
    body: bytes


@st.composite
def originals(draw: st.DrawFn) -> Original:
    """Return messages with any properties."""
    texts = st.binary(max_size=8)
    values: dict[str, bytes | int] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "message_id": texts,
                "type": texts,
                "reply_to": texts,
                "priority": st.integers(0, 9),
                "delivery_mode": st.sampled_from([1, 2]),
                "timestamp": st.integers(0, 1 << 40),
                "expiration": st.integers(0, 10**9).map(lambda one: b"%d" % one),
                "user_id": st.sampled_from([b"guest", b"shop"]),
            },
        )
    )
    names = st.sampled_from([b"", b"events", b"\xff\xfe", b"x" * 60])
    return Original(
        draw(FIELDS), values, draw(st.sampled_from(["work", "ö", "q" * 100])), draw(names), draw(names), b"{}"
    )


def buried(original: Original, document_id: bytes = b"o-7") -> tuple[bytes, bytes]:
    """Return properties and body of the dead letter that the sidecar makes of a message."""
    one = message(
        1,
        original.body,
        of=ledger(original.queue),
        raw=properties(original.fields, **original.values),
        route=short_string(original.exchange) + short_string(original.routing_key),
    )
    rejected = Rejected(one, "rejected", "why", 400, "mapper_parsing_exception")
    added = dead_letter_headers(
        rejected, token=b"9", action="index", index="logs", document_id=document_id, failed_at=1_700_000_000.5
    )
    return republish_properties(one.properties, added, ROOM), original.body


def headers_of(raw: bytes) -> list[tuple[str, object]]:
    """Return all headers in order, as the tests' own reader has them."""
    return list(table_entries(decode_properties(raw).header_bytes))


def as_read(data: bytes) -> str | bytes:
    """Return a text as the tests' reader has it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


@pytest.mark.draws("a header that would lead astray", "own user", "another's user", "replayed again")
@settings(max_examples=examples(60))
@given(original=originals(), user=USERS, rounds=st.integers(1, 3))
def test_a_replayed_message_is_the_original(original: Original, user: str | None, rounds: int) -> None:
    """However often it is rejected and replayed; nothing of the sidecar's piles up in it."""
    current = original
    for times in range(1, rounds + 1):
        raw, body = buried(current)
        letter = message(times, body, raw=raw)
        told = read(letter, times)
        assert (told.queue, told.replays, told.position) == (original.queue, times - 1, times)
        again = replay_properties(letter, told, token=b"t", user=user)
        _compare(original, again, user, times)
        if any(name in AWKWARD for name, _ in original.fields):
            drew("a header that would lead astray")
        if "user_id" in original.values:
            drew("own user" if original.values["user_id"] == (user or "").encode() else "another's user")
        if times > 1:
            drew("replayed again")
        current = original._replace(exchange=b"", routing_key=original.queue.encode())
        current = _with(current, again)


def _with(original: Original, raw: bytes) -> Original:
    """Return a message with the properties of its replay, as the broker delivers it to its queue again."""
    found = decode_properties(raw)
    values = {name: value for name, value in original.values.items() if name in found.values}
    return original._replace(fields=list(fields(headers(raw))), values=values)


def _compare(original: Original, raw: bytes, user: str | None, times: int) -> None:
    """Compare a replayed message with what the model expects of it."""
    sent = decode_properties(properties(original.fields, **original.values))
    found = decode_properties(raw)
    is_ours = user is not None and original.values.get("user_id") == user.encode()
    expected = {name: value for name, value in sent.values.items() if name != "headers"}
    foreign = None if is_ours else expected.pop("user_id", None)
    got = {name: value for name, value in found.values.items() if name != "headers"}
    if "delivery_mode" not in original.values:
        expected.pop("delivery_mode", None)
        got.pop("delivery_mode", None)
    assert got == expected
    awkward = {name.decode() for name in AWKWARD}
    publishers = [
        (f"sidecar-original-{name}" if name in awkward else name, value)
        for name, value in table_entries(sent.header_bytes)
    ]
    listed = headers_of(raw)
    own = [
        (name, value)
        for name, value in listed
        if not name.startswith("sidecar-") or name.startswith("sidecar-original-")
    ]
    if foreign is not None:
        assert ("sidecar-original-user_id", foreign) in own
        own.remove(("sidecar-original-user_id", foreign))
    own = [one for one in own if one[0] != "sidecar-original-delivery_mode"]
    # RabbitMQ's own count of deliveries is not the publisher's.
    assert sorted(map(repr, own)) == sorted(repr(one) for one in publishers)
    memory = dict(listed[-7:])
    assert memory == {
        "sidecar-copy": "t",
        "sidecar-retry-count": 0,
        "sidecar-exchange": as_read(original.exchange),
        "sidecar-routing-key": as_read(original.routing_key),
        "sidecar-received-at": "2023-11-14T22:13:20.500Z",
        "sidecar-id": "o-7",
        "sidecar-replays": times,
    }


@pytest.mark.draws("counted", "repeated headers")
@settings(max_examples=examples(40))
@given(original=originals(), count=st.integers(0, 30), token=st.binary(min_size=1, max_size=5))
def test_a_renewed_letter_is_read_as_before(original: Original, count: int, token: bytes) -> None:
    """Nothing but the token and RabbitMQ's count of deliveries is another."""
    raw, body = buried(original)
    counted = [(b"x-delivery-count", b"I" + count.to_bytes(4, "big"))]
    before = message(1, body, raw=raw)
    if count:
        drew("counted")
    if len({name for name, _ in original.fields}) < len(original.fields):
        drew("repeated headers")
    values = split(raw)
    own = fields(values.pop("headers")[4:])
    worn = message(1, body, raw=join_with_headers(values, [*own, *counted]))
    assert read(worn, 1).deliveries == count
    again = message(1, body, raw=refreshed_properties(worn, token=token, limit_bytes=ROOM))
    assert read(again, 1) == read(before, 1)
    changed = [
        (old, new)
        for old, new in zip(fields(headers(raw)), fields(headers(again.properties)), strict=True)
        if old != new
    ]
    assert [(old[0], new[1]) for old, new in changed] in ([], [(b"sidecar-copy", long_string(token))])


KEYS, WORDS = st.sampled_from(["a", "b"]), st.sampled_from(["a", "ab", "abc", "b", ""])


@pytest.mark.draws("some fit", "none fits", "a group of several", "two patterns of a kind")
@settings(max_examples=examples(60))
@given(
    told=st.lists(st.tuples(KEYS, KEYS, KEYS, WORDS, WORDS, st.sampled_from(["", "1", "2"])), min_size=4, max_size=20),
    filters=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a*", "ab", "b", "?b"])), max_size=3),
)
def test_groups_count_what_a_choice_takes(told: list[tuple[str, ...]], filters: list[tuple[int, str]]) -> None:
    """Filters of one kind are alternatives, those of several kinds must all fit. Groups add up."""
    base = read(message(raw=properties()), 1)
    letters = [
        base._replace(
            position=at, reason=one[0], error_type=one[1], index_name=one[2], message_id=one[3], document_id=one[4],
            failed_at=one[5],
        )
        for at, one in enumerate(told, 1)
    ]  # fmt: skip
    kinds: list[list[str]] = [[pattern for kind, pattern in filters if kind == wanted] for wanted in range(4)]
    reasons, error_types, indices, ids = map(tuple, kinds)
    choice = DeadLetterFilter(reasons=reasons, error_types=error_types, indices=indices, ids=ids)

    def fits(patterns: list[str], *texts: str) -> bool:
        def one(pattern: str, text: str) -> bool:
            return {"a*": text[:1] == "a", "?b": len(text) == 2 and text[1] == "b"}.get(pattern, text == pattern)

        return not patterns or any(one(pattern, text) for pattern in patterns for text in texts)

    def meant(letter: DeadLetter) -> bool:
        texts = ((letter.reason,), (letter.error_type,), (letter.index_name,), (letter.message_id, letter.document_id))
        return all(fits(patterns, *text) for patterns, text in zip(kinds, texts, strict=True))

    taken = [letter for letter in letters if choice.matches(letter)]
    assert taken == [letter for letter in letters if meant(letter)]
    drew("some fit" if taken else "none fits")
    if any(len(patterns) > 1 for patterns in kinds):
        drew("two patterns of a kind")
    grouping = DeadLetterSummary()
    for letter in taken:
        grouping.add(letter)
    groups = grouping.groups()
    assert [group.count for group in groups] == sorted((group.count for group in groups), reverse=True)
    assert grouping.count == len(taken) == sum(group.count for group in groups)
    for group in groups:
        key = (group.example.reason, group.example.error_type, group.example.index_name)
        alike = [one for one in taken if (one.reason, one.error_type, one.index_name) == key]
        moments = [one.failed_at for one in alike if one.failed_at]
        if group.count > 1:
            drew("a group of several")
        assert (group.count, group.example) == (len(alike), alike[0])
        assert (group.oldest, group.newest) == ((min(moments), max(moments)) if moments else ("", ""))


@pytest.mark.draws("at the limit of a name", "beyond it", "replayed too often", "cut")
@settings(max_examples=examples(40))
@given(
    size=st.integers(250, 260),
    replays=st.integers(0, 4),
    limit=st.integers(1, 4),
    cut=st.lists(st.sampled_from(["sidecar-error-reason", "sidecar-index", "k"]), max_size=3),
)
def test_a_letter_is_skipped_for_a_reason_of_its_own(size: int, replays: int, limit: int, cut: list[str]) -> None:
    """At each limit and one beyond it."""
    base = read(message(raw=properties()), 1)._replace(queue="work")
    if size in {255, 256}:
        drew("at the limit of a name" if size == 255 else "beyond it")
    if replays >= limit:
        drew("replayed too often")
    if "k" in cut:
        drew("cut")
    assert (replay_obstacle(base._replace(queue="q" * size), 3) is not None) == (size > 255)
    assert (replay_obstacle(base._replace(replays=replays), limit) is not None) == (replays >= limit)
    assert (replay_obstacle(base._replace(cut=", ".join(cut)), 3) is not None) == ("k" in cut)


def test_what_was_cut_of_the_reason_leaves_no_trace_in_the_message() -> None:
    """The note about the cut is the sidecar's own, as the reason is."""
    one = message(1, b"{}", of=ledger("work"), raw=properties([(b"k", b"V")]))
    rejected = Rejected(one, "rejected", "y" * 900, 400, "mapper_parsing_exception")
    added = dead_letter_headers(
        rejected, token=b"9", action="index", index="logs", document_id=b"o-7", failed_at=1_700_000_000.5
    )
    letter = message(1, b"{}", raw=republish_properties(one.properties, added, 650))
    assert read(letter, 1).cut == "sidecar-error-reason"
    again = replay_properties(letter, read(letter, 1), token=b"t", user=None)
    names = [name for name, _ in headers_of(again)]
    assert names == ["k", *(f"sidecar-{name}" for name in MEMORY)]


def test_of_two_headers_of_one_name_the_first_counts() -> None:
    """As everywhere in the sidecar, and in RabbitMQ."""
    twice = [(b"sidecar-queue", long_string(b"first")), (b"sidecar-queue", long_string(b"second"))]
    assert read(message(raw=properties(twice)), 1).queue == "first"
