"""Commands that install gpucnn's optional packages, and imports whose errors name them."""

from __future__ import annotations

import json
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
_PROJECTS = {"PIL": "Pillow", "sklearn": "scikit-learn"}  # modules whose project has another name


def install_command(extra: str) -> str:
    """Command that installs an extra of gpucnn from the source of this gpucnn: its checkout, an address or an index.

    gpucnn may be on no package index, so a bare ``gpucnn[cuda12]`` is advised only to those who got it from one.
    """
    if (CHECKOUT / "pyproject.toml").is_file():
        return f'pip install -e "{CHECKOUT}[{extra}]"'
    return f'pip install "gpucnn[{extra}]{_origin()}"'


def _origin() -> str:
    """The source that pip installed this gpucnn from, as the end of a requirement; empty if it was an index."""
    try:
        text = metadata.distribution("gpucnn").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    if text is None:
        return ""
    origin = json.loads(text)
    version_control = origin.get("vcs_info")
    if version_control is None:
        return f" @ {origin['url']}"
    return f" @ {version_control['vcs']}+{origin['url']}@{version_control['commit_id']}"


def optional(op: str, module: str, extra: str) -> Any:
    """Import a module that an extra installs.

    Parameters
    ----------
    op : str
        The function or command that needs it, for the message.
    module : str
        Its full name, such as "matplotlib.figure".
    extra : str
        An extra of gpucnn that installs it.

    Raises
    ------
    ModuleNotFoundError
        Its package is not installed; the message has the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is installed, and one of its dependencies is not
        project = _PROJECTS.get(package, package)
        message = f"{op}: {project} is not installed: {install_command(extra)}"
        raise ModuleNotFoundError(message, name=error.name) from None
