"""``python -m demo``, or ``make demo``: everything at work, and an account that is checked.

Exit status: 0 when the account holds, 1 when it doesn't or something failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from aiormq.exceptions import AMQPError
from elasticsearch import ApiError, TransportError

from demo.checks import Evidence, check
from demo.findings import Documents, Queues, open_queues
from demo.servers import Servers
from demo.show import Numbers, Screen
from demo.sidecar import REPOSITORY, Sidecar
from devstack import processes
from devstack.errors import StackError
from sidecar.amqp.publisher_connection import open_publisher_connection
from sidecar.amqp.topology import Topology
from sidecar.cli.produce import Route, Sender
from sidecar.cli.samples import MAPPING_CONFLICT, STRANGE, Samples
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from sidecar.cli.samples import Sample

QUEUE, DEAD, INDEX = "orders", "orders.dead", "events"
MAPPINGS = REPOSITORY / "mappings"
POLL_SECONDS = 0.25
STUCK_SECONDS = 60.0
INTERRUPTED = 130


class DemoError(Exception):
    """What is to be shown went wrong; the text says what."""


class Demo:
    """One demonstration.

    Args:
        options: of the command line.
        screen: what a person sees.
        servers: both running.
        folder: for the sidecar and its log.
    """

    def __init__(self, options: argparse.Namespace, screen: Screen, servers: Servers, folder: Path) -> None:
        self._options = options
        self._screen = screen
        self._servers = servers
        self._folder = folder
        self._settings = {
            "SIDECAR_AMQP_URL": servers.amqp_url,
            "SIDECAR_AMQP_QUEUE": QUEUE,
            "SIDECAR_ELASTICSEARCH_URL": servers.elasticsearch_url,
            "SIDECAR_INDEX": INDEX,
            "SIDECAR_ACTION": "create",  # a data stream takes nothing else
            "SIDECAR_MAPPINGS_DIR": str(MAPPINGS),
            "SIDECAR_MAPPINGS_APPLY": "true",
        }
        samples = Samples(options.seed, bad_ratio=options.bad_ratio)
        self._samples: list[Sample] = list(islice(samples, options.count))
        self._sidecar: Sidecar | None = None

    async def run(self) -> bool:
        """Run it, and return whether the account holds.

        Raises:
            DemoError, SidecarError: it didn't come as far as an account.
        """
        documents = Documents(self._servers.elasticsearch_url, INDEX)
        queues = await open_queues(self._servers.amqp_url)
        try:
            self._sidecar = Sidecar(self._settings, self._folder)
            self._screen.say(f"sidecar started: {QUEUE} → data stream {INDEX}, rejects → {DEAD}")
            self._screen.say(f"it installs the templates of {MAPPINGS.relative_to(REPOSITORY)}: amount is a number")
            confirmed = await self._move(documents, queues)
            evidence = await self._gather(documents, queues, confirmed)
        except BaseException:
            self._end_sidecar()
            raise
        finally:
            await documents.close()
            await queues.close()
        return self._tell(evidence)

    async def _move(self, documents: Documents, queues: Queues) -> int:
        """Publish everything and wait until all of it arrived; return how many messages were confirmed."""
        options, numbers = self._options, Numbers()
        good = sum(not sample.kind.reason for sample in self._samples)
        bad = len(self._samples) - good
        self._screen.say(
            f"publishing {len(self._samples):,} messages, {bad:,} of them bad in different ways (seed {options.seed})"
        )
        loop = asyncio.get_running_loop()
        producer = await open_publisher_connection((self._servers.amqp_url,), Topology(queues=(QUEUE,)))
        sender = Sender(producer, Route("", QUEUE), rate=options.rate)
        sending = loop.create_task(sender.send(iter(self._samples), asyncio.Event()))
        try:
            with self._screen.live(len(self._samples), good, bad) as live:
                moved_at, moved = loop.time(), 0
                while (arrived := numbers.stored + numbers.dead) < len(self._samples) or not sending.done():
                    if sending.done():
                        await sending  # a failure is told at once
                    if self._sidecar is not None and not self._sidecar.running:
                        raise DemoError("the sidecar ended by itself")
                    if arrived + numbers.published != moved:
                        moved_at, moved = loop.time(), arrived + numbers.published
                    elif loop.time() - moved_at > STUCK_SECONDS:
                        raise DemoError(f"nothing has moved for {STUCK_SECONDS:g} s")
                    await asyncio.sleep(POLL_SECONDS)
                    numbers.published = sender.tally.confirmed
                    numbers.stored = await documents.count()
                    numbers.dead, numbers.queued = await queues.length(DEAD), await queues.length(QUEUE)
                    live.update(numbers)
                await sending
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            await producer.close()
        return sender.tally.confirmed

    async def _gather(self, documents: Documents, queues: Queues, confirmed: int) -> Evidence:
        """Stop the sidecar, and look at what there is."""
        assert self._sidecar is not None
        self._screen.say("stopping the sidecar (SIGTERM)")
        status = await asyncio.to_thread(self._sidecar.stop)
        accounts = self._sidecar.events("sidecar.stopped")
        self._screen.say("reading every document and every dead letter")
        return Evidence(
            confirmed=confirmed,
            documents=await documents.everything(),
            letters=await queues.look(DEAD),
            left=await queues.length(QUEUE),
            exit_status=status,
            account=accounts[-1] if accounts else {},
        )

    def _tell(self, evidence: Evidence) -> bool:
        """Show one document, the dead letters and the account."""
        strange = {sample.document_id for sample in self._samples if sample.kind in STRANGE}
        plain = [document for document in evidence.documents if document[0] not in strange]
        if plain:
            self._screen.document(*plain[0])
        wanted = {sample.document_id for sample in self._samples if sample.kind is MAPPING_CONFLICT}
        letters = [letter for letter in evidence.letters if letter.document_id in wanted] or evidence.letters
        if letters:
            self._screen.letter(letters[0])
            self._screen.kinds(evidence.letters)
        checks = check(self._samples, evidence)
        self._screen.account(checks)
        holds = all(one.holds for one in checks)
        self._screen.verdict(holds=holds)
        if not holds:
            self._quote_log()
        return holds

    async def keep(self) -> None:
        """Leave everything running, the sidecar again as well, until somebody ends it."""
        before = len(self._sidecar.events("http.listening")) if self._sidecar is not None else 0
        self._sidecar = Sidecar(self._settings, self._folder)
        while self._sidecar.running and len(self._sidecar.events("http.listening")) == before:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        if not self._sidecar.running:
            raise DemoError("the sidecar ended by itself")
        self._tell_how_to_play(self._sidecar)
        while self._sidecar.running:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(POLL_SECONDS)
        raise DemoError("the sidecar ended by itself")

    def _tell_how_to_play(self, sidecar: Sidecar) -> None:
        python = os.path.relpath(sys.executable)
        amqp, elasticsearch = self._servers.amqp_url, self._servers.elasticsearch_url
        page = sidecar.events("http.listening")[-1]["address"]
        self._screen.quote(
            "\nLeft running, until Ctrl-C:",
            f"  RabbitMQ       {amqp}   queues {QUEUE} and {DEAD}\n"
            f"  Elasticsearch  {elasticsearch}   index {INDEX}\n"
            f"  sidecar        process {sidecar.pid}, log {sidecar.log}\n"
            f"  status page    http://{page}/\n\n"
            "Try, in another terminal:\n"
            f"  SIDECAR_AMQP_URL={amqp} {python} -m sidecar produce --queue {QUEUE} --count 5000 --bad-ratio 0.02\n"
            f"  curl '{elasticsearch}/{INDEX}/_count?pretty'\n"
            f"  curl '{elasticsearch}/{INDEX}/_search?q=items.sku:TEA-001&size=1&pretty'\n"
            f"  tail -f {sidecar.log}",
        )

    def _quote_log(self) -> None:
        if self._sidecar is not None:
            self._screen.quote("The end of the sidecar's log:", self._sidecar.log_tail())

    def _end_sidecar(self) -> None:
        if self._sidecar is not None and self._sidecar.running:
            self._sidecar.kill()

    def close(self, *, failed: bool) -> None:
        """End the sidecar, in good order where that is possible; show its log after a failure."""
        if failed:
            self._end_sidecar()
            self._quote_log()
        elif self._sidecar is not None and self._sidecar.running:
            self._sidecar.stop()


def _options() -> argparse.Namespace:
    description = "Everything at work, and an account that is checked."
    parser = argparse.ArgumentParser(prog="python -m demo", description=description)
    parser.add_argument("--count", type=int, default=20_000, help="messages (%(default)s)")
    parser.add_argument("--bad-ratio", type=float, default=0.01, help="the share of bad ones (%(default)s)")
    parser.add_argument("--rate", type=float, default=5_000, help="messages a second; 0: no limit (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="the same seed, the same messages (chance)")
    parser.add_argument("--keep", action="store_true", help="leave all running until Ctrl-C; also with KEEP=1")
    options = parser.parse_args()
    options.keep = options.keep or os.environ.get("KEEP", "") not in ("", "0")
    if options.seed is None:
        options.seed = random.SystemRandom().getrandbits(32)
    return options


async def _perform(demo: Demo, *, keep: bool) -> bool:
    """Run the demo so that SIGINT and SIGTERM cancel it."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    holds = await demo.run()
    if keep and holds:
        with contextlib.suppress(asyncio.CancelledError):  # its end is what everybody waits for
            await demo.keep()
    return holds


def main() -> int:
    """Run the demo and return the exit status."""
    options, screen = _options(), Screen()
    servers = Servers(screen.say)
    folder = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
    processes.watch_exit()
    processes.note(f"+{folder}")  # should somebody kill us
    demo: Demo | None = None
    status = 1
    try:
        servers.start()
        screen.say(f"servers ready ({servers.how})")
        demo = Demo(options, screen, servers, folder)
        status = 0 if asyncio.run(_perform(demo, keep=options.keep)) else 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = INTERRUPTED
        screen.say("interrupted")
    except (DemoError, SidecarError, StackError, ApiError, TransportError, AMQPError, OSError) as error:
        screen.fail(f"{error}" if isinstance(error, DemoError | SidecarError | StackError) else repr(error))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
        screen.say("cleaning up")
        if demo is not None:
            demo.close(failed=status == 1)
        servers.close()
        processes.remove_home(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
