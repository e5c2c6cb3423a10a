"""Finds problems with RabbitMQ, for ``sidecar check``. Nothing that exists is changed, and nothing is consumed.

Whether something missing can be created is tried under another name, which is deleted again (`sidecar.amqp.trial`).
A passive declare tells only whether something exists. If it does, it is declared with the configured arguments: that
does nothing if they are the same, and otherwise the refusal names the argument that differs.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiormq.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ConnectionCommandInvalid,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)
from yarl import URL

from sidecar.amqp.channels import refusal_of
from sidecar.amqp.connection import FAILURES, TlsPortError, close_quietly, connect, reraise_own_cancellation
from sidecar.amqp.permissions import missing_permissions, missing_publish_permissions
from sidecar.amqp.queue_properties import major_version, read_properties
from sidecar.amqp.queue_rules import QUEUES_PAGE, dead_letter_findings, queue_findings
from sidecar.amqp.topology import EXCLUSIVE, delay_arguments, quorum_arguments, work_arguments
from sidecar.amqp.trial import binding_refusal, consumer_refusal, exchange_refusal, is_reserved, queue_refusal
from sidecar.core.findings import Finding
from sidecar.core.wire.names import delay_queue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from aiormq.abc import AbstractConnection

    from sidecar.amqp.channels import Act
    from sidecar.amqp.connection import AmqpProtocol, ConnectOptions
    from sidecar.amqp.permissions import MissingPermission
    from sidecar.amqp.topology import Topology
    from sidecar.core.findings import Severity

_DIFFERENT = re.compile(r"inequivalent arg '([^']+)' for (?:queue|exchange) .*?: (received .*)", re.DOTALL)
_CODE = re.compile(r"^[A-Z_]+ - ")
_LIMIT = re.compile(r"\blimit\b")
_PUBLISHING_CHANNELS = 2
_PRODUCERS_PAGE = "docs/deployment.md, What producers declare"


async def check(
    urls: tuple[str, ...],
    connect_options: ConnectOptions,
    topology: Topology,
    on_reject: str,
    *,
    delays: tuple[int, ...] = (),
    connections: int = 2,
    consumer_arguments: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Return all that is wrong with the broker.

    Args:
        urls: each is tried; queues and exchanges are looked at by the first that answers.
        connect_options: how.
        topology: what should be there.
        on_reject: what becomes of rejected messages.
        delays: how long messages may wait in delay queues, in milliseconds.
        connections: how many `sidecar run` opens at once.
        consumer_arguments: arguments of ``basic.consume``.
    """
    arguments = consumer_arguments or {}
    return await _check(
        urls, connect_options, lambda probe: _probe_all(probe, topology, on_reject, delays, connections, arguments)
    )


async def check_sink(
    urls: tuple[str, ...],
    connect_options: ConnectOptions,
    topology: Topology,
    routing_key: str | None,
    *,
    named: str,
    on_unroutable: str,
) -> list[Finding]:
    """Return all that keeps messages from being published (``SIDECAR_SINK=amqp``).

    Args:
        urls: each is tried; the exchange is looked at by the first that answers.
        connect_options: how.
        topology: what should be there.
        routing_key: with which messages are published, None where each has its own.
        named: the setting that says where.
        on_unroutable: what becomes of messages that no queue takes.
    """
    found = await _check(urls, connect_options, lambda probe: _probe_sink(probe, topology, routing_key, on_unroutable))
    return [replace(finding, fix=finding.fix.replace("SIDECAR_AMQP_URL", named)) for finding in found]


async def _check(
    urls: tuple[str, ...], connect_options: ConnectOptions, act: Callable[[_BrokerProbe], AsyncIterator[list[Finding]]]
) -> list[Finding]:
    reached = await asyncio.gather(*(_try(URL(text), connect_options) for text in urls))
    findings = [answer for answer in reached if isinstance(answer, Finding)]
    if len(findings) < len(urls):  # others do the work of those that are away
        findings = [_only_a_warning(finding) for finding in findings]
    good = next((text for text, answer in zip(urls, reached, strict=True) if answer is None), None)
    if good is None:
        return findings
    probe = _BrokerProbe(URL(good), connect_options)
    try:
        async for some in act(probe):
            findings += some
    except FAILURES as error:
        reraise_own_cancellation(error)
        what = f"the connection was lost, so the check is incomplete: {_text(error)}"
        fix = "see in the broker's log why, and that nothing between cuts connections; then run the check again"
        findings.append(Finding("problem", _where(probe.url), what, fix))
    finally:
        await probe.close()
    return findings


async def _probe_all(
    probe: _BrokerProbe,
    topology: Topology,
    on_reject: str,
    delays: tuple[int, ...],
    connections: int,
    consumer_arguments: Mapping[str, Any],
) -> AsyncIterator[list[Finding]]:
    """Yield the findings part by part: if the connection is lost, those before it stay."""
    yield await _capacity(probe, len(set(topology.queues)), connections)
    yield await _none_of_several(probe, topology)
    for queue in dict.fromkeys(topology.queues):
        yield await _queue(probe, topology, _ExpectedQueue(queue, work_arguments(topology), consumer_arguments))
        yield await _dead_letter_queue(probe, topology, queue)
        yield await _delay_queues(probe, topology, queue, delays)
    yield await _dead_letter_exchange(probe, topology)
    yield await _exchange(probe, topology)
    if on_reject == "broker":
        yield await _own_dead_lettering(probe, topology)
    yield await _rights(probe, topology, on_reject)
    yield [_consumer_timeout(probe)]


# The way there -------------------------------------------------------------------------------------------------------


async def _try(url: URL, connect_options: ConnectOptions) -> Finding | None:
    """Return what keeps us from using a broker; None where nothing does."""
    probe = _BrokerProbe(url, connect_options)
    try:
        await probe.connection()
    except FAILURES as error:
        reraise_own_cancellation(error)
        return _unreached(url, error, _text(error), connect_options)
    finally:
        await probe.close()
    return None


def _unreached(url: URL, error: BaseException, text: str, connect_options: ConnectOptions) -> Finding:
    where, vhost = _where(url), url.path[1:] or "/"
    if isinstance(error, ConnectionNotAllowed) and _LIMIT.search(text):
        what = f"RabbitMQ allows no further connection: {text}"
        fix = f"{_HOW_TO_RAISE_LIMITS}; or close other connections"
    elif isinstance(error, ConnectionNotAllowed):
        what = f"the virtual host {vhost!r} doesn't exist, or the user {url.user or 'guest'!r} may not use it: {text}"
        fix = "create it (rabbitmqctl add_vhost), permit it (rabbitmqctl set_permissions), or mend SIDECAR_AMQP_URL"
    elif isinstance(error, ProbableAuthenticationError):
        what = f"RabbitMQ doesn't accept the login of the user {url.user or 'guest'!r}: {text}"
        fix = "mend user and password in SIDECAR_AMQP_URL; the user guest may log in from the broker's own host only"
    elif isinstance(error, AuthenticationError):
        what, fix = text, "change the way to log in, or enable it on the broker"
    elif isinstance(error, TlsPortError):
        what, fix = text, "set SIDECAR_AMQP_URL to amqps:// and the TLS port (5671), or amqp:// and the other (5672)"
    elif "TLS" in text or "certificate" in text:
        what = text
        fix = "see that the port speaks TLS, and that SIDECAR_AMQP_CA_FILE holds the authority of its certificate"
    elif isinstance(error, TimeoutError):
        what = f"no answer within {connect_options.timeout_seconds:g} s"
        fix = "see that host and port are right, and that no firewall is between; amqps:// and amqp:// differ in ports"
    else:
        what = f"RabbitMQ can't be reached: {text}"
        fix = "see that the broker runs, and that host and port in SIDECAR_AMQP_URL are right"
    return Finding("problem", where, what, fix)


def _only_a_warning(finding: Finding) -> Finding:
    return replace(finding, severity="warning")


def _where(url: URL) -> str:
    # Neither the password nor the query, which may hold another one.
    return f"RabbitMQ {URL.build(scheme=url.scheme, host=url.host or '', port=url.port, path=url.path)}"


def _text(error: BaseException) -> str:
    number = error.args[0] if isinstance(error, AMQPConnectionError) and error.args else None
    if isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number)
    reason = next((argument for argument in reversed(error.args) if isinstance(argument, str)), "")
    return _CODE.sub("", reason) or type(error).__name__


_HOW_TO_RAISE_LIMITS = (
    "raise the limit: see rabbitmqctl list_user_limits, rabbitmqctl list_vhost_limits, and connection_max and "
    "channel_max in rabbitmq.conf"
)


async def _capacity(probe: _BrokerProbe, queues: int, connections: int) -> list[Finding]:
    """Check whether a limit (of a user, virtual host or node) allows the connections and channels of `sidecar run`.

    It opens a connection with a channel for each queue, and another one with two channels, to publish and to declare.
    """
    opened = [_BrokerProbe(probe.url, probe.connect_options) for _ in range(connections)]
    at = 0
    try:
        for at, one in enumerate(opened, start=1):
            connection = await one.connection()
            for _ in range(queues if at == 1 else _PUBLISHING_CHANNELS):
                await connection.channel(publisher_confirms=False)
    except ConnectionNotAllowed as error:
        what = (
            f"sidecar run opens {connections} connections at once, the first with {queues} channels (one for each "
            f"queue), each other with {_PUBLISHING_CHANNELS}; RabbitMQ refuses that at connection {at}: {_text(error)}"
        )
        fix = f"{_HOW_TO_RAISE_LIMITS}; another sidecar of the same user needs as many"
        return [Finding("problem", _where(probe.url), what, fix)]
    finally:
        for one in opened:
            await one.close()
    return []


class _BrokerProbe:
    """Asks a broker one thing after the other, each on a channel of its own: a no closes it.

    Args:
        url: of the broker.
        connect_options: how.
    """

    def __init__(self, url: URL, connect_options: ConnectOptions) -> None:
        self.url = url
        self.connect_options = connect_options
        self._connection: AbstractConnection | None = None
        self._protocol: AmqpProtocol | None = None

    async def connection(self) -> AbstractConnection:
        """Return a connection; a new one where a refusal has closed the last."""
        if self._connection is None or self._connection.is_closed:
            self._connection, self._protocol = await connect(self.url, "check", _ignore, _ignore, self.connect_options)
        return self._connection

    async def ask(self, act: Act) -> AMQPError | None:
        """Return the broker's refusal, or None; raise one of `FAILURES` if the connection is lost."""
        return await refusal_of(await self.connection(), act)

    async def close(self) -> None:
        """Close the connection."""
        await close_quietly(self._connection, self._protocol)


def _ignore(_: object) -> None:
    """Nothing is consumed here."""


# Queues --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ExpectedQueue:
    """A queue that should be there, with what it would be declared with."""

    name: str
    arguments: dict[str, Any]
    consumer_arguments: Mapping[str, Any] = field(default_factory=dict)
    is_for_dead_letters: bool = False

    @property
    def where(self) -> str:
        return f"{'dead-letter queue' if self.is_for_dead_letters else 'queue'} {self.name!r}"


async def _queue(probe: _BrokerProbe, topology: Topology, wanted: _ExpectedQueue) -> list[Finding]:
    refusal = await probe.ask(lambda channel: channel.queue_declare(wanted.name, passive=True))
    if refusal is None:
        return await _properties(probe, topology, wanted)
    if isinstance(refusal, ChannelNotFoundEntity):
        return await _absent(probe, topology, wanted)
    if isinstance(refusal, ChannelLockedResource):
        what = f"it is exclusive: {EXCLUSIVE}"
        return [Finding("problem", wanted.where, what, "declare the queue without exclusive, or name another one")]
    return [_refused(wanted.where, refusal)]


async def _none_of_several(probe: _BrokerProbe, topology: Topology) -> list[Finding]:
    """Warn if all of several queues would be created: they may be one name that contains commas."""
    names = tuple(dict.fromkeys(topology.queues))
    if len(names) < 2 or not topology.creates_work:  # noqa: PLR2004 - several
        return []
    for name in names:
        refusal = await probe.ask(lambda channel, name=name: channel.queue_declare(name, passive=True))  # type: ignore[misc]
        if not isinstance(refusal, ChannelNotFoundEntity):
            return []
    what = f"none of its {len(names)} queues exists; sidecar run would create them all"
    fix = r"if it is one name that contains commas, write each of them as \,; otherwise nothing needs to be done"
    return [Finding("warning", "SIDECAR_AMQP_QUEUE", what, fix)]


async def _absent(probe: _BrokerProbe, topology: Topology, wanted: _ExpectedQueue) -> list[Finding]:
    """Return what `sidecar run` does about a missing queue, and whether it can create it."""
    if not (topology.declare if wanted.is_for_dead_letters else topology.creates_work):
        return [_missing(topology, wanted)]
    if is_reserved(wanted.name):
        setting = "SIDECAR_DEAD_LETTER_ROUTING_KEY" if wanted.is_for_dead_letters else "SIDECAR_AMQP_QUEUE"
        return [_reserved(wanted.where, setting)]
    refusal = await queue_refusal(probe.ask, wanted.name, wanted.arguments)
    if refusal is None:
        return [_missing(topology, wanted), *await _unconsumable(probe, wanted, wanted.arguments)]
    if isinstance(refusal, ChannelAccessRefused):  # the permission for the queue itself is checked with the others
        what = f"it is unknown whether RabbitMQ accepts its arguments; a trial queue was refused: {_text(refusal)}"
        fix = "nothing needs to be done if sidecar run starts; or let the user configure names such as QUEUE.delay.1"
        return [_missing(topology, wanted), Finding("note", wanted.where, what, fix)]
    what = (
        f"it doesn't exist, and sidecar run can't create it with {json.dumps(wanted.arguments)}: RabbitMQ refuses "
        f"it: {_text(refusal)}"
    )
    fix = "correct SIDECAR_AMQP_QUEUE_ARGUMENTS and SIDECAR_AMQP_QUEUE_TYPE, or raise the limit in RabbitMQ's answer"
    if wanted.is_for_dead_letters:
        fix = "raise the limit in RabbitMQ's answer, or create it yourself"
    return [Finding("problem", wanted.where, what, fix)]


def _reserved(where: str, setting: str) -> Finding:
    what = "it doesn't exist, and can't be created: RabbitMQ reserves names that begin with amq. for itself"
    return Finding("problem", where, what, f"set {setting} to another name")


async def _unconsumable(probe: _BrokerProbe, wanted: _ExpectedQueue, arguments: dict[str, Any]) -> list[Finding]:
    """Return why a queue with such arguments can't be consumed."""
    if not wanted.consumer_arguments:
        return []
    refusal = await consumer_refusal(probe.ask, wanted.name, arguments, wanted.consumer_arguments)
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return []
    told = json.dumps(dict(wanted.consumer_arguments))
    what = f"it can't be consumed with {told}: RabbitMQ refuses that: {_text(refusal)}"
    return [Finding("problem", wanted.where, what, "correct SIDECAR_AMQP_CONSUMER_ARGUMENTS")]


def _missing(topology: Topology, wanted: _ExpectedQueue) -> Finding:
    if wanted.is_for_dead_letters and topology.declare:
        fix = "nothing needs to be done if the name is right"
        return Finding("note", wanted.where, "it doesn't exist; sidecar run will create it", fix)
    if topology.creates_work:
        what = (
            f"it doesn't exist; sidecar run will create it, durable, with {json.dumps(wanted.arguments)}: RabbitMQ "
            "refuses a producer that declares it with anything else (406)"
        )
        fix = (
            "have producers declare the same, or nothing; if they can't, set SIDECAR_AMQP_DECLARE=own "
            f"({_PRODUCERS_PAGE})"
        )
        return Finding("note", wanted.where, what, fix)
    if topology.declare:
        what = "it doesn't exist; with SIDECAR_AMQP_DECLARE=own the sidecar waits until its producer declares it"
        return Finding("warning", wanted.where, what, "start the producer, or correct the name")
    what = "it doesn't exist, and SIDECAR_AMQP_DECLARE=never forbids creating it"
    return Finding("problem", wanted.where, what, "create it, mend the name, or set SIDECAR_AMQP_DECLARE=missing")


def _refused(where: str, refusal: AMQPError) -> Finding:
    fix = "grant the user configure, write and read there (rabbitmqctl set_permissions)"
    if not isinstance(refusal, ChannelAccessRefused):
        fix = "look into the broker's log"
    return Finding("problem", where, f"RabbitMQ refuses to tell about it: {_text(refusal)}", fix)


async def _properties(probe: _BrokerProbe, topology: Topology, wanted: _ExpectedQueue) -> list[Finding]:
    """Return the findings about an existing queue, and where it differs from what would be declared."""
    properties = await read_properties(probe.ask, wanted.name, wanted.arguments)
    if properties is None:
        what = "its properties (auto-delete, x-expires, limits) can't be read without the configure permission"
        fix = f"see: rabbitmqctl list_queues name durable auto_delete arguments; {QUEUES_PAGE} says what they do"
        return [Finding("note", wanted.where, what, fix)]
    if wanted.is_for_dead_letters:
        found = dead_letter_findings(wanted.name, properties)
    else:
        found = queue_findings(wanted.name, properties, major_version(await probe.connection()))
    if any(finding.severity == "problem" for finding in found):
        return found
    if topology.declare:  # otherwise nothing may be created, not even for a trial
        found = found + await _unconsumable(probe, wanted, {"x-queue-type": properties.queue_type})
    declares = topology.declare if wanted.is_for_dead_letters else topology.creates_work
    severity: Severity = "warning" if declares else "note"
    present = properties.arguments | {"x-queue-type": properties.queue_type}
    different = [name for name, value in wanted.arguments.items() if present.get(name) != value]
    if "x-queue-type" in different or not wanted.is_for_dead_letters:  # a limit that is too low is found by its rule
        different = [name for name in different if name != "x-delivery-limit"]
    return found + [
        Finding(severity, wanted.where, _difference(name, wanted, present), _fix_argument(name, wanted))
        for name in different
    ]


def _difference(name: str, wanted: _ExpectedQueue, present: dict[str, Any]) -> str:
    how = f"{wanted.arguments[name]!r} is wanted, it has {present.get(name, 'none')!r}"
    return f"it exists with another {name} than the sidecar would declare ({how}); it is left as it is"


_HOW_TO_ALIGN = (
    "set SIDECAR_AMQP_QUEUE_TYPE and SIDECAR_AMQP_QUEUE_ARGUMENTS to what the queue has, or delete it while it is "
    "empty and have it created anew"
)


def _fix_argument(name: str, wanted: _ExpectedQueue) -> str:
    if name == "x-delivery-limit":
        return (
            "give it a large x-delivery-limit (a new queue, or a policy): with RabbitMQ's own of 20 a message that is "
            "given back for the 21st time is dropped, or dead-lettered without a reason"
        )
    if wanted.is_for_dead_letters:
        return "nothing needs to be done where that is on purpose; otherwise delete it while it is empty"
    return _HOW_TO_ALIGN


# The dead-letter route -----------------------------------------------------------------------------------------------


async def _dead_letter_queue(probe: _BrokerProbe, topology: Topology, queue: str) -> list[Finding]:
    if topology.dead_letter_exchange:
        return []
    name = topology.dead_letter_key(queue)
    wanted = _ExpectedQueue(name, quorum_arguments(), is_for_dead_letters=True)
    if name in topology.queues:
        what = "it is a work queue as well: every reject would come back at once, for ever"
        return [Finding("problem", wanted.where, what, "name another queue in SIDECAR_DEAD_LETTER_ROUTING_KEY")]
    return await _queue(probe, topology, wanted)


async def _dead_letter_exchange(probe: _BrokerProbe, topology: Topology) -> list[Finding]:
    name = topology.dead_letter_exchange
    if not name:
        return []
    where = f"dead-letter exchange {name!r}"
    refusal = await probe.ask(lambda channel: channel.exchange_declare(exchange=name, passive=True))
    if isinstance(refusal, ChannelNotFoundEntity):
        what = "it doesn't exist; the sidecar never creates it, and doesn't start without it"
        return [Finding("problem", where, what, "declare it with a bound queue, or unset SIDECAR_DEAD_LETTER_EXCHANGE")]
    if refusal is not None:
        return [_refused(where, refusal)]
    keys = dict.fromkeys(map(topology.dead_letter_key, topology.queues))
    what = f"whether a queue is bound to it for {', '.join(map(repr, keys))} can't be seen by AMQP"
    fix = f"see: rabbitmqctl list_bindings | grep {name}; where none is, the first reject stops consumption"
    return [Finding("note", where, what, fix)]


# The delay route -----------------------------------------------------------------------------------------------------


async def _delay_queues(probe: _BrokerProbe, topology: Topology, queue: str, delays: tuple[int, ...]) -> list[Finding]:
    """Check whether messages can be delayed. A missing permission is reported with the other ones."""
    missing = []
    for length in delays:
        name = delay_queue(queue, length)
        if await probe.ask(lambda channel, name=name: channel.queue_declare(name, passive=True)):  # type: ignore[misc]
            missing.append(length)
    if not missing:
        return []
    where = f"delay queues of {queue!r}"
    names = ", ".join(delay_queue(queue, length) for length in missing)
    if not topology.declare:
        what = f"{names} can't be found, and SIDECAR_AMQP_DECLARE=never forbids creating them: {_UNDELAYED}"
        fix = "create them (docs/deployment.md lists names and arguments), or set SIDECAR_AMQP_DECLARE=missing"
        return [Finding("warning", where, what, fix)]
    if is_reserved(queue):
        what = f"{names} can't be created: RabbitMQ reserves names that begin with amq.; {_UNDELAYED}"
        return [Finding("warning", where, what, "use a queue whose name doesn't begin with amq.")]
    refusal = await queue_refusal(probe.ask, queue, delay_arguments(queue, missing[0]))
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return []
    what = f"{names} can't be created: {_text(refusal)}; {_UNDELAYED}"
    fix = f"raise the limit (rabbitmqctl set_vhost_limits): {len(missing)} more queues may be needed"
    return [Finding("warning", where, what, fix)]


_UNDELAYED = "messages whose target is blocked wait in place, or are dead-lettered (SIDECAR_ON_DELAY_REFUSED)"


async def _own_dead_lettering(probe: _BrokerProbe, topology: Topology) -> list[Finding]:
    """Return where the broker would drop what is rejected (``SIDECAR_ON_REJECT=broker``)."""
    where = "SIDECAR_ON_REJECT=broker"
    name = topology.queue_arguments.get("x-dead-letter-exchange")
    if not isinstance(name, str):
        what = (
            "SIDECAR_AMQP_QUEUE_ARGUMENTS names no x-dead-letter-exchange: unless the queue has one that exists, or a "
            "policy sets it (neither can be read by AMQP), every reject is dropped"
        )
        fix = "see: rabbitmqctl list_queues name arguments policy; or set SIDECAR_ON_REJECT=dead-letter"
        return [Finding("warning", where, what, fix)]
    if not name or await probe.ask(lambda channel: channel.exchange_declare(exchange=name, passive=True)) is None:
        return []
    what = f"the queue's own dead-letter exchange {name!r} doesn't exist: every reject is dropped"
    return [Finding("problem", where, what, "declare it, and bind a queue to it")]


# The exchange --------------------------------------------------------------------------------------------------------


async def _exchange(probe: _BrokerProbe, topology: Topology) -> list[Finding]:
    name = topology.exchange
    if not name:
        return []
    where = f"exchange {name!r}"
    refusal = await probe.ask(lambda channel: channel.exchange_declare(exchange=name, passive=True))
    if isinstance(refusal, ChannelNotFoundEntity):
        uncreatable = await _uncreatable(probe, topology, name, where, "SIDECAR_AMQP_EXCHANGE_TYPE")
        if uncreatable:
            return uncreatable
        return [_no_exchange(topology, where), *await _unbindable(probe, topology, where)]
    if refusal is not None:
        return [_refused(where, refusal)]
    different = await _exchange_type(probe, topology, name, where)
    if not topology.creates_work:
        return different
    # The valid arguments of a binding depend on the type, and only the configured type can be tried.
    return [*different, *([] if different else await _unbindable(probe, topology, where)), _bindings(name, where)]


async def _uncreatable(probe: _BrokerProbe, topology: Topology, name: str, where: str, setting: str) -> list[Finding]:
    """Return why a missing exchange can't be created."""
    if not topology.creates_work:
        return []
    if is_reserved(name):
        return [_reserved(where, setting.removesuffix("_TYPE"))]
    refusal = await exchange_refusal(probe.ask, name, topology.exchange_type)
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return []
    what = (
        f"it doesn't exist, and sidecar run can't create it with the type {topology.exchange_type!r}: RabbitMQ refuses "
        f"it: {_text(refusal)}"
    )
    return [Finding("problem", where, what, f"correct {setting}, or enable the plug-in that brings the type")]


async def _unbindable(probe: _BrokerProbe, topology: Topology, where: str) -> list[Finding]:
    """Return why queues can't be bound to the exchange."""
    if not topology.creates_work:
        return []
    arguments = work_arguments(topology)
    refused = {
        queue: await binding_refusal(probe.ask, topology, queue, arguments) for queue in dict.fromkeys(topology.queues)
    }
    fix = "correct SIDECAR_AMQP_BINDING_ARGUMENTS, SIDECAR_AMQP_ROUTING_KEYS or SIDECAR_AMQP_EXCHANGE_TYPE"
    return [
        Finding("problem", where, f"the queue {queue!r} can't be bound to it: {_text(refusal)}", fix)
        for queue, refusal in refused.items()
        if refusal is not None and not isinstance(refusal, ChannelAccessRefused)
    ]


def _bindings(name: str, where: str) -> Finding:
    what = "bindings of earlier SIDECAR_AMQP_ROUTING_KEYS stay, and still deliver messages; AMQP can't list bindings"
    fix = (
        f"if the keys have changed, see: rabbitmqctl list_bindings source_name destination_name routing_key | grep "
        f"{name}; remove old ones on RabbitMQ's management page, or by rabbitmqadmin delete binding"
    )
    return Finding("note", where, what, fix)


async def _exchange_type(probe: _BrokerProbe, topology: Topology, name: str, where: str) -> list[Finding]:
    kind = topology.exchange_type
    refusal = await probe.ask(lambda channel: channel.exchange_declare(exchange=name, exchange_type=kind, durable=True))
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return []
    if isinstance(refusal, ConnectionCommandInvalid):
        what = f"RabbitMQ doesn't know the type {kind!r}: {_text(refusal)}"
        fix = "enable the plug-in that brings it, or mend SIDECAR_AMQP_EXCHANGE_TYPE"
        return [Finding("warning", where, what, fix)]
    different = _DIFFERENT.search(_text(refusal))
    how = f"another {different[1]} ({different[2].strip()})" if different else f"other arguments ({_text(refusal)})"
    what = f"it exists with {how}; it is left as it is, and bound to as ever"
    fix = "set SIDECAR_AMQP_EXCHANGE_TYPE to what it is; what routing keys mean depends on the type"
    return [Finding("warning", where, what, fix)]


def _no_exchange(topology: Topology, where: str) -> Finding:
    if topology.creates_work:
        what = f"it doesn't exist; sidecar run will create it, of type {topology.exchange_type}"
        return Finding("note", where, what, "nothing needs to be done if the name is right")
    what = f"it doesn't exist, and {topology.setting} forbids creating it: no messages come from it"
    return Finding("warning", where, what, "create and bind it, unset SIDECAR_AMQP_EXCHANGE, or mend its name")


# The sink ------------------------------------------------------------------------------------------------------------


async def _probe_sink(
    probe: _BrokerProbe, topology: Topology, routing_key: str | None, on_unroutable: str
) -> AsyncIterator[list[Finding]]:
    """Yield what keeps messages from being published, and what becomes of them where no queue takes them."""
    meanwhile = {
        "hold": "messages wait until one is there",
        "delay": "messages go round by the delay queue until one is there",
        "dead-letter": "messages become dead letters (unroutable)",
    }[on_unroutable]
    if topology.exchange:
        yield await _sink_exchange(probe, topology, topology.exchange, meanwhile)
    else:
        yield await _sink_queue(probe, routing_key, meanwhile)
    missing_permission = await missing_publish_permissions(probe.ask, topology)
    yield [_told(probe, missing_permission)] if missing_permission is not None else []


async def _sink_queue(probe: _BrokerProbe, routing_key: str | None, meanwhile: str) -> list[Finding]:
    """Return whether the queue is there that the default exchange leads to: whoever consumes it declares it."""
    if routing_key is None:
        return []
    where = f"queue {routing_key!r} (SIDECAR_SINK_ROUTING_KEY)"
    refusal = await probe.ask(lambda channel: channel.queue_declare(routing_key, passive=True))
    if refusal is None:
        return []
    if not isinstance(refusal, ChannelNotFoundEntity):
        return [_refused(where, refusal)]
    fix = "start the next stage, which declares it, or mend the name"
    return [Finding("note", where, f"it doesn't exist: {meanwhile}", fix)]


async def _sink_exchange(probe: _BrokerProbe, topology: Topology, name: str, meanwhile: str) -> list[Finding]:
    where = f"exchange {name!r} (SIDECAR_SINK_EXCHANGE)"
    kind = topology.exchange_type
    refusal = await probe.ask(lambda channel: channel.exchange_declare(exchange=name, passive=True))
    if isinstance(refusal, ChannelNotFoundEntity):
        if topology.creates_work:
            what = f"it doesn't exist; sidecar run will create it, of type {kind}"
            uncreatable = await _uncreatable(probe, topology, name, where, "SIDECAR_SINK_EXCHANGE_TYPE")
            return uncreatable or [Finding("note", where, what, "nothing needs to be done if the name is right")]
        what = f"it doesn't exist, and {topology.setting} forbids creating it: nothing is consumed"
        return [Finding("problem", where, what, "create it, mend its name, or set SIDECAR_AMQP_DECLARE=missing")]
    if refusal is not None:
        return [_refused(where, refusal)]
    what = f"whether a queue is bound to it can't be seen by AMQP; where none takes a message, {meanwhile}"
    fix = f"start the next stage, which binds its queue; see: rabbitmqctl list_bindings | grep {name}"
    found = [Finding("note", where, what, fix)]
    refusal = await probe.ask(lambda channel: channel.exchange_declare(exchange=name, exchange_type=kind, durable=True))
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return found
    what = f"it exists with other arguments than would be declared ({_text(refusal)}); it is left as it is"
    return [*found, Finding("warning", where, what, "set SIDECAR_SINK_EXCHANGE_TYPE to what it is")]


# Rights --------------------------------------------------------------------------------------------------------------


async def _rights(probe: _BrokerProbe, topology: Topology, on_reject: str) -> list[Finding]:
    """Return what the user may not do; only the user's own broker can say, and only when it is tried."""
    lacks = await missing_permissions(probe.ask, topology, publishes=on_reject == "dead-letter")
    # What has a reserved name nobody may create, whatever their rights: that is told where it is found absent.
    return [
        _told(probe, missing_permission)
        for missing_permission in lacks
        if not (missing_permission.permission == "configure" and is_reserved(missing_permission.resource))
    ]


def _told(probe: _BrokerProbe, missing: MissingPermission) -> Finding:
    user, vhost = probe.url.user or "guest", probe.url.path[1:] or "/"
    what = f"the user {user!r} lacks {missing.permission} there: {missing.consequence}"
    fix = (
        f"let the {missing.permission} pattern of that user match {missing.resource!r}: rabbitmqctl set_permissions "
        f"-p {vhost} {user} CONFIGURE WRITE READ (docs/deployment.md has patterns)"
    )
    return Finding(missing.severity, missing.where, what, fix)


def _consumer_timeout(probe: _BrokerProbe) -> Finding:
    what = (
        "the consumer timeout can't be read by AMQP (30 minutes by default): a message that is held longer is taken "
        "away, and comes again"
    )
    fix = "keep it above what a batch may wait: rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'"
    return Finding("note", _where(probe.url), what, fix)
