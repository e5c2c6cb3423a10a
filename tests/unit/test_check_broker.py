"""`sidecar.amqp.check` over a server in the process: each finding, each once, and nothing is left behind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from sidecar.amqp.check import check, check_sink
from sidecar.amqp.connection import ConnectOptions
from sidecar.amqp.topology import Topology, delay_arguments, quorum_arguments, work_arguments
from tests.fakes import network
from tests.fakes.amqp_server import AmqpServer, Exchange, drop, end, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.findings import Finding
    from tests.fakes.amqp_methods import Method
    from tests.fakes.amqp_server import Channel

WORK = Topology(queues=("work",))
TWO = Topology(queues=("first", "second"))
TIMEOUT = ("note", "RabbitMQ", "the consumer timeout can't be read")
Told = tuple[str, str, str]


def declare(server: AmqpServer, *names: str, **arguments: Any) -> None:
    """Declare queues as the sidecar does, but for `arguments`."""
    for name in names:
        values = {**quorum_arguments(), **{key.replace("_", "-"): value for key, value in arguments.items()}}
        server.declare(name, **{key: value for key, value in values.items() if value is not None})


def all_there(server: AmqpServer) -> None:
    """Declare what `WORK` and `TWO` need."""
    declare(server, "work", "work.dead", "first", "first.dead", "second", "second.dead")


def state(server: AmqpServer) -> tuple[dict[str, object], ...]:
    """Return everything that a check must leave as it is."""
    host = server.vhosts["/"]
    return (
        {name: (queue.arguments, [one.body for one in queue.ready]) for name, queue in host.queues.items()},
        {name: (exchange.kind, list(exchange.bindings)) for name, exchange in host.exchanges.items()},
    )


def most_channels(server: AmqpServer) -> int:
    """Return how many channels a connection had open at once."""
    steps = {"channel.open": 1, "channel.close": -1, "channel.close-ok": -1}
    held, most = Counter[int](), 0
    for entry in server.log:
        held[entry.connection] += steps.get(entry.method.name, 0)
        most = max(most, held[entry.connection])
    return most


def found(
    arrange: Callable[[AmqpServer], None],
    topology: Topology = WORK,
    on_reject: str = "dead-letter",
    *,
    leaves: bool = False,
    **options: Any,
) -> list[Finding]:
    """Return the findings; the check leaves the broker as it was, and nothing open.

    With `leaves`, connections may be lost: what was there is as it was.
    """

    async def scenario() -> list[Finding]:
        async with AmqpServer() as server:
            arrange(server)
            before = state(server)
            findings = await check((server.url,), ConnectOptions(timeout_seconds=5.0), topology, on_reject, **options)
            after = state(server)
            if leaves:  # a trial queue, which expires
                after = tuple({name: one[name] for name in old} for one, old in zip(after, before, strict=True))
            assert after == before
            assert server.consumers() == []
            assert leaves or server.left_open() == []
            assert leaves or most_channels(server) <= max(2, len(topology.queues))
            return findings

    return network.run(scenario())


def told(findings: list[Finding], *expected: Told) -> None:
    """Check that there are these findings and no others, in any order."""
    listed = [(finding.severity, finding.where, finding.what) for finding in findings]
    for severity, where, what in (*expected, TIMEOUT):
        matching = [one for one in listed if one[0] == severity and one[1].startswith(where) and what in one[2]]
        assert len(matching) == 1, f"{(severity, where, what)} in {listed}"
        listed.remove(matching[0])
    assert listed == []
    assert all(finding.fix for finding in findings)


# Cases ---------------------------------------------------------------------------------------------------------------

OWN = Topology(queues=("work",), declares_work=False)
NEVER = Topology(queues=("work",), declare=False, declares_work=False)
EVENTS: dict[str, Any] = {"exchange": "events", "exchange_type": "topic", "routing_keys": ("a", "b")}
BOUND = Topology(queues=("work",), **EVENTS)


class Case(NamedTuple):
    """A broker, what should be there, and what is found."""

    arrange: Callable[[AmqpServer], None]
    topology: Topology
    expected: list[Told]
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def nothing(_: AmqpServer) -> None:
    """Nothing is there."""


def with_exchange(kind: str) -> Callable[[AmqpServer], None]:
    """Return what declares all, and the exchange with this type."""

    def arrange(server: AmqpServer) -> None:
        all_there(server)
        server.vhosts["/"].exchanges["events"] = Exchange("events", kind)

    return arrange


def with_rule(method: str, code: int, text: str, **where: Any) -> Callable[[AmqpServer], None]:
    """Return what declares all, and has a method refused."""

    def arrange(server: AmqpServer) -> None:
        all_there(server)
        server.on(method, refuse(code, text), **where)

    return arrange


def access(kind: str, name: str) -> str:
    """Return RabbitMQ's text for a missing permission."""
    return f"ACCESS_REFUSED - access to {kind} '{name}' in vhost '/' refused for user 'guest'"


def stored(*names: str, **arguments: Any) -> Callable[[AmqpServer], None]:
    """Return what declares queues with arguments."""
    return lambda server: declare(server, *names, **arguments)


def without(name: str) -> Callable[[AmqpServer], None]:
    """Return what declares the dead-letter queue alone, and has the creation of the other one refused."""

    def arrange(server: AmqpServer) -> None:
        declare(server, f"{name}.dead")
        server.on("queue.declare", refuse(403, access("queue", name)), queue=name, passive=False)

    return arrange


def grave(server: AmqpServer) -> None:
    """Declare the work queue and an exchange for dead letters."""
    declare(server, "work")
    server.bind("graves", "k", "work")


def unwritable_grave(server: AmqpServer) -> None:
    """Have the user lack the right to write to the exchange for dead letters."""
    grave(server)
    server.on("exchange.unbind", refuse(403, access("exchange", "graves")), destination="graves")


def foreign_sink(server: AmqpServer) -> None:
    """Declare the exchange of the sink with another type, without the right to write to it."""
    server.bind("next", "k", "q", kind="fanout")
    server.on("exchange.unbind", refuse(403, access("exchange", "next")), destination="next")


def stream(server: AmqpServer) -> None:
    """Declare the work queue as a stream."""
    declare(server, "work.dead")
    server.declare("work", x_queue_type="stream")


def full(server: AmqpServer) -> None:
    """Have a limit refuse the delay queues of the second queue."""
    all_there(server)
    declare(server, "first.delay.1000", "first.delay.2000")
    arguments = {"x-expires": 60_000, **delay_arguments("second", 1000)}
    server.on("queue.declare", refuse(406, "PRECONDITION_FAILED - limit reached"), passive=False, arguments=arguments)


def without_trials(server: AmqpServer) -> None:
    """Have the creation of trial queues refused: the user may configure names such as ``work`` alone."""
    arguments = {"x-expires": 60_000, **work_arguments(WORK)}
    server.on("queue.declare", refuse(403, access("queue", "trial")), passive=False, arguments=arguments)


CASES: dict[str, Case] = {
    "no right to create a trial queue": Case(
        without_trials,
        WORK,
        [
            ("note", "queue 'work'", "sidecar run will create it"),
            ("note", "queue 'work'", "it is unknown whether RabbitMQ accepts its arguments; a trial queue was refused"),
            ("note", "dead-letter queue 'work.dead'", "will create it"),
            ("note", "dead-letter queue 'work.dead'", "it is unknown whether RabbitMQ accepts its arguments"),
        ],
    ),
    "all is well": Case(all_there, TWO, []),
    "nothing is there": Case(
        nothing,
        WORK,
        [
            ("note", "queue 'work'", "sidecar run will create it, durable"),
            ("note", "dead-letter queue 'work.dead'", "will create it"),
        ],
    ),
    "none of two is there": Case(
        nothing,
        TWO,
        [("warning", "SIDECAR_AMQP_QUEUE", "none of its 2 queues exists")]
        + [("note", f"queue '{name}'", "sidecar run will create it") for name in TWO.queues]
        + [("note", f"dead-letter queue '{name}.dead'", "will create it") for name in TWO.queues],
    ),
    "the second of two is missing": Case(
        stored("first", "first.dead", "second.dead"), TWO, [("note", "queue 'second'", "sidecar run will create it")]
    ),
    "the producer declares": Case(
        nothing,
        OWN,
        [
            ("warning", "queue 'work'", "waits until its producer"),
            ("note", "dead-letter queue 'work.dead'", "will create"),
        ],
    ),
    "no right to create the queue of the producer": Case(
        without("work"),
        OWN,
        [("warning", "queue 'work'", "waits until its producer")],
    ),
    "no right to create the queues that may not be declared": Case(
        without("work"),
        NEVER,
        [("problem", "queue 'work'", "forbids creating it")],
    ),
    "no right to create the queue": Case(
        without("work"),
        WORK,
        [("note", "queue 'work'", "will create"), ("problem", "queue 'work'", "lacks configure there")],
    ),
    "nothing may be declared": Case(
        nothing,
        NEVER,
        [
            ("problem", f"{kind} '{name}'", "forbids creating it")
            for kind, name in (("queue", "work"), ("dead-letter queue", "work.dead"))
        ],
    ),
    "another type": Case(
        stored("work", "work.dead", x_queue_type="classic", x_delivery_limit=None),
        WORK,
        [("warning", where, "another x-queue-type") for where in ("queue 'work'", "dead-letter queue 'work.dead'")],
    ),
    "a low limit": Case(
        stored("work", "work.dead", x_delivery_limit=5),
        WORK,
        [("warning", "queue 'work'", "more than 5 times"), ("warning", "dead-letter queue 'work.dead'", "it has 5")],
    ),
    "a stream": Case(
        stream,
        WORK,
        [("problem", "queue 'work'", "it is a stream")],
    ),
    "several properties": Case(
        stored("work", "work.dead", x_expires=60_000, x_message_ttl=5000, x_max_length=7),
        WORK,
        [
            ("warning", "queue 'work'", what)
            for what in ("after 60 s without a consumer", "expire 5 s", "x-max-length=7")
        ]
        + [("warning", "dead-letter queue 'work.dead'", "x-expires=60000, x-message-ttl=5000, x-max-length=7")],
    ),
    "no dead-letter exchange": Case(
        stored("work"),
        Topology(queues=("work",), dead_letter_exchange="graves"),
        [("problem", "dead-letter exchange 'graves'", "it doesn't exist")],
    ),
    "a dead-letter exchange": Case(
        grave,
        Topology(queues=("work",), dead_letter_exchange="graves", dead_letter_routing_key="k"),
        [("note", "dead-letter exchange 'graves'", "bound to it for 'k'")],
    ),
    "rejects come back": Case(
        all_there,
        Topology(queues=("work",), dead_letter_routing_key="work"),
        [("problem", "dead-letter queue 'work'", "a work queue as well")],
    ),
    "no exchange": Case(all_there, BOUND, [("note", "exchange 'events'", "will create it, of type topic")]),
    "no exchange, and none may be declared": Case(
        all_there,
        Topology(queues=("work",), declare=False, declares_work=False, exchange="events"),
        [("warning", "exchange 'events'", "no messages come from it")],
    ),
    "an exchange of another type": Case(
        with_exchange("fanout"),
        BOUND,
        [
            ("warning", "exchange 'events'", "received 'topic' but current is 'fanout'"),
            ("note", "exchange 'events'", "earlier"),
        ],
    ),
    "an exchange": Case(with_exchange("topic"), BOUND, [("note", "exchange 'events'", "bindings of earlier")]),
    "a producer's exchange": Case(
        with_exchange("topic"), Topology(queues=("work",), declares_work=False, **EVENTS), []
    ),
    "an exchange that can't be created": Case(
        with_rule("exchange.declare", 406, "PRECONDITION_FAILED - limit reached", passive=False),
        BOUND,
        [("problem", "exchange 'events'", "can't create it with the type 'topic': RabbitMQ refuses it: limit reached")],
    ),
    "a binding that is refused, of two": Case(
        with_rule("queue.bind", 406, "PRECONDITION_FAILED - bad binding", routing_key="b"),
        BOUND,
        [
            ("note", "exchange 'events'", "will create"),
            ("problem", "exchange 'events'", "can't be bound to it: bad binding"),
        ],
    ),
    "delay queues of two that can't be created": Case(
        full,
        TWO,
        [
            (
                "warning",
                "delay queues of 'second'",
                "second.delay.1000, second.delay.2000 can't be created: limit reached",
            )
        ],
        {"delays": (1000, 2000)},
    ),
    "delay queues that may not be created": Case(
        stored("work", "work.dead", "work.delay.1000"),
        NEVER,
        [("warning", "delay queues of 'work'", "work.delay.2000, work.delay.4000 can't be found")],
        {"delays": (1000, 2000, 4000)},
    ),
    "rejects are left to the broker": Case(
        all_there, WORK, [("warning", "SIDECAR_ON_REJECT=broker", "every reject is dropped")], {"on_reject": "broker"}
    ),
    "rejects are left to an exchange that is missing": Case(
        stored("work", "work.dead", x_dead_letter_exchange="gone"),
        Topology(queues=("work",), queue_arguments={"x-dead-letter-exchange": "gone"}),
        [
            ("problem", "SIDECAR_ON_REJECT=broker", "'gone' doesn't exist"),
            ("note", "queue 'work'", "exchange of its own ('gone')"),
        ],
        {"on_reject": "broker"},
    ),
    "arguments of the consumer are refused": Case(
        all_there,
        TWO,
        [("problem", f"queue '{name}'", "invalid arg 'x-priority'") for name in TWO.queues],
        {"consumer_arguments": {"x-priority": "high"}},
    ),
    "arguments of the consumer of a queue that expires are refused": Case(
        stored("work", "work.dead", x_expires=60_000),
        WORK,
        [
            ("warning", "queue 'work'", "after 60 s without a consumer"),
            ("problem", "queue 'work'", "invalid arg 'x-priority'"),
            ("warning", "dead-letter queue 'work.dead'", "x-expires=60000"),
        ],
        {"consumer_arguments": {"x-priority": "high"}},
    ),
    "arguments of the consumer of a missing queue are refused": Case(
        stored("work.dead"),
        WORK,
        [("note", "queue 'work'", "will create"), ("problem", "queue 'work'", "invalid arg 'x-priority'")],
        {"consumer_arguments": {"x-priority": "high"}},
    ),
    "reserved names": Case(
        nothing,
        Topology(queues=("amq.work",)),
        [
            ("problem", where, "RabbitMQ reserves names")
            for where in ("queue 'amq.work'", "dead-letter queue 'amq.work.dead'")
        ],
    ),
    "no right to read one of two": Case(
        with_rule("basic.consume", 403, access("queue", "second"), queue="second"),
        TWO,
        [("problem", "queue 'second'", "lacks read there: nothing can be consumed")],
    ),
    "no right to read dead letters": Case(
        with_rule("basic.consume", 403, access("queue", "work.dead"), queue="work.dead"),
        WORK,
        [("note", "queue 'work.dead'", "lacks read there: `sidecar dlq` can't look")],
    ),
    "no right to publish": Case(
        with_rule("basic.publish", 403, access("exchange", "amq.default")),
        WORK,
        [("problem", "the default exchange", "lacks write there")],
    ),
    "no right to write to the queue that is bound": Case(
        with_rule("queue.unbind", 403, access("queue", "work")),
        BOUND,
        [
            ("note", "exchange 'events'", "will create"),
            ("problem", "queue 'work'", "lacks write there: the queue 'work' can't be bound"),
        ],
    ),
    "no right to read the exchange": Case(
        with_rule("queue.unbind", 403, access("exchange", "events")),
        BOUND,
        [
            ("note", "exchange 'events'", "will create"),
            ("problem", "exchange 'events'", "lacks read there: the queue 'work'"),
        ],
    ),
    "no right to publish dead letters": Case(
        unwritable_grave,
        Topology(queues=("work",), dead_letter_exchange="graves"),
        [
            ("note", "dead-letter exchange 'graves'", "bound"),
            ("problem", "dead-letter exchange 'graves'", "lacks write there"),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_finding_is_told_once_and_nothing_is_left_behind(name: str) -> None:
    """No finding hides another, none is invented, and what was created for a trial is deleted."""
    case = CASES[name]
    options = {"on_reject": "dead-letter", **case.options}
    told(found(case.arrange, case.topology, **options), *case.expected)


@pytest.mark.parametrize("away", [0, 1, 2])
def test_one_of_several_brokers_that_is_away_is_a_warning_and_the_others_are_checked(away: int) -> None:
    """Wherever it stands; if all are away each is a problem, and nothing else can be told."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            urls = [f"{server.url}?name={number}" for number in range(3)]
            urls[away] = "amqp://127.0.0.1:1/v"
            findings = await check(tuple(urls), ConnectOptions(), WORK, "dead-letter")
            assert [(one.severity, one.where) for one in findings if "reached" in one.what] == [
                ("warning", "RabbitMQ amqp://127.0.0.1:1/v")
            ]
            assert "queue 'work'" in {one.where for one in findings}
            assert server.left_open() == []
        findings = await check(
            ("amqp://u:s3cret@127.0.0.1:1/", "amqp://127.0.0.1:2/"), ConnectOptions(), WORK, "dead-letter"
        )
        assert [(one.severity, one.where) for one in findings] == [
            ("problem", "RabbitMQ amqp://127.0.0.1:1/"),
            ("problem", "RabbitMQ amqp://127.0.0.1:2/"),
        ]
        assert "s3cret" not in str(findings)

    network.run(scenario())


def test_a_limit_on_channels_or_connections_is_a_problem_with_the_numbers() -> None:
    """As many are tried as `run` opens, and all of them are closed again."""

    def limited(server: AmqpServer) -> None:
        all_there(server)
        server.on("channel.open", end(530, "NOT_ALLOWED - limit of channels"), skip=5, times=1)

    def narrow(server: AmqpServer) -> None:
        all_there(server)
        server.on("channel.open", end(530, "NOT_ALLOWED - limit of channels"), skip=2, times=1)

    (problem, *_) = found(narrow, Topology(queues=("work", "first", "second")))
    assert "the first with 3 channels" in problem.what
    assert "refuses that at connection 1: limit of channels" in problem.what
    (problem, *_) = found(limited, TWO, connections=3)
    assert (problem.severity, "opens 3 connections at once, the first with 2 channels" in problem.what) == (
        "problem",
        True,
    )
    assert "refuses that at connection 3: limit of channels" in problem.what


LOST = "the connection was lost, so the check is incomplete: "
FORCED = end(320, "CONNECTION_FORCED - broker forced connection closure")


@pytest.mark.parametrize(
    ("method", "lose", "ats"),
    [
        ("connection.open", drop, (1, 2)),  # the two of `_capacity`
        ("connection.open", FORCED, (2,)),
        ("channel.open", drop, (0, 3, 6, 12)),
        ("channel.open", FORCED, (0,)),
        ("queue.declare", drop, (0, 1, 2, 3, 4, 5)),
        ("queue.declare", FORCED, (2, 3)),
        ("queue.unbind", drop, (0, 1)),
        ("basic.consume", drop, (0, 3)),
        ("basic.publish", drop, (0,)),
        ("exchange.declare", drop, (0, 1, 2)),
    ],
)
def test_a_connection_that_is_lost_is_told_as_that_and_nothing_is_made_up(
    method: str, lose: Callable[[Channel, Method], None], ats: tuple[int, ...]
) -> None:
    """Whatever is asked at that moment: the findings before it stay, and no missing right is among them."""
    topology = Topology(queues=("first", "second"), **EVENTS)
    complete = found(all_there, topology, delays=(1000,))

    def mortal(server: AmqpServer) -> None:
        all_there(server)
        server.on(method, lose, skip=at, times=1)

    for at in ats:  # noqa: B007 - `mortal` reads it
        *before, last = found(mortal, topology, leaves=True, delays=(1000,))
        assert (last.severity, last.what.startswith(LOST), "run the check again" in last.fix) == (
            "problem",
            True,
            True,
        )
        assert before == complete[: len(before)]


def test_findings_before_the_connection_is_lost_are_told() -> None:
    """The work queue's, when the dead-letter queue is asked for."""

    def mortal(server: AmqpServer) -> None:
        declare(server, "work", "work.dead", x_expires=60_000)
        server.on("queue.declare", drop, times=1, queue="work.dead")

    first, last = found(mortal, leaves=True)
    assert (first.where, "it expires" in first.what, last.what.startswith(LOST)) == ("queue 'work'", True, True)


def test_a_trial_exchange_is_deleted_if_the_connection_is_lost_while_it_is_created() -> None:
    """Unlike a trial queue, it doesn't expire."""

    def created_unanswered(channel: Channel, method: Method) -> None:
        channel.connection.vhost.exchanges[method["exchange"]] = Exchange(method["exchange"], method["type"])
        drop(channel, method)

    async def scenario() -> None:
        async with AmqpServer() as server:
            all_there(server)
            server.on("exchange.declare", created_unanswered, times=1, passive=False)
            *_, last = await check((server.url,), ConnectOptions(), BOUND, "dead-letter")
            assert last.what.startswith(LOST)
            assert set(server.vhosts["/"].exchanges) == {"amq.direct", "amq.fanout", "amq.topic"}

    network.run(scenario())


@pytest.mark.parametrize("at", range(3))
def test_a_sink_whose_connection_is_lost_is_told_as_that(at: int) -> None:
    """A passive declare, the declare and the question for the right to publish."""

    async def scenario() -> list[Finding]:
        async with AmqpServer() as server:
            server.bind("next", "k", "q", kind="topic")
            server.on("channel.open", drop, skip=at, times=1)
            return await check_sink(
                (server.url,), ConnectOptions(), SINK, None, named="SIDECAR_SINK_AMQP_URL", on_unroutable="hold"
            )

    *before, last = network.run(scenario())
    assert last.what.startswith(LOST)
    assert [one.severity for one in before] == ["note"] * (at == 2)


@pytest.mark.parametrize(
    ("text", "told_as"),
    [
        ("access to vhost '/' refused for user 'guest'", "the user 'guest' may not use it"),
        ("vhost / not found", "the virtual host '/' doesn't exist"),
        ("connection refused for user 'guest': user connection limit (1) is reached", "no further connection"),
    ],
)
def test_a_connection_that_may_not_be_opened_is_told_with_what_is_missing(text: str, told_as: str) -> None:
    """Not as a broker that can't be reached: host and port are right."""

    def closed(server: AmqpServer) -> None:
        server.on("connection.open", end(530, f"NOT_ALLOWED - {text}"))

    (finding,) = found(closed, leaves=True)
    assert told_as in finding.what
    assert "host and port" not in finding.fix


def test_a_limit_on_connections_is_a_problem_with_the_numbers() -> None:
    """RabbitMQ closes the connection while it is opened."""

    def limited(server: AmqpServer) -> None:
        all_there(server)
        text = "NOT_ALLOWED - connection refused for user 'guest': user connection limit (2) is reached"
        server.on("connection.open", end(530, text), skip=2, times=1)

    (problem, *_) = found(limited, connections=2, leaves=True)
    assert "opens 2 connections at once" in problem.what
    assert "refuses that at connection 2" in problem.what
    assert "user connection limit (2) is reached" in problem.what


SINK = Topology(exchange="next", exchange_type="topic", publishes=True)


@pytest.mark.parametrize(
    ("arrange", "topology", "routing_key", "expected"),
    [
        (nothing, SINK, None, [("note", "exchange 'next'", "sidecar run will create it, of type topic")]),
        (
            nothing,
            Topology(exchange="next", declares_work=False),
            None,
            [("problem", "exchange 'next'", "forbids creating")],
        ),
        (
            lambda server: server.bind("next", "k", "q", kind="topic"),
            SINK,
            None,
            [("note", "exchange 'next'", "where none takes a message, messages wait until one is there")],
        ),
        (
            lambda server: server.bind("next", "k", "q", kind="fanout"),
            SINK,
            None,
            [("note", "exchange 'next'", "can't be seen"), ("warning", "exchange 'next'", "other arguments")],
        ),
        (
            foreign_sink,
            SINK,
            None,
            [
                ("note", "exchange 'next'", "can't be seen"),
                ("warning", "exchange 'next'", "other arguments"),
                ("problem", "exchange 'next'", "lacks write there: nothing can be published"),
            ],
        ),
        (nothing, Topology(publishes=True), "later", [("note", "queue 'later'", "messages wait until one is there")]),
        (stored("later"), Topology(publishes=True), "later", []),
        (nothing, Topology(publishes=True), None, []),
        (
            lambda server: server.on("basic.publish", refuse(403, access("exchange", "amq.default"))),
            Topology(publishes=True),
            None,
            [("problem", "the default exchange", "nothing can be published")],
        ),
    ],
)
def test_each_finding_about_the_sink(
    arrange: Callable[[AmqpServer], None], topology: Topology, routing_key: str | None, expected: list[Told]
) -> None:
    """What keeps messages from being published, and what becomes of them meanwhile."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            arrange(server)
            before = state(server)
            named = "SIDECAR_SINK_AMQP_URL"
            findings = await check_sink(
                (server.url,), ConnectOptions(), topology, routing_key, named=named, on_unroutable="hold"
            )
            listed = [(one.severity, one.where, one.what) for one in findings]
            assert len(listed) == len(expected), listed
            for (severity, where, what), one in zip(expected, listed, strict=True):
                assert (severity, one[1].startswith(where), what in one[2]) == (one[0], True, True), listed
            assert (state(server), server.left_open()) == (before, [])

    network.run(scenario())
