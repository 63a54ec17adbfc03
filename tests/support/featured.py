"""A pix2pixHD with instance features and its encoder, released, and its images by the second writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.artifact import Artifact
from spade_deploy.images.image_file import ImageSource, read_photo
from spade_deploy.inference import InferRequest
from spade_deploy.release.release import Release, export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs.import_request import ImportRequest
from spade_deploy.runs.importer import import_checkpoint
from spade_deploy.spec import Backend
from tests.support import pix2pixhd_by_the_facts as pix2pixhd

DEPTH = {"halvings": 2, "blocks": 1, "local_blocks": 1}
GENERATOR = pix2pixhd.state_dict(9, 4, **DEPTH)
ENCODER = pix2pixhd.encoder_state_dict(4, halvings=2)
SIZE = (64, 96)


@dataclass(frozen=True)
class Made:
    """A release, and the folder of its runs."""

    release: Release
    runs: Path

    @property
    def artifact(self) -> Artifact:
        return self.release.artifact


def release(folder: Path, *, fp16: bool = False) -> Made:
    """Import both files, and export the run."""
    torch.save(GENERATOR, folder / "latest_net_G.pth")
    torch.save(ENCODER, folder / "latest_net_E.pth")
    request = ImportRequest(num_labels=5, has_edges=True, size=SIZE, encoder=folder / "latest_net_E.pth")
    import_checkpoint(folder / "latest_net_G.pth", request, runs_dir=folder / "runs", name="imported")
    return Made(export_checkpoint(ReleaseRequest(fp16=fp16), runs_dir=folder / "runs"), folder / "runs")


def some_maps() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A label map of rectangles, and an instance map that splits one of its classes."""
    label = np.zeros(SIZE, np.uint8)
    label[10:50, 20:80], label[30:60, :40] = 1, 4
    instance = label.astype(np.int32)
    instance[10:30, 50:80] = 1001
    return label, instance


def write_photo(path: Path) -> Path:
    """A photo of another size than the model's."""
    small = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((150, 110), Image.Resampling.BICUBIC).save(path)
    return path


def second_image(
    label: NDArray[Any], instance: NDArray[Any] | None, photo: ImageSource | None, regions: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """By the second writing, in float64: H x W x 3 in 0..255. regions: of the photo's features; the instances."""
    state, encoder = ({name: one.double() for name, one in each.items()} for each in (GENERATOR, ENCODER))
    objects = torch.from_numpy(np.zeros(label.shape, np.int32) if instance is None else instance)[None]
    seen = torch.zeros(1, 3, *label.shape, dtype=torch.float64)
    if photo is not None:
        pixels = torch.from_numpy(read_photo(photo, label.shape)[None].copy())  # type: ignore[arg-type]
        given = objects if regions is None else torch.from_numpy(regions)[None]
        seen = pix2pixhd.encode(encoder, pixels.permute(0, 3, 1, 2).double() / 127.5 - 1, given, halvings=2)
    image = pix2pixhd.generate(state, torch.from_numpy(label)[None], objects, seen, num_ids=5, **DEPTH)
    pixels_of: NDArray[np.float64] = ((image[0].permute(1, 2, 0) + 1) / 2 * 255).numpy()
    return pixels_of


def assert_shows(found: NDArray[np.uint8], wanted: NDArray[np.float64]) -> None:
    """That pixels are the truncated values, but for those that rounding may carry across a number."""
    difference = wanted - found
    assert difference.min() > -0.02
    assert difference.max() < 1.02


def photos_of(folder: Path) -> NDArray[np.uint8]:
    with Image.open(folder / "a.png") as image:
        return np.asarray(image)


def write_maps(folder: Path, maps: tuple[NDArray[Any], NDArray[Any]]) -> InferRequest:
    for name, values in zip(("labels", "instances"), maps, strict=True):
        (folder / name).mkdir()
        Image.fromarray(values if name == "labels" else values.astype(np.uint16)).save(folder / name / "a.png")
    return InferRequest(folder / "labels", folder / "out", instances=folder / "instances", backend=Backend.CPU)
