"""What a message costs a batch consumer whose handler does nothing: ours and aio-pika-batch, in turns, on one broker.

    python3.12 -m venv theirs && theirs/bin/pip install aio-pika-batch
    python -m bench.library --theirs theirs/bin/python [--ours PYTHON] [--amqp-url URL]

Each round fills a quorum queue and has one process take all of it: consumed in batches, one verdict a message, acked.
What is measured is CPU time of that process (user and system, from the start of the consumer to its end, imports not
counted), so that a busy machine tells less. Both have the same broker, queue, bodies, prefetch and batch size, plain
asyncio and one worker, and garbage is collected as Python does it. Afterwards the queue must be empty.

aio-pika-batch needs Python 3.12. It is installed for this benchmark only, and is no part of the product.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.amqp import Amqp

BOUND_SHARE = 1 / 8
MESSAGES = 100_000
BODY_BYTES = 420
ROUNDS = 3
BATCH_ITEMS = 1000
PREFETCH = 3000
QUEUE = "bench.library"
ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
_LAST_ACKS_SECONDS = 5.0  # to settle the last batch: aio-pika-batch takes its time for that

_OURS = """
import asyncio, json, platform, sys, time
from sidecar import ACK, BatchConsumer

url, queue, count, batch, prefetch, arguments, pause = json.loads(sys.argv[1])

class Nothing(BatchConsumer):
    seen = 0

    async def process(self, batch):
        for message in batch:
            yield ACK
        self.seen += len(batch)
        if self.seen >= count:
            done.set()

async def main():
    async with Nothing(amqp_url=url, amqp_queue=queue, batch_max_items=batch, amqp_prefetch=prefetch) as consumer:
        await done.wait()
        await asyncio.sleep(pause)
    assert consumer.counts()["ack"] == count

done = asyncio.Event()
began, wall = time.process_time(), time.perf_counter()
asyncio.run(main())
took = time.process_time() - began, time.perf_counter() - wall - pause
print(json.dumps([*took, platform.python_implementation() + " " + platform.python_version()]))
"""

_THEIRS = """
import asyncio, json, logging, platform, sys, time
import structlog
from aio_pika_batch import BatchConsumer, BatchConsumerSettings, MessageResult

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
url, queue, count, batch, prefetch, arguments, pause = json.loads(sys.argv[1])

class Nothing(BatchConsumer):
    seen = 0

    async def process_messages(self, messages):
        for message in messages:
            yield MessageResult.ACK
        self.seen += len(messages)
        if self.seen >= count:
            done.set()

async def main():
    async with Nothing(BatchConsumerSettings(
        url=url, queue_name=queue, batch_size=batch, batch_timeout=1.0, prefetch_count=prefetch,
        queue_arguments=arguments,
    )):
        await done.wait()
        await asyncio.sleep(pause)

done = asyncio.Event()
began, wall = time.process_time(), time.perf_counter()
asyncio.run(main())
took = time.process_time() - began, time.perf_counter() - wall - pause
print(json.dumps([*took, platform.python_implementation() + " " + platform.python_version()]))
"""


class Side:
    """One of the two: what runs, and what was measured.

    Args:
        name: for people.
        code: of the process.
        python: that runs it.
    """

    def __init__(self, name: str, code: str, python: str) -> None:
        self.name = name
        self.interpreter = ""
        self.cpu_seconds: list[float] = []
        self.wall_seconds: list[float] = []
        self._code = code
        self._python = python

    def run(self, url: str, count: int) -> None:
        """Have a process take all messages.

        Raises:
            CalledProcessError: it failed; its words are on standard error.
        """
        options = json.dumps([url, QUEUE, count, BATCH_ITEMS, PREFETCH, ARGUMENTS, _LAST_ACKS_SECONDS])
        told = subprocess.run(
            [self._python, "-c", self._code, options],
            check=True,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )
        cpu, wall, self.interpreter = json.loads(told.stdout.splitlines()[-1])
        self.cpu_seconds.append(cpu)
        self.wall_seconds.append(wall)


def fill(client: Amqp, count: int) -> None:
    """Put messages into the queue."""
    from tests.servers.amqp import Outgoing

    client.delete_queue(QUEUE)
    client.declare_queue(QUEUE, ARGUMENTS)
    head = b'{"n":%d,"text":"'
    bodies: Iterator[bytes] = ((head % number).ljust(BODY_BYTES - 2, b"x") + b'"}' for number in range(count))
    properties = {"content_type": "application/json", "delivery_mode": 2, "message_id": "order-000000000000000000"}
    published = client.publish([Outgoing(body, QUEUE, properties=properties) for body in bodies])
    if published.nacked or published.returned:
        raise AssertionError("the broker didn't take all messages")


def measure(url: str, sides: list[Side], count: int, rounds: int) -> None:
    """Run all rounds.

    Raises:
        AssertionError: something was left in the queue.
    """
    from tests.servers.amqp import Amqp

    with Amqp(url) as client:
        for number in range(rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                fill(client, count)
                side.run(url, count)
                left = client.queue_state(QUEUE)
                if left is None or left.ready:
                    raise AssertionError(f"{side.name} left {left} in the queue")
        client.delete_queue(QUEUE)


def main() -> int:
    """Measure and print; return the exit status."""
    options = argparse.ArgumentParser(prog="python -m bench.library", description=__doc__)
    options.add_argument("--theirs", required=True, help="a Python that has aio-pika-batch")
    options.add_argument("--ours", default=sys.executable, help="a Python that has what the product needs")
    options.add_argument("--amqp-url", help="of a broker; without it one is started")
    options.add_argument("--messages", type=int, default=MESSAGES)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--bound", type=float, default=BOUND_SHARE, help="our share of their CPU time")
    chosen = options.parse_args()
    ours, theirs = Side("sidecar", _OURS, chosen.ours), Side("aio-pika-batch", _THEIRS, chosen.theirs)
    if chosen.amqp_url:
        measure(chosen.amqp_url, [ours, theirs], chosen.messages, chosen.rounds)
    else:
        from devstack.rabbitmq import RabbitMQ

        with RabbitMQ() as broker:
            measure(broker.amqp_url, [ours, theirs], chosen.messages, chosen.rounds)
    micro = 1e6 / chosen.messages
    print(f"{chosen.messages} messages of {BODY_BYTES} bytes, batches of {BATCH_ITEMS}, prefetch {PREFETCH}, ", end="")
    print(f"{chosen.rounds} rounds in turns on {platform.machine()}; the least, the median, and all of them")
    for side in (ours, theirs):
        cpu = [seconds * micro for seconds in side.cpu_seconds]
        every = ", ".join(f"{value:.2f}" for value in cpu)
        rate = chosen.messages / min(side.wall_seconds)
        print(f"  {side.name:<16}{min(cpu):8.2f}{statistics.median(cpu):8.2f} µs of CPU a message ({every})", end="")
        print(f", at best {rate:,.0f}/s, {side.interpreter}")
    share = statistics.median(ours.cpu_seconds) / statistics.median(theirs.cpu_seconds)
    verdict = "within" if share <= chosen.bound else "ABOVE"
    print(f"  share of the medians: 1/{1 / share:.1f}, {verdict} the bound of 1/{1 / chosen.bound:g}")
    return int(share > chosen.bound)


if __name__ == "__main__":
    sys.exit(main())
