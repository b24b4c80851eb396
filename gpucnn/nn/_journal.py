"""The journal of a run in parts: how many are done, on disk, so that a run that was killed goes on after them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1


class Journal:
    """The journal of one run.

    Parameters
    ----------
    path : str or path
        The file.
    facts : mapping of str to JSON values
        What the run depends on, by name: a journal with others is of another run.
    """

    def __init__(self, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self.path, self.facts = Path(path), {"format": FORMAT, **facts}

    def read(self) -> tuple[int, Any]:
        """The number of parts that are done, and the state that was written with it; 0 and None without a file.

        Raises
        ------
        ValueError
            The file is no journal, or that of another run.
        """
        try:
            content = json.loads(self.path.read_bytes())
            facts, done, state = content["facts"], int(content["done"]), content["state"]
        except FileNotFoundError:
            return 0, None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"tiled: {self.path} is no journal of tiled: {error!r}") from None
        other = [name for name, value in self.facts.items() if facts.get(name) != value]
        if other:
            raise ValueError(
                f"tiled: {self.path} is the journal of another run, of which differ: {', '.join(other)}; remove it to "
                "start anew"
            )
        return done, state

    def write(self, done: int, state: Any) -> None:
        """Write that so many parts are done: the file is the one before or the new one, whole, whenever that ends."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        with partial.open("w") as file:
            json.dump({"facts": self.facts, "done": done, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def remove(self) -> None:
        """Remove the file, at the end of the run."""
        self.path.unlink(missing_ok=True)
