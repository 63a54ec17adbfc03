"""What every candidate is held to: the untouched module's own images, and what rounding alone costs it.

The images are of float32 on the CPU, where no TensorFloat-32 can be. The rounding error is against float64, which the
card computes: a CPU needs over a minute for it. Both are kept in the folder that all steps share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu.setting import Setting
from spade_deploy.artifact import IMAGE, LABEL, LOGITS, PIXELS, Arrays, one_by_one
from spade_deploy.export.pipeline import rounding_error, run_reference
from spade_deploy.fields import digest_of
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import sha256_of_bytes
from spade_deploy.metrics.judge import Judge
from spade_deploy.spec import LabelSpec, Precision, RoundingError

FILE = "reference.npz"
ROUNDING, KEY = "rounding", "key"
Run = Callable[[Arrays], Arrays]
"""The dense graph's inputs of one map -> `image` and `pixels`."""


@dataclass(frozen=True)
class Reference:
    """The golden maps, what the untouched module makes of them, and what rounding alone costs it."""

    labels: LabelSpec
    inputs: Arrays
    outputs: Arrays
    rounding: RoundingError

    @classmethod
    def of(cls, setting: Setting) -> Reference:
        """The reference of a setting's generator and golden maps; computed once, then read from `setting.work`."""
        golden, path = setting.golden, setting.work / FILE
        maps = {name: sha256_of_bytes(array.tobytes()) for name, array in golden.items()}
        key = digest_of([setting.generator_sha256, maps])
        found = _read(path, key)
        if found is None:
            outputs = run_reference(setting.generator, golden)
            found = outputs, rounding_error(setting.generator, golden, outputs[LOGITS], setting.device)
            _write(path, key, *found)
        return cls(setting.spec.labels, golden, *found)

    def judge(self, run: Run, precision: Precision) -> tuple[dict[str, float | None], tuple[str, ...]]:
        """(Errors of the image in [-1, 1], what is wrong with them by the precision's stated tolerance)."""
        judge = Judge(self.labels, precision, self.rounding)
        for inputs, expected in zip(one_by_one(self.inputs), one_by_one(self.outputs), strict=True):
            judge.add(inputs[LABEL], expected, run(inputs))
        verdict = judge.verdict()
        if not verdict.diff.finite:
            return dict.fromkeys(("max_abs", "mean_abs", "psnr_db")), verdict.failures
        figures = {name: getattr(verdict.diff, name) for name in ("max_abs", "mean_abs", "psnr_db")}
        return figures, verdict.failures


def _read(path: Path, key: str) -> tuple[Arrays, RoundingError] | None:
    """What was kept, None where there is nothing, or it is of another generator or of other maps."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        if str(file[KEY]) != key:
            return None
        return {name: file[name] for name in (IMAGE, PIXELS, LOGITS)}, RoundingError(*map(float, file[ROUNDING]))


def _write(path: Path, key: str, outputs: Arrays, rounding: RoundingError) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        kept: dict[str, Any] = {**outputs, ROUNDING: np.array(astuple(rounding)), KEY: np.array(key)}
        np.savez(file, **kept)
