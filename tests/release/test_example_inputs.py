"""Golden and calibration maps: which files are taken, and what stands in for those that cannot be read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from spade_deploy.artifact import INSTANCE, LABEL
from spade_deploy.labels.earth import cut, earth_tiles
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.release.example_inputs import calibration_inputs, golden_inputs
from spade_deploy.runs import CheckpointInfo
from spade_deploy.spec import GeneratorSpec, LabelSpec
from spade_deploy.training.presets import preset

SPEC = GeneratorSpec(LabelSpec(7, has_dontcare=True, has_edges=True), base_channels=8, height=64, width=64)
IMPORTED = CheckpointInfo(0, 0, "import", SPEC, "")


def write_maps(folder: Path, count: int) -> tuple[Path, Path]:
    """Label and instance maps 0.png..., a label file that is no picture, and one without an instance map."""
    label, instance = synthetic_label_maps(SPEC.labels, 64, 64, count, 0)
    for name, values in (("labels", label), ("instances", instance.astype(np.uint8))):
        (folder / name).mkdir(parents=True)
        for index, value in enumerate(values):
            Image.fromarray(value).save(folder / name / f"{index}.png")
    (folder / "labels" / "0_broken.png").write_bytes(b"no picture")
    Image.fromarray(label[0]).save(folder / "labels" / "9_alone.png")
    return folder / "labels", folder / "instances"


def test_calibration_maps_are_evenly_spaced_and_the_broken_ones_replaced(tmp_path: Path) -> None:
    labels, instances = write_maps(tmp_path, count=8)
    found = calibration_inputs(SPEC, IMPORTED, labels, instances, 3)
    # 10 files: 0, 0_broken, 1..7, 9_alone; asked for 0, 2 and 5.
    expected, objects = synthetic_label_maps(SPEC.labels, 64, 64, 8, 0)
    np.testing.assert_array_equal(found.inputs[LABEL], expected[[0, 2, 5]])
    np.testing.assert_array_equal(found.inputs[INSTANCE], objects[[0, 2, 5]].astype(np.uint8))
    assert found.described == f"3 label maps of {labels}"
    found = calibration_inputs(SPEC, IMPORTED, labels, instances, 10)
    assert len(found.inputs[LABEL]) == 8
    assert "2 skipped" in found.described


def test_golden_maps_are_the_first_that_can_be_read(tmp_path: Path) -> None:
    labels, instances = write_maps(tmp_path, count=8)
    found = golden_inputs(SPEC, IMPORTED, labels, instances, 3)
    expected, _ = synthetic_label_maps(SPEC.labels, 64, 64, 8, 0)
    np.testing.assert_array_equal(found.inputs[LABEL], expected[:3])
    assert "1 skipped" in found.described
    assert "0_broken" in found.described


def test_without_a_folder_the_maps_are_synthetic_and_it_says_so() -> None:
    golden = golden_inputs(SPEC, IMPORTED, None, None, 2)
    calibration = calibration_inputs(SPEC, IMPORTED, None, None, 2)
    assert re.search("synthetic.*--labels DIR", golden.described)
    assert re.search("synthetic.*--calibrate DIR", calibration.described)


def test_golden_maps_of_a_data_set_come_with_their_photos() -> None:
    spec = preset("earth").generator
    info = CheckpointInfo(0, 0, "import", spec, "", data=DataConfig().to_json())
    golden = golden_inputs(spec, info, None, None, 2)
    assert golden.photos is not None
    places = {cut(tile)[0].tobytes(): cut(tile)[1] for split in ("val", "test") for tile in earth_tiles(split)}
    for ids, photo in zip(golden.inputs[LABEL], golden.photos, strict=True):
        np.testing.assert_array_equal(photo, places[ids.tobytes()])
    assert golden_inputs(SPEC, IMPORTED, None, None, 2).photos is None
