"""The good files that cases damage: made once by the package's own code, then only copied."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from spade_deploy import cli
from spade_deploy.artifact import (
    engine_name,
    list_engines,
    write_engine,
)
from spade_deploy.engines.tensorrt.key import BuildOptions, EngineKey
from spade_deploy.engines.tensorrt.proof import EngineLayer, Proof
from spade_deploy.engines.tensorrt.store import this_system
from spade_deploy.labels.sets import label_set
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.spec import Flavour, GeneratorSpec, GraphKind, Precision, ShapeProfile

NUM_LABELS = 5
RUN = "tiny"
TRAIN = (
    *("train", "--labels", "labels", "--images", "images", "--num-labels", str(NUM_LABELS), "--dontcare"),
    *("--size", "64x64", "--base-channels", "2", "--hidden-channels", "4", "--batch-size", "1", "--workers", "0"),
    *("--discriminator-channels", "4", "--discriminator-layers", "2", "--discriminator-scales", "1", "--device", "cpu"),
    *("--save-every", "1", "--sample-every", "1", "--log-every", "1", "--keep-checkpoints", "3"),
    *("--eval-every", "1", "--eval-samples", "2", "--best-by", "l1", "--vae", "--ema", "0.9"),
)


@dataclass(frozen=True)
class Corpus:
    """Where the good files lie.

    run: of 2 steps, with a training state, a best checkpoint and samples. plain: an artifact without style; styled: one
    with a style vector and an encoder; both are stand-ins of a few ONNX nodes. generator, encoder: state dicts.
    """

    root: Path

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def run(self) -> Path:
        return self.root / "runs" / RUN

    @property
    def plain(self) -> Path:
        return self.root / "plain"

    @property
    def styled(self) -> Path:
        return self.root / "styled"

    @property
    def extractor(self) -> Path:
        return self.root / "extractor.onnx"

    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state dicts of a released-like generator and of its style encoder."""
        loaded = torch.load(self.root / "states.pt", weights_only=True)
        return loaded["generator"], loaded["encoder"]


def open_corpus(root: Path) -> Corpus:
    """The corpus in `root`; it is made where it is not there yet."""
    if not (root / "done").is_file():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        _make(Corpus(root))
        (root / "done").touch()
    return Corpus(root)


def _make(corpus: Corpus) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for folder in (corpus.labels, corpus.images):
        folder.mkdir()
    for number in range(4):
        ids = np.kron(rng.integers(0, NUM_LABELS, (8, 8)), np.ones((8, 8), int)).astype(np.uint8)
        Image.fromarray(ids).save(corpus.labels / f"{number}.png")
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(corpus.images / f"{number}.png")
    _train(corpus)
    _artifacts(corpus)
    _states(corpus)
    _extractor(corpus.extractor)


def _train(corpus: Corpus) -> None:
    before, said = Path.cwd(), io.StringIO()
    os.chdir(corpus.root)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            cli.app([*TRAIN, "--steps", "2", "--name", RUN], prog_name="spade")
    finally:
        os.chdir(before)
    if not (corpus.run / "checkpoints" / "step_00000002").is_dir():
        raise RuntimeError(f"the corpus cannot be made: {said.getvalue()}")


def _artifacts(corpus: Corpus) -> None:
    from tests.support.stand_in import PLAIN, STYLED, stand_in_artifact, with_stand_in_encoder

    artifact = stand_in_artifact(corpus.plain, PLAIN, (Precision.FP32, Precision.FP16))
    for precision in (Precision.FP32, Precision.FP16):
        key = EngineKey(
            onnx_sha256=artifact.manifest.files[artifact.graph(precision).file].sha256,
            flavour=Flavour.RTX,
            version="1.7.1.116",
            gpu="any of compute capability 8.9",
            compute_capability="8.9",
            system=this_system(),
            precision=precision,
            kind=GraphKind.DENSE,
            profile=ShapeProfile.parse("1x64x32:1x64x32:2x64x32"),
            options=BuildOptions(),
        )
        layers = tuple(EngineLayer(f"conv_{n}", "CONVOLUTION", ("Half",), ("up_0.conv_0",)) for n in range(3))
        proof = Proof(precision, total=3, asked=3, reached=3, of_engine=True, layers=layers)
        name = engine_name(precision, GraphKind.DENSE, key.digest)
        write_engine(artifact, name, b"engine" * 5000, key=key.to_json(), proof=proof.to_json(), seconds=1.5)
    assert len(list_engines(artifact)) == 2, "the engines are not read at all"
    stand_in_artifact(corpus.styled, STYLED)
    with_stand_in_encoder(corpus.styled, STYLED)


def _states(corpus: Corpus) -> None:
    spec = GeneratorSpec(label_set("coco"), base_channels=2, hidden_channels=4, height=256, width=256, z_dim=256)
    encoder = StyleEncoder(256, 2)
    states = {"generator": SpadeGenerator(spec).state_dict(), "encoder": encoder.state_dict()}
    torch.save(states, corpus.root / "states.pt")


def _extractor(path: Path) -> None:
    """Features: the mean colour of an image, through a convolution."""
    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["convolved"]),
        helper.make_node("GlobalAveragePool", ["convolved"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 32, 32])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "extractor", [images], [features], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    facts = {"mean": [127, 127, 127], "std": [128, 128, 128], "size": [32, 32], "output": "features"}
    path.with_suffix(".json").write_text(json.dumps(facts))
