"""`sidecar.tls` and what stands on it, by real handshakes with both sides: one thing is wrong at a time."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import ssl
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from yarl import URL

from sidecar.amqp.connection import close_quietly, connect, connect_error
from sidecar.amqp.session import open_session
from sidecar.cli.check import _check, _checks
from sidecar.cli.forwarding import far_side
from sidecar.cli.produce import _produce
from sidecar.cli.run import pipeline_config
from sidecar.cli.wiring import elasticsearch
from sidecar.config.broker import connect_options, connecting
from sidecar.config.settings import Settings, load
from sidecar.elasticsearch.client import ElasticsearchClient
from sidecar.errors import ConfigError
from sidecar.library.publishing import Publisher
from sidecar.tls import client_context, explain
from tests.certificates import EXPIRED, NOT_YET_VALID, PASSPHRASE, Authority, require_openssl
from tests.fakes.amqp_server import AmqpServer
from tests.fakes.tls import Acceptor, listening, speak_amqp, speak_http

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

PASSWORD = "s3cret-and-longer-than-any-limit"
SIDES = ("AMQP", "ELASTICSEARCH")
SECONDS = 20.0

Files = dict[str, str]
"""Paths of certificates and keys, by what they are."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """All certificates and keys of this file."""
    require_openssl()
    folder = tmp_path_factory.mktemp("certificates")
    ours = Authority(folder / "ours", "our-authority")
    foreign = Authority(folder / "foreign", "foreign-authority")
    between = Authority(folder / "between", "intermediate-authority", ours)
    alone = Authority(folder / "alone", "localhost")
    ours.sign("right")
    ours.sign("expired", validity=EXPIRED)
    ours.sign("not-yet-valid", validity=NOT_YET_VALID)
    ours.sign("elsewhere", "IP:127.0.0.2,DNS:elsewhere.test")
    ours.sign("by-address", "IP:127.0.0.1")
    ours.sign("by-name", "DNS:localhost")
    ours.sign("wildcard", "DNS:*.sidecar.test")
    ours.sign("pikachu")
    ours.sign("expired-pikachu", validity=EXPIRED, common_name="pikachu")
    foreign.sign("foreign", common_name="server")
    foreign.sign("foreign-pikachu", common_name="pikachu")
    between.sign("leaf")
    (between.folder / "root.crt").write_text(ours.text("ca.crt"))
    between.join("chain.crt", "leaf.crt", "ca.crt")
    ours.join("both.crt", "pikachu.crt", "pikachu.key")
    ours.lock("pikachu.key", "locked.key")
    (ours.folder / "several.crt").write_text(foreign.text("ca.crt") + ours.text("ca.crt"))
    found = {path.name: str(path) for authority in (ours, foreign, between) for path in authority.folder.glob("*.*")}
    return found | {
        "ours.crt": ours.path("ca.crt"),
        "foreign-ca.crt": foreign.path("ca.crt"),
        "between-ca.crt": between.path("ca.crt"),
        "chain.key": between.path("leaf.key"),
        "alone.crt": alone.path("ca.crt"),
        "alone.key": alone.path("ca.key"),
        "junk": _written(folder / "junk", "no certificate"),
    }


def _written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def fingerprint(file: str) -> str:
    """Return the SHA-256 of the first certificate of a file."""
    first = Path(file).read_text().partition("-----END CERTIFICATE-----")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[0] + first[1])).hexdigest()


@pytest.fixture(autouse=True)
def all_names_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name of a host leads to 127.0.0.1."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *rest, **options: resolve("127.0.0.1", *rest, **options))


@dataclass(frozen=True)
class Case:
    """A handshake: what the server has, what the client is given, and what comes of it.

    Attributes:
        says: what is in the reason of a refusal, as a regular expression; None if the client gets in.
        server: the certificate of the server.
        given: settings of the side, without their prefix; files by their names here.
        system: the file with the system's authorities.
        host: to which the client connects.
        asks: the server asks for a certificate (and demands one).
        versions: lowest and highest of TLS that the server speaks.
        client: whose certificate the server sees.
        sides: which clients are looked at.
    """

    says: str | None = None
    server: str = "right"
    given: Mapping[str, str] = field(default_factory=lambda: {"CA_FILE": "ours.crt"})
    system: str = "foreign-ca.crt"
    host: str = "127.0.0.1"
    asks: bool = False
    versions: tuple[ssl.TLSVersion, ssl.TLSVersion] = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    client: str = ""
    sides: tuple[str, ...] = SIDES


UNTRUSTED = "the server's certificate is not trusted: "
NO_ISSUER = UNTRUSTED + "unable to get local issuer certificate"
OTHER_ADDRESS = UNTRUSTED + r"IP address mismatch, certificate is not valid for '127\.0\.0\.1'"
OTHER_NAME = UNTRUSTED + "Hostname mismatch, certificate is not valid for '{}'"
OTHER_PRINT = UNTRUSTED + "its SHA-256 is {}, not the given fingerprint"
REFUSES = "(?i)certificate|alert|closed|disconnected|lost"
"""The server refuses ours: with TLS 1.3 it says so after the handshake, and what is heard of that may differ."""
OLD_TLS, TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
OURS = {"CA_FILE": "ours.crt"}
PAIR = {"CERT_FILE": "pikachu.crt", "KEY_FILE": "pikachu.key"}
ELASTIC = ("ELASTICSEARCH",)

CERTIFICATES = {
    "right": Case(),
    "expired": Case(UNTRUSTED + "certificate has expired", "expired"),
    "not yet valid": Case(UNTRUSTED + "certificate is not yet valid", "not-yet-valid"),
    "of another host": Case(OTHER_ADDRESS, "elsewhere"),
    "of another host, which it is reached by": Case(None, "elsewhere", host="elsewhere.test"),
    "for the address, reached by it": Case(None, "by-address"),
    "for the address, reached by name": Case(OTHER_NAME.format("localhost"), "by-address", host="localhost"),
    "for the name, reached by it": Case(None, "by-name", host="localhost"),
    "for the name, reached by address": Case(OTHER_ADDRESS, "by-name"),
    "wildcard": Case(None, "wildcard", host="a.sidecar.test"),
    "wildcard, two levels": Case(OTHER_NAME.format("a.b.sidecar.test"), "wildcard", host="a.b.sidecar.test"),
    "wildcard, no level": Case(OTHER_NAME.format("sidecar.test"), "wildcard", host="sidecar.test"),
    "self-signed": Case(UNTRUSTED + "self[- ]signed certificate", "alone", host="localhost"),
    "of another authority": Case(NO_ISSUER, "foreign", system="ours.crt"),
    "chain": Case(None, "chain"),
    "chain without the intermediate": Case(NO_ISSUER, "leaf"),
}
AUTHORITIES = {
    "the system's": Case(None, given={}, system="ours.crt"),
    "the system's, another": Case(NO_ISSUER, given={}),
    "CA file, and the system's that would do": Case(NO_ISSUER, given={"CA_FILE": "foreign-ca.crt"}, system="ours.crt"),
    "CA file with several": Case(given={"CA_FILE": "several.crt"}),
    "CA file with several, system's none of them": Case(None, "chain", {"CA_FILE": "several.crt"}, "between-ca.crt"),
    "CA file of the system's authority": Case(NO_ISSUER, "foreign", OURS, "foreign-ca.crt"),
}
CLIENTS = {
    "none": Case(REFUSES, asks=True),
    "none, TLS 1.2": Case(REFUSES, asks=True, versions=(TLS_1_2, TLS_1_2)),
    "two files": Case(given=OURS | PAIR, asks=True, client="pikachu"),
    "two files, TLS 1.2": Case(given=OURS | PAIR, asks=True, client="pikachu", versions=(TLS_1_2, TLS_1_2)),
    "one file": Case(given=OURS | {"CERT_FILE": "both.crt"}, asks=True, client="pikachu"),
    "beside the system's authorities": Case(given=PAIR, system="ours.crt", asks=True, client="pikachu"),
    "its chain": Case(given=OURS | {"CERT_FILE": "chain.crt", "KEY_FILE": "leaf.key"}, asks=True, client="leaf"),
    "no intermediate": Case(REFUSES, given=OURS | {"CERT_FILE": "leaf.crt", "KEY_FILE": "leaf.key"}, asks=True),
    "expired": Case(
        REFUSES, given=OURS | {"CERT_FILE": "expired-pikachu.crt", "KEY_FILE": "expired-pikachu.key"}, asks=True
    ),
    "of another authority": Case(
        REFUSES, given=OURS | {"CERT_FILE": "foreign-pikachu.crt", "KEY_FILE": "foreign-pikachu.key"}, asks=True
    ),
    "nobody asks": Case(given=OURS | PAIR),
    "for an expired server": Case(UNTRUSTED + "certificate has expired", "expired", OURS | PAIR, asks=True),
}
VERSIONS = {
    "1.2": Case(versions=(TLS_1_2, TLS_1_2)),
    "1.3": Case(versions=(TLS_1_3, TLS_1_3)),
    "1.1": Case("no TLS connection: ", versions=(OLD_TLS, OLD_TLS)),
}
FINGERPRINTS = {
    "right": Case(given={"FINGERPRINT": "right.crt"}, sides=ELASTIC),
    "right, expired": Case(None, "expired", {"FINGERPRINT": "expired.crt"}, sides=ELASTIC),
    "right, another host": Case(None, "elsewhere", {"FINGERPRINT": "elsewhere.crt"}, sides=ELASTIC),
    "right, self-signed": Case(None, "alone", {"FINGERPRINT": "alone.crt"}, sides=ELASTIC),
    "right, with a chain": Case(None, "chain", {"FINGERPRINT": "chain.crt"}, sides=ELASTIC),
    "right, and right CA file": Case(given=OURS | {"FINGERPRINT": "right.crt"}, sides=ELASTIC),
    "right, CA file and another host": Case(None, "elsewhere", OURS | {"FINGERPRINT": "elsewhere.crt"}, sides=ELASTIC),
    "right, and another CA file": Case(
        NO_ISSUER, given={"CA_FILE": "foreign-ca.crt", "FINGERPRINT": "right.crt"}, system="ours.crt", sides=ELASTIC
    ),
    "right, CA file and expired": Case(
        UNTRUSTED + "certificate has expired", "expired", OURS | {"FINGERPRINT": "expired.crt"}, sides=ELASTIC
    ),
    "another": Case(OTHER_PRINT, given={"FINGERPRINT": "pikachu.crt"}, sides=ELASTIC),
    "another, CA file right": Case(OTHER_PRINT, given=OURS | {"FINGERPRINT": "pikachu.crt"}, sides=ELASTIC),
    "another, system's authority right": Case(
        OTHER_PRINT, given={"FINGERPRINT": "pikachu.crt"}, system="ours.crt", sides=ELASTIC
    ),
    "of the authority": Case(OTHER_PRINT, "chain", {"FINGERPRINT": "between-ca.crt"}, sides=ELASTIC),
    "client certificate": Case(given=PAIR | {"FINGERPRINT": "right.crt"}, asks=True, client="pikachu", sides=ELASTIC),
    "another, client certificate": Case(
        OTHER_PRINT, given=PAIR | {"FINGERPRINT": "expired.crt"}, asks=True, sides=ELASTIC
    ),
}
CASES = {
    f"{axis}: {name}": case
    for axis, cases in {
        "certificate": CERTIFICATES,
        "authority": AUTHORITIES,
        "client": CLIENTS,
        "version": VERSIONS,
        "fingerprint": FINGERPRINTS,
    }.items()
    for name, case in cases.items()
}


def server_context(case: Case, files: Files) -> ssl.SSLContext:
    """Return how the server speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[f"{case.server}.crt"], files[f"{case.server}.key"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of old versions
        context.minimum_version, context.maximum_version = case.versions
    if case.versions[1] == OLD_TLS:
        context.set_ciphers("ALL:@SECLEVEL=0")
    if case.asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files["ours.crt"])
    return context


def environment(side: str, case: Case, files: Files, url: str, **more: str) -> dict[str, str]:
    """Return the settings of a sidecar with that on one side."""
    prefix = f"SIDECAR_{side}"
    given = {
        f"{prefix}_{name}": fingerprint(files[file]) if name == "FINGERPRINT" else files[file]
        for name, file in case.given.items()
    }
    return {"SIDECAR_AMQP_QUEUE": "work", "SIDECAR_INDEX": "docs", f"{prefix}_URL": url, **given, **more}


async def get_in(side: str, settings: dict[str, str]) -> str | None:
    """Connect as `sidecar run` does; return why that can't be done, or None."""
    found = load(settings)
    if side == "ELASTICSEARCH":
        sink = ElasticsearchClient(elasticsearch(found))
        try:
            return await sink.check()
        finally:
            await sink.close()
    (secret,) = found.amqp_url
    url, how = URL(secret.get_secret_value()), connecting(found).connect
    try:
        connection, protocol = await connect(url, "test", lambda _: None, lambda _: None, how)
    except Exception as error:  # noqa: BLE001 - `unopened` says which it may be
        return str(connect_error(error, url, how))
    await close_quietly(connection, protocol)
    return None


def url_of(side: str, case: Case, acceptor: Acceptor, login: str = f"pikachu:{PASSWORD}@") -> str:
    """Return the URL of the server."""
    scheme = {"AMQP": "amqps", "ELASTICSEARCH": "https"}[side]
    return f"{scheme}://{login}{case.host}:{acceptor.port}"


def played(
    side: str, case: Case, files: Files, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[str | None, Acceptor, str]:
    """Return what came of a case, what the server saw, and the address."""
    monkeypatch.setenv("SSL_CERT_FILE", files[case.system])
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)

    async def main() -> tuple[str | None, Acceptor, str]:
        speak = speak_amqp if side == "AMQP" else speak_http
        async with asyncio.timeout(SECONDS), listening(speak, server_context(case, files)) as acceptor:
            settings = environment(side, case, files, url_of(side, case, acceptor, **options))
            return await get_in(side, settings), acceptor, f"{case.host}:{acceptor.port}"

    return asyncio.run(main())


@pytest.mark.parametrize(("side", "name"), [(side, name) for name, case in CASES.items() for side in case.sides])
def test_who_is_let_in_and_what_is_said(side: str, name: str, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thing is wrong at a time; nobody who isn't trusted hears a word, and no reason holds a secret.

    The system's authorities are those of a file: another one's, except where they are what counts.
    """
    case = CASES[name]
    reason, acceptor, address = played(side, case, files, monkeypatch)
    if case.says is None:
        assert reason is None
        assert acceptor.clients == [case.client]
        return
    assert reason is not None
    assert re.search(case.says.replace("{}", fingerprint(files[f"{case.server}.crt"])), reason), reason
    assert acceptor.clients == []
    if UNTRUSTED in case.says:
        assert acceptor.heard == b""
        assert address in reason
    for secret in (PASSWORD, PASSPHRASE, "_ssl.c", "BEGIN"):
        assert secret not in reason


@pytest.mark.parametrize(
    ("given", "login", "expected"),
    [
        (OURS | PAIR, "", "EXTERNAL"),
        (OURS | PAIR, f"bulbasaur:{PASSWORD}@", f"PLAIN bulbasaur {PASSWORD}"),
        (OURS, f"bulbasaur:{PASSWORD}@", f"PLAIN bulbasaur {PASSWORD}"),
        (OURS, "", "PLAIN guest guest"),
    ],
)
def test_a_client_certificate_is_the_login_if_the_url_has_none(
    given: dict[str, str], login: str, expected: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ is asked for EXTERNAL only then: an authority of the server is no login."""
    reason, acceptor, _ = played("AMQP", Case(given=given), files, monkeypatch, login=login)
    assert (reason, acceptor.logins) == (None, [expected])


@pytest.mark.parametrize("side", SIDES)
def test_a_port_without_tls_is_told(side: str, files: Files) -> None:
    """And the other way round for RabbitMQ, in which plain text would never get an answer."""

    async def main() -> list[str | None]:
        speak = speak_amqp if side == "AMQP" else speak_http

        async def answer_at_once(_: Acceptor, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"AMQP\0\0\x09\1" if side == "AMQP" else b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()

        async with asyncio.timeout(SECONDS):
            async with listening(answer_at_once, None) as plain:
                first = await get_in(side, environment(side, Case(), files, url_of(side, Case(), plain)))
            async with listening(speak, server_context(Case(), files)) as secured:
                url = url_of(side, Case(), secured).replace("s://", "://", 1)
                return [first, await get_in(side, environment(side, Case(), files, url))]

    without, within = asyncio.run(main())
    assert without is not None
    assert "no TLS connection: the port doesn't speak TLS (is the scheme of the URL right?)" in without
    assert within is not None
    assert side == "ELASTICSEARCH" or "amqps:// instead of amqp://" in within
    assert PASSWORD not in without + within


def test_each_side_has_its_own_files(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one side is given means nothing to the other."""
    monkeypatch.setenv("SSL_CERT_FILE", files["foreign-ca.crt"])

    async def main() -> list[str | None]:
        reasons = []
        for side, speak in zip(SIDES, (speak_amqp, speak_http), strict=True):
            (other,) = set(SIDES) - {side}
            context = server_context(Case(asks=True), files)
            async with asyncio.timeout(SECONDS), listening(speak, context) as acceptor:
                url = url_of(side, Case(), acceptor)
                mine, theirs = Case(given=OURS | PAIR), Case(given={"CA_FILE": "foreign-ca.crt"})
                away = environment(other, theirs, files, url_of(other, Case(), acceptor))
                reasons.append(await get_in(side, away | environment(side, mine, files, url)))
                reasons.append(
                    await get_in(
                        side,
                        environment(other, mine, files, url_of(other, Case(), acceptor))
                        | environment(side, theirs, files, url),
                    )
                )
        return reasons

    amqp, no_amqp, elastic, no_elastic = asyncio.run(main())
    assert (amqp, elastic) == (None, None)
    assert UNTRUSTED in (no_amqp or "")
    assert UNTRUSTED in (no_elastic or "")


class Samples:
    """A generator of load that has nothing to send."""

    async def send(self, *_: object) -> None:
        """Send nothing."""


async def consume(settings: Settings, urls: tuple[str, ...]) -> None:
    """Open the connections of `sidecar run` and of consumers of the library."""
    session = await open_session(urls, connecting(settings), lambda _: None)
    await session.close()


async def forward(settings: Settings, _: tuple[str, ...]) -> None:
    """Open the connection of ``SIDECAR_SINK=amqp``."""
    side = far_side(settings, pipeline_config(settings), structlog.get_logger())
    await side.sink._outlet.open()  # type: ignore[attr-defined]
    await side.close()


async def publish(settings: Settings, urls: tuple[str, ...]) -> None:
    """Open the connection of publishers of the library."""
    names = ("amqp_ca_file", "amqp_cert_file", "amqp_key_file")
    async with Publisher(amqp_url=",".join(urls), **{name: getattr(settings, name) for name in names}):
        pass


async def produce(settings: Settings, _: tuple[str, ...]) -> None:
    """Open the connection of `sidecar produce`."""
    await _produce(settings, iter(()), lambda _: Samples())  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(("use", "connections"), [(consume, 2), (forward, 1), (publish, 1), (produce, 1)])
def test_each_connection_to_the_broker_shows_the_same_certificate(
    use: Callable[[Settings, tuple[str, ...]], Awaitable[None]],
    connections: int,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of whichever command, and the second of two as well."""
    monkeypatch.setattr("sidecar.amqp.publisher_connection.QUEUE_DURABLE_AFTER_SECONDS", 0.0)

    async def main() -> None:
        server = AmqpServer(tls=server_context(Case(asks=True), files))
        server.mechanisms, server.users = ("PLAIN", "EXTERNAL"), {"pikachu": ""}
        server.declare("work")
        async with asyncio.timeout(SECONDS), server:
            more = {"SIDECAR_SINK": "amqp", "SIDECAR_SINK_ROUTING_KEY": "further"} if use is forward else {}
            given = environment("AMQP", Case(given=OURS | PAIR), files, server.url, **more)
            if use is forward:
                del given["SIDECAR_INDEX"]
            await use(load(given), (server.url,))
            shown = [(connection.user, connection.mechanism) for connection in server.connections]
            assert shown == [("pikachu", "EXTERNAL")] * connections

    asyncio.run(main())


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["as it is", "upper case", "colons", "spaces around"])
def test_a_fingerprint_may_be_written_in_each_usual_way(
    write: str, files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As openssl prints it, as Elasticsearch does, and out of a file."""
    digits = fingerprint(files["right.crt"])
    pairs = ":".join(digits[at : at + 2] for at in range(0, 64, 2))
    text = {"as it is": digits, "upper case": digits.upper(), "colons": pairs.upper(), "spaces around": pairs}[write]
    monkeypatch.setenv("SSL_CERT_FILE", files["foreign-ca.crt"])
    case = Case(given={})
    kept = _written(tmp_path / "fingerprint", f"{text}\n")

    async def main() -> list[str | None]:
        async with asyncio.timeout(SECONDS), listening(speak_http, server_context(case, files)) as acceptor:
            url = url_of("ELASTICSEARCH", case, acceptor)
            ways = ({"SIDECAR_ELASTICSEARCH_FINGERPRINT": text}, {"SIDECAR_ELASTICSEARCH_FINGERPRINT_FILE": kept})
            return [await get_in("ELASTICSEARCH", environment("ELASTICSEARCH", case, files, url, **w)) for w in ways]

    if write == "spaces around":
        context = client_context(prefix="SIDECAR_X", fingerprint=f" {text} \n")
        assert context.verify_mode == ssl.CERT_NONE
    assert asyncio.run(main()) == [None, None]


@pytest.mark.parametrize("place", [0, 31, 63])
def test_each_digit_of_a_fingerprint_counts(place: int, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, one in the middle and the last."""
    digits = fingerprint(files["right.crt"])
    wrong = digits[:place] + ("0" if digits[place] != "0" else "1") + digits[place + 1 :]
    monkeypatch.setenv("SSL_CERT_FILE", files["ours.crt"])

    async def main() -> str | None:
        async with asyncio.timeout(SECONDS), listening(speak_http, server_context(Case(), files)) as acceptor:
            url = url_of("ELASTICSEARCH", Case(), acceptor)
            more = {"SIDECAR_ELASTICSEARCH_FINGERPRINT": wrong}
            return await get_in("ELASTICSEARCH", environment("ELASTICSEARCH", Case(given={}), files, url, **more))

    reason = asyncio.run(main())
    assert f"its SHA-256 is {digits}, not the given fingerprint" in (reason or "")


@pytest.mark.parametrize("text", ["12:34", "0" * 63, "0" * 65, "g" * 64, "0" * 40, "sha256:" + "0" * 64])
def test_what_is_not_a_fingerprint_is_a_problem_of_the_settings(text: str) -> None:
    """Both of the settings and of who uses the module; the text isn't quoted."""
    with pytest.raises(ConfigError) as caught:
        client_context(prefix="SIDECAR_X", fingerprint=text)
    assert caught.value.problems == [
        "SIDECAR_X_FINGERPRINT must be the SHA-256 of a certificate: 64 hexadecimal digits"
    ]
    with pytest.raises(ConfigError, match="SIDECAR_ELASTICSEARCH_FINGERPRINT: must be the SHA-256"):
        load({"SIDECAR_AMQP_QUEUE": "q", "SIDECAR_INDEX": "i", "SIDECAR_ELASTICSEARCH_FINGERPRINT": text})


FAULTS: dict[str, tuple[dict[str, str], list[tuple[str, str, str]]]] = {
    "authority missing": ({"CA_FILE": "nowhere"}, [("CA_FILE", "nowhere", "No such file or directory")]),
    "authority no certificate": ({"CA_FILE": "junk"}, [("CA_FILE", "junk", "holds no certificate in PEM format")]),
    "authority a key": ({"CA_FILE": "right.key"}, [("CA_FILE", "right.key", "holds no certificate in PEM format")]),
    "certificate missing": (
        {"CERT_FILE": "nowhere", "KEY_FILE": "pikachu.key"},
        [("CERT_FILE", "nowhere", "No such file or directory")],
    ),
    "key missing": (
        {"CERT_FILE": "pikachu.crt", "KEY_FILE": "nowhere"},
        [("KEY_FILE", "nowhere", "No such file or directory")],
    ),
    "another's key": (
        {"CERT_FILE": "pikachu.crt", "KEY_FILE": "right.key"},
        [("CERT_FILE", "pikachu.crt", "are not a pair")],
    ),
    "locked key": (
        {"CERT_FILE": "pikachu.crt", "KEY_FILE": "locked.key"},
        [("CERT_FILE", "pikachu.crt", "the key is encrypted")],
    ),
    "no key": ({"CERT_FILE": "pikachu.crt"}, [("CERT_FILE", "pikachu.crt", "are not a pair")]),
    "swapped": (
        {"CERT_FILE": "pikachu.key", "KEY_FILE": "pikachu.crt"},
        [("CERT_FILE", "pikachu.key", "are not in PEM format")],
    ),
    "two": (
        {"CA_FILE": "junk", "CERT_FILE": "nowhere"},
        [("CA_FILE", "junk", "holds no certificate in PEM format"), ("CERT_FILE", "nowhere", "No such file")],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_files_that_cannot_be_used_are_all_named(name: str, files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    """Each by its setting and path, in one go; nobody is asked for a passphrase, and no file is quoted."""
    given, faults = FAULTS[name]
    with pytest.raises(ConfigError) as caught:
        client_context(prefix="SIDECAR_X", **{key.lower(): files.get(file, file) for key, file in given.items()})
    for problem, (setting, file, why) in zip(caught.value.problems, faults, strict=True):
        assert problem.startswith(f"SIDECAR_X_{setting} ({files.get(file, file)}): ")
        assert why in problem
        assert "BEGIN" not in problem
    assert "phrase" not in "".join(capfd.readouterr()).lower()


def test_the_problems_of_both_sides_are_told_together(files: Files) -> None:
    """With the names of each side's settings."""
    settings = {"SIDECAR_AMQP_QUEUE": "work", "SIDECAR_INDEX": "docs"} | {
        f"SIDECAR_{side}_{name}": files[file]
        for side in SIDES
        for name, file in {"CA_FILE": "junk", "CERT_FILE": "pikachu.crt", "KEY_FILE": "locked.key"}.items()
    }
    with pytest.raises(ConfigError) as caught:
        _checks(load(settings))
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [
        f"SIDECAR_{side}_{name}" for side in SIDES for name in ("CA_FILE", "CERT_FILE")
    ]
    assert PASSPHRASE not in str(caught.value)


def test_a_key_without_a_certificate_is_a_problem(files: Files) -> None:
    """It can't be used, and whoever sets it wants to log in by it."""
    with pytest.raises(ConfigError, match="SIDECAR_X_KEY_FILE is given without SIDECAR_X_CERT_FILE"):
        client_context(prefix="SIDECAR_X", key_file=files["pikachu.key"])


@pytest.mark.parametrize("options", [{}, {"ca_file": "ours.crt"}, {"cert_file": "both.crt"}])
def test_a_server_has_to_show_a_certificate_for_its_name_by_default(options: dict[str, str], files: Files) -> None:
    """And nothing older than TLS 1.2 is spoken, whatever the machine's OpenSSL would allow."""
    context = client_context(prefix="SIDECAR_X", **{name: files[file] for name, file in options.items()})
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= TLS_1_2


def test_no_files_need_no_context_of_ours() -> None:
    """The clients trust the system's authorities by themselves then."""
    found = load({"SIDECAR_AMQP_QUEUE": "work", "SIDECAR_INDEX": "docs"})
    assert (connect_options(found).tls, connect_options(found).client_certificate, elasticsearch(found).tls) == (
        None,
        False,
        None,
    )


# Told ----------------------------------------------------------------------------------------------------------------


def test_the_check_tells_what_to_fix_on_both_sides(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where, what, and which setting of that side; both sides in one go, and no secret."""
    monkeypatch.setenv("SSL_CERT_FILE", files["ours.crt"])

    async def main() -> tuple[list[Any], list[int]]:
        context = server_context(Case(), files)
        case = Case(given={"CA_FILE": "foreign-ca.crt"})
        async with (
            asyncio.timeout(SECONDS),
            listening(speak_amqp, context) as broker,
            listening(speak_http, context) as cluster,
        ):
            settings = load(
                environment("AMQP", case, files, url_of("AMQP", case, broker))
                | environment("ELASTICSEARCH", case, files, url_of("ELASTICSEARCH", case, cluster))
            )
            findings = await _check(settings, *_checks(settings))
            return [one for one in findings if one.severity == "problem"], [broker.port, cluster.port]

    (amqp, elastic), ports = asyncio.run(main())
    for finding, port, setting in zip((amqp, elastic), ports, ("AMQP_CA_FILE", "ELASTICSEARCH_CA_FILE"), strict=True):
        assert f"127.0.0.1:{port}" in finding.where
        assert NO_ISSUER in finding.what
        assert f"SIDECAR_{setting}" in finding.fix
        assert PASSWORD not in repr(finding)


def openssl_error(reason: str) -> ssl.SSLError:
    """Return an error as OpenSSL raises it."""
    error = ssl.SSLError(1, f"[SSL: {reason}] what it says (_ssl.c:1006)")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (openssl_error("WRONG_VERSION_NUMBER"), "no TLS connection: the port doesn't speak TLS"),
        (openssl_error("HTTP_REQUEST"), "no TLS connection: the port doesn't speak TLS"),
        (
            openssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
            "no TLS connection: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] what it says",
        ),
        (ssl.SSLCertVerificationError(1, "why"), UNTRUSTED + "why"),
        (ConnectionResetError(), "no TLS connection: the server closed it during the handshake"),
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
    ],
)
def test_a_failed_handshake_is_told_in_a_sentence(error: Exception, says: str) -> None:
    """Without the line of OpenSSL's C file."""
    assert explain(error).startswith(says)
    assert "_ssl.c" not in explain(error)
