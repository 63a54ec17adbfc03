"""Half-precision models that run in eager PyTorch on the CPU, without an export: candidates for a precision search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spade_deploy.artifact import IMAGE, PIXELS, Arrays
from spade_deploy.export.build import build_model, model_inputs
from spade_deploy.networks.build import Generator
from spade_deploy.spec import GraphKind
from spade_deploy.validation.precision_search import Candidates, Run


def torch_candidates(generator: Generator, kind: GraphKind) -> Candidates:
    """The deployed module itself, which keeps the given units in float32."""

    @contextmanager
    def candidate(kept: tuple[str, ...]) -> Iterator[Run]:
        model = build_model(generator, kind, fp16=True, keep_fp32=kept)

        def run(inputs: Arrays) -> Arrays:
            with torch.inference_mode():
                pixels, image = model(*model_inputs(model, inputs))
            return {PIXELS: pixels.numpy(), IMAGE: image.numpy()}

        yield run

    return candidate
