"""``python -m gpucnn.simulator.cupy DIR``: an environment with the real CuPy over the simulated CUDA libraries."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpucnn.simulator.cupy import environment
from gpucnn.simulator.cupy.downloads import BuildError, run
from gpucnn.simulator.cupy.progress import Progress
from gpucnn.simulator.cupy.versions import choose
from gpucnn.simulator.errors import CompileError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = (
        "Make a virtual environment with the real CuPy over simulated CUDA libraries, which runs kernels on the CPU "
        "with checks. It needs Linux, g++ or clang++, Python's headers, and pip; what is fetched and built is kept in "
        "gpucnn's cache folder."
    )
    command = argparse.ArgumentParser(prog="python -m gpucnn.simulator.cupy", description=text)
    command.add_argument("folder", type=Path, metavar="DIR", help="of the environment; it must not exist yet")
    command.add_argument("--cupy", default="14.2", metavar="VERSION", help="14.2 (the default) or 13.6")
    command.add_argument("--cuda", type=int, default=12, choices=(12, 13), help="12 (the default) or 13")
    command.add_argument(
        "--device", default="h100", choices=environment.DEVICES, help="whose properties it reports; default h100"
    )
    command.add_argument("--python", type=Path, default=Path(sys.executable), help="to make the environment from")
    command.add_argument(
        "--libraries",
        default="linked",
        choices=environment.PLACES,
        help="linked: CuPy is linked with all of them; nvidia-wheels: cuBLAS and NVRTC lie where NVIDIA's wheels have "
        "them and must be found there, which tests a program's own search",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--force", action="store_true", help="make it anew if it was made by this command")
    what.add_argument("--update", action="store_true", help="rebuild the libraries of an environment made before")
    what.add_argument("--check", action="store_true", help="run a short self-test in an environment made before")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    given = parser().parse_args(arguments)
    folder = given.folder.absolute()
    progress = Progress()
    try:
        if given.check:
            environment.description(folder)
            print(self_test(folder), end="")
            return 0
        if given.update:
            environment.update(folder, progress)
        else:
            versions = choose(given.cupy, given.cuda)
            plan = environment.Description(versions.cupy, given.cuda, given.device, given.libraries, complete=False)
            environment.make(folder, plan, given.python, progress, force=given.force)
        with progress.step("self-test"):
            self_test(folder)
    except (BuildError, CompileError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is ready, in {progress.seconds():.0f} s:\n\n{environment.instructions(folder)}")
    return 0


def self_test(folder: Path) -> str:
    """What the self-test prints in an environment; a BuildError if it fails."""
    return run([folder / "bin/python", "-P", "-m", "gpucnn.simulator.cupy.self_test"], "the self-test")


if __name__ == "__main__":
    sys.exit(main())
