"""The layout of run folders: where training, importing and exporting put their results.

runs/<name>/config.json                        the settings of the run
           /losses.csv, losses.png, samples/, timeline.png, samples.gif, tensorboard/
           /metrics.csv, metrics.png           if metrics are measured during training
           /data.json                          which samples it learned from, and which it measures on
           /best.json                          which checkpoint was the best by one of the metrics
           /classes.json, skipped.txt          how often each class occurs, and which samples could not be read
           /checkpoints/step_00000400/         checkpoint.json, generator.safetensors, bank.npz (of SIMS)
                                               and, to resume: discriminator.safetensors, optimizers.pt
           /artifact/                          manifest.json and what it lists
"""

from __future__ import annotations

import re
from pathlib import Path

from spade_deploy.errors import ConfigError, quoted

CHECKPOINTS = "checkpoints"
CHECKPOINT_JSON = "checkpoint.json"
GENERATOR_FILE = "generator.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"
OPTIMIZERS_FILE = "optimizers.pt"
ENCODER_FILE = "encoder.safetensors"
BANK_FILE = "bank.npz"
BEST_JSON = "best.json"
ARTIFACT = "artifact"
MANIFEST_JSON = "manifest.json"

SHIPPED = ("earth",)
"""The names of the models that come with the package."""

_NAME = re.compile(r"\w[\w.+-]{0,99}")


def new_run(runs_dir: Path, name: str | None = None, prefix: str = "run") -> Path:
    """Make an empty run folder: `name`, or the next free of prefix-001, prefix-002, ... Never one that exists.

    Raises ConfigError for a name that is taken or no plain folder name.
    """
    check_name(name if name is not None else prefix)
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        if name is not None:
            (runs_dir / name).mkdir()
            return runs_dir / name
        while True:
            run = runs_dir / f"{prefix}-{_next_number(runs_dir, prefix):03d}"
            try:
                run.mkdir()
            except FileExistsError:  # another process took it just now
                continue
            return run
    except FileExistsError as error:
        raise ConfigError(
            f"`name`: {runs_dir / str(name)} exists already",
            hint=f"choose another name, or continue it with `spade train --resume {runs_dir / str(name)}`",
        ) from error
    except OSError as error:
        raise ConfigError(f"{runs_dir}: a run folder cannot be made there ({error.strerror})") from error


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is a plain folder name: no separators, no leading dot, at most 100 letters."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"`name`: {quoted(name)} is not a valid name: letters, digits, '_', '-', '+' and '.' are allowed, but"
            " no sign or dot first",
            hint="give a plain name such as run-1: it becomes a folder among the runs",
        )


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return run / CHECKPOINTS / f"step_{step:08d}"


def _next_number(runs_dir: Path, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"-(\d+)")
    numbers = [int(match[1]) for child in runs_dir.iterdir() if (match := pattern.fullmatch(child.name))]
    return max(numbers, default=0) + 1
