"""`spade eval` of imported neighbours beside SPADE: each makes the images of its second writing, under its own name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spade_deploy.evaluation import DataFlags, EvalRequest, evaluate, write_report
from spade_deploy.networks.spade import to_pixels
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.runs.importer import import_checkpoint
from spade_deploy.spec import LabelSpec
from tests.support.families import FILES
from tests.support.generators import build_generator

ROWS = {
    "clade, no edges, more": "clade",
    "clade-icpe, instance norm": "clade, with positions in regions (ICPE)",
    "oasis": "oasis",
    "pix2pixhd, no edges": "pix2pixhd",
}
SIZE, COUNT = (64, 128), 3


def test_families_are_rows_beside_spade(tmp_path: Path) -> None:
    rng, runs = np.random.default_rng(0), tmp_path / "runs"
    maps = rng.integers(0, 5, (COUNT, 8, 16)).repeat(8, 1).repeat(8, 2)
    photos = rng.integers(0, 256, (COUNT, *SIZE, 3), dtype=np.uint8)
    for folder, arrays in (("labels", maps.astype(np.uint8)), ("images", photos)):
        (tmp_path / folder).mkdir()
        for index, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / folder / f"{index}.png")
    names = {}
    for number, name in enumerate(ROWS):
        torch.save(FILES[name]().state, tmp_path / "published.pth")
        request = replace(FILES[name]().request, size=SIZE)
        import_checkpoint(tmp_path / "published.pth", request, runs_dir=runs, name=f"imported-{number}")
        names[name] = f"imported-{number}"
    spade = build_generator(labels=LabelSpec(5, has_dontcare=True), height=SIZE[0], width=SIZE[1])
    save_checkpoint(checkpoint_folder(runs / "spade", 0), spade, step=0, origin="import")
    asked = EvalRequest(
        tuple(runs / name for name in ("spade", *names.values())),
        data=DataFlags(labels=tmp_path / "labels", images=tmp_path / "images"),
    )
    result = evaluate(asked, runs_dir=runs)
    assert {row.name: row.facts["architecture"] for row in result.rows} == {
        "spade": "spade", **{names[name]: title for name, title in ROWS.items()}
    }  # fmt: skip
    for name, row in zip(ROWS, result.rows[1:], strict=True):
        file, label = FILES[name](), torch.from_numpy(maps)
        z = None
        if name == "oasis":  # the first of the random styles of each sample
            draw = [np.random.default_rng((0, index, 0)).standard_normal(64, np.float32) for index in range(COUNT)]
            z = torch.from_numpy(np.stack(draw))
        expected = to_pixels(file.generate(file.state, label, None, z)).numpy().astype(float)
        # A pixel may round the other way; the image of another network is 0.01 or more away.
        assert row.l1 == pytest.approx(np.abs(expected - photos).mean() / 255, abs=2e-5), name
    files = {path.suffix: path for path in write_report(result, tmp_path / "out")}
    page = files[".html"].read_text(encoding="utf-8")
    for name, title in ROWS.items():
        assert f'{names[name]} <small class="soft">{title}</small>' in page
    assert "5 models on 3 samples, which training may have seen: the images" in page
    stored = json.loads(files[".json"].read_text(encoding="utf-8"))["models"]
    assert [row["architecture"] for row in stored] == ["spade", *ROWS.values()]
