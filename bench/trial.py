"""One trial: a full queue, one program (or several of a kind), and what each process took until all was stored."""

from __future__ import annotations

import http.client
import os
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import gauges
from bench.programs import REPOSITORY, Target
from devstack import processes

if TYPE_CHECKING:
    from bench.lab import Lab, Load
    from bench.programs import Program

SCRAPE_SECONDS = 1.0
_START_SECONDS = 60.0
_STUCK_SECONDS = 90.0
_POLL_SECONDS = 0.03
_SETTLE_SECONDS = 0.3  # for the acks of what was stored last
_STOP_SECONDS = 40.0


class TrialError(Exception):
    """A program didn't do its work; the text says which, and shows what it said."""


class Figures(NamedTuple):
    """What a document cost, from the first delivery to the last ack.

    Attributes:
        pipeline_us: processor time of the program, user and system, in µs a document; that of its start is left out.
        rabbitmq_us: of RabbitMQ.
        elasticsearch_us: of Elasticsearch.
        documents_per_second: from the first that was seen stored to the last.
        started_bytes: resident memory when it began to consume.
        peak_bytes: the most resident memory it ever had.
    """

    pipeline_us: float
    rabbitmq_us: float
    elasticsearch_us: float
    documents_per_second: float
    started_bytes: int
    peak_bytes: int


class Run:
    """A program as a child process, in a folder of its own, scraped once a second where it can be."""

    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        environment = program.environment(target)
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._log = Path(self._folder.name) / "log"
        processes.watch_exit()
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                program.command,
                env=_inherited() | {"PYTHONPATH": str(REPOSITORY)} | dict(environment),
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        processes.note(f"+{self.pid}")
        self._over = threading.Event()
        self._scraper: threading.Thread | None = None
        if program.scraped:
            self._scraper = threading.Thread(target=self._scrape, args=(environment["SIDECAR_HTTP_ADDRESS"],))
            self._scraper.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def check(self) -> None:
        """See that it is there.

        Raises:
            TrialError: it ended by itself.
        """
        if self._process.poll() is not None:
            raise TrialError(f"{self.program.name} ended by itself:\n{processes.log_tail(self._log, 20)}")

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        processes.note(f"-{self.pid}")
        if self._scraper is not None:
            self._scraper.join()
        self._folder.cleanup()

    def said(self) -> str:
        """Return the end of what it printed."""
        return processes.log_tail(self._log, 20)

    def _scrape(self, address: str) -> None:
        while not self._over.wait(SCRAPE_SECONDS):
            connection = http.client.HTTPConnection(address, timeout=5.0)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/metrics")
                connection.getresponse().read()
            connection.close()


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}


def measure(lab: Lab, program: Program, load: Load, *, copies: int = 1, shards: int = 1) -> Figures:
    """Have a program move messages that are all there when it starts.

    Args:
        lab: the servers.
        program: what is measured.
        load: the messages.
        copies: how many of the program share the queue.
        shards: of the index.

    Raises:
        TrialError: it ended, or nothing moved any more, or what is there in the end isn't what it should be.
    """
    name = lab.names()
    lab.prepare(name, shards=shards)
    target = Target(lab.rabbitmq.amqp_url, lab.elasticsearch.url, name)
    runs: list[Run] = []
    try:
        lab.fill(name, load)
        lab.quiet()
        runs += [Run(program, target) for _ in range(copies)]
        figures = _watch(lab, name, load.count, runs)
    finally:
        for run in runs:
            run.stop()
    _look(lab, program, name, load.count)
    lab.forget(name)
    return figures


def _watch(lab: Lab, name: str, count: int, runs: list[Run]) -> Figures:
    _await_consumers(lab, name, runs)
    began = _cpu(lab, runs)
    already = lab.stored(name)  # of several copies the first doesn't wait for the last
    started_bytes = max(gauges.memory(run.pid).now_bytes for run in runs)
    stored, moved_at = already, time.monotonic()
    first: tuple[float, int] | None = None
    while stored < count:
        time.sleep(_POLL_SECONDS)
        for run in runs:
            run.check()
        now, found = time.monotonic(), lab.stored(name)
        if found != stored:
            stored, moved_at = found, now
            first = first or (now, found)
        elif now - moved_at > _STUCK_SECONDS:
            said = "\n".join(run.said() for run in runs)
            raise TrialError(f"{runs[0].program.name}: nothing moved for {_STUCK_SECONDS:g} s:\n{said}")
    ended_at = time.monotonic()
    time.sleep(_SETTLE_SECONDS)
    ended = _cpu(lab, runs)
    seen_at, seen = first or (ended_at, 0)
    if seen >= count:
        raise TrialError(f"{count} messages are too few: all were stored at the first look")
    micro = [(after - before) * 1e6 / (count - already) for before, after in zip(began, ended, strict=True)]
    peak_bytes = max(gauges.memory(run.pid).peak_bytes for run in runs)
    return Figures(*micro, (count - seen) / (ended_at - seen_at), started_bytes, peak_bytes)


def _await_consumers(lab: Lab, name: str, runs: list[Run]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while lab.consumers(name) < len(runs):
        for run in runs:
            run.check()
        if time.monotonic() > deadline:
            raise TrialError(f"{runs[0].program.name} doesn't consume:\n{runs[0].said()}")
        time.sleep(0.003)


def _cpu(lab: Lab, runs: list[Run]) -> tuple[float, float, float]:
    return sum(gauges.cpu_seconds(run.pid) for run in runs), *lab.cpu_seconds()


def _look(lab: Lab, program: Program, name: str, count: int) -> None:
    """See that everything is stored, and that nothing came back to the queue when the program ended."""
    documents, left = lab.elastic.count(name), lab.amqp.count(name)
    if (documents, left) != (count, 0):
        raise TrialError(f"{program.name} left {left:,} messages unsettled; {documents:,} of {count:,} are stored")
