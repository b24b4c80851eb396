// The compiler, which is gpucnn.simulator.cuda.compiler in the Python interpreter of this process.
#pragma once
#include "program.h"

namespace cudasim {

// Compiles `program` and fills in what follows from it; `options` as nvrtcCompileProgram gets them.
void compile(Program& program, const std::vector<Text>& options);

// The minor version of the simulated NVRTC.
int version_minor();

}  // namespace cudasim
