"""`core.wire.republish`: the same bytes, moved where they would do harm, and always small enough to be taken."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.wire import properties as core
from sidecar.core.wire.republish import TOKEN_HEADER, republish_properties
from tests.builders import FLAGS, NUMBERS, examples, long_string, properties, short_string
from tests.drawing import drew, how_many

HARMFUL = [b"CC", b"BCC", b"x-death", b"x-first-death-queue", b"x-delivery-count", b"x-first-death-" + b"q" * 241]
names = (
    st.sampled_from(HARMFUL)
    | st.sampled_from([b"a", b"b", b"sidecar-0", b"sidecar-reason", b"sidecar-cut", b"\xff", b"x" * 255])
    | st.binary(min_size=1, max_size=30)
)
lengths = st.sampled_from([0, 1, 30, 300, 400, 1000, 1024])
values = (
    st.builds(lambda octet, length: long_string(octet * length), st.sampled_from([b"a", b"\xff", b"\0"]), lengths)
    | st.sampled_from([b"t\1", b"V", b"l" + bytes(8), b"A\0\0\0\2t\0", b"F\0\0\0\3\1aV"])
    | lengths.map(lambda length: b"x" + length.to_bytes(4, "big") + b"\xce" * length)
)
tables = st.sampled_from([10, 30, 60]).map(
    lambda count: [(b"a-header-with-a-long-name-%02d" % at, long_string(b"z" * 200)) for at in range(count)]
) | st.one_of(*(st.lists(st.tuples(names, values), min_size=least, max_size=least + 3) for least in (0, 1, 3, 9)))
sets = st.fixed_dictionaries(
    {"headers": st.none() | tables},
    optional={
        **{name: st.binary(max_size=255) for name in FLAGS if name != "headers" and name not in NUMBERS},
        "delivery_mode": st.integers(1, 2),
        "priority": st.integers(0, 255),
        "timestamp": st.integers(0, 2**64 - 1),
    },
)
added_headers = st.lists(
    st.tuples(
        st.sampled_from([b"sidecar-reason"] + [b"sidecar-%d" % at for at in range(12)]),
        lengths.map(lambda length: long_string(b"y" * length)),
    ),
    min_size=1,
    max_size=14,
    unique_by=lambda field: field[0],
)
TOKEN = (TOKEN_HEADER, long_string(b"17"))
LEAST_ROOM = 4096 - 20  # the smallest frame_max of the protocol


def moved(name: bytes) -> bytes:
    """Return the name of one of the message's own headers in its copy."""
    if name in (b"CC", b"BCC", b"x-delivery-count") or name.startswith((b"x-death", b"x-first-death-")):
        return (b"sidecar-original-" + name)[:255]
    return name


@pytest.mark.draws(
    "no headers", "one headers", "several headers", "a header that would do harm", "a header of ours",
    "a name that repeats", "a name that is cut", "expiration", "user_id", "transient", "persistent",
)  # fmt: skip
@settings(max_examples=examples(120))
@given(sets, added_headers, st.sampled_from(["none", "ours", "long"]))
def test_with_room_enough_every_byte_is_kept(
    original: dict[str, Any], added: list[tuple[bytes, bytes]], special: str
) -> None:
    """Own headers in order, byte by byte; ours spliced in behind; nothing is invented or lost."""
    values = dict(original)
    own = values.pop("headers", None) or []
    if special != "none":
        names_between = [name for name, _ in added[:2]] if special == "ours" else HARMFUL[-1:]
        own = own[:1] + [(name, long_string(b"old")) for name in names_between] + own[1:]
    added = [TOKEN, *added]
    copy = republish_properties(properties(own, **values), list(added), 1 << 20)
    ours = {name for name, _ in added}
    fields = list(core.fields(core.headers(copy)))
    kept = [(moved(name), value) for name, value in own if name not in ours]
    extra = [
        (b"sidecar-original-" + name.encode(), long_string(values[name]))
        for name in ("expiration", "user_id")
        if name in values
    ]
    if values.get("delivery_mode", 2) != 2:
        extra.append((b"sidecar-original-delivery_mode", b"l" + values["delivery_mode"].to_bytes(8, "big")))
    assert fields == [*kept, *extra, *added]
    drew(how_many(len(own), "headers"))
    drew("a header that would do harm", any(name in HARMFUL for name, _ in own))
    drew("a header of ours", any(name in ours for name, _ in own))
    drew("a name that repeats", len({name for name, _ in own}) < len(own))
    drew("a name that is cut", any(len(name) > 100 and name in HARMFUL for name, _ in own))
    for name in ("expiration", "user_id"):
        drew(name, name in values)
    drew("transient", values.get("delivery_mode") == 1)
    drew("persistent", values.get("delivery_mode") == 2)
    rest = core.split(copy)
    assert rest.pop("delivery_mode") == b"\2"
    assert set(rest) - {"headers"} == set(values) - {"expiration", "user_id", "delivery_mode"}
    for name, value in rest.items():
        if name != "headers" and name not in NUMBERS:
            assert value == short_string(values[name])
        elif name in NUMBERS:
            assert core.number(copy, name) == values[name]


@pytest.mark.draws(
    "everything fits", "one is cut", "several are cut", "some of ours is cut", "too many to name", "hardly too large",
    "it fits to the byte",
)  # fmt: skip
@settings(max_examples=examples(120))
@given(
    sets,
    added_headers,
    st.sampled_from([LEAST_ROOM, LEAST_ROOM + 500, LEAST_ROOM + 3000, (0,), (-1,), (0,), (-20,), (-400,)]),
    st.sampled_from([8, 1, 1, 2]),
)
def test_a_copy_always_fits_and_names_what_was_cut(
    original: dict[str, Any], added: list[tuple[bytes, bytes]], limit: int | tuple[int], times: int
) -> None:
    """A header frame past frame_max closes the connection, and the message would come again, for ever.

    The limit is a number, or near what the whole takes.
    """
    values = dict(original)
    own = (values.pop("headers", None) or []) * times
    own = [(name, value) for name, value in own if name != b"sidecar-cut"]
    added = [TOKEN, *added]
    whole = republish_properties(properties(own, **values), list(added), 1 << 24)
    if isinstance(limit, tuple):
        limit = max(LEAST_ROOM, len(whole) + limit[0])
    copy = republish_properties(properties(own, **values), list(added), limit)
    assert len(copy) <= limit
    fields = list(core.fields(core.headers(copy)))
    assert TOKEN in fields, "without the token nobody could tell whose a return is"
    missing = Counter(core.fields(core.headers(whole))) - Counter(fields)
    notes = [value[5:] for name, value in fields if name == b"sidecar-cut"]
    assert bool(missing) == bool(notes)
    drew("everything fits" if not missing else "one is cut" if missing.total() == 1 else "several are cut")
    drew("some of ours is cut", any(field in added for field in missing))
    drew("too many to name", notes and len(notes[0]) >= 256)
    drew("hardly too large", limit < len(whole) <= limit + 400)
    drew("it fits to the byte", limit == len(whole))
    if notes and len(notes[0]) < 256:
        for name, _ in missing:
            assert name in notes[0]
    assert core.join(core.split(copy)) == copy
