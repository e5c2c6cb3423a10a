"""What templates cost where messages are composed, beyond what nothing but an id costs: ``python -m bench.templates``.

The same messages are composed by each recipe in turns, in one process, and CPU time is measured. Bounds: 3 µs a message
for headers; for paths in the body what orjson takes to parse it, and 2 µs. Above one of them the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from typing import TYPE_CHECKING

import orjson

from bench.path import CHANNEL, READ_BYTES, stream
from sidecar.core.compose import Composer, Recipe
from sidecar.core.fields import Fields
from sidecar.core.frames import Inbound
from sidecar.core.ledger import Ledger
from sidecar.core.template import Template

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sidecar.core.message import Message

MESSAGES = 20_000
ROUNDS = 15
HEADERS_MICROSECONDS = 3.0
BODY_MICROSECONDS = 2.0
NOW = 1_700_000_000.0
FRAME_MAX = 131_072
PLAIN = "the id of the message"
BODY = "id from the body"
RECIPES: dict[str, Mapping[str, Any]] = {
    PLAIN: {},
    "id from a header": {"id_mode": "template", "id": Template("{header.tenant}-{message_id}")},
    "routing from a header": {"routing": Template("{header.tenant}")},
    "index from a header": {"index": Template("docs-{header.tenant}")},
    "index of the day": {"index": Template("docs-{now:%Y.%m.%d}")},
    "a field added from a header": {"fields": Fields({"source": Template("{header.source}")})},
    BODY: {"id_mode": "template", "id": Template("{body.id}")},
}


def deliveries(data: bytes) -> list[list[Message]]:
    """Return what RabbitMQ sent as chunks of messages."""
    ledger, inbound = Ledger("work", CHANNEL), Inbound()
    inbound.frame_max = FRAME_MAX
    inbound.take_deliveries(ledger)
    return [inbound.feed(data[at : at + READ_BYTES]).messages for at in range(0, len(data), READ_BYTES)]


def composed(recipe: Recipe, chunks: list[list[Message]]) -> float:
    """Return the seconds that composing takes."""
    composer = Composer(recipe, lambda: "")
    start = time.process_time()
    refused = sum(len(composer.compose(chunk, NOW)[1]) for chunk in chunks)
    seconds = time.process_time() - start
    if refused:
        raise AssertionError("a document of the benchmark was rejected")
    return seconds


def parsed(chunks: list[list[Message]]) -> float:
    """Return the seconds that orjson takes to parse the bodies."""
    bodies = [message.body for chunk in chunks for message in chunk]
    start = time.process_time()
    for body in bodies:
        orjson.loads(body)
    return time.process_time() - start


def main() -> int:
    """Measure and print; return the exit status."""
    gc.freeze()  # as `sidecar run` does
    gc.set_threshold(50_000, 20, 100)
    options = argparse.ArgumentParser(prog="python -m bench.templates", description=__doc__)
    options.add_argument("--messages", type=int, default=MESSAGES)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = options.parse_args()
    data = stream(chosen.messages, headers=True)
    micro = 1e6 / chosen.messages
    recipes = {name: Recipe(**{"index": Template("docs"), **what}) for name, what in RECIPES.items()}
    found: dict[str, list[float]] = {name: [] for name in recipes}
    parsing: list[float] = []
    for _ in range(chosen.rounds):
        for name, recipe in recipes.items():
            found[name].append(composed(recipe, deliveries(data)) * micro)
        parsing.append(parsed(deliveries(data)) * micro)
    print(f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}: ", end="")
    print(f"{chosen.messages} messages, {chosen.rounds} rounds, µs a message (least, median, least beyond the id)")
    least, failed = min(found[PLAIN]), False
    for name, values in found.items():
        beyond = min(values) - least
        bound = min(parsing) + BODY_MICROSECONDS if name == BODY else HEADERS_MICROSECONDS
        failed |= beyond > bound
        verdict = "within" if beyond <= bound else "ABOVE"
        print(f"  {name:<30}{min(values):7.2f}{statistics.median(values):7.2f}{beyond:7.2f}  {verdict} {bound:.2f}")
    print(f"  {'orjson, to parse the body':<30}{min(parsing):7.2f}{statistics.median(parsing):7.2f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
