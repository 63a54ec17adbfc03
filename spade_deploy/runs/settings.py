"""The settings of a run as one flat table, to compare runs and to find those that differ only in their random seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from spade_deploy.runs.records import CheckpointInfo
from spade_deploy.spec import GeneratorSpec

SEED = "train.seed"
INCIDENTAL = frozenset(
    f"train.{name}"
    for name in (
        "workers",
        "save_every",
        "keep_checkpoints",
        "sample_every",
        "log_every",
        "device",
        "channels_last",
        "compile",
        "deterministic",
        "eval_every",
        "eval_samples",
        "extractor",
        "segmenter",
        "best_by",
        "tensorboard",
    )
)
"""Settings that decide what a run writes, or how fast it is, and not what it learns."""

MOST_PARTS = 8
"""A list of more parts, such as the names of all classes, is told by its length."""

Settings = dict[str, Any]
"""Values by dotted names, such as 'train.batch_size'."""


def settings_of(info: CheckpointInfo) -> Settings:
    """The settings of a checkpoint's run: those of the generator, and of training and data where it was trained."""
    parts = {"train": info.train, "data": info.data}
    trained = flat({name: part for name, part in parts.items() if part is not None})
    return {**generator_settings(info.generator), **trained}


def generator_settings(spec: GeneratorSpec) -> Settings:
    """The settings of a generator; its JSON leaves out the architecture where that is SPADE."""
    return flat({"generator": {"architecture": str(spec.architecture), **spec.to_json()}})


def flat(value: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested objects as one table of dotted names."""
    found: Settings = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            found.update(flat(entry, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = entry
    return found


def seed_of(settings: Mapping[str, Any]) -> int | None:
    """The random seed of a run; None where it was not trained here."""
    seed = settings.get(SEED)
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def key_of(settings: Mapping[str, Any], step: int | None = None) -> str:
    """A text that two runs share if they differ only in their random seed, and by what changes nothing learned."""
    told = {name: value for name, value in settings.items() if name != SEED and name not in INCIDENTAL}
    return json.dumps([step, told], sort_keys=True, default=str)


def differing(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the settings that are not the same in all tables, in the order in which they occur."""
    names = dict.fromkeys(name for table in tables for name in table)
    return [name for name in names if any(table.get(name) != tables[0].get(name) for table in tables[1:])]


def as_text(value: Any) -> str:
    """A setting's value for people: '256 x 512', 'on', or a dash where it has none."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple) and len(value) > MOST_PARTS:
        return f"{len(value)} values"
    if isinstance(value, list | tuple):
        joint = " x " if all(isinstance(part, int) for part in value) and len(value) == 2 else ", "
        return joint.join(as_text(part) for part in value) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
