// The way of an error to Python and the simulated CUDA driver.
#pragma once
#include "machine.h"

namespace gpucnn {

void clear_error();
const ErrorReport& error_report();

}  // namespace gpucnn
