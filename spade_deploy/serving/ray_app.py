"""The API of `spade serve` as a Ray Serve application: replicas on a cluster, as many as the requests need.

    serve run spade_deploy.serving.ray_app:app artifacts=/shared/earth/artifact max_replicas=8

Each replica is the app of `serving.app`, with the models in its memory and the server's own queue and batches; Ray
starts replicas, shares the requests out to them, and replaces those that die. docs/ray.md has the settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from fastapi import FastAPI

from spade_deploy.artifact import MANIFEST
from spade_deploy.errors import ArtifactError, ConfigError, quoted
from spade_deploy.fields import parse
from spade_deploy.files.reading import sha256_of
from spade_deploy.runs.folders import usual_name
from spade_deploy.serving.app import DRAIN_S, make_app
from spade_deploy.serving.guards import read_token
from spade_deploy.serving.logs import start_log
from spade_deploy.serving.models import name_and_path, named_paths, open_models
from spade_deploy.serving.request import ServeRequest
from spade_deploy.settings import check_ranges, setting

ENVIRONMENT = "SPADE_SERVE_"
"""A setting that is not among the arguments is taken from the environment variable of this name and its own."""
RAYS_OWN = ("port", "workers")
"""Settings of `spade serve` that Ray has itself: where its proxies listen, and how many processes there are."""

Request = TypeVar("Request")


@dataclass(frozen=True, kw_only=True)
class ReplicaRequest:
    """How many replicas there are, and what each of them takes of the cluster."""

    min_replicas: int = setting(1, help="Least number of replicas; 0 needs no resources while idle.", least=0)
    max_replicas: int = setting(1, help="Largest number of replicas.", least=1)
    target_ongoing_requests: float = setting(
        4.0, help="Requests that a replica works on at a time on average; with more, Ray adds replicas.", least=0.01
    )
    max_ongoing_requests: int = setting(
        16, help="Most requests at a replica at a time; an open live preview is one of them.", least=1
    )
    upscale_delay_s: float = setting(10.0, help="Seconds of load before replicas are added.", least=0)
    downscale_delay_s: float = setting(300.0, help="Seconds without load before replicas are ended.", least=0)
    num_cpus: float = setting(1.0, help="CPUs that Ray keeps for a replica; also its threads.", least=0)
    num_gpus: float = setting(0.0, help="GPUs that Ray keeps for a replica, such as 0.5.", least=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min_replicas > self.max_replicas:
            raise ConfigError(f"`min_replicas`: {self.min_replicas} is more than `max_replicas` {self.max_replicas}")
        if self.max_ongoing_requests < self.target_ongoing_requests:
            raise ConfigError(
                f"`max_ongoing_requests`: {self.max_ongoing_requests} is less than `target_ongoing_requests`"
                f" {self.target_ongoing_requests:g}, so replicas would never be added"
            )


def app(args: Mapping[str, Any]) -> Any:
    """Build the application, a `ray.serve.Application`. Ray Serve calls this.

    args: fields of `ServeRequest` and `ReplicaRequest`, as texts or as YAML has them; what is left out is taken from
    the environment, as SPADE_SERVE_ARTIFACTS. Paths of artifacts become absolute here and are read by the replicas.
    Raises ConfigError, and NotFoundError where no artifact is named and there is none in ./runs.
    """
    from ray import serve

    asked, replicas = read_arguments(args, os.environ)
    expected = dict(_places(asked.artifacts))
    asked = replace(asked, artifacts=tuple(f"{name}={path}" for name, path in expected.items()))
    digests = {name: sha256_of(path / MANIFEST) for name, path in expected.items() if (path / MANIFEST).is_file()}

    def replica() -> FastAPI:
        return replica_app(asked, digests)

    deployment = serve.deployment(
        serve.ingress(replica)(),
        name="spade",
        max_ongoing_requests=replicas.max_ongoing_requests,
        max_queued_requests=asked.queue,
        graceful_shutdown_timeout_s=DRAIN_S + 5,
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_ongoing_requests,
            "upscale_delay_s": replicas.upscale_delay_s,
            "downscale_delay_s": replicas.downscale_delay_s,
        },
    )
    return deployment.bind()


def replica_app(asked: ServeRequest, digests: Mapping[str, str]) -> FastAPI:
    """The app of one replica. digests: the SHA-256 of each model's manifest, where it is known.

    Raises ArtifactError where an artifact on this node is another one, and what `models.open_models` raises.
    """
    start_log(as_json=asked.json_logs)
    token = "" if asked.token_file is None else read_token(asked.token_file)
    models = open_models(asked, Path("runs"))
    for name, digest in digests.items():
        refuse_another(name, models[name].artifact.path, models[name].digest, digest)
    return make_app(models, asked, token)


def refuse_another(name: str, path: Path, found: str, expected: str) -> None:
    """Raise ArtifactError where a node has another artifact than the application was built with."""
    if found != expected:
        raise ArtifactError(
            f"{path}: the artifact {name} on this node has the SHA-256 {found[:12]}, but the application was built"
            f" with {expected[:12]}: replicas would answer with different models",
            hint="copy the same artifact to every node, or name one on a shared file system",
        )


def read_arguments(args: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[ServeRequest, ReplicaRequest]:
    """The settings of the arguments, then of the environment. Raises ConfigError for unknown names and wrong values."""
    known = {entry.name for kind in (ServeRequest, ReplicaRequest) for entry in fields(kind)} - set(RAYS_OWN)
    given = {
        name: environment[ENVIRONMENT + name.upper()] for name in known if environment.get(ENVIRONMENT + name.upper())
    }
    for name in args:
        if name in RAYS_OWN:
            raise ConfigError(
                f"`{name}` is a setting of Ray here",
                hint="`serve start` takes the address, and `max_replicas` is the number of processes",
            )
        if name not in known:
            raise ConfigError(
                f"{quoted(str(name))} is not a setting", hint=f"the settings are {', '.join(sorted(known))}"
            )
    given.update(args)
    replicas = _request(ReplicaRequest, given)
    asked = _request(ServeRequest, given)
    if asked.threads is None and replicas.num_cpus >= 1 and not replicas.num_gpus:
        asked = replace(asked, threads=int(replicas.num_cpus))
    return asked, replicas


def _request(kind: type[Request], given: Mapping[str, Any]) -> Request:
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], given[name], f"`{name}`") for name in hints if name in given})


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value as a field wants it; a text stands for what YAML makes of it, unless the field may be a text."""
    if get_origin(hint) is tuple:
        return tuple(str(one) for one in value) if isinstance(value, (list, tuple)) else (str(value),)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if str in kinds or Path in kinds:
        return parse(Path | None if Path in kinds else str | None, None if value is None else str(value), where)
    return parse(hint, yaml.safe_load(value) if isinstance(value, str) else value, where)


def _places(texts: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(name, absolute folder) of each artifact. What is not on this node may be on those of the replicas."""
    found: list[tuple[str, Path]] = []
    for text in texts or ("",):
        name, path = name_and_path(text)
        if not path or Path(path).exists():
            found += [(one, place.absolute()) for one, place in named_paths((text,) if text else (), Path("runs"))]
        elif Path(path).is_absolute():
            found.append((name or usual_name(Path(path)), Path(path)))
        else:
            raise ConfigError(f"`artifacts`: {path} is not in {Path.cwd()}", hint="give its absolute path on the nodes")
    twice = next((name for name, _ in found if [other for other, _ in found].count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"`artifacts`: two artifacts have the name {twice}", hint=f"give one of them another name: {twice}-2=PATH"
        )
    return found
