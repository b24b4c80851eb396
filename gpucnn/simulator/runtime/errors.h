// How an error reaches Python.
#pragma once
#include "machine.h"

namespace gpucnn {

// module.py reads it.
struct ErrorReport {
  int32_t kind;
  int32_t line;      // 0: not known
  uint64_t address;  // within the module's image, 0: not known
  uint32_t thread[3];
  uint32_t block[3];
  char file[256];
  char message[1024];
};

void clear_error();
const ErrorReport& error_report();

}  // namespace gpucnn
