"""The processor: its name, and the instruction sets that decide which arithmetic is fast on it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_DECIDE_SPEED = re.compile(r"(avx|amx|fma|f16c|sse4|sve|sme|asimd|neon|bf16|i8mm|svei8mm)\w*")

_KINDS = {
    "amx": "amx_bf16",
    "avx512_bf16": "avx512_bf16",
    "avx512": "avx512f",
    "avx2": "avx2",
    "bf16": "bf16",
    "neon": "asimd",
}
"""Kinds of CPU, best first, and the instruction set that makes a CPU one of the kind."""
_MODEL_KEYS = {"vendor": "vendor_id", "family": "cpu family", "model": "model", "stepping": "stepping"}


def processor() -> str:
    """The processor's name, as well as the system knows it; on Arm, Linux gives the numbers of its maker and model."""
    named = next(iter(_listed("model name")), "")
    arm = [f"{key} {found[0]}" for key in ("cpu implementer", "cpu part") if (found := _listed(key))]
    return named or " ".join([platform.machine(), *arm] if arm else []) or platform.processor() or platform.machine()


def all_instruction_sets() -> tuple[str, ...]:
    """The instruction sets that Linux lists, sorted; empty where it is not Linux."""
    return tuple(sorted({word for line in _listed("flags", "features") for word in line.split()}))


def instruction_sets() -> tuple[str, ...]:
    """Those of them for vectors and matrices, which decide how fast arithmetic is."""
    return tuple(word for word in all_instruction_sets() if _DECIDE_SPEED.fullmatch(word))


def cpu_kind() -> str:
    """The kind of this CPU by its best instruction set: amx, avx512_bf16, avx512, avx2, bf16 or neon (Arm).

    On other systems than Linux it is the architecture's name: x86_64, arm64.
    """
    there = instruction_sets()
    found = (kind for kind, decisive in _KINDS.items() if decisive in there)
    return next(found, platform.machine().lower() or "unknown")


def cpu_model() -> str:
    """Vendor, family, model and stepping, which tell processors of the same name apart; empty where not known."""
    named = {name: next(iter(_listed(key)), "") for name, key in _MODEL_KEYS.items()}
    return ", ".join(f"{name} {value}" for name, value in named.items() if value)


def _listed(*keys: str) -> list[str]:
    """What /proc/cpuinfo says under one of these keys, for each core."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip().lower() in keys]
