"""Small training runs, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn import nn


def bits(model: nn.Module, asnumpy: Callable[[Any], Any] = np.asarray) -> dict[str, bytes]:
    """The parameters and statistics of a model, bit for bit."""
    return {name: asnumpy(array).tobytes() for name, array in model.state_dict().items()}
