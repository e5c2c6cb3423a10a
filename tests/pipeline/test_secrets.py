"""Whatever Elasticsearch quotes of documents, in whatever answer: it is in no header, no log line and no page."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from functools import partial
from typing import TYPE_CHECKING

import pytest

from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.results.policy import ErrorPolicy
from tests.builders import properties
from tests.fakes.elasticsearch import Failure, Refusal
from tests.pipeline.simulated_pipeline import DEAD, QUEUE, SimulatedPipeline, play

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.encoding.split import Mode

MIN_RUN = 16
LONG = "".join(f"<{number:04d}> of the life of somebody who can't [help] it; " for number in range(50))
"""A secret that is longer than a reason may be."""
PARTS = {text[start : start + MIN_RUN] for text in (LONG, repr(LONG)[1:-1]) for start in range(len(text) - MIN_RUN + 1)}
FILLER = "Failed to parse with all enclosed parsers; " * 23
WORDINGS: dict[str, Callable[[str], str]] = {
    "in quotes": lambda secret: f"failed to parse field [a]: Text '{secret}' could not be parsed",
    "in brackets": lambda secret: f"failed to parse [{secret}]",
    "in half a pair": lambda secret: f"failed to parse field [a]: '{secret[:900]}",
    "in none": lambda secret: f"failed to parse {secret} as a number",
    "shortened": lambda secret: f"failed: Text '{secret[:64]}...' could not be parsed",
    "across the cut": lambda secret: f"{FILLER}'{secret}'",
    "twice": lambda secret: f"'{secret}' isn't '{secret}'",
}
FAULTS: dict[str, Callable[[str], Failure]] = {
    "rejected": lambda text: Failure(400, "document_parsing_exception", text),
    "by its cause": lambda text: Failure(400, "document_parsing_exception", "failed to parse", text),
    "throttled": lambda text: Failure(429, "es_rejected_execution_exception", text),
    "failed": lambda text: Failure(500, "exception", text),
    "blocked": lambda text: Failure(403, "cluster_block_exception", text),
    "missing": lambda text: Failure(404, "index_not_found_exception", text),
}
REFUSALS: dict[str, Callable[[str], Refusal]] = {
    "400": lambda text: Refusal(400, "x_content_parse_exception", text),
    "400 of all": lambda text: Refusal(400, "media_type_header_exception", text),
    "403": lambda text: Refusal(403, "security_exception", text),
    "404": lambda text: Refusal(404, "", text),
    "429": lambda text: Refusal(429, "circuit_breaking_exception", text),
    "500": lambda text: Refusal(500, "", text),
    "503": lambda text: Refusal(503, "unavailable", text),
}
TARGET_FAULTS = ("blocked", "missing")
CHOICES = (ErrorPolicy(), ErrorPolicy(on_index_blocked="hold", on_index_missing="hold"))


def assert_hidden(world: SimulatedPipeline) -> None:
    """No part of the secret is anywhere but in the bodies."""
    shown = [str(event) for event in world.log.events]
    shown += [str(message.properties) for message in world.broker.queues[DEAD].ready]
    shown += [str(world.pipeline.limiter.held), str(world.pipeline.snapshot())]
    told = "\n".join(shown)
    parts = {told[start : start + MIN_RUN] for start in range(len(told))}
    assert not parts & PARTS, parts & PARTS


def publish(world: SimulatedPipeline) -> None:
    """Publish documents, every other of which has the secret."""
    for number in range(20):
        secret = LONG if number % 2 else "nothing"
        world.publish(b'{"n":%d,"a":"%s"}' % (number, secret.encode()), f"id-{number}", guilty=True)


@pytest.mark.parametrize("wording", list(WORDINGS))
@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_the_result_of_an_item_quotes_is_told_nowhere(fault: str, wording: str) -> None:
    """A dead letter, a retry, a hold: nothing of the document goes with its reason."""
    failure = FAULTS[fault](WORDINGS[wording](LONG))

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.item_fault = lambda item: failure if LONG.encode() in item.source else None
        publish(world)
        await world.start()
        await asyncio.sleep(120)
        assert_hidden(world)

    for policy in CHOICES[: 1 + (fault in TARGET_FAULTS)]:
        play(lambda policy=policy: SimulatedPipeline(error_policy=policy), scenario)


PACKED: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "gzip": (lambda body: gzip.compress(body, mtime=0), b"gzip"),
    "deflate": (zlib.compress, b"deflate"),
}


@pytest.mark.parametrize("kind", [*FAULTS, *REFUSALS])
@pytest.mark.parametrize("split", ["none", "array"])
@pytest.mark.parametrize("encoding", list(PACKED))
def test_what_is_quoted_is_looked_for_in_the_document_not_in_its_message(encoding: str, split: Mode, kind: str) -> None:
    """Elasticsearch got what was unpacked, so it quotes what the packed body has nowhere."""
    pack, name = PACKED[encoding]

    async def scenario(world: SimulatedPipeline, told: str) -> None:
        if kind in FAULTS:
            world.elastic.item_fault = lambda _: FAULTS[kind](told)
        else:
            world.elastic.trouble = lambda _: REFUSALS[kind](told)
        for number in range(4):
            body = b'{"n":%d,"a":"%s"}' % (number, LONG.encode())
            raw = properties(message_id=b"id-%d" % number, content_encoding=name)
            world.broker.publish(QUEUE, pack(b"[%s,%s]" % (body, body) if split == "array" else body), raw)
        await world.start()
        await asyncio.sleep(60)
        assert world.elastic.requests
        assert_hidden(world)

    encoder_config = EncoderConfig(index=Template("documents"), split=split)
    for wording in ("in quotes", "in none"):
        play(lambda: SimulatedPipeline(encoder_config=encoder_config), partial(scenario, told=WORDINGS[wording](LONG)))


@pytest.mark.parametrize("wording", list(WORDINGS))
@pytest.mark.parametrize("refusal", list(REFUSALS))
def test_what_a_refused_request_quotes_is_told_nowhere(refusal: str, wording: str) -> None:
    """Whichever request it was, and whether it was narrowed down to one item or not."""
    refused = REFUSALS[refusal](WORDINGS[wording](LONG))

    async def scenario(world: SimulatedPipeline) -> None:
        world.elastic.trouble = lambda request: refused if "id-3" in request.ids else None
        publish(world)
        await world.start()
        await asyncio.sleep(120)
        assert_hidden(world)
        world.elastic.trouble = lambda _: refused
        await asyncio.sleep(120)
        assert_hidden(world)

    play(SimulatedPipeline, scenario)
