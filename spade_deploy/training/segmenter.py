"""Train a small segmenter on the real photos of a data set, for `spade eval` if the user has none.

It learns what the classes of this data set look like. Its score on held-out real photos is saved with it, as an upper
limit: no generator is expected to score higher, and classes that it does not find cannot be judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import ConfigError, DatasetError, LabelMapError, TrainingError
from spade_deploy.export.onnx_file import BATCH, OPSET
from spade_deploy.export.onnx_recorder import GraphInput, Recorder
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import sha256_of_bytes
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.same_photos import photos_in_both
from spade_deploy.metrics import ConfusionMatrix, OnnxSegmenter
from spade_deploy.metrics.onnx_images import METADATA_KEY
from spade_deploy.progress import SILENT, Progress
from spade_deploy.settings import check_range
from spade_deploy.spec import MAX_BATCH, LabelSpec
from spade_deploy.training.dataset import Batch, SampleSource, training_batches
from spade_deploy.training.splits import open_source

DEFAULT_STEPS = 400
_RATE = 2e-3
_WARM_UP = 20
_VERSION = 2
"""The version of the recipe: a segmenter of another version is not reused."""


@dataclass(frozen=True)
class SegmenterRequest:
    """The data and the settings that a segmenter is trained with."""

    data: DataConfig
    """The data set; its train split is learned."""
    labels: LabelSpec
    """The labels of the data set."""
    held_out: str
    """The split that it is scored on."""
    steps: int = DEFAULT_STEPS
    """The length of the training in steps."""
    batch_size: int = 8
    """Samples in a step."""
    width: int = 16
    """Channels of the finest level; each of the three levels below has twice as many as the one above it."""
    seed: int = 0
    """The seed of the weights and of the order of the samples."""

    def __post_init__(self) -> None:
        check_range("segmenter_steps", self.steps, 1, 10**7)
        check_range("batch_size", self.batch_size, 1, MAX_BATCH)
        if self.held_out == "train":
            raise ConfigError("`train_segmenter`: it learns from the train split, so it cannot be judged on it")
        if self.data.crop_size[0] < 16 or self.data.crop_size[1] < 16:
            raise ConfigError(f"`train_segmenter`: {self.data.crop_size} pixels are fewer than 16 x 16")

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the weights depend on, except for the content of the files."""
        value = {
            "version": _VERSION,
            "data": self.data.to_json(),
            "labels": self.labels.to_json(),
            **{name: getattr(self, name) for name in ("held_out", "steps", "batch_size", "width", "seed")},
        }
        return sha256_of_bytes(json.dumps(value, sort_keys=True).encode())


@dataclass(frozen=True)
class TrainedSegmenter:
    """A segmenter that is ready to be used."""

    path: Path
    """Its ONNX file."""
    score: dict[str, Any] | None
    """Its miou and accuracy on held-out real photos; None if the data set has none."""
    was_there: bool
    """Whether it existed before, so that nothing was trained."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of the score has to know."""


class SegmenterNet(nn.Module):
    """A U-Net of four levels: N x 3 x H x W in [-1, 1] -> N x num_labels x H x W logits. H and W from 16 on."""

    def __init__(self, num_labels: int, width: int) -> None:
        super().__init__()
        widths = [width << level for level in range(4)]
        self.down = nn.ModuleList(
            [
                nn.Sequential(*_convolution(channels, out), *_convolution(out, out))
                for channels, out in zip([3, *widths], widths, strict=False)
            ]
        )
        self.up = nn.ModuleList([nn.Sequential(*_convolution(3 * out, out)) for out in reversed(widths[:-1])])
        self.head = nn.Conv2d(width, num_labels, 1)

    def forward(self, image: Tensor) -> Tensor:
        x, skips = image, list[Tensor]()
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([functional.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _convolution(channels: int, out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()


def find_or_train(
    request: SegmenterRequest,
    folder: Path,
    *,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> TrainedSegmenter:
    """The segmenter of `request` in `folder`, which is trained now unless it exists.

    Raises DatasetError if the training split has no samples, TrainingError if the loss is no number or the file cannot
    be written, ExportError.
    """
    path = folder / f"{request.digest[:12]}.onnx"
    judged_too = photos_in_both(request.data, "train", request.held_out)
    source = open_source(request.data, "train", _without_edges(request.labels), leave_out=judged_too)
    learned_sha256 = source.record().contents_sha256
    if path.is_file():
        facts = OnnxSegmenter(path, request.labels).facts
        if facts.get("request_sha256") == request.digest and facts.get("learned_sha256") == learned_sha256:
            return TrainedSegmenter(path, facts.get("score"), was_there=True)
    skipped = [f"{photo} is judged, too" for photo in sorted(judged_too)]
    network = _train(request, source, torch.device(device), skipped.append, progress)
    facts = {
        "name": f"U-Net of {request.data.described}, {request.steps} steps",
        "mean": 127.5,
        "std": 127.5,
        "size": list(request.data.crop_size),
        "output": "logits",
        "labels": [request.labels.name_of(n) for n in range(request.labels.num_labels)],
        "labels_sha256": sha256_of_bytes(json.dumps(request.labels.to_json()).encode()),
        "request_sha256": request.digest,
        "learned_sha256": learned_sha256,
        "trained_on": f"{len(source)} real photos of the train split of {request.data.described}",
        "steps": request.steps,
        "settings": {name: value for name, value in asdict(request).items() if name in ("batch_size", "width", "seed")},
    }
    notes = tuple(f"{message}: not trained on" for message in skipped)
    try:
        with atomic_file(path) as temporary:
            model = _exported(network, request)
            _save(model, temporary, facts)
            score, note = _score(temporary, request)
            _save(model, temporary, {**facts, "score": score})
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written ({error})", hint="free some space, or choose another `runs_dir`"
        ) from error
    return TrainedSegmenter(path, score, was_there=False, notes=(*notes, *note))


def _train(
    request: SegmenterRequest,
    source: SampleSource,
    device: torch.device,
    on_skip: Callable[[str], None],
    progress: Progress,
) -> SegmenterNet:
    batch_size = min(request.batch_size, len(source))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        network = SegmenterNet(request.labels.num_labels, request.width).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    batches = training_batches(source, batch_size=batch_size, seed=request.seed, on_skip=on_skip)
    with closing(batches):
        for step in range(1, request.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * _rate_factor(step, request.steps)
            loss = _loss(network, next(batches), request.labels.num_labels, device)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(f"`train_segmenter`: in step {step} the loss is {value}; nothing was saved")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.count(f"segmenter, loss {value:.2f}", step, request.steps)
    return network.cpu().eval()


def _loss(network: SegmenterNet, batch: Batch, num_labels: int, device: torch.device) -> Tensor:
    """Mean cross entropy of the pixels whose class is known."""
    target = batch.label.to(device).long()
    known = (target < num_labels).sum().clamp(min=1)
    logits = network(batch.photo.to(device))
    return functional.cross_entropy(logits, target, ignore_index=num_labels, reduction="sum") / known


def _rate_factor(step: int, steps: int) -> float:
    """The factor of the learning rate: it rises over the first steps, then falls along a half cosine to zero."""
    return min(step / _WARM_UP, 1.0) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def _score(path: Path, request: SegmenterRequest) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Score the exported file on real photos that it was not trained on."""
    try:
        source = open_source(request.data, request.held_out, _without_edges(request.labels))
    except DatasetError as error:
        return None, (f"the segmenter has no score of its own: {error.message}",)
    segmenter, matrix, images = OnnxSegmenter(path, request.labels), ConfusionMatrix(request.labels.num_labels), 0
    for index in range(len(source)):
        try:
            sample = source.load(index, None)
        except LabelMapError:
            continue  # the evaluation reports it
        matrix.add(sample.label[None].astype(np.int64), segmenter.predict(sample.photo[None]))
        images += 1
    if not images:
        return None, (f"the segmenter has no score of its own: no sample of {request.held_out} can be used",)
    score = {"split": request.held_out, "images": images, "miou": matrix.miou, "accuracy": matrix.accuracy}
    return score, ()


def _exported(network: SegmenterNet, request: SegmenterRequest) -> ir.Model:
    size = request.data.crop_size
    image = GraphInput("image", torch.float32, (BATCH, 3, *size))
    return Recorder(network, OPSET).record([image], [("logits", (BATCH, request.labels.num_labels, *size))], [])


def _save(model: ir.Model, path: Path, facts: dict[str, Any]) -> None:
    model.metadata_props[METADATA_KEY] = json.dumps(facts)
    model.producer_name = "spade-deploy"
    ir.save(model, path)


def _without_edges(labels: LabelSpec) -> LabelSpec:
    """Photos have no instance maps, and a segmenter needs none."""
    return LabelSpec(labels.num_labels, labels.has_dontcare, names=labels.names, palette=labels.palette)


def default_device() -> str:
    """CUDA where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
