"""`deploy/kubernetes`: every overlay against the API's schemas, and what the schemas don't say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from sidecar import __version__
from sidecar.config.settings import load as load_settings
from tests.deploy.kustomize import build
from tests.deploy.tools import (
    DEPLOY,
    NEWEST_KUBERNETES,
    OLDEST_KUBERNETES,
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

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
MEBIBYTE = 1024 * 1024
OF_PYTHON = 70 * MEBIBYTE
"""What Python and its libraries take; see README, Memory."""


def overlay(name: str) -> list[dict[str, Any]]:
    return build(FOLDER / "overlays" / name)


def only(manifests: list[dict[str, Any]], *kinds: str) -> dict[str, Any]:
    """Return the only manifest of some kinds."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] in kinds]
    return found


def pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    found = pod_of(only(manifests, "Deployment", "StatefulSet"))
    assert found is not None
    return found


def the_sidecar(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sidecar's container, native or not."""
    spec = pod(manifests)
    (found,) = [one for one in spec.get("initContainers", []) + spec["containers"] if one["name"] == "sidecar"]
    return found


def environment(manifests: list[dict[str, Any]], secrets: Path) -> dict[str, str]:
    """Return what the sidecar finds in its environment; the mounted secret is in a folder of ours."""
    secret = load(FOLDER / "base" / "secret.example.yaml")
    for key, text in secret["stringData"].items():
        (secrets / key).write_text(text)
    (mount,) = the_sidecar(manifests)["volumeMounts"]
    found = dict(only(manifests, "ConfigMap")["data"])
    for variable in the_sidecar(manifests).get("env", []):
        if variable["name"].startswith("SIDECAR_"):
            found[variable["name"]] = variable["value"].replace("$(POD_INDEX)", "2")
    return {name: text.replace(mount["mountPath"], str(secrets)) for name, text in found.items()}


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_manifest_fits_the_api(name: str, version: str) -> None:
    """Of the oldest version that has native sidecars, and of the newest."""
    for manifest in overlay(name):
        assert_kubernetes(manifest, version)


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_are_restricted(name: str) -> None:
    """Nothing that a pod of a stranger could misuse, and no environment from names of services."""
    assert_restricted(pod(overlay(name)))


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_settings_work_and_fit_the_pod(name: str, tmp_path: Path) -> None:
    """The sidecar takes them; the drain ends within the grace period, a request within the drain; memory is enough."""
    manifests = overlay(name)
    settings = load_settings(environment(manifests, tmp_path))
    assert settings.bulk_timeout <= settings.shutdown_timeout
    # Beside a producer, its own end comes first.
    own_end = 30 if "initContainers" in pod(manifests) else 10
    assert settings.shutdown_timeout + own_end <= pod(manifests)["terminationGracePeriodSeconds"]
    limit = the_sidecar(manifests)["resources"]["limits"]["memory"]
    needed = settings.memory_limit + OF_PYTHON + 2 * settings.batch_max_bytes * settings.bulk_concurrency
    assert needed <= int(limit.removesuffix("Mi")) * MEBIBYTE


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_belongs_together_finds_each_other(name: str) -> None:
    """Selectors find the pods, that of the network's policy among them, and the version is that of the package."""
    manifests = overlay(name)
    workload = only(manifests, "Deployment", "StatefulSet")
    labels = workload["spec"]["template"]["metadata"]["labels"]
    chosen = [
        workload["spec"]["selector"]["matchLabels"],
        only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ]
    chosen += [manifest["spec"]["selector"] for manifest in manifests if manifest["kind"] == "Service"]
    chosen.append(only(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    assert all(selector.items() <= labels.items() for selector in chosen)
    assert the_sidecar(manifests)["image"] == f"rabbitmq-elasticsearch-sidecar:{__version__}"
    assert pod(manifests)["serviceAccountName"] == only(manifests, "ServiceAccount")["metadata"]["name"]


def test_beside_a_producer_it_starts_first_ends_last_and_takes_nobody_out_of_service() -> None:
    """A native sidecar, without a readiness probe; stand-alone ones have one, and restart for liveness alone."""
    assert_native_sidecar(pod(overlay("producer")))
    for name in set(OVERLAYS) - {"producer"}:
        container = the_sidecar(overlay(name))
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_each_replica_of_the_ordered_ones_has_a_queue_of_its_own(tmp_path: Path) -> None:
    """Bound to a consistent-hash exchange, with one active consumer."""
    manifests = overlay("ordered")
    settings = load_settings(environment(manifests, tmp_path))
    assert settings.amqp_queue == ("orders.2",)
    assert settings.amqp_exchange_type == "x-consistent-hash"
    assert settings.amqp_routing_keys == ("1",)
    assert settings.amqp_queue_arguments == {"x-single-active-consumer": True}
    only(manifests, "StatefulSet")


@pytest.mark.parametrize(("name", "scaler"), [("scaled", "ScaledObject"), ("scaled-hpa", "HorizontalPodAutoscaler")])
def test_what_scales_has_the_say_about_replicas(name: str, scaler: str) -> None:
    """By the queue's length with what is unacknowledged, and by more than one replica's prefetch."""
    manifests = overlay(name)
    workload = only(manifests, "Deployment")
    assert "replicas" not in workload["spec"]
    spec = only(manifests, scaler)["spec"]
    assert spec["scaleTargetRef"]["name"] == workload["metadata"]["name"]
    assert (
        only(manifests, "ServiceMonitor")["spec"]["endpoints"][0]["port"]
        == only(manifests, "Service")["spec"]["ports"][0]["name"]
    )
    if scaler == "ScaledObject":
        (trigger,) = spec["triggers"]
        metadata = trigger["metadata"]
        assert (metadata["protocol"], metadata["excludeUnacknowledged"]) == ("http", "false")
        assert metadata["queueName"] == only(manifests, "ConfigMap")["data"]["SIDECAR_AMQP_QUEUE"]
        assert int(metadata["value"]) > 5000
        authentication = only(manifests, "TriggerAuthentication")
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_kustomize_itself_makes_the_same(name: str) -> None:
    """What is looked at here is what is applied, but for hashes in names."""
    text = output(program("kubectl"), "kustomize", str(FOLDER / "overlays" / name))
    text = re.sub(r"\bsidecar-[a-z0-9]{10}$", "sidecar", text, flags=re.MULTILINE)

    def by_name(manifests: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}

    assert by_name(documents(text)) == by_name(overlay(name))
