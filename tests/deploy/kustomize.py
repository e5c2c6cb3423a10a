"""As much of kustomize as `deploy/kubernetes` uses, so that its overlays are looked at where there is no kustomize.

Names get no hash of their content. A test compares it with the real one, where that is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.deploy.tools import documents, load, needed

if TYPE_CHECKING:
    from pathlib import Path

    Manifest = dict[str, Any]

KNOWN = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "configMapGenerator",
    "images",
    "patches",
}


def build(folder: Path) -> list[Manifest]:
    """Return the manifests of an overlay."""
    return _onto([], folder)


def _onto(manifests: list[Manifest], folder: Path) -> list[Manifest]:
    """Return what a kustomization makes of the manifests that it is a component for; a base or overlay gets none."""
    kustomization = load(folder / "kustomization.yaml")
    assert kustomization.keys() <= KNOWN, "this reader doesn't know that"
    for name in kustomization.get("resources", []):
        path = folder / name
        manifests += build(path) if path.is_dir() else documents(path.read_text(encoding="utf-8"))
    for name in kustomization.get("components", []):
        manifests = _onto(manifests, folder / name)
    for generator in kustomization.get("configMapGenerator", []):
        _generate(manifests, generator, folder)
    for image in kustomization.get("images", []):
        _tag(manifests, image)
    for patch in kustomization.get("patches", []):
        _patch(manifests, patch)
    return manifests


def _generate(manifests: list[Manifest], generator: dict[str, Any], folder: Path) -> None:
    lines = list(generator.get("literals", []))
    for name in generator.get("envs", []):
        lines += (folder / name).read_text(encoding="utf-8").splitlines()
    data = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    if generator.get("behavior") == "merge":
        (merged,) = [one for one in manifests if one["kind"] == "ConfigMap"]
        merged["data"] |= data
    else:
        manifests.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
        )


def _tag(manifests: list[Manifest], image: dict[str, str]) -> None:
    for manifest in manifests:
        pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("initContainers", []) + pod.get("containers", []):
            if container["image"] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"


def _patch(manifests: list[Manifest], patch: dict[str, Any]) -> None:
    for manifest in manifests:
        if (manifest["kind"], manifest["metadata"]["name"]) != (patch["target"]["kind"], patch["target"]["name"]):
            continue
        for step in needed("yaml").safe_load(patch["patch"]):
            assert step["op"] == "remove", "this reader doesn't know that"
            *parents, last = step["path"].strip("/").split("/")
            place = manifest
            for parent in parents:
                place = place[parent]
            del place[last]
