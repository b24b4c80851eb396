"""A plugin of pytest that runs the suite with one generic build of each kernel.

The suite draws thousands of sizes, and a build for each would be hours of compilation. That the builds for sizes agree
with the generic ones is what the part "repeatability" is about.
"""

from __future__ import annotations

from gpucnn.backends.cuda.cupy_runtime import CupyRuntime

CupyRuntime.specialises = False
