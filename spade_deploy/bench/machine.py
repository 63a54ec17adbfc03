"""The machine that figures were measured on, and how busy it was with other processes."""

from __future__ import annotations

import os
import platform
from pathlib import Path
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


def busy_seconds() -> float | None:
    """Processor time of all processes since the machine started; None on systems that do not report it."""
    table = Path("/proc/stat")
    if not table.exists():
        return None
    # Busy time is user, nice, system, irq, softirq and steal, without idle and iowait.
    user, nice, system, _idle, _waiting, *rest = map(int, table.read_text().split("\n", 1)[0].split()[1:9])
    return float(user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
