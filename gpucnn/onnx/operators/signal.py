"""Windows, Fourier transforms and mel filters."""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np

from gpucnn.onnx.operators.arrays import axis_of, checked, ints, namespace
from gpucnn.onnx.operators.registry import Array, Host, operator, refuse
from gpucnn.onnx.tensors import dtype_of

# --- Windows ----------------------------------------------------------------------------------------------------------

_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}
"""The coefficients of the sum of cosines of each, whose signs alternate."""


def _window(name: str) -> Any:
    def window(size: Host, *, output_datatype: int = 1, periodic: int = 1) -> Array:
        (number,) = ints(size)
        checked([number], np.dtype(np.float64))
        angle = np.arange(number) * (2 * pi / max(number if periodic else number - 1, 1))
        first, second, third = _WINDOWS[name]
        return (first - second * np.cos(angle) + third * np.cos(2 * angle)).astype(dtype_of(output_datatype))

    return window


for _name in _WINDOWS:
    operator(_name, 17)(_window(_name))


# --- Fourier ----------------------------------------------------------------------------------------------------------


def _complex(x: Array) -> Array:
    """Complex numbers of arrays whose last axis holds real parts, or real and imaginary ones."""
    if x.shape[-1] == 1:
        return x[..., 0]
    if x.shape[-1] != 2:
        raise ValueError(f"input has shape {x.shape}, expected a last axis of 1 or 2")
    return x[..., 0] + 1j * x[..., 1]


def _transforms(xp: Any) -> Any:
    if not hasattr(xp, "fft"):  # the simulator's arrays
        raise refuse("this library of arrays has no Fourier transform")
    return xp.fft


def _parts(xp: Any, y: Array, dtype: Any) -> Array:
    return xp.stack([y.real, y.imag], -1).astype(dtype, copy=False)


@operator("DFT", 20)
def fourier(x: Array, length: Host = None, axis: Host = None, *, inverse: int = 0, onesided: int = 0) -> Array:
    """The discrete Fourier transform along an axis."""
    return _transformed(x, length, -2 if axis is None else ints(axis)[0], inverse, onesided)


@operator("DFT", 17)
def fourier_by_attribute(x: Array, length: Host = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Array:
    """As `fourier`."""
    return _transformed(x, length, axis, inverse, onesided)


def _transformed(x: Array, length: Any, axis: int, inverse: int, onesided: int) -> Array:
    xp, at = namespace(x), axis_of(axis, x.ndim)
    values = _complex(x)
    if inverse and onesided:
        return (
            _transforms(xp)
            .irfft(values, None if length is None else ints(length)[0], axis=at)[..., None]
            .astype(x.dtype)
        )
    size = x.shape[at] if length is None else ints(length)[0]
    transforms = _transforms(xp)
    y = (transforms.ifft if inverse else transforms.fft)(values, size, axis=at)
    if onesided:
        y = y[(slice(None),) * at + (slice(0, size // 2 + 1),)]
    return _parts(xp, y, x.dtype)


@operator("STFT", 17)
def short_time_fourier(
    signal: Array, frame_step: Host, window: Array = None, frame_length: Host = None, *, onesided: int = 1
) -> Array:
    """The Fourier transforms of windows along a signal [N, samples, 1 or 2]."""
    xp = namespace(signal)
    (step,) = ints(frame_step)
    size = window.shape[0] if frame_length is None else ints(frame_length)[0]
    if step < 1 or size < 1:
        raise refuse(f"frames of {size}, {step} apart, expected at least 1")
    values = _complex(signal)
    frames = (values.shape[1] - size) // step + 1
    at = xp.arange(frames).reshape(-1, 1) * step + xp.arange(size)
    pieces = values[:, at] if window is None else values[:, at] * window
    y = _transforms(xp).fft(pieces, axis=-1)
    return _parts(xp, y[..., : size // 2 + 1] if onesided else y, signal.dtype)


@operator("MelWeightMatrix", 17)
def mel_weight_matrix(
    num_mel_bins: Host,
    dft_length: Host,
    sample_rate: Host,
    lower_edge_hertz: Host,
    upper_edge_hertz: Host,
    *,
    output_datatype: int = 1,
) -> Array:
    """Triangles over the bins of a spectrum, evenly spread on the mel scale."""
    bins, size, rate = ints(num_mel_bins)[0], ints(dft_length)[0], ints(sample_rate)[0]
    checked([size // 2 + 1, bins], np.dtype(np.float64))
    low, high = (2595 * np.log10(1 + edge.item() / 700) for edge in (lower_edge_hertz, upper_edge_hertz))
    mels = np.arange(bins + 2) * ((high - low) / (bins + 2)) + low
    places = np.floor((size + 1) * 700 * (10 ** (mels / 2595) - 1) / rate).astype(np.int64)
    spectrum = np.arange(size // 2 + 1)[:, None]
    left, peak, right = places[:-2], places[1:-1], places[2:]
    rising = np.where(peak == left, spectrum == peak, (spectrum - left) / np.maximum(peak - left, 1))
    falling = (right - spectrum) / np.maximum(right - peak, 1)
    weights = np.where(spectrum <= peak, rising, falling)
    inside = (spectrum >= left) & (spectrum < np.maximum(right, peak + 1))
    return np.where(inside, weights, 0).astype(dtype_of(output_datatype))
