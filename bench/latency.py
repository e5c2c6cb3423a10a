"""How long a message takes from its publish to its ack, at 10, 50 and 90 % of capacity: ``python -m bench.latency``.

The sidecar reaches RabbitMQ by a relay that looks for acks; the deliveries of one queue are numbered in the order of
their publishing, so the ack of a number is that of a message. Capacity is what goes through when the publisher, on the
same machine, doesn't wait. At half of it p99 may be the batch age and 50 ms; above that the exit status is 1.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from bench import command, gauges, programs, tools
from bench.compare import WARMING
from bench.lab import Lab, Load, messages
from bench.programs import Target
from bench.trial import Run, TrialError, measure
from devstack.processes import LOOPBACK
from tests.servers.amqp import Amqp

if TYPE_CHECKING:
    from tests.servers.amqp import Outgoing

BATCH_AGE_SECONDS = 1.0
GRACE_SECONDS = 0.05
SHARES = (0.1, 0.5, 0.9)
SECONDS = 20.0
CAPACITY_MESSAGES = 50_000
_TICK_SECONDS = 0.01
_MOST_AT_ONCE = 500
_WAIT_SECONDS = 60.0
_METHOD, _ACK = 1, b"\0\x3c\0\x50"


class Relay:
    """Passes bytes on between clients and RabbitMQ, and notes when which deliveries are acked.

    Args:
        port: of RabbitMQ.

    Attributes:
        port: where clients connect.
        acked: when each delivery was acked, in the order of their tags (`time.monotonic`).
    """

    def __init__(self, port: int) -> None:
        self._server = socket.create_server((LOOPBACK, 0))
        self._target = port
        self._sockets: list[socket.socket] = [self._server]
        self.port = self._server.getsockname()[1]
        self.acked: list[float] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                broker = socket.create_connection((LOOPBACK, self._target))
                self._sockets += (client, broker)
                for one in (client, broker):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_on, args=(client, broker, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(broker, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, look: bool) -> None:  # noqa: FBT001
        rest = b""
        with suppress(OSError):
            while data := source.recv(1 << 18):
                sink.sendall(data)
                if look:
                    rest = self._note_acks((rest + data).removeprefix(b"AMQP\0\0\x09\x01"))
            sink.shutdown(socket.SHUT_WR)

    def _note_acks(self, data: bytes) -> bytes:
        now, at = time.monotonic(), 0
        while len(data) - at >= 7:
            kind, _, size = struct.unpack_from(">BHI", data, at)
            if len(data) - at < size + 8:
                break
            if kind == _METHOD and data[at + 7 : at + 11] == _ACK:
                tag, multiple = struct.unpack_from(">QB", data, at + 11)
                if not multiple:
                    raise TrialError("a single ack: deliveries were not settled in their order")
                self.acked += [now] * (tag - len(self.acked))
            at += size + 8
        return data[at:]


def publish(lab: Lab, name: str, count: int, rate: float) -> list[float]:
    """Publish at a rate (0: as many as go), and return when each message was published."""
    published: list[float] = []
    waiting = messages(Load(count))
    began = time.monotonic()
    with Amqp(lab.rabbitmq.amqp_url) as amqp:
        while len(published) < count:
            now = time.monotonic()
            due = int((now - began) * rate) - len(published) if rate else _MOST_AT_ONCE
            chunk: list[Outgoing] = list(islice(waiting, min(max(0, due), _MOST_AT_ONCE)))
            if chunk:
                published += [now] * len(chunk)
                amqp.publish(chunk, routing_key=name)
            if due < _MOST_AT_ONCE:
                time.sleep(_TICK_SECONDS)
    return published


def latencies(lab: Lab, python: str, count: int, rate: float) -> tuple[list[float], float]:
    """Return the seconds from publish to ack of each message, ascending, and how many went through a second."""
    name = lab.names()
    lab.prepare(name)
    relay = Relay(lab.rabbitmq.port)
    url = f"amqp://guest:guest@{LOOPBACK}:{relay.port}/"
    run = Run(programs.sidecar(python), Target(url, lab.elasticsearch.url, name))
    try:
        deadline = time.monotonic() + _WAIT_SECONDS
        while lab.consumers(name) < 1 and time.monotonic() < deadline:
            run.check()
            time.sleep(0.05)
        published = publish(lab, name, count, rate)
        deadline = time.monotonic() + _WAIT_SECONDS
        while len(relay.acked) < count:
            run.check()
            if time.monotonic() > deadline:
                raise TrialError(f"{len(relay.acked)} of {count} were acked:\n{run.said()}")
            time.sleep(0.05)
    finally:
        run.stop()
        relay.close()
    lab.forget(name)
    waited = sorted(acked - sent for sent, acked in zip(published, relay.acked, strict=True))
    return waited, count / (relay.acked[-1] - published[0])


def main() -> int:
    """Measure and print; return the exit status."""
    options = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    options.add_argument("--seconds", type=float, default=SECONDS, help="for each rate")
    options.add_argument("--queue-type", choices=("quorum", "classic"), default="quorum")
    options.add_argument("--python", default=sys.executable)
    chosen = options.parse_args()
    python = tools.python(chosen.python)
    good = True
    with Lab(chosen.queue_type) as lab:
        print(f"{tools.describe(python)}; {lab.how}; {gauges.machine()}")
        measure(lab, programs.sidecar(python), WARMING)
        _, capacity = latencies(lab, python, CAPACITY_MESSAGES, 0.0)
        print(f"capacity with the publisher beside it: {capacity:,.0f} docs/s\n")
        print("| load | docs/s | p50 ms | p99 ms | most ms |\n|---|---|---|---|---|")
        for share in SHARES:
            rate = capacity * share
            waited, through = latencies(lab, python, max(100, int(rate * chosen.seconds)), rate)
            p50, p99, most = (1000 * waited[min(len(waited) - 1, int(len(waited) * at))] for at in (0.5, 0.99, 1.0))
            good &= share != 0.5 or p99 <= 1000 * (BATCH_AGE_SECONDS + GRACE_SECONDS)
            print(f"| {share:.0%} | {through:,.0f} | {p50:,.0f} | {p99:,.0f} | {most:,.0f} |", flush=True)
    print("p99 at half load: " + ("met" if good else "NOT met"))
    return 0 if good else 1


if __name__ == "__main__":
    command.run(main)
