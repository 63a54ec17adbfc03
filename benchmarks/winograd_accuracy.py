"""How far Winograd's convolutions in OpenVINO float32 are from PyTorch, over generators and label maps.

Every generator of bf16_tolerance.py is exported in float32, and each of its graphs runs in OpenVINO three times: with
direct convolutions, as the engine decides (engines/openvino/winograd.py), and with tiles of 4 wherever possible,
however small the convolution. Images are compared with the untouched PyTorch module's in float32. The errors of a
graph are given in multiples of eager PyTorch's own rounding error in that model, which float32's tolerance is made of.

    python benchmarks/winograd_accuracy.py [--seeds 1] [--only NAME] [--quick] [--resume] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from bf16_tolerance import exported, generators, inputs_of
from models import RESULTS

from spade_deploy.artifact import IMAGE, Artifact, one_by_one
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino import models, winograd
from spade_deploy.files.atomic import write_json
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.metrics.tolerances import tolerance_for
from spade_deploy.spec import GraphKind, Precision

HOW: dict[str, Callable[..., int | None] | None] = {
    "direct": lambda *_: None,
    "as the engine decides": None,
    "tiles of 4 everywhere": lambda *_: 4,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", help="generators whose name begins so")
    parser.add_argument("--quick", action="store_true", help="one small generator, to see that the script works")
    parser.add_argument("--resume", action="store_true", help="go on where a run was stopped")
    parser.add_argument("--out", type=Path, default=RESULTS / "winograd-accuracy.json")
    asked = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text())["rows"] if asked.resume else []
    done = {row["generator"] for row in rows}
    for name, make in generators(asked.seeds, asked.quick):
        if name in done or not name.startswith(asked.only or ""):
            continue
        generator = make()
        with tempfile.TemporaryDirectory() as folder:
            artifact = exported(generator, inputs_of(generator.spec), Path(folder) / "artifact")
            made = [compared(artifact, graph.kind, how) for graph in artifact.manifest.graphs for how in HOW]
        rows += [{"generator": name, **row} for row in made]
        for row in made:
            print(name, row, flush=True)
        write_json(asked.out, {"rows": rows, "machine": describe_machine()})  # after each, if the run is stopped


def compared(artifact: Artifact, kind: GraphKind, how: str) -> dict[str, Any]:
    """The figures of a graph's images against the golden ones."""
    golden, rounding = artifact.golden(), artifact.manifest.rounding
    with changed(HOW[how]) as counted, open_runtime(artifact, Precision.FP32, "openvino", graph=str(kind)) as runtime:
        images = np.concatenate([runtime.run(one)[IMAGE] for one in one_by_one(golden.inputs)])
    right = golden.outputs[IMAGE].astype(np.float64)
    error = np.abs(images - right)
    limits = tolerance_for(Precision.FP32, rounding)
    assert limits.max_abs is not None
    assert limits.mean_abs is not None
    pixels = [np.rint((one + 1) * 127.5) for one in (images, right)]
    return {
        "graph": str(kind),
        "how": how,
        "winograd_convolutions": max(counted, default=0),
        "mean_in_rounding_errors": float(error.mean() / rounding.mean_abs) if rounding.mean_abs else None,
        "max_in_rounding_errors": float(error.max() / rounding.max_abs) if rounding.max_abs else None,
        "share_of_limit": float(max(error.max() / limits.max_abs, error.mean() / limits.mean_abs)),
        "psnr_db": float(10 * np.log10(4 / max(float((error**2).mean()), 1e-30))),
        "other_pixel_values": float((pixels[0] != pixels[1]).mean()),
    }


@contextmanager
def changed(choose: Callable[..., int | None] | None) -> Iterator[list[int]]:
    """Let the engine choose so, with an empty cache of compiled models. Yields how many convolutions it changes."""
    counted: list[int] = []

    def use(model: Any, kind: GraphKind) -> int:
        counted.append(winograd.use_winograd(model, kind, *([] if choose is None else [choose])))
        return counted[-1]

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {VARIABLE: folder}),
        mock.patch.object(models, "use_winograd", use),
    ):
        yield counted


if __name__ == "__main__":
    main()
