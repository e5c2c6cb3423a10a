"""`sidecar health`: what a container's health check runs."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

import sidecar
from sidecar.cli.health import _address, command
from sidecar.core.address import reachable, split_address
from sidecar.errors import ConfigError
from tests.fakes.http_server import Act, reply, running_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Probes(BaseHTTPRequestHandler):
    """It lives, and is not ready."""

    def do_GET(self) -> None:
        alive = self.path == "/livez"
        body = b'{"live":true}\n' if alive else b'{"ready":false,"reason":"held"}\n'
        self.send_response(200 if alive else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Return the port of something that answers as the sidecar does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Probes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIDECAR_HTTP_ADDRESS", raising=False)
    monkeypatch.delenv("SIDECAR_HTTP_ADDRESS_FILE", raising=False)


def test_who_lives_is_healthy_and_who_is_not_ready_may_be_asked_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liveness by default: what readiness tells isn't mended by a restart. An address of all interfaces is this one."""
    monkeypatch.setenv("SIDECAR_HTTP_ADDRESS", f"0.0.0.0:{port}")
    healthy = CliRunner().invoke(command)
    assert (healthy.exit_code, healthy.output) == (0, '{"live":true}\n')
    held = CliRunner().invoke(command, ["--probe", "readyz"])
    assert (held.exit_code, held.stdout) == (1, "")
    assert held.stderr == f'sidecar: http://127.0.0.1:{port}/readyz answered 503: {{"ready":false,"reason":"held"}}\n'
    assert "/startupz answered 503" in CliRunner().invoke(command, ["--probe", "startupz"]).stderr


def test_who_does_not_answer_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence with the address."""
    monkeypatch.setenv("SIDECAR_HTTP_ADDRESS", "127.0.0.1:1")
    told = CliRunner().invoke(command)
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.startswith("sidecar: http://127.0.0.1:1/livez doesn't answer: ")


@pytest.mark.parametrize(("host", "asked"), [("[::1]", "[::1]"), ("[::]", "[::1]")])
def test_the_host_of_the_settings_is_asked(port: int, monkeypatch: pytest.MonkeyPatch, host: str, asked: str) -> None:
    """And no other one: what answers at this port listens by another protocol."""
    monkeypatch.setenv("SIDECAR_HTTP_ADDRESS", f"{host}:{port}")
    told = CliRunner().invoke(command)
    assert told.exit_code == 1
    assert f"http://{asked}:{port}/livez doesn't answer" in told.stderr


def answered_by(act: Act, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """Return what the command says of something that answers so."""
    with running_in_thread(1, lambda _: act) as cluster:
        monkeypatch.setenv("SIDECAR_HTTP_ADDRESS", f"127.0.0.1:{cluster.ports[0]}")
        return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize("status", [204, 302, 404, 500])
def test_only_200_is_healthy(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Something else may listen there."""
    told = answered_by(Act(answer=reply(b"x", status)), monkeypatch)
    assert told.exit_code == 1
    assert f"answered {status}" in told.stderr


def test_who_does_not_answer_in_time_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds by default, and never no time at all."""
    told = answered_by(Act(waits=True), monkeypatch, "--timeout", "0.1")
    assert told.exit_code == 1
    assert "doesn't answer: timed out" in told.stderr
    assert CliRunner().invoke(command, ["--timeout", "0"]).exit_code == 2
    (option,) = [option for option in command.params if option.name == "timeout"]
    assert option.default == 3.0


@pytest.mark.parametrize("answer", [b"what?\r\n\r\n", b""], ids=["no HTTP", "nothing"])
def test_what_is_no_answer_is_not_healthy(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    """Told in a sentence as well."""
    told = answered_by(Act(answer=answer, end="close"), monkeypatch)
    assert (told.exit_code, type(told.exception)) == (1, SystemExit)
    assert "doesn't answer: " in told.stderr


def test_of_an_answer_the_beginning_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker keeps what a health check says, and it may be anybody's answer; the connection isn't left open."""
    told = answered_by(Act(answer=reply(b"\xff" * 100_000)), monkeypatch)
    assert (told.exit_code, told.stdout) == (0, "\ufffd" * 2000 + "\n")
    gc.collect()  # a socket that is left open is complained of


def test_the_address_is_found_where_the_sidecar_finds_it(port: int, tmp_path: Path) -> None:
    """In `.env` as well as in the environment, which wins."""
    (tmp_path / ".env").write_text(f"SIDECAR_HTTP_ADDRESS=127.0.0.1:{port}\n")
    assert CliRunner().invoke(command).exit_code == 0


def test_the_address_may_stand_in_a_file(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every setting; a file that can't be read is a wrong setting."""
    monkeypatch.setenv("SIDECAR_HTTP_ADDRESS_FILE", str(tmp_path / "address"))
    fault = CliRunner().invoke(command).exception
    assert isinstance(fault, ConfigError)
    assert "SIDECAR_HTTP_ADDRESS_FILE" in fault.problems[0]
    (tmp_path / "address").write_text(f"127.0.0.1:{port}\n")
    assert CliRunner().invoke(command).exit_code == 0


@pytest.mark.parametrize("dotenv", [None, "SIDECAR_INDEX=logs\n"])
def test_where_nothing_is_said_it_is_the_default(tmp_path: Path, dotenv: str | None) -> None:
    """That of the sidecar, on this machine."""
    if dotenv is not None:
        (tmp_path / ".env").write_text(dotenv)
    assert _address() == ("127.0.0.1", 9180)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "is empty: the sidecar doesn't listen"), ("nowhere", "must be host:port"), ("a..b:80", "must be host:port")],
)
def test_without_an_address_nothing_can_be_asked(text: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the settings: exit status 2, by the command line."""
    monkeypatch.setenv("SIDECAR_HTTP_ADDRESS", text)
    fault = CliRunner().invoke(command).exception
    assert isinstance(fault, ConfigError)
    assert fault.problems[0].startswith(f"SIDECAR_HTTP_ADDRESS {problem}")


def test_addresses_of_all_interfaces_are_reached_on_this_machine() -> None:
    """By either protocol; a host of its own stays."""
    assert [reachable(host) for host in (None, "0.0.0.0", "::", "10.1.2.3")] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
        "10.1.2.3",
    ]
    assert split_address("[::]:9180") == ("::", 9180)


def test_it_loads_next_to_nothing() -> None:
    """It runs within the sidecar's limit of memory, every few seconds."""
    line = (
        "import sys, sidecar.cli.health as health; health._given();"
        "print(sorted({'pydantic', 'aiohttp', 'aiormq', 'elasticsearch', 'rich'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(Path(sidecar.__file__).parents[1])}  # the folder isn't that of the package
    done = subprocess.run([sys.executable, "-c", line], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
