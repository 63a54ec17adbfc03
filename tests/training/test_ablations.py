"""The ablations of SPADE's paper: each trains a step, is exported, and is what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spade_deploy.artifact import LABEL, Artifact, Source, Z
from spade_deploy.engines.base import Backend
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.spec import DiscriminatorSpec, GeneratorSpec, GraphKind, LabelSpec, NormType, Precision
from spade_deploy.training.config import Setup, TrainConfig
from spade_deploy.training.dataset import Batch
from spade_deploy.training.steps import Learner
from spade_deploy.validation.request import ValidationRequest
from spade_deploy.validation.validate import validate

LABELS = LabelSpec(3)
# Every norm and every kernel once, and noise in place of the segmap as the first input: a generator with a style
# vector and no encoder.
ABLATIONS: dict[str, dict[str, Any]] = {
    "batch norm, kernel 1": {"norm": NormType.BATCH, "kernel_size": 1},
    "instance norm, kernel 5": {"norm": NormType.INSTANCE, "kernel_size": 5},
    "sync batch norm, kernel 3, noise first": {"norm": NormType.SYNC_BATCH, "z_dim": 4},
}


def batch(seed: int) -> Batch:
    numbers = torch.Generator().manual_seed(seed)
    label = torch.randint(0, LABELS.num_labels, (2, 64, 64), generator=numbers, dtype=torch.uint8)
    photo = torch.rand(2, 3, 64, 64, generator=numbers) * 2 - 1
    return Batch(label, None, photo, ("first", "second"))


@pytest.mark.parametrize("fields", ABLATIONS.values(), ids=ABLATIONS)
def test_an_ablation_trains_exports_and_validates(fields: dict[str, Any], tmp_path: Path) -> None:
    spec = GeneratorSpec(LABELS, base_channels=2, hidden_channels=4, height=64, width=64, **fields)
    config = TrainConfig(
        steps=1, batch_size=2, encoder=False, workers=0, device="cpu", discriminator=DiscriminatorSpec(2, 2, 2)
    )
    learner = Learner(Setup(config, spec, DataConfig(crop_size=(64, 64))), torch.device("cpu"))
    assert learner.encoder is None
    before = {name: parameter.clone() for name, parameter in learner.generator.named_parameters()}
    losses = learner.step(batch(0), 1.0)
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    # A bias before instance norm is taken away again: its gradient is rounding, if anything.
    still = [name for name, parameter in learner.generator.named_parameters() if torch.equal(parameter, before[name])]
    assert not [name for name in still if not name.endswith("conv_0.bias")]

    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "artifact"
    save_checkpoint(checkpoint, learner.deployed(), step=1, origin="train")
    loaded = load_generator(checkpoint)
    folder.mkdir()
    inputs = {LABEL: synthetic_label_maps(LABELS, 64, 64, 2, seed=0)[0]}
    if spec.z_dim is not None:
        inputs[Z] = torch.randn(2, spec.z_dim, generator=torch.Generator().manual_seed(0)).numpy()
    export_artifact(
        loaded.module,
        folder,
        ExportRequest(
            precisions=[Precision.FP32],
            kinds=[GraphKind.DENSE],
            golden_inputs=inputs,
            source=Source("run", 1, "train", loaded.info.generator_sha256),
        ),
    )
    report = validate(
        Artifact.open(folder), ValidationRequest(checkpoint=checkpoint, runs_dir=tmp_path, backend=Backend.CPU)
    )
    report.require_passed()
    assert report.reference.startswith("PyTorch")
