"""`sidecar.core.copies`: the same bytes, moved where they would do harm, and always small enough to be taken."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core import properties as core
from sidecar.core.copies import TOKEN_HEADER, copy_properties
from tests.builders import FLAGS, NUMBERS, examples, long_string, properties, short_string

HARMFUL = [b"CC", b"BCC", b"x-death", b"x-first-death-queue", b"x-delivery-count"]
names = st.sampled_from([b"a", b"b", b"sidecar-reason", b"sidecar-cut", b"\xff", b"x" * 255, *HARMFUL]) | st.binary(
    min_size=1, max_size=30
)
values = (
    st.binary(max_size=300).map(long_string)
    | st.sampled_from([b"t\1", b"V", b"l" + bytes(8), b"A\0\0\0\2t\0", b"F\0\0\0\3\1aV"])
    | st.binary(min_size=100, max_size=400).map(lambda data: b"x" + len(data).to_bytes(4, "big") + data)
)
tables = st.lists(st.tuples(names, values), max_size=12)
sets = st.fixed_dictionaries(
    {},
    optional={
        "headers": tables,
        **{name: st.binary(max_size=255) for name in FLAGS if name != "headers" and name not in NUMBERS},
        "delivery_mode": st.integers(1, 2),
        "priority": st.integers(0, 255),
        "timestamp": st.integers(0, 2**64 - 1),
    },
)
added_headers = st.lists(
    st.tuples(
        st.sampled_from([b"sidecar-%d" % at for at in range(12)] + [b"sidecar-reason"]),
        st.binary(max_size=1024).map(long_string),
    ),
    max_size=12,
    unique_by=lambda field: field[0],
)
TOKEN = (TOKEN_HEADER, long_string(b"17"))
LEAST_ROOM = 4096 - 20  # the smallest frame_max of the protocol


def moved(name: bytes) -> bytes:
    """Return the name of one of the message's own headers in its copy."""
    if name in (b"CC", b"BCC", b"x-delivery-count") or name.startswith((b"x-death", b"x-first-death-")):
        return (b"sidecar-original-" + name)[:255]
    return name


@settings(max_examples=examples(80))
@given(sets, added_headers)
def test_with_room_enough_every_byte_is_kept(original: dict[str, Any], added: list[tuple[bytes, bytes]]) -> None:
    """Own headers in order, byte by byte; ours spliced in behind; nothing is invented or lost."""
    values = dict(original)
    own = values.pop("headers", None) or []
    added = [TOKEN, *added]
    copy = copy_properties(properties(own, **values), list(added), 1 << 20)
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
    rest = core.split(copy)
    assert rest.pop("delivery_mode") == b"\2"
    assert set(rest) - {"headers"} == set(values) - {"expiration", "user_id", "delivery_mode"}
    for name, value in rest.items():
        if name != "headers" and name not in NUMBERS:
            assert value == short_string(values[name])
        elif name in NUMBERS:
            assert core.number(copy, name) == values[name]


@settings(max_examples=examples(120))
@given(sets, added_headers, st.integers(LEAST_ROOM, LEAST_ROOM + 3000), st.integers(1, 8))
def test_a_copy_always_fits_and_names_what_was_cut(
    original: dict[str, Any], added: list[tuple[bytes, bytes]], limit: int, times: int
) -> None:
    """A header frame past frame_max closes the connection, and the message would come again, for ever."""
    values = dict(original)
    own = (values.pop("headers", None) or []) * times
    own = [(name, value) for name, value in own if name != b"sidecar-cut"]
    added = [TOKEN, *added]
    copy = copy_properties(properties(own, **values), list(added), limit)
    assert len(copy) <= limit
    fields = list(core.fields(core.headers(copy)))
    assert TOKEN in fields, "without the token nobody could tell whose a return is"
    whole = copy_properties(properties(own, **values), list(added), 1 << 24)
    missing = Counter(core.fields(core.headers(whole))) - Counter(fields)
    notes = [value[5:] for name, value in fields if name == b"sidecar-cut"]
    assert bool(missing) == bool(notes)
    if notes and len(notes[0]) < 256:
        for name, _ in missing:
            assert name in notes[0]
    assert core.join(core.split(copy)) == copy
