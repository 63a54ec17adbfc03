"""The request for a validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.export.stress_maps import StressMap
from spade_deploy.labels.pairs import require_labels
from spade_deploy.settings import setting
from spade_deploy.spec import Backend


@dataclass(frozen=True)
class ValidationRequest:
    """Which label maps an artifact's graphs are validated on, against what, and in which runtime."""

    labels: Path | None = setting(None, help="Label maps instead of the golden inputs.")
    """They are resized to the model's size with nearest neighbour."""
    instances: Path | None = setting(None, help="Instance maps of these label maps, paired by stem.")
    checkpoint: Path | None = setting(None, help="Checkpoint that was exported; default: found by its digest.")
    backend: Backend = setting(Backend.AUTO, help="Engine that runs the graphs.")
    runs_dir: Path = Path("runs")
    """The folder of runs in which the exported checkpoint is looked for."""

    stress: tuple[StressMap, ...] = ()
    """Further stress maps on which real half precision is emulated if a CPU runs an fp16 graph."""

    def __post_init__(self) -> None:
        require_labels(self.labels, self.instances)
