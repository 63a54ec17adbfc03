"""The request for a validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spade_deploy.artifact import LABEL, Arrays
from spade_deploy.export.stress_maps import StressMap
from spade_deploy.labels.pairs import require_labels
from spade_deploy.settings import setting
from spade_deploy.spec import Backend


@dataclass(frozen=True)
class KnownOutputs:
    """What the untouched module gave for some inputs, computed by this process and kept in memory."""

    generator_sha256: str
    """The digest of the module's weights."""
    inputs: Arrays
    """The dense graph's inputs by name, N of each."""
    outputs: Arrays
    """`pixels`, `image` and `logits`, N of each."""

    def of(self, inputs: Arrays) -> Arrays | None:
        """The outputs for the inputs of one image; None if these inputs are others."""
        for index in range(len(self.inputs[LABEL])):
            if all(np.array_equal(self.inputs[name][index], array[0]) for name, array in inputs.items()):
                return {name: array[index : index + 1] for name, array in self.outputs.items()}
        return None


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

    known: KnownOutputs | None = None
    """Outputs of the reference that need not be computed again, if its weights are those of the checkpoint."""

    times_graphs: bool = False
    """Whether the break-even of each precision is measured, with the sessions in which its graphs were compared."""

    def __post_init__(self) -> None:
        require_labels(self.labels, self.instances)
