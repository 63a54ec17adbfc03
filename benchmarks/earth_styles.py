"""What a style vector does to the Earth model: a VAE that began with the shipped model, beside it, on held-out tiles.

    python benchmarks/earth_styles.py RUN --extractor FEATURES.onnx [--work DIR]

RUN: a run of `spade train --preset earth --vae --init earth ...`; docs/models/earth.md has the recipe. Both models are
judged on the test split as `spade eval --styles` does, the VAE with a random style for each tile. Then its images with
the mean style, with the style of each tile's own photo and with random styles are compared with the photo, and with
each other: how far their mean colours move says what a style can do. Writes results/earth-styles.json and
docs/images/earth-styles.png.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from earth_sheet import LABEL_MAP, REAL_PHOTO, Pixels, judged, parser_of, print_figures, sheet
from PIL import Image
from printed import Printed
from student import teacher_checkpoint, without_places

from spade_deploy.artifact import LABEL, PIXELS, Artifact, Z
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.open import open_runtime
from spade_deploy.files.atomic import write_json
from spade_deploy.images.opened import ImageBytes
from spade_deploy.inference.style import StyleEncoder, moved_style, style_vector
from spade_deploy.labels.earth import cut, earth_labels, earth_tiles
from spade_deploy.labels.files import colorize
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import resolve_checkpoint

SEEDS = (1, 2, 3)
STEP = 2.0
"""How far the picture's images are moved along the first main direction, in standard deviations of a random style."""
PICTURES, SHOWN_SIDE = 6, 128


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, "that keeps the export")
    parser.add_argument("run", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        checkpoint = resolve_checkpoint(asked.run, Path("runs"))
        styles = 0 if asked.extractor is None else 8
        result = judged((teacher_checkpoint(work), checkpoint), asked, work, styles=styles)
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
    print_figures(result, result.rows)
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
    rows = []
    for place in (row * len(tiles) // PICTURES for row in range(PICTURES)):
        label, photo = tiles[place]
        rows.append((colorize(label, earth_labels()), *(images[place] for images in made.values()), photo))
    return sheet((LABEL_MAP, *made, REAL_PHOTO), rows, SHOWN_SIDE)


if __name__ == "__main__":
    main()
