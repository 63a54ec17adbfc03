"""The artifact's folder: written once, checked as a whole when it is opened."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact.golden import Golden, read_arrays
from spade_deploy.artifact.manifest import (
    EXPORT_AGAIN,
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    MANIFEST,
    EncoderGraph,
    FileFact,
    Graph,
    Manifest,
    Source,
    parse_manifest,
    read_json,
    read_manifest,
    require_safe_name,
)
from spade_deploy.artifact.style_directions import STYLE_DIRECTIONS, parse_style_directions
from spade_deploy.artifact.tensors import golden_tensors, input_tensors, mismatch
from spade_deploy.errors import ArtifactError, ConfigError, quoted
from spade_deploy.files.atomic import write_json
from spade_deploy.files.onnx_data import external_files
from spade_deploy.files.reading import sha256_of
from spade_deploy.files.temporary import bring_back
from spade_deploy.spec import EXPORTED, GeneratorSpec, GraphKind, Precision, RoundingError
from spade_deploy.version import __version__

ENCODER_ONNX = "encoder.onnx"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
MODEL_CARD = "README.md"


Identity = tuple[int, ...]
"""Which file a path leads to and when that file last changed. A file is hashed again only when this has changed."""


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files were all checked when it was opened. `vouched` checks a file again when it is used."""

    path: Path
    """The folder."""

    manifest: Manifest
    """What its manifest says."""

    hashed: dict[str, Identity] = field(default_factory=dict, compare=False, repr=False)
    """The files whose bytes were compared with the manifest, each with its identity at that time."""

    @classmethod
    def open(cls, path: Path | str) -> Artifact:
        """Read the manifest and compare every file with it.

        Raises ArtifactError where anything is missing, damaged or out of place, NewerArtifactError for a format
        that this version does not read.
        """
        path = Path(path)
        bring_back(path)
        try:
            manifest = read_manifest(path)
            while True:
                artifact = cls(path, manifest)
                try:
                    for name in manifest.files:
                        artifact._vouch(name)
                    return artifact
                except (ArtifactError, OSError):
                    # An export may have put another artifact in this place meanwhile: that one is opened, then.
                    before, manifest = manifest, read_manifest(path)
                    if manifest == before:
                        raise
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error

    def graph(self, precision: Precision | None = None, kind: GraphKind = GraphKind.DENSE) -> Graph:
        """The graph of that precision. For None it is the manifest's first graph, which is fp32 if there is one."""
        of_kind = [graph for graph in self.manifest.graphs if graph.kind is kind]
        for graph in sorted(of_kind, key=lambda graph: graph.precision != Precision.FP32):
            if precision in (None, graph.precision):
                return graph
        spec = self.manifest.generator
        if kind not in spec.graph_kinds:
            raise ArtifactError(
                f"{self.path}: a {spec.architecture} generator has no {kind} graph", hint="leave `graph` out"
            )
        there = ", ".join(f"{graph.precision} {graph.kind}" for graph in self.manifest.graphs)
        if precision is not None and precision not in EXPORTED:
            raise ConfigError(f"`precision`: no graph is exported in {precision}; allowed are {', '.join(EXPORTED)}")
        flag = f" --{precision}" if precision not in (None, Precision.FP32) else ""
        raise ArtifactError(
            f"{self.path}: there is no {precision or 'default'} {kind} graph; there is: {there}",
            hint=f"`spade export{flag}` makes one, or leave `precision` out",
        )

    def path_of(self, file: str) -> Path:
        """Where a file that the manifest names lies."""
        if file not in self.manifest.files:
            raise ArtifactError(f"{self.path}: the manifest names no file {file!r}")
        return self.path / file

    @contextmanager
    def vouched(self, file: str) -> Iterator[Path]:
        """The path of a file, to be opened inside the block: its bytes are those that the manifest vouches for.

        For a graph, the files beside it that hold its weights are checked as well. Raises ArtifactError if a file has
        other bytes at the beginning of the block or at its end: a model may have been exported into this folder again
        meanwhile, and a reader could get half of the old model and half of the new one.
        """
        path = self.path_of(file)
        names = [file, *self._external(file)]
        self._vouch_again(names)
        try:
            yield path
        except Exception:
            self._vouch_again(names)
            raise
        self._vouch_again(names)

    def _external(self, file: str) -> list[str]:
        """The files that a graph reads beside itself, by their names in the manifest."""
        encoder = self.manifest.encoder
        if file not in [graph.file for graph in self.manifest.graphs] + ([] if encoder is None else [encoder.file]):
            return []
        try:
            names = external_files(self.path / file)
        except ValueError as error:
            raise ArtifactError(f"{self.path / file} is not opened: {error}", hint=EXPORT_AGAIN) from error
        except OSError as error:
            raise ArtifactError(f"{self.path / file} cannot be read: {error.strerror}", hint=EXPORT_AGAIN) from error
        found = [(PurePosixPath(file).parent / name).as_posix() for name in names]
        for name in found:
            if name not in self.manifest.files:
                raise ArtifactError(
                    f"{self.path / file} is not opened: it reads weights from {quoted(name)}, which the manifest does"
                    " not name",
                    hint=EXPORT_AGAIN,
                )
        return found

    def _vouch_again(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._vouch(name)
            except (ArtifactError, OSError) as error:
                raise ArtifactError(
                    f"{self.path / name} is not the file that was opened before: the artifact was exported again, or"
                    " changed, in the meantime",
                    hint="the same command opens the artifact as it is now",
                ) from error

    def _vouch(self, name: str) -> None:
        """Compare a file with the manifest, unless it is the very one that was compared before."""
        path = _path_inside(self.path, name)
        identity = _identity(path)
        if self.hashed.get(name) != identity:
            _check_file(path, self.manifest.files[name])
            if _identity(path) != identity:
                raise ArtifactError(f"{path} changed while it was read", hint=EXPORT_AGAIN)
            self.hashed[name] = identity

    def golden(self) -> Golden:
        """The golden tensors, their names, types and shapes checked against the spec."""
        spec = self.manifest.generator
        with self.vouched(GOLDEN_INPUTS) as path:
            inputs = read_arrays(path, input_tensors(spec))
        with self.vouched(GOLDEN_OUTPUTS) as path:
            outputs = read_arrays(path, golden_tensors(spec))
        problem = mismatch(input_tensors(spec) + golden_tensors(spec), {**inputs, **outputs})
        if problem:
            raise ArtifactError(f"{self.path}: golden {problem}", hint=EXPORT_AGAIN)
        return Golden(inputs, outputs)

    def style_directions(self) -> NDArray[np.float32] | None:
        """The main directions of the style vector, K x z_dim; None where the export wrote none."""
        if STYLE_DIRECTIONS not in self.manifest.files:
            return None
        with self.vouched(STYLE_DIRECTIONS) as path:
            value = read_json(path, "file of style directions")
        try:
            return parse_style_directions(value, self.manifest.generator.z_dim)
        except ConfigError as error:
            raise ArtifactError(f"{path}: {error.message}", hint=EXPORT_AGAIN) from error

    def report(self) -> dict[str, Any] | None:
        """The validation report of the export; None if there is none."""
        if REPORT_JSON not in self.manifest.files:
            return None
        with self.vouched(REPORT_JSON) as path:
            return read_json(path, "report")


def graph_file(precision: Precision, kind: GraphKind = GraphKind.DENSE) -> str:
    """The file name of a graph: generator.fp32.onnx, generator.lookup.fp32.onnx."""
    return f"generator.{precision}.onnx" if kind is GraphKind.DENSE else f"generator.{kind}.{precision}.onnx"


def write_manifest(
    folder: Path,
    *,
    generator: GeneratorSpec,
    graphs: tuple[Graph, ...],
    source: Source,
    versions: Mapping[str, str],
    rounding: RoundingError,
    encoder: EncoderGraph | None = None,
    created_unix_ns: int | None = None,
) -> Manifest:
    """Hash every file in `folder` and write its manifest; hidden files are no part of an artifact.

    Call it again whenever a file was added. Raises ArtifactError if a graph or the golden tensors are missing.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not any(part.startswith(".") for part in name.split("/")):
            require_safe_name(folder, name)
            files[name] = FileFact(sha256_of(_path_inside(folder, name)), path.stat().st_size)
    manifest = Manifest(
        created_unix_ns=time.time_ns() if created_unix_ns is None else created_unix_ns,
        generator=generator,
        graphs=graphs,
        source=source,
        versions={"spade_deploy": __version__, **versions},
        rounding=rounding,
        files=files,
        encoder=encoder,
    )
    value = manifest.to_json()  # parsed once, so that only a manifest that can be read is written
    manifest = parse_manifest(folder, value)
    write_json(folder / MANIFEST, value)
    return manifest


def rewrite_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write a manifest with the same facts for the files that `folder` holds now, after some were added or changed."""
    return write_manifest(
        folder,
        generator=manifest.generator,
        graphs=manifest.graphs,
        source=manifest.source,
        versions=manifest.versions,
        rounding=manifest.rounding,
        encoder=manifest.encoder,
        created_unix_ns=manifest.created_unix_ns,
    )


def _path_inside(folder: Path, name: str) -> Path:
    """The file itself; a link that leads out of the folder is refused."""
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise ArtifactError(f"{path} is a link that leads out of the artifact", hint="put the file itself there")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ArtifactError(f"{path} is missing", hint=EXPORT_AGAIN) from error
    return path


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _check_file(path: Path, fact: FileFact) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file", hint=EXPORT_AGAIN)
    size = path.stat().st_size
    if size != fact.bytes:
        raise ArtifactError(f"{path} is damaged: {size} bytes, {fact.bytes} were written", hint=EXPORT_AGAIN)
    digest = sha256_of(path)
    if digest != fact.sha256:
        raise ArtifactError(
            f"{path} is damaged: sha256 {digest[:16]}..., {fact.sha256[:16]}... was written", hint=EXPORT_AGAIN
        )
