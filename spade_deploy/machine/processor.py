"""The processor: its name, and the instruction sets that decide which arithmetic is fast on it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_DECIDE_SPEED = re.compile(r"(avx|amx|fma|f16c|sse4|sve|sme|asimd|neon|bf16|i8mm|svei8mm)\w*")


def processor() -> str:
    """The processor's name, as well as the system knows it; on Arm, Linux gives the numbers of its maker and model."""
    named = next(iter(_listed("model name")), "")
    arm = [f"{key} {found[0]}" for key in ("cpu implementer", "cpu part") if (found := _listed(key))]
    return named or " ".join([platform.machine(), *arm] if arm else []) or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets for vectors and matrices that Linux lists, sorted; empty where it is not Linux."""
    words = " ".join(_listed("flags", "features")).split()
    return tuple(sorted({word for word in words if _DECIDE_SPEED.fullmatch(word)}))


def _listed(*keys: str) -> list[str]:
    """What /proc/cpuinfo says under one of these keys, for each core."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip().lower() in keys]
