"""Which model a path or a name stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spade_deploy.engines.base import Backend
from spade_deploy.evaluation.data import Sample
from spade_deploy.evaluation.models import Kind, find_models, open_images
from spade_deploy.labels.earth import cut, earth_tiles
from spade_deploy.labels.files import save_pixels
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.networks.spade import make_segmap, to_pixels
from spade_deploy.runs.shipped import shipped_facts, shipped_generator


def test_the_shipped_model_is_judged_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (model,) = find_models([Path("earth")], tmp_path)
    facts, generator = shipped_facts("earth"), shipped_generator()
    assert (model.kind, model.name, model.spec, model.data) == (
        Kind.CHECKPOINT,
        "earth",
        facts.generator,
        DataConfig.for_preset("earth"),
    )
    assert model.facts["generator_sha256"] == facts.sha256
    label, photo = cut(earth_tiles("test")[0])
    with open_images(model, (128, 128), Backend.CPU) as images:
        (pixels,) = images.make([Sample(label, None, photo, 0, "a")], None)
    with torch.inference_mode():
        wanted = to_pixels(generator(make_segmap(torch.from_numpy(label)[None], None, facts.generator.labels)))
    assert np.array_equal(pixels, wanted[0].numpy())


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "earth").mkdir()
    save_pixels(tmp_path / "earth" / "a.png", np.zeros((32, 32, 3), np.uint8))
    (model,) = find_models([Path("earth")], tmp_path)
    assert model.kind is Kind.IMAGES
