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
from sidecar.amqp.queue_properties import major_version, read_properties
from sidecar.amqp.queue_rules import QUEUES_PAGE, dead_letter_findings, queue_findings
from sidecar.amqp.rights import lacking, lacking_to_publish
from sidecar.amqp.topology import EXCLUSIVE, delay_arguments, quorum_arguments, work_arguments
from sidecar.amqp.trial import binding_refusal, consumer_refusal, exchange_refusal, is_reserved, queue_refusal
from sidecar.amqp.wire import FAILURES, TlsPortError, connect, end, pass_on_if_ours
from sidecar.core.check import Finding
from sidecar.core.names import delay_queue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from aiormq.abc import AbstractConnection

    from sidecar.amqp.channels import Act
    from sidecar.amqp.rights import Lack
    from sidecar.amqp.topology import Topology
    from sidecar.amqp.wire import Reach, Wire
    from sidecar.core.check import Severity

_DIFFERENT = re.compile(r"inequivalent arg '([^']+)' for (?:queue|exchange) .*?: (received .*)", re.DOTALL)
_CODE = re.compile(r"^[A-Z_]+ - ")
_LIMIT = re.compile(r"\blimit\b")
_PUBLISHING_CHANNELS = 2
_PRODUCERS_PAGE = "docs/deployment.md, What producers declare"


async def check(
    urls: tuple[str, ...],
    reach: Reach,
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
        reach: how.
        topology: what should be there.
        on_reject: what becomes of rejected messages.
        delays: how long messages may wait in delay queues, in milliseconds.
        connections: how many `sidecar run` opens at once.
        consumer_arguments: arguments of ``basic.consume``.
    """
    arguments = consumer_arguments or {}
    return await _check(
        urls, reach, lambda look: _look_at_all(look, topology, on_reject, delays, connections, arguments)
    )


async def check_sink(
    urls: tuple[str, ...], reach: Reach, topology: Topology, routing_key: str | None, *, named: str, on_unroutable: str
) -> list[Finding]:
    """Return all that keeps messages from being published (``SIDECAR_SINK=amqp``).

    Args:
        urls: each is tried; the exchange is looked at by the first that answers.
        reach: how.
        topology: what should be there.
        routing_key: with which messages are published, None where each has its own.
        named: the setting that says where.
        on_unroutable: what becomes of messages that no queue takes.
    """
    found = await _check(urls, reach, lambda look: _look_at_sink(look, topology, routing_key, on_unroutable))
    return [replace(finding, mend=finding.mend.replace("SIDECAR_AMQP_URL", named)) for finding in found]


async def _check(
    urls: tuple[str, ...], reach: Reach, act: Callable[[_Look], AsyncIterator[list[Finding]]]
) -> list[Finding]:
    reached = await asyncio.gather(*(_try(URL(text), reach) for text in urls))
    findings = [answer for answer in reached if isinstance(answer, Finding)]
    if len(findings) < len(urls):  # others do the work of those that are away
        findings = [_only_a_warning(finding) for finding in findings]
    good = next((text for text, answer in zip(urls, reached, strict=True) if answer is None), None)
    if good is None:
        return findings
    look = _Look(URL(good), reach)
    try:
        async for some in act(look):
            findings += some
    except FAILURES as error:
        pass_on_if_ours(error)
        what = f"the connection was lost, so the check is incomplete: {_text(error)}"
        fix = "see in the broker's log why, and that nothing between cuts connections; then run the check again"
        findings.append(Finding("problem", _where(look.url), what, fix))
    finally:
        await look.close()
    return findings


async def _look_at_all(
    look: _Look,
    topology: Topology,
    on_reject: str,
    delays: tuple[int, ...],
    connections: int,
    consumer_arguments: Mapping[str, Any],
) -> AsyncIterator[list[Finding]]:
    """Yield the findings part by part: if the connection is lost, those before it stay."""
    yield await _capacity(look, len(set(topology.queues)), connections)
    yield await _none_of_several(look, topology)
    for queue in dict.fromkeys(topology.queues):
        yield await _queue(look, topology, _Wanted(queue, work_arguments(topology), consumer_arguments))
        yield await _dead_letter_queue(look, topology, queue)
        yield await _delay_queues(look, topology, queue, delays)
    yield await _dead_letter_exchange(look, topology)
    yield await _exchange(look, topology)
    if on_reject == "broker":
        yield await _own_dead_lettering(look, topology)
    yield await _rights(look, topology, on_reject)
    yield [_consumer_timeout(look)]


# The way there -------------------------------------------------------------------------------------------------------


async def _try(url: URL, reach: Reach) -> Finding | None:
    """Return what keeps us from using a broker; None where nothing does."""
    look = _Look(url, reach)
    try:
        await look.connection()
    except FAILURES as error:
        pass_on_if_ours(error)
        return _unreached(url, error, _text(error), reach)
    finally:
        await look.close()
    return None


def _unreached(url: URL, error: BaseException, text: str, reach: Reach) -> Finding:
    where, vhost = _where(url), url.path[1:] or "/"
    if isinstance(error, ConnectionNotAllowed) and _LIMIT.search(text):
        what = f"RabbitMQ allows no further connection: {text}"
        mend = f"{_HOW_TO_RAISE_LIMITS}; or close other connections"
    elif isinstance(error, ConnectionNotAllowed):
        what = f"the virtual host {vhost!r} doesn't exist, or the user {url.user or 'guest'!r} may not use it: {text}"
        mend = "create it (rabbitmqctl add_vhost), permit it (rabbitmqctl set_permissions), or mend SIDECAR_AMQP_URL"
    elif isinstance(error, ProbableAuthenticationError):
        what = f"RabbitMQ doesn't accept the login of the user {url.user or 'guest'!r}: {text}"
        mend = "mend user and password in SIDECAR_AMQP_URL; the user guest may log in from the broker's own host only"
    elif isinstance(error, AuthenticationError):
        what, mend = text, "change the way to log in, or enable it on the broker"
    elif isinstance(error, TlsPortError):
        what, mend = text, "set SIDECAR_AMQP_URL to amqps:// and the TLS port (5671), or amqp:// and the other (5672)"
    elif "TLS" in text or "certificate" in text:
        what = text
        mend = "see that the port speaks TLS, and that SIDECAR_AMQP_CA_FILE holds the authority of its certificate"
    elif isinstance(error, TimeoutError):
        what = f"no answer within {reach.timeout_seconds:g} s"
        mend = "see that host and port are right, and that no firewall is between; amqps:// and amqp:// differ in ports"
    else:
        what = f"RabbitMQ can't be reached: {text}"
        mend = "see that the broker runs, and that host and port in SIDECAR_AMQP_URL are right"
    return Finding("problem", where, what, mend)


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


async def _capacity(look: _Look, queues: int, connections: int) -> list[Finding]:
    """Check whether a limit (of a user, virtual host or node) allows the connections and channels of `sidecar run`.

    It opens a connection with a channel for each queue, and another one with two channels, to publish and to declare.
    """
    opened = [_Look(look.url, look.reach) for _ in range(connections)]
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
        mend = f"{_HOW_TO_RAISE_LIMITS}; another sidecar of the same user needs as many"
        return [Finding("problem", _where(look.url), what, mend)]
    finally:
        for one in opened:
            await one.close()
    return []


class _Look:
    """Asks a broker one thing after the other, each on a channel of its own: a no closes it.

    Args:
        url: of the broker.
        reach: how.
    """

    def __init__(self, url: URL, reach: Reach) -> None:
        self.url = url
        self.reach = reach
        self._connection: AbstractConnection | None = None
        self._wire: Wire | None = None

    async def connection(self) -> AbstractConnection:
        """Return a connection; a new one where a refusal has closed the last."""
        if self._connection is None or self._connection.is_closed:
            self._connection, self._wire = await connect(self.url, "check", _ignore, _ignore, self.reach)
        return self._connection

    async def ask(self, act: Act) -> AMQPError | None:
        """Return the broker's refusal, or None; raise one of `FAILURES` if the connection is lost."""
        return await refusal_of(await self.connection(), act)

    async def close(self) -> None:
        """Close the connection."""
        await end(self._connection, self._wire)


def _ignore(_: object) -> None:
    """Nothing is consumed here."""


# Queues --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A queue that should be there, with what it would be declared with."""

    name: str
    arguments: dict[str, Any]
    consumer_arguments: Mapping[str, Any] = field(default_factory=dict)
    is_for_dead_letters: bool = False

    @property
    def where(self) -> str:
        return f"{'dead-letter queue' if self.is_for_dead_letters else 'queue'} {self.name!r}"


async def _queue(look: _Look, topology: Topology, wanted: _Wanted) -> list[Finding]:
    refusal = await look.ask(lambda channel: channel.queue_declare(wanted.name, passive=True))
    if refusal is None:
        return await _properties(look, topology, wanted)
    if isinstance(refusal, ChannelNotFoundEntity):
        return await _absent(look, topology, wanted)
    if isinstance(refusal, ChannelLockedResource):
        what = f"it is exclusive: {EXCLUSIVE}"
        return [Finding("problem", wanted.where, what, "declare the queue without exclusive, or name another one")]
    return [_refused(wanted.where, refusal)]


async def _none_of_several(look: _Look, topology: Topology) -> list[Finding]:
    """Warn if all of several queues would be created: they may be one name that contains commas."""
    names = tuple(dict.fromkeys(topology.queues))
    if len(names) < 2 or not topology.creates_work:  # noqa: PLR2004 - several
        return []
    for name in names:
        refusal = await look.ask(lambda channel, name=name: channel.queue_declare(name, passive=True))  # type: ignore[misc]
        if not isinstance(refusal, ChannelNotFoundEntity):
            return []
    what = f"none of its {len(names)} queues exists; sidecar run would create them all"
    mend = r"if it is one name that contains commas, write each of them as \,; otherwise nothing needs to be done"
    return [Finding("warning", "SIDECAR_AMQP_QUEUE", what, mend)]


async def _absent(look: _Look, topology: Topology, wanted: _Wanted) -> list[Finding]:
    """Return what `sidecar run` does about a missing queue, and whether it can create it."""
    if not (topology.declare if wanted.is_for_dead_letters else topology.creates_work):
        return [_missing(topology, wanted)]
    if is_reserved(wanted.name):
        setting = "SIDECAR_DEAD_LETTER_ROUTING_KEY" if wanted.is_for_dead_letters else "SIDECAR_AMQP_QUEUE"
        return [_reserved(wanted.where, setting)]
    refusal = await queue_refusal(look.ask, wanted.name, wanted.arguments)
    if refusal is None:
        return [_missing(topology, wanted), *await _unconsumable(look, wanted, wanted.arguments)]
    if isinstance(refusal, ChannelAccessRefused):  # the permission for the queue itself is checked with the others
        what = f"it is unknown whether RabbitMQ accepts its arguments; a trial queue was refused: {_text(refusal)}"
        mend = "nothing needs to be done if sidecar run starts; or let the user configure names such as QUEUE.delay.1"
        return [_missing(topology, wanted), Finding("note", wanted.where, what, mend)]
    what = (
        f"it doesn't exist, and sidecar run can't create it with {json.dumps(wanted.arguments)}: RabbitMQ refuses "
        f"it: {_text(refusal)}"
    )
    mend = "correct SIDECAR_AMQP_QUEUE_ARGUMENTS and SIDECAR_AMQP_QUEUE_TYPE, or raise the limit in RabbitMQ's answer"
    if wanted.is_for_dead_letters:
        mend = "raise the limit in RabbitMQ's answer, or create it yourself"
    return [Finding("problem", wanted.where, what, mend)]


def _reserved(where: str, setting: str) -> Finding:
    what = "it doesn't exist, and can't be created: RabbitMQ reserves names that begin with amq. for itself"
    return Finding("problem", where, what, f"set {setting} to another name")


async def _unconsumable(look: _Look, wanted: _Wanted, arguments: dict[str, Any]) -> list[Finding]:
    """Return why a queue with such arguments can't be consumed."""
    if not wanted.consumer_arguments:
        return []
    refusal = await consumer_refusal(look.ask, wanted.name, arguments, wanted.consumer_arguments)
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return []
    told = json.dumps(dict(wanted.consumer_arguments))
    what = f"it can't be consumed with {told}: RabbitMQ refuses that: {_text(refusal)}"
    return [Finding("problem", wanted.where, what, "correct SIDECAR_AMQP_CONSUMER_ARGUMENTS")]


def _missing(topology: Topology, wanted: _Wanted) -> Finding:
    if wanted.is_for_dead_letters and topology.declare:
        mend = "nothing needs to be done if the name is right"
        return Finding("note", wanted.where, "it doesn't exist; sidecar run will create it", mend)
    if topology.creates_work:
        what = (
            f"it doesn't exist; sidecar run will create it, durable, with {json.dumps(wanted.arguments)}: RabbitMQ "
            "refuses a producer that declares it with anything else (406)"
        )
        mend = (
            "have producers declare the same, or nothing; if they can't, set SIDECAR_AMQP_DECLARE=own "
            f"({_PRODUCERS_PAGE})"
        )
        return Finding("note", wanted.where, what, mend)
    if topology.declare:
        what = "it doesn't exist; with SIDECAR_AMQP_DECLARE=own the sidecar waits until its producer declares it"
        return Finding("warning", wanted.where, what, "start the producer, or correct the name")
    what = "it doesn't exist, and SIDECAR_AMQP_DECLARE=never forbids creating it"
    return Finding("problem", wanted.where, what, "create it, mend the name, or set SIDECAR_AMQP_DECLARE=missing")


def _refused(where: str, refusal: AMQPError) -> Finding:
    mend = "grant the user configure, write and read there (rabbitmqctl set_permissions)"
    if not isinstance(refusal, ChannelAccessRefused):
        mend = "look into the broker's log"
    return Finding("problem", where, f"RabbitMQ refuses to tell about it: {_text(refusal)}", mend)


async def _properties(look: _Look, topology: Topology, wanted: _Wanted) -> list[Finding]:
    """Return the findings about an existing queue, and where it differs from what would be declared."""
    properties = await read_properties(look.ask, wanted.name, wanted.arguments)
    if properties is None:
        what = "its properties (auto-delete, x-expires, limits) can't be read without the configure permission"
        mend = f"see: rabbitmqctl list_queues name durable auto_delete arguments; {QUEUES_PAGE} says what they do"
        return [Finding("note", wanted.where, what, mend)]
    if wanted.is_for_dead_letters:
        found = dead_letter_findings(wanted.name, properties)
    else:
        found = queue_findings(wanted.name, properties, major_version(await look.connection()))
    if any(finding.severity == "problem" for finding in found):
        return found
    if topology.declare:  # otherwise nothing may be created, not even for a trial
        found = found + await _unconsumable(look, wanted, {"x-queue-type": properties.queue_type})
    declares = topology.declare if wanted.is_for_dead_letters else topology.creates_work
    severity: Severity = "warning" if declares else "note"
    present = properties.arguments | {"x-queue-type": properties.queue_type}
    different = [name for name, value in wanted.arguments.items() if present.get(name) != value]
    if "x-queue-type" in different or not wanted.is_for_dead_letters:  # a limit that is too low is found by its rule
        different = [name for name in different if name != "x-delivery-limit"]
    return found + [
        Finding(severity, wanted.where, _difference(name, wanted, present), _mend_argument(name, wanted))
        for name in different
    ]


def _difference(name: str, wanted: _Wanted, present: dict[str, Any]) -> str:
    how = f"{wanted.arguments[name]!r} is wanted, it has {present.get(name, 'none')!r}"
    return f"it exists with another {name} than the sidecar would declare ({how}); it is left as it is"


_HOW_TO_ALIGN = (
    "set SIDECAR_AMQP_QUEUE_TYPE and SIDECAR_AMQP_QUEUE_ARGUMENTS to what the queue has, or delete it while it is "
    "empty and have it created anew"
)


def _mend_argument(name: str, wanted: _Wanted) -> str:
    if name == "x-delivery-limit":
        return (
            "give it a large x-delivery-limit (a new queue, or a policy): with RabbitMQ's own of 20 a message that is "
            "given back for the 21st time is dropped, or dead-lettered without a reason"
        )
    if wanted.is_for_dead_letters:
        return "nothing needs to be done where that is on purpose; otherwise delete it while it is empty"
    return _HOW_TO_ALIGN


# The dead-letter route -----------------------------------------------------------------------------------------------


async def _dead_letter_queue(look: _Look, topology: Topology, queue: str) -> list[Finding]:
    if topology.dead_letter_exchange:
        return []
    name = topology.dead_letter_key(queue)
    wanted = _Wanted(name, quorum_arguments(), is_for_dead_letters=True)
    if name in topology.queues:
        what = "it is a work queue as well: every reject would come back at once, for ever"
        return [Finding("problem", wanted.where, what, "name another queue in SIDECAR_DEAD_LETTER_ROUTING_KEY")]
    return await _queue(look, topology, wanted)


async def _dead_letter_exchange(look: _Look, topology: Topology) -> list[Finding]:
    name = topology.dead_letter_exchange
    if not name:
        return []
    where = f"dead-letter exchange {name!r}"
    refusal = await look.ask(lambda channel: channel.exchange_declare(exchange=name, passive=True))
    if isinstance(refusal, ChannelNotFoundEntity):
        what = "it doesn't exist; the sidecar never creates it, and doesn't start without it"
        return [Finding("problem", where, what, "declare it with a bound queue, or unset SIDECAR_DEAD_LETTER_EXCHANGE")]
    if refusal is not None:
        return [_refused(where, refusal)]
    keys = dict.fromkeys(map(topology.dead_letter_key, topology.queues))
    what = f"whether a queue is bound to it for {', '.join(map(repr, keys))} can't be seen by AMQP"
    mend = f"see: rabbitmqctl list_bindings | grep {name}; where none is, the first reject stops consumption"
    return [Finding("note", where, what, mend)]


# The delay route -----------------------------------------------------------------------------------------------------


async def _delay_queues(look: _Look, topology: Topology, queue: str, delays: tuple[int, ...]) -> list[Finding]:
    """Check whether messages can be delayed. A missing permission is reported with the other ones."""
    missing = []
    for length in delays:
        name = delay_queue(queue, length)
        if await look.ask(lambda channel, name=name: channel.queue_declare(name, passive=True)):  # type: ignore[misc]
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
    refusal = await queue_refusal(look.ask, queue, delay_arguments(queue, missing[0]))
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return []
    what = f"{names} can't be created: {_text(refusal)}; {_UNDELAYED}"
    fix = f"raise the limit (rabbitmqctl set_vhost_limits): {len(missing)} more queues may be needed"
    return [Finding("warning", where, what, fix)]


_UNDELAYED = "messages whose target is blocked wait in place, or are dead-lettered (SIDECAR_ON_DELAY_REFUSED)"


async def _own_dead_lettering(look: _Look, topology: Topology) -> list[Finding]:
    """Return where the broker would drop what is rejected (``SIDECAR_ON_REJECT=broker``)."""
    where = "SIDECAR_ON_REJECT=broker"
    name = topology.queue_arguments.get("x-dead-letter-exchange")
    if not isinstance(name, str):
        what = (
            "SIDECAR_AMQP_QUEUE_ARGUMENTS names no x-dead-letter-exchange: unless the queue has one that exists, or a "
            "policy sets it (neither can be read by AMQP), every reject is dropped"
        )
        mend = "see: rabbitmqctl list_queues name arguments policy; or set SIDECAR_ON_REJECT=dead-letter"
        return [Finding("warning", where, what, mend)]
    if not name or await look.ask(lambda channel: channel.exchange_declare(exchange=name, passive=True)) is None:
        return []
    what = f"the queue's own dead-letter exchange {name!r} doesn't exist: every reject is dropped"
    return [Finding("problem", where, what, "declare it, and bind a queue to it")]


# The exchange --------------------------------------------------------------------------------------------------------


async def _exchange(look: _Look, topology: Topology) -> list[Finding]:
    name = topology.exchange
    if not name:
        return []
    where = f"exchange {name!r}"
    refusal = await look.ask(lambda channel: channel.exchange_declare(exchange=name, passive=True))
    if isinstance(refusal, ChannelNotFoundEntity):
        uncreatable = await _uncreatable(look, topology, name, where, "SIDECAR_AMQP_EXCHANGE_TYPE")
        if uncreatable:
            return uncreatable
        return [_no_exchange(topology, where), *await _unbindable(look, topology, where)]
    if refusal is not None:
        return [_refused(where, refusal)]
    different = await _exchange_type(look, topology, name, where)
    if not topology.creates_work:
        return different
    # The valid arguments of a binding depend on the type, and only the configured type can be tried.
    return [*different, *([] if different else await _unbindable(look, topology, where)), _bindings(name, where)]


async def _uncreatable(look: _Look, topology: Topology, name: str, where: str, setting: str) -> list[Finding]:
    """Return why a missing exchange can't be created."""
    if not topology.creates_work:
        return []
    if is_reserved(name):
        return [_reserved(where, setting.removesuffix("_TYPE"))]
    refusal = await exchange_refusal(look.ask, name, topology.exchange_type)
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return []
    what = (
        f"it doesn't exist, and sidecar run can't create it with the type {topology.exchange_type!r}: RabbitMQ refuses "
        f"it: {_text(refusal)}"
    )
    return [Finding("problem", where, what, f"correct {setting}, or enable the plug-in that brings the type")]


async def _unbindable(look: _Look, topology: Topology, where: str) -> list[Finding]:
    """Return why queues can't be bound to the exchange."""
    if not topology.creates_work:
        return []
    arguments = work_arguments(topology)
    refused = {
        queue: await binding_refusal(look.ask, topology, queue, arguments) for queue in dict.fromkeys(topology.queues)
    }
    mend = "correct SIDECAR_AMQP_BINDING_ARGUMENTS, SIDECAR_AMQP_ROUTING_KEYS or SIDECAR_AMQP_EXCHANGE_TYPE"
    return [
        Finding("problem", where, f"the queue {queue!r} can't be bound to it: {_text(refusal)}", mend)
        for queue, refusal in refused.items()
        if refusal is not None and not isinstance(refusal, ChannelAccessRefused)
    ]


def _bindings(name: str, where: str) -> Finding:
    what = "bindings of earlier SIDECAR_AMQP_ROUTING_KEYS stay, and still deliver messages; AMQP can't list bindings"
    mend = (
        f"if the keys have changed, see: rabbitmqctl list_bindings source_name destination_name routing_key | grep "
        f"{name}; remove old ones on RabbitMQ's management page, or by rabbitmqadmin delete binding"
    )
    return Finding("note", where, what, mend)


async def _exchange_type(look: _Look, topology: Topology, name: str, where: str) -> list[Finding]:
    kind = topology.exchange_type
    refusal = await look.ask(lambda channel: channel.exchange_declare(exchange=name, exchange_type=kind, durable=True))
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return []
    if isinstance(refusal, ConnectionCommandInvalid):
        what = f"RabbitMQ doesn't know the type {kind!r}: {_text(refusal)}"
        mend = "enable the plug-in that brings it, or mend SIDECAR_AMQP_EXCHANGE_TYPE"
        return [Finding("warning", where, what, mend)]
    different = _DIFFERENT.search(_text(refusal))
    how = f"another {different[1]} ({different[2].strip()})" if different else f"other arguments ({_text(refusal)})"
    what = f"it exists with {how}; it is left as it is, and bound to as ever"
    mend = "set SIDECAR_AMQP_EXCHANGE_TYPE to what it is; what routing keys mean depends on the type"
    return [Finding("warning", where, what, mend)]


def _no_exchange(topology: Topology, where: str) -> Finding:
    if topology.creates_work:
        what = f"it doesn't exist; sidecar run will create it, of type {topology.exchange_type}"
        return Finding("note", where, what, "nothing needs to be done if the name is right")
    what = f"it doesn't exist, and {topology.setting} forbids creating it: no messages come from it"
    return Finding("warning", where, what, "create and bind it, unset SIDECAR_AMQP_EXCHANGE, or mend its name")


# The sink ------------------------------------------------------------------------------------------------------------


async def _look_at_sink(
    look: _Look, topology: Topology, routing_key: str | None, on_unroutable: str
) -> AsyncIterator[list[Finding]]:
    """Yield what keeps messages from being published, and what becomes of them where no queue takes them."""
    meanwhile = {
        "hold": "messages wait until one is there",
        "delay": "messages go round by the delay queue until one is there",
        "dead-letter": "messages become dead letters (unroutable)",
    }[on_unroutable]
    if topology.exchange:
        yield await _sink_exchange(look, topology, topology.exchange, meanwhile)
    else:
        yield await _sink_queue(look, routing_key, meanwhile)
    lack = await lacking_to_publish(look.ask, topology)
    yield [_told(look, lack)] if lack is not None else []


async def _sink_queue(look: _Look, routing_key: str | None, meanwhile: str) -> list[Finding]:
    """Return whether the queue is there that the default exchange leads to: whoever consumes it declares it."""
    if routing_key is None:
        return []
    where = f"queue {routing_key!r} (SIDECAR_SINK_ROUTING_KEY)"
    refusal = await look.ask(lambda channel: channel.queue_declare(routing_key, passive=True))
    if refusal is None:
        return []
    if not isinstance(refusal, ChannelNotFoundEntity):
        return [_refused(where, refusal)]
    mend = "start the next stage, which declares it, or mend the name"
    return [Finding("note", where, f"it doesn't exist: {meanwhile}", mend)]


async def _sink_exchange(look: _Look, topology: Topology, name: str, meanwhile: str) -> list[Finding]:
    where = f"exchange {name!r} (SIDECAR_SINK_EXCHANGE)"
    kind = topology.exchange_type
    refusal = await look.ask(lambda channel: channel.exchange_declare(exchange=name, passive=True))
    if isinstance(refusal, ChannelNotFoundEntity):
        if topology.creates_work:
            what = f"it doesn't exist; sidecar run will create it, of type {kind}"
            uncreatable = await _uncreatable(look, topology, name, where, "SIDECAR_SINK_EXCHANGE_TYPE")
            return uncreatable or [Finding("note", where, what, "nothing needs to be done if the name is right")]
        what = f"it doesn't exist, and {topology.setting} forbids creating it: nothing is consumed"
        return [Finding("problem", where, what, "create it, mend its name, or set SIDECAR_AMQP_DECLARE=missing")]
    if refusal is not None:
        return [_refused(where, refusal)]
    what = f"whether a queue is bound to it can't be seen by AMQP; where none takes a message, {meanwhile}"
    mend = f"start the next stage, which binds its queue; see: rabbitmqctl list_bindings | grep {name}"
    found = [Finding("note", where, what, mend)]
    refusal = await look.ask(lambda channel: channel.exchange_declare(exchange=name, exchange_type=kind, durable=True))
    if refusal is None or isinstance(refusal, ChannelAccessRefused):
        return found
    what = f"it exists with other arguments than would be declared ({_text(refusal)}); it is left as it is"
    return [*found, Finding("warning", where, what, "set SIDECAR_SINK_EXCHANGE_TYPE to what it is")]


# Rights --------------------------------------------------------------------------------------------------------------


async def _rights(look: _Look, topology: Topology, on_reject: str) -> list[Finding]:
    """Return what the user may not do; only the user's own broker can say, and only when it is tried."""
    lacks = await lacking(look.ask, topology, publishes=on_reject == "dead-letter")
    # What has a reserved name nobody may create, whatever their rights: that is told where it is found absent.
    return [_told(look, lack) for lack in lacks if not (lack.right == "configure" and is_reserved(lack.resource))]


def _told(look: _Look, lack: Lack) -> Finding:
    user, vhost = look.url.user or "guest", look.url.path[1:] or "/"
    what = f"the user {user!r} lacks {lack.right} there: {lack.consequence}"
    mend = (
        f"let the {lack.right} pattern of that user match {lack.resource!r}: rabbitmqctl set_permissions -p "
        f"{vhost} {user} CONFIGURE WRITE READ (docs/deployment.md has patterns)"
    )
    return Finding(lack.severity, lack.where, what, mend)


def _consumer_timeout(look: _Look) -> Finding:
    what = (
        "the consumer timeout can't be read by AMQP (30 minutes by default): a message that is held longer is taken "
        "away, and comes again"
    )
    mend = "keep it above what a batch may wait: rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'"
    return Finding("note", _where(look.url), what, mend)
