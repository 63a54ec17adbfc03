"""What a search for widths found, and what of it a run keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from spade_deploy.fields import to_json
from spade_deploy.files.atomic import atomic_file, write_json
from spade_deploy.files.reading import sha256_of_bytes
from spade_deploy.runs.tensors import load_tensors, tensor_bytes
from spade_deploy.training.distillation.costs import Costs

TABLE = "width_search.json"
WEIGHTS = "width_search.safetensors"
"""The files in a run's folder: the table, and what the training begins with."""


@dataclass(frozen=True)
class Tried(Costs):
    """A student that was tried."""

    level_channels: tuple[int, ...]
    """The channels of each level."""
    level_hidden: tuple[int, ...]
    """The channels inside the modulation of each level."""
    distance: float
    """The mean absolute difference of its images from the teacher's, of a range of 2, after the short training."""
    is_uniform: bool
    """Whether it is the student whose levels are all narrowed alike, with which the search began."""


@dataclass(frozen=True)
class WidthSearch:
    """What a search found."""

    rows: tuple[Tried, ...]
    """Every student that was tried, the best first: that one was chosen."""
    budget: float
    """The most multiply-adds that an image may cost."""
    maps: int
    """How many label maps the costs are a mean of."""
    judged_maps: int
    """How many held-out label maps the distance is a mean of."""
    steps: int
    """How many steps the shared weights were trained for."""
    seed: int
    """The seed of the training and of the search."""
    weights: Mapping[str, Tensor]
    """The tensors of the chosen student, cut out of the shared weights."""

    @property
    def chosen(self) -> Tried:
        return self.rows[0]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file of the weights."""
        return sha256_of_bytes(tensor_bytes(self.weights))

    def keep(self, run: Path) -> None:
        """Write the table and the weights into a run's folder."""
        value = {name: getattr(self, name) for name in ("budget", "maps", "judged_maps", "steps", "seed")}
        write_json(run / TABLE, {**value, "rows": [to_json(row) for row in self.rows]})
        with atomic_file(run / WEIGHTS) as temporary:
            temporary.write_bytes(tensor_bytes(self.weights))


def searched_weights(run: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors that a search left in a run's folder. Raises CheckpointError where its file is not that one."""
    return load_tensors(run / WEIGHTS, sha256)
