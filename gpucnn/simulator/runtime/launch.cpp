// The entry point of Python and the simulated CUDA driver: one function that runs a launch.
#include <link.h>

#include <string.h>

#include <algorithm>

#include "errors.h"
#include "profile.h"
#include "scheduler.h"

extern dim3 blockDim, gridDim;

namespace gpucnn {

static void set_up(const Launch& launch) {
  gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
  blockDim = {launch.block[0], launch.block[1], launch.block[2]};
  machine.entry = launch.entry;
  machine.arguments = launch.arguments;
  machine.dynamic_bytes = launch.dynamic_bytes;
  machine.image_low = launch.image_low;
  machine.image_high = launch.image_high;
  machine.find = launch.find;
  machine.conflict = launch.conflict;
  machine.tolerant = launch.tolerant != 0;
  machine.check = launch.check != 0;
  machine.profile = launch.profile != 0;
  machine.order = static_cast<Order>(launch.order);
  machine.yield_every = launch.yield_every;
  machine.random_state = launch.seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
  if (machine.random_state == 0) machine.random_state = 1;
  machine.thread_count = launch.block[0] * launch.block[1] * launch.block[2];
}

struct Image {
  uintptr_t inside;
  uint64_t low;
  uint64_t high;
};

// Finds the loaded library that holds an address.
static int find_image(dl_phdr_info* library, size_t, void* data) {
  Image& image = *static_cast<Image*>(data);
  uintptr_t high = 0;
  bool found = false;
  for (int i = 0; i < library->dlpi_phnum; i++) {
    const auto& part = library->dlpi_phdr[i];
    if (part.p_type != PT_LOAD) continue;
    const uintptr_t start = library->dlpi_addr + part.p_vaddr;
    found = found || (image.inside >= start && image.inside < start + part.p_memsz);
    high = std::max<uintptr_t>(high, start + part.p_memsz);
  }
  if (!found) return 0;
  image.low = library->dlpi_addr;
  image.high = high;
  return 1;
}

}  // namespace gpucnn

extern "C" {

// Runs the launch; 0, or 1 after an error, which `gpucnn_error` describes.
int gpucnn_launch(const gpucnn::Launch* launch) {
  using namespace gpucnn;
  clear_error();
  set_up(*launch);
  restart_late_epochs();
  if (machine.profile) begin_launch_profile();
  if (machine.check && !begin_launch_checks(launch->buffers, launch->buffer_count)) {
    record_error(ErrorKind::kTrap, Where(), "not enough address space for the shadow of the arguments");
    return 1;
  }
  machine.launch_epoch = ++machine.epoch;
  const bool done = run_grid();
  if (machine.check) end_launch_checks();
  return done ? 0 : 1;
}

// For tests: the next launch comes so late.
void gpucnn_set_epoch(uint32_t epoch) { gpucnn::machine.epoch = epoch; }

const gpucnn::ErrorReport* gpucnn_error() { return &gpucnn::error_report(); }

// The addresses [low, high) of the library that holds `address`.
void gpucnn_image(const void* address, uint64_t* low, uint64_t* high) {
  gpucnn::Image image = {reinterpret_cast<uintptr_t>(address), 0, 0};
  dl_iterate_phdr(gpucnn::find_image, &image);
  *low = image.low;
  *high = image.high;
}

}  // extern "C"
