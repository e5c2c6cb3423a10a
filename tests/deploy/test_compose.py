"""`deploy/compose.yaml` and what it mounts, by Compose's schema and by what the schema doesn't say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from devstack import compose
from sidecar.config.settings import load as load_settings
from tests.deploy.tools import DEPLOY, REPOSITORY, assert_fits, load, schema

STACK = load(DEPLOY / "compose.yaml")
SERVICES: dict[str, Any] = STACK["services"]
OURS = ("sidecar", "producer", "users", "prometheus")
ALWAYS = {"rabbitmq", "elasticsearch", "users", "sidecar"}


@pytest.mark.parametrize("path", compose.FILES, ids=lambda path: path.name)
def test_it_fits_the_schema(path: Any) -> None:
    """That of the Compose specification."""
    assert_fits(load(path), schema("vendor.compose-spec"))


def test_what_starts_without_being_asked_for() -> None:
    """Two servers, the users, the sidecar; all else has a profile."""
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == ALWAYS
    assert {profile for service in SERVICES.values() for profile in service.get("profiles", [])} == {
        "produce",
        "kibana",
        "monitoring",
    }


def test_whoever_is_waited_for_can_say_that_he_is_ready() -> None:
    """`service_healthy` of a service without a health check never comes."""
    for service in SERVICES.values():
        for name, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert SERVICES[name]["healthcheck"]["test"]
            else:
                assert "restart" in SERVICES[name]


def test_no_password_stands_in_it_and_no_port_is_open_to_others() -> None:
    """Passwords come from deploy/.env, whose example names each."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(\w*PASSWORD)[:}]", text))
    example = (DEPLOY / ".env.example").read_text(encoding="utf-8")
    assert asked == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "deploy/.env" in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()


def test_the_sidecar_takes_its_settings_and_has_time_to_drain() -> None:
    """Its environment is one that it starts with; it is stopped later than its drain ends."""
    sidecar = SERVICES["sidecar"]
    folder = str(REPOSITORY / "mappings")
    environment = {name: text.replace("/mappings", folder) for name, text in sidecar["environment"].items()}
    settings = load_settings({name: re.sub(r"\$\{.*?\}", "x", text) for name, text in environment.items()})
    assert settings.shutdown_timeout < float(sidecar["stop_grace_period"].removesuffix("s"))
    assert "stop_grace_period" not in SERVICES["producer"]
    for name in OURS:
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]


def test_what_is_mounted_is_in_the_repository() -> None:
    """A path that isn't there becomes an empty folder, without a word."""
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in STACK["volumes"]
    # Prometheus and Grafana find what is mounted.
    assert load(DEPLOY / "prometheus" / "prometheus.yaml")["rule_files"] == ["/etc/prometheus/rules.yaml"]
    (provider,) = load(DEPLOY / "grafana" / "provisioning" / "dashboards" / "sidecar.yaml")["providers"]
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/sidecar.json" in mounted


class _Asked(BaseHTTPRequestHandler):
    """Takes down what an Elasticsearch would be asked."""

    requests: list[tuple[str, str, Any, str]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.requests.append((self.command, self.path, json.loads(body), self.headers["authorization"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_the_users_of_elasticsearch_are_made_with_the_least_roles() -> None:
    """By the script: both roles of the repository, a user who has them, and Kibana's password."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    asked = type("Asked", (_Asked,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), asked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    passwords = {"ELASTIC_PASSWORD": "a1", "SIDECAR_PASSWORD": "b2", "KIBANA_PASSWORD": "c3"}
    script = str(DEPLOY / "elasticsearch" / "users.sh")
    subprocess.run(
        ["sh", script, f"http://127.0.0.1:{server.server_port}"],
        env={"PATH": os.environ["PATH"], **passwords},
        capture_output=True,
        check=True,
        timeout=30,
    )
    server.shutdown()
    server.server_close()
    role, templates, user, kibana = asked.requests  # type: ignore[attr-defined]
    assert (role[1], role[2]) == (
        "/_security/role/sidecar",
        json.loads((DEPLOY / "elasticsearch" / "role.json").read_text()),
    )
    assert templates[2] == json.loads((DEPLOY / "elasticsearch" / "role-templates.json").read_text())
    assert user[1:3] == ("/_security/user/sidecar", {"password": "b2", "roles": ["sidecar", "sidecar-templates"]})
    assert kibana[1:3] == ("/_security/user/kibana_system/_password", {"password": "c3"})
    assert {request[3] for request in asked.requests} == {"Basic ZWxhc3RpYzphMQ=="}  # type: ignore[attr-defined]
