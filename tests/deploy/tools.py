"""Validators: Python packages of the test group, and programs where they are installed."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
SECONDS = 60.0
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.29", "1.37"
"""Native sidecars are on from 1.29."""


def needed(module: str) -> Any:
    """Import a package of the test group; without it a test is skipped on a laptop, and fails where CI must have it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        message = f"no {module}: run 'make setup'"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def program(name: str) -> str:
    """Return where a program is: beside this Python, or on the path. Without it the test is skipped."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def output(*command: str, folder: Path = REPOSITORY) -> str:
    """Run a command that has to succeed, and return what it printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documents(text: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML text that say something."""
    return [document for document in needed("yaml").safe_load_all(text) if document]


def load(path: Path) -> Any:
    """Return a YAML file's only document."""
    (document,) = documents(path.read_text(encoding="utf-8"))
    return document


@functools.cache
def schema(name: str) -> Any:
    """Return one of the schemas that check-jsonschema carries."""
    return needed("check_jsonschema.builtin_schemas").get_builtin_schema(name)


def assert_fits(value: object, by: Any) -> None:
    """See that a value fits a JSON schema; every place where it doesn't is told."""
    validators = needed("jsonschema").validators
    validator = validators.validator_for(by)(by)
    told = [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]
    assert told == []


CUSTOM = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
"""Their schemas are in no package: only what is common to all is looked at."""


def assert_kubernetes(manifest: dict[str, Any], version: str) -> None:
    """See that a manifest fits the API of a version, with no field that it doesn't know."""
    assert manifest["metadata"]["name"]
    if manifest["apiVersion"] not in CUSTOM:
        needed("kubernetes_validate").validate(manifest, version, strict=True)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return the pod's spec of a workload."""
    pod: dict[str, Any] | None = manifest.get("spec", {}).get("template", {}).get("spec")
    return pod


def assert_restricted(pod: dict[str, Any]) -> None:
    """See that a pod keeps to the Pod Security Standard `restricted`, and to what is beyond it here."""
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    shared = pod["securityContext"]
    assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod.get("initContainers", []) + pod["containers"]:
        context = shared | container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context.get("runAsUser", 10001) == 10001
        assert container["resources"]["limits"]["memory"]
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}


def assert_native_sidecar(pod: dict[str, Any]) -> None:
    """See that the sidecar starts before and ends after the others, and doesn't take them out of service."""
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert "readinessProbe" not in sidecar
    assert sidecar["startupProbe"]["httpGet"]["path"] == "/livez"
    assert sidecar["livenessProbe"]["httpGet"]["path"] == "/livez"
