"""The machine that figures were measured on."""

from __future__ import annotations

import platform
from typing import Any

from spade_deploy.machine.cores import usable_cores
from spade_deploy.machine.packages import installed
from spade_deploy.machine.processor import cpu_kind, cpu_model, instruction_sets, processor

PACKAGES = (
    "spade-deploy",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "pillow",
    "torch",
    "openvino",
    "nncf",
    "ncnn",
    "pnnx",
    "onnx",
    "onnxscript",
)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, system, and the versions of what is measured; packages that are not installed are left out."""
    return {
        "processor": processor(),
        "cpu_kind": cpu_kind(),
        "cpu_model": cpu_model(),
        "instruction_sets": list(instruction_sets()),
        "cores": usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": installed(PACKAGES),
    }
