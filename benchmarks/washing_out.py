"""Why SPADE works: what is left of a label map after convolution and instance norm, and after a SPADE layer.

The paper's argument (section 3) as a picture, with the shipped layers. A label map goes through the first layer of
pix2pixHD's generator, convolution and instance norm: of a uniform map nothing is left, whatever its class. The same
features then go through a SPADE layer that is shown the label map, and the class is back.

To see 32 channels, a 1 x 1 convolution paints each pixel in the colour of its class, and all of it is trained to do so:
half the maps are of one class, half are tiles of the Earth. What is painted wrongly then is not to be told from there.

    python benchmarks/washing_out.py

Writes results/washing_out.json and docs/images/washing-out.png; half a minute on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.files.atomic import atomic_file, write_json
from spade_deploy.labels.earth import cut, earth_labels, earth_tiles
from spade_deploy.networks.pix2pixhd import NormalizedConv, mirrored_conv
from spade_deploy.networks.spade import Spade, initialize, make_segmap
from spade_deploy.spec import PIX2PIXHD_EDGE_KERNEL, Architecture, GeneratorSpec, NormType

ROOT = Path(__file__).resolve().parents[1]
WATER, FOREST, BARREN = 0, 2, 16
SIDE, CHANNELS, SEED = 128, 32, 0
KERNEL = PIX2PIXHD_EDGE_KERNEL
BORDER = 2
"""Pixels at each side that SPADE's zero padding reaches; drawn, but in no figure."""
STEPS, BATCH, CROP, RATE = 300, 8, 48, 0.01
ROWS = {"conv_instance_norm": "convolution,\ninstance norm", "spade": "the same,\nthen SPADE"}
"""What is painted after, and the label of its row in the picture."""

Ids = NDArray[np.uint8]
Pictures = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the picture")
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args(arguments)
    maps, found, pictures = label_maps(), {}, {}
    for key in ROWS:
        # float64: instance norm makes the rounding of a constant 1 / sqrt(eps), 316 times larger.
        painter = trained(Painter(has_spade=key == "spade"), asked.steps).double().eval()
        with torch.no_grad():
            features = painter.features(one_hot(np.stack(list(maps.values()))).double())
            pictures[key] = painter.paint(features).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        found[key] = {
            name: {**figures(of, features[0]), "class_right": class_right(picture, ids)}
            for (name, ids), of, picture in zip(maps.items(), features, pictures[key], strict=True)
        }
    value = {
        "layers": f"{KERNEL} x {KERNEL} convolution with reflection padding, instance norm; then SPADE",
        "channels": CHANNELS,
        "training": f"{asked.steps} steps of Adam, rate {RATE}, {BATCH} crops of {CROP} px; seed {SEED}",
        "features": "root mean square over pixels and channels, without the border",
        "class_right": "share of the pixels, without the border, whose colour is nearest to their own class's",
        "side_px": SIDE,
        "border_px": BORDER,
        "after": found,
    }
    write_json(asked.out / "washing_out.json", value)
    write_picture(maps, pictures, found, asked.images / "washing-out.png")
    for key, of in found.items():
        print(key, *(f"{name}: {figure}" for name, figure in of.items()), sep="\n  ")


class Painter(nn.Module):
    """Label map -> features -> the colour of the class of each pixel."""

    def __init__(self, *, has_spade: bool) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        labels = earth_labels()
        spec = GeneratorSpec(labels, hidden_channels=CHANNELS, norm=NormType.INSTANCE)
        first = mirrored_conv(labels.num_channels, CHANNELS, KERNEL, bias=False)
        self.first = NormalizedConv(spec.with_architecture(Architecture.PIX2PIXHD), first)
        self.spade = Spade(spec, CHANNELS) if has_spade else None
        self.paint = nn.Conv2d(CHANNELS, 3, 1)
        initialize(self, gain=1.0)

    def features(self, segmap: Tensor) -> Tensor:
        x: Tensor = self.first(segmap)
        return x if self.spade is None else self.spade(x, segmap)


def trained(painter: Painter, steps: int) -> Painter:
    """Trained to paint palette colours, on maps of one class and crops of training tiles in equal parts."""
    rng = np.random.default_rng(SEED)
    tiles = [cut(tile)[0] for tile in earth_tiles("train", SIDE)]
    optimizer = torch.optim.Adam(painter.parameters(), RATE)
    for step in range(steps):
        crops = []
        for index in range(BATCH):
            top, left = rng.integers(0, SIDE - CROP + 1, 2)
            crop = tiles[rng.integers(len(tiles))][top : top + CROP, left : left + CROP]
            crops.append(np.full_like(crop, rng.integers(len(palette()))) if index % 2 else crop)
        ids = np.stack(crops)
        colors = torch.from_numpy(palette()[ids]).float().permute(0, 3, 1, 2)
        loss = functional.mse_loss(painter.paint(painter.features(one_hot(ids))), colors)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return painter


def one_hot(ids: Ids) -> Tensor:
    return make_segmap(torch.from_numpy(ids), None, earth_labels())


def label_maps() -> dict[str, Ids]:
    """Three uniform maps, one of two regions, and the held-out tile of the most classes."""
    coast = (SIDE / 2 + 11 * np.sin(np.arange(SIDE) / 13) + 4 * np.sin(np.arange(SIDE) / 4)).astype(int)
    halves = np.where(np.arange(SIDE)[None, :] < coast[:, None], WATER, FOREST)
    tile = max((cut(tile)[0] for tile in earth_tiles("test", SIDE)), key=lambda ids: len(np.unique(ids)))
    uniform = {"all water": WATER, "all forest": FOREST, "all barren": BARREN}
    return {
        **{name: np.full((SIDE, SIDE), label, np.uint8) for name, label in uniform.items()},
        "water and forest": halves.astype(np.uint8),
        "a real map": tile,
    }


def palette() -> Pictures:
    """Classes x RGB in 0..1."""
    return np.asarray(earth_labels().palette) / 255


def figures(features: Tensor, of_water: Tensor) -> dict[str, Any]:
    within, other = (of[:, BORDER:-BORDER, BORDER:-BORDER] for of in (features, of_water))
    size, gap = within.square().mean().sqrt().item(), (within - other).square().mean().sqrt().item()
    return {"features": round(size, 6), "difference_from_all_water": round(gap, 6)}


def class_right(picture: Pictures, ids: Ids) -> float:
    within = slice(BORDER, -BORDER)
    distance = ((picture[within, within, None] - palette()) ** 2).sum(axis=-1)
    return round(float((distance.argmin(axis=-1) == ids[within, within]).mean()), 4)


def write_picture(maps: dict[str, Ids], pictures: dict[str, Pictures], found: dict[str, Any], path: Path) -> None:
    """A column a map; rows: the map, and what is painted after each of ROWS."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.1), layout="constrained")
    axes = figure.subplots(3, len(maps))
    for column, (name, ids) in enumerate(maps.items()):
        for row, picture in enumerate((palette()[ids], *(of[column] for of in pictures.values()))):
            place = axes[row, column]
            place.imshow(picture, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            for spine in place.spines.values():
                spine.set_color("0.7")
        axes[0, column].set_title(name, fontsize=12)
        for row, key in enumerate(ROWS, start=1):
            text = f"class right: {found[key][name]['class_right']:.0%}"
            axes[row, column].set_xlabel(text, fontsize=10, color="0.25")
    for row, name in enumerate(("label map", *ROWS.values())):
        axes[row, 0].set_ylabel(name, fontsize=12)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    main()
