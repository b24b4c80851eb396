"""Inference by tiles: equal to the whole for any network of local layers, refusals by name, memory as stated."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from hypothesis import assume, given
from hypothesis import strategies as st
from sample import examples

import gpucnn
import gpucnn.functional as F
from gpucnn import nn
from gpucnn.nn import activation, models

Rng = np.random.Generator


def whole_numbers(model: nn.Module, rng: Rng) -> nn.Module:
    """`model` in evaluation mode with small integers, mostly zeros: float32 adds them exactly, in any order."""
    for parameter in model.parameters():
        shape = parameter.shape
        parameter.data = (rng.integers(-1, 2, shape) * (rng.random(shape) < 0.6)).astype(parameter.data.dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.eps, module.weight.data[:] = 0.0, 1
            module.running_mean[:] = rng.integers(-1, 2, module.num_features)
    return model.eval()


def integers(rng: Rng, *shape: int) -> np.ndarray[Any, Any]:
    return rng.integers(-2, 3, shape).astype(np.float32)


def whole(model: nn.Module, x: Any) -> Any:
    with nn.inference():
        return model(x)


def by_tiles(model: nn.Module, x: Any, **options: Any) -> Any:
    return nn.tiled(model, x, progress=False, **options)


# --- Networks -----------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Sums, products, slices and concatenations between modules."""

    def __init__(self, rng: Rng) -> None:
        self.conv = nn.Conv2d(2, 4, 3, padding=1, rng=rng)
        self.shift = nn.Conv2d(1, 2, (1, 3), padding=(0, 1), rng=rng)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        z = np.maximum(y[:, :2] * 2 - 1, 0) + x
        return np.concatenate([z[:, :, 1:-2, 2:], self.shift(y[:, 3:])[..., 3::1, :-2]], 1)


def unet(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return models.UNet(2, 1, width=2, depth=2, rng=rng), (2, 1, 27, 21)


def features(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    network = models.ResNet(models.BasicBlock, (1, 1, 1, 1), 5, width=2, rng=rng)
    return nn.Sequential(*list(network)[:-3]), (1, 3, 75, 66)


def dilated(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding="same", dilation=2, rng=rng), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 3, 3, padding="same_lower", dilation=(4, 3), groups=3, rng=rng), nn.LeakyReLU(0.5),
        nn.Conv2d(3, 2, 2, padding="same", stride=(2, 3), rng=rng), nn.MaxPool2d(2, 1, dilation=3),
    ), (1, 1, 30, 28)  # fmt: skip


def modes(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Conv2d(1, 2, 5, padding=((2, 1), (0, 3)), padding_mode="reflect", rng=rng),
        nn.Conv2d(2, 2, 3, stride=2, padding=2, padding_mode="replicate", rng=rng),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular", rng=rng),
    ), (1, 1, 19, 14)  # fmt: skip


def pools(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.AvgPool2d(2, 2, 1, ceil_mode=True, divisor_override=1), nn.SumPool2d(3, 1, padding="same_lower"),
        nn.BedOfNails2d((2, 3)), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(4, 3, 2, ceil_mode=True), nn.AdaptiveMaxPool2d((None, 3)),
    ), (1, 2, 34, 31)  # fmt: skip


def transposed(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.ConvTranspose1d(2, 3, 4, 3, ((1, 2),), output_padding=2, rng=rng), nn.Tanh(),
        nn.ConvTranspose1d(3, 2, 1, 4, rng=rng), nn.ConvTranspose1d(2, 2, 3, 2, "same", dilation=2, rng=rng),
    ), (2, 2, 13)  # fmt: skip


def wide(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    """Windows that lie in the padding, and outputs that no window reaches."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=7, rng=rng), nn.ConvTranspose2d(2, 1, 2, stride=3, output_padding=2, rng=rng)
    ), (1, 1, 4, 3)


def larger(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Upsample(scale_factor=1.7), nn.Conv2d(1, 2, 3, rng=rng), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(50, 30), mode="nearest-exact"), nn.Upsample(size=(25, 10), mode="area"),
        nn.Upsample(scale_factor=(4.0, 1.0), mode="bicubic"),
    ), (1, 1, 13, 11)  # fmt: skip


def volume(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    below = nn.Sequential(
        nn.MaxPool3d(2), nn.Conv3d(2, 3, 3, padding=1, rng=rng), nn.ReLU(), nn.ConvTranspose3d(3, 2, 2, 2, rng=rng)
    )
    return nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1, rng=rng), nn.Concat(nn.Identity(), below),
        nn.Residual(nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1), rng=rng), activation=nn.ReLU6()),
    ), (1, 1, 8, 10, 12)  # fmt: skip


def gated(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return Gate(rng), (2, 2, 12, 9)


NETWORKS = [unet, features, dilated, modes, pools, transposed, wide, larger, volume, gated]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.table(10)
def test_equals_the_whole(make: Callable[[Rng], Any]) -> None:
    rng = np.random.default_rng(1)
    model, shape = make(rng)
    whole_numbers(model, rng)
    x = integers(rng, *shape)
    wanted = whole(model, x)
    assert len(np.unique(wanted)) > 2
    for tile in (1 if wanted.size < 2000 else 3, 7, 64):
        found = by_tiles(model, x, tile=tile, batch_size=1 + tile // 64)
        bound = 4e-7 * np.abs(wanted).max() if make in (transposed, larger) else 0  # tanh, and weights of thirds
        np.testing.assert_allclose(found, wanted, rtol=0, atol=bound, err_msg=f"tile {tile}")


@pytest.mark.parametrize("make", [unet, features, dilated, volume])
def test_equals_the_whole_to_the_bit_with_real_numbers(make: Callable[[Rng], Any]) -> None:
    """With one algorithm, by tiles of which no edge is so small that a matrix product takes another kernel."""
    rng = np.random.default_rng(2)
    model, shape = make(rng)
    x = rng.standard_normal(shape).astype(np.float32)
    with gpucnn.algorithm("direct"):
        wanted = whole(model.eval(), x)
        close = by_tiles(model, x, tile=(8,) * (len(shape) - 2), batch_size=2)
        same = by_tiles(model, x, tile=max(shape), batch_size=2)
    assert same.tobytes() == wanted.tobytes()
    np.testing.assert_allclose(close, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_equals_the_whole_on_the_backend(backend: ArrayBackend) -> None:
    rng = np.random.default_rng(3)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, rng=rng), nn.BatchNorm2d(2), nn.ReLU(),
        nn.Concat(nn.Identity(), nn.Sequential(nn.MaxPool2d(2), nn.ConvTranspose2d(2, 1, 2, 2, rng=rng))),
        nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect", rng=rng),
    )  # fmt: skip
    x = integers(rng, 1, 1, 8, 6)
    wanted = whole(whole_numbers(model, rng), x)
    model.map_arrays(backend.asarray)
    here, there = np.zeros_like(wanted), backend.asarray(np.zeros_like(wanted))
    assert by_tiles(model, x, tile=(5, 4), out=here) is here  # from the host and back
    np.testing.assert_array_equal(here, wanted)
    by_tiles(model, backend.asarray(x), tile=(5, 4), out=there)
    np.testing.assert_array_equal(backend.asnumpy(there), wanted)
    np.testing.assert_array_equal(backend.asnumpy(by_tiles(model, backend.asarray(x), tile=4)), wanted)


@pytest.mark.parametrize("counted", [True, False])
def test_averages_at_the_end_divide_as_those_of_the_whole(counted: bool) -> None:
    """The last window of a pool that rounds up reaches over the padding: that part does not count, padding may."""
    divisors = set()
    for size in range(4, 12):
        x = integers(np.random.default_rng(size), 1, 1, size, size + 1)
        for window in ((3, 2, 1), (4, 3, 1), (5, 4, 2), (2, 2, 0)):
            pool = nn.AvgPool2d(*window, ceil_mode=True, count_include_pad=counted)
            wanted = whole(pool, x)
            divisors.add(float(whole(pool, np.ones_like(x))[0, 0, -1, -1]))
            for tile in (1, 2):
                np.testing.assert_array_equal(by_tiles(pool, x, tile=tile), wanted)
    assert (len(divisors) > 2) == counted


@pytest.mark.parametrize("name", [*activation.__all__, "LocalResponseNorm"])
@pytest.mark.table(20)
def test_equals_the_whole_of_every_activation(name: str) -> None:
    if name == "Flatten":
        return
    layer = getattr(nn, name)(*{"Softmax": (1,), "LocalResponseNorm": (3,)}.get(name, ())).eval()
    x = np.random.default_rng(8).standard_normal((1, 4, 9, 7))
    np.testing.assert_allclose(by_tiles(layer, x, tile=4), whole(layer, x), rtol=1e-14)


# --- Drawn networks -----------------------------------------------------------------------------------------------


@st.composite
def layers(draw: st.DrawFn, rank: int) -> nn.Module:
    """One layer of two channels, with any window."""
    kernel, stride, dilation = (
        tuple(draw(st.integers(1, most)) for _ in range(rank)) for most in (4, 3, 2)
    )  # fmt: skip
    pairs = tuple(tuple(draw(st.integers(0, 2)) for _ in range(2)) for _ in range(rank))
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def layer(name: str) -> Any:
        return getattr(nn, f"{name}{rank}d")

    kind = draw(st.sampled_from(["Conv", "ConvTranspose", "MaxPool", "SumPool", "Upsample", "BedOfNails", "Residual"]))
    if kind == "Conv":
        mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
        padding: Any = draw(st.sampled_from([pairs, "same", "same_lower"]))
        return layer(kind)(2, 2, kernel, stride, padding, dilation, draw(st.integers(1, 2)), True, mode, rng=rng)
    if kind == "ConvTranspose":
        return layer(kind)(2, 2, kernel, stride, pairs, draw(st.integers(0, 1)), 1, True, dilation, rng=rng)
    if kind == "MaxPool":
        return layer(kind)(kernel, stride, pairs, dilation, ceil_mode=draw(st.booleans()))
    if kind == "SumPool":
        return layer(kind)(kernel, stride, pairs, draw(st.booleans()), dilation)
    if kind == "Upsample":
        return nn.Upsample(scale_factor=draw(st.sampled_from([0.6, 1.0, 1.3, 2.0, 3.0])))
    if kind == "BedOfNails":
        return layer(kind)(tuple(draw(st.integers(1, 2)) for _ in range(rank)))
    padding = draw(st.sampled_from(["same", "same_lower"]))
    return nn.Residual(layer("Conv")(2, 2, kernel, 1, padding, dilation, rng=rng), activation=nn.ReLU())


@examples(300)
@given(st.data())
def test_drawn_networks_equal_the_whole(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    model = nn.Sequential(*data.draw(st.lists(layers(rank), min_size=1, max_size=4)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sizes = [data.draw(st.integers(3, (40, 20, 9)[rank - 1])) for _ in range(rank)]
    x = integers(rng, data.draw(st.integers(1, 2)), 2, *sizes)
    whole_numbers(model, rng)
    try:
        wanted = whole(model, x)
    except ValueError:  # a window does not fit, or a padding is too large for its mode
        assume(False)
    assume(max(wanted.shape[2:]) < 200 and np.abs(wanted[np.isfinite(wanted)]).max(initial=0) < 2**24)
    tile = [data.draw(st.integers(1 + size // 6, size + 1)) for size in wanted.shape[2:]]
    np.testing.assert_array_equal(by_tiles(model, x, tile=tile), wanted)


# --- Global pooling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_a_global_pooling_adds_up_its_tiles(pool: Any) -> None:
    rng = np.random.default_rng(4)
    network = models.ResNet(models.BasicBlock, (1, 1, 1, 1), 5, width=2, rng=rng)
    network.avgpool = pool(1)
    x = rng.standard_normal((3, 3, 70, 50)).astype(np.float32)
    wanted = whole(network.eval(), x)
    for tile in (1, 2, 50):
        found = by_tiles(network, x, tile=tile, batch_size=2)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_a_global_maximum_keeps_nan() -> None:
    x = np.zeros((1, 2, 6, 6), np.float32)
    x[0, 0, 5, 1] = np.nan
    found = by_tiles(nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), x, tile=2)
    np.testing.assert_array_equal(found, [[np.nan, 0]])


# --- Arrays -------------------------------------------------------------------------------------------------------


class Sliced:
    """What has no more than a shape, a dtype and slices, and says how much was read of it at once."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

    def __getitem__(self, key: Any) -> Any:
        self.most = max(self.most, self.array[key].size)
        return self.array[key].copy()

    def __setitem__(self, key: Any, value: np.ndarray[Any, Any]) -> None:
        assert type(value) is np.ndarray
        self.array[key] = value


def blur() -> nn.Module:
    rng = np.random.default_rng(5)
    return whole_numbers(nn.Sequential(nn.Conv2d(1, 2, 5, padding=2, rng=rng), nn.ReLU()), rng)


def test_reads_and_writes_by_slices() -> None:
    model, x = blur(), integers(np.random.default_rng(6), 1, 1, 40, 30)
    image, out = Sliced(x), Sliced(np.zeros((1, 2, 40, 30), np.float16))
    assert by_tiles(model, image, tile=10, out=out) is out
    np.testing.assert_array_equal(out.array, whole(model, x))
    assert image.most == 14 * 14
    assert nn.tiling(model, image, tile=10).reads == (14, 14)


@pytest.mark.parametrize("library", ["zarr", "h5py"])
def test_reads_and_writes_arrays_on_disk(library: str, tmp_path: Path) -> None:
    module = pytest.importorskip(library)
    model, x = blur(), integers(np.random.default_rng(6), 1, 1, 40, 30)
    if library == "zarr":
        given = module.create_array(store=str(tmp_path / "x"), data=x, chunks=(1, 1, 16, 16))
        out = module.create_array(store=str(tmp_path / "y"), shape=(1, 2, 40, 30), chunks=(1, 1, 16, 16), dtype="f4")
    else:
        file = module.File(tmp_path / "file", "w")
        given, out = file.create_dataset("x", data=x), file.create_dataset("y", (1, 2, 40, 30), "f4")
    by_tiles(model, given, tile=16, out=out, resume=tmp_path / "journal")
    np.testing.assert_array_equal(out[:], whole(model, x))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_reads_and_writes_mapped_files(mode: Any, tmp_path: Path) -> None:
    model, x = blur(), integers(np.random.default_rng(6), 1, 40, 30)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode == "c":
        mapped[:, 3] = x[:, 3] = 2  # in memory alone: these pages must stay
    out = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.float32, (2, 40, 30))
    by_tiles(model, mapped, tile=(9, 16), out=out)
    del out
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), whole(model, x[None])[0])


def test_a_new_array_has_the_shape_of_the_images() -> None:
    model, x = blur(), integers(np.random.default_rng(6), 1, 20, 30)
    found = by_tiles(model, x)
    assert found.shape == (2, 20, 30)
    np.testing.assert_array_equal(found, whole(model, x[None])[0])


def test_computes_in_16_bits_as_the_whole_does() -> None:
    model, x = unet(np.random.default_rng(7))[0].eval(), integers(np.random.default_rng(6), 1, 1, 20, 12)
    with nn.mixed_precision("float16"):
        wanted = whole(model, x)
        found = by_tiles(model, x, tile=7)
    assert found.dtype == wanted.dtype == np.float16
    np.testing.assert_allclose(found.astype(float), wanted.astype(float), rtol=0, atol=4e-3 * np.abs(wanted).max())


# --- Refusals -----------------------------------------------------------------------------------------------------


class Squeezed(nn.Module):
    """A gate that a global pooling computes."""

    def __init__(self) -> None:
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Any) -> Any:
        return x * self.pool(x)


class Functional(nn.Module):
    def forward(self, x: Any) -> Any:
        return F.relu(x)


REFUSED = [
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)).eval(), "1, a GroupNorm, .* statistics of all positions"),
    (nn.InstanceNorm2d(1), "an* InstanceNorm2d, .* statistics of all positions"),
    (nn.LayerNorm(8), "a LayerNorm, .* statistics of all positions"),
    (nn.LocallyConnected2d(1, 1, 8, 3), "a LocallyConnected2d, .* weights of its own"),
    (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), "0, a Flatten, .* no global pooling"),
    (nn.BatchNorm2d(1), r"a BatchNorm2d, .*model\.eval\(\)"),
    (nn.BatchNorm2d(1, track_running_stats=False).eval(), "a BatchNorm2d, .* statistics of the batch"),
    (nn.Dropout(0.5), "a Dropout, .* at random"),
    (nn.Softmax(2), "a Softmax, .* expected 1"),
    (nn.MaxPool2d(2, return_indices=True), "a MaxPool2d, .* indices"),
    (nn.Sequential(pool := nn.MaxPool2d(2), nn.MaxUnpool2d(pool)), "1, a MaxUnpool2d, .* whole image"),
    (nn.AdaptiveAvgPool2d(3), "a AdaptiveAvgPool2d, .* differ in size"),
    (Squeezed(), "a Squeezed, .* arrays of one shape"),
    (nn.Concat(nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)), "0, a AdaptiveAvgPool2d, .* two passes"),
    (Functional(), "a Functional, .* not followed"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
@pytest.mark.table(15)
def test_refuses_what_is_not_local(model: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=f"tiled: .*{message}"):
        by_tiles(model, np.zeros((1, 1, 8, 8), np.float32))


def test_refuses_arguments_that_do_not_fit(tmp_path: Path) -> None:
    model, x = blur(), np.zeros((1, 1, 8, 8), np.float32)
    for message, call in {
        "x is a list": lambda: by_tiles(model, [1.0]),
        "expected a Module": lambda: by_tiles(nn.Conv2d, x),
        r"x has shape \(8, 8\)": lambda: by_tiles(model, x[0, 0]),
        "input has dtype float64": lambda: by_tiles(model, x.astype(float)),
        "tile is 0": lambda: by_tiles(model, x, tile=0),
        "at most one": lambda: by_tiles(model, x, tile=1, memory=1),
        "memory is 1 bytes, expected at least": lambda: by_tiles(model, x, memory=1),
        "out has shape": lambda: by_tiles(model, x, out=x.copy()),
        "out has dtype": lambda: by_tiles(model, x, out=np.zeros((1, 2, 8, 8), int)),
        "in the memory of x": lambda: by_tiles(nn.ReLU(), x, out=x),
        "out is None": lambda: by_tiles(model, x, resume=tmp_path / "journal"),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()


# --- Memory and progress ------------------------------------------------------------------------------------------


def test_tiles_are_the_largest_that_fit() -> None:
    model, x = models.UNet(2, 1, width=4, depth=2, rng=0).eval(), np.zeros((2, 1, 2000, 900), np.float32)
    small, large = (nn.tiling(model, x, memory=memory) for memory in (48 << 20, 200 << 20))
    assert small.peak_bytes <= 48 << 20 < large.peak_bytes <= 200 << 20
    assert small.tiles > large.tiles > 1
    assert (large.output_shape, large.dtype) == ((2, 2, 2000, 900), np.float32)
    assert nn.tiling(model, x, memory=1e12).tiles == 2  # one for each image
    assert str(small).startswith(f"{small.tiles:,} tiles of ")


MEASURED = """
    import sys
    from pathlib import Path
    import numpy as np
    from gpucnn import nn
    from gpucnn.nn import models

    def peak():  # of this process alone: getrusage counts that of the one which started it too
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    model = models.UNet(1, 1, width=8, depth=2, rng=0).eval()
    with nn.inference():
        model(np.zeros((1, 1, 64, 64), np.float32))  # what is loaded once
    x = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, (1, 1, 1600, 700))
    out = np.lib.format.open_memmap(sys.argv[2], "w+", np.float16, x.shape)
    plan = nn.tiling(model, x, memory=128 << 20)
    assert plan.peak_bytes <= 128 << 20 and plan.tiles > 3, plan
    before = peak()
    nn.tiled(model, x, tile=plan.tile, out=out, progress=False)
    print(peak() - before, plan.peak_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not count a process's memory")
def test_memory_is_what_was_stated(tmp_path: Path) -> None:
    """Within the bound, the pages of both files included."""
    code = [sys.executable, "-c", textwrap.dedent(MEASURED), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    ran = subprocess.run(code, capture_output=True, text=True, check=True)
    taken, stated = map(int, ran.stdout.split())
    assert stated / 8 < taken <= stated


def test_progress_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucnn.nn._progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr("gpucnn.nn._progress.Lines.interval", 0.0)
    nn.tiled(blur(), np.zeros((1, 1, 8, 8), np.float32), tile=4)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("tiled: 4 tiles of 4 × 4, each of which reads at most 6 × 6, in at most ")
    assert [line.split(",")[0] for line in others] == [f"tile {number}/4" for number in (1, 2, 3, 4)]
