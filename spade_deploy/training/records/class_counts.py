"""Count how often each class occurs in the training samples: a class that no sample has cannot be learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spade_deploy.files.atomic import write_json
from spade_deploy.files.reading import read_json
from spade_deploy.spec import LabelSpec

CLASSES_JSON = "classes.json"
_SHOWN = 8


class ClassCounts:
    """Counts the pixels and samples of each class in the batches of a run, after cropping.

    table: ids x 2 int64, the pixels of each class and the samples that have it. samples: how many were counted.
    first_step, last_step: the steps whose batches were counted.
    """

    def __init__(self, labels: LabelSpec, start: int = 0) -> None:
        self.labels = labels
        self.table = torch.zeros(labels.num_ids, 2, dtype=torch.int64)
        self.samples = 0
        self.first_step = start + 1
        self.last_step = start

    def add(self, label: Tensor) -> None:
        """Count one step's label maps, N x H x W ids."""
        for sample in label:
            pixels = torch.bincount(sample.flatten(), minlength=self.labels.num_ids)
            self.table[:, 0] += pixels
            self.table[:, 1] += pixels > 0
        self.samples += len(label)
        self.last_step += 1

    def missing(self) -> tuple[str, ...]:
        """The names of the classes that no sample had; empty if nothing was counted."""
        if not self.samples:
            return ()
        return tuple(self.labels.name_of(index) for index in torch.nonzero(self.table[:, 0] == 0).flatten().tolist())

    def sentence(self) -> str:
        """A sentence on the classes that never occur; empty if every class occurs."""
        names = self.missing()
        if not names:
            return ""
        rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        what = "1 class never occurs" if len(names) == 1 else f"{len(names)} classes never occur"
        return (
            f"{what} in the {self.samples} samples of steps {self.first_step} to {self.last_step}:"
            f" {', '.join(names[:_SHOWN])}{rest}; a model without other training paints noise there"
            f" ({CLASSES_JSON} has the shares of all)"
        )

    def write(self, run: Path) -> None:
        """Write classes.json, atomically."""
        pixels = int(self.table[:, 0].sum())
        classes = [
            {
                "id": index,
                "name": self.labels.name_of(index),
                "pixels": count,
                "share": count / pixels if pixels else 0.0,
                "samples": samples,
            }
            for index, (count, samples) in enumerate(self.table.tolist())
        ]
        steps = {"first_step": self.first_step, "last_step": self.last_step}
        write_json(run / CLASSES_JSON, {**steps, "samples": self.samples, "pixels": pixels, "classes": classes})

    def state(self) -> dict[str, Any]:
        """The counts, from which `resumed` continues: plain values and a tensor."""
        return {
            "table": self.table.clone(),
            "samples": self.samples,
            "first_step": self.first_step,
            "last_step": self.last_step,
        }

    @classmethod
    def resumed(cls, run: Path, labels: LabelSpec, start: int, state: Mapping[str, Any] | None = None) -> ClassCounts:
        """Continue to count after step `start` of a run; begin at zero where the counts end at another step.

        state: the counts in the checkpoint; older checkpoints have none, and classes.json is read instead.
        """
        counts = cls(labels, start)
        try:
            saved: Any = state if state is not None else _from_file(run / CLASSES_JSON)
            table = saved["table"].to(torch.int64)
            fits = table.shape == counts.table.shape and saved["last_step"] == start
            samples, first_step = int(saved["samples"]), int(saved["first_step"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError):
            return counts
        if fits:
            counts.table, counts.samples, counts.first_step = table, samples, first_step
        return counts


def _from_file(path: Path) -> dict[str, Any]:
    saved = read_json(path)
    table = torch.tensor([[entry["pixels"], entry["samples"]] for entry in saved["classes"]], dtype=torch.int64)
    return {**{name: saved[name] for name in ("samples", "first_step", "last_step")}, "table": table}
