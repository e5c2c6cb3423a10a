"""What ``SIDECAR_TRANSFORM`` costs a message: ``python -m bench.transform``.

The same messages are composed without a function, and with several that do little; CPU time is measured, in turns. The
difference to the plain path is what the hook costs: calling it, a document of its own for each message, and leaving the
path that is made for messages whose documents are their bodies.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from bench.path import READ_BYTES, stream
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.ledger import Ledger
from sidecar.core.wire.frames import FrameParser
from sidecar.library.transforming import hook

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar import Message

MESSAGES = 50_000
ROUNDS = 5


def body(message: Message) -> bytes:
    """Return the body: the hook itself, and nothing else."""
    return message.body


def parsed(message: Message) -> dict[str, Any]:
    """Add a field, as most functions will."""
    document: Any = message.json()
    document["id"] = message.message_id
    return document


async def parsed_later(message: Message) -> dict[str, Any]:
    """Do the same in a coroutine that waits for nothing."""
    return parsed(message)


FUNCTIONS: dict[str, Callable[[Message], object] | None] = {
    "no function": None,
    "the body": body,
    "parsed, a field more": parsed,
    "the same, async": parsed_later,
}


def measure(reads: list[bytes], function: Callable[[Message], object] | None) -> float:
    """Return the CPU seconds that composing takes.

    Raises:
        AssertionError: something was rejected.
    """
    ledger = Ledger("work", 1)
    inbound = FrameParser()
    inbound.frame_max = 131_072
    inbound.register_consumer(ledger)
    hooked = hook(function) if function is not None else None
    encoder_config = EncoderConfig(
        index=Template("docs"),
        transform=hooked.transform if hooked else None,
        prepare=hooked.prepare if hooked else None,
    )
    encoder = BulkEncoder(encoder_config, lambda: "")

    async def run() -> float:
        seconds = 0.0
        for read in reads:
            chunk = inbound.feed(read).messages
            began = time.process_time()
            if encoder_config.prepare is not None:
                await encoder_config.prepare(chunk)
            _, rejections = encoder.encode(chunk, 0.0)
            seconds += time.process_time() - began
            if rejections:
                raise AssertionError(rejections[0].detail)
        return seconds

    return asyncio.run(run())


def main() -> int:
    """Measure and print; return the exit status."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as `sidecar run` does
    options = argparse.ArgumentParser(prog="python -m bench.transform", description=__doc__)
    options.add_argument("--messages", type=int, default=MESSAGES)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = options.parse_args()
    data = stream(chosen.messages)
    reads = [data[at : at + READ_BYTES] for at in range(0, len(data), READ_BYTES)]
    found: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    for _ in range(chosen.rounds):
        for name, function in FUNCTIONS.items():
            found[name].append(measure(reads, function) * 1e6 / chosen.messages)
    print(f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}: ", end="")
    print(f"composing, {chosen.messages} messages, {chosen.rounds} rounds, µs of CPU a message (least, median)")
    for name, micros in found.items():
        print(f"  {name:<22}{min(micros):8.3f}{statistics.median(micros):8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
