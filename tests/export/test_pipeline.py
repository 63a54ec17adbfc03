"""What an export refuses before it begins, and where it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.artifact import INSTANCE, LABEL, LOGITS, Source
from spade_deploy.errors import ConfigError
from spade_deploy.export import pipeline
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.pipeline import ExportRequest
from spade_deploy.spec import GeneratorSpec, Precision
from tests.support.generators import build_generator

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


def golden_of(spec: GeneratorSpec) -> dict[str, Any]:
    size = (1, spec.height, spec.width)
    edges = {INSTANCE: np.zeros(size, np.int32)} if spec.labels.has_edges else {}
    return {LABEL: np.zeros(size, np.uint8), **edges}


def test_float64_alone_is_computed_on_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[torch.dtype, str]] = []
    moved: list[str] = []
    run = pipeline._run

    def recording(generator: Any, inputs: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
        ran.append((dtype, device))
        return run(generator, inputs, dtype, "cpu")

    def to(module: torch.nn.Module, device: str) -> torch.nn.Module:
        moved.append(device)
        return module

    monkeypatch.setattr(pipeline, "_run", recording)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    generator = build_generator(training_steps=0)
    golden = golden_of(generator.spec)
    logits = pipeline.run_reference(generator, golden)[LOGITS]
    pipeline.rounding_error(generator, golden, logits, "cuda:1")
    assert ran == [(torch.float32, "cpu"), (torch.float64, "cuda:1")]
    assert moved == ["cuda:1"]


def test_an_export_computes_float64_where_its_request_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: Any) -> None:
        raise KeyboardInterrupt(given[-1])

    monkeypatch.setattr(pipeline, "rounding_error", stop)
    generator = build_generator(training_steps=0)
    request = ExportRequest(golden_of(generator.spec), SOURCE, float64_device="cuda:1")
    with pytest.raises(KeyboardInterrupt, match=r"^cuda:1$"):
        pipeline.export_artifact(generator, tmp_path, request)
