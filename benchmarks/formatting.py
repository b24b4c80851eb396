"""Numbers as tables show them."""

from __future__ import annotations


def milliseconds(seconds: float) -> str:
    """Three significant digits without an exponent."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio_text(ratio: float | None) -> str:
    """Two decimals; nothing where there is no ratio."""
    return "" if ratio is None else f"{ratio:.2f}"


def coloured(ratio: float | None, text: str) -> str:
    """`text` for the terminal: green where the ratio is at least 1, red below a half."""
    if ratio is None:
        return text
    return f"[{'green' if ratio >= 1 else 'yellow' if ratio >= 0.5 else 'red'}]{text}[/]"
