"""Servers that break at random while messages flow, and a judge at the end.

    python -m tests.faults.chaos --seconds 60 --seed 7

The seed gives the plan: the load, the settings, and each fault with its time. How long servers take is up to them, so
the same seed gives the same plan, not the same run. Exit status 1 where something doesn't add up; then the logs are
kept.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from devstack import processes
from devstack.errors import StackError
from tests.faults.model import PublisherConnection, Verdict, judge
from tests.faults.plan import Fault, Plan, make_plan
from tests.faults.proxy import Proxy
from tests.integration.harness import QUORUM
from tests.integration.process import SidecarProcess, wait_until
from tests.servers.amqp import Amqp, AmqpError
from tests.servers.es import Elastic, ElasticError
from tests.servers.provider import own_broker, own_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STUCK_SECONDS = 150.0
"""So long nothing is settled, with all servers there. Longer than any pause, and than a round by the delay queue."""
_MAX_ROUNDS = 4
_INSIST_SECONDS = 90.0
_POLL_SECONDS = 0.5
_CLIENT_SECONDS = 10.0
_EXIT_SLACK_SECONDS = 20.0
_TINY_POOL = {"thread_pool.write.size": 1, "thread_pool.write.queue_size": 1}
_WATERMARK = "0.4"
_SETTLED = ("ack", "delay", "requeue", "dead_letter", "discard", "stale")
_TROUBLES = (StackError, AmqpError, ElasticError, OSError, http.client.HTTPException)


class Servers(NamedTuple):
    """What is broken."""

    rabbitmq: Any
    elasticsearch: Any


class Chaos:
    """One run.

    Args:
        plan: what happens.
        servers: that may be broken, and run again at the end.
        folder: for the logs of the sidecars.
        say: takes a line for people.
    """

    def __init__(self, plan: Plan, servers: Servers, folder: Path, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.verdict = Verdict()
        self.happened: Counter[str] = Counter()
        self._servers = servers
        self._folder = folder
        self._say = say
        self._name = f"chaos-{plan.seed}-{secrets.token_hex(4)}"
        self._began_at = time.monotonic()
        self._over = threading.Event()
        self._amqp_proxy = Proxy(servers.rabbitmq.amqp_url)
        self._http_proxy = Proxy(servers.elasticsearch.url, http=True)
        self._sidecar: SidecarProcess | None = None
        self._sidecars = 0
        self._peak_kilobytes = 0
        self._totals: Counter[str] = Counter()

    # The run ---------------------------------------------------------------------------------------------------------

    def run(self) -> Verdict:
        """Run the plan, wait for everything to be settled, and judge."""
        try:
            self._prepare()
            self._start_sidecar()
            producer = PublisherConnection(self._servers.rabbitmq.amqp_url, self._name, self.plan)
            producer.start()
            self._break_things()
            producer.stop()
            if producer.failed is not None:
                self.verdict.discrepancies.append(f"the producer failed: {producer.failed!r}")
            self._recover()
            self._judge(producer)
        finally:
            if self._sidecar is not None:
                self._sidecar.kill()
            self._http_proxy.close()
            self._amqp_proxy.close()
        return self.verdict

    def _prepare(self) -> None:
        arguments = QUORUM if self.plan.queue_type == "quorum" else {"x-queue-type": "classic"}
        with Amqp(self._servers.rabbitmq.amqp_url) as client:
            client.declare_queue(self._name, arguments)
        with self._elastic() as client:
            shards = 4 if self.plan.tiny_pool else 1
            properties = {"n": {"type": "long"}, "of": {"type": "keyword"}}
            client.create_index(self._name, settings={"number_of_shards": shards}, mappings={"properties": properties})

    def _break_things(self) -> None:
        self._began_at = time.monotonic()
        lanes = [
            threading.Thread(target=self._run_lane, args=(faults,), name=lane, daemon=True)
            for lane, faults in self.plan.faults.items()
        ]
        for lane in lanes:
            lane.start()
        self._over.wait(self.plan.seconds)
        self._over.set()
        for lane in lanes:
            lane.join()
        self._tell("all faults are over")

    def _recover(self) -> None:
        """Wait until nothing is left in the queues, whose counts of unsettled messages are seconds old."""
        began_at = time.monotonic()
        for _ in range(_MAX_ROUNDS):
            if self._ended_by_itself():
                self._start_sidecar()
            if not self._wait_settled():
                break
            recovered_seconds = time.monotonic() - began_at
            self._terminate()
            if not any(self._ready().values()):
                self._tell(f"recovered after {recovered_seconds:.1f} s")
                self.verdict.figures["seconds to recover"] = round(recovered_seconds)
                return
            self._start_sidecar()
        self._keep_what_elasticsearch_says()
        told = self._sidecar.told() if self._sidecar is not None else ""
        self.verdict.discrepancies.append(f"stuck after all faults were over: {self._ready()}, {told}")

    def _keep_what_elasticsearch_says(self) -> None:
        """Ask it what it does, beside the logs: whether it takes a write of ours tells whose fault it is."""
        with (self._folder / "elasticsearch.txt").open("w") as sink:
            for method, path, body in (
                ("PUT", f"/{self._name}/_doc/chaos?timeout=5s", {"n": 0}),
                ("GET", "/_cat/shards?v&h=index,state,docs,unassigned.reason,unassigned.details", None),
                ("GET", "/_cat/thread_pool/write,write_coordination?v&h=name,active,queue,rejected,completed", None),
                ("GET", "/_cluster/pending_tasks", None),
                ("GET", f"/{self._name}/_settings", None),
                ("GET", "/_nodes/hot_threads?threads=20&ignore_idle_threads=false", None),
            ):
                asked_at = time.monotonic()
                try:
                    with self._elastic() as client:
                        answer = client.send(method, path, body)
                    said = f"{answer.status} {answer.body.decode(errors='replace')}"
                except _TROUBLES as error:
                    said = repr(error)
                print(f"{method} {path}: {time.monotonic() - asked_at:.1f} s\n{said}\n", file=sink)

    def _wait_settled(self) -> bool:
        """Wait until all is settled; how long is a matter of the load, but something must go on all the time."""
        least, least_at = None, time.monotonic()
        while time.monotonic() < least_at + STUCK_SECONDS:
            with contextlib.suppress(*_TROUBLES):
                left = sum(self._ready().values()), self._unsettled()
                if not any(left):
                    return True
                if least is None or sum(left) < least:
                    least, least_at = sum(left), time.monotonic()
            time.sleep(_POLL_SECONDS)
        return False

    def _queues(self) -> dict[str, int]:
        listing = self._servers.rabbitmq.rabbitmqctl("list_queues", "name", "messages", "--no-table-headers")
        counts = dict(line.split("\t") for line in listing.splitlines() if line.startswith(self._name))
        return {name: int(count) for name, count in counts.items() if not name.endswith(".dead")}

    def _unsettled(self) -> int:
        return sum(self._queues().values())

    def _ready(self) -> dict[str, int]:
        with Amqp(self._servers.rabbitmq.amqp_url) as client:
            return {name: client.count(name) for name in self._queues()}

    def _judge(self, producer: PublisherConnection) -> None:
        with self._elastic() as client:
            documents = client.documents(self._name)
        with Amqp(self._servers.rabbitmq.amqp_url) as client:
            dead = f"{self._name}.dead"
            letters = client.drain(dead) if client.queue_state(dead) is not None else []
            for name in (*self._queues(), dead):
                client.delete_queue(name)
        found = judge(producer.published, documents, letters, versioned=self.plan.versioned)
        self.verdict.discrepancies += found.discrepancies
        self.verdict.figures |= found.figures
        self.verdict.figures |= {
            "sidecars": self._sidecars,
            "most resident memory, MiB": self._peak_kilobytes // 1024,
            "requests": len(self._http_proxy.requests),
        }
        # What the sidecars that were killed did is not known: these are sums of those that could say.
        self.verdict.figures |= {f"told: {name}": count for name, count in self._totals.items()}

    # Faults ----------------------------------------------------------------------------------------------------------

    def _run_lane(self, faults: list[Fault]) -> None:
        for fault in faults:
            pause_seconds = self._began_at + fault.at - time.monotonic()
            if self._over.wait(max(0.0, pause_seconds)):
                return
            self._tell(f"{fault.kind} for {fault.seconds:g} s")
            self.happened[fault.kind] += 1
            try:
                with self._faulty(fault.kind):
                    self._over.wait(fault.seconds)
            except Exception as error:  # noqa: BLE001 - the run goes on, and its report says so
                self.verdict.discrepancies.append(f"{fault.kind} could not be done: {error!r}")
            self._tell(f"{fault.kind}: over")

    @contextlib.contextmanager
    def _faulty(self, kind: str) -> Iterator[None]:
        """Break something, and put it right."""
        subject, _, what = kind.partition(" ")
        if subject == "sidecar":
            self._end_sidecar(what)
            yield
            self._start_sidecar()
        elif subject == "index":
            name = "index.blocks.write" if what == "write-blocked" else "index.blocks.read_only_allow_delete"
            self._insist(lambda: self._put_block(name, block=True))
            yield
            self._insist(lambda: self._put_block(name, block=None))
        else:
            server = getattr(self._servers, subject)
            proxy = self._http_proxy if subject == "elasticsearch" else self._amqp_proxy
            with self._broken(server, proxy, what):
                yield

    @contextlib.contextmanager
    def _broken(self, server: Any, proxy: Proxy, what: str) -> Iterator[None]:
        begins: dict[str, Callable[[], object]] = {
            "killed": server.kill,
            "frozen": server.freeze,
            "restarted": server.stop,
            "cut off": proxy.cut,
            "stalled": proxy.stall,
            "answers lost": proxy.lose_answers,
            "connections reset": proxy.drop,
            "connections closed": lambda: self._insist(lambda: server.rabbitmqctl("close_all_connections", "chaos")),
            "alarm": lambda: self._insist(lambda: server.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")),
        }
        begins[what]()
        try:
            yield
        finally:
            if what in ("killed", "restarted"):
                server.start()
            elif what == "frozen":
                server.thaw()
            elif what == "alarm":
                self._insist(lambda: server.rabbitmqctl("set_vm_memory_high_watermark", _WATERMARK))
            elif what == "answers lost":
                proxy.drop()  # nobody hears those any more
            proxy.lift()

    def _put_block(self, name: str, *, block: bool | None) -> None:
        with self._elastic() as client:
            client.put_settings(self._name, {name: block})

    def _insist(self, action: Callable[[], object]) -> None:
        """Do something that a server may be too busy for at first."""
        deadline = time.monotonic() + _INSIST_SECONDS
        while True:
            try:
                action()
            except _TROUBLES:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _elastic(self) -> Elastic:
        return Elastic(self._servers.elasticsearch.url, timeout_seconds=_CLIENT_SECONDS)

    # The sidecar -----------------------------------------------------------------------------------------------------

    def _start_sidecar(self) -> None:
        self._sidecars += 1
        settings = {
            "AMQP_URL": f"amqp://guest:guest@127.0.0.1:{self._amqp_proxy.port}/?heartbeat=3",
            "AMQP_QUEUE": self._name,
            "ELASTICSEARCH_URL": f"http://127.0.0.1:{self._http_proxy.port}",
            "INDEX": self._name,
            **self.plan.settings,
        }
        environment = {f"SIDECAR_{name}": value for name, value in settings.items()}
        sidecar = SidecarProcess(environment, self._folder / f"sidecar-{self._sidecars}.log")
        self._sidecar = sidecar
        # Before it says so it has nothing to do with either server, and its end would show nothing.
        wait_until(
            lambda: bool(_events(sidecar.log)) or sidecar.process.poll() is not None,
            _INSIST_SECONDS,
            "a sidecar that has started",
        )

    def _end_sidecar(self, how: str) -> None:
        if self._ended_by_itself():
            return
        if how == "terminated":
            self._terminate()
        elif self._sidecar is not None:
            self._note_memory(self._sidecar)
            self._sidecar.kill()
            self._sidecar = None

    def _ended_by_itself(self) -> bool:
        sidecar = self._sidecar
        if sidecar is not None and sidecar.process.poll() is not None:
            self.verdict.discrepancies.append(
                f"a sidecar ended by itself with {sidecar.process.returncode}: {sidecar.told()}"
            )
            self._sidecar = None
        return self._sidecar is None

    def _terminate(self) -> None:
        """Send SIGTERM, and judge the account that the sidecar leaves."""
        sidecar, self._sidecar = self._sidecar, None
        assert sidecar is not None
        self._note_memory(sidecar)
        sidecar.process.send_signal(signal.SIGTERM)
        shutdown_seconds = float(self.plan.settings["SHUTDOWN_TIMEOUT"].rstrip("s"))
        asked_at = time.monotonic()
        try:
            status = sidecar.process.wait(shutdown_seconds + _EXIT_SLACK_SECONDS)
        except subprocess.TimeoutExpired:
            sidecar.kill()
            status = None
        took_seconds = time.monotonic() - asked_at
        self._tell(f"the sidecar ended with {status} after {took_seconds:.1f} s")
        stopped = [event for event in _events(sidecar.log) if event.get("event") == "sidecar.stopped"]
        if status != 0:
            self.verdict.discrepancies.append(f"SIGTERM ended in {status} after {took_seconds:.1f} s: {sidecar.told()}")
        elif len(stopped) != 1:
            self.verdict.discrepancies.append(f"no account at the end: {sidecar.told()}")
        for account in stopped:
            self._judge_account(account)

    def _judge_account(self, account: dict[str, Any]) -> None:
        settled = sum(account[name] for name in _SETTLED)
        if account["received"] != settled or account["in_flight"] != 0:
            self.verdict.discrepancies.append(f"the account doesn't add up: {account}")
        self._totals.update({name: account[name] for name in ("received", *_SETTLED)})

    def _note_memory(self, sidecar: SidecarProcess) -> None:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
            peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            self._peak_kilobytes = max(self._peak_kilobytes, *map(int, peaks), 0)

    def _tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began_at:7.1f} s  {text}")


def _events(log: Path) -> list[dict[str, Any]]:
    events = []
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):  # the last line of one that was killed
            events.append(json.loads(line))
    return events


def start_servers(plan: Plan) -> Servers:
    """Start servers of the run's own."""
    rabbitmq = own_broker()
    try:
        return Servers(rabbitmq, own_cluster(_TINY_POOL if plan.tiny_pool else None))
    except BaseException:
        rabbitmq.close()
        raise


def describe(plan: Plan) -> str:
    """Return a plan in one line."""
    traits = [plan.queue_type, "versioned" if plan.versioned else "unversioned"]
    traits += ["tiny write pool"] if plan.tiny_pool else []
    load = f"{plan.burst} messages each {plan.pause_seconds:g} s, {plan.bad_share:.1%} bad, "
    load += f"{plan.hot_share:.0%} on {plan.hot_documents} documents"
    settings = " ".join(f"{name}={value}" for name, value in plan.settings.items())
    return f"seed {plan.seed}, {plan.seconds:g} s: {', '.join(traits)}; {load}; {settings}"


def report(chaos: Chaos, say: Callable[[str], None]) -> None:
    """Tell what a run found."""
    say("faults: " + ", ".join(f"{kind}: {count}" for kind, count in sorted(chaos.happened.items())))
    say("figures: " + ", ".join(f"{name} {count}" for name, count in chaos.verdict.figures.items()))
    for discrepancy in chaos.verdict.discrepancies:
        say(f"DISCREPANCY (seed {chaos.plan.seed}): {discrepancy}")
    say(f"seed {chaos.plan.seed}: " + ("it doesn't add up" if chaos.verdict.discrepancies else "all adds up"))


def main() -> int:
    """Run chaos from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults happen, in each run")
    parser.add_argument("--seed", type=int, help="of the first run; without it one is drawn and printed")
    parser.add_argument("--runs", type=int, default=1, help="how many runs, each with the next seed")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    lock = threading.Lock()

    def say(text: str) -> None:
        with lock:
            print(text, flush=True)

    status = 0
    for seed in range(first, first + options.runs):
        plan = make_plan(seed, options.seconds)
        say(describe(plan))
        folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-", dir=processes.home_base()))
        servers = start_servers(plan)
        try:
            chaos = Chaos(plan, servers, folder, say)
            chaos.run()
        finally:
            for server in servers:
                server.close()
        report(chaos, say)
        if chaos.verdict.discrepancies:
            say(f"logs: {folder}")
            status = 1
        else:
            shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
