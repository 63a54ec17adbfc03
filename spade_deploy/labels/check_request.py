"""The request for the label linter: which folder, which labels, and what is done with the findings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.labels.lint import labels_to_check
from spade_deploy.settings import setting
from spade_deploy.spec import LabelSpec


@dataclass(frozen=True)
class CheckLabelsRequest:
    """A folder of label maps that is checked, and where a corrected copy goes."""

    folder: Path = setting(help="Label maps, or a data set's folder.", argument=True)
    preset: str | None = setting(None, help="earth, coco, ade20k, cityscapes, facades; or `num_labels`.")
    num_labels: int | None = setting(None, help="Number of classes; ids are 0..N-1.")
    has_dontcare: bool = setting(False, help="The value 255 means unknown.", flag="dontcare")
    images: Path | None = setting(None, help="The photos: pairs and sizes are checked too.")
    instances: Path | None = setting(None, help="The instance maps: pairs and sizes are checked too.")
    palette: Path | None = setting(None, help="Colours of RGB label maps: JSON, or lines 'R G B name'.")
    ignore: tuple[str, ...] = setting((), help="Code of a finding to ignore; may be repeated.")
    fix: Path | None = setting(None, help="Write a corrected copy of the folder here.")

    @property
    def labels(self) -> LabelSpec:
        """The labels that the maps are checked against; reads the palette. Raises ConfigError."""
        return labels_to_check(self.preset, self.num_labels, has_dontcare=self.has_dontcare, palette=self.palette)
