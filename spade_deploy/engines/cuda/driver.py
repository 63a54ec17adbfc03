"""The NVIDIA driver's own library, asked before anything is imported that would crash without it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

from spade_deploy.errors import RuntimeUnavailableError

_SUCCESS, _NO_DEVICE = 0, 100
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver sees."""

    index: int
    """Its number, as CUDA counts."""
    name: str
    """The card's name."""
    compute_capability: tuple[int, int]
    """Its major and minor number, as (8, 9)."""
    memory_bytes: int
    """All of its memory."""
    driver_cuda: str
    """The newest CUDA version that the driver supports, as '13.0'."""


def find_gpus(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> list[Gpu]:
    """The GPUs that the driver sees. Raises RuntimeUnavailableError where the driver does not load or start."""
    try:
        driver = load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        status = driver.cuInit(0)
    except (OSError, AttributeError) as error:  # AttributeError: a library of that name that is not the driver
        raise RuntimeUnavailableError(
            f"the NVIDIA driver does not load here: {error}",
            hint="install NVIDIA's driver, or in a container run it with --gpus all; `backend` cpu runs without it",
        ) from error
    if status == _NO_DEVICE:
        return []
    if status != _SUCCESS:
        raise RuntimeUnavailableError(
            f"the NVIDIA driver does not start: cuInit fails with CUDA error {status}",
            hint="`nvidia-smi` says more; restart the machine after an update of the driver",
        )
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS:
        return []
    return [gpu for index in range(count.value) if (gpu := _describe(driver, index)) is not None]


def require_gpu(index: int = 0) -> Gpu:
    """GPU number `index`. Raises RuntimeUnavailableError where there is none of that number."""
    found = find_gpus()
    for gpu in found:
        if gpu.index == index:
            return gpu
    there = f"there {'is' if len(found) == 1 else 'are'} {len(found)}" if found else "it sees none"
    raise RuntimeUnavailableError(
        f"the NVIDIA driver is here, but no GPU number {index}: {there}",
        hint="CUDA_VISIBLE_DEVICES may hide GPUs; `spade doctor` says what is seen; `backend` cpu runs without one",
    )


def _describe(driver: ctypes.CDLL, index: int) -> Gpu | None:
    device, name, number = ctypes.c_int(0), ctypes.create_string_buffer(256), ctypes.c_int(0)
    if driver.cuDeviceGet(ctypes.byref(device), index) != _SUCCESS:
        return None
    if driver.cuDeviceGetName(name, 256, device) != _SUCCESS:
        return None
    driver.cuDriverGetVersion(ctypes.byref(number))
    memory = ctypes.c_size_t(0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return Gpu(index, name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value, cuda)
