"""What an export refuses before it begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import LABEL, Source
from spade_deploy.errors import ConfigError
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.pipeline import ExportRequest
from spade_deploy.spec import Precision

MAPS = {LABEL: np.zeros((1, 32, 32), np.uint8)}
SOURCE = Source("run", 1, "train", "0" * 64)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"precisions": ()}, "`precisions`: none is not fp32, fp16 or both"),
        # An int8 graph is made of the fp32 one: asked for as a precision it would be a float graph of that name.
        ({"precisions": (Precision.FP32, Precision.INT8)}, "`precisions`: fp32, int8 is not fp32, fp16 or both"),
        ({"precisions": (Precision.FP16,), "int8": Int8Request(MAPS, "maps")}, "`int8`: its graphs are made of"),
    ],
)
def test_precisions_that_cannot_be_exported(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ExportRequest(MAPS, SOURCE, **fields)
