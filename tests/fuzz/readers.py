"""Which readers there are, how often each is tried, and how a case is set up from the seed and its number."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import artifact_readers, label_readers, run_readers, weight_readers
from .case import FOLDERS, Case, Reader
from .corpus import Corpus
from .run_readers import OUTSIDE
from .watch import Failure, Watch, record_errors

READERS: dict[str, tuple[int, Reader]] = {
    "label-map": (22, label_readers.label_map),
    "label-folder": (4, label_readers.label_folder),
    "instance-map": (5, label_readers.instance_map),
    "photo": (10, label_readers.photo),
    "palette": (5, label_readers.palette),
    "import": (10, weight_readers.imported),
    "checkpoint.json": (6, weight_readers.checkpoint_json),
    "generator.safetensors": (6, weight_readers.generator_file),
    "training-state": (3, weight_readers.training_state),
    "perceptual-file": (2, weight_readers.perceptual_file),
    "manifest.json": (9, artifact_readers.manifest),
    "golden": (4, artifact_readers.golden),
    "graph": (6, artifact_readers.graph),
    "changed-file": (2, artifact_readers.changed_file),
    "engine": (6, artifact_readers.engine),
    "extractor": (4, artifact_readers.extractor),
    "best.json": (3, run_readers.best_json),
    "small-files": (3, run_readers.small_files),
    "odd-node": (5, run_readers.odd_node),
    "odd-name": (4, run_readers.odd_name),
}
"""By name: the share of the cases, in parts, and what a case does."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    index: int
    reader: str
    damages: tuple[str, ...]
    attempts: tuple[str, ...]
    accepted: int
    refused: int
    failures: tuple[Failure, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "failures": [failure.to_json() for failure in self.failures]}


def reader_of(seed: int, index: int, only: Sequence[str] = ()) -> str:
    """The reader that a case tries: one of `only`, if given."""
    names = list(only or READERS)
    return random.Random(f"reader {seed} {index}").choices(names, [READERS[name][0] for name in names])[0]


def make_outside(work: Path) -> None:
    """The tree beside the cases that nothing may be written to."""
    outside = work / OUTSIDE
    outside.mkdir(parents=True, exist_ok=True)
    (outside / "secret.txt").write_text("secret\n")
    (outside / "folder").mkdir(exist_ok=True)
    (outside / "folder" / "kept.json").write_text("{}")


def run_case(seed: int, index: int, work: Path, corpus: Corpus, only: Sequence[str] = ()) -> Outcome:
    """Run one case in a new folder of `work`, which stays where something did not hold."""
    name = reader_of(seed, index, only)
    folder = work / f"case-{index}"
    _remove(folder)
    for part in FOLDERS:
        (folder / part).mkdir(parents=True)
    # Libraries keep caches of their own in HOME, which the worker has set.
    watch = Watch(folder, (*(folder / part for part in FOLDERS if part != "in"), Path.home()))
    case = Case(random.Random(f"case {seed} {index}"), folder, corpus, watch)
    record_errors(watch)
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    before = _listing(work / OUTSIDE), _listing(corpus.root)
    os.chdir(folder / "cwd")
    try:
        READERS[name][1](case)
    except Exception as error:
        watch.fail("harness", f"{type(error).__name__}: {str(error)[:80]}", _trace())
    finally:
        os.chdir(work)
    if (_listing(work / OUTSIDE), _listing(corpus.root)) != before:
        watch.fail("write", name, "a file outside of the case's folder was changed")
    outcome = Outcome(
        index,
        name,
        tuple(case.damages),
        tuple(watch.attempts),
        watch.accepted,
        watch.refused,
        tuple(watch.failures),
    )
    if not watch.failures:
        _remove(folder)
    return outcome


def _trace() -> str:
    import traceback

    return traceback.format_exc()


def _listing(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in root.rglob("*"):
        facts = path.lstat()
        found[str(path)] = (facts.st_size if path.is_file() else 0, facts.st_mtime_ns)
    return found


def _remove(folder: Path) -> None:
    if folder.exists():
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder, ignore_errors="pytest" in sys.modules)
