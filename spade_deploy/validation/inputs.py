"""The label maps that a validation runs every graph on: an artifact's golden inputs, or those of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Artifact, Z, default_style, one_by_one, with_features
from spade_deploy.errors import LabelMapError
from spade_deploy.labels.find import find_label_maps
from spade_deploy.labels.pairs import Pairing, read_maps, require_instances
from spade_deploy.validation.request import ValidationRequest


class Inputs(Protocol):
    """Inputs of a dense graph, by name."""

    total: int
    """How many label maps there are, those that cannot be read included."""
    skipped: list[str]
    """A sentence for each label map that could not be read during the last iteration."""

    @property
    def described(self) -> str:
        """Where they come from, for people."""

    def __iter__(self) -> Iterator[Arrays]:
        """The inputs, each with N = 1. One may iterate any number of times."""


def open_inputs(artifact: Artifact, request: ValidationRequest) -> Inputs:
    """Open the inputs. Raises NotFoundError if a folder has no label maps, ConfigError if instance maps are needed."""
    return _Golden(artifact) if request.labels is None else _Folder(artifact, request)


class _Golden:
    def __init__(self, artifact: Artifact) -> None:
        self._inputs = artifact.golden().inputs
        self.total = len(self._inputs[LABEL])
        self.skipped: list[str] = []

    @property
    def described(self) -> str:
        return f"{self.total} golden inputs"

    def __iter__(self) -> Iterator[Arrays]:
        return one_by_one(self._inputs)


class _Folder:
    def __init__(self, artifact: Artifact, request: ValidationRequest) -> None:
        assert request.labels is not None  # open_inputs looked
        self._labels, self._spec = request.labels, artifact.manifest.generator
        self._found: Pairing = find_label_maps(request.labels, request.instances, self._spec.labels)
        if request.instances is None:
            require_instances(
                self._found, self._spec.labels, hint="spade validate ARTIFACT --labels DIR --instances DIR"
            )
        self.total = len(self._found.in_order)
        self.skipped: list[str] = []

    @property
    def described(self) -> str:
        return f"{self.total - len(self.skipped)} label maps of {self._labels}"

    def __iter__(self) -> Iterator[Arrays]:
        self.skipped.clear()
        spec = self._spec
        for one in self._found.in_order:
            try:
                label, instance = read_maps(one, spec.labels, (spec.height, spec.width))
            except LabelMapError as error:
                self.skipped.append(error.message)
                continue
            inputs: Arrays = {LABEL: label[None]}
            if instance is not None:
                inputs[INSTANCE] = instance[None]
            if (style := default_style(spec)) is not None:
                inputs[Z] = style
            yield with_features(spec, inputs, np.random.default_rng(0))
