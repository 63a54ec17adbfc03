"""The machine that figures were measured on, and how busy it was with other processes."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spade_deploy.machine.cores import usable_cores

PACKAGES = (
    "spade-deploy",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "pillow",
    "torch",
    "openvino",
    "onnx",
    "onnxscript",
)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, system, and the versions of what is measured; packages that are not installed are left out."""
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def busy_seconds() -> float | None:
    """Processor time of all processes since the machine started; None on systems that do not report it."""
    table = Path("/proc/stat")
    if not table.exists():
        return None
    # Busy time is user, nice, system, irq, softirq and steal, without idle and iowait.
    user, nice, system, _idle, _waiting, *rest = map(int, table.read_text().split("\n", 1)[0].split()[1:9])
    return float(user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
