from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from spade_deploy.engines.cuda import driver as cuda_driver
from spade_deploy.engines.cuda.driver import find_gpus, require_gpu
from spade_deploy.engines.tensorrt import library as trt_library
from spade_deploy.errors import MissingDependencyError, RuntimeUnavailableError
from spade_deploy.spec import Flavour


class Driver:
    """Answers like libcuda.so.1 of a machine with two cards."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = [b"NVIDIA H100", b"NVIDIA L4"][device.value]
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 13020
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = 80 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: (9, 8), 76: (0, 9)}[attribute][device.value]
        return 0


def test_gpus_are_described() -> None:
    found = find_gpus(lambda name: Driver())  # type: ignore[arg-type, return-value]
    assert [(gpu.name, gpu.compute_capability) for gpu in found] == [("NVIDIA H100", (9, 0)), ("NVIDIA L4", (8, 9))]
    assert found[0].memory_bytes == 80 << 30
    assert found[0].driver_cuda == "13.2"


def test_no_driver_no_device_and_a_driver_that_does_not_start() -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(RuntimeUnavailableError, match=r"does not load here: .*cannot open") as caught:
        find_gpus(missing)
    assert "--gpus all" in str(caught.value.hint)
    with pytest.raises(RuntimeUnavailableError, match="does not load"):
        find_gpus(lambda name: SimpleNamespace())  # type: ignore[arg-type, return-value]
    assert find_gpus(lambda name: Driver(100)) == []  # type: ignore[arg-type, return-value]
    with pytest.raises(RuntimeUnavailableError, match="CUDA error 803"):
        find_gpus(lambda name: Driver(803))  # type: ignore[arg-type, return-value]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real = find_gpus
    monkeypatch.setattr(cuda_driver, "find_gpus", lambda: real(lambda name: Driver()))  # type: ignore[arg-type, return-value]
    assert require_gpu(1).name == "NVIDIA L4"
    with pytest.raises(RuntimeUnavailableError, match="no GPU number 2: there are 2"):
        require_gpu(2)


def test_tensorrt_is_not_imported_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runtime ends the process where it finds no driver."""
    monkeypatch.setattr(trt_library, "is_installed", lambda *_, **__: True)
    monkeypatch.setattr(trt_library, "_import_lazily_bound", lambda name: pytest.fail("it was imported"))

    def none_here() -> None:
        raise RuntimeUnavailableError("no driver")

    with pytest.raises(RuntimeUnavailableError, match="no driver"):
        trt_library.load_library(Flavour.TENSORRT, gpu=none_here)


def test_the_whole_is_preferred_to_its_runtimes_and_lean_to_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_lean", "tensorrt_dispatch", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__="11.4.0.106", name=name))

    def loaded(flavour: Flavour | None = None, *, to_run: bool = True) -> tuple[str, str]:
        library = trt_library.load_library(flavour, to_run=to_run, gpu=lambda: None)
        return library.module.name, library.title

    assert loaded() == loaded(to_run=False) == ("tensorrt", "TensorRT 11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert loaded() == loaded(Flavour.TENSORRT) == ("tensorrt_lean", "TensorRT lean runtime 11.4.0.106")
    assert loaded(to_run=False)[0] == "tensorrt_rtx"  # what builds
    with pytest.raises(MissingDependencyError, match="only the lean runtime is installed, which builds no engines"):
        loaded(Flavour.TENSORRT, to_run=False)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    assert loaded() == ("tensorrt_dispatch", "TensorRT dispatch runtime 11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match="only the dispatch runtime is installed") as caught:
        loaded(to_run=False)
    assert "spade-deploy[trt]" in str(caught.value.hint)
    assert trt_library.is_installed(Flavour.TENSORRT, to_run=True)
    assert not trt_library.is_installed(Flavour.TENSORRT)
    assert not trt_library.is_installed(Flavour.RTX, to_run=True)
    monkeypatch.setitem(sys.modules, "tensorrt_dispatch", None)
    for to_run in (False, True):
        with pytest.raises(MissingDependencyError, match="TensorRT is not installed"):
            loaded(Flavour.TENSORRT, to_run=to_run)


def test_a_runtime_alone_is_not_imported_without_a_gpu_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", SimpleNamespace(__version__="11.4.0.106"))
    monkeypatch.setattr(trt_library, "_import_lazily_bound", lambda name: pytest.fail("it was imported"))

    def none_here() -> None:
        raise RuntimeUnavailableError("no driver")

    with pytest.raises(RuntimeUnavailableError, match="no driver"):
        trt_library.load_library(to_run=True, gpu=none_here)


def test_libraries_that_are_missing_too_old_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_library, "is_installed", lambda *_, **__: False)
    with pytest.raises(MissingDependencyError, match="neither TensorRT nor") as caught:
        trt_library.load_library()
    assert "spade-deploy[rtx]" in str(caught.value.hint)
    with pytest.raises(MissingDependencyError, match="TensorRT is not installed"):
        trt_library.load_library(Flavour.TENSORRT)
    monkeypatch.setattr(trt_library, "is_installed", lambda *_, **__: True)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(RuntimeUnavailableError, match=r"TensorRT 8.6.1 is too old"):
        trt_library.load_library(Flavour.TENSORRT, gpu=lambda: None)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0.106"))
    assert trt_library.load_library(gpu=lambda: None).title == "TensorRT 11.4.0.106"

    def broken(name: str) -> None:
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(trt_library, "_import_lazily_bound", broken)
    with pytest.raises(RuntimeUnavailableError, match=r"does not load: libnvinfer.so.11"):
        trt_library.load_library(Flavour.RTX)
