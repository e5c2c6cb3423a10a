"""`sidecar.cli.samples`, and what `sidecar produce` says of them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from sidecar.cli.produce import PublishStats, format_summary
from sidecar.cli.samples import BAD, KIND_HEADER, ORDER, STRANGE, STRANGE_ID, Sample, SampleKind, Samples
from sidecar.core.wire.properties import decode, header, number, short
from tests.builders import encoder, message

KINDS = (ORDER, *STRANGE, *BAD)


def made(count: int, seed: int = 7, **options: object) -> list[Sample]:
    """Return the first messages of a seed."""
    return list(islice(Samples(seed, **options), count))  # type: ignore[arg-type]


def one_of(kind: SampleKind) -> Sample:
    """Return the first message of a kind."""
    return next(sample for sample in Samples(7, bad_ratio=0.5) if sample.kind is kind)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others() -> None:
    """Whoever knows the seed knows what must be found in the end."""
    assert made(500, bad_ratio=0.3) == made(500, bad_ratio=0.3)
    assert {sample.body for sample in made(500)}.isdisjoint(sample.body for sample in made(500, seed=8))


@pytest.mark.parametrize("size", [250, 400, 512, 4096, 70_000])
def test_a_good_body_has_the_size_that_was_asked_for(size: int) -> None:
    """To the byte, though the text is full of characters of several bytes."""
    assert {len(sample.body) for sample in made(200, size_bytes=size)} == {size}


@pytest.mark.parametrize("size", [1, 100, 250, 400, 512, 4096])
def test_a_good_body_is_an_order_at_every_size(size: int) -> None:
    """It is valid JSON, numbered without gaps, and its amount is a number; small ones leave fields out."""
    orders = [json.loads(sample.body) for sample in made(200, size_bytes=size)]
    assert [order["sequence"] for order in orders] == list(range(200))
    assert all(isinstance(order["amount"], float) and order["@timestamp"].endswith("Z") for order in orders)
    assert all("customer" in order and "items" in order for order in orders) or size < 512


def test_every_id_is_another_unless_they_are_drawn_from_keys_or_left_out() -> None:
    """With keys each is drawn; without ids there is no ``message_id`` at all."""
    assert len({sample.document_id for sample in made(2000, bad_ratio=0.2)}) == 2000
    assert len({sample.document_id for sample in made(2000, bad_ratio=0.2, keys=10)}) == 10
    assert all(short(sample.properties, "message_id") is None for sample in made(200, bad_ratio=0.5, with_ids=False))


def test_the_properties_say_what_the_sample_says() -> None:
    """They are spliced by hand: every reader has to find the id and the header in them, and persistence."""
    for sample in made(500, bad_ratio=0.5):
        assert sample.document_id is not None
        assert short(sample.properties, "message_id") == sample.document_id.encode()
        kind = header(sample.properties, KIND_HEADER)
        assert kind is not None
        assert decode(kind) == sample.kind.name
        assert number(sample.properties, "delivery_mode") == 2
        assert short(sample.properties, "content_type") == b"application/json"
        assert short(sample.properties, "app_id") == b"sidecar produce"


def test_the_share_of_bad_ones_is_kept_and_every_kind_has_its_turn() -> None:
    """A small number of bad ones shows all kinds all the same."""
    samples = made(10_000, bad_ratio=0.01)
    counts = Counter(sample.kind for sample in samples)
    bad = [counts[kind] for kind in BAD]
    assert 70 < sum(bad) < 130
    assert max(bad) - min(bad) <= 1
    assert all(counts[kind] for kind in STRANGE)
    assert all(sample.kind is ORDER for sample in made(1000))
    assert all(sample.kind in BAD for sample in made(1000, bad_ratio=1.0))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_meets_the_verdict_that_it_is_meant_for(kind: SampleKind) -> None:
    """What the sidecar refuses by itself is ``malformed``; the rest is Elasticsearch's to refuse."""
    sample = one_of(kind)
    encoded, rejections = encoder("index", with_message_id=True).encode(
        [message(body=sample.body, raw=sample.properties)], 0.0
    )
    assert [reject.reason for reject in rejections] == (["malformed"] if kind.reason == "malformed" else [])
    if encoded:
        assert encoded[0].action_line.count(b"\n") == 1
        assert b"\n" not in (encoded[0].source or b"")


def test_a_strange_id_reaches_the_action_line_letter_by_letter() -> None:
    """It holds what would end the line and begin another action, if it were not data."""
    sample = one_of(STRANGE_ID)
    assert sample.document_id is not None
    assert all(text in sample.document_id for text in ('"', "\n", "\r", "\\", '{"delete":'))
    (encoded,), _ = encoder("index", with_message_id=True).encode(
        [message(body=sample.body, raw=sample.properties)], 0.0
    )
    assert json.loads(encoded.action_line) == {"index": {"_id": sample.document_id}}


def test_the_account_names_what_was_refused_and_every_kind() -> None:
    """It is what a person has in hand afterwards: counts, rate and the seed to do it again."""
    tally = PublishStats()
    tally.published, tally.confirmed, tally.body_bytes = 1000, 990, 512_000
    tally.refused["the queue is full"] = 10
    tally.kinds.update({"order": 985, "array": 8, "empty": 2, "strange-id": 5})
    assert format_summary(tally, "the queue 'orders'", 42, 2.0).split("\n") == [
        "Published 1,000 messages (0.5 MB) to the queue 'orders', 990 confirmed, in 2.0 s: 500/s.",
        "RabbitMQ refused 10: the queue is full.",
        "10 of them are bad: 8 array, 2 empty.",
        "5 of them are good, but strange: 5 strange-id.",
        "Seed: 42 (--seed 42 publishes the same again).",
    ]
