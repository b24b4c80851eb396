"""The plugin for pytest: its options, markers and fixtures, and what it says of memory that a test leaves behind."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[3]
PLUGIN = "gpucnn.simulator.pytest_plugin"

KERNEL = """
import cupy
import pytest

held = []
kernel = cupy.RawKernel(r'extern "C" __global__ void poke(float* x, int i) { x[i] = 1; }', "poke")

def poke(x, i):
    kernel((1,), (1,), (x, cupy.int32(i)))
"""

pytestmark = pytest.mark.no_compiler


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project is found from any folder, its plugin where it is not installed; no setting of the caller's is."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("DEVICE", "DEVICES", "MEMORY", "STREAM_SEED", "STREAM_RACES", "CHECK"):
        monkeypatch.delenv(f"GPUCNN_CUDA_{name}", raising=False)


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", PLUGIN, "-p", "no:cacheprovider", *options)


def test_the_plugin_is_registered() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"gpucnn-cuda-simulator": PLUGIN}


# ---- In any environment --------------------------------------------------------------------------------------------


def test_an_option_without_the_simulator_is_an_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--cuda-device=t4")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: the options --cuda-... are for --cuda-simulator, which is not given"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--cuda-device=v100", "must match t4|a100|h100|rtx4090, got 'v100'"),
        ("--cuda-devices=9", r"must match [0-8], got '9'"),
        ("--cuda-memory=1T", r"must match [1-9]\d*[KMG]?, got '1T'"),
        ("--cuda-stream-seed=-1", r"must match \d+, got '-1'"),
    ],
)
def test_a_value_that_makes_no_sense_is_an_error(option: str, said: str, pytester: pytest.Pytester) -> None:
    result = run(pytester, "--cuda-simulator", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str()


def test_another_environment_is_told_how_to_make_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(cupy_backends="")  # in the place of any CuPy
    result = run(pytester, "--cuda-simulator")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --cuda-simulator: CuPy cannot be imported (" in result.stderr.str()
    assert (
        result.stderr.str()
        .rstrip()
        .endswith("; python -m gpucnn.simulator.cupy DIR makes one, then run DIR/bin/python -m pytest")
    )


def test_markers_are_described(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.cuda_devices(n): *", "@pytest.mark.cuda_memory(nbytes): *"])


def test_the_fixture_skips_without_the_option(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(cuda_simulator): assert False")
    result = run(pytester, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*: needs --cuda-simulator"])


# ---- On simulated CUDA ---------------------------------------------------------------------------------------------


@pytest.fixture
def on_cuda(pytester: pytest.Pytester, cuda_environment: Path) -> pytest.Pytester:
    """A folder for tests that run in an environment with simulated CUDA."""
    return pytester


def test_settings_reach_the_driver(on_cuda: pytest.Pytester) -> None:
    on_cuda.makepyfile(
        """
        import cupy

        def test_it():
            runtime = cupy.cuda.runtime
            assert runtime.getDeviceCount() == 2
            assert runtime.memGetInfo()[1] == 64 << 20
            assert cupy.cuda.Device(1).compute_capability == "75"
        """
    )
    settings = ["--cuda-device=t4", "--cuda-devices=2", "--cuda-memory=64M", "--cuda-stream-seed=3", "--cuda-fast"]
    result = run(on_cuda, "--cuda-simulator", *settings, "--cuda-allocator=pool")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["simulated CUDA: CuPy *, 2 x *T4*, kernels without checks, pool allocations"])


def test_settings_that_come_too_late_are_an_error(on_cuda: pytest.Pytester) -> None:
    options = ["-p", PLUGIN, "--cuda-simulator", "--cuda-device=t4"]
    code = f"import cupy, pytest; print(int(pytest.main({options})))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == "4"
    assert "CuPy was imported before pytest read its options" in ran.stderr
    assert "set GPUCNN_CUDA_DEVICE=t4 in the environment instead" in ran.stderr


def test_bounds_are_exact_to_the_byte_unless_the_pool_rounds(on_cuda: pytest.Pytester) -> None:
    on_cuda.makepyfile(KERNEL + "def test_it():\n    x = cupy.zeros(3, 'f4')\n    poke(x, 3)\n    x.sum()\n")
    exact = run(on_cuda, "--cuda-simulator")
    exact.assert_outcomes(failed=1)
    exact.stdout.fnmatch_lines(["*CUDA_ERROR_*write of 4 bytes*"])
    exact.stdout.fnmatch_lines(["simulated CUDA: CuPy *, 1 x *H100*, kernels with checks, exact allocations"])
    run(on_cuda, "--cuda-simulator", "--cuda-allocator=pool").assert_outcomes(passed=1)


LEAKS = (
    KERNEL
    + """
@pytest.fixture
def array():
    return cupy.zeros(100, "f4")

@pytest.fixture(scope="module")
def shared():
    held.append(cupy.zeros(100, "f4"))

def test_clean(array, shared):
    x = cupy.zeros(10, "f4")
    cycle = [x]
    cycle.append(cycle)

def keep():
    held.append(cupy.zeros(300, "f4"))

def test_leaking(array):
    keep()

@pytest.mark.cuda_keeps_memory
def test_meant():
    keep()

def test_random_numbers():
    cupy.random.seed(1)
    cupy.random.rand(10)

def test_failing():
    keep()
    assert False
"""
)


@pytest.mark.parametrize("allocator", ["exact", "pool"])
def test_memory_that_is_left_behind_is_reported(allocator: str, on_cuda: pytest.Pytester) -> None:
    path = on_cuda.makepyfile(LEAKS)
    result = run(on_cuda, "--cuda-simulator", f"--cuda-allocator={allocator}")
    result.assert_outcomes(passed=4, failed=1)
    shown = result.outlines
    start = next(i for i, line in enumerate(shown) if "CUDA memory that tests left behind" in line)
    lines = path.read_text(encoding="utf-8").splitlines()
    keep, test = (
        1 + lines.index(text) for text in ('    held.append(cupy.zeros(300, "f4"))', "def test_leaking(array):")
    )
    assert shown[start + 1 : start + 3] == [
        f"{path.name}::test_leaking",
        f"    1200 bytes on device 0, allocated at {path.name}:{keep} in keep, "
        f"called at {path.name}:{test + 1} in test_leaking",
    ]
    assert "=====" in shown[start + 3]


def test_memory_that_is_left_behind_can_be_a_failure_or_nothing(on_cuda: pytest.Pytester) -> None:
    on_cuda.makepyfile(LEAKS)
    failing = run(on_cuda, "--cuda-simulator", "--cuda-leaks=fail")
    failing.assert_outcomes(passed=4, failed=1, errors=1)
    failing.stdout.fnmatch_lines(["CUDA memory is left behind:", "1200 bytes on device 0, allocated at *"])
    silent = run(on_cuda, "--cuda-simulator", "--cuda-leaks=off")
    silent.assert_outcomes(passed=4, failed=1)
    assert "left behind" not in silent.stdout.str()


def test_markers_limit_memory_and_ask_for_devices(on_cuda: pytest.Pytester) -> None:
    on_cuda.makepyfile(
        """
        import cupy
        import pytest

        @pytest.mark.cuda_memory(1 << 20)
        def test_little_memory():
            cupy.zeros(1 << 19, "u1")
            with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
                cupy.zeros(1 << 21, "u1")

        def test_usual_memory():
            cupy.zeros(1 << 21, "u1")

        @pytest.mark.cuda_devices(2)
        def test_two_devices():
            with cupy.cuda.Device(1):
                cupy.zeros(1)
        """
    )
    one = run(on_cuda, "--cuda-simulator", "-rs")
    one.assert_outcomes(passed=2, skipped=1)
    one.stdout.fnmatch_lines(["SKIPPED*: needs 2 simulated devices, --cuda-devices=2; there are 1"])
    run(on_cuda, "--cuda-simulator", "--cuda-devices=2").assert_outcomes(passed=3)


def test_the_fixture_controls_the_driver(on_cuda: pytest.Pytester) -> None:
    on_cuda.makepyfile(
        """
        import cupy
        import pytest

        def test_failure(cuda_simulator):
            with cuda_simulator.failing("cuMemAlloc", times=None) as failure:
                with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
                    cupy.zeros(10)
            assert failure.injected == 2  # once more after garbage was collected

        def test_counts_begin_at_zero(cuda_simulator):
            assert cuda_simulator.calls().get("cuMemAlloc_v2", 0) == 0
            cupy.empty(10)
            assert sum(count for name, count in cuda_simulator.calls().items() if name.startswith("cuMemAlloc")) == 1
        """
    )
    run(on_cuda, "--cuda-simulator").assert_outcomes(passed=2)


def test_pending_work_that_fails_is_the_failure_of_its_test(on_cuda: pytest.Pytester) -> None:
    on_cuda.makepyfile(
        KERNEL
        + """
@pytest.mark.cuda_keeps_memory
def test_pending():
    held.append(cupy.zeros(3, "f4"))
    with cupy.cuda.Stream(non_blocking=True):
        poke(held[0], 3)

def test_noticed_by_a_destructor():
    with cupy.cuda.Stream(non_blocking=True):
        poke(cupy.zeros(3, "f4"), 3)

def test_next():
    assert cupy.zeros(3).sum() == 0
"""
    )
    result = run(on_cuda, "--cuda-simulator", "--cuda-stream-seed=5")
    result.assert_outcomes(passed=3, errors=2)
    for name in ("test_pending", "test_noticed_by_a_destructor"):
        result.stdout.fnmatch_lines([f"*ERROR at teardown of {name}*", "*write of 4 bytes*"])


def test_streams_that_nothing_orders(on_cuda: pytest.Pytester) -> None:
    on_cuda.makepyfile(
        KERNEL
        + """
@pytest.mark.parametrize("is_ordered", [True, False])
def test_it(is_ordered):
    x = cupy.zeros(3, "f4")
    event = cupy.cuda.Event()
    event.record()
    other = cupy.cuda.Stream(non_blocking=True)
    if is_ordered:
        other.wait_event(event)
    with other:
        poke(x, 0)
    other.synchronize()
"""
    )
    run(on_cuda, "--cuda-simulator", "--cuda-stream-races").assert_outcomes(passed=1, failed=1)
    run(on_cuda, "--cuda-simulator").assert_outcomes(passed=2)


def test_no_device(on_cuda: pytest.Pytester) -> None:
    on_cuda.makepyfile("import cupy\n\ndef test_it():\n    assert not cupy.cuda.is_available()\n")
    result = run(on_cuda, "--cuda-simulator", "--cuda-devices=0")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["simulated CUDA: CuPy *, 0 x device, *"])
