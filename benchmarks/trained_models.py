"""Trained ONNX models of packages, by gpucnn and by ONNX Runtime: ``python -m benchmarks.trained_models``.

The packages are found where they are installed, and not imported; those that are not there are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import gpucnn
from benchmarks import environment
from gpucnn.installing import optional
from gpucnn.onnx import load

Host = np.ndarray[Any, Any]


class Trained(NamedTuple):
    """A model of a package: its file, and the shapes of what it takes, or values."""

    file: tuple[str, ...]
    inputs: dict[str, Any]


_OCR = ("rapidocr_onnxruntime", "models")
PITCH = {"fmin": np.float32(46.875), "fmax": np.float32(2093.75)}  # Hz, of the search
_SPEECH = {"input": (1, 576), "state": (2, 1, 128)}
_RATE = {"sr": np.int64(16000)}
_VOICES = {
    "": _SPEECH | _RATE,
    "_16k_op15": _SPEECH | _RATE,
    "_half": _SPEECH,
    "_op18_ifless": _SPEECH | _RATE,
    "_openvino_16k": _SPEECH,
    "_16k_sequence": {"input": (5, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
}

MODELS = {
    "ocr, boxes": Trained((*_OCR, "ch_PP-OCRv4_det_infer.onnx"), {"x": (1, 3, 96, 160)}),
    "ocr, turning": Trained((*_OCR, "ch_ppocr_mobile_v2.0_cls_infer.onnx"), {"x": (2, 3, 48, 192)}),
    "ocr, lines": Trained((*_OCR, "ch_PP-OCRv4_rec_infer.onnx"), {"x": (2, 3, 48, 160)}),
    "swift-f0": Trained(("swift_f0", "model.onnx"), {"audio": (1, 8000), **PITCH}),
    "basic-pitch": Trained(
        ("basic_pitch", "saved_models", "icassp_2022", "nmp.onnx"), {"serving_default_input_2:0": (1, 43844, 1)}
    ),
    **{
        f"silero-vad{name}": Trained(("silero_vad", "data", f"silero_vad{name}.onnx"), inputs)
        for name, inputs in _VOICES.items()
    },
}
LARGER = {"ocr, boxes": {"x": (1, 3, 736, 736)}, "ocr, lines": {"x": (4, 3, 48, 320)}}  # as they are used


def given(inputs: dict[str, Any]) -> dict[str, Host]:
    """Values, and random numbers of the shapes: like a sound or normalised pixels, from -1 to 1."""
    rng = np.random.default_rng(0)
    return {
        name: rng.uniform(-1, 1, value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        for name, value in inputs.items()
    }


def session(path: Path, threads: int) -> Any:
    """ONNX Runtime's run of a file."""
    runtime = optional("trained_models", "onnxruntime", "bench")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # of weights that are listed as inputs it warns, line by line
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trained_models", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--threads", type=int, default=1, help="of both (%(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="runs of each, in alternation (%(default)s)")
    options = parser.parse_args()
    environment.confine(options.threads)  # BLAS too, which ONNX's products call
    gpucnn.set_num_threads(options.threads)
    print(f"medians of {options.repeats} runs in ms, {options.threads} threads; ratio: ONNX Runtime's time / gpucnn's")
    print(f"{'model':<28}{'gpucnn':>10}{'ONNX Runtime':>14}{'ratio':>8}{'difference':>12}")
    for name, (file, inputs) in MODELS.items():
        package = importlib.util.find_spec(file[0])
        if package is None or package.origin is None:
            print(f"{name:<28}{file[0]} is not installed")
            continue
        _measure(name, Path(package.origin).parent.joinpath(*file[1:]), given(LARGER.get(name, inputs)), options)


def _measure(name: str, path: Path, arrays: dict[str, Host], options: argparse.Namespace) -> None:
    model, peer = load(path), session(path, options.threads)
    runs: list[Callable[[], Any]] = [lambda: list(model.run(arrays).values()), lambda: peer.run(None, arrays)]
    found, right = (run() for run in runs)
    times: list[list[float]] = [[], []]
    for _ in range(options.repeats):
        for run, taken in zip(runs, times, strict=True):
            begin = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - begin))
    ours, theirs = map(median, times)
    difference = max(float(np.abs(one - other).max()) for one, other in zip(found, right, strict=True))
    print(f"{name:<28}{ours:>10.2f}{theirs:>14.2f}{theirs / ours:>8.2f}{difference:>12.1e}")


if __name__ == "__main__":
    main()
