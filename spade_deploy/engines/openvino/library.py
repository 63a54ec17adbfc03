"""Import OpenVINO when it is needed, and ask it what this CPU can do. Nothing is sent anywhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from spade_deploy.errors import MissingDependencyError, RuntimeUnavailableError, line_of, reason_of
from spade_deploy.machine.processor import all_instruction_sets
from spade_deploy.machine.signals import interrupts_wait

DEVICE = "CPU"
INSTALL = "pip install 'spade-deploy[openvino]'"
_CONVERTER = "openvino.tools.ovc"
_OF_ITS_SOURCES = re.compile(r"\s*(Exception from |Check '|FrontEnd API failed)")
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16")
"""The names, as Linux lists them, of the instruction sets with bfloat16: three of x86, and that of Arm."""


def is_installed() -> bool:
    """Whether the package is there; nothing is imported."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"] is not None
    return find_spec("openvino") is not None


def load_openvino() -> ModuleType:
    """Import OpenVINO, without its model converter.

    The converter reports to its makers' usage statistics that it was imported, without being asked, and nothing here
    needs it. Raises MissingDependencyError, or RuntimeUnavailableError for a package that does not load.
    """
    if not is_installed():
        raise MissingDependencyError("OpenVINO is not installed", hint=INSTALL)
    try:
        with interrupts_wait(), _without_converter():
            import openvino
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeUnavailableError(
            f"OpenVINO is installed but does not load: {reason_of(error)}",
            hint="pip install --force-reinstall openvino",
        ) from error
    module: ModuleType = openvino
    return module


def version_of(openvino: ModuleType) -> str:
    """Its version without the build: '2026.4.1'."""
    return str(openvino.__version__).split("-")[0]


def read_onnx(path: Path) -> Any:
    """OpenVINO's own `Model` of an ONNX file; it raises whatever its reader raises.

    The reader for ONNX is taken by name: `Core.read_model` tries those of other formats on a file that is damaged, and
    they write to the terminal.
    """
    load_openvino()
    from openvino.frontend import FrontEndManager

    reader = FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(str(path)))


@cache
def core() -> Any:
    """OpenVINO's own `Core`; a process has one."""
    return load_openvino().Core()


def capabilities() -> frozenset[str]:
    """What OpenVINO does with speed on this CPU, as it says itself: FP32, BF16, INT8 and others."""
    return frozenset(core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))


def has_bf16() -> bool:
    """Whether OpenVINO computes bfloat16 with instructions of this CPU."""
    return "BF16" in capabilities()


def bf16_instructions() -> tuple[str, ...]:
    """The instruction sets with bfloat16 that Linux lists for this CPU."""
    return tuple(name for name in BF16_INSTRUCTIONS if name in all_instruction_sets())


def require_bf16() -> None:
    """Raise RuntimeUnavailableError where this CPU has no bfloat16."""
    if not has_bf16():
        name = core().get_property(DEVICE, "FULL_DEVICE_NAME")
        raise RuntimeUnavailableError(
            f"`precision` bf16: {name} has no instructions for it; OpenVINO lists {', '.join(sorted(capabilities()))}",
            hint="leave `precision` out, or take fp32",
        )


def said_by(error: Exception) -> str:
    """What OpenVINO says of a failure, in one line: the last of its lines that does not name its own source files."""
    told = [line for line in str(error).splitlines() if line.strip() and not _OF_ITS_SOURCES.match(line)]
    return line_of(told[-1]) if told else reason_of(error)


@contextmanager
def _without_converter() -> Iterator[None]:
    """Let `import openvino` find no converter. OpenVINO goes on without it, as where it is not installed."""
    if "openvino" in sys.modules or _CONVERTER in sys.modules:
        yield
        return
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # Python's own way to say: not there
    try:
        yield
    finally:
        del sys.modules[_CONVERTER]
