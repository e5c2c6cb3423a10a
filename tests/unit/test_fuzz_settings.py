"""Nothing that somebody writes ends a command with a traceback: settings, files, options, and what servers answer.

Each seed is an environment, a folder of files, two servers that answer anything, and a command. Whatever comes of it,
it ends with exit status 0, 1 or 2 and a sentence, without a secret. ``FUZZ_SETTINGS_SEED`` is the first seed,
``FUZZ_SETTINGS_COUNT`` how many there are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socketserver
import subprocess
import sys
import threading
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import click
import pytest
from click.testing import CliRunner
from pamqp import commands, frame, header

import sidecar.cli.run
from sidecar.cli import COMMANDS, cli
from sidecar.cli.config import rows
from sidecar.config.settings import PREFIX, RawSettings, Settings
from sidecar.errors import ConfigError
from tests.builders import without_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = int(os.environ.get("FUZZ_SETTINGS_SEED", "1"))
COUNT = int(os.environ.get("FUZZ_SETTINGS_COUNT", "0"))
SECRET = "hunter2"
STOP_SECONDS = 0.1
ENOUGH = 200
KINDS = {row.name: row.type for row in rows(RawSettings({}, {}, {}))}

TEXTS = [
    "", " ", "a", "logs", "x" * 256, "ä" * 200, "{", "}", "{}", "{{", "{x}", "{body.a}", "{body.}", "{body..}",
    "{header.x|}", "{now:%Y}", "{now:%", "{body.a|{b}}", "{timestamp:%s}", "a,b", "a\\,b", ",", "\\", "'", '"',
    "$HOME", "${X}", "%s", "%", "*", "../x", "/", "\n", "a\nb", "a\r\n", "\t", "\x1b[31m", "\u202e", "🐇", "\udcff",
    "nan", "inf", "-1", "0", "1", "5", "1e400", "9" * 400, "9" * 5000, "1.5", "true", "null", "[]", "0x10", "\uff11",
    "-0", "+1", "1_000", " 5 ", "None", "<b>", "\u2028", "A B",
]  # fmt: skip
NAMES = ["logs.*", "tasks;high", "Aufträge", "a\\,b", "x" * 242, "a=b,c$d"]
VALUES: dict[str, list[str]] = {
    "number": ["0", "1", "2", "10", "1000", "65535", "65536", "-1", "1.0", "1e3", "9" * 30, "9" * 400, "9" * 5000],
    "duration": [
        "1ms", "10ms", "1s", "5m", "0", "0s", "1e3", "99999h", "9" * 400 + "h", "nan", "inf", "-1s", "1 s", "1d",
    ],
    "size": ["1", "0", "1KiB", "5MiB", "64MiB", "1GiB", "9" * 400 + "GiB", "1TB", "nan", "1.5MB", "0.1B", "200MiB"],
    "true or false": ["true", "false", "1", "yes", "maybe"],
    "template": [
        "logs", "logs-{now:%Y.%m.%d}", "{routing_key}", "{body.a}", "{body.a.b|x}", "{header.x}", "{message_id}",
        "{sha256}", "{item}", "{queue}", "Logs", "_x", "-x", "{", "{body.a:%Y}", "{timestamp:%Y}", "{now:%Q%E%5}",
        "{{}}", "x" * 70000,
    ],
    "choice or template": [
        "index", "create", "update", "upsert", "delete", "{body.a}", "{type|index}", "auto", "none", "x",
    ],
    "number or template": ["0", "1", "5", "{header.n}", "9" * 30, "x"],
    "list": [
        "a", "a,b", "a,a", "a\\,b", ",", "logs-*,[", "*", "x" * 300, "ä", "a\nb", "q;1,q=2", "x" * 250, "[a-z]*,?",
    ],
    "JSON object": [
        "{}", "[]", "null", "true", '"x"', '{"a":', '{"a":NaN}', '{"a":1e999}', '{"x":18446744073709551616}',
        '{"":""}', '{"a":' * 2000, '{"a":' * 50 + "1" + "}" * 50, '{"a":' * 900 + "1" + "}" * 900, '{"a":"{body.x}"}',
        '{"a":1}', '{"a":"{"}', '{"_id":"x"}', '{"a":"x","a":"y"}', '{"' + "k" * 200 + '":1}',
        '{"x-max-priority":10}', '{"a":"\\ud800"}', '{"a":[1,{"b":null}],"b":1.5}', '{"x-queue-type":"stream"}',
        '{"a":"' + "x" * 70000 + '"}', '{"a.b":"x","a":"y"}',
    ],
    "host:port": [
        "127.0.0.1:0", "", "localhost", ":0", "[::1]:0", "1.2.3.4:0", "x:99999", "nohost.invalid:1", "[::1", "a b:1",
    ],
    "secret": [SECRET, f"{SECRET} {SECRET}", f"{SECRET}\n", f"a\n{SECRET}", f"{SECRET}ä", "id:" + SECRET],
    "module:function": [
        "good:make", "good:missing", "good:number", "missing:x", "broken:x", "raises:x", "ends:x", "x",
        "os.path:join", "good:coroutine", "good:Class",
    ],
}  # fmt: skip
FILES = [
    "missing",
    ".",
    "binary",
    "pem",
    "empty",
    "big",
    "text",
    "deep.json",
    "body.json",
    "/dev/null",
    "x" * 5000,
    "text/below",
    "~",
]
BODIES = [
    b"{}", b'{"a":1}', b"", b"null", b"[1]", b'[{"a":1},{"b":2}]', b"\xff", b"[" * 100_000, b'{"a":' * 5000,
    b'{"a":"\\ud800"}', b'{"a":1}\n{"a":2}', b"\xef\xbb\xbf{}", b"\x1f\x8b\x08garbage", b'{"a":' + b"9" * 5000 + b"}",
    b"\0", b'{"a":"' + b"x" * 5000 + b'"}',
]  # fmt: skip
ANSWERS = [
    b"", b"not json", b"null", b"[]", b"{}", b'"x"', b"7", b"\xff\xfe", b"<html><body>login</body></html>",
    b"[" * 50_000, b'{"version":null}', b'{"version":{"number":5}}', b'{"version":{"number":"x"},"tagline":7}',
    b'{"error":null,"status":"x"}', b'{"error":"x"}', b'{"error":{"type":7,"reason":[]},"status":400}',
    b'{"errors":true,"items":[{"index":7}]}',
    b'{"version":{"number":"9.5.0"},"cluster_name":"x","tagline":"You Know, for Search"}', b'{"index_templates":[]}',
    b'{"index_templates":[{"name":"x","index_template":{"index_patterns":"x"}}]}', b'{"component_templates":[{}]}',
    b'{"index_templates":[{"index_template":7}]}', b'{"has_all_requested":true,"index":{},"cluster":[]}',
    b'{"acknowledged":true}', b'{"indices":[],"aliases":[],"data_streams":[]}', b'{"indices":7}',
    b'{"indices":[{"name":7}],"data_streams":[null]}', b'{"a":"' + b"x" * 200_000 + b'"}',
    b'{"i":{"mappings":7,"settings":null}}',
]  # fmt: skip
STATUSES = [200, 200, 200, 200, 200, 201, 204, 301, 400, 401, 403, 404, 404, 405, 413, 429, 500, 502, 503]
RUBBISH = [
    b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\0\0\x09\x01", b"\x15\x03\x03\0\x02\x02\x0a", b"\0" * 100,
    b"\xff" * 100, b"\x01\0\0\0\0\0\x04\0\x0a\0\x0a\xce", b"\x01\0\0\xff\xff\xff\xff", b"220 smtp\r\n",
]  # fmt: skip


CAPABLE: dict[str, Any] = {
    "product": "RabbitMQ",
    "capabilities": dict.fromkeys(
        ["publisher_confirms", "basic.nack", "consumer_cancel_notify", "connection.blocked", "per_consumer_qos"], True
    ),
}


class Elasticsearch(BaseHTTPRequestHandler):
    """Answers any request with anything."""

    rng: ClassVar[random.Random]
    calm: ClassVar[float]

    def _answer(self) -> None:
        rng = type(self).rng
        self.rfile.read(int(self.headers.get("content-length") or 0))
        good = self.path == "/" and rng.random() < self.calm
        body = ANSWERS[17] if good else rng.choice(ANSWERS)
        self.send_response(200 if good else rng.choice(STATUSES))
        self.send_header(
            "content-type", rng.choice(["application/json", "text/html", "", "application/json; charset=x"])
        )
        if good or rng.random() < 0.7:
            self.send_header("x-elastic-product", "Elasticsearch")
        if rng.random() < 0.1:
            self.send_header(
                "location",
                rng.choice(["/x", "http://127.0.0.1:1/", "\udcff"]).encode("latin-1", "replace").decode("latin-1"),
            )
        if rng.random() < 0.1:
            self.send_header("retry-after", rng.choice(["1", "x", "9" * 400]))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Tell nothing."""


class RabbitMQ(socketserver.BaseRequestHandler):
    """Speaks AMQP, and refuses or says something else whenever the dice fall so."""

    rng: ClassVar[random.Random]
    calm: ClassVar[float]

    def handle(self) -> None:
        """Answer one client until it goes, or is bored of us."""
        self.request.settimeout(3)
        with suppress(OSError, ValueError, IndexError, TypeError):
            self._talk()

    def _talk(self) -> None:
        rng = type(self).rng
        self.request.recv(8)
        if rng.random() > self.calm:
            self.request.sendall(rng.choice(RUBBISH))
            return
        start = commands.Connection.Start(
            0, 9, rng.choice([dict(CAPABLE, version=version) for version in ("3.10.8", "4.1.0", "x", 7)] * 2 + [{}]),
            rng.choice(["PLAIN AMQPLAIN EXTERNAL", "PLAIN", "EXTERNAL", ""]), "en_US",
        )  # fmt: skip
        self.request.sendall(frame.marshal(start, 0))
        data = b""
        while True:
            piece = self.request.recv(65536)
            if not piece:
                return
            data += piece
            while len(data) >= 8:
                used, channel, method = frame.unmarshal(data)
                if not used:
                    break
                data = data[used:]
                self._reply(channel, method)

    def _reply(self, channel: int, method: Any) -> None:
        rng = type(self).rng
        if isinstance(method, commands.Connection.StartOk):
            answer: Any = commands.Connection.Tune(2047, 131072, 0)
        elif isinstance(method, commands.Connection.Open):
            answer = commands.Connection.OpenOk()
        elif isinstance(method, header.ContentHeader) or not getattr(method, "valid_responses", None):
            return
        elif rng.random() < self.calm or isinstance(method, commands.Connection.Close | commands.Channel.Close):
            group, name = method.valid_responses[0].split(".")
            kind = getattr(getattr(commands, group), name)
            answer = kind(rng.choice(["q", "ü", ""]), 0, 0) if name == "DeclareOk" and group == "Queue" else kind()
            if isinstance(method, commands.Basic.Consume):
                answer = kind(method.consumer_tag)
        else:
            text = rng.choice(
                [
                    "NOT_FOUND - no queue 'x'",
                    "ACCESS_REFUSED - no",
                    "PRECONDITION_FAILED - inequivalent arg",
                    "",
                    "ü" * 100,
                ]
            )
            code = rng.choice([404, 404, 403, 406, 405, 999])
            answer = commands.Channel.Close(code, text, 0, 0)
            if rng.random() < 0.1:
                channel, answer = 0, commands.Connection.Close(rng.choice([530, 541, 320]), text, 0, 0)
        self.request.sendall(frame.marshal(answer, channel))


class Impatient(asyncio.SelectorEventLoop):
    """Asks to stop soon, as if a signal came."""

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:
        """Have SIGTERM come soon, and no other signal."""
        if sig == signal.SIGTERM:
            self.call_later(STOP_SECONDS, callback, *args)


class Threaded(socketserver.ThreadingTCPServer):
    """A server that says nothing about clients that go."""

    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(server: Any) -> Iterator[int]:
    """Serve in a thread; yields the port."""
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_files(rng: random.Random) -> None:
    """Write what settings and options may point at."""
    Path("binary").write_bytes(bytes(range(256)) * 4)
    Path("pem").write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
    Path("empty").write_bytes(b"")
    Path("big").write_bytes(b"x" * (1 << 21))
    Path("text").write_text("text\r\n")
    Path("deep.json").write_bytes(b"[" * 50_000)
    Path("body.json").write_bytes(b'{"a":1}')
    Path("good.py").write_text(
        "number = 7\ndef make(message):\n    return message.json()\n"
        "async def coroutine(message):\n    return {}\nclass Class:\n    pass\n"
    )
    Path("broken.py").write_text("def (:\n")
    Path("raises.py").write_text("raise ZeroDivisionError('x')\n")
    Path("ends.py").write_text("raise SystemExit(3)\n")
    folder = Path("mappings")
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.rmdir() if old.is_dir() else old.unlink()
    for name in rng.sample(["a", "b", "ü*/x".replace("/", ""), "A B", "{x}"], rng.randrange(4)):
        good = [b'{"index_patterns":["x"]}', b'{"template":{"mappings":7}}', b'{"template":null,"version":"x"}']
        content = rng.choice(good * 20 + BODIES)
        (folder / f"{name}.json").write_bytes(content)
    if rng.random() < 0.1:
        (folder / "folder.json").mkdir()


def write_dotenv(rng: random.Random) -> None:
    """Write a ``.env``, or none."""
    path = Path(".env")
    path.unlink(missing_ok=True)
    if rng.random() < 0.8:
        return
    names = rng.choices([*KINDS, "OTHER", "a b", "=", "export X", "SIDECAR_X"], k=3)
    marks = ["", "'", '"']
    lines = [
        f"{name}={(mark := rng.choice(marks))}{rng.choice(TEXTS)}{mark}".encode(errors="surrogateescape")
        for name in names
    ]
    path.write_bytes(
        rng.choice([b"\n".join(lines), b"\r\n".join(lines), b"\xff\xfe", b"SIDECAR_INDEX='", bytes(range(256))])
    )


def environment(rng: random.Random, amqp: int, http: int) -> dict[str, str]:
    """Return settings: most of them good, so that others get their turn."""
    urls = {"AMQP": ("amqp", amqp), "ELASTICSEARCH": ("http", http)}
    values = {
        "SIDECAR_AMQP_QUEUE": rng.choice(["q", "q", "q", *NAMES]),
        "SIDECAR_INDEX": "logs",
        "SIDECAR_HTTP_ADDRESS": rng.choice(["", "127.0.0.1:0"]),
    }
    if rng.random() < 0.2:
        values |= {"SIDECAR_AMQP_EXCHANGE": rng.choice(NAMES), "SIDECAR_AMQP_ROUTING_KEYS": rng.choice(NAMES)}
    for side, (scheme, port) in urls.items():
        values[f"SIDECAR_{side}_URL"] = f"{scheme}://127.0.0.1:{port if rng.random() < 0.9 else 1}"
    if rng.random() < 0.1:
        values |= {"SIDECAR_SINK": "amqp", "SIDECAR_SINK_ROUTING_KEY": "next"}
        del values["SIDECAR_INDEX"], values["SIDECAR_ELASTICSEARCH_URL"]
    for name in rng.sample(sorted(KINDS), rng.choice([0, 0, 0, 1, 1, 1, 2, 5])):
        values[name] = value(rng, name, amqp if "AMQP" in name else http)
    if rng.random() < 0.1:
        values.pop(rng.choice(sorted(values)))
    if rng.random() < 0.1:
        name = rng.choice(sorted(KINDS))
        values.pop(name, None)
        values[f"{name}_FILE"] = rng.choice(FILES)
    if rng.random() < 0.05:
        values[rng.choice(["SIDECAR_X", "SIDECAR_", "SIDECAR__", "SIDECAR_PORT", "SIDECAR_A_SERVICE_HOST"])] = (
            rng.choice(TEXTS)
        )
    return {name: text for name, text in values.items() if "\0" not in text}


def value(rng: random.Random, name: str, port: int) -> str:
    """Return a value for a setting, of its kind or of any."""
    kind = KINDS[name]
    if rng.random() < 0.15:
        return rng.choice(TEXTS)
    if kind == "URLs":
        scheme = "amqp" if "AMQP" in name else "http"
        return url(rng, rng.choice([scheme, scheme, f"{scheme}s", "ftp"]), port)
    if kind in {"file", "folder"}:
        return rng.choice([*FILES, "mappings", "mappings"])
    if kind == "choice":
        field = Settings.model_fields[name.removeprefix(PREFIX).lower()]
        return str(rng.choice([*getattr(field.annotation, "__args__", ()), "x"]))
    return rng.choice(VALUES.get(kind, TEXTS))


def url(rng: random.Random, scheme: str, port: int) -> str:
    """Return a URL, or nearly one."""
    host = rng.choice(
        [f"127.0.0.1:{port}"] * 6
        + ["127.0.0.1:1", "127.0.0.1:99999", "[::1", "[::1]:1", "host.invalid:1", "", "ü.invalid"]
    )
    user = rng.choice(
        [
            "",
            "",
            f"u:{SECRET}@",
            f"u:{SECRET}/x@",
            f"u:{SECRET}#x@",
            f"u:12?{SECRET}@",
            f":{SECRET}@",
            f"u:{SECRET}%zz@",
            "ü:ß@",
        ]
    )
    path = rng.choice(
        [
            "",
            "",
            "/",
            "/v",
            "/%2F",
            "/ä",
            "/" + "v" * 300,
            "/a/b",
            f"/?heartbeat={SECRET}",
            "/?auth=external",
            "/#x",
            "/?name=ü",
        ]
    )
    one = f"{scheme}://{user}{host}{path}"
    return rng.choice([one, one, one, f"{one},{one}", f"{one},", one.replace("//", "/"), f"{one}\n"])


def option(rng: random.Random, parameter: click.Parameter) -> list[str]:
    """Return an option as it might be given."""
    kind = parameter.type
    name = parameter.opts[0]
    if getattr(parameter, "is_flag", False):
        return [name]
    if isinstance(kind, click.Choice):
        return [name, str(rng.choice(kind.choices))]
    if isinstance(kind, click.Path | click.File):
        return [name, rng.choice([*FILES, *["mappings"] * 20])]
    if isinstance(kind, click.IntRange | click.FloatRange) or kind in {click.INT, click.FLOAT}:
        return [name, rng.choice(["0", "1", "2", "200", "404", "nan", "inf", "-1", "1e9", "9" * 400, "x", "0.5"])]
    text = rng.choice(TEXTS)
    if parameter.metavar == "NAME=VALUE":
        text = f"{rng.choice(['x', 'n', 'priority', 'delivery_mode', 'content_encoding', 'timestamp', 'ü', ''])}={text}"
    return [name, text]


def line(rng: random.Random) -> list[str]:
    """Return a command with options."""
    name = rng.choice(
        ["run", "run", "check", "check", "check", "explain", "explain", "dlq", "mappings", "config", "produce"]
    )
    command: Any = cli.get_command(click.Context(cli), name)
    words = [name]
    if isinstance(command, click.Group):
        sub = rng.choice(sorted(command.commands))
        command = command.commands[sub]
        words.append(sub)
    options = [one for one in command.params if isinstance(one, click.Option)]
    for one in rng.sample(options, min(len(options), rng.choice([0, 0, 1, 2, 4]))):
        words += option(rng, one)
    if name == "produce":
        words += ["--count", "3"]
    if name == "explain" and rng.random() < 0.5:
        words.append(rng.choice([*FILES, *["-", "body.json"] * 10]))
    if name == "explain" and rng.random() < 0.5:
        words += ["--status", rng.choice(["200", "400", "404", "409", "429", "503"])]
    return words


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect what would be a traceback elsewhere than in the output: of tasks, threads and loggers."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info or record.levelno >= logging.ERROR:
                exc = record.exc_info
                text = "".join(traceback.format_exception(*exc)) if isinstance(exc, tuple) and exc[0] else ""
                found.append(f"{record.name}: {record.getMessage()}\n{text}")

    handler = Handler()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield found
    finally:
        root.removeHandler(handler)


class Outcome(NamedTuple):
    """What came of a seed.

    Attributes:
        status: the exit status.
        wrong: what is wrong with it, None if nothing is.
    """

    status: int
    wrong: str | None


def one(seed: int, ports: tuple[int, int]) -> Outcome:
    """Run a seed."""
    rng = random.Random(seed)
    Elasticsearch.rng = RabbitMQ.rng = random.Random(seed + 1)
    Elasticsearch.calm = RabbitMQ.calm = rng.choice([0.3, 0.9, 1.0])
    for name in ("good", "broken", "raises", "ends"):
        sys.modules.pop(name, None)
    write_files(rng)
    write_dotenv(rng)
    words = line(rng)
    nothing = without_settings()
    env = environment(rng, *ports)
    with watched() as logged:
        result = CliRunner().invoke(cli, words, env=nothing | env, input=rng.choice(BODIES))
    what = f"seed {seed}: sidecar {words!r:.600} with {env!r:.1500}"
    said = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit | ConfigError):
        return Outcome(1, f"{what}\n{''.join(traceback.format_exception(result.exception))}")
    status = 2 if isinstance(result.exception, ConfigError) else result.exit_code
    said += str(result.exception) if isinstance(result.exception, ConfigError) else ""
    problems = {
        "a traceback": "Traceback" in said,
        f"the exit status {status}": status not in {0, 1, 2},
        "nothing said": status != 0 and not said.strip(),
        "a secret": SECRET in said,
        f"logged {logged}": bool(logged),
    }
    wrong = [problem for problem, found in problems.items() if found]
    return Outcome(status, f"{what}\n{', '.join(wrong)}\n{said[-3000:]}" if wrong else None)


def run_seeds(seeds: range, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run them all; tell of every one that is wrong."""
    print(f"seeds {seeds.start} to {seeds.stop - 1}; again: FUZZ_SETTINGS_SEED={seeds.start} FUZZ_SETTINGS_COUNT=1")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sidecar.cli.run, "_loop_factory", lambda: Impatient)
    monkeypatch.setattr(sidecar.cli.run, "_tune_garbage_collection", lambda: None)
    with (
        served(Threaded(("127.0.0.1", 0), RabbitMQ)) as amqp,
        served(ThreadingHTTPServer(("127.0.0.1", 0), Elasticsearch)) as http,
    ):
        outcomes = [one(seed, (amqp, http)) for seed in seeds]
    wrong = [outcome.wrong for outcome in outcomes if outcome.wrong is not None]
    if wrong:
        Path(folder, "wrong.txt").write_text("\n\n======\n".join(wrong), errors="replace")
        pytest.fail(f"{len(wrong)} of {len(seeds)}:\n\n" + "\n\n".join(wrong[:5]))
    statuses = Counter(outcome.status for outcome in outcomes)
    print(f"exit statuses: {dict(statuses)}")
    if len(seeds) >= ENOUGH:  # many get as far as the servers, some succeed
        assert statuses[1] >= len(seeds) // 10
        assert statuses[0] >= len(seeds) // 20


def test_every_command_is_known() -> None:
    """Those that read settings; `health` reads an address alone."""
    assert set(COMMANDS) == {"run", "check", "explain", "dlq", "mappings", "config", "produce", "health"}


@pytest.mark.parametrize(
    "given",
    [
        {"SIDECAR_AMQP_QUEUE": "tasks;high\udcff"},
        {"SIDECAR_MEMORY_LIMIT": "9" * 400 + "GiB"},
        {"SIDECAR_AMQP_QUEUE_ARGUMENTS": '{"a":' * 2000},
        {"SIDECAR_TRANSFORM": "ends:x"},
        {"SIDECAR_MAPPINGS_DIR": "x" * 5000},
        {"SIDECAR_AMQP_URL": f"amqp://u:{SECRET}/x@h/"},
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_process_says_what_is_wrong(tmp_path: Path, command: str, given: dict[str, str]) -> None:
    """The same from outside: exit status 2, sentences, nothing else."""
    (tmp_path / "ends.py").write_text("raise SystemExit(3)\n")
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    environment = inherited | {"SIDECAR_AMQP_QUEUE": "q", "SIDECAR_INDEX": "i", "SIDECAR_HTTP_ADDRESS": ""} | given
    line = [sys.executable, "-m", "sidecar", command]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert all(told.startswith("sidecar: ") for told in done.stderr.splitlines()), done.stderr
    assert SECRET not in done.stderr


def test_no_traceback_for_anything_that_somebody_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run, the same each time."""
    run_seeds(range(SEED, SEED + (COUNT or 200)), tmp_path, monkeypatch)


@pytest.mark.full
def test_no_traceback_in_two_thousand_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long run."""
    run_seeds(range(10_000 + SEED, 10_000 + SEED + 2_000), tmp_path, monkeypatch)
