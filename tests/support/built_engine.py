"""An engine in a stand-in artifact as `spade build` leaves it, and the card that it was built on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spade_deploy.artifact import Artifact, engine_name, write_engine
from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.engines.tensorrt.key import BuildOptions, EngineKey
from spade_deploy.engines.tensorrt.store import this_system
from spade_deploy.spec import Flavour, GraphKind, Precision, ShapeProfile
from tests.support.fake_tensorrt import GOOD_ENGINE
from tests.support.stand_in import PLAIN

HERE = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30, "13.0")
PROFILE = ShapeProfile((1, PLAIN.height, PLAIN.width), (1, PLAIN.height, PLAIN.width), (2, PLAIN.height, PLAIN.width))


PROOF = {
    "precision": "fp16",
    "total": 3,
    "asked": 3,
    "reached": 3,
    "of_engine": True,
    "layers": [{"name": "node_conv_2", "kind": "conv", "types": ["fp16"], "covers": ["node_conv_2", "node_add"]}],
}


def add_engine(artifact: Artifact, content: bytes = GOOD_ENGINE, **changes: Any) -> EngineKey:
    onnx = artifact.graph(Precision.FP16).file
    key = EngineKey(
        artifact.manifest.files[onnx].sha256,
        Flavour.TENSORRT,
        "9.9.9",
        HERE.name,
        "9.0",
        this_system(),
        Precision.FP16,
        GraphKind.DENSE,
        PROFILE,
        BuildOptions(),
    )
    key = replace(key, **changes)
    name = engine_name(key.precision, key.kind, key.digest)
    write_engine(artifact, name, content, key=key.to_json(), proof=PROOF, seconds=1.0)
    return key
