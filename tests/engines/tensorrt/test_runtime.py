import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Arrays
from spade_deploy.engines.cuda.device import Event, Stream
from spade_deploy.engines.tensorrt import lane as trt_lane
from spade_deploy.engines.tensorrt.engine import Engine, EngineModel
from spade_deploy.engines.tensorrt.library import load_library, make_runtime
from spade_deploy.engines.tensorrt.runtime import TrtRuntime
from spade_deploy.errors import ArtifactError, ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.spec import Flavour, GeneratorSpec, GraphKind, LabelSpec, Precision, ShapeProfile
from tests.support import fake_tensorrt
from tests.support.fake_tensorrt import COMPATIBLE_ENGINE, GOOD_ENGINE, CudaGraphStrategy, FakeTensorRT
from tests.support.recording_device import MisuseError, RecordingDevice
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, random_inputs

PROFILE = ShapeProfile((1, 64, 32), (2, 64, 32), (4, 128, 64))
SMALL = GeneratorSpec(LabelSpec(5), base_channels=2, hidden_channels=2, height=32, width=32)
ONE_SIZE = ShapeProfile((1, 32, 32), (1, 32, 32), (3, 32, 32))


def profile_of(spec: GeneratorSpec) -> ShapeProfile:
    return ShapeProfile((1, spec.height, spec.width), (1, spec.height, spec.width), (4, spec.height, spec.width))


@dataclass
class Rig:
    """A fake TensorRT over a recording device; every runtime that is opened here is closed, and judged, at the end."""

    device: RecordingDevice
    trt: FakeTensorRT
    profile: ShapeProfile
    opened: list[TrtRuntime]

    def open(
        self,
        *,
        flavour: Flavour = Flavour.TENSORRT,
        content: bytes = GOOD_ENGINE,
        version_compatible: bool = False,
        **options: Any,
    ) -> TrtRuntime:
        runtime = TrtRuntime(
            self.trt.library(flavour),
            content,
            EngineModel(self.trt.spec, Precision.FP16, self.trt.kind, self.profile, version_compatible),
            device=self.device,
            **options,
        )
        self.opened.append(runtime)
        return runtime

    def calls(self, *names: str) -> list[str]:
        return [name for name, _ in self.device.calls if name in names]


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    rigs = []

    def make(
        spec: GeneratorSpec = PLAIN,
        kind: GraphKind = GraphKind.DENSE,
        profile: ShapeProfile = PROFILE,
        device: RecordingDevice | None = None,
    ) -> Rig:
        device = device or RecordingDevice()
        rigs.append(Rig(device, FakeTensorRT(device, spec, kind, profile), profile, []))
        return rigs[-1]

    yield make
    for rig in rigs:
        for runtime in rig.opened:
            runtime.close()
        rig.device.close()  # complains of whatever is not freed
        assert rig.device.complaints == []


def check(outputs: Arrays, spec: GeneratorSpec, inputs: Arrays) -> None:
    # The fake engine is the same NumPy function: measured 0.
    right = expected(spec, inputs)
    assert outputs
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, right[name])
        assert array.dtype == right[name].dtype


@pytest.mark.parametrize("spec", [PLAIN, EDGES, STYLED], ids=["plain", "edges", "styled"])
@pytest.mark.parametrize("count", [1, 3])
def test_outputs_are_those_of_the_graph(make_rig: MakeRig, spec: GeneratorSpec, count: int) -> None:
    runtime = make_rig(spec, profile=profile_of(spec)).open()
    inputs = random_inputs(spec, count, seed=count)
    outputs = runtime.run(inputs)
    assert list(outputs) == [PIXELS, IMAGE]
    check(outputs, spec, inputs)
    assert runtime.name == "TensorRT 9.9.9, fp16"
    assert runtime.patterns_s is None


def test_one_engine_serves_every_size_of_its_profile(make_rig: MakeRig) -> None:
    runtime = make_rig().open()
    for count, size in ((1, (64, 32)), (4, (128, 64)), (2, (96, 32)), (1, (64, 32))):
        inputs = random_inputs(PLAIN, count, size)
        check(runtime.run(inputs), PLAIN, inputs)


def test_outputs_are_arrays_of_their_own(make_rig: MakeRig) -> None:
    runtime = make_rig().open()
    first, second = random_inputs(PLAIN, seed=1), random_inputs(PLAIN, seed=2)
    kept = runtime.run(first)
    runtime.run(second)
    check(kept, PLAIN, first)


def test_inputs_need_not_be_contiguous(make_rig: MakeRig) -> None:
    inputs = random_inputs(PLAIN, 4)
    check(make_rig().open().run({LABEL: inputs[LABEL][::2]}), PLAIN, {LABEL: inputs[LABEL][::2]})


def test_only_the_outputs_that_are_asked_for_are_copied(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open()
    assert list(runtime.run(random_inputs(PLAIN), [PIXELS])) == [PIXELS]
    assert rig.calls("copy_out") == ["copy_out"]
    with pytest.raises(ConfigError, match="output 'rgb' is not one of pixels, image"):
        runtime.run(random_inputs(PLAIN), ["rgb"])
    with pytest.raises(ConfigError, match="output 'rgb' is not one of pixels, image"):
        runtime.run_many([], ["rgb"])


def test_a_lookup_engine_is_fed_tables(make_rig: MakeRig) -> None:
    runtime = make_rig(SMALL, GraphKind.LOOKUP, ONE_SIZE).open()
    for count in (1, 2):
        inputs = random_inputs(SMALL, count)
        check(runtime.run(inputs), SMALL, inputs)
        assert runtime.patterns_s is not None
        check(runtime.run_tables(graph_inputs(SMALL, GraphKind.LOOKUP, inputs)), SMALL, inputs)
    assert runtime.name == "TensorRT 9.9.9, fp16 lookup"


def test_tables_are_for_a_lookup_engine_alone(make_rig: MakeRig) -> None:
    with pytest.raises(ConfigError, match="takes label maps"):
        make_rig().open().run_tables({})


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count_and_size", [(5, (64, 32)), (1, (64, 96)), (1, (32, 32))])
def test_inputs_outside_the_profile_are_refused_before_anything_runs(
    make_rig: MakeRig, count_and_size: tuple[int, tuple[int, int]]
) -> None:
    rig = make_rig()
    runtime = rig.open()
    count, size = count_and_size
    inputs = random_inputs(PLAIN, count, size)
    shape = f"{count} x {size[0]} x {size[1]}"
    with pytest.raises(
        InputRefusedError, match=f"input label: shape {shape} is outside 1 x 64 x 32 to 4 x 128 x 64"
    ) as e:
        runtime.run(inputs)
    advised = ShapeProfile.parse((e.value.hint or "").split("--profile ")[1])
    assert advised.contains(count, *size)
    assert advised.contains(4, 128, 64)
    assert rig.calls("copy_in", "enqueue") == []


def test_other_inputs_are_refused_as_every_runtime_does(make_rig: MakeRig) -> None:
    rig = make_rig()
    with pytest.raises(InputRefusedError, match="input label: id 9"):
        rig.open().run({LABEL: np.full((1, 64, 32), 9, np.uint8)})
    assert rig.calls("copy_in", "enqueue") == []


def test_more_patterns_than_the_profile_has_are_refused_by_name(make_rig: MakeRig) -> None:
    rig = make_rig(SMALL, GraphKind.LOOKUP, ONE_SIZE)
    runtime = rig.open()
    tables = graph_inputs(SMALL, GraphKind.LOOKUP, random_inputs(SMALL, 1))
    most = rig.trt.ranges["codes_32"][2][0]
    long = np.resize(tables["codes_32"], (most + 1, 9))
    with pytest.raises(InputRefusedError, match=f"input codes_32: shape {most + 1} x 9 is outside 1 x 9 to {most} x 9"):
        runtime.run_tables({**tables, "codes_32": long})
    assert rig.calls("copy_in", "enqueue") == []
    runtime.run_tables({**tables, "codes_32": long[:-1]})


def test_patterns_are_counted_when_label_maps_are_fed_too(make_rig: MakeRig) -> None:
    rig = make_rig(SMALL, GraphKind.LOOKUP, ONE_SIZE)
    runtime = rig.open()
    runtime._engine.inputs["patterns_1"] = ((1, 9), (1, 9), (5, 9))
    with pytest.raises(InputRefusedError, match=r"input patterns_1: shape [0-9]+ x 9 is outside 1 x 9 to 5 x 9"):
        runtime.run(random_inputs(SMALL, 1))
    assert rig.calls("copy_in", "enqueue") == []


# --- Many batches, overlapping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_of_many_batches_come_in_order(make_rig: MakeRig, count: int) -> None:
    runtime = make_rig().open()
    sizes = [(64, 32), (128, 64), (96, 32)]
    batches = [random_inputs(PLAIN, 1 + i % 3, sizes[i % 3], seed=i) for i in range(count)]
    outputs = list(runtime.run_many(iter(batches)))
    assert len(outputs) == count
    for found, inputs in zip(outputs, batches, strict=True):
        check(found, PLAIN, inputs)


def test_the_next_copy_in_does_not_wait_for_the_last_copy_out(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open()
    list(runtime.run_many(random_inputs(PLAIN, seed=i) for i in range(5)))
    order = rig.calls("copy_in", "synchronize")
    first = order.index("copy_in")
    assert order[first : first + 10] == ["copy_in", *["copy_in", "synchronize"] * 4, "synchronize"]
    # Counter-test: one run after the other does wait.
    rig.device.calls.clear()
    for i in range(2):
        runtime.run(random_inputs(PLAIN, seed=i))
    assert rig.calls("copy_in", "synchronize") == ["copy_in", "synchronize"] * 2


def test_a_broken_batch_raises_in_its_place(make_rig: MakeRig) -> None:
    runtime = make_rig().open()
    good = [random_inputs(PLAIN, seed=i) for i in range(3)]
    bad = {LABEL: np.full((1, 64, 32), 9, np.uint8)}
    found: list[Arrays] = []
    with pytest.raises(InputRefusedError, match="id 9"):
        found.extend(runtime.run_many([*good, bad, good[0]]))
    assert len(found) == 3
    for outputs, inputs in zip(found, good, strict=True):
        check(outputs, PLAIN, inputs)
    check(runtime.run(good[0]), PLAIN, good[0])


def test_batches_that_cannot_be_read_raise_in_their_place(make_rig: MakeRig) -> None:
    def batches() -> Iterator[Arrays]:
        yield random_inputs(PLAIN)
        raise OSError("the disk is gone")

    found = make_rig().open().run_many(batches())
    check(next(found), PLAIN, random_inputs(PLAIN))
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_an_engine_that_fails_in_the_middle_gives_what_was_before(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open()

    def batches() -> Iterator[Arrays]:
        for i in range(5):
            rig.trt.fails_to_run = i == 2
            yield random_inputs(PLAIN, seed=i)

    found = runtime.run_many(batches())
    for i in range(2):
        check(next(found), PLAIN, random_inputs(PLAIN, seed=i))
    with pytest.raises(RuntimeUnavailableError, match="cannot run the engine: out of device memory"):
        next(found)
    rig.trt.fails_to_run = False
    check(runtime.run(random_inputs(PLAIN)), PLAIN, random_inputs(PLAIN))


def test_an_iterator_that_is_left_early_gives_its_context_back(make_rig: MakeRig) -> None:
    runtime = make_rig().open()
    found = runtime.run_many(random_inputs(PLAIN, seed=i) for i in range(5))
    next(found)
    with pytest.raises(RuntimeUnavailableError, match="in use by run_many in this thread"):
        runtime.run(random_inputs(PLAIN))
    found.close()  # type: ignore[attr-defined]
    batches = [random_inputs(PLAIN, seed=i) for i in range(3)]
    for outputs, inputs in zip(runtime.run_many(batches), batches, strict=True):  # both slots are free again
        check(outputs, PLAIN, inputs)


# --- CUDA graphs -----------------------------------------------------------------------------------------------------


def test_a_shape_that_comes_again_is_captured_and_launched(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open()
    for i in range(5):
        inputs = random_inputs(PLAIN, seed=i)
        check(runtime.run(inputs), PLAIN, inputs)
    assert rig.calls("capture", "launch") == ["capture", "launch", "launch", "launch"]
    assert runtime.notes == []
    other = random_inputs(PLAIN, 1, (96, 32))
    check(runtime.run(other), PLAIN, other)  # a shape in between does not disturb the graph
    check(runtime.run(inputs), PLAIN, inputs)
    assert rig.calls("capture", "launch")[-2:] == ["launch", "launch"]


def test_many_batches_use_a_graph_for_each_slot(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open()
    batches = [random_inputs(PLAIN, seed=i) for i in range(10)]
    for outputs, inputs in zip(runtime.run_many(batches), batches, strict=True):
        check(outputs, PLAIN, inputs)
    assert rig.calls("capture", "launch").count("capture") == 2
    assert rig.calls("capture", "launch").count("launch") == 6


def test_the_graph_that_was_used_least_recently_makes_room(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open(graphs=2)
    shapes = [(1, (64, 32)), (2, (64, 32)), (3, (64, 32))]
    for count, size in (*shapes[:2] * 3, shapes[0], *shapes[2:] * 3):
        inputs = random_inputs(PLAIN, count, size)
        check(runtime.run(inputs), PLAIN, inputs)
    assert rig.calls("capture").count("capture") == 3
    launched = rig.calls("launch").count("launch")
    runtime.run(random_inputs(PLAIN, 1, (64, 32)))
    assert rig.calls("launch").count("launch") == launched + 1  # it is still there
    runtime.run(random_inputs(PLAIN, 2, (64, 32)))
    assert rig.calls("launch").count("launch") == launched + 1  # this one made room
    assert len(runtime._lanes._all[0]._captured) == 2


def test_shapes_that_never_come_again_are_forgotten(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_lane, "_REMEMBERED", 2)
    runtime = make_rig().open()
    for count in (1, 2, 3, 4):
        runtime.run(random_inputs(PLAIN, count))
    assert [shapes[0][1][0] for _, shapes in runtime._lanes._all[0]._ran] == [3, 4]


def test_a_graph_that_is_under_way_does_not_make_room_before_it_is_done(make_rig: MakeRig) -> None:
    runtime = make_rig().open(graphs=1)
    one, other = random_inputs(PLAIN, 1), random_inputs(PLAIN, 2)
    for _ in range(3):
        runtime.run(one)
    for _ in range(3):  # the second time, the other's slot and shape come again: the graph of the first makes room
        for outputs, inputs in zip(runtime.run_many([one, other]), [one, other], strict=True):
            check(outputs, PLAIN, inputs)


def test_without_graphs_none_is_captured(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open(graphs=0)
    for i in range(4):
        runtime.run(random_inputs(PLAIN, seed=i))
    assert rig.calls("capture", "launch") == []
    assert len(rig.trt.contexts) == 1


def fail_to_capture(rig: Rig) -> None:
    rig.trt.fails_when_capturing = True


def have_no_memory_for_a_context(rig: Rig) -> None:
    rig.trt.most_contexts = 1


def have_a_driver_that_cannot(rig: Rig) -> None:
    rig.device.fails["capture"] = RuntimeUnavailableError("stream capture is not supported")


@pytest.mark.parametrize("fail", [fail_to_capture, have_no_memory_for_a_context, have_a_driver_that_cannot])
def test_where_capturing_fails_it_is_said_once_and_never_tried_again(
    make_rig: MakeRig, fail: Callable[[Rig], None]
) -> None:
    rig = make_rig()
    fail(rig)
    runtime = rig.open()
    for i in range(8):
        inputs = random_inputs(PLAIN, 1 + i % 2, seed=i)
        check(runtime.run(inputs), PLAIN, inputs)
    assert len(runtime.notes) == 1
    assert "runs without CUDA graphs" in runtime.notes[0]
    assert len(rig.calls("capture")) <= 1
    assert rig.calls("launch") == []
    assert len(runtime._lanes._all[0]._captured) <= 1  # no more than the shape that was kept and not captured yet


def test_tensorrt_for_rtx_makes_its_own_graphs(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open(flavour=Flavour.RTX)
    for i in range(4):
        inputs = random_inputs(PLAIN, seed=i)
        check(runtime.run(inputs), PLAIN, inputs)
    assert rig.calls("capture", "launch") == []
    assert [context._how.cuda_graph_strategy for context in rig.trt.contexts] == [CudaGraphStrategy.WHOLE_GRAPH_CAPTURE]
    assert runtime.name == "TensorRT for RTX 9.9.9, fp16"
    plain = make_rig().open(flavour=Flavour.RTX, graphs=0)
    check(plain.run(inputs), PLAIN, inputs)


def test_a_tensorrt_that_manages_its_own_memory_does_as_well(make_rig: MakeRig) -> None:
    rig = make_rig()
    del rig.trt.ExecutionContextAllocationStrategy
    runtime = rig.open()
    for i in range(4):
        inputs = random_inputs(PLAIN, seed=i)
        check(runtime.run(inputs), PLAIN, inputs)


# --- Memory, failures, the end ---------------------------------------------------------------------------------------


def test_device_memory_is_allocated_once_and_for_the_largest_batch(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open()
    sizes = sorted(size for name, size in rig.device.calls if name == "allocate")
    pixels = 4 * 128 * 64
    assert sizes == [fake_tensorrt.SCRATCH_BYTES, pixels, 3 * pixels, 12 * pixels]
    for count in (1, 4, 2) * 3:
        runtime.run(random_inputs(PLAIN, count, (128, 64)))
    assert len(rig.calls("allocate")) == 4
    list(runtime.run_many(random_inputs(PLAIN, seed=i) for i in range(4)))
    assert len(rig.calls("allocate")) == 7  # the second slot; scratch memory is shared


@pytest.mark.parametrize("memory_bytes", [1000, 5000, 100_000, 500_000, 1_000_000])
def test_where_memory_is_short_what_was_taken_is_given_back(make_rig: MakeRig, memory_bytes: int) -> None:
    rig = make_rig(device=RecordingDevice(memory_bytes))
    with pytest.raises(RuntimeUnavailableError, match=r"bytes were asked for, [0-9]+ are free"):
        rig.open(contexts=2)
    assert rig.device.free_bytes == memory_bytes
    # Counter-test: with enough of it, it opens.
    make_rig(device=RecordingDevice(2_000_000)).open(contexts=2)


def test_a_second_slot_without_memory_leaves_the_first_as_it_was(make_rig: MakeRig) -> None:
    rig = make_rig(device=RecordingDevice(600_000))
    runtime = rig.open()
    inputs = random_inputs(PLAIN)
    for _ in range(2):
        free = rig.device.free_bytes
        found = runtime.run_many([inputs, inputs])
        check(next(found), PLAIN, inputs)
        with pytest.raises(RuntimeUnavailableError, match="bytes were asked for"):
            next(found)
        assert rig.device.free_bytes == free
    check(runtime.run(inputs), PLAIN, inputs)


def test_an_engine_that_cannot_be_loaded(make_rig: MakeRig) -> None:
    with pytest.raises(ArtifactError, match=r"9\.9\.9 cannot load the engine: magic tag does not match") as error:
        make_rig().open(content=b"something else")
    assert "spade build" in (error.value.hint or "")


def test_an_engine_of_another_model_or_profile(make_rig: MakeRig) -> None:
    rig = make_rig(EDGES, profile=profile_of(EDGES))
    rig.trt.spec = STYLED
    rig.profile = profile_of(STYLED)
    with pytest.raises(
        ArtifactError, match="inputs are instance INT32, label UINT8; the model's are label INT32, z FL"
    ):
        rig.open()
    rig = make_rig()
    rig.profile = ShapeProfile((1, 64, 32), (2, 64, 32), (8, 128, 64))
    with pytest.raises(
        ArtifactError, match="takes label from 1 x 64 x 32 to 4 x 128 x 64, which is not the profile 1x64"
    ):
        rig.open()


def test_what_tensorrt_refuses_is_said_in_its_words(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open()
    rig.trt.refuses_shape = lambda name: True
    with pytest.raises(
        RuntimeUnavailableError, match="refuses the shape 2 x 64 x 32 of label: label is out of its prof"
    ):
        runtime.run(random_inputs(PLAIN))
    rig.trt.refuses_shape = lambda name: False
    check(runtime.run(random_inputs(PLAIN)), PLAIN, random_inputs(PLAIN))


def test_settings_that_cannot_be(make_rig: MakeRig) -> None:
    for options in ({"contexts": 0}, {"graphs": -1}):
        with pytest.raises(ConfigError, match="contexts"):
            make_rig().open(**options)


def test_closing_twice_and_running_after(make_rig: MakeRig) -> None:
    rig = make_rig()
    with rig.open(owns_device=True) as runtime:
        for i in range(4):
            runtime.run(random_inputs(PLAIN, seed=i))
        open_iterator = runtime.run_many(random_inputs(PLAIN, seed=i) for i in range(4))
        next(open_iterator)
    runtime.close()
    assert rig.device.closed == 1
    for use in (lambda: runtime.run(random_inputs(PLAIN)), lambda: next(open_iterator)):
        with pytest.raises(RuntimeUnavailableError, match="it was closed"):
            use()


def test_a_runtime_that_does_not_open_closes_the_device_that_it_owns(make_rig: MakeRig) -> None:
    rig = make_rig()
    with pytest.raises(ArtifactError):
        rig.open(content=b"bad", owns_device=True)
    assert rig.device.closed == 1


# --- Several callers -------------------------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


@pytest.mark.parametrize("contexts", [1, 3])
def test_callers_share_the_contexts(make_rig: MakeRig, contexts: int) -> None:
    rig = make_rig()
    runtime = rig.open(contexts=contexts)

    def work(number: int) -> None:
        for i in range(6):
            inputs = random_inputs(PLAIN, 1 + (number + i) % 3, seed=100 * number + i)
            check(runtime.run(inputs), PLAIN, inputs)
        batches = [random_inputs(PLAIN, seed=100 * number + i) for i in range(5)]
        for outputs, inputs in zip(runtime.run_many(batches), batches, strict=True):
            check(outputs, PLAIN, inputs)

    in_threads(5, work)
    assert rig.device.calls.count(("make_stream", None)) == 3 * contexts


def test_two_contexts_are_busy_at_once(make_rig: MakeRig) -> None:
    runtime = make_rig().open(contexts=2)
    batches = [random_inputs(PLAIN, seed=i) for i in range(4)]
    one, two = runtime.run_many(batches), runtime.run_many(batches)
    for a, b, inputs in zip(one, two, batches, strict=True):
        check(a, PLAIN, inputs)
        check(b, PLAIN, inputs)


def test_closing_waits_for_the_runs_of_others_and_turns_away_those_who_wait(make_rig: MakeRig) -> None:
    rig = make_rig()
    runtime = rig.open()
    started, go_on = threading.Event(), threading.Event()
    said: list[str] = []
    freed: list[bool] = []
    free = rig.device.free

    def watched_free(handle: Any) -> None:
        freed.append(go_on.is_set())
        free(handle)

    rig.device.free = watched_free  # type: ignore[method-assign]

    def batches() -> Iterator[Arrays]:
        yield random_inputs(PLAIN)
        started.set()
        assert go_on.wait(30)

    def hold() -> None:
        try:
            list(runtime.run_many(batches()))
        except RuntimeUnavailableError as error:
            said.append(error.message)

    def wait_for_a_context() -> None:
        try:
            runtime.run(random_inputs(PLAIN))
        except RuntimeUnavailableError as error:
            said.append(error.message)

    holder = threading.Thread(target=hold)
    holder.start()
    assert started.wait(30)
    waiting = threading.Thread(target=wait_for_a_context)
    waiting.start()
    closing = threading.Thread(target=runtime.close)
    closing.start()
    waiting.join(30)
    assert said == ["TensorRT 9.9.9, fp16: it was closed"]
    closing.join(0.2)  # long enough for one that does not wait to be seen; no other result hangs on it
    go_on.set()
    for thread in (holder, closing):
        thread.join(30)
        assert not thread.is_alive()
    assert len(said) == 2
    assert freed
    assert all(freed)


# --- Counter-tests: a runtime with a mistake in it is found out ------------------------------------------------------


class ForgetfulDevice(RecordingDevice):
    """The wait or the synchronise of that number, counted from the first, does not happen."""

    def __init__(self, forgets: str, number: int) -> None:
        super().__init__()
        self.forgets, self.number = forgets, number

    def _happens(self, name: str) -> bool:
        self.number -= name == self.forgets
        return not (name == self.forgets and self.number == -1)

    def wait(self, stream: Stream, event: Event) -> None:
        if self._happens("wait"):
            super().wait(stream, event)

    def synchronize(self, what: Stream | Event) -> None:
        if self._happens("synchronize"):
            super().synchronize(what)


@pytest.mark.parametrize(
    ("forgets", "number", "complaint"),
    [
        ("wait", 0, "the engine is not ordered after copy in"),
        ("wait", 1, "copy out is not ordered after the engine"),
        ("wait", 5, "copy out is not ordered after the engine"),
        ("synchronize", 0, "the host is not ordered after copy out"),
    ],
)
def test_a_step_that_is_left_out_is_seen(forgets: str, number: int, complaint: str) -> None:
    device = ForgetfulDevice(forgets, number)
    trt = FakeTensorRT(device, PLAIN, GraphKind.DENSE, PROFILE)
    model = EngineModel(PLAIN, Precision.FP16, GraphKind.DENSE, PROFILE)
    runtime = TrtRuntime(trt.library(), GOOD_ENGINE, model, device=device, graphs=0)
    batches = [random_inputs(PLAIN, seed=i) for i in range(4)]
    with pytest.raises(MisuseError, match=complaint):
        list(map(runtime.run, batches))
    assert complaint in device.complaints[0]


def test_one_slot_for_two_batches_is_seen(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = trt_lane.Lane.submit
    monkeypatch.setattr(trt_lane.Lane, "submit", lambda lane, slot, *rest: submit(lane, 0, *rest))
    rig = make_rig()
    runtime = rig.open()
    with pytest.raises(MisuseError, match="the host is not ordered after copy in"):
        list(runtime.run_many(random_inputs(PLAIN, seed=i) for i in range(3)))
    rig.device.complaints.clear()


def test_lanes_that_share_scratch_memory_are_seen(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig()
    runtime = rig.open(contexts=2)
    one, two = runtime._lanes._all
    one._context._scratch = two._context._scratch
    batches = [random_inputs(PLAIN, seed=i) for i in range(2)]
    with pytest.raises(MisuseError, match="the engine is not ordered after the engine"):
        list(zip(runtime.run_many(batches), runtime.run_many(batches), strict=True))
    rig.device.complaints.clear()


# --- An engine that brings code ---------------------------------------------------------------------------------------


def test_a_version_compatible_engine_may_bring_its_code(make_rig: MakeRig) -> None:
    rig = make_rig()
    inputs = random_inputs(PLAIN)
    runtime = rig.open(content=COMPATIBLE_ENGINE, version_compatible=True)
    np.testing.assert_array_equal(runtime.run(inputs)[PIXELS], expected(PLAIN, inputs)[PIXELS])
    assert [one.engine_host_code_allowed for one in rig.trt.runtimes] == [True]


def test_no_other_engine_may_bring_code(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open()
    with pytest.raises(ArtifactError, match=r"cannot load the engine: .*getEngineHostCodeAllowed\(\) is false"):
        rig.open(content=COMPATIBLE_ENGINE)  # its key does not say that it is version-compatible
    assert [one.engine_host_code_allowed for one in rig.trt.runtimes] == [False, False]


def test_the_real_library_takes_and_keeps_what_is_allowed() -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    library = load_library(Flavour.RTX)
    for is_allowed in (False, True):
        runtime = make_runtime(library, real.Logger(real.Logger.ERROR), version_compatible=is_allowed)
        assert runtime.engine_host_code_allowed is is_allowed


# --- The fake is no other library than the real one ------------------------------------------------------------------

FAKED = ("ILogger", "IRuntimeConfig", "ICudaEngine", "IExecutionContext")
FAKED_ENUMS = ("DataType", "TensorIOMode", "ExecutionContextAllocationStrategy", "CudaGraphStrategy")


def test_the_real_library_says_why_it_cannot_load_an_engine() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    library = load_library(Flavour.RTX)
    with pytest.raises(ArtifactError, match=r"TensorRT for RTX [0-9.]+ cannot load the engine: .*Error Code"):
        Engine(library, b"no engine at all", EngineModel(PLAIN, Precision.FP16, GraphKind.DENSE, PROFILE))


def public_names(owner: Any) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_whatever_the_fake_has_the_real_bindings_have() -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    fake = FakeTensorRT(RecordingDevice(), PLAIN, GraphKind.DENSE, PROFILE)
    for name in FAKED:
        names = public_names(getattr(fake_tensorrt, name))
        assert names
        assert names - set(dir(getattr(real, name))) == set(), name
    assert public_names(fake.Runtime) == {"deserialize_cuda_engine", "engine_host_code_allowed"}
    assert public_names(fake.Runtime) <= set(dir(real.Runtime))
    for name in FAKED_ENUMS:
        members = set(getattr(fake_tensorrt, name).__members__)
        assert members - set(getattr(real, name).__members__) == set(), name
    assert int(real.ILogger.ERROR) == fake_tensorrt.ILogger.ERROR
    # Counter-test: a name that is not there is seen.
    assert "execute_async_v4" not in dir(real.IExecutionContext)
