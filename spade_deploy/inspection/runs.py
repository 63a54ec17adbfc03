"""Describe a run, or a checkpoint in it, from its files alone."""

from __future__ import annotations

from pathlib import Path

from spade_deploy.artifact import MANIFEST, Artifact
from spade_deploy.errors import CheckpointError, SpadeError
from spade_deploy.files.reading import sha256_of
from spade_deploy.inspection.description import (
    Description,
    Table,
    millions,
    shortened,
    size_text,
    spec_rows,
    when,
)
from spade_deploy.runs.folders import damaged_checkpoints, is_resumable, run_checkpoints
from spade_deploy.runs.layout import ARTIFACT, CHECKPOINT_JSON, GENERATOR_FILE
from spade_deploy.runs.records import CheckpointInfo, read_checkpoint_info
from spade_deploy.runs.safetensors_header import TensorCount, read_tensor_count


def describe_checkpoint(checkpoint: Path) -> Description:
    """Describe a checkpoint: spec, weights, training settings. Raises CheckpointError if its weights do not fit it."""
    info = read_checkpoint_info(checkpoint)
    count = read_tensor_count(checkpoint / GENERATOR_FILE)
    _check_weights(checkpoint / GENERATOR_FILE, info, count)
    train = info.train or {}
    rows: list[tuple[str, str]] = [
        ("path", str(checkpoint)),
        ("made", when(info.created_unix_ns)),
        ("from", f"{info.source} (import)" if info.origin == "import" else f"training, step {info.step}"),
        *([("teacher", f"{info.teacher[0]}, weights {info.teacher[1][:16]}")] if info.teacher is not None else []),
        *spec_rows(info.generator, millions(count.parameters)),
        ("tensors", f"{count.tensors}, {', '.join(count.dtypes)}"),
        ("weights", f"sha256 {info.generator_sha256[:16]}, as they were written"),
        ("resumable", "yes" if is_resumable(checkpoint) else "no: weights alone"),
    ]
    rows += [("guessed", guess) for guess in info.guesses or ()]
    if info.versions:
        rows.append(("made with", ", ".join(f"{name} {number}" for name, number in info.versions.items())))
    tables = [_files_table(checkpoint)]
    if train:
        settings = tuple((name, shortened(value)) for name, value in train.items())
        tables.append(Table("Training settings", ("setting", "value"), settings))
    return Description("Checkpoint", tuple(rows), tuple(tables))


def _check_weights(path: Path, info: CheckpointInfo, count: TensorCount) -> None:
    digest = sha256_of(path)
    hint = "the folder was damaged or copied in part; use another checkpoint"
    if digest != info.generator_sha256:
        found = f"its SHA-256 begins {digest[:12]}, {CHECKPOINT_JSON} says {info.generator_sha256[:12]}"
        raise CheckpointError(f"{path}: {found}", hint=hint)
    if info.parameters is not None and count.parameters != info.parameters:
        found = f"{millions(count.parameters)} parameters, {CHECKPOINT_JSON} says {millions(info.parameters)}"
        raise CheckpointError(f"{path}: holds {found}", hint=hint)


def _parameters(checkpoint: Path, info: CheckpointInfo) -> str:
    """How many parameters a checkpoint has: as it says itself, or for an older one, as its file of weights has."""
    if info.parameters is not None:
        return millions(info.parameters)
    try:
        return millions(read_tensor_count(checkpoint / GENERATOR_FILE).parameters)
    except CheckpointError as error:
        return f"not known: {error.message}"


def _files_table(folder: Path) -> Table:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return Table("Files", ("file", "size"), tuple((path.name, size_text(path.stat().st_size)) for path in files))


def describe_run(run: Path) -> Description:
    """Describe a run: its checkpoints and its artifact. A damaged one is marked as damaged among the others."""
    checkpoints = run_checkpoints(run)
    rows: list[tuple[str, str]] = [("path", str(run)), ("checkpoints", str(len(checkpoints)))]
    artifact = run / ARTIFACT
    if not (artifact / MANIFEST).is_file():
        rows.append(("artifact", "none yet: `spade export` makes it"))
    else:
        try:
            precisions = ", ".join(Artifact.open(artifact).manifest.precisions)
            rows.append(("artifact", f"{artifact} ({precisions})"))
        except SpadeError as error:
            rows.append(("artifact", f"damaged: {error}"))
    entries, newest = [], None
    for checkpoint in checkpoints:
        try:
            info = read_checkpoint_info(checkpoint)
        except CheckpointError as error:  # the table marks it as damaged
            entries.append((checkpoint.name, "?", f"damaged: {error}", "?", ""))
        else:
            newest = (checkpoint, info)
            entries.append((checkpoint.name, str(info.step), info.origin, when(info.created_unix_ns), ""))
    entries += [(folder.name, "?", f"damaged: {why}", "?", "") for folder, why in damaged_checkpoints(run)]
    if newest is not None:
        entries = [(*entry[:-1], "newest" if entry[0] == newest[0].name else "") for entry in entries]
        rows += [("newest", str(newest[0])), *spec_rows(newest[1].generator, _parameters(*newest))]
    table = Table("Checkpoints", ("name", "step", "origin", "made", ""), tuple(entries))
    return Description("Run", tuple(rows), (table,) if entries else ())
