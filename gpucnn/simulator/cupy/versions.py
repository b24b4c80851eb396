"""The versions of CuPy that an environment can be made of, and of all that belongs to each: one table of exact pins.

A rebuilt module takes the place of a wheel's, so its source is of the wheel's version, is translated by the Cython
that made the wheel, and is told the version of CUDA that the wheel was built with.
"""

from __future__ import annotations

from dataclasses import dataclass

# Runs CuPy's setup.py when pip reads the name and version of its source, and installs gpucnn from a checkout.
SETUPTOOLS = "setuptools==80.9.0"


@dataclass(frozen=True)
class Versions:
    """A version of CuPy and what its modules are rebuilt with.

    Attributes
    ----------
    cupy : str
        The version of CuPy, of the wheel and of the source.
    cuda : str
        The version of CUDA that the wheel was built with.
    cython : str
        The version of Cython that the wheel was built with.
    directives : tuple of str
        What CuPy's setup.py tells Cython.
    headers : str
        The wheel of NVIDIA's runtime, whose headers the modules and the simulated libraries are compiled with.
    include : str
        The folder of the headers in that wheel.
    """

    cupy: str
    cuda: str
    cython: str
    directives: tuple[str, ...]
    headers: str
    include: str

    @property
    def cuda_major(self) -> int:
        """12 or 13."""
        return int(self.cuda.partition(".")[0])

    @property
    def wheel(self) -> str:
        """The requirement of CuPy's wheel."""
        return f"cupy-cuda{self.cuda_major}x=={self.cupy}"

    @property
    def cuda_number(self) -> int:
        """The version of CUDA as its headers write it: 12090."""
        major, minor = self.cuda.split(".")
        return int(major) * 1000 + int(minor) * 10

    def __str__(self) -> str:
        return f"CuPy {self.cupy} for CUDA {self.cuda_major}"


_DIRECTIVES = ("embedsignature=True", "c_api_binop_methods=True", "binding=False")
_DIRECTIVES_13 = (*_DIRECTIVES, "legacy_implicit_noexcept=True")
_DIRECTIVES_14 = (*_DIRECTIVES, "warn.deprecated.IF=False", "freethreading_compatible=True")
_HEADERS_12 = {"headers": "nvidia-cuda-runtime-cu12==12.9.79", "include": "nvidia/cuda_runtime/include"}
_HEADERS_13 = {"headers": "nvidia-cuda-runtime==13.2.86", "include": "nvidia/cu13/include"}

TABLE = (
    Versions("14.2.0", "12.9", "3.2.4", _DIRECTIVES_14, **_HEADERS_12),
    Versions("14.2.0", "13.2", "3.2.4", _DIRECTIVES_14, **_HEADERS_13),
    Versions("13.6.0", "12.9", "3.0.12", _DIRECTIVES_13, **_HEADERS_12),
)


def choose(cupy: str, cuda: int) -> Versions:
    """The row of the table for "14.2" or "14.2.0", and a major version of CUDA; a ValueError lists the rows."""
    for versions in TABLE:
        if versions.cuda_major == cuda and f"{versions.cupy}.".startswith(f"{cupy}."):
            return versions
    known = "; ".join(f"--cupy {row.cupy} --cuda {row.cuda_major}" for row in TABLE)
    raise ValueError(f"CuPy {cupy} for CUDA {cuda} is not among the versions that can be built: {known}")
