"""The modules of CuPy that are compiled anew from its own source, over the simulated libraries.

The wheel's `runtime` holds a copy of NVIDIA's runtime library, which runs on NVIDIA's driver alone; the wheel's
`_generator_api` and `thrust` hold kernels in NVIDIA's machine code. All are small modules of Cython: the same source is
translated again, and linked with the simulated libraries and with C++ in the place of the kernels. Every other file of
the wheel stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpucnn.simulator import toolchain
from gpucnn.simulator.cuda import libraries
from gpucnn.simulator.cupy.capi import check_interface
from gpucnn.simulator.cupy.downloads import BuildError, run
from gpucnn.simulator.cupy.versions import Versions
from gpucnn.simulator.errors import CompileError

FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-w",
    "-D_FORCE_INLINES=1",
    '-DCYTHON_EXTERN_C=extern "C"',
)
NUMPY_API = "-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION"

# Asks a Python for what its modules are compiled with.
_QUESTION = """
import json, sysconfig
print(json.dumps({
    "include": sysconfig.get_path("include"), "site_packages": sysconfig.get_path("platlib"),
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"), "version": sysconfig.get_python_version(),
}))
"""


@dataclass(frozen=True)
class Python:
    """The Python of an environment, and what modules for it are compiled with."""

    executable: Path
    include: Path
    site_packages: Path
    suffix: str
    version: str

    @classmethod
    def of(cls, executable: Path) -> Python:
        """The facts of an environment's Python; a BuildError if its headers are missing."""
        facts = json.loads(run([executable, "-c", _QUESTION], f"asking {executable} for its folders"))
        include = Path(facts["include"])
        if not (include / "Python.h").is_file():
            raise BuildError(
                f"Python.h is not in {include}: install the headers of Python {facts['version']}, for instance the "
                "package python3-dev"
            )
        return cls(executable, include, Path(facts["site_packages"]), facts["suffix"], facts["version"])

    @property
    def tag(self) -> str:
        """A short name for the version and the platform: "cpython-311-x86_64-linux-gnu"."""
        return self.suffix.split(".")[1]


@dataclass(frozen=True)
class Module:
    """A module that is compiled anew.

    Attributes
    ----------
    name : str
        Its full name.
    includes : tuple of str
        Folders of CuPy's source with headers that it includes.
    sources : str
        The folder, next to the simulated libraries, of C++ that takes the place of its CUDA C++; "" for none.
    needs : tuple of str
        The simulated libraries that it calls.
    loads : tuple of str
        Those that it is linked with for others: CuPy and cuda-pathfinder look a library up by its soname, and find
        it loaded, without a search path.
    has_interface : bool
        Whether other modules of CuPy call its C functions, which must then be those of the wheel's module.
    """

    name: str
    includes: tuple[str, ...]
    sources: str = ""
    needs: tuple[str, ...] = ("cudart", "driver")
    loads: tuple[str, ...] = ()
    has_interface: bool = False

    @property
    def path(self) -> Path:
        """Its place in CuPy's source and in site-packages, without a suffix."""
        return Path(*self.name.split("."))


RUNTIME = Module(
    "cupy_backends.cuda.api.runtime",
    ("cupy_backends/cuda/api",),
    loads=("nvrtc", "cublas", "cublasLt", "curand", "cufft", "nvJitLink", "cusparse", "cusolver"),
    has_interface=True,
)
GENERATOR = Module("cupy.random._generator_api", ("cupy/random", "cupy/cuda", "cupy/_core"), sources="curand/generator")
THRUST = Module("cupy.cuda.thrust", ("cupy/cuda",), sources="thrust")
MODULES = (RUNTIME, GENERATOR, THRUST)


@dataclass(frozen=True)
class Builder:
    """Compiles modules for one version of CuPy and one Python."""

    versions: Versions
    python: Python
    source: Path
    tools: Path
    headers: Path

    def compile_all(self, modules: Iterable[Module]) -> None:
        """Compile modules side by side, so that `build` finds them in the cache."""
        with ThreadPoolExecutor(libraries.parallel_compilers()) as pool:
            list(pool.map(self.objects, modules))

    def build(self, module: Module, linked: Mapping[str, Path], elsewhere: Iterable[str] = ()) -> None:
        """Put a module, linked with libraries, in the place of the wheel's; those `elsewhere` are looked for."""
        site_packages = self.python.site_packages
        target = (site_packages / module.path).with_name(module.path.name + self.python.suffix)
        if not target.is_file():
            raise BuildError(f"CuPy's wheel has no module {module.name}: {target} is missing")
        folder = next(iter(linked.values())).parent
        names = [*module.needs, *(name for name in module.loads if name not in elsewhere)]
        command = [
            toolchain.compiler().path,
            "-shared",
            *(str(path) for path in self.objects(module)),
            "-Wl,--no-as-needed",
            *(str(linked[name]) for name in names),
            f"-Wl,-rpath,$ORIGIN/{os.path.relpath(folder, target.parent)}",
        ]
        wheels = folder.parent / "wheel" / target.name
        if module.has_interface and not wheels.exists():
            wheels.parent.mkdir(exist_ok=True)
            shutil.copy(target, wheels)
        with tempfile.TemporaryDirectory(prefix="new-", dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            toolchain.run([*command, "-o", str(made)])
            os.replace(made, target)
        if module.has_interface:
            check_interface(wheels, target, name=module.name, python=self.python.executable)

    def objects(self, module: Module) -> list[Path]:
        """The object files of a module, from the cache if they are there."""
        own = sorted((libraries.HERE / module.sources).glob("*.cpp")) if module.sources else []
        return [self._translated(module), *(self._compiled(module, path) for path in own)]

    def _translated(self, module: Module) -> Path:
        """The object file of a module's Cython."""
        key = self._key(module)

        def compile_to(target: Path) -> None:
            translated = target.with_suffix(".cpp")
            self._cython(module, translated)
            self._compile(module, translated, target)

        return toolchain.cached(f"cupy-{module.path.name}-{key}.o", compile_to)

    def _compiled(self, module: Module, source: Path) -> Path:
        """The object file of C++ of ours that a module calls."""
        included = libraries.included_by(source, [libraries.HERE / "host_headers", libraries.HERE])
        key = toolchain.hash_of(self._key(module), *(path.read_text(encoding="utf-8") for path in (source, *included)))

        def compile_to(target: Path) -> None:
            self._compile(module, source, target)

        return toolchain.cached(f"cupy-{module.path.name}-{source.stem}-{key}.o", compile_to)

    def _key(self, module: Module) -> str:
        python = f"{self.python.tag} {self.python.include}"
        host_headers = libraries.identity(libraries.HERE / "host_headers")
        compiler = toolchain.compiler().identity
        return toolchain.hash_of(compiler, repr(self.versions), python, module.name, *FLAGS, host_headers)

    def _cython(self, module: Module, target: Path) -> None:
        constants = {
            "CUPY_CUDA_VERSION": self.versions.cuda_number,
            "CUPY_HIP_VERSION": 0,
            "CUPY_USE_CUDA_PYTHON": False,
            "CUPY_CUFFT_STATIC": False,
            "CUPY_CYTHON_VERSION": self.versions.cython,
        }
        defined = ",".join(f"{name}={value}" for name, value in constants.items())
        command = [self.python.executable, "-m", "cython", "--cplus", "-3", "-X", ",".join(self.versions.directives)]
        # Cython finds the packages that a module cimports in the folder that it runs in.
        inside = ["-E", defined, "-w", self.source, module.path.with_suffix(".pyx"), "-o", target]
        run([*command, *inside], f"translating {module.name}", {"PYTHONPATH": str(self.tools)})

    def _compile(self, module: Module, source: Path, target: Path) -> None:
        includes = [
            *(self.source / folder for folder in module.includes),
            libraries.HERE / "host_headers",
            libraries.HERE,
            self.headers,
            self.python.include,
            self.python.site_packages / "numpy/_core/include",
        ]
        flags = [*FLAGS, NUMPY_API, *(f"-I{folder}" for folder in includes)]
        try:
            toolchain.run([toolchain.compiler().path, *flags, "-c", str(source), "-o", str(target)])
        except CompileError as error:
            raise CompileError(f"{source.name} of CuPy's {module.name} does not compile:\n{error}") from None
