"""What templates add to a document, on the pure path: ``python -m bench.templates``.

The same messages are composed in turns by a plain recipe and by others; the difference of the least times counts, for
noise only ever adds. A header may add 3 µs; a path into the body what orjson takes to read it, and 2 µs. Beyond that
the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from typing import TYPE_CHECKING

import orjson

from bench.lab import BODY_BYTES, Load, messages
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGES = 2_000
ROUNDS = 60
HEADERS_MICROSECONDS = 3.0
BODY_MICROSECONDS = 2.0
INDEX = Template("docs")
PLAIN = EncoderConfig(index=INDEX)
HEADERS = {
    "id from a header": EncoderConfig(index=INDEX, id_mode="template", id=Template("{header.tenant}-{message_id}")),
    "routing from a header": EncoderConfig(index=INDEX, routing=Template("{header.tenant}")),
    "index from a header": EncoderConfig(index=Template("docs-{header.tenant}")),
    "index of the day": EncoderConfig(index=Template("docs-{now:%Y.%m.%d}")),
    "a field added from a header": EncoderConfig(index=INDEX, fields=Fields({"source": Template("{header.source}")})),
    "index and routing from headers": EncoderConfig(
        index=Template("docs-{header.source}"), routing=Template("{header.tenant}")
    ),
    "correlation key from a header": EncoderConfig(index=INDEX, batch_key=Template("{header.tenant}")),
}
BODIES = {
    "id from the body": EncoderConfig(index=INDEX, id_mode="template", id=Template("{body.id}")),
    "routing from the body": EncoderConfig(index=INDEX, routing=Template("{body.customer.id}")),
}


def deliveries() -> list[Message]:
    """Return messages as they come off the wire."""
    ledger = Ledger("work", 1)
    ledger.next_tag = MESSAGES + 1
    ledger.open_new()
    route = b"\0\x04work"
    return [
        Message(ledger, tag, 0, route, sent.property_bytes(), sent.body, 0)
        for tag, sent in enumerate(messages(Load(MESSAGES, headers=True)), 1)
    ]


def composing(encoder_config: EncoderConfig) -> Callable[[list[Message]], object]:
    """Return what composes messages by a recipe."""
    encoder = BulkEncoder(encoder_config, lambda: "")

    def encode(chunk: list[Message]) -> None:
        _, rejections = encoder.encode(chunk, 0.0)
        if rejections:
            raise AssertionError(f"rejected: {rejections[0].detail}")

    return encode


def reading(chunk: list[Message]) -> None:
    """Have orjson read all bodies: nobody gets around that who looks into them."""
    for message in chunk:
        orjson.loads(message.body)


def main() -> int:
    """Measure and print; return the exit status."""
    argparse.ArgumentParser(prog="python -m bench.templates", description=__doc__).parse_args()
    gc.disable()
    works = {"plain": composing(PLAIN), "orjson alone": reading}
    works |= {name: composing(encoder_config) for name, encoder_config in (HEADERS | BODIES).items()}
    least = dict.fromkeys(works, float("inf"))
    chunk = deliveries()  # composing them again changes nothing about them
    for _ in range(ROUNDS):
        for name, work in works.items():
            began = time.process_time()
            work(chunk)
            least[name] = min(least[name], (time.process_time() - began) * 1e6 / MESSAGES)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, bodies of {BODY_BYTES} bytes, µs a document"
    )
    good = True
    for name, value in least.items():
        added = value - least["plain"]
        bound = HEADERS_MICROSECONDS if name in HEADERS else least["orjson alone"] + BODY_MICROSECONDS
        judged = name in HEADERS or name in BODIES
        good &= not judged or added <= bound
        verdict = f"{added:+7.2f}, at most {bound:.2f}: {'met' if added <= bound else 'NOT MET'}" if judged else ""
        print(f"  {name:<32}{value:7.2f} {verdict}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
