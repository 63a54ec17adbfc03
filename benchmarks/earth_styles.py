"""What a style vector does to the Earth model: a VAE that began with the shipped model, beside it, on held-out tiles.

    python benchmarks/earth_styles.py RUN --extractor FEATURES.onnx [--work DIR]

RUN: a run of `spade train --preset earth --vae --init earth ...`; docs/models/earth.md has the recipe. Both models are
judged on the test split as `spade eval --styles` does, the VAE with a random style for each tile. Then its images with
the mean style, with the style of each tile's own photo and with random styles are compared with the photo, and with
each other: how far their mean colours move says what a style can do. Writes results/earth-styles.json and
docs/images/earth-styles.png.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from printed import Printed
from student import teacher_checkpoint, without_places

from spade_deploy.artifact import LABEL, PIXELS, Artifact, Z
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.open import open_runtime
from spade_deploy.evaluation import EvalRequest, evaluate
from spade_deploy.files.atomic import write_json
from spade_deploy.images.opened import ImageBytes
from spade_deploy.inference.style import StyleEncoder, moved_style, style_vector
from spade_deploy.labels.earth import cut, earth_labels, earth_tiles
from spade_deploy.labels.files import colorize
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import resolve_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3)
STEP = 2.0
"""How far the picture's images are moved along the first main direction, in standard deviations of a random style."""
PICTURES, SHOWN_PX, GAP_PX, HEAD_PX = 6, 128, 4, 22

Pixels = NDArray[np.uint8]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--extractor", type=Path, help="an ONNX feature extractor; without one there is no distance")
    parser.add_argument("--samples", type=int, default=None, help="tiles of the test split; all if left out")
    parser.add_argument("--segmenter-steps", type=int, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the picture")
    parser.add_argument("--work", type=Path, help="folder that keeps the export; a temporary one if left out")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        checkpoint = resolve_checkpoint(asked.run, Path("runs"))
        result = evaluate(
            EvalRequest(
                models=(teacher_checkpoint(work), checkpoint),
                samples=asked.samples,
                extractor=asked.extractor,
                styles=0 if asked.extractor is None else 8,
                train_segmenter=True,
                segmenter_steps=asked.segmenter_steps,
            ),
            runs_dir=work,
            progress=Printed(),
        )
        out = work / "artifacts" / "styles"
        artifact = (
            Artifact.open(out)
            if out.exists()
            else export_checkpoint(
                ReleaseRequest(checkpoint=checkpoint, out=out, tune=False), runs_dir=work, progress=Printed()
            ).artifact
        )
        tiles = [cut(tile) for tile in earth_tiles("test")][: asked.samples]
        made = styled_images(artifact, tiles)
    value = {"styles": figures(made, tiles), "evaluation": without_places(result), "machine": describe_machine()}
    write_json(asked.out / "earth-styles.json", value)
    picture(made, tiles).save(asked.images / "earth-styles.png")
    for row in result.rows:
        print(row.name, {name: row.figure(name) for name in result.measured()})
    print(value["styles"])


def styled_images(artifact: Artifact, tiles: Sequence[tuple[Any, Any]]) -> dict[str, list[Pixels]]:
    """By each style, an image of every tile, H x W x 3."""
    encoder, made = StyleEncoder(artifact), dict[str, list[Pixels]]()
    mean = style_vector(artifact, None, None)
    assert mean is not None  # a model with styles
    same: dict[str, Any] = {"mean style": mean} | {f"seed {seed}": style_vector(artifact, seed, None) for seed in SEEDS}
    same |= {f"direction 1, {sign * STEP:+g}": moved_style(artifact, mean, [sign * STEP]) for sign in (-1, 1)}
    with open_runtime(artifact, None) as runtime:
        for label, photo in tiles:
            for name, z in {**same, "own photo": encoder.encode(sent(photo))[0]}.items():
                (image,) = runtime.run({LABEL: label[None], Z: z}, [PIXELS])[PIXELS]
                made.setdefault(name, []).append(image)
    return made


def sent(photo: Pixels) -> ImageBytes:
    """A photo as a file of its bytes."""
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "png")
    return ImageBytes("photo", stream.getvalue())


def figures(made: dict[str, list[Pixels]], tiles: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """By each style the mean absolute distance to the photo, in 0..1, and how the image differs from the mean style's.

    of_colour: the distance of both images' mean colours; of_pixels: that of their pixels.
    """
    mean = np.stack(made["mean style"]).astype(np.float32) / 255
    photos = np.stack([photo for _, photo in tiles]).astype(np.float32) / 255
    found = {}
    for name, images in made.items():
        own = np.stack(images).astype(np.float32) / 255
        found[name] = {
            "l1_to_photo": float(np.abs(own - photos).mean()),
            "of_pixels": float(np.abs(own - mean).mean()),
            "of_colour": float(np.abs(own.mean((1, 2)) - mean.mean((1, 2))).mean()),
        }
    return found


def picture(made: dict[str, list[Pixels]], tiles: Sequence[tuple[Any, Any]]) -> Image.Image:
    """A row a tile: label map, an image in each style, photo."""
    columns = ("label map", *made, "real photo")
    step = SHOWN_PX + GAP_PX
    sheet = Image.new("RGB", (len(columns) * step - GAP_PX, HEAD_PX + PICTURES * step - GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(columns):
        draw.text((column * step + 2, 5), text, fill="black", font_size=12)
    for row in range(PICTURES):
        place = row * len(tiles) // PICTURES
        label, photo = tiles[place]
        shown = (colorize(label, earth_labels()), *(images[place] for images in made.values()), photo)
        for column, pixels in enumerate(shown):
            image = Image.fromarray(np.asarray(pixels, np.uint8)).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.NEAREST)
            sheet.paste(image, (column * step, HEAD_PX + row * step))
    return sheet


if __name__ == "__main__":
    main()
