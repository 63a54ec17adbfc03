"""spade-deploy turns a trained SPADE (GauGAN) generator into one that runs fast, anywhere, and is proved equal.

This is the public Python API. Each name is imported when it is first used, so `import spade_deploy` loads nothing
heavy, and a program that only runs an artifact never loads PyTorch.

    artifact = spade_deploy.export_checkpoint().artifact            # the newest checkpoint in runs/, validated
    artifact = spade_deploy.Artifact.open("runs/earth-001/artifact")
    with spade_deploy.open_runtime(artifact) as runtime:            # the fastest engine here that is right
        image = spade_deploy.make_images(runtime, labels)           # H x W ids -> H x W x 3, uint8 RGB
    spade_deploy.validate(artifact).require_passed()                # against the PyTorch module
    result = spade_deploy.bench_artifact(artifact)                  # latency, images a second, memory
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spade_deploy.version import __version__

if TYPE_CHECKING:
    from spade_deploy.artifact import Artifact
    from spade_deploy.bench import BenchRequest, bench_artifact
    from spade_deploy.errors import SpadeError
    from spade_deploy.inference import InferRequest, infer, make_images
    from spade_deploy.release.release import export_checkpoint
    from spade_deploy.release.request import ReleaseRequest
    from spade_deploy.tuning.open import open_runtime
    from spade_deploy.validation.request import ValidationRequest
    from spade_deploy.validation.validate import validate

__all__ = [
    "Artifact",
    "BenchRequest",
    "InferRequest",
    "ReleaseRequest",
    "SpadeError",
    "ValidationRequest",
    "__version__",
    "bench_artifact",
    "export_checkpoint",
    "infer",
    "make_images",
    "open_runtime",
    "validate",
]

_HOMES = {
    "Artifact": "spade_deploy.artifact",
    "BenchRequest": "spade_deploy.bench",
    "InferRequest": "spade_deploy.inference",
    "ReleaseRequest": "spade_deploy.release.request",
    "SpadeError": "spade_deploy.errors",
    "ValidationRequest": "spade_deploy.validation.request",
    "bench_artifact": "spade_deploy.bench",
    "export_checkpoint": "spade_deploy.release.release",
    "infer": "spade_deploy.inference",
    "make_images": "spade_deploy.inference",
    "open_runtime": "spade_deploy.tuning.open",
    "validate": "spade_deploy.validation.validate",
}
"""The module that each name comes from."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
