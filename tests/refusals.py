"""Tables of calls that must be refused: what the message says, and the call."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

Refusal = tuple[str, Callable[[], Any]]


def saying(message: str) -> str:
    """A pattern that matches the whole of a message; … in it stands for any text."""
    return "(?s)^" + ".*".join(map(re.escape, message.split("…"))) + "$"


def refused(error: type[Exception], *refusals: Refusal) -> None:
    """Raise unless each call raises `error` and says what stands before it."""
    for message, call in refusals:
        with pytest.raises(error, match=saying(message)):
            call()


def refuses(error: type[Exception], *refusals: Refusal) -> Any:
    """A test that each call is refused, a row for each."""

    @pytest.mark.parametrize("refusal", refusals, ids=[message for message, _ in refusals])
    def test(refusal: Refusal) -> None:
        refused(error, refusal)

    return test
