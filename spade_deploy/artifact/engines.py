"""Engines in an artifact: `engines/NAME.engine`, and `engines/NAME.json` that vouches for it.

An engine is machine code. It is read only after its digest was compared with the one in its manifest, and that manifest
is written last: an engine without one is never run. The artifact's own manifest does not name engines, since they are
made later and on another machine. A digest finds damage; it is no signature, and says nothing of who built an engine.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from spade_deploy.artifact.folder import Artifact
from spade_deploy.artifact.manifest import manifest_digest, read_json
from spade_deploy.errors import ArtifactError, ConfigError, quoted, reason_of
from spade_deploy.fields import Count, Sha256, from_json, matching
from spade_deploy.files.atomic import atomic_file, write_json
from spade_deploy.files.reading import read_regular, sha256_of_bytes

FOLDER = "engines"
TIMING_CACHE = "timing.cache"
FORMAT_VERSION = 1
MAX_ENGINE_BYTES = 8 << 30
MAX_TIMING_CACHE_BYTES = 1 << 30
_NAME = matching(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "a file name of letters, digits, '_', '-' and '.'")


@dataclass(frozen=True)
class EngineEntry:
    """What an engine's manifest says."""

    name: Annotated[str, _NAME]
    """The name of the engine's files without their suffix."""

    key: dict[str, Any]
    """The graph, the TensorRT, the card and the options of its build, as `EngineKey.to_json` writes them."""

    proof: dict[str, Any]
    """Which precision its layers have, as `Proof.to_json` writes it."""

    sha256: Sha256
    """The SHA-256 of the engine."""

    bytes: Count
    """Its size."""

    seconds: float
    """How long it took to build."""


@dataclass(frozen=True)
class _Layer:
    """The types that a layer in the JSON of `Proof.to_json` must have. A field that is missing there has a default."""

    name: str = ""
    kind: str = ""
    types: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Proof:
    """The types that the JSON of `Proof.to_json` must have. A field that is missing there has a default."""

    precision: str = ""
    total: Count = 0
    asked: Count = 0
    reached: Count = 0
    of_engine: bool = False
    layers: tuple[_Layer, ...] = ()


def visible(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with that suffix, sorted.

    Files whose names begin with a dot are left out: they are being written, or their writer was killed.
    """
    return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def engine_name(precision: str, kind: str, digest: str) -> str:
    """The name of an engine's files without their suffix: fp16.lookup.0a1b2c3d4e5f."""
    return f"{precision}.{kind}.{digest[:12]}"


def write_engine(
    artifact: Artifact, name: str, engine: bytes, *, key: dict[str, Any], proof: dict[str, Any], seconds: float
) -> Path:
    """Write an engine, then its manifest; returns the engine's path. An engine of the same name is replaced."""
    folder = artifact.path / FOLDER
    manifest = folder / f"{name}.json"
    manifest.unlink(missing_ok=True)  # between the two writes there is no engine
    with atomic_file(folder / f"{name}.engine") as temporary:
        temporary.write_bytes(engine)
    facts = {"sha256": sha256_of_bytes(engine), "bytes": len(engine), "seconds": seconds}
    value = {"format_version": FORMAT_VERSION, "name": name, **facts, "key": key, "proof": proof}
    value = json.loads(json.dumps(value))  # the digest is of the value as it will be read back
    write_json(manifest, {**value, "manifest_sha256": manifest_digest(value)})
    return folder / f"{name}.engine"


def list_engines(artifact: Artifact) -> tuple[EngineEntry, ...]:
    """The engines that have a manifest. Raises ArtifactError for a manifest that cannot be read."""
    return tuple(_read_entry(path) for path in visible(artifact.path / FOLDER, ".json"))


def whole_engines(artifact: Artifact) -> tuple[EngineEntry, ...]:
    """The engines whose files are as they were written. Damaged engines are left out; they can be built again."""
    found = []
    for path in visible(artifact.path / FOLDER, ".json"):
        with suppress(ArtifactError):
            entry = _read_entry(path)
            read_engine(artifact, entry)
            found.append(entry)
    return tuple(found)


def read_engine(artifact: Artifact, entry: EngineEntry) -> bytes:
    """The engine's bytes. Raises ArtifactError unless they are those that its manifest vouches for."""
    path = engine_path(artifact, entry)
    again = "`spade build` makes it again; do not run an engine of unknown origin: it is machine code"
    try:
        size = path.stat().st_size
        if size != entry.bytes or size > MAX_ENGINE_BYTES:
            raise ArtifactError(f"{path}: {size} bytes, its manifest says {entry.bytes}", hint=again)
        content = read_regular(path, MAX_ENGINE_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {reason_of(error)}", hint=again) from error
    if sha256_of_bytes(content) != entry.sha256:
        raise ArtifactError(f"{path}: its sha256 is not the one in its manifest", hint=again)
    return content


def engine_path(artifact: Artifact, entry: EngineEntry) -> Path:
    """Where an engine lies."""
    return artifact.path / FOLDER / f"{entry.name}.engine"


def read_timing_cache(path: Path) -> bytes | None:
    """The timing cache that an earlier build kept, or None if there is none. Raises ArtifactError."""
    try:
        return read_regular(path, MAX_TIMING_CACHE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(
            f"`timing_cache`: {path} cannot be read ({reason_of(error)})",
            hint="delete it, or name another file: it only makes builds faster",
        ) from error


def write_timing_cache(path: Path, content: bytes) -> None:
    """Replace the timing cache."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def timing_cache_path(artifact: Artifact, flavour: str) -> Path:
    """Where the timing cache of an artifact's builds with one TensorRT flavour lies."""
    return artifact.path / FOLDER / f"{flavour}-{TIMING_CACHE}"


def _read_entry(path: Path) -> EngineEntry:
    value = read_json(path, "engine manifest")
    if value.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format {quoted(value.get('format_version'))}; this version reads {FORMAT_VERSION}",
            hint="`spade build` makes the engine again",
        )
    try:
        entry = from_json(EngineEntry, value, ignore_unknown=True)
        from_json(_Proof, entry.proof, "proof", ignore_unknown=True)
    except ConfigError as error:
        raise ArtifactError(
            f"{path} is no engine manifest: {reason_of(error)}", hint="`spade build` makes the engine again"
        ) from error
    if entry.name != path.stem:
        raise ArtifactError(
            f"{path} is the engine manifest of {quoted(entry.name)}", hint="`spade build` makes the engine again"
        )
    if value.get("manifest_sha256") != manifest_digest(value):
        raise ArtifactError(
            f"{path}: the engine manifest is damaged: its content is not what was written, the digest differs",
            hint=f"`spade build` makes the engine again; if it belongs to another card or version, delete {path}",
        )
    return entry
