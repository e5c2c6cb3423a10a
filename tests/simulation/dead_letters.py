"""A bad day of `sidecar dlq`: random dead letters, random faults of the broker, and a judge of its own.

The command runs as a user calls it, over a server inside of the same loop (`tests.fakes.amqp_server`), in virtual time.
The judge knows what was put into the queues and what the server saw, and nothing of how the product works:

- Nothing is lost: every letter is in its queue, or where it was replayed to, or was purged by a filter that it matches.
- No letter is replayed twice by one command, and none is acked before the server has confirmed its copy.
- What stays is in its order, and so is what was replayed.
- Without a fault exactly the letters are replayed or removed that the options mean.
- Exit status and figures are true. Every connection is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import struct
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any
from unittest import mock

from click.testing import CliRunner

from sidecar.amqp import dead_letter_queue
from sidecar.cli import cli, dlq
from tests.builders import long_string, properties
from tests.fakes import clock
from tests.fakes.amqp_server import AmqpServer, Stored, by_chance, drop, end, refuse
from tests.fakes.network import Network, NetworkLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.amqp_server import Channel, Publish

DEAD = "work.dead"
TARGETS = ("work", "other", "gone", "full", "")
METHODS = (
    "connection.open", "channel.open", "queue.declare", "basic.qos", "basic.consume", "basic.ack", "basic.publish",
    "confirm.select", "channel.close",
)  # fmt: skip
_PORT = 5672
_MAX_PARTS_IN_BOTH = 3
"""Parts whose acks may be lost with the connection: one unconfirmed, and those on their way while its end comes."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A letter as it was put into the queue."""

    number: int
    queue: str
    reason: str
    error_type: str
    index: str
    replays: int
    is_cut: bool
    expires: bool
    returns: int

    @property
    def body(self) -> bytes:
        return b'{"number":%d}' % self.number

    @property
    def properties(self) -> bytes:
        texts = {
            "reason": self.reason, "error-type": self.error_type, "index": self.index, "queue": self.queue,
            "id": f"d{self.number}", "cut": "big" if self.is_cut else "sidecar-error-reason", "failed-at": "2026-01-01",
            **({"original-expiration": "60000"} if self.expires else {}),
        }  # fmt: skip
        headers = [(b"sidecar-" + name.encode(), long_string(text.encode())) for name, text in texts.items() if text]
        headers.append((b"sidecar-replays", b"l" + struct.pack(">q", self.replays)))
        return properties(headers, message_id=b"m%d" % self.number, delivery_mode=2)


@dataclass(slots=True)
class Command:
    """A call of `sidecar dlq`, in its own words and as the judge understands it."""

    name: str
    reason: str | None = None
    error_type: str | None = None
    index: str | None = None
    document_id: str | None = None
    position: int | None = None
    limit: int | None = None
    max_replays: int | None = None
    rate: float | None = None
    dry_run: bool = False

    @property
    def line(self) -> list[str]:
        options: dict[str, object] = {
            "--reason": self.reason, "--error-type": self.error_type, "--index": self.index, "--id": self.document_id,
            "--limit": self.limit, "--max-replays": self.max_replays, "--rate": self.rate,
        }  # fmt: skip
        words = [
            self.name,
            *(str(word) for name, value in options.items() if value is not None for word in (name, value)),
        ]
        words += ["--dry-run"] if self.dry_run else []
        words += ["--yes"] if self.name == "purge" else []
        return [*words, *([str(self.position)] if self.position is not None else []), "--format", "json"]

    def means(self, letter: DeadLetter) -> bool:
        """Whether the filters mean a letter; their patterns are words, or beginnings with a ``*``."""
        told = ((self.reason, letter.reason), (self.error_type, letter.error_type), (self.index, letter.index))
        named = (
            self.document_id is None
            or _matches(self.document_id, f"m{letter.number}")
            or _matches(self.document_id, f"d{letter.number}")
        )
        return named and all(pattern is None or _matches(pattern, text) for pattern, text in told)

    def can_replay(self, letter: DeadLetter) -> bool:
        """Whether a letter may be replayed at all."""
        return bool(letter.queue) and letter.replays < (self.max_replays or 3) and not letter.is_cut


def _matches(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


@dataclass(slots=True)
class Day:
    """What happens on a day.

    Attributes:
        faults: what goes wrong in each command, by its name; ``""`` for nothing.
        window: letters that are unsettled at once; small ones show what happens at its end.
        at_once: letters published at once.
        arrivals: that come while the first command reads.
        stolen: letters that somebody else takes meanwhile.
    """

    seed: int
    kind: str
    letters: list[DeadLetter]
    commands: list[Command]
    faults: list[str]
    window: int
    at_once: int
    arrivals: int
    stolen: int


FAULTS = (
    "cut-sent", "cut-received", "cut-sent-publishing", "cut-received-publishing", "refuse", "end", "drop", "drop-after",
    "block", "kill", "nack", "stop", "cancel",
)  # fmt: skip


def draw(seed: int) -> Day:
    """Return the day of a seed."""
    rng = Random(seed)
    worn = rng.random() < 0.3
    letters_ = [
        DeadLetter(
            number=number,
            queue=rng.choices(TARGETS, (6, 3, 1, 1, 1))[0],
            reason=rng.choice(("rejected", "retries-exhausted", "malformed")),
            error_type=rng.choice(("mapper", "illegal", "")),
            index=rng.choice(("logs-1", "logs-2", "audit")),
            replays=rng.choice((0, 0, 0, 1, 3)),
            is_cut=rng.random() < 0.1,
            expires=rng.random() < 0.2,
            returns=rng.randrange(14) if worn else 0,
        )
        for number in range(rng.choice((0, 1, 2, 5, 12, 30, 60)))
    ]
    count = rng.choice((1, 1, 2, 3))
    return Day(
        seed=seed,
        kind=rng.choice(("quorum", "classic")),
        letters=letters_,
        commands=[_command(rng, len(letters_)) for _ in range(count)],
        faults=[rng.choice(FAULTS) if rng.random() < 0.6 else "" for _ in range(count)],
        window=rng.choice((1, 2, 5, 20, 200)),
        at_once=rng.choice((1, 2, 7, 200)),
        arrivals=rng.choice((0, 0, 0, 1, 4)),
        stolen=rng.choice((0, 0, 0, 0, 1, 5)),
    )


def _command(rng: Random, letters_: int) -> Command:
    name = rng.choices(("replay", "purge", "list", "show"), (6, 2, 1, 1))[0]
    if name == "show":
        return Command("show", position=rng.randint(1, letters_ + 2))
    command = Command(name)
    if rng.random() < 0.4:
        command.reason = rng.choice(("rejected", "re*", "malformed", "nothing"))
    if rng.random() < 0.2:
        command.error_type = rng.choice(("mapper", "m*"))
    if rng.random() < 0.2:
        command.index = rng.choice(("logs-*", "audit"))
    if rng.random() < 0.1:
        command.document_id = rng.choice(("m1*", "d2*", "m0"))
    if name == "replay":
        command.limit = rng.choice((None, None, 1, 3, 10))
        command.max_replays = rng.choice((None, None, 1, 4))
        command.rate = rng.choice((None, None, None, 20.0))
        command.dry_run = rng.random() < 0.15
    return command


# The world -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What a command did, as the user and the server saw it."""

    exit_code: int
    stdout: str
    stderr: str
    error: BaseException | None
    published: list[Publish]
    acked: list[Stored]
    unconfirmed_acks: list[int]
    left_open: list[str]

    @property
    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.stdout)
        return told


class Loop(NetworkLoop):
    """A loop to which signals can be sent."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.network = Network(self, rng)
        self.handlers: dict[int, Callable[[], object]] = {}

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        """Note what a signal calls."""
        self.handlers[sig] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        """Forget it."""
        return self.handlers.pop(sig, None) is not None


@dataclass(slots=True)
class World:
    """The queues of a day."""

    day: Day
    rng: Random
    server: AmqpServer = field(default_factory=AmqpServer)
    known: dict[int, DeadLetter] = field(default_factory=dict)
    stolen: set[int] = field(default_factory=set)
    arrived: list[int] = field(default_factory=list)
    is_running: bool = False

    def begin(self) -> None:
        """Fill the queue."""
        arguments = {"x_queue_type": self.day.kind}
        self.server.port = _PORT
        for name in (DEAD, "work", "other", "full"):
            self.server.declare(name, **arguments)
        self.server.queues["full"].full = True
        for letter in self.day.letters:
            self.put(letter)

    def put(self, letter: DeadLetter) -> None:
        self.known[letter.number] = letter
        self.server.queues[DEAD].ready.append(Stored("", "key", letter.properties, letter.body, returns=letter.returns))
        self.server.pump()

    def numbers(self, queue: str) -> list[int]:
        """Return the letters in a queue."""
        return [number_of(message.body) for message in self.server.queues[queue].ready]

    def call(self, command: Command, fault: str) -> Outcome:
        """Run a command, with a fault."""
        server = self.server
        server.log.clear()
        first, before_publishes, before_acks = len(server.connections), len(server.published), len(server.acked)
        unconfirmed: list[int] = []
        left_open: list[str] = []

        def check_acks(_: Channel, __: object) -> None:
            copied = {
                number_of(one.body) for one in server.published[before_publishes:] if one.confirmed and one.routed
            }
            unconfirmed.extend(
                number for number in (number_of(one.body) for one in server.acked[before_acks:]) if number not in copied
            )

        async def main(work: Any) -> Any:
            async with server:
                server._rules.clear()
                server._cuts.clear()
                server.on("basic.ack", check_acks, after=True)
                loop = asyncio.get_running_loop()
                assert isinstance(loop, Loop)
                self.arrange(fault, loop)
                try:
                    return await work
                finally:
                    await asyncio.sleep(1.0)  # what was written at the end arrives
                    left_open.extend(server.left_open())
                    self.is_running = False

        def run_(work: Any) -> Any:
            return clock.run(main(work), loop=Loop(self.rng))

        with _environment(self.day), mock.patch.object(asyncio, "run", run_):
            result = CliRunner().invoke(cli, ["dlq", *command.line])
        for connection in server.connections[first:]:
            connection.ended = connection.ended or "dropped"
        own = [one for one in left_open if int(one.split()[1]) >= first]
        return Outcome(
            result.exit_code, result.stdout, result.stderr, result.exception, server.published[before_publishes:],
            server.acked[before_acks:], unconfirmed if command.name == "replay" else [], own,
        )  # fmt: skip

    def arrange(self, fault: str, loop: Loop) -> None:
        """Have a fault happen at some moment of a command, and others come and go."""
        rng, server, day = self.rng, self.server, self.day
        server.alarm, server.nacks, server.confirms = None, lambda _: False, by_chance(rng)
        skip = 1 if fault.endswith("-publishing") else 0
        if fault.startswith("cut-sent"):
            server.cut(sent=rng.randrange(1, 3000 if skip else 300 + 400 * len(day.letters)), skip=skip)
        elif fault.startswith("cut-received"):
            server.cut(received=rng.randrange(1, 600 + 100 * len(day.letters)), skip=skip)
        elif fault.partition(":")[0] in {"refuse", "end", "drop", "drop-after"}:
            self.fail_at(*fault.split(":"))
        elif fault == "block":
            loop.call_later(rng.random() * 0.1, server.block)
            loop.call_later(rng.choice((0.5, 5.0, 60.0)), server.unblock)
        elif fault == "kill":
            loop.call_later(rng.random() * rng.choice((0.05, 0.2, 2.0)), server.kill)
        elif fault == "nack":
            refused = {number for number in self.known if rng.random() < 0.3}
            server.nacks = lambda publish: publish.routing_key != DEAD and number_of(publish.body) in refused
        elif fault == "stop":
            loop.call_later(rng.random() * rng.choice((0.05, 0.2, 2.0)), self.stop, loop)
        elif fault == "cancel":
            server.on(
                "basic.consume", lambda channel, method: channel.cancel(method["consumer_tag"]), times=1, after=True
            )
        self.is_running = True
        if day.arrivals or day.stolen:
            server.on("basic.consume", self.meddle, times=1)

    def fail_at(self, act: str, method: str = "", skip: str = "") -> None:
        """Have the broker refuse, close the connection or die at a method; chance chooses what is not given."""
        rng = self.rng
        acts = {
            "refuse": refuse(rng.choice((403, 404, 405, 406)), "ACCESS_REFUSED - no"),
            "end": end(rng.choice((320, 501, 541)), "INTERNAL_ERROR - the node goes down"),
        }
        number = int(skip or rng.choice((0, 0, 1, 2, 5)))
        self.server.on(
            method or rng.choice(METHODS), acts.get(act, drop), skip=number, times=1, after=act == "drop-after"
        )

    def stop(self, loop: Loop) -> None:
        """Have SIGTERM come, if somebody is there to hear it."""
        if self.is_running and signal.SIGTERM in loop.handlers:
            loop.handlers[signal.SIGTERM]()

    def meddle(self, channel: Channel, method: Any) -> None:
        """Take letters away that the tool has counted, before they are delivered."""
        queue = self.server.queues[DEAD]
        for _ in range(min(self.day.stolen, len(queue.ready))):
            at = self.rng.randrange(len(queue.ready))
            self.stolen.add(number_of(queue.ready[at].body))
            del queue.ready[at]
        channel.do(method)
        asyncio.get_running_loop().call_later(self.rng.random() * self.rng.choice((0.0, 0.1)), self.arrive)

    def arrive(self) -> None:
        """Have more letters come."""
        for _ in range(self.day.arrivals):
            number = 1000 + len(self.arrived)
            self.arrived.append(number)
            self.put(DeadLetter(number, "work", "rejected", "mapper", "logs-1", 0, False, False, 0))


@contextmanager
def _environment(day: Day) -> Iterator[None]:
    names = [name for name in os.environ if name.upper().startswith("SIDECAR_")]
    given = {"SIDECAR_AMQP_QUEUE": "work", "SIDECAR_AMQP_URL": f"amqp://127.0.0.1:{_PORT}/"}
    with (
        mock.patch.dict(os.environ, given),
        mock.patch.object(dlq, "REPLAY_PREFETCH", day.window),
        mock.patch.object(dead_letter_queue, "REPLAY_PREFETCH", day.window),
        mock.patch.object(dead_letter_queue, "_REPLAY_BATCH", day.at_once),
        mock.patch.object(dead_letter_queue, "_POLL_SECONDS", 0.2),  # fewer turns of the loop, and the same result
    ):
        for name in names:
            if name not in given:
                del os.environ[name]
        yield


def number_of(body: bytes) -> int:
    """Return the number of a letter."""
    return int(re.findall(rb"\d+", body)[0])


# The judge -----------------------------------------------------------------------------------------------------------


def play(day: Day) -> list[str]:
    """Play a day; return what was wrong with it."""
    world = World(day, Random(day.seed + 1))
    world.begin()
    wrong: list[str] = []
    for command, fault in zip(day.commands, day.faults, strict=True):
        before = world.numbers(DEAD)
        arrived, stolen = list(world.arrived), set(world.stolen)
        targets = {name: world.numbers(name) for name in ("work", "other", "full")}
        outcome = world.call(command, fault)
        case = _Case(world, command, fault, outcome, before)
        case.arrived = [number for number in world.arrived if number not in arrived]
        case.stolen = world.stolen - stolen
        case.moved = {name: world.numbers(name)[len(there) :] for name, there in targets.items()}
        wrong += [f"dlq {' '.join(command.line)} with {fault or 'no fault'}: {problem}" for problem in case.problems()]
        if wrong:
            break
    return wrong


class _Case:
    """A command that is judged."""

    arrived: list[int]
    stolen: set[int]
    moved: dict[str, list[int]]

    def __init__(self, world: World, command: Command, fault: str, outcome: Outcome, before: list[int]) -> None:
        self.world, self.command, self.fault, self.outcome, self.before = world, command, fault, outcome, before
        self.after = world.numbers(DEAD)

    @property
    def is_smooth(self) -> bool:
        """Whether everything is as the model expects it: nothing went wrong, and nobody else took letters."""
        return self.fault in {"", "nack", "block"} and not self.stolen

    def problems(self) -> list[str]:
        """Return what is wrong."""
        checks = (self._crash, self._connections, self._loss, self._twice, self._early_acks, self._order)
        found = [problem for check in checks for problem in check()]
        if not found:
            check = getattr(self, f"_{self.command.name}")
            found = list(check())
        return found

    @property
    def counted(self) -> list[int]:
        """The letters that the command counted: in place of stolen ones it takes those that arrived meanwhile."""
        return [*self.before, *(self.arrived if self.stolen else [])]

    def _letters(self, numbers: list[int]) -> list[DeadLetter]:
        return [self.world.known[number] for number in numbers]

    def _crash(self) -> Iterator[str]:
        error = self.outcome.error
        if error is not None and not isinstance(error, SystemExit):
            yield f"{error!r} came out"
        if self.outcome.exit_code and not self.outcome.stderr and not self.outcome.stdout:
            yield "it failed without a word"

    def _connections(self) -> Iterator[str]:
        if self.fault == "block":  # the server reads nothing, so it doesn't see the end of a connection either
            return
        yield from (one for one in self.outcome.left_open if "dropped" not in one or self.fault in {"", "nack", "stop"})

    def _loss(self) -> Iterator[str]:
        there = {*self.after, *(number for numbers in self.moved.values() for number in numbers)}
        lost = [number for number in (*self.before, *self.arrived) if number not in there | self.stolen]
        if self.command.name == "purge":
            lost = [number for number in lost if not self.command.means(self.world.known[number])]
        if lost:
            yield f"letters {lost} are lost"

    def _twice(self) -> Iterator[str]:
        copies = Counter(number_of(one.body) for one in self.outcome.published if one.routing_key != DEAD)
        twice = [number for number, count in copies.items() if count > 1]
        if twice:
            yield f"letters {twice} were published twice"
        doubled = [number for number, count in Counter(self.after).items() if count > max(1, self.before.count(number))]
        if doubled and (
            not self.fault or self.fault == "nack" or len(doubled) > _MAX_PARTS_IN_BOTH * self.world.day.at_once
        ):
            yield f"letters {doubled} are twice in the queue"
        once = {number for number in self.after if self.before.count(number) < 2}
        both = {number for numbers in self.moved.values() for number in numbers} & once
        allowed = 0 if self.fault in {"", "nack", "block", "stop"} else _MAX_PARTS_IN_BOTH * self.world.day.at_once
        if len(both) > allowed:
            yield f"letters {sorted(both)} are in both places"
        if both and not self.outcome.exit_code:
            yield f"letters {sorted(both)} are in both places, and the exit status is 0"

    def _early_acks(self) -> Iterator[str]:
        if self.outcome.unconfirmed_acks:
            yield f"letters {self.outcome.unconfirmed_acks} were acked before their copies were confirmed"

    def _order(self) -> Iterator[str]:
        renewed = any(one.routing_key == DEAD for one in self.outcome.published)
        places = {number: place for place, number in reversed(list(enumerate([*self.before, *self.arrived])))}
        if len(set(self.before)) < len(self.before):  # some are twice since an earlier command
            return
        moves = [number for number in self.after if not renewed or number in set(self.before)]
        if moves != sorted(moves, key=places.__getitem__) and not (renewed and (self.fault or self.stolen)):
            yield f"the letters are in another order: {self.after} after {self.before}"
        for name, numbers in self.moved.items():
            if numbers != sorted(numbers, key=places.__getitem__):
                yield f"the letters in {name} are in another order: {numbers}"

    # By command ------------------------------------------------------------------------------------------------------

    def _list(self) -> Iterator[str]:
        yield from self._unchanged()
        if self.is_smooth:
            meant = [letter for letter in self._letters(self.before) if self.command.means(letter)]
            groups = Counter((letter.reason, letter.error_type, letter.index) for letter in meant)
            told = self.outcome.told
            found = {(one["reason"], one["error_type"], one["index"]): one["count"] for one in told["groups"]}
            if (told["letters"], found) != (len(meant), dict(groups)):
                yield f"it lists {found} instead of {groups}"
            firsts = {
                letter.number for letter in meant if letter == next(one for one in meant if _kind(one) == _kind(letter))
            }
            if {one["example"]["message_id"] for one in told["groups"]} != {f"m{number}" for number in firsts}:
                yield "an example is not the first of its group"

    def _show(self) -> Iterator[str]:
        yield from self._unchanged()
        position = self.command.position or 0
        if self.is_smooth and (self.outcome.exit_code == 0) != (position <= len(self.before)):
            yield f"exit status {self.outcome.exit_code} for position {position} of {len(self.before)}"
        if self.is_smooth and not self.outcome.exit_code:
            told = self.outcome.told
            expected = f"m{self.before[position - 1]}"
            if (told["position"], told["properties"]["message_id"]) != (position, expected):
                yield f"it shows {told['properties']['message_id']} at {told['position']}, not {expected}"

    def _unchanged(self) -> Iterator[str]:
        if any(self.moved.values()) or set(self.after) != {*self.before, *self.arrived} - self.stolen:
            yield f"looking changed the queue to {self.after}"
        if self.is_smooth and self.command.name == "list" and self.outcome.exit_code:
            yield f"exit status {self.outcome.exit_code}: {self.outcome.stderr}"

    def _replay(self) -> Iterator[str]:
        command, outcome, moved = self.command, self.outcome, self.moved
        meant = [letter for letter in self._letters(self.counted) if command.means(letter)]
        may = [letter for letter in meant if command.can_replay(letter)][: command.limit]
        replayed = [number for name in ("work", "other") for number in moved[name]]
        strangers = set(replayed) - {letter.number for letter in meant if command.can_replay(letter)}
        misplaced = [
            number for name, numbers in moved.items() for number in numbers if self.world.known[number].queue != name
        ]
        if strangers or misplaced or moved["full"]:
            yield f"letters {sorted(strangers)} were not meant, {misplaced} are in another queue"
        if command.limit is not None and len({number_of(one.body) for one in self._copies()}) > command.limit:
            yield f"it published more than {command.limit}"
        if command.dry_run and self._copies():
            yield "a dry run published something"
        if outcome.stdout.startswith("{"):
            yield from self._figures(may, replayed)
        elif self.is_smooth and self.fault != "block":
            yield f"exit status {outcome.exit_code}: {outcome.stderr}"
        else:
            told = re.search(r"\(([\d,]+) letters were replayed;", outcome.stderr)
            if int(told[1]) > len(replayed) if told is not None else replayed:
                yield f"{len(replayed)} letters were replayed, and it says {outcome.stderr}"

    def _copies(self) -> list[Publish]:
        return [one for one in self.outcome.published if one.routing_key != DEAD]

    def _figures(self, may: list[DeadLetter], replayed: list[int]) -> Iterator[str]:
        told, is_dry = self.outcome.told, self.command.dry_run
        refused = sum(one["count"] for one in told["refused"])
        queues = Counter(self.world.known[number].queue for number in replayed)
        if (told["replayed"], told["dry_run"]) != (len(replayed), is_dry) or (not is_dry and told["queues"] != queues):
            yield f"it says that {told['replayed']} letters were replayed to {told['queues']}, not {dict(queues)}"
        stopped = bool(told["stopped"]) and self.fault == "stop"
        if self.outcome.exit_code != int(bool(refused or stopped)):
            yield f"exit status {self.outcome.exit_code} with {refused} refused, stopped: {told['stopped']}"
        if not is_dry and told["expiring"] != sum(self.world.known[number].expires for number in replayed):
            yield f"it says that {told['expiring']} letters expire"
        if not is_dry and len(self._copies()) != len(replayed) + refused:
            yield f"it says that {refused} were refused, of {len(self._copies())} with {len(replayed)} replayed"
        if self.is_smooth and not told["stopped"]:
            yield from self._chosen(may, refused)

    def _chosen(self, may: list[DeadLetter], refused: int) -> Iterator[str]:
        told, command, is_dry = self.outcome.told, self.command, self.command.dry_run
        count = told["would_replay"] if is_dry else told["replayed"] + refused
        numbers = [letter.number for letter in may]
        if count != len(may) or (not is_dry and sorted(number_of(one.body) for one in self._copies()) != numbers):
            yield f"{count} letters were chosen, instead of {numbers}"
        if command.limit is None:
            skipped = sum(1 for one in self._letters(self.before) if command.means(one)) - len(may)
            if sum(one["count"] for one in told["skipped"]) != skipped:
                yield f"it says that {told['skipped']} were skipped, not {skipped}"
        if is_dry and told["queues"] != Counter(letter.queue for letter in may):
            yield f"it would replay to {told['queues']}"

    def _purge(self) -> Iterator[str]:
        outcome = self.outcome
        meant = [letter.number for letter in self._letters(self.counted) if self.command.means(letter)]
        gone = [number for number in (*self.before, *self.arrived) if number not in {*self.after, *self.stolen}]
        if len(gone) > len(meant):
            yield f"{gone} are gone, more than the {len(meant)} that were counted"
        if outcome.stdout.startswith("{") and outcome.told["purged"] != len(gone):
            yield f"it says that {outcome.told['purged']} letters were removed, not {len(gone)}"
        if self.is_smooth and (outcome.exit_code, gone) != (0, meant):
            yield f"exit status {outcome.exit_code}, {gone} are gone instead of {meant}: {outcome.stderr}"
        told = re.search(r"up to ([\d,]+) letters were removed", outcome.stderr)
        if gone and outcome.exit_code and not outcome.stdout and (told is None or int(told[1]) < len(gone)):
            yield f"{len(gone)} letters are gone, and it says {outcome.stderr}"
        if not outcome.exit_code and self.fault and len(gone) < len(meant) and not self.stolen:
            yield f"exit status 0, though {len(meant) - len(gone)} letters stayed"


def _kind(letter: DeadLetter) -> tuple[str, str, str]:
    return letter.reason, letter.error_type, letter.index
