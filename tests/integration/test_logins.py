"""Logins and TLS on real servers, with certificates that are made for the run.

`tests.unit.test_tls` and `tests.unit.test_logins` look at what needs no real server.
"""

from __future__ import annotations

import json
import shutil
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from devstack import processes, provision
from devstack.elasticsearch import QUICK_JAVA_OPTIONS, Elasticsearch
from devstack.rabbitmq import RabbitMQ
from sidecar.elasticsearch.client import Connection
from sidecar.tls import client_context
from tests.certificates import Authority, require_openssl
from tests.conftest import obtain
from tests.fakes.recorder import Recorder, using
from tests.integration.harness import message
from tests.integration.process import wait_until
from tests.servers.es import Elastic
from tests.servers.provider import MissingServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sidecar.elasticsearch.client import ElasticsearchClient
    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess

PASSWORD = "s3cret/with:odd@signs"
IN_URL = "elastic:s3cret%2Fwith%3Aodd%40signs"
WRONG = "wr0ng-but-also-secret"
OLD_VERSION = "8.19.21"
OLD_JAVA = range(17, 25)
LIMIT_SECONDS = 60.0
ITEM = b'{"index":{}}\n{"n":1}\n'


# -- Certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that the servers trust and have their certificates from."""
    require_openssl()
    authority = Authority(tmp_path_factory.mktemp("certificates") / "ours", "test-authority")
    for name in ("server", "pikachu"):
        authority.sign(name)
    return authority


@pytest.fixture(scope="module")
def foreign(ours: Authority) -> Authority:
    """Another authority, which nobody trusts."""
    authority = Authority(ours.folder.parent / "foreign", "foreign-authority")
    authority.sign("pikachu")
    return authority


# -- Servers ----------------------------------------------------------------------------------------------------------


def secured(ours: Authority, client_authentication: str) -> tuple[dict[str, object], dict[str, str]]:
    """Return settings and files of an Elasticsearch with TLS."""
    prefix = "xpack.security.http.ssl"
    settings: dict[str, object] = {
        f"{prefix}.enabled": True,
        f"{prefix}.certificate": "server.crt",
        f"{prefix}.key": "server.key",
        f"{prefix}.certificate_authorities": "ca.crt",
        f"{prefix}.client_authentication": client_authentication,
    }
    return settings, {name: ours.text(name) for name in ("ca.crt", "server.crt", "server.key")}


def start(make: Callable[[], Any]) -> Any:
    """Start a native server: those in containers have no way in for certificates."""
    if provision.find_elasticsearch() is None or provision.find_rabbitmq() is None:
        raise MissingServerError("no native servers: run 'make provision'")
    server = make()
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


@pytest.fixture(scope="module")
def cluster(ours: Authority) -> Iterator[Elasticsearch]:
    """An Elasticsearch with passwords and TLS, which looks at a client certificate where there is one."""
    settings, files = secured(ours, "optional")
    server: Elasticsearch = obtain(
        lambda: start(lambda: Elasticsearch(settings, password=PASSWORD, files=files, java_options=QUICK_JAVA_OPTIONS))
    )
    yield server
    server.close()


class TlsBroker(RabbitMQ):
    """A RabbitMQ with a second port, for TLS."""

    def __init__(self, ours: Authority) -> None:
        self.tls_port = processes.free_port()
        options = {"cacertfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
        super().__init__(
            {
                "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
                **{f"ssl_options.{name}": ours.path(file) for name, file in options.items()},
                "ssl_options.verify": "verify_peer",
                "ssl_options.fail_if_no_peer_cert": False,
                "auth_mechanisms.1": "PLAIN",
                "auth_mechanisms.2": "EXTERNAL",
                "ssl_cert_login_from": "common_name",
            },
            plugins=["rabbitmq_auth_mechanism_ssl"],
        )


@pytest.fixture(scope="module")
def broker(ours: Authority) -> Iterator[TlsBroker]:
    """A RabbitMQ that speaks TLS as well, and knows a user by certificate."""
    server: TlsBroker = obtain(lambda: start(lambda: TlsBroker(ours)))
    # A user without a password: nothing but the certificate lets it in.
    server.rabbitmqctl("add_user", "pikachu", "unused")
    server.rabbitmqctl("clear_password", "pikachu")
    server.rabbitmqctl("set_permissions", "pikachu", ".*", ".*", ".*")
    yield server
    server.close()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A server that remembers the headers of requests."""
    server = Recorder()
    yield server
    server.close()


# -- TLS to Elasticsearch ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Files to give (from which authority), and what comes of it."""

    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    fingerprint: str | None = None
    says: str | None = None


CASES = {
    "CA file": Case({"ca_file": ("ours", "ca.crt")}),
    "fingerprint": Case(fingerprint="server.crt"),
    "fingerprint and CA file": Case({"ca_file": ("ours", "ca.crt")}, "server.crt"),
    "client certificate": Case(
        {"ca_file": ("ours", "ca.crt"), "cert_file": ("ours", "pikachu.crt"), "key_file": ("ours", "pikachu.key")}
    ),
    "client certificate and fingerprint": Case(
        {"cert_file": ("ours", "pikachu.crt"), "key_file": ("ours", "pikachu.key")}, "server.crt"
    ),
    "neither": Case(says="the server's certificate is not trusted: unable to get local issuer"),
    "wrong CA": Case({"ca_file": ("foreign", "ca.crt")}, says="is not trusted: unable to get local issuer"),
    "wrong fingerprint": Case(fingerprint="pikachu.crt", says="is not trusted: its SHA-256 is "),
    "right fingerprint, wrong CA": Case({"ca_file": ("foreign", "ca.crt")}, "server.crt", "is not trusted: "),
    "foreign client certificate": Case(
        {
            "ca_file": ("ours", "ca.crt"),
            "cert_file": ("foreign", "pikachu.crt"),
            "key_file": ("foreign", "pikachu.key"),
        },
        says="no answer from Elasticsearch: ",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.full  # three servers of its own
def test_tls_to_elasticsearch(name: str, cluster: Elasticsearch, ours: Authority, foreign: Authority) -> None:
    """What the files allow, and a sentence where they don't."""
    case, authorities = CASES[name], {"ours": ours, "foreign": foreign}
    files = {setting: authorities[owner].path(file) for setting, (owner, file) in case.files.items()}
    pin = None if case.fingerprint is None else ours.fingerprint(case.fingerprint)
    tls = client_context(prefix="SIDECAR_ELASTICSEARCH", fingerprint=pin, **files)

    async def use(sink: ElasticsearchClient) -> None:
        reason = await sink.check()
        if case.says is None:
            assert reason is None
            answer = await sink.bulk("/logins/_bulk", ITEM)
            assert (answer.status, json.loads(answer.body)["errors"]) == (200, False)
        else:
            assert case.says in (reason or "")
            assert "_ssl.c" not in (reason or "")
            assert str(cluster.port) in (reason or "") or "foreign" in name

    using(Connection(urls=(cluster.url,), username="elastic", password=PASSWORD, tls=tls), use)


# -- The sidecar on servers with locks --------------------------------------------------------------------------------


def count(cluster: Elasticsearch, index: str, authority: Authority) -> int:
    """Return how many documents an index has."""
    context = ssl.create_default_context(cafile=authority.path("ca.crt"))
    with Elastic(cluster.url, username="elastic", password=PASSWORD, tls=context) as client:
        client.call("POST", f"/{index}/_refresh")
        found: int = client.call("GET", f"/{index}/_count")["count"]
    return found


def tls_url(broker: TlsBroker, login: str = "guest:guest@") -> str:
    """Return the broker's URL for TLS."""
    return f"amqps://{login}127.0.0.1:{broker.tls_port}/"


def external(ours: Authority) -> dict[str, str]:
    """Return the settings of a client that RabbitMQ knows by its certificate."""
    files = {"CA": "ca.crt", "CERT": "pikachu.crt", "KEY": "pikachu.key"}
    return {f"AMQP_{name}_FILE": ours.path(file) for name, file in files.items()}


@pytest.fixture
def locked(make_bench: Callable[[Any, Any], Harness], broker: TlsBroker, cluster: Elasticsearch) -> Harness:
    """A queue and an index behind logins and TLS, 10 messages in the queue."""
    bench = make_bench(broker, cluster)
    bench.declare()
    bench.publish([message(b"{}", str(at)) for at in range(10)])
    return bench


@pytest.mark.full  # three servers of its own
def test_end_to_end_with_a_password_in_the_url(
    locked: Harness, ours: Authority, cluster: Elasticsearch, broker: TlsBroker
) -> None:
    """Both sides by TLS, RabbitMQ with a client certificate instead of a password."""
    sidecar = locked.sidecar(
        AMQP_URL=tls_url(broker, ""),
        **external(ours),
        ELASTICSEARCH_URL=f"https://{IN_URL}@127.0.0.1:{cluster.port}",
        ELASTICSEARCH_CA_FILE=ours.path("ca.crt"),
        LOG_LEVEL="debug",
    )
    locked.wait_empty(LIMIT_SECONDS, sidecar)
    connections = broker.rabbitmqctl("list_connections", "user", "ssl", "auth_mechanism", "--no-table-headers")
    assert connections.split("\n").count("pikachu\ttrue\tEXTERNAL") == 2, connections
    assert sidecar.terminate()["ack"] == 10
    assert count(cluster, locked.index_name, ours) == 10
    assert "s3cret" not in sidecar.log.read_text()


@pytest.mark.full  # three servers of its own
def test_end_to_end_with_a_fingerprint_and_a_user(locked: Harness, ours: Authority, cluster: Elasticsearch) -> None:
    """User and password as settings, no authority known."""
    sidecar = locked.sidecar(
        ELASTICSEARCH_USERNAME="elastic",
        ELASTICSEARCH_PASSWORD=PASSWORD,
        ELASTICSEARCH_FINGERPRINT=ours.fingerprint("server.crt"),
    )
    locked.wait_empty(LIMIT_SECONDS, sidecar)
    assert sidecar.terminate()["ack"] == 10
    assert count(cluster, locked.index_name, ours) == 10


def assert_waits(locked: Harness, sidecar: SidecarProcess, event: str, says: str, secret: str) -> None:
    """It says why, once, consumes nothing and shows no secret."""
    assert says in sidecar.wait_for(event)["reason"]
    time.sleep(0.5)
    assert locked.count() == 10
    assert sidecar.terminate()["received"] == 0
    assert len(sidecar.events(event)) == 1
    assert secret not in sidecar.log.read_text()


@pytest.mark.full  # three servers of its own
def test_a_wrong_password_of_elasticsearch_is_waited_for(locked: Harness, ours: Authority) -> None:
    """It may be put right on the other side: nothing is consumed until then."""
    login = {"ELASTICSEARCH_USERNAME": "elastic", "ELASTICSEARCH_PASSWORD": WRONG}
    sidecar = locked.sidecar(**login, ELASTICSEARCH_CA_FILE=ours.path("ca.crt"))
    assert_waits(locked, sidecar, "elasticsearch.unreachable", "401: it doesn't accept the login", WRONG)


@pytest.mark.full  # three servers of its own
def test_a_wrong_authority_of_elasticsearch_is_told(
    locked: Harness, foreign: Authority, cluster: Elasticsearch
) -> None:
    """In a sentence, and no login is sent to who can't show that it is Elasticsearch."""
    login = {"ELASTICSEARCH_USERNAME": "elastic", "ELASTICSEARCH_PASSWORD": PASSWORD}
    sidecar = locked.sidecar(**login, ELASTICSEARCH_CA_FILE=foreign.path("ca.crt"))
    says = f"127.0.0.1:{cluster.port}: the server's certificate is not trusted: unable to get local issuer certificate"
    assert_waits(locked, sidecar, "elasticsearch.unreachable", says, PASSWORD)


REFUSALS = {
    "wrong authority": ("guest:guest@", {"AMQP_CA_FILE": ("foreign", "ca.crt")}, "is not trusted: self-signed"),
    "no authority": ("guest:guest@", {}, "is not trusted: self-signed"),
    "wrong password": (f"guest:{WRONG}@", {"AMQP_CA_FILE": ("ours", "ca.crt")}, "ACCESS_REFUSED"),
    "foreign certificate": (
        "",
        {
            "AMQP_CA_FILE": ("ours", "ca.crt"),
            "AMQP_CERT_FILE": ("foreign", "pikachu.crt"),
            "AMQP_KEY_FILE": ("foreign", "pikachu.key"),
        },
        "127.0.0.1",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.full  # three servers of its own
def test_rabbitmq_refuses_or_is_refused(
    name: str, locked: Harness, broker: TlsBroker, cluster: Elasticsearch, ours: Authority, foreign: Authority
) -> None:
    """It is told in a sentence with the address, and tried again."""
    login, files, says = REFUSALS[name]
    authorities = {"ours": ours, "foreign": foreign}
    sidecar = locked.sidecar(
        AMQP_URL=tls_url(broker, login),
        **{setting: authorities[owner].path(file) for setting, (owner, file) in files.items()},
        ELASTICSEARCH_URL=f"https://{IN_URL}@127.0.0.1:{cluster.port}",
        ELASTICSEARCH_CA_FILE=ours.path("ca.crt"),
    )
    assert_waits(locked, sidecar, "amqp.unreachable", says, WRONG)


@pytest.mark.full  # three servers of its own
def test_plain_amqp_to_the_port_of_tls_is_told(
    locked: Harness, broker: TlsBroker, cluster: Elasticsearch, ours: Authority
) -> None:
    """With the scheme that belongs there."""
    sidecar = locked.sidecar(
        AMQP_URL=f"amqp://guest:guest@127.0.0.1:{broker.tls_port}/",
        ELASTICSEARCH_URL=f"https://{IN_URL}@127.0.0.1:{cluster.port}",
        ELASTICSEARCH_CA_FILE=ours.path("ca.crt"),
    )
    assert_waits(locked, sidecar, "amqp.unreachable", "amqps://", PASSWORD)


@pytest.mark.full  # three servers of its own
def test_a_broker_without_login_by_certificate_is_told(
    make_bench: Callable[[Any, Any], Harness], rabbitmq: Any, recorder: Recorder
) -> None:
    """What it offers, and what it takes to have it offer the other."""
    bench = make_bench(rabbitmq, recorder)
    sidecar = bench.sidecar(AMQP_URL=f"{rabbitmq.amqp_url.replace('guest:guest@', '')}?auth=external")
    reason = sidecar.wait_for("amqp.unreachable")["reason"]
    assert "RabbitMQ offers " in reason
    assert "rabbitmq_auth_mechanism_ssl" in reason


@pytest.mark.full  # three servers of its own
def test_a_client_certificate_beside_a_password(locked: Harness, broker: TlsBroker, ours: Authority) -> None:
    """A login in the URL wins: the certificate only opens the door then."""
    recorder = Recorder()
    try:
        sidecar = locked.sidecar(AMQP_URL=tls_url(broker), **external(ours), ELASTICSEARCH_URL=recorder.url)
        sidecar.wait_for("amqp.connected")
        listed = broker.rabbitmqctl("list_connections", "user", "ssl", "auth_mechanism", "--no-table-headers")
        assert listed.split("\n").count("guest\ttrue\tPLAIN") == 2, listed
        sidecar.terminate()
    finally:
        recorder.close()


@pytest.mark.full  # three servers of its own
def test_a_file_that_is_missing_ends_the_sidecar(locked: Harness) -> None:
    """Exit status 2 and a line that names the setting, before anything is connected."""
    sidecar = locked.sidecar(ELASTICSEARCH_CA_FILE="nowhere.crt", ELASTICSEARCH_URL="https://127.0.0.1:9")
    assert sidecar.process.wait(LIMIT_SECONDS) == 2
    (line,) = sidecar.log.read_text().splitlines()
    assert line.startswith("sidecar: SIDECAR_ELASTICSEARCH_CA_FILE")


@pytest.mark.full  # three servers of its own
def test_a_file_that_holds_no_certificate_ends_the_sidecar(locked: Harness, ours: Authority) -> None:
    """The same for what only shows when the file is used."""
    sidecar = locked.sidecar(
        AMQP_URL="amqps://127.0.0.1:9",
        AMQP_CA_FILE=ours.path("server.key"),
        ELASTICSEARCH_URL="https://127.0.0.1:9",
    )
    assert sidecar.process.wait(LIMIT_SECONDS) == 2
    assert "sidecar: SIDECAR_AMQP_CA_FILE" in sidecar.log.read_text()
    assert "holds no certificate in PEM format" in sidecar.log.read_text()
    assert "Traceback" not in sidecar.log.read_text()


# -- Other servers ----------------------------------------------------------------------------------------------------


class MutualCluster(Elasticsearch):
    """An Elasticsearch that lets nobody in without a certificate, its own starter included."""

    def __init__(self, ours: Authority) -> None:
        self._ours = ours
        settings, files = secured(ours, "required")
        super().__init__(settings, password=PASSWORD, files=files, java_options=QUICK_JAVA_OPTIONS)

    def _connection(self) -> Any:
        connection = super()._connection()
        connection._context.load_cert_chain(self._ours.path("pikachu.crt"), self._ours.path("pikachu.key"))
        return connection


@pytest.mark.full
def test_elasticsearch_that_demands_a_certificate(ours: Authority) -> None:
    """Let in with one, and with a fingerprint beside it; told in a sentence without."""
    server: Elasticsearch = obtain(lambda: start(lambda: MutualCluster(ours)))
    try:
        pair = {"cert_file": ours.path("pikachu.crt"), "key_file": ours.path("pikachu.key")}
        pin, authority = ours.fingerprint("server.crt"), ours.path("ca.crt")

        def ask(**options: Any) -> str | None:
            tls = client_context(prefix="SIDECAR_ELASTICSEARCH", **options)
            connection = Connection(urls=(server.url,), username="elastic", password=PASSWORD, tls=tls)
            reason: str | None = using(connection, lambda sink: sink.check())
            return reason

        assert ask(ca_file=authority, **pair) is None
        assert ask(fingerprint=pin, **pair) is None
        refusal = ask(ca_file=authority)
        assert refusal is not None
        assert "certificate" in refusal.lower()
    finally:
        server.close()


def old_install() -> provision.ElasticsearchInstall:
    """Return an Elasticsearch of the version before, after getting it by Maven."""
    jdk = next((jdk for jdk in provision.find_jdks() if jdk.major in OLD_JAVA), None)
    if jdk is None:
        raise MissingServerError(f"no JDK for Elasticsearch {OLD_VERSION}")
    if not provision._unpacked(OLD_VERSION):
        folder = provision.cache_folder() / f"elasticsearch-{OLD_VERSION}-zip"
        folder.mkdir(exist_ok=True)
        try:
            provision._unpack(provision._download(OLD_VERSION, folder, jdk, print), OLD_VERSION)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return provision.ElasticsearchInstall(provision._home_of(OLD_VERSION), jdk.home, OLD_VERSION)


@pytest.mark.full
def test_the_version_before(
    broker: TlsBroker, make_bench: Callable[[Any, Any], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8.19 takes the same requests: good ones are stored, the bad one is dead-lettered with its reason."""
    install = obtain(old_install)
    monkeypatch.setattr(provision, "require_elasticsearch", lambda: install)
    server = obtain(lambda: start(lambda: Elasticsearch(java_options=QUICK_JAVA_OPTIONS)))
    try:
        assert server.version == OLD_VERSION
        bench = make_bench(broker, server)
        bench.create_index({"n": {"type": "long"}})
        bench.declare()
        bench.publish([message(b'{"n":%d}' % at, str(at)) for at in range(1000)])
        bench.publish([message(b'{"n":"no"}', "bad")])
        sidecar = bench.sidecar()
        bench.wait_empty(LIMIT_SECONDS, sidecar)
        wait_until(lambda: bench.count(bench.dead) == 1, LIMIT_SECONDS, "a dead letter", sidecar.told)
        account = sidecar.terminate()
        assert (account["ack"], account["dead_letter"]) == (1000, 1)
        assert bench.documents() == {str(at): {"n": at} for at in range(1000)}
        (letter,) = bench.dead_letters()
        assert letter.headers["sidecar-error-type"] == "document_parsing_exception"
    finally:
        server.close()
