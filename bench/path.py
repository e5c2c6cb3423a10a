"""What a message costs on the pure path, beyond what cannot be saved: ``python -m bench.path``.

The same bytes go two ways, in one process and in turns, and CPU time is measured, so that a busy machine does not tell:

- the baseline takes id and body of each delivery off the bytes and joins them to the NDJSON of a request: nobody who
  moves messages from AMQP to ``_bulk`` gets around that;
- the path is the product's own, call by call as the pipeline makes them, from `FrameParser.feed` to the bytes of
  the ack.

The difference is what promises cost (properties of any shape, every check, order, batches, accounting, settling). It is
bounded by 2.5 µs a message; above that the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import struct
import sys
import time
from typing import TYPE_CHECKING

from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.ledger import Ledger
from sidecar.core.results import bulk
from sidecar.core.scheduling.batcher import Batcher
from sidecar.core.scheduling.order import DocumentOrder
from sidecar.core.scheduling.send_queue import SendQueue
from sidecar.core.wire import frames
from sidecar.core.wire.frames import FrameParser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOUND_MICROSECONDS = 2.5
MESSAGES = 100_000
BODY_BYTES = 420
READ_BYTES = 256 * 1024
BATCH_ITEMS = 1000
BATCH_BYTES = 5 * 1024 * 1024
ROUNDS = 7
CHANNEL = 1
STAGES = ("feed", "compose", "order", "batch", "outbox", "body", "answer", "leave", "ledger", "ack")

_FRAME = struct.Struct(">BHI")
_TAG = struct.Struct(">Q")
_WIDTHS = (0, 0, -1, 1, 1, 0, 0, 0)  # of what can stand before message_id; 0: short string, -1: table
_MESSAGE_ID = 0x0080


def stream(count: int) -> bytes:
    """Return deliveries as RabbitMQ sends them: three frames each, with the properties that publishers set."""
    parts: list[bytes] = []
    route = bytes([0]) + bytes([4]) + b"work"
    for tag in range(1, count + 1):
        document_id = b"order-%030d" % tag
        text = b'{"id":"%s","n":%d,"text":"' % (document_id, tag)
        body = text + b"x" * (BODY_BYTES - len(text) - 2) + b'"}'
        method = struct.pack(">HHB", 60, 60, 6) + b"ctag-1" + struct.pack(">QB", tag, 0) + route
        properties = (
            struct.pack(">HB", 0x8000 | 0x1000 | _MESSAGE_ID | 0x0040, 16) + b"application/json" + b"\x02"
            + bytes([len(document_id)]) + document_id + struct.pack(">Q", 1_700_000_000 + tag)
        )  # fmt: skip
        header = struct.pack(">HHQ", 60, 0, len(body)) + properties
        for kind, payload in ((1, method), (2, header), (3, body)):
            parts.append(_FRAME.pack(kind, CHANNEL, len(payload)) + payload + b"\xce")
    return b"".join(parts)


def baseline(reads: list[bytes]) -> tuple[int, int]:  # noqa: C901 - inlined, as the path itself is
    """Take ids and bodies off the bytes and join them; return the number of messages and bytes."""
    rest = b""
    parts: list[bytes] = []
    add, read_frame, read_tag = parts.extend, _FRAME.unpack_from, _TAG.unpack_from
    count = waiting = total = 0
    for read in reads:
        data = rest + read if rest else read
        pos, end = 0, len(data)
        while end - pos > 8:
            header = pos + 8 + read_frame(data, pos)[2]
            if header + 7 > end:
                break
            body = header + 8 + read_frame(data, header)[2]
            if body + 7 > end:
                break
            after = body + 8 + read_frame(data, body)[2]
            if after > end:
                break
            read_tag(data, pos + 12 + data[pos + 11])
            flags, at = data[header + 19] << 8 | data[header + 20], header + 21
            for bit, width in enumerate(_WIDTHS):
                if flags & 0x8000 >> bit:
                    if width == 0:
                        at += 1 + data[at]
                    elif width > 0:
                        at += width
                    else:
                        at += 4 + int.from_bytes(data[at : at + 4], "big")
            document_id = data[at + 1 : at + 1 + data[at]] if flags & _MESSAGE_ID else b""
            add((b'{"index":{"_id":"', document_id, b'"}}\n', data[body + 7 : after - 1], b"\n"))
            pos, waiting = after, waiting + 1
            if waiting == BATCH_ITEMS:
                total += len(b"".join(parts))
                parts.clear()
                count, waiting = count + waiting, 0
        rest = data[pos:]
    return count + waiting, total + len(b"".join(parts))


class Path:
    """The pure parts of the pipeline, called as it calls them."""

    def __init__(self) -> None:
        self.ledger = Ledger("work", CHANNEL)
        self.parser = FrameParser()
        self.parser.frame_max = 131_072
        self.parser.register_consumer(self.ledger)
        self.encoder = BulkEncoder(EncoderConfig(index=Template("docs")), lambda: "")
        self.order = DocumentOrder()
        self.batcher = Batcher(BATCH_ITEMS, BATCH_BYTES, 1.0)
        self.send_queue = SendQueue(BATCH_ITEMS, BATCH_BYTES)
        self.answers: dict[int, bytes] = {}
        self.stored = self.sent_bytes = self.ack_bytes = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def run(self, reads: list[bytes]) -> None:
        """Take all reads; the time of each stage is measured by the chunk and batch, which costs it next to nothing."""
        clock, seconds = time.process_time, self.seconds
        for read in reads:
            start = clock()
            chunk = self.parser.feed(read).messages
            self.ledger.memory_bytes += sum([message.memory_bytes for message in chunk])
            fed = clock()
            encoded, rejections = self.encoder.encode(chunk, 0.0)
            made = clock()
            free = self.order.admit(encoded)
            entered = clock()
            complete = self.batcher.add(free, start)
            batched = clock()
            seconds["feed"] += fed - start
            seconds["compose"] += made - fed
            seconds["order"] += entered - made
            seconds["batch"] += batched - entered
            if rejections:
                raise AssertionError("a document of the benchmark was rejected")
            self.send_queue.put(complete)
            self.send(batched)
        self.send_queue.put(self.batcher.take_all())
        self.send(clock())

    def send(self, now: float) -> None:
        """Send what is complete, to an Elasticsearch that stores everything, and settle it."""
        clock, seconds = time.process_time, self.seconds
        while True:
            start = clock()
            batch = self.send_queue.take(now)
            taken = clock()
            seconds["outbox"] += taken - start
            if batch is None:
                return
            messages = batch.messages
            body = bulk.body(messages)
            joined = clock()
            seconds["body"] += joined - taken
            answer = self.answer(len(messages))
            start = clock()
            if not bulk.all_stored(answer, len(messages)):
                raise AssertionError("the answer of the benchmark was not understood")
            read = clock()
            self.batcher.add(self.order.release(messages), now)
            left = clock()
            mine = [message for message in messages if message.ledger is self.ledger]
            self.stored += self.ledger.mark_stored(mine)
            settlements = self.ledger.take_acks()
            stored = clock()
            written = b"".join(
                frames.ack(CHANNEL, settlement.tag, multiple=settlement.multiple) for settlement in settlements
            )
            seconds["ack"] += clock() - stored
            seconds["answer"] += read - start
            seconds["leave"] += left - read
            seconds["ledger"] += stored - left
            self.sent_bytes += len(body)
            self.ack_bytes += len(written)

    def answer(self, count: int) -> bytes:
        """Return the answer that says of `count` items that they are stored."""
        if count not in self.answers:
            items = b",".join([b'{"index":{"status":201}}'] * count)
            self.answers[count] = b'{"errors":false,"items":[' + items + b"]}"
        return self.answers[count]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def rounds(reads: list[bytes], count: int, how_many: int) -> Iterator[tuple[float, float, dict[str, float]]]:
    """Yield the seconds of the baseline, of the path, and of its stages, of each round."""
    expected = baseline(reads)
    for _ in range(how_many):
        least = timed(lambda: baseline(reads))
        path = Path()
        whole = timed(lambda: path.run(reads))  # noqa: B023 - called at once
        if (path.stored, path.sent_bytes) != expected or path.stored != count or path.ledger.outstanding:
            raise AssertionError(f"{path.stored} of {count} were stored, {path.ledger.outstanding} are outstanding")
        yield least, whole, path.seconds


def main() -> int:
    """Measure and print; return the exit status."""
    # As `sidecar run` does: messages make no cycles, and looking through thousands of them costs time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    options = argparse.ArgumentParser(prog="python -m bench.path", description=__doc__, add_help=True)
    options.add_argument("--messages", type=int, default=MESSAGES)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--bound", type=float, default=BOUND_MICROSECONDS, help="µs a message")
    chosen = options.parse_args()
    data = stream(chosen.messages)
    reads = [data[at : at + READ_BYTES] for at in range(0, len(data), READ_BYTES)]
    micro = 1e6 / chosen.messages
    found = list(rounds(reads, chosen.messages, chosen.rounds))
    print(f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}: ", end="")
    print(f"{chosen.messages} messages of {BODY_BYTES} bytes, {chosen.rounds} rounds, µs a message (least, median)")

    def line(name: str, values: list[float]) -> None:
        print(f"  {name:<22}{min(values):8.3f}{statistics.median(values):8.3f}")

    line("baseline", [least * micro for least, _, _ in found])
    line("path", [whole * micro for _, whole, _ in found])
    for stage in STAGES:
        line(f"  {stage}", [seconds[stage] * micro for _, _, seconds in found])
    # The least of each: noise only ever adds.
    beyond = (min(whole for _, whole, _ in found) - min(least for least, _, _ in found)) * micro
    paired = statistics.median(whole - least for least, whole, _ in found) * micro
    verdict = "within" if beyond <= chosen.bound else "ABOVE"
    print(f"  beyond the baseline   {beyond:8.3f}{paired:8.3f}   {verdict} the bound of {chosen.bound} µs")
    return int(beyond > chosen.bound)


if __name__ == "__main__":
    sys.exit(main())
