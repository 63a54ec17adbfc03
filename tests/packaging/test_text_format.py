"""What is written reads back as the same message, by protobuf's own reader."""

from __future__ import annotations

import pytest

from spade_deploy.packaging.text_format import Word, map_field, text_of
from tests.support.triton import read_config


def test_every_kind_of_field_reads_back() -> None:
    odd = 'a "quoted" \\ back\nslash\ttab, Küche and 猫, \x7f'
    config = read_config(
        text_of(
            {
                "name": odd,
                "max_batch_size": 4,
                "input": [
                    {"name": "one", "data_type": Word("TYPE_UINT8"), "dims": [-1, 3], "optional": True},
                    {"name": "two", "data_type": Word("TYPE_FP32"), "dims": [256], "optional": False},
                ],
                "parameters": map_field({"first": {"string_value": odd}, "second": {"string_value": ""}}),
            }
        )
    )
    assert config.name == odd
    assert config.max_batch_size == 4
    assert [(one.name, one.data_type, list(one.dims), one.optional) for one in config.input] == [
        ("one", 2, [-1, 3], True),
        ("two", 11, [256], False),
    ]
    assert {name: value.string_value for name, value in config.parameters.items()} == {"first": odd, "second": ""}


@pytest.mark.parametrize("value", [None, b"bytes", {1, 2}])
def test_what_is_no_value_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="is no value of a protobuf field"):
        text_of({"name": value})
