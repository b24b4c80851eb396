// Entry to the scheduler, and what it needs of the warp operations.
#pragma once
#include "machine.h"

namespace gpucnn {

// Runs all blocks of the launch; false at the first error.
bool run_grid();

const char* operation_name(Operation operation);

}  // namespace gpucnn
