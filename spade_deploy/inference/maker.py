"""What made the images of a folder: a record in it, so that the images of two makers never mix.

`spade infer` goes on in a folder where it stopped: images that are there are kept. They must be of the same maker: the
same weights, graph, precision, size and style. The record stands in `RECORD`, in the folder of the images.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from spade_deploy.artifact import BANK, Artifact
from spade_deploy.engines.base import Runtime
from spade_deploy.errors import ConfigError, SpadeError, quoted, reason_of
from spade_deploy.fields import digest_of, from_json, to_json
from spade_deploy.files.reading import sha256_of
from spade_deploy.images.image_file import Size
from spade_deploy.inference.places.store import FolderStore, Store
from spade_deploy.inference.request import InferRequest
from spade_deploy.spec import Naming, Precision

RECORD = ".infer.json"
"""The name of the record."""
FORMAT = 1
"""The version of its format."""
MOST_BYTES = 1 << 20

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maker:
    """Everything that decides the pixels besides the label map. A text that is empty is not known yet."""

    artifact_sha256: str
    """The digest of the artifact's graphs, of its style encoder and of its memory bank."""
    graph: str
    """The graph that was asked for: auto, dense or lookup."""
    precision: str
    """The precision that ran, such as fp32."""
    engine: str
    """The engine, where that changes pixels: 'any on a CPU' for fp32 on a CPU, where all are equal but for rounding."""
    resize: str
    """Height and width that label maps are resized to, as 256x512; never if each keeps its own."""
    style: str
    """mean, seed N, photo SHA-256 (also of instance features), or none where there is neither."""
    instances: str
    """given, left empty, or none for a model without an edge channel."""


NAMES = {
    "artifact_sha256": "artifact",
    "graph": "`graph`",
    "precision": "`precision`",
    "engine": "engine",
    "resize": "size",
    "style": "style",
    "instances": "instance maps",
}
"""How a message names each fact."""


@dataclass(frozen=True)
class Record:
    """What the file in the folder says."""

    maker: Maker
    """What made the images."""
    artifact: str
    """The artifact's path, for people."""
    labels: tuple[str, ...] = ()
    """The folders of label maps that the images were made of."""
    redo_before_ns: int | None = None
    """Images that are older are another maker's, and are being made again; None where there are none."""
    naming: Naming = Naming.STEM
    """How the images of files are named: STEM, as always before this was recorded, or PATH."""
    format_version: int = FORMAT
    """The version of this format."""


def planned_maker(artifact: Artifact, request: InferRequest, size: Size | None) -> Maker:
    """The maker as far as the request tells it; `ran_by` adds what is known once a model is loaded."""
    spec = artifact.manifest.generator
    named = str(request.precision) if request.precision in tuple(Precision) else ""
    style = "none" if spec.z_dim is None else "mean" if request.seed is None else f"seed {request.seed}"
    if spec.noise_channels and request.seed is None:
        style = "seed 0"  # what `default_style` draws
    if request.style_image is not None and (spec.z_dim is not None or spec.has_features):
        style = f"photo {sha256_of(request.style_image)}"
    return Maker(
        artifact_sha256=artifact_digest(artifact),
        graph=str(request.graph),
        precision=named,
        engine="",
        resize="never" if size is None else f"{size[0]}x{size[1]}",
        style=style,
        instances="none" if not spec.labels.has_edges else "left empty" if request.no_instances else "given",
    )


def artifact_digest(artifact: Artifact) -> str:
    """The digest of an artifact's graphs, style encoder and memory bank, by the manifest."""
    manifest = artifact.manifest
    files = [graph.file for graph in manifest.graphs] + ([manifest.encoder.file] if manifest.encoder else [])
    files += [BANK] if manifest.generator.has_bank else []
    return digest_of({name: manifest.files[name].sha256 for name in files})


def ran_by(maker: Maker, runtime: Runtime) -> Maker:
    """The maker with the precision and the engine that really run."""
    name = runtime.name.partition(",")[0]
    on_cpu = not re.search(r"CUDA|TensorRT|GPU", name, re.IGNORECASE)
    engine = "any on a CPU" if on_cpu and runtime.precision is Precision.FP32 else re.sub(r" \d[\w.+-]*", "", name)
    return replace(maker, precision=str(runtime.precision), engine=engine)


def read_record(place: Store | Path) -> Record | None:
    """The record of a place; None if there is none. Raises ConfigError if it cannot be read, PlaceError."""
    store = FolderStore(place) if isinstance(place, Path) else place
    try:
        value = json.loads(store.read(RECORD, MOST_BYTES))
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT:
            raise ConfigError(f"format_version is {quoted(version)}, not {FORMAT}")
        return from_json(Record, value, ignore_unknown=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        reason = error.message if isinstance(error, ConfigError) else reason_of(error)
        raise ConfigError(
            f"{store.name}/{RECORD}, which records what made the images there, cannot be read: {reason}",
            hint="choose another folder; or remove the folder, if its images are not needed",
        ) from error


def write_record(store: Store, record: Record) -> int:
    """Write the record of a place; returns its time there, in nanoseconds. Raises SpadeError."""
    content = json.dumps(to_json(record), indent=2, allow_nan=False) + "\n"
    try:
        return store.write(RECORD, content.encode(errors="backslashreplace"))
    except OSError as error:
        raise SpadeError(
            f"{store.name}/{RECORD} cannot be written: {reason_of(error)}", hint="choose another folder"
        ) from error


def differences(old: Maker, new: Maker) -> list[str]:
    """What differs, in words; what one of them does not know does not count."""
    found = []
    for field in fields(Maker):
        before, now = getattr(old, field.name), getattr(new, field.name)
        if before and now and before != now:
            short = [text[:12] if field.name == "artifact_sha256" else text for text in (before, now)]
            found.append(f"{NAMES[field.name]} {short[0]}, not {short[1]}")
    return found


def require_same(store: Store, record: Record, maker: Maker) -> None:
    """Raise ConfigError, which says what differs, if the place's images are another maker's."""
    found = differences(record.maker, maker)
    if found:
        raise ConfigError(
            f"`out`: the images in {store.name} were made in another way, with {record.artifact}: {'; '.join(found)}",
            hint="`overwrite` makes them again; or choose another folder",
        )


def require_known(store: Store, kept: int) -> None:
    """Raise ConfigError if images would be kept in a place without a record."""
    if kept:
        raise ConfigError(
            f"`out`: {store.name} holds {kept} of these images already, and no record of what made them ({RECORD})",
            hint="`overwrite` makes them again; or choose another folder",
        )


def naming_of(store: Store, record: Record | None, asked: Naming) -> Naming:
    """How files are named: as the place's record says. Raises ConfigError if something else is asked for."""
    if record is None:
        return asked
    if asked not in (Naming.AUTO, record.naming):
        raise ConfigError(
            f"`names`: the images in {store.name} are named by {record.naming}, not by {asked}",
            hint="leave it out, or choose another folder",
        )
    return record.naming


def require_only(store: Store, results: Iterable[str], *, in_folders: bool) -> None:
    """Raise ConfigError if a place whose maker changes holds other images than those that are made again.

    in_folders: whether images in its folders count.
    """
    others = sorted(set(store.images(in_folders=in_folders)) - set(results))
    if others:
        raise ConfigError(
            f"`out`: {store.name} holds {len(others)} images that were made in another way, and that this run does"
            " not replace, such as"
            f" {quoted(others[0])}",
            hint="choose another folder, or move them away: all images of a folder are made in the same way",
        )


def note_labels(store: Store, record: Record, labels: str, kept: int) -> None:
    """Warn where images are kept that were made of the label maps of another source."""
    if kept and record.labels and labels not in record.labels:
        _LOG.warning(
            "%s: the %d images that were there already were made from label maps in %s; `overwrite` makes them again",
            store.name,
            kept,
            ", ".join(record.labels[:3]),
        )
