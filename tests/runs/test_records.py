"""checkpoint.json: what is written is read, and what is wrong is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spade_deploy import runs
from spade_deploy.errors import CheckpointError
from spade_deploy.runs.data_record import DataRecord, refuse_other_samples
from tests.support.checkpoints import checkpoint_info

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class TestCheckpointInfo:
    def test_json_round_trip(self) -> None:
        for one in (
            checkpoint_info(),
            checkpoint_info(train={"steps": 3}, data={}, versions={"torch": "2"}, source="x.pth", origin="import"),
        ):
            assert runs.CheckpointInfo.from_json(json.loads(json.dumps(one.to_json())), Path("x")) == one

    def test_a_newer_format_is_named(self) -> None:
        with pytest.raises(CheckpointError, match="format 2 is newer") as caught:
            runs.CheckpointInfo.from_json({**checkpoint_info().to_json(), "format_version": 2}, Path("x"))
        assert "upgrade" in str(caught.value.hint)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format_version", True),
            ("format_version", None),
            ("created_unix_ns", -1),
            ("step", "3"),
            ("origin", "elsewhere"),
            ("generator", []),
            ("generator", {"labels": {}}),
            ("generator_sha256", "A" * 64),
            ("optimizers_sha256", "short"),
            ("train", []),
        ],
    )
    def test_wrong_fields_are_named(self, name: str, value: Any) -> None:
        with pytest.raises(CheckpointError, match=name):
            runs.CheckpointInfo.from_json({**checkpoint_info().to_json(), name: value}, Path("x"))

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.data())
    def test_fuzzed_json_is_read_or_refused(self, data: st.DataObject) -> None:
        value = checkpoint_info().to_json()
        path = data.draw(st.sampled_from([*value, "generator.labels", "generator.height", "generator.norm"]))
        *parents, last = path.split(".")
        target = value
        for parent in parents:
            target = target[parent]
        target[last] = data.draw(ANYTHING)
        try:
            read = runs.CheckpointInfo.from_json(value, Path("x"))
        except CheckpointError:
            return
        assert isinstance(read, runs.CheckpointInfo)


def test_training_samples_in_another_order_are_other_samples(tmp_path: Path) -> None:
    before, now = (DataRecord(names, (((1, 2),), ((1, 2),))) for names in (("a", "b"), ("b", "a")))
    before.write(tmp_path)
    checkpoint = runs.checkpoint_folder(tmp_path, 1)
    refuse_other_samples(checkpoint, before.identity, before)
    with pytest.raises(CheckpointError, match="are 2 as before, but other ones: they come in another order"):
        refuse_other_samples(checkpoint, before.identity, now)
