"""What a validation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.engines.base import Backend
from spade_deploy.export.stress_maps import StressMap


@dataclass(frozen=True)
class ValidationRequest:
    """Which label maps an artifact's graphs are validated on, against what, and in which runtime."""

    labels: Path | None = None
    """A folder of label maps, resized to the model's size with nearest neighbour; None: the golden inputs."""
    instances: Path | None = None
    """The folder of their instance maps, paired by stem."""
    checkpoint: Path | None = None
    """The weights that were exported; None: they are looked for by their digest."""
    runs_dir: Path = Path("runs")
    """Where the weights are looked for."""
    backend: Backend = Backend.AUTO
    """What runs the graphs."""
    stress: tuple[StressMap, ...] = ()
    """Maps beside `stress_maps` on which real half precision is emulated, where a CPU runs an fp16 graph."""
