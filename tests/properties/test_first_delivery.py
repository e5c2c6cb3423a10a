"""What a message remembers of its first delivery: on its rounds by the delay queue, and when it is replayed days later.

Each field of a template alone and with others, by columns and one by one, whole and split into its documents.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.dead_letters import dead_letter
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.wire.properties import fields, headers
from sidecar.core.wire.republish import Failure, dead_letter_headers, delay_headers, republish_properties
from tests.builders import examples, ledger, long_string, message, properties
from tests.drawing import drew

if TYPE_CHECKING:
    from sidecar.core.message import Message

FIRST = 1_700_006_399.5  # half a second before midnight
DAY_SECONDS = 86_400.0
ROUTE = b"\x02in\x07the.key"
FIELDS = [
    "now", "now:%Y.%m.%d", "exchange", "routing_key", "queue", "message_id", "header.tenant", "body.n", "type|none",
    "timestamp:%Y", "sha256", "priority|0",
]  # fmt: skip
ORIGIN = (b"sidecar-received-at", b"sidecar-exchange", b"sidecar-routing-key", b"sidecar-id")
_PLENTY = 1 << 16


class Step(NamedTuple):
    """What becomes of a delivery.

    Attributes:
        kind: ``delay``, or ``replay``: it becomes a dead letter, and is replayed.
        seconds: that it was in work until then.
        away_seconds: until it comes again.
    """

    kind: str
    seconds: float
    away_seconds: float


class Told(NamedTuple):
    """What a delivery was made into: lines and keys, and what the copy remembers."""

    lines: list[tuple[bytes, bytes | None]]
    origin: dict[bytes, bytes]


steps = st.builds(
    Step,
    st.sampled_from(["delay", "replay"]),
    st.floats(0.0, 60.0),
    st.sampled_from([1.0, DAY_SECONDS, 3 * DAY_SECONDS]),
)


def journey(encoder_config: EncoderConfig, body: bytes, walk: list[Step]) -> list[Told]:
    """Return what each delivery of a message is made into, and what its next copy remembers."""
    numbers = count()
    encoder = BulkEncoder(encoder_config, lambda: f"made-{next(numbers)}")
    raw = properties([(b"tenant", long_string(b"t7"))], message_id=b"m1", timestamp=1_600_000_000)
    route, now, told = ROUTE, FIRST, []
    for number, step in enumerate(walk, 1):
        of = ledger(delivered=1)
        whole = message(1, body, of=of, raw=raw, route=route)
        encoded, rejections = encoder.encode([whole], now)
        assert not rejections
        now += step.seconds
        raw = _copy(whole, encoded[0], step, number, now)
        route = b"\0\x04work"  # by the default exchange, whatever it was published to
        found = dict(fields(headers(raw)))
        told.append(
            Told(
                [(one.action_line, one.document_key) for one in encoded],
                {name: found[name] for name in ORIGIN if name in found},
            )
        )
        now += step.away_seconds
    return told


def _copy(whole: Message, encoded: Message, step: Step, number: int, now: float) -> bytes:
    """Return the properties with which a message comes again."""
    made_id = encoded.action_line.partition(b'"_id":"')[2].partition(b'"')[0] if encoded is whole else b""
    if step.kind == "delay":
        delayed = Failure(whole, "retries-exhausted", "", delay_milliseconds=1000, delay_rounds=number)
        return republish_properties(
            whole.properties, delay_headers(delayed, token=b"1", document_id=made_id, now=now), _PLENTY
        )
    letter = Failure(whole, "rejected", "")
    added = dead_letter_headers(letter, token=b"1", action="index", index="i", document_id=made_id, failed_at=now)
    dead = message(1, whole.body, raw=republish_properties(whole.properties, added, _PLENTY), route=b"\0\x09work.dead")
    return dead_letter.replay_properties(dead, dead_letter.read(dead, 1), token=b"2", user=None)


@pytest.mark.draws(
    "now alone", "exchange alone", "routing_key alone", "several fields", "delayed first", "replayed first",
    "delayed, then replayed", "replayed, then delayed", "over midnight in work", "split", "an id made here",
)  # fmt: skip
@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.sampled_from(FIELDS), min_size=1, max_size=2, unique=True),
    st.sampled_from(["none", "lines"]),
    st.booleans(),
    st.lists(steps, min_size=2, max_size=4),
)
def test_what_comes_again_is_what_it_was_at_first(
    names: list[str], split: str, makes_id: bool, walk: list[Step]
) -> None:
    """The same index, id and routing each time, days later, by columns as one by one; a replay as at its failure.

    What becomes a dead letter at once has no memory of its own: there the time of its failure stands for the first.
    """
    template = Template("-".join(f"{{{name}}}" for name in names))
    id_mode = "generated" if makes_id and split == "none" else "template"
    encoder_config = EncoderConfig(
        index=template,
        index_allow=("*",),
        id_mode=id_mode,  # type: ignore[arg-type]
        id=template if id_mode == "template" else None,
        routing=template,
        split=split,  # type: ignore[arg-type]
    )
    body = b'{"n":1}\n{"n":2}' if split == "lines" else b'{"n":1}'
    told = journey(encoder_config, body, walk)
    assert told == journey(replace(encoder_config, batch_complete_count=Template("")), body, walk)
    reads_now = any(name.startswith("now") for name in names)
    since = 1 if walk[0].kind == "replay" and reads_now else 0
    for later in told[since:]:
        assert later == told[since]
    origin = told[0].origin
    if walk[0].kind == "delay":
        assert origin[b"sidecar-received-at"] == long_string(b"2023-11-14T23:59:59.500Z")
    assert origin[b"sidecar-exchange"] == long_string(b"in")
    assert origin[b"sidecar-routing-key"] == long_string(b"the.key")
    kinds = [step.kind for step in walk]
    drew("several fields", len(names) > 1)
    for name in ("now", "exchange", "routing_key"):
        drew(f"{name} alone", names == [name])
    drew("delayed first" if kinds[0] == "delay" else "replayed first")
    drew("delayed, then replayed", kinds[:2] == ["delay", "replay"])
    drew("replayed, then delayed", kinds[:2] == ["replay", "delay"])
    drew("over midnight in work", walk[0].seconds > 1.0 and reads_now)
    drew("split", split != "none" and reads_now)
    drew("an id made here", id_mode == "generated")
