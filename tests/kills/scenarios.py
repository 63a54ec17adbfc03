"""What is killed: a command, what it begins with, and what must hold after a kill and at the end."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spade_deploy.artifact import Artifact, list_engines, read_engine
from spade_deploy.errors import SpadeError
from spade_deploy.runs import read_checkpoint_info
from spade_deploy.runs.checkpoint import load_generator, load_training_state

ROOT = Path(__file__).resolve().parents[2]
NETWORK = ("--size", "64x64", "--base-channels", "2", "--generator", "crn")
DATA = ("--labels", "data/labels", "--images", "data/images", "--num-labels", "5")
TRAINING = (
    *("train", *DATA, *NETWORK, "--batch-size", "1", "--workers", "0", "--device", "cpu"),
    *("--discriminator-channels", "4", "--discriminator-layers", "2", "--discriminator-scales", "1"),
    *("--name", "job", "--resume"),
)
CLOCKS = ("time", "seconds", "per_second")
"""Parts of the names of columns that say how long something took, which no two runs share."""


@dataclass(frozen=True)
class Ended:
    """How a process ended. changes: of the file system, None after a kill."""

    code: int
    changes: int | None
    seconds: float
    said: str


def run_spade(command: tuple[str, ...], cwd: Path, *, kill_at: int = 0, kill_after_s: float | None = None) -> Ended:
    """Run `spade COMMAND` in `cwd`; it may be killed before a change of the file system, or after a time."""
    import time

    count = cwd.parent / f"{cwd.name}.count"
    count.unlink(missing_ok=True)
    temporary = cwd.parent / f"{cwd.name}.tmp"
    temporary.mkdir(exist_ok=True)
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "TMPDIR": str(temporary),
        "HOME": str(home),
        "MPLCONFIGDIR": str(home),
    }
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("child.py")), str(kill_at), str(count), *command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        said, _ = process.communicate(timeout=kill_after_s if kill_after_s is not None else 900)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    changes = int(count.read_text()) if count.is_file() else None
    return Ended(process.returncode, changes, time.monotonic() - started, said)


class Scenario(ABC):
    """One command. `prepare` makes what it begins with in an empty folder; `facts` tells an ended folder by value."""

    name: str
    command: tuple[str, ...]
    is_slow = False

    @abstractmethod
    def prepare(self, folder: Path) -> None: ...

    @abstractmethod
    def problems(self, folder: Path, good: dict[str, Any]) -> Iterator[str]:
        """What good work is missing or damaged after a kill. good: `state` of the folder before the kill."""

    @abstractmethod
    def state(self, folder: Path) -> dict[str, Any]:
        """What good work there is."""

    @abstractmethod
    def facts(self, folder: Path) -> dict[str, Any]:
        """The results, without what two runs never share, such as times."""


class Training(Scenario):
    """A run of six steps with checkpoints, metrics, sample grids and a best choice at every second one."""

    name = "train"
    command = (
        *TRAINING,
        *("--steps", "6", "--save-every", "2", "--sample-every", "2", "--log-every", "1", "--keep-checkpoints", "2"),
        *("--eval-every", "2", "--eval-samples", "2", "--best-by", "l1"),
    )

    def prepare(self, folder: Path) -> None:
        write_data(folder / "data")

    def state(self, folder: Path) -> dict[str, Any]:
        checkpoints = sorted((folder / "runs" / "job" / "checkpoints").glob("step_*"))
        return {"steps": [int(path.name.removeprefix("step_")) for path in checkpoints]}

    def problems(self, folder: Path, good: dict[str, Any]) -> Iterator[str]:
        steps = self.state(folder)["steps"]
        if good["steps"] and (not steps or max(steps) < max(good["steps"])):
            yield f"the checkpoints were of steps {good['steps']}, now of {steps}"
        for path in sorted((folder / "runs" / "job" / "checkpoints").glob("step_*")):
            try:
                load_generator(path)
                load_training_state(path)
            except SpadeError as error:
                yield f"{path.name} cannot be loaded: {error.message}"
        yield from _bad_images(folder / "runs" / "job")
        for name in ("best.json", "config.json", "classes.json"):
            path = folder / "runs" / "job" / name
            if path.is_file():
                try:
                    json.loads(path.read_bytes())
                except ValueError as error:
                    yield f"{name} is half-written: {error}"

    def facts(self, folder: Path) -> dict[str, Any]:
        run = folder / "runs" / "job"
        found: dict[str, Any] = {"files": names(run)}
        for path in sorted(run.rglob("*")):
            name = str(path.relative_to(run))
            if path.suffix in (".safetensors",) or path.parent.name == "samples":
                found[name] = _digest(path)
            elif path.suffix == ".csv":
                found[name] = _rows(path)
            elif path.name == "optimizers.pt":
                found[name] = _plain(torch.load(path, weights_only=True))
            elif path.name in ("best.json", "classes.json"):
                found[name] = json.loads(path.read_bytes())
            elif path.name == "checkpoint.json":
                info = read_checkpoint_info(path.parent)
                found[name] = (info.step, info.generator_sha256, info.train)
        return found


class Export(Scenario):
    """An export over an older artifact: at every moment one of the two is there and opens."""

    name = "export"
    command = ("export", "runs/job")
    is_slow = True

    def prepare(self, folder: Path) -> None:
        write_data(folder / "data")
        _must(run_spade((*TRAINING, "--steps", "1"), folder))
        _must(run_spade(self.command, folder))
        _must(run_spade((*TRAINING, "--steps", "2"), folder))

    def state(self, folder: Path) -> dict[str, Any]:
        return {}

    def problems(self, folder: Path, good: dict[str, Any]) -> Iterator[str]:
        try:
            artifact = Artifact.open(folder / "runs" / "job" / "artifact")
        except SpadeError as error:
            yield f"neither the old nor the new artifact opens: {error.message}"
            return
        if artifact.manifest.source.step not in (1, 2):
            yield f"the artifact is of step {artifact.manifest.source.step}"

    def facts(self, folder: Path) -> dict[str, Any]:
        artifact = Artifact.open(folder / "runs" / "job" / "artifact")
        kept = {name: fact.sha256 for name, fact in artifact.manifest.files.items() if "report" not in name}
        step = artifact.manifest.source.step
        return {
            "files": names(folder / "runs"),
            "step": step,
            "digests": kept,
            "names": sorted(artifact.manifest.files),
        }


class Infer(Scenario):
    """A folder of label maps: every result that is there is whole and right."""

    name = "infer"
    command = ("infer", "data/labels", "out", "--artifact", "artifact", "--threads", "1", "--batch-size", "2")

    def prepare(self, folder: Path) -> None:
        from tests.support.stand_in import PLAIN, stand_in_artifact

        write_data(folder / "data", count=12)
        stand_in_artifact(folder / "artifact", PLAIN)

    def state(self, folder: Path) -> dict[str, Any]:
        return {path.name: _digest(path) for path in (folder / "out").glob("[!.]*.png")}

    def problems(self, folder: Path, good: dict[str, Any]) -> Iterator[str]:
        now = self.state(folder)
        for name, digest in good.items():
            if now.get(name) != digest:
                yield f"{name} was made before and is gone or another one"
        yield from _bad_images(folder / "out")

    def facts(self, folder: Path) -> dict[str, Any]:
        return {"files": names(folder / "out"), **self.state(folder)}


class Build(Scenario):
    """Engines of an artifact, built ahead of time on a CPU: what has a manifest is whole."""

    name = "build"
    command = ("build", "artifact", "--target", "rtx", "--compute-capability", "8.9", "--precision", "fp32")

    def prepare(self, folder: Path) -> None:
        write_data(folder / "data")
        _must(run_spade((*TRAINING, "--steps", "1"), folder))
        _must(run_spade(("export", "runs/job", "--out", "artifact"), folder))
        shutil.rmtree(folder / "runs")

    def state(self, folder: Path) -> dict[str, Any]:
        return {entry.name: entry.sha256 for entry in list_engines(Artifact.open(folder / "artifact"))}

    def problems(self, folder: Path, good: dict[str, Any]) -> Iterator[str]:
        try:
            artifact = Artifact.open(folder / "artifact")
            entries = list_engines(artifact)
            for entry in entries:
                read_engine(artifact, entry)
        except SpadeError as error:
            yield error.message
            return
        gone = set(good) - {entry.name for entry in entries}
        if gone:
            yield f"engines that were built are gone: {gone}"

    def facts(self, folder: Path) -> dict[str, Any]:
        artifact = Artifact.open(folder / "artifact")
        entries = list_engines(artifact)
        for entry in entries:
            read_engine(artifact, entry)
        found = names(folder / "artifact")
        return {"files": found, "engines": sorted(entry.name for entry in entries), "keys": [e.key for e in entries]}


def scenarios() -> list[Scenario]:
    """Those that this machine can run."""
    found: list[Scenario] = [Training(), Infer(), Export()]
    return [*found, Build()] if find_spec("tensorrt_rtx") is not None else found


def write_data(folder: Path, count: int = 4) -> None:
    """A data set of `count` samples, 64 x 64, five classes."""
    rng = np.random.default_rng(0)
    for part in ("labels", "images"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        ids = np.kron(rng.integers(0, 5, (8, 8)), np.ones((8, 8), int)).astype(np.uint8)
        Image.fromarray(ids).save(folder / "labels" / f"{number:02d}.png")
        photo = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(photo).save(folder / "images" / f"{number:02d}.png")


def names(folder: Path) -> list[str]:
    """Every file below a folder, lock files left out."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(".lock"))


def leftovers(folder: Path, temporary: Path) -> list[str]:
    """What a broken run left: hidden names but locks, temporary ones, anything in TMPDIR."""
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if _is_left(path.name)]
    return found + [f"TMPDIR/{path.relative_to(temporary)}" for path in temporary.rglob("*")]


def _is_left(name: str) -> bool:
    return (name.startswith(".") or ".tmp" in name) and not name.endswith(".lock")


def _bad_images(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.suffix in (".png", ".gif") and not path.name.startswith("."):
            try:
                with Image.open(path) as image:
                    image.load()
            except (OSError, SyntaxError) as error:
                yield f"{path.relative_to(folder)} is half-written: {error}"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not any(word in str(key) for word in CLOCKS)} for row in rows]


def _plain(value: Any) -> Any:
    """Tensors as digests, so that values can be compared and shown."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.cpu().contiguous().flatten().numpy().tobytes()).hexdigest()[:16]
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return repr(value)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _must(ended: Ended) -> None:
    if ended.code != 0:
        raise RuntimeError(f"exit code {ended.code}: {ended.said[-2000:]}")
