"""The cases of the ONNX standard, run here: ``python -m gpucnn.onnx.conformance [--only PATTERN] [--page FILE]``.

Cases are those of the package onnx: one or more for each operator, and models that PyTorch exported. All are loaded and
run through `gpucnn.onnx.backend`; a case fails, or is of an operator that is not supported, or passes.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from gpucnn.onnx.backend import GpucnnBackend
from gpucnn.onnx.errors import UnsupportedError

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")  # of those that the package holds whole


@dataclass(frozen=True)
class Outcome:
    """The result of one case: "passed", "failed" or "unsupported", and why."""

    kind: str
    case: str
    operator: str
    state: str
    reason: str = ""


def cases(pattern: str = "", kinds: tuple[str, ...] = KINDS) -> Iterator[Any]:
    """The test cases whose name the pattern is found in."""
    for kind in kinds:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of the computation of the expected values
            found = load_model_tests(kind=kind)
        yield from (case for case in sorted(found, key=lambda case: case.name) if re.search(pattern, case.name))


def outcome(case: Any, device: str = "CPU") -> Outcome:
    """Run one case."""
    folder = None if case.model_dir is None else Path(case.model_dir)
    model = case.model if folder is None else onnx.load(folder / "model.onnx")
    operator = _tested(case.name, model)
    try:
        prepared = GpucnnBackend.prepare(model, device)
        for inputs, expected in case.data_sets if folder is None else _stored(folder, model):
            results = prepared.run([_array(item) for item in inputs])
            Runner.assert_similar_outputs([_array(item) for item in expected], results, case.rtol, case.atol)
    except UnsupportedError as error:
        return Outcome(case.kind, case.name, operator, "unsupported", str(error))
    except Exception as error:  # whatever it is, the case fails
        return Outcome(case.kind, case.name, operator, "failed", f"{type(error).__name__}: {error}")
    return Outcome(case.kind, case.name, operator, "passed")


def _tested(name: str, model: Any) -> str:
    """The operator that a case is about: its node's, or that which its name begins with where it is written out."""
    nodes = {node.op_type for node in model.graph.node}
    if len(nodes) == 1:
        return str(nodes.pop())
    words = name.removeprefix("test_").split("_")
    known = {schema.name.lower(): schema.name for schema in onnx.defs.get_all_schemas()}
    joined = ["".join(words[:length]).lower() for length in range(len(words), 0, -1)]
    return next((f"{known[word]}, written out" for word in joined if word in known), "models of several operators")


def _array(item: Any) -> Any:
    return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else item


def _stored(folder: Path, model: Any) -> Iterator[tuple[list[Any], list[Any]]]:
    """The arrays of a case that is kept as files."""
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    for data in sorted(folder.glob("test_data_set_*")):
        yield _protos(data, "input", values), _protos(data, "output", model.graph.output)


def _protos(data: Path, which: str, values: Any) -> list[Any]:
    arrays: list[Any] = []
    for at, value in enumerate(values):
        content = (data / f"{which}_{at}.pb").read_bytes()
        if value.type.HasField("tensor_type"):
            arrays.append(numpy_helper.to_array(onnx.TensorProto.FromString(content)))
        elif value.type.HasField("sequence_type"):
            arrays.append(numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
        else:
            arrays.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(content)))
    return arrays


# --- The report -----------------------------------------------------------------------------------------------------


def table(outcomes: list[Outcome]) -> str:
    """The share passed by operator, as Markdown."""
    by_operator: dict[str, list[Outcome]] = defaultdict(list)
    for item in outcomes:
        by_operator[item.operator].append(item)
    lines = ["| operator | cases | passed | failed | unsupported |", "| --- | ---: | ---: | ---: | ---: |"]
    for operator in sorted(by_operator):
        states = [item.state for item in by_operator[operator]]
        counts = " | ".join(str(states.count(state)) for state in ("passed", "failed", "unsupported"))
        lines.append(f"| {operator} | {len(states)} | {counts} |")
    return "\n".join(lines)


def summary(outcomes: list[Outcome]) -> str:
    """One line: how many passed, of all and of the operators that are supported."""
    states = [item.state for item in outcomes]
    passed, tried = states.count("passed"), len(states) - states.count("unsupported")
    share = f"{passed} of {len(states)} cases pass ({100 * passed / max(len(states), 1):.1f} %)"
    return f"{share}; of the {tried} of supported operators, {tried - passed} fail"


def page(outcomes: list[Outcome]) -> str:
    """The report as a page of the documentation."""
    lines = [
        "# Conformance to ONNX",
        "",
        f"The cases of the package onnx {onnx.__version__}, by `python -m gpucnn.onnx.conformance` on NumPy arrays:",
        f"{summary(outcomes)}.",
        "Each case has models and the arrays that they give; a case is *unsupported* if loading or running it raises",
        "`UnsupportedError`, which names what is missing. *Written out* are operators as the standard defines them by",
        "others. Nothing is left out but the models that the package would download.",
        "",
        table(outcomes),
        "",
        "## What fails",
        "",
        *(f"- `{item.case}`: {_line(item.reason)[:160]}" for item in outcomes if item.state == "failed"),
        "",
        "## What is unsupported",
        "",
        "| cases | reason |",
        "| ---: | --- |",
    ]
    reasons = Counter(_line(item.reason).removeprefix("model: ") for item in outcomes if item.state == "unsupported")
    lines += [f"| {number} | {reason[:160]} |" for reason, number in sorted(reasons.items(), key=lambda pair: -pair[1])]
    return "\n".join(lines) + "\n"


def _line(reason: str) -> str:
    """A reason in one line of a table."""
    return " ".join(reason.split()).replace("|", "/")


def main(arguments: list[str] | None = None) -> int:
    """Run cases and print the share passed by operator, and each failure."""
    parser = argparse.ArgumentParser(prog="python -m gpucnn.onnx.conformance", description=main.__doc__)
    parser.add_argument("--backend", default="CPU", help="CPU, CUDA or simulator")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases in whose name this expression is found")
    parser.add_argument("--reasons", action="store_true", help="say why cases are unsupported, too")
    parser.add_argument("--page", type=Path, help="write the report to this page of the documentation")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the computation of the expected values
        outcomes = [outcome(case, options.backend) for case in cases(options.only)]
    print(table(outcomes))
    print(f"\n{summary(outcomes)}")
    for item in outcomes:
        if item.state == "failed" or (options.reasons and item.state == "unsupported"):
            print(f"{item.state}: {item.case}: {_line(item.reason)[:300]}")
    if options.page is not None:
        options.page.write_text(page(outcomes), encoding="utf-8")
    return int(any(item.state == "failed" for item in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
