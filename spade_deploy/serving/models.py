"""The artifacts that are served: each has a name, a runtime that is open, and what a client needs to know of it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spade_deploy.artifact import LABEL, MANIFEST, Artifact, joined, one_by_one
from spade_deploy.engines.base import Runtime
from spade_deploy.errors import ConfigError
from spade_deploy.files.reading import sha256_of
from spade_deploy.inference.style import StyleEncoder
from spade_deploy.labels.palettes import effective_palette
from spade_deploy.progress import SILENT, Progress
from spade_deploy.runs.folders import resolve_artifact, usual_name
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.runner import BatchRule
from spade_deploy.spec import GeneratorSpec
from spade_deploy.tuning.open import open_runtime

_LOG = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LEAST_GAIN = 1.05
"""How many times as many images a second a batch has to make before it is used."""


@dataclass(frozen=True)
class ServedModel:
    """One artifact that is served."""

    name: str
    """What requests call it."""
    artifact: Artifact
    """Its files."""
    runtime: Runtime
    """What runs it."""
    rule: BatchRule
    """The batches that were measured to help."""
    encoder: StyleEncoder = field(init=False)
    """Its style encoder, which is opened when the first photo comes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", StyleEncoder(self.artifact))

    @property
    def spec(self) -> GeneratorSpec:
        return self.artifact.manifest.generator

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of its manifest, which holds those of all its files."""
        return sha256_of(self.artifact.path / MANIFEST)

    @cached_property
    def samples(self) -> int:
        """How many label maps the artifact has to start from: its golden inputs."""
        return len(self.artifact.golden().inputs[LABEL])

    @property
    def has_encoder(self) -> bool:
        """Whether it takes the style of a photo."""
        return self.artifact.manifest.encoder is not None

    @cached_property
    def directions(self) -> int:
        """How many main directions its styles have."""
        found = self.artifact.style_directions()
        return 0 if found is None else len(found)

    def facts(self) -> dict[str, Any]:
        """What `GET /v1/models` says of it."""
        facts = model_facts(self.name, self.artifact)
        styles = {**facts["styles"], "directions": self.directions}
        runtime = {
            "name": self.runtime.name,
            "precision": str(self.runtime.precision),
            "largest_batch": self.rule.most,
        }
        return {**facts, "styles": styles, "samples": self.samples, "runtime": runtime}


def model_facts(name: str, artifact: Artifact) -> dict[str, Any]:
    """What a page has to know of a model, whatever runs it."""
    manifest = artifact.manifest
    spec, labels = manifest.generator, manifest.generator.labels
    colors = effective_palette(labels)
    return {
        "name": name,
        "sha256": sha256_of(artifact.path / MANIFEST),
        "architecture": str(spec.architecture),
        "labels": [
            {"id": number, "name": labels.name_of(number), "color": "#{:02x}{:02x}{:02x}".format(*colors[number])}
            for number in range(labels.num_ids)
        ],
        "unknown_id": labels.unknown_id,
        "takes_instances": labels.has_edges,
        "size": {
            "height": spec.height,
            "width": spec.width,
            "is_fixed": not spec.is_dynamic,
            "multiple_of": spec.stride,
        },
        "styles": {"z_dim": spec.z_dim, "from_photo": manifest.encoder is not None},
    }


def open_models(asked: ServeRequest, runs: Path, progress: Progress = SILENT) -> dict[str, ServedModel]:
    """Open every artifact of a request, by its name; each has made an image then, so the first request is fast.

    runs: where the newest artifact is looked for if none is named. Raises ConfigError for a name that comes twice, and
    what `tuning.open.open_runtime` raises.
    """
    places: dict[str, Path] = {}
    for name, path in named_paths(asked.artifacts, runs):  # all names, before the first model is opened and measured
        if name in places:
            raise ConfigError(
                f"`artifacts`: two artifacts have the name {name}: {places[name]} and {path}",
                hint=f"give one of them another name: {name}-2={path}",
            )
        places[name] = path
    found: dict[str, ServedModel] = {}
    for name, path in places.items():
        artifact = Artifact.open(path)
        progress.step(f"opening {name}")
        runtime = open_runtime(
            artifact,
            asked.precision,
            asked.backend,
            asked.threads,
            asked.graph,
            min_psnr_db=asked.min_psnr_db,
            progress=progress,
        )
        found[name] = ServedModel(name, artifact, runtime, measured_rule(artifact, runtime, asked))
    return found


def named_paths(texts: Sequence[str], runs: Path) -> list[tuple[str, Path]]:
    """(name, artifact folder) of each text, PATH or NAME=PATH; of the newest artifact where there is none."""
    found = []
    for text in texts or ("",):
        given, path = name_and_path(text)
        artifact = resolve_artifact(Path(path) if path else None, runs)
        found.append((given or usual_name(artifact), artifact))
    return found


def name_and_path(text: str) -> tuple[str, str]:
    """The name, empty where none is given, and the path of a text PATH or NAME=PATH."""
    name, equals, rest = text.partition("=")
    return (name, rest) if equals and _NAME.fullmatch(name) else ("", text)


def measured_rule(artifact: Artifact, runtime: Runtime, asked: ServeRequest) -> BatchRule:
    """Make an image, then batches of the golden inputs, and keep the largest that makes more images a second."""
    case = next(one_by_one(artifact.golden().inputs))
    runtime.run(case)
    best, rate, size = 1, _rate(runtime, case, 1), 2
    while size <= asked.max_batch:
        found = _rate(runtime, case, size)
        if found < rate * LEAST_GAIN:
            break
        best, rate, size = size, found, size * 2
    _LOG.info("%s: batches of up to %d, %.2f images/s", runtime.name, best, rate)
    return BatchRule(best, asked.max_delay_ms / 1000 if best > 1 else 0.0)


def _rate(runtime: Runtime, case: Any, size: int) -> float:
    batch = joined([case] * size)
    runtime.run(batch)
    start = time.perf_counter()
    runtime.run(batch)
    return size / (time.perf_counter() - start)
