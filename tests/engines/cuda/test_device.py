import ctypes
import importlib
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from spade_deploy.engines.cuda.device import Device, DeviceLibrary, PinnedMemory
from spade_deploy.engines.cuda.driver import Gpu, find_gpus
from spade_deploy.engines.cuda.open import open_device
from spade_deploy.errors import ConfigError, MissingDependencyError, RuntimeUnavailableError, SpadeError
from tests.support.fake_cuda import Chip, cuda_core_modules, driver_library, pycuda_modules
from tests.support.recording_device import FAKE_GPU, MisuseError, RecordingDevice

CONTENT = np.arange(1000, dtype=np.uint32).view(np.uint8)


def has_gpu() -> bool:
    try:
        return bool(find_gpus())
    except RuntimeUnavailableError:
        return False


@pytest.fixture(
    params=[
        "recording",
        "cuda-core over a fake",
        "pycuda over a fake",
        pytest.param("cuda-core", marks=pytest.mark.gpu),
        pytest.param("pycuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """What every device must do is asked of the real ones and of the recording one, so that it stays true to them."""
    opened: Device
    chip = Chip()
    if request.param == "recording":
        opened = RecordingDevice()
    elif request.param.endswith("over a fake"):
        library = request.param.split()[0]
        modules = pycuda_modules(chip) if library == "pycuda" else cuda_core_modules(chip)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importlib, "import_module", modules.__getitem__)
            patch.setattr(ctypes, "CDLL", lambda name: driver_library(chip))
            opened = open_device(0, library, find=lambda index: FAKE_GPU)
    else:
        if not has_gpu():
            pytest.skip("no CUDA device here")
        try:
            opened = open_device(0, request.param)
        except MissingDependencyError as error:
            pytest.skip(error.message)
    yield opened
    opened.close()
    assert chip.memory == {}
    assert chip.current == []


def free(device: Device, *handles: Any) -> None:
    for handle in handles:
        device.free(handle)


def test_bytes_come_back_over_two_streams_and_an_event(device: Device) -> None:
    with device.active():
        one, two, event, done = device.make_stream(), device.make_stream(), device.make_event(), device.make_event()
        memory, source = device.allocate(4000), device.allocate_pinned(4000)
        target = device.allocate_pinned(4000)
        source.array[:] = CONTENT
        target.array[:] = 7
        device.copy_in(memory, source, 4000, one)
        device.record(event, one)
        device.wait(two, event)
        device.copy_out(target, memory, 1000, two)
        device.record(done, two)
        device.synchronize(done)
        np.testing.assert_array_equal(target.array[:1000], CONTENT[:1000])
        assert (target.array[1000:] == 7).all()
        device.synchronize(one)
        free(device, memory, source, target, event, done, one, two)


def test_a_captured_graph_runs_when_it_is_launched_and_only_then(device: Device) -> None:
    with device.active():
        stream, memory = device.make_stream(), device.allocate(4000)
        source, target = device.allocate_pinned(4000), device.allocate_pinned(4000)
        target.array[:] = 7
        source.array[:] = CONTENT

        def work() -> None:
            device.copy_in(memory, source, 4000, stream)
            device.copy_out(target, memory, 4000, stream)

        graph = device.capture(stream, work)
        device.synchronize(stream)
        assert (target.array == 7).all()
        for shift in (0, 1):
            source.array[:] = np.roll(CONTENT, shift)
            device.launch(graph, stream)
            device.synchronize(stream)
            np.testing.assert_array_equal(target.array, np.roll(CONTENT, shift))
        free(device, graph, memory, source, target, stream)


def test_a_stream_is_as_before_after_a_capture_that_failed(device: Device) -> None:
    def work() -> None:
        raise ConfigError("not today")

    with device.active():
        stream, memory, pinned = device.make_stream(), device.allocate(8), device.allocate_pinned(8)
        with pytest.raises(ConfigError, match="not today"):
            device.capture(stream, work)
        pinned.array[:] = 3
        device.copy_in(memory, pinned, 8, stream)
        device.synchronize(stream)
        pinned.array[:] = 4
        device.copy_out(pinned, memory, 8, stream)
        device.synchronize(stream)
        assert (pinned.array == 3).all()
        free(device, memory, pinned, stream)


def test_memory_that_is_not_there(device: Device) -> None:
    asked = 1 << 46
    with device.active():
        with pytest.raises(RuntimeUnavailableError, match=f"{asked} bytes were asked for, [0-9]+ are free") as caught:
            device.allocate(asked)
        assert "--profile" in (caught.value.hint or "")
        free(device, device.allocate(256))


def test_another_thread_works_with_the_same_memory(device: Device) -> None:
    seen: list[Any] = []
    with device.active():
        stream, memory, pinned = device.make_stream(), device.allocate(8), device.allocate_pinned(8)

    def work() -> None:
        with device.active():
            pinned.array[:] = 5
            device.copy_in(memory, pinned, 8, stream)
            device.synchronize(stream)
            pinned.array[:] = 0
            device.copy_out(pinned, memory, 8, stream)
            device.synchronize(stream)
            seen.extend(pinned.array)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [5] * 8
    with device.active():
        free(device, memory, pinned, stream)


@pytest.mark.parametrize("size_bytes", [9, -1])
def test_a_copy_stays_inside_its_buffers(device: Device, size_bytes: int) -> None:
    with device.active():
        stream, memory, pinned = device.make_stream(), device.allocate(8), device.allocate_pinned(16)
        with pytest.raises((ValueError, MisuseError), match=f"copy of {size_bytes} bytes"):
            device.copy_in(memory, pinned, size_bytes, stream)
        with pytest.raises((ValueError, MisuseError), match=f"copy of {size_bytes} bytes"):
            device.copy_out(pinned, memory, size_bytes, stream)
        free(device, memory, pinned, stream)


# --- The recording device finds what a real one would not always show ------------------------------------------------


class Bench:
    """A recording device with one of everything."""

    def __init__(self) -> None:
        self.device = RecordingDevice()
        with self.device.active():
            self.stream, self.other = self.device.make_stream(), self.device.make_stream()
            self.memory, self.event = self.device.allocate(8), self.device.make_event()
            self.pinned, self.target = self.device.allocate_pinned(8), self.device.allocate_pinned(8)


def copy_in_then(bench: Bench) -> None:
    bench.device.copy_in(bench.memory, bench.pinned, 8, bench.stream)


def no_wait(bench: Bench) -> None:
    copy_in_then(bench)
    bench.device.record(bench.event, bench.stream)
    bench.device.copy_out(bench.target, bench.memory, 8, bench.other)


def wait_before_record(bench: Bench) -> None:
    bench.device.record(bench.event, bench.stream)
    copy_in_then(bench)
    bench.device.wait(bench.other, bench.event)
    bench.device.copy_out(bench.target, bench.memory, 8, bench.other)


def host_writes_too_early(bench: Bench) -> None:
    copy_in_then(bench)
    bench.pinned.array[:] = 1


def host_reads_too_early(bench: Bench) -> None:
    bench.device.copy_out(bench.target, bench.memory, 8, bench.stream)
    bench.device.synchronize(bench.other)
    bench.target.array.sum()


def freed_too_early(bench: Bench) -> None:
    copy_in_then(bench)
    bench.device.free(bench.memory)


def freed_twice(bench: Bench) -> None:
    bench.device.free(bench.memory)
    bench.device.free(bench.memory)


def used_after_free(bench: Bench) -> None:
    bench.device.free(bench.memory)
    copy_in_then(bench)


def pageable(bench: Bench) -> None:
    bench.device.copy_in(bench.memory, PinnedMemory(np.zeros(8, np.uint8)), 8, bench.stream)


def never_recorded(bench: Bench) -> None:
    bench.device.wait(bench.stream, bench.event)


def stream_with_work(bench: Bench) -> None:
    copy_in_then(bench)
    bench.device.free(bench.stream)


def graph_under_way(bench: Bench) -> None:
    graph = bench.device.capture(bench.stream, lambda: copy_in_then(bench))
    bench.device.launch(graph, bench.stream)
    bench.device.free(graph)


@pytest.mark.parametrize(
    ("misuse", "complaint"),
    [
        (no_wait, "copy out is not ordered after copy in"),
        (wait_before_record, "copy out is not ordered after copy in"),
        (host_writes_too_early, "the host is not ordered after copy in"),
        (host_reads_too_early, "the host is not ordered after copy out"),
        (freed_too_early, "free is not ordered after copy in"),
        (freed_twice, "no more"),
        (used_after_free, "no more"),
        (pageable, "pageable"),
        (never_recorded, "never recorded"),
        (stream_with_work, "has work left"),
        (graph_under_way, "a graph that is under way"),
    ],
)
def test_misuse_is_seen(misuse: Any, complaint: str) -> None:
    bench = Bench()
    with bench.device.active(), pytest.raises(MisuseError, match=complaint):
        misuse(bench)
    assert len(bench.device.complaints) == 1


def test_a_call_outside_of_active_and_what_is_left_at_the_end_are_seen() -> None:
    bench = Bench()
    with pytest.raises(MisuseError, match="copy_in outside of active"):
        copy_in_then(bench)
    with pytest.raises(MisuseError, match="'DeviceMemory', 'Event', 'RecordedPinned'"):
        bench.device.close()


def test_what_runs_too_early_reads_what_was_there_before() -> None:
    bench = Bench()
    with bench.device.active():
        bench.pinned.array[:] = 9
        copy_in_then(bench)
        assert (bench.device.content(bench.memory) == 0xAB).all()
        bench.device.synchronize(bench.stream)
        assert (bench.device.content(bench.memory) == 9).all()


# --- Which library is opened -----------------------------------------------------------------------------------------


def test_the_driver_is_asked_before_a_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))

    def none(index: int) -> Gpu:
        raise RuntimeUnavailableError(f"no GPU number {index}")

    with pytest.raises(RuntimeUnavailableError, match="no GPU number 3"):
        open_device(3, find=none)


def test_without_a_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(MissingDependencyError, match=r"cuda-core: No module.*'cuda.core'; pycuda: No module") as caught:
        open_device(find=lambda index: FAKE_GPU)
    assert "pip install" in (caught.value.hint or "")
    with pytest.raises(MissingDependencyError) as caught:
        open_device(library="pycuda", find=lambda index: FAKE_GPU)
    assert "cuda.core" not in caught.value.message
    with pytest.raises(ConfigError, match="'cupy' is not one of auto, cuda-core, pycuda"):
        open_device(library="cupy", find=lambda index: FAKE_GPU)


class FakeStatus(int):
    @property
    def name(self) -> str:
        return {2: "CUDA_ERROR_OUT_OF_MEMORY", 700: "CUDA_ERROR_ILLEGAL_ADDRESS"}[self]


def cuda_core_with(monkeypatch: pytest.MonkeyPatch, **driver: Any) -> Device:
    """cuda-core's device over modules that answer as told: what matters is what becomes of the answers."""
    calls = {
        "cuCtxGetCurrent": lambda: (0, "before"),
        "cuCtxSetCurrent": lambda context: (0,),
        **driver,
    }
    core = types.SimpleNamespace(
        __version__="1.2.3", Device=lambda index: types.SimpleNamespace(set_current=lambda: None)
    )
    modules = {"cuda.core": core, "cuda.bindings.driver": types.SimpleNamespace(**calls)}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    return open_device(library=DeviceLibrary.AUTO, find=lambda index: FAKE_GPU)


def test_cuda_core_is_taken_first_and_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    full, faulty = (lambda *_: (FakeStatus(2), 0)), (lambda *_: (FakeStatus(700),))
    device = cuda_core_with(
        monkeypatch, cuMemAlloc=full, cuMemHostAlloc=full, cuMemGetInfo=lambda: (0, 123, 456), cuMemFree=faulty
    )
    assert device.name == "cuda-core 1.2.3 on Fake GPU"
    with device.active():
        with pytest.raises(RuntimeUnavailableError, match="out of GPU memory: 999 bytes were asked for, 123 are free"):
            device.allocate(999)
        with pytest.raises(RuntimeUnavailableError, match=r"out of pinned host memory: 999 bytes were asked for$"):
            device.allocate_pinned(999)
    monkeypatch.undo()


def test_cuda_core_gives_the_thread_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[Any] = []

    def restore(context: Any) -> tuple[int]:
        restored.append(context)
        return (0,)

    device = cuda_core_with(monkeypatch, cuCtxSetCurrent=restore)
    restored.clear()

    def work() -> None:
        with device.active():
            assert not restored
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        work()
    assert restored == ["before"]


def test_a_failed_driver_call_is_an_error_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    device = cuda_core_with(monkeypatch)
    with device.active(), pytest.raises(SpadeError, match="cannot make a stream"):
        device.make_stream()


CORE_SURFACE = {
    "Device": ("set_current", "create_stream", "create_event"),
    "Stream": ("handle", "record", "wait", "sync", "close", "create_graph_builder"),
    "Event": ("sync", "close"),
    "graph.GraphBuilder": ("begin_building", "end_building", "complete", "close"),
    "graph.Graph": ("launch", "close"),
}
DRIVER_SURFACE = (
    *("cuCtxGetCurrent", "cuCtxSetCurrent", "cuMemAlloc", "cuMemFree", "cuMemHostAlloc", "cuMemFreeHost"),
    *("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemGetInfo"),
)


def test_what_is_used_of_cuda_core_is_there() -> None:
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for path, names in CORE_SURFACE.items():
        owner: Any = core
        for part in path.split("."):
            owner = getattr(owner, part)
        assert [name for name in names if not hasattr(owner, name)] == [], path
    assert [name for name in DRIVER_SURFACE if not hasattr(driver, name)] == []
    assert int(driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY) == 2
    assert int(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) == 1
