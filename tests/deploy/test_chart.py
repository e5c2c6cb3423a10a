"""`deploy/helm`: values by their schema always, and rendered where helm is installed."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from sidecar import __version__
from tests.deploy.tools import (
    DEPLOY,
    NEWEST_KUBERNETES,
    OLDEST_KUBERNETES,
    assert_fits,
    assert_kubernetes,
    assert_native_sidecar,
    assert_restricted,
    documents,
    load,
    output,
    pod_of,
    program,
)

if TYPE_CHECKING:
    from pathlib import Path

CHART = DEPLOY / "helm" / "sidecar"
EXAMPLE = DEPLOY / "helm" / "example"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = load(CHART / "values.yaml")
ALL_ON = {
    "plain": (),
    "keda": ("keda.enabled=true", "networkPolicy.enabled=true", "serviceMonitor.enabled=true"),
    "hpa": ("hpa.enabled=true", "settings.SIDECAR_AMQP_QUEUE=a\\,b", f"image.digest=sha256:{'0' * 64}"),
}


def test_versions_are_that_of_the_package() -> None:
    """One number for chart, image and package."""
    chart = load(CHART / "Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert load(EXAMPLE / "Chart.yaml")["dependencies"][0]["version"] == __version__


def test_values_fit_their_schema() -> None:
    """As they are, and laid over by those of the example."""
    assert_fits(VALUES, SCHEMA)
    given = load(EXAMPLE / "values.yaml")["sidecar"]
    assert_fits(VALUES | given, SCHEMA)
    assert set(SCHEMA["properties"]) == {*VALUES, "global"}


WRONG: dict[str, tuple[tuple[str, ...], Any]] = {
    "a misspelt name": (("replica",), 2),
    "a password among the settings": (("settings", "SIDECAR_ELASTICSEARCH_PASSWORD"), "secret"),
    "a URL with a password": (("settings", "SIDECAR_AMQP_URL"), "amqp://user:secret@host/"),
    "no setting of ours": (("settings", "AMQP_QUEUE"), "orders"),
    "no file": (("secret", "files", "SIDECAR_AMQP_URL"), "amqp-url"),
    "another mode": (("mode",), "daemon"),
    "no digest": (("image", "digest"), "0.1.0"),
    "two scalers": (("keda", "enabled"), True),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(name: str) -> None:
    """Before anything is installed."""
    values = copy.deepcopy(VALUES)
    values["hpa"]["enabled"] = True
    path, wrong = WRONG[name]
    place = values
    for step in path[:-1]:
        place = place[step]
    assert_fits(values, SCHEMA)
    place[path[-1]] = wrong
    with pytest.raises(AssertionError):
        assert_fits(values, SCHEMA)


def render(chart: Path, *values: str) -> list[dict[str, Any]]:
    """Render a chart, or skip the test where there is no helm."""
    given = [argument for value in values for argument in ("--set", value)]
    version = f"{NEWEST_KUBERNETES}.0"
    return documents(output(program("helm"), "template", "release", str(chart), "--kube-version", version, *given))


@pytest.mark.parametrize("name", ALL_ON)
def test_what_is_rendered_fits_the_api(name: str) -> None:
    """By itself, with everything beside it, and with either way to scale."""
    manifests = render(CHART, *ALL_ON[name])
    for manifest in manifests:
        for version in (OLDEST_KUBERNETES, NEWEST_KUBERNETES):
            assert_kubernetes(manifest, version)
    (workload,) = [manifest for manifest in manifests if manifest["kind"] == "Deployment"]
    pod = pod_of(workload)
    assert pod is not None
    assert_restricted(pod)
    assert ("replicas" in workload["spec"]) == (name == "plain")
    (container,) = pod["containers"]
    assert container["image"].startswith("rabbitmq-elasticsearch-sidecar@sha256:" if name == "hpa" else "rabbitmq-")


def test_another_chart_takes_the_sidecar_into_its_pod(tmp_path: Path) -> None:
    """By `include`, with the settings under the name of the dependency; nothing else of the chart is installed."""
    program("helm")
    shutil.copytree(EXAMPLE, tmp_path / "example")
    shutil.copytree(CHART, tmp_path / "example" / "charts" / "sidecar")
    manifests = render(tmp_path / "example", "sidecar.config.settings.SIDECAR_INDEX=other")
    assert sorted(manifest["kind"] for manifest in manifests) == ["ConfigMap", "Deployment"]
    for manifest in manifests:
        assert_kubernetes(manifest, NEWEST_KUBERNETES)
    settings, workload = sorted(manifests, key=lambda manifest: manifest["kind"])
    pod = pod_of(workload)
    assert pod is not None
    assert_restricted(pod)
    assert_native_sidecar(pod)
    assert settings["data"]["SIDECAR_INDEX"] == "other"
    assert pod["initContainers"][0]["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
