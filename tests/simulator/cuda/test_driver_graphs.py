"""Capture of streams into graphs: what is recorded, what is refused, and what a launch of the graph does."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest
from driving import CudaError, Driver

SOURCE = """
extern "C" __global__ void fill(float* y, float value) { y[threadIdx.x] = value; }
extern "C" __global__ void add(float* y, const float* x) { y[threadIdx.x] += x[threadIdx.x]; }
"""
N = 32
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
NONE, ACTIVE, INVALIDATED = 0, 1, 2
KERNEL, HOST = 0, 3
HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Capture:
    """Kernels, a stream that is captured, and what becomes of it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        module = driver.module(SOURCE)
        self._fill = driver.function(module, "fill")
        self._add = driver.function(module, "add")
        self.stream = driver.stream()

    def array(self, value: float = 0) -> ctypes.c_void_p:
        pointer = self.driver.upload(np.full(N, value, np.float32))
        self.driver.call("cuCtxSynchronize")
        return pointer

    def fill(self, y: ctypes.c_void_p, value: float, stream: ctypes.c_void_p | None = None) -> None:
        self.driver.launch(self._fill, y, ctypes.c_float(value), stream=stream or self.stream)

    def add(self, y: ctypes.c_void_p, x: ctypes.c_void_p, stream: ctypes.c_void_p | None = None) -> None:
        self.driver.launch(self._add, y, x, stream=stream or self.stream)

    def values(self, pointer: ctypes.c_void_p) -> set[float]:
        return set((ctypes.c_float * N).from_address(pointer.value or 0))

    def begin(self, mode: int = GLOBAL, stream: ctypes.c_void_p | None = None) -> None:
        self.driver.call("cuStreamBeginCapture_v2", stream or self.stream, mode)

    def end(self, stream: ctypes.c_void_p | None = None) -> ctypes.c_void_p:
        graph = ctypes.c_void_p()
        self.driver.call("cuStreamEndCapture", stream or self.stream, ctypes.byref(graph))
        return graph

    def status(self, stream: ctypes.c_void_p | None = None) -> int:
        status = ctypes.c_int()
        self.driver.call("cuStreamIsCapturing", stream or self.stream, ctypes.byref(status))
        return status.value

    def wait(self, waiting: ctypes.c_void_p, recorded: ctypes.c_void_p) -> None:
        """One stream waits for what is in another."""
        event = self.driver.event()
        self.driver.call("cuEventRecord", event, recorded)
        self.driver.call("cuStreamWaitEvent", waiting, event, 0)

    def replay(self, graph: ctypes.c_void_p, times: int = 1, stream: ctypes.c_void_p | None = None) -> None:
        executable = self.driver.handle("cuGraphInstantiateWithFlags", graph, ctypes.c_uint64(0))
        for _ in range(times):
            self.driver.call("cuGraphLaunch", executable, stream or self.stream)
        self.driver.call("cuStreamSynchronize", stream or self.stream)
        self.driver.call("cuGraphExecDestroy", executable)

    def refused(self, call: str, *arguments: object) -> str:
        """The name of the error of a call that must fail."""
        with pytest.raises(CudaError) as caught:
            self.driver.call(call, *arguments)
        return caught.value.name

    def end_refused(self, stream: ctypes.c_void_p | None = None) -> str:
        with pytest.raises(CudaError) as caught:
            self.end(stream)
        return caught.value.name


@pytest.fixture
def capture(driver: Driver) -> Capture:
    return Capture(driver)


# ---- Replay ----------------------------------------------------------------------------------------------------------


def test_captured_work_runs_when_the_graph_is_launched(capture: Capture) -> None:
    x, y = capture.array(2), capture.array()
    capture.begin()
    capture.add(y, x)
    graph = capture.end()
    assert capture.values(y) == {0}
    capture.replay(graph, times=3)
    assert capture.values(y) == {6}


def test_arguments_are_copied_at_the_capture(capture: Capture) -> None:
    y, value = capture.array(), ctypes.c_float(3)
    capture.begin()
    capture.driver.launch(capture._fill, y, value, stream=capture.stream)
    value.value = 5
    capture.replay(capture.end())
    assert capture.values(y) == {3}


def test_a_graph_may_be_destroyed_after_it_was_instantiated(capture: Capture) -> None:
    y = capture.array()
    capture.begin()
    capture.fill(y, 3)
    graph = capture.end()
    executable = capture.driver.handle("cuGraphInstantiateWithFlags", graph, ctypes.c_uint64(0))
    capture.driver.call("cuGraphDestroy", graph)
    capture.driver.call("cuGraphUpload", executable, capture.stream)
    capture.driver.call("cuGraphLaunch", executable, None)
    capture.driver.call("cuStreamSynchronize", None)
    assert capture.values(y) == {3}
    capture.driver.call("cuGraphExecDestroy", executable)
    assert capture.refused("cuGraphLaunch", executable, None) == "INVALID_HANDLE"


def test_copies_and_fills_are_captured(capture: Capture) -> None:
    x, y = capture.array(1), capture.array()
    nbytes = ctypes.c_size_t(4 * N)
    capture.begin()
    capture.driver.call("cuMemsetD8Async", x, ctypes.c_ubyte(0), nbytes, capture.stream)
    capture.driver.call("cuMemcpyDtoDAsync_v2", y, x, nbytes, capture.stream)
    graph = capture.end()
    capture.fill(y, 7)
    assert capture.values(x) == {1}
    capture.replay(graph)
    assert (capture.values(x), capture.values(y)) == ({0}, {0})


def test_host_functions_are_captured(capture: Capture) -> None:
    y = capture.array()
    seen: list[set[float]] = []
    function = HostFunction(lambda _: seen.append(capture.values(y)))
    capture.begin()
    capture.fill(y, 1)
    capture.driver.call("cuLaunchHostFunc", capture.stream, function, None)
    capture.fill(y, 2)
    graph = capture.end()
    assert seen == []
    capture.replay(graph, times=2)
    assert seen == [{1}, {1}]


def test_a_graph_is_captured_into_a_graph(capture: Capture) -> None:
    x, y = capture.array(2), capture.array()
    capture.begin()
    capture.add(y, x)
    inner = capture.driver.handle("cuGraphInstantiateWithFlags", capture.end(), ctypes.c_uint64(0))
    capture.begin()
    capture.driver.call("cuGraphLaunch", inner, capture.stream)
    capture.driver.call("cuGraphLaunch", inner, capture.stream)
    outer = capture.end()
    assert capture.values(y) == {0}
    capture.replay(outer)
    assert capture.values(y) == {4}


def test_a_launch_waits_for_what_is_in_its_stream(late_driver: Driver, capture: Capture) -> None:
    x, y = capture.array(), capture.array()
    capture.begin()
    capture.add(y, x)
    graph = capture.end()
    capture.fill(x, 3)
    capture.replay(graph)
    assert capture.values(y) == {3}


# ---- Several streams -------------------------------------------------------------------------------------------------


def test_streams_join_by_events(driver: Driver, capture: Capture) -> None:
    x, y, side = capture.array(), capture.array(), driver.stream()
    capture.begin()
    capture.fill(x, 3)
    capture.wait(side, capture.stream)
    assert capture.status(side) == ACTIVE
    capture.add(y, x, side)
    capture.wait(capture.stream, side)
    capture.add(x, y)
    graph = capture.end()
    assert capture.status(side) == NONE
    for seed in range(4):
        driver.set_stream_seed(seed)
        capture.fill(y, 0)
        capture.replay(graph)
        assert (capture.values(x), capture.values(y)) == ({6}, {3})


def test_branches_without_an_order_run_in_an_order_by_the_seed(driver: Driver, capture: Capture) -> None:
    y, side = capture.array(), driver.stream()
    capture.begin()
    capture.wait(side, capture.stream)
    capture.fill(y, 1)
    capture.fill(y, 2, side)
    capture.wait(capture.stream, side)
    graph = capture.end()
    results = set()
    for seed in range(1, 20):
        driver.set_stream_seed(seed)
        capture.replay(graph)
        results |= capture.values(y)
    assert results == {1, 2}


def test_work_of_another_stream_must_join(driver: Driver, capture: Capture) -> None:
    y, side = capture.array(), driver.stream()
    capture.begin()
    capture.fill(y, 1)
    capture.wait(side, capture.stream)
    capture.fill(y, 2, side)
    assert capture.end_refused() == "STREAM_CAPTURE_UNJOINED"
    assert (capture.status(), capture.status(side)) == (NONE, NONE)


def test_a_capture_ends_in_the_stream_that_it_began_in(driver: Driver, capture: Capture) -> None:
    side = driver.stream()
    capture.begin()
    assert capture.end_refused(side) == "ILLEGAL_STATE"
    capture.wait(side, capture.stream)
    assert capture.end_refused(side) == "STREAM_CAPTURE_UNMATCHED"
    assert capture.status() == INVALIDATED
    assert capture.end_refused() == "STREAM_CAPTURE_INVALIDATED"


def test_two_captures_do_not_merge(driver: Driver, capture: Capture) -> None:
    other = driver.stream()
    capture.begin()
    capture.begin(stream=other)
    event = driver.event()
    driver.call("cuEventRecord", event, other)
    assert capture.refused("cuStreamWaitEvent", capture.stream, event, 0) == "STREAM_CAPTURE_MERGE"
    assert capture.end_refused() == capture.end_refused(other) == "STREAM_CAPTURE_INVALIDATED"


def test_a_capture_does_not_wait_for_work_outside(driver: Driver, capture: Capture) -> None:
    event = driver.event()
    driver.call("cuEventRecord", event, driver.stream())
    capture.begin()
    assert capture.refused("cuStreamWaitEvent", capture.stream, event, 0) == "STREAM_CAPTURE_ISOLATION"
    assert capture.end_refused() == "STREAM_CAPTURE_INVALIDATED"


# ---- What a capture forbids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["cuStreamSynchronize", "cuStreamQuery"])
def test_the_stream_is_not_waited_for(capture: Capture, call: str) -> None:
    capture.begin()
    assert capture.refused(call, capture.stream) == "STREAM_CAPTURE_UNSUPPORTED"
    assert capture.status() == INVALIDATED
    assert capture.refused(call, capture.stream) == "STREAM_CAPTURE_INVALIDATED"
    assert capture.end_refused() == "STREAM_CAPTURE_INVALIDATED"
    assert capture.status() == NONE
    capture.driver.call(call, capture.stream)


def test_its_device_is_not_waited_for(capture: Capture) -> None:
    capture.begin()
    assert capture.refused("cuCtxSynchronize") == "STREAM_CAPTURE_UNSUPPORTED"
    assert capture.end_refused() == "STREAM_CAPTURE_INVALIDATED"


@pytest.mark.parametrize("call", ["cuEventQuery", "cuEventSynchronize"])
def test_a_captured_event_is_not_waited_for(driver: Driver, capture: Capture, call: str) -> None:
    event = driver.event()
    capture.begin()
    driver.call("cuEventRecord", event, capture.stream)
    assert capture.refused(call, event) == "CAPTURED_EVENT"


@pytest.mark.parametrize(("mode", "refused"), [(GLOBAL, True), (THREAD_LOCAL, True), (RELAXED, False)])
def test_allocation_while_the_thread_captures(driver: Driver, capture: Capture, mode: int, refused: bool) -> None:
    capture.begin(mode)
    if refused:
        with pytest.raises(CudaError) as caught:
            driver.alloc(64)
        assert caught.value.name == "STREAM_CAPTURE_UNSUPPORTED"
        assert capture.end_refused() == "STREAM_CAPTURE_INVALIDATED"
    else:
        driver.alloc(64)
        capture.end()


@pytest.mark.parametrize(("mode", "refused"), [(GLOBAL, True), (THREAD_LOCAL, False)])
def test_allocation_while_another_thread_captures(driver: Driver, capture: Capture, mode: int, refused: bool) -> None:
    def allocate() -> None:
        driver.call("cuCtxSetCurrent", driver.context)
        try:
            driver.alloc(64)
        except CudaError as error:
            names.append(error.name)

    names: list[str] = []
    capture.begin(mode)
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    assert names == (["STREAM_CAPTURE_UNSUPPORTED"] if refused else [])


def test_a_thread_may_relax_what_captures_forbid(driver: Driver, capture: Capture) -> None:
    mode = ctypes.c_int(RELAXED)
    capture.begin()
    driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    assert mode.value == GLOBAL
    driver.alloc(64)
    driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    assert mode.value == RELAXED
    capture.end()


def test_another_thread_may_only_end_a_relaxed_capture(driver: Driver, capture: Capture) -> None:
    def end_elsewhere() -> list[str]:
        def end() -> None:
            driver.call("cuCtxSetCurrent", driver.context)
            try:
                capture.end()
            except CudaError as error:
                names.append(error.name)

        names: list[str] = []
        thread = threading.Thread(target=end)
        thread.start()
        thread.join()
        return names

    capture.begin(THREAD_LOCAL)
    assert end_elsewhere() == ["STREAM_CAPTURE_WRONG_THREAD"]
    capture.end_refused()
    capture.begin(RELAXED)
    assert end_elsewhere() == []


# ---- Default streams -------------------------------------------------------------------------------------------------


def test_the_legacy_stream_is_not_captured(driver: Driver, capture: Capture) -> None:
    assert capture.refused("cuStreamBeginCapture_v2", None, GLOBAL) == "STREAM_CAPTURE_UNSUPPORTED"


def test_the_legacy_stream_is_refused_while_a_blocking_stream_is_captured(driver: Driver, capture: Capture) -> None:
    y, blocking = capture.array(), driver.stream(flags=0)
    capture.begin(stream=blocking)
    status = ctypes.c_int()
    assert capture.refused("cuStreamIsCapturing", None, ctypes.byref(status)) == "STREAM_CAPTURE_IMPLICIT"
    assert capture.status(blocking) == ACTIVE  # a question does no harm
    assert capture.refused("cuStreamSynchronize", None) == "STREAM_CAPTURE_IMPLICIT"
    assert capture.status(blocking) == INVALIDATED
    with pytest.raises(CudaError) as caught:
        driver.launch(capture._fill, y, ctypes.c_float(1), stream=None)
    assert caught.value.name == "STREAM_CAPTURE_IMPLICIT"
    assert capture.end_refused(blocking) == "STREAM_CAPTURE_INVALIDATED"


def test_the_legacy_stream_goes_on_while_another_stream_is_captured(driver: Driver, capture: Capture) -> None:
    y = capture.array()
    capture.begin()
    driver.launch(capture._fill, y, ctypes.c_float(1), stream=None)
    driver.call("cuStreamSynchronize", None)
    assert capture.values(y) == {1}
    capture.end()


# ---- What is in a graph ----------------------------------------------------------------------------------------------


def captured_pair(capture: Capture) -> ctypes.c_void_p:
    y, function = capture.array(), HostFunction(lambda _: None)
    capture.begin()
    capture.fill(y, 1)
    capture.driver.call("cuLaunchHostFunc", capture.stream, function, None)
    return capture.end()


def nodes_of(driver: Driver, call: str, graph: ctypes.c_void_p) -> list[int]:
    count = ctypes.c_size_t()
    driver.call(call, graph, None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * count.value)()
    driver.call(call, graph, nodes, ctypes.byref(count))
    return [node or 0 for node in nodes]


def test_nodes_and_edges(driver: Driver, capture: Capture) -> None:
    graph = captured_pair(capture)
    nodes = nodes_of(driver, "cuGraphGetNodes", graph)
    types = [driver_type(driver, node) for node in nodes]
    assert types == [KERNEL, HOST]
    assert nodes_of(driver, "cuGraphGetRootNodes", graph) == nodes[:1]
    sources, targets, count = (ctypes.c_void_p * 1)(), (ctypes.c_void_p * 1)(), ctypes.c_size_t(1)
    driver.call("cuGraphGetEdges", graph, sources, targets, ctypes.byref(count))
    assert [sources[0], targets[0], count.value] == [*nodes, 1]


def driver_type(driver: Driver, node: int) -> int:
    kind = ctypes.c_int(-1)
    driver.call("cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(kind))
    return kind.value


def test_a_clone_outlives_its_original(driver: Driver, capture: Capture) -> None:
    y = capture.array()
    capture.begin()
    capture.fill(y, 3)
    graph = capture.end()
    clone = driver.handle("cuGraphClone", graph)
    driver.call("cuGraphDestroy", graph)
    assert capture.refused("cuGraphDestroy", graph) == "INVALID_HANDLE"
    capture.replay(clone)
    assert capture.values(y) == {3}


@pytest.mark.parametrize(("flags", "details"), [(0, ("", "")), (1, ("\\nkernel", "\\nhost function"))])
def test_a_picture_of_a_graph(
    driver: Driver, capture: Capture, tmp_path: Path, flags: int, details: tuple[str, str]
) -> None:
    path = tmp_path / "graph.dot"
    driver.call("cuGraphDebugDotPrint", captured_pair(capture), str(path).encode(), flags)
    assert path.read_text(encoding="utf-8") == (
        f'digraph {{\n  n0 [label="fill{details[0]}"];\n  n1 [label="cuLaunchHostFunc{details[1]}"];\n  n0 -> n1;\n}}\n'
    )


def test_the_state_of_a_capture(driver: Driver, capture: Capture) -> None:
    y = capture.array()
    capture.begin()
    capture.fill(y, 1)
    status, number, graph = ctypes.c_int(), ctypes.c_uint64(), ctypes.c_void_p()
    nodes, count = ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_size_t()
    out = [ctypes.byref(each) for each in (status, number, graph, nodes, count)]
    driver.call("cuStreamGetCaptureInfo_v2", capture.stream, *out)
    assert (status.value, count.value) == (ACTIVE, 1)
    assert number.value > 0
    node = nodes[0]
    ended = capture.end()
    assert ended.value == graph.value
    assert nodes_of(driver, "cuGraphGetNodes", ended) == [node]


def test_updates_are_not_simulated(driver: Driver, capture: Capture) -> None:
    graph = captured_pair(capture)
    executable = driver.handle("cuGraphInstantiateWithFlags", graph, ctypes.c_uint64(0))
    with pytest.raises(CudaError) as caught:
        driver.call("cuGraphExecUpdate_v2", executable, graph, None)
    assert caught.value.name == "NOT_SUPPORTED"
    assert caught.value.detail == "cuGraphExecUpdate is not simulated; instantiate the graph anew"
