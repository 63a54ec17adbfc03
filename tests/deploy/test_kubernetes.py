"""deploy/kubernetes: rendered by kubectl, checked by the published schemas, and compared with the server itself."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.serving.app import DRAIN_S, HEALTH, METRICS, READY
from spade_deploy.serving.figures import Figures
from spade_deploy.serving.guards import HEALTH_PATHS
from spade_deploy.serving.runner import Runner
from tests.deploy.test_dockerfiles import served
from tests.support.dockerfile import read_dockerfile
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
MANIFESTS = sorted(path for path in DEPLOY.rglob("*.yaml"))
CLOSING_S = 5
"""Seconds after the drain in which uvicorn closes connections: see `serving/run.py`."""


def program(name: str, how: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: {how}")
    return found


@cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    """The manifests that `kubectl apply --kustomize` sends."""
    kubectl = program("kubectl", "Kubernetes' own packages bring it")
    command = [kubectl, "kustomize", DEPLOY / "overlays" / overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def the(overlay: str, kind: str) -> dict[str, Any]:
    (found,) = (one for one in rendered(overlay) if one["kind"] == kind)
    return found


@cache
def schemas() -> tuple[Any, Any]:
    """The folder of Kubernetes' schemas that know every field, and their shared definitions."""
    package = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate has the schemas")
    folder = sorted(
        (one for one in (files(package) / "kubernetes-json-schema").iterdir() if one.name.endswith("-local-strict")),
        key=lambda one: [int(part) for part in re.findall(r"\d+", one.name)],
    )[-1]
    definitions = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))
    return folder, jsonschema_rs.Registry([("https://kubernetes.io/api/_definitions.json", definitions)])


def misfits(manifest: dict[str, Any]) -> list[str]:
    """What in a manifest does not fit Kubernetes' published schema."""
    folder, registry = schemas()
    group, _, version = manifest["apiVersion"].rpartition("/")
    name = "-".join(filter(None, (manifest["kind"].lower(), group.split(".")[0], version)))
    schema = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    validator = jsonschema_rs.validator_for(schema, registry=registry, base_uri="https://kubernetes.io/api/own.json")
    return [error.message for error in validator.iter_errors(manifest)]


def test_yamllint_has_nothing_to_say() -> None:
    yamllint = program("yamllint", "pip install yamllint")
    done = subprocess.run([yamllint, "--strict", "deploy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_fit_the_published_schemas(overlay: str) -> None:
    manifests = rendered(overlay)
    kinds = {"ServiceAccount", "PersistentVolumeClaim", "Deployment", "Service", "PodDisruptionBudget"}
    assert {one["kind"] for one in manifests} == kinds | {"HorizontalPodAutoscaler"}
    for one in manifests:
        assert misfits(one) == [], one["kind"]
        assert one["metadata"]["namespace"] == "spade"


def test_a_field_that_does_not_exist_is_noticed() -> None:
    deployment = json.loads(json.dumps(the("cpu", "Deployment")))
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    assert any("livenessProb" in message for message in misfits(deployment))


def pod_of(overlay: str) -> dict[str, Any]:
    pod: dict[str, Any] = the(overlay, "Deployment")["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_container_runs_the_server_of_the_image(overlay: str) -> None:
    pod = pod_of(overlay)
    (container,) = pod["containers"]
    image = read_dockerfile(ROOT / "docker" / f"Dockerfile.{overlay}").image
    assert container["image"].rpartition(":")[0].endswith(f"spade-{overlay}")
    assert "command" not in container, "the image's entry point is `spade`"
    assert container["args"][0] == "serve"
    asked = served(container["args"][1:])
    assert not asked.is_local
    (port,) = container["ports"]
    assert port["containerPort"] == asked.port
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(asked.artifacts) <= set(mounts)
    assert all(mounts[path].get("readOnly") for path in asked.artifacts)
    assert asked.token_file is not None
    secret = volumes[mounts[str(asked.token_file.parent)]["name"]]["secret"]
    assert asked.token_file.name in {item["path"] for item in secret["items"]}
    assert secret["defaultMode"] & 0o007 == 0
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert set(environment) == {VARIABLE}
    for place in (environment[VARIABLE], image.environment()["HOME"]):
        assert "emptyDir" in volumes[mounts[place]["name"]], f"{place} must be writable"
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_has_more_rights_than_it_needs(overlay: str) -> None:
    pod = pod_of(overlay)
    (container,) = pod["containers"]
    image = read_dockerfile(ROOT / "docker" / f"Dockerfile.{overlay}").image
    context = pod["securityContext"]
    assert context["runAsNonRoot"]
    assert image.the("USER") == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container["securityContext"]
    assert own["readOnlyRootFilesystem"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) is (overlay == "gpu")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_what_the_server_answers_without_a_token(overlay: str) -> None:
    (container,) = pod_of(overlay)["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": READY,
        "readiness": READY,
        "liveness": HEALTH,
    }
    assert {READY, HEALTH} <= set(HEALTH_PATHS)
    (port,) = container["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert the(overlay, "Service")["spec"]["ports"][0]["targetPort"] == port["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_the_time_that_the_drain_takes(overlay: str) -> None:
    pod = pod_of(overlay)
    wait = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > wait + DRAIN_S + CLOSING_S
    page = (ROOT / "docker" / f"Dockerfile.{overlay}").read_text(encoding="utf-8")
    (timeout,) = re.findall(r"--stop-timeout (\d+)", page)
    assert int(timeout) > DRAIN_S + CLOSING_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_selects_pods_selects_these(overlay: str) -> None:
    deployment = the(overlay, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for chosen in (
        deployment["spec"]["selector"]["matchLabels"],
        the(overlay, "Service")["spec"]["selector"],
        the(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        pod_of(overlay)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        read("monitoring/podmonitor.yaml")["spec"]["selector"]["matchLabels"],
    ):
        assert chosen
        assert chosen.items() <= labels.items()
    assert "replicas" not in deployment["spec"], "it would undo what the autoscaler decided"
    autoscaler = the(overlay, "HorizontalPodAutoscaler")["spec"]
    assert autoscaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert autoscaler["minReplicas"] <= autoscaler["maxReplicas"]
    claim = the(overlay, "PersistentVolumeClaim")["metadata"]["name"]
    assert claim in {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod_of(overlay)["volumes"]
        if "persistentVolumeClaim" in volume
    }


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return found


@pytest.fixture
def figures() -> Iterator[str]:
    """What /metrics tells."""
    runner = Runner(1)
    yield Figures(runner).text()[0].decode()
    runner.close(drain_s=0)


def test_pods_are_added_by_a_figure_that_the_server_tells(figures: str) -> None:
    series = {line.partition("{")[0].partition(" ")[0] for line in figures.splitlines() if not line.startswith("#")}
    (rule,) = read("monitoring/prometheus-adapter-values.yaml")["rules"]["custom"]
    name = rule["name"]["as"]
    assert name in series
    assert re.search(rule["name"]["matches"], name)
    assert rule["seriesQuery"].partition("{")[0] == name
    for overlay in OVERLAYS:
        (metric,) = the(overlay, "HorizontalPodAutoscaler")["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == name
        queue = served(pod_of(overlay)["containers"][0]["args"][1:]).queue
        wanted = int(metric["pods"]["target"]["averageValue"])
        assert 0 < wanted < queue, "pods are added before the queue is full"


def test_prometheus_reads_the_figures_with_the_token() -> None:
    monitor = read("monitoring/podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (container,) = pod_of("cpu")["containers"]
    assert endpoint["path"] == METRICS
    assert METRICS not in HEALTH_PATHS, "so it needs the token"
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    (secret,) = (volume["secret"] for volume in pod_of("cpu")["volumes"] if "secret" in volume)
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["name"] == secret["secretName"]
    assert credentials["key"] in {item["key"] for item in secret["items"]}
    assert monitor["metadata"]["namespace"] == the("cpu", "Deployment")["metadata"]["namespace"]


def ray_pods() -> dict[str, dict[str, Any]]:
    cluster = read("ray/rayservice.yaml")["spec"]["rayClusterConfig"]
    groups = {"head": cluster["headGroupSpec"], **{one["groupName"]: one for one in cluster["workerGroupSpecs"]}}
    return {name: group["template"]["spec"] for name, group in groups.items()}


def test_the_pods_of_ray_fit_the_published_schemas() -> None:
    for name, pod in ray_pods().items():
        as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        assert misfits(as_pod) == [], name
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_application_of_ray_fits_its_schema_and_its_pods() -> None:
    service = read("ray/rayservice.yaml")
    schema = pytest.importorskip("ray.serve.schema", reason="the extra ray is not installed")
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    ray_app = pytest.importorskip("spade_deploy.serving.ray_app", reason="this version has no Ray Serve application")
    assert application.import_path == f"{ray_app.__name__}:{ray_app.app.__name__}"
    asked, replicas = ray_app.read_arguments(application.args, {})
    assert not asked.is_local, "requests come by the name of a service"
    cluster = service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    assert replicas.num_cpus == int(workers["rayStartParams"]["num-cpus"])
    assert replicas.max_replicas <= workers["maxReplicas"]
    versions = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={cluster['rayVersion']}\n" in versions
    for pod in ray_pods().values():
        (container,) = pod["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(asked.artifacts) <= mounts
        assert str(asked.token_file.parent) in mounts
        environment = {one["name"]: one["value"] for one in container["env"]}
        module, _, function = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
        assert callable(getattr(importlib.import_module(module), function))
