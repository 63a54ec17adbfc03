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
    "nncf",
    "ncnn",
    "pnnx",
    "onnx",
    "onnxscript",
)

_KINDS = {
    "amx": ("amx_bf16", "amx_tile", "amx_int8"),
    "avx512_bf16": ("avx512_bf16",),
    "avx512": ("avx512f", "avx512_vnni", "avx512_fp16"),
    "avx2": ("avx2", "avx_vnni"),
    "bf16": ("bf16", "i8mm"),
    "neon": ("asimd",),
}
"""Kinds of CPU, best first, and their instruction sets; the first of these makes a CPU one of the kind."""
_MODEL_KEYS = {"vendor": "vendor_id", "family": "cpu family", "model": "model", "stepping": "stepping"}


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
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    return _first("model name") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """Those of this CPU that decide how fast a network runs, as Linux names them; empty where it does not tell."""
    listed = set((_first("flags") or _first("Features") or "").split())
    return tuple(name for names in _KINDS.values() for name in names if name in listed)


def cpu_kind() -> str:
    """The kind of this CPU by its best instruction set: amx, avx512_bf16, avx512, avx2, bf16 or neon (Arm).

    On other systems than Linux it is the architecture's name: x86_64, arm64.
    """
    there = instruction_sets()
    found = (kind for kind, names in _KINDS.items() if names[0] in there)
    return next(found, platform.machine().lower() or "unknown")


def cpu_model() -> str:
    """Vendor, family, model and stepping, which tell processors of the same name apart; empty where not known."""
    named = {name: _first(key) for name, key in _MODEL_KEYS.items()}
    return ", ".join(f"{name} {value}" for name, value in named.items() if value)


def _first(key: str) -> str | None:
    """What /proc/cpuinfo says about the first core."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


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
