"""The model of how far training scales: its arithmetic, the fit, the page and the figure; no process is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.scaling import GPUS, Link, Training, fitted

LINK = Link(2e-5, 5e9)


def test_a_sum_takes_messages_to_all_others_twice() -> None:
    assert LINK.sum_time(1e6, 1) == 0
    assert LINK.sum_time(1e6, 4) == pytest.approx(6 * 2e-5 + 1.5 * 1e6 / 5e9)


def test_sums_hide_behind_the_backward_but_the_last() -> None:
    training = Training(image_time=0.01, nbytes=40e6, bucket=10e6, link=Link(0, 10e9))  # four sums of 1 ms, by 2 ranks
    assert training.step_time(1, 3) == pytest.approx(0.03)
    assert training.step_time(2, 3) == pytest.approx(0.031)
    late = training._replace(link=Link(0, 0.5e9))  # of 20 ms, the first of which begins after 15
    assert late.step_time(2, 3) == pytest.approx(0.015 + 4 * 0.02)
    assert late.efficiency(2, 3) == pytest.approx(0.03 / 0.095)


def test_the_fit_finds_the_link() -> None:
    sums = [(ranks, nbytes, LINK.sum_time(nbytes, ranks)) for ranks in (2, 3, 8) for nbytes in scaling.SUMS]
    found = fitted(sums)
    assert found.latency == pytest.approx(LINK.latency)
    assert found.bandwidth == pytest.approx(LINK.bandwidth)
    assert fitted([(2, 100, 1e-9), (2, 200, 3e-9)]).latency == 0  # never less than nothing


def runs() -> dict[int, dict[str, Any]]:
    def run(ranks: int) -> dict[str, Any]:
        return {
            "sums": [(ranks, nbytes, LINK.sum_time(nbytes, ranks)) for nbytes in scaling.SUMS],
            "alone": 0.1,
            "together": 0.125,
            "sent": 4_000 * ranks,
            "volume": 4_000 * ranks,
            "timeline": [("backward", 0.03, 0.05), ("sum", 0.04, 0.06)],
        }

    return {ranks: run(ranks) for ranks in scaling.RANKS}


def test_the_page_has_what_was_measured_and_what_is_predicted() -> None:
    page = scaling.page(runs())
    assert "A message takes 20 µs and its bytes over 5.00 GB/s" in page
    assert "| 2 | 100 | 125 | 80% | 8,000 | 8,000 |" in page
    for name in GPUS:
        assert f"| {name} | 100% |" in page


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scaling.draw(runs(), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
