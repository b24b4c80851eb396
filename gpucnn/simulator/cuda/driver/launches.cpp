// Launches of kernels: their limits, their arguments, and what comes of them.
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <deque>

#include "modules.h"

using namespace cudasim;
using gpucnn::Buffer;
using gpucnn::Entry;
using gpucnn::ErrorKind;
using gpucnn::ErrorReport;
using gpucnn::Launch;
using gpucnn::Parameter;

namespace cudasim {

// What a program asks for.
struct Shape {
  unsigned grid[3];
  unsigned block[3];
  unsigned dynamic_shared;
};

struct alignas(64) Slot {  // as much alignment as an argument may want
  char bytes[64];
};

// A launch, and copies of its arguments: it may run late, or several times.
struct Call {
  std::shared_ptr<CUmod_st> module;
  const Entry* entry;
  Shape shape;
  std::vector<Slot> values;
  std::vector<void*> arguments;
};

// ---- Limits --------------------------------------------------------------------------------------------------------

static std::string text_of(const unsigned (&sizes)[3]) {
  return "(" + std::to_string(sizes[0]) + ", " + std::to_string(sizes[1]) + ", " + std::to_string(sizes[2]) + ")";
}

static CUresult check_extent(const std::string& kernel, const char* what, const unsigned (&sizes)[3],
                             CUdevice_attribute first_limit, int device) {
  unsigned limits[3];
  for (int i = 0; i < 3; i++) {
    limits[i] = static_cast<unsigned>(device_attribute(device, static_cast<CUdevice_attribute>(first_limit + i)));
  }
  bool is_valid = true;
  for (int i = 0; i < 3; i++) is_valid = is_valid && sizes[i] >= 1 && sizes[i] <= limits[i];
  if (is_valid) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "kernel '%s': the %s must be from (1, 1, 1) to %s, got %s", kernel.c_str(),
                 what, text_of(limits).c_str(), text_of(sizes).c_str());
}

static CUresult check_threads(const std::string& kernel, const CUfunc_st& function, const Shape& shape, int device) {
  const uint64_t threads = uint64_t{shape.block[0]} * shape.block[1] * shape.block[2];
  const int limit = device_attribute(device, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
  if (threads > static_cast<uint64_t>(limit)) {
    return failure(CUDA_ERROR_INVALID_VALUE, "kernel '%s': %llu threads in a block of %s, the limit is %d",
                   kernel.c_str(), static_cast<unsigned long long>(threads), text_of(shape.block).c_str(), limit);
  }
  if (threads <= static_cast<uint64_t>(max_threads_of(function))) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                 "kernel '%s': %llu threads in a block of %s, __launch_bounds__ allows %d",
                 kernel.c_str(), static_cast<unsigned long long>(threads), text_of(shape.block).c_str(),
                 max_threads_of(function));
}

static CUresult check_shape(const CUfunc_st& function, const Shape& shape, int device) {
  const std::string kernel = readable_name(function.entry->name);
  CUresult error = check_extent(kernel, "grid", shape.grid, CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, device);
  if (!error) error = check_extent(kernel, "block", shape.block, CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, device);
  if (!error) error = check_threads(kernel, function, shape, device);
  if (error) return error;
  if (shape.dynamic_shared <= static_cast<unsigned>(function.max_dynamic_shared)) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE,
                 "kernel '%s': %u bytes of dynamic shared memory, the limit is %d; its attribute "
                 "MAX_DYNAMIC_SHARED_SIZE_BYTES can be set to %d at most",
                 kernel.c_str(), shape.dynamic_shared, function.max_dynamic_shared, shared_limit_of(function));
}

static CUresult check_contexts(const CUfunc_st& function, const CUmod_st& module, const CUstream_st& stream) {
  if (CUresult error = require_context()) return error;
  const std::string kernel = readable_name(function.entry->name);
  if (module.context != current_context()) {
    return failure(CUDA_ERROR_INVALID_HANDLE, "kernel '%s' was loaded on device %d, but the current device is %d",
                   kernel.c_str(), device_of(module.context), current_device());
  }
  if (stream.context == module.context) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_HANDLE, "kernel '%s' of device %d is launched in a stream of device %d",
                 kernel.c_str(), device_of(module.context), device_of(stream.context));
}

// ---- Arguments -----------------------------------------------------------------------------------------------------

// Where the program gives the arguments: a pointer to each, or one buffer with all of them.
struct Given {
  void** pointers;
  const char* buffer;
  size_t buffer_bytes;
};

static CUresult read_extra(const std::string& kernel, void** extra, Given* given) {
  for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER) {
      given->buffer = static_cast<const char*>(extra[1]);
    } else if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE) {
      given->buffer_bytes = *static_cast<size_t*>(extra[1]);
    } else {
      return failure(CUDA_ERROR_INVALID_VALUE, "kernel '%s': an unknown option of `extra`", kernel.c_str());
    }
  }
  if (given->buffer) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "kernel '%s': `extra` has no buffer of arguments", kernel.c_str());
}

static size_t bytes_of_arguments(const Entry& entry) {
  const int last = entry.parameter_count - 1;
  return last < 0 ? 0 : offset_of_parameter(entry, last) + static_cast<size_t>(entry.parameters[last].bytes);
}

static CUresult locate_arguments(const Entry& entry, void** pointers, void** extra, Given* given) {
  const std::string kernel = readable_name(entry.name);
  *given = {pointers, nullptr, 0};
  if (pointers && extra) {
    return failure(CUDA_ERROR_INVALID_VALUE, "kernel '%s': arguments are given twice, in kernelParams and in extra",
                   kernel.c_str());
  }
  if (extra) {
    if (CUresult error = read_extra(kernel, extra, given)) return error;
    const size_t wanted = bytes_of_arguments(entry);
    if (given->buffer_bytes >= wanted) return CUDA_SUCCESS;
    return failure(CUDA_ERROR_INVALID_VALUE, "kernel '%s' takes %zu bytes of arguments, the buffer has %zu",
                   kernel.c_str(), wanted, given->buffer_bytes);
  }
  if (pointers || entry.parameter_count == 0) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "kernel '%s' takes %d arguments, none are given", kernel.c_str(),
                 entry.parameter_count);
}

static void copy_arguments(Call& call, const Given& given) {
  const Entry& entry = *call.entry;
  std::vector<size_t> first_slots;
  size_t slots = 0;
  for (int i = 0; i < entry.parameter_count; i++) {
    first_slots.push_back(slots);
    slots += (static_cast<size_t>(entry.parameters[i].bytes) + sizeof(Slot) - 1) / sizeof(Slot);
  }
  call.values.resize(slots);
  for (int i = 0; i < entry.parameter_count; i++) {
    void* copy = &call.values[first_slots[static_cast<size_t>(i)]];
    const void* from = given.buffer ? given.buffer + offset_of_parameter(entry, i) : given.pointers[i];
    memcpy(copy, from, static_cast<size_t>(entry.parameters[i].bytes));
    call.arguments.push_back(copy);
  }
}

// ---- Memory that a checked kernel may use ---------------------------------------------------------------------------

// Of the launch under way: one runs at a time.
struct Known {
  int device;
  std::vector<Buffer> buffers;
  std::deque<std::string> names;  // deque: they stay where they are
  Buffer answer;
};

static Known known;

static const char* keep(std::string text) {
  known.names.push_back(std::move(text));
  return known.names.back().c_str();
}

static bool holds(const Allocation& allocation, const char* pointer) {
  return pointer >= allocation.low && pointer < allocation.low + allocation.bytes;
}

static Buffer buffer_of(const Allocation& allocation) {
  constexpr int kLargestGrain = 8;  // the first access makes it finer
  Buffer buffer = {};
  buffer.low = allocation.low;
  buffer.bytes = allocation.bytes;
  buffer.initialised = allocation.initialised;
  buffer.grain = kLargestGrain;
  buffer.argument = -1;
  if (allocation.freed) buffer.refusal = "in memory that was freed";
  const bool is_on_device = allocation.kind == MemoryKind::kDevice || allocation.kind == MemoryKind::kVariable;
  if (is_on_device && !can_access(known.device, allocation.device)) {
    buffer.refusal = keep("in memory of device " + std::to_string(allocation.device) + ", to which device " +
                          std::to_string(known.device) + " has no peer access");
  }
  return buffer;
}

static void add_argument(int number, char* pointer) {
  const Allocation* allocation = pointer ? allocation_at(pointer) : nullptr;
  if (!allocation || !holds(*allocation, pointer)) return;
  Buffer buffer = buffer_of(*allocation);
  if (buffer.refusal) return;  // an error only if the kernel uses it
  buffer.argument = number;
  if (pointer != allocation->low) {
    buffer.name = keep("the allocation that argument " + std::to_string(number) + " points into");
  }
  known.buffers.push_back(buffer);
}

// Structs hold pointers as well, CuPy's arrays among them: whatever in them is the address of an allocation counts.
static void add_pointers_of(int number, const Parameter& parameter, const void* value) {
  const size_t words = static_cast<size_t>(parameter.bytes) / sizeof(char*);
  const bool is_aligned = parameter.kind != 's' || parameter.align % alignof(char*) == 0;
  if (!strchr("pcs", parameter.kind) || !is_aligned) return;
  for (size_t i = 0; i < words; i++) {
    char* word;
    memcpy(&word, static_cast<const char*>(value) + i * sizeof word, sizeof word);
    add_argument(number, word);
  }
}

static void begin_known(const Call& call) {
  known.device = device_of(call.module->context);
  known.buffers.clear();
  known.names.clear();
  for (int i = 0; i < call.entry->parameter_count; i++) {
    add_pointers_of(i, call.entry->parameters[i], call.arguments[static_cast<size_t>(i)]);
  }
}

static size_t distance(const char* low, size_t bytes, const char* pointer) {
  if (pointer < low) return static_cast<size_t>(low - pointer);
  const char* end = low + bytes;
  return pointer < end ? 0 : static_cast<size_t>(pointer - end);
}

static const Buffer* answer_with(const Allocation& allocation) {
  known.answer = buffer_of(allocation);
  known.answer.name = keep("allocation " + std::to_string(allocation.serial));
  return &known.answer;
}

// What an address outside of all memory was probably meant for; null where nothing is near.
static const Buffer* nearest_memory(const char* pointer) {
  constexpr size_t kFar = size_t{16} << 30;  // not by a wrong index, but by a wrong pointer
  size_t best = kFar;
  const Buffer* argument = nullptr;
  for (const Buffer& buffer : known.buffers) {
    const size_t away = distance(buffer.low, buffer.bytes, pointer);
    if (away >= best) continue;
    best = away;
    argument = &buffer;
  }
  const Allocation* other = nullptr;
  for (const Allocation* allocation : live_allocations()) {
    const size_t away = distance(allocation->low, allocation->bytes, pointer);
    if (away >= best) continue;
    best = away;
    other = allocation;
  }
  return other ? answer_with(*other) : argument;
}

// The runtime asks here about addresses that are in no argument.
static const Buffer* find_memory(const void* address) {
  const char* pointer = static_cast<const char*>(address);
  const Allocation* allocation = allocation_at(pointer);
  const bool is_dead = allocation && allocation->freed;  // its guard bytes count as well
  if (allocation && (is_dead || holds(*allocation, pointer))) return answer_with(*allocation);
  return nearest_memory(pointer);
}

// The runtime asks here about each access, where races between streams are looked for.
static const char* find_conflict(const void* address, size_t bytes, gpucnn::Use use) {
  return stream_conflict(address, bytes, static_cast<Use>(use));
}

// ---- Failures ------------------------------------------------------------------------------------------------------

static CUresult error_of(const ErrorReport& report) {
  const bool is_assertion = strncmp(report.message, "assert(", 7) == 0;
  switch (static_cast<ErrorKind>(report.kind)) {
    case ErrorKind::kOutOfBounds:
    case ErrorKind::kReadOnly: return CUDA_ERROR_ILLEGAL_ADDRESS;
    case ErrorKind::kMisaligned: return CUDA_ERROR_MISALIGNED_ADDRESS;
    case ErrorKind::kAddressSpace: return CUDA_ERROR_INVALID_ADDRESS_SPACE;
    case ErrorKind::kTrap: return is_assertion ? CUDA_ERROR_ASSERT : CUDA_ERROR_LAUNCH_FAILED;
    default: return CUDA_ERROR_LAUNCH_FAILED;
  }
}

static std::string place_of(const Call& call, const ErrorReport& report) {
  if (report.address) return source_line(call.module->image, report.address);
  if (!report.file[0]) return "";
  const char* slash = strrchr(report.file, '/');
  return std::string(slash ? slash + 1 : report.file) + ":" + std::to_string(report.line);
}

static CUresult report_failure(const Call& call) {
  const ErrorReport& report = *call.module->image.error();
  note_sticky_error(device_of(call.module->context), error_of(report));
  const std::string place = place_of(call, report);
  return failure(error_of(report), "%s%s%s [%s, block %s, thread %s]%s", place.c_str(), place.empty() ? "" : ": ",
                 report.message, readable_name(call.entry->name).c_str(), text_of(report.block).c_str(),
                 text_of(report.thread).c_str(), is_running_late() ? ", which was launched by an earlier call" : "");
}

// ---- Running -------------------------------------------------------------------------------------------------------

struct Order {
  int order;
  uint64_t seed;
};

// The order of blocks and threads, as for the simulator in Python.
static const Order& order_of_threads() {
  static const Order order = [] {
    const char* name = getenv("GPUCNN_SIMULATOR_ORDER");
    const char* seed = getenv("GPUCNN_SIMULATOR_SEED");
    Order read = {0, seed && *seed ? strtoull(seed, nullptr, 10) : 1};
    if (name && strcmp(name, "reverse") == 0) read.order = 1;
    if (name && strcmp(name, "random") == 0) read.order = 2;
    return read;
  }();
  return order;
}

static CUresult run(const Call& call) {
  Guard guard(driver_lock());
  const Image& image = call.module->image;
  Launch launch = {};
  launch.entry = call.entry;
  launch.arguments = const_cast<void**>(call.arguments.data());
  launch.dynamic_bytes = call.shape.dynamic_shared;
  std::copy(call.shape.grid, call.shape.grid + 3, launch.grid);
  std::copy(call.shape.block, call.shape.block + 3, launch.block);
  launch.tolerant = 1;
  launch.order = order_of_threads().order;
  launch.seed = order_of_threads().seed;
  image.range(reinterpret_cast<const void*>(call.entry->call), &launch.image_low, &launch.image_high);
  if (image.checked) {
    begin_known(call);
    launch.check = 1;
    launch.buffers = known.buffers.data();
    launch.buffer_count = static_cast<int32_t>(known.buffers.size());
    launch.find = find_memory;
    if (are_stream_races_wanted()) launch.conflict = find_conflict;
  }
  if (image.launch(&launch)) return report_failure(call);
  if (image.checked || !settings().check) return CUDA_SUCCESS;
  return check_guards("kernel '" + readable_name(call.entry->name) + "'");
}

static CUresult launch_kernel(CUfunction handle, const Shape& shape, CUstream stream_handle, void** pointers,
                              void** extra) {
  Guard guard(driver_lock());
  CUresult error = CUDA_SUCCESS;
  FunctionPointer function = function_of(handle, &error);
  if (!function) return error;
  StreamPointer stream = stream_of(stream_handle, &error);
  if (!stream) return error;
  auto module = function->module.lock();
  if ((error = check_contexts(*function, *module, *stream))) return error;
  if ((error = check_shape(*function, shape, device_of(module->context)))) return error;
  Given given;
  if ((error = locate_arguments(*function->entry, pointers, extra, &given))) return error;
  auto call = std::make_shared<Call>();
  call->module = module;
  call->entry = function->entry;
  call->shape = shape;
  copy_arguments(*call, given);
  return issue(stream, readable_name(function->entry->name), WorkKind::kKernel, [call] { return run(*call); });
}

// Attributes of a launch that change nothing here; false for those that would.
static bool is_harmless(const CUlaunchAttribute& attribute) {
  switch (attribute.id) {
    case CU_LAUNCH_ATTRIBUTE_IGNORE:
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: return true;
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE: return attribute.value.cooperative == 0;
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION: {
      const auto& size = attribute.value.clusterDim;
      return uint64_t{size.x} * size.y * size.z <= 1;
    }
    default: return false;
  }
}

}  // namespace cudasim

// ---- Entry points --------------------------------------------------------------------------------------------------

ENTRY_POINT cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                           unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** arguments,
                           void** extra) {
  BEGIN_CALL();
  const Shape shape = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
  return launch_kernel(function, shape, stream, arguments, extra);
}

ENTRY_POINT cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments, void** extra) {
  BEGIN_CALL();
  if (!config) return failure(CUDA_ERROR_INVALID_VALUE, "no launch configuration was given");
  for (unsigned i = 0; i < config->numAttrs; i++) {
    if (is_harmless(config->attrs[i])) continue;
    return failure(CUDA_ERROR_NOT_SUPPORTED,
                   "launch attribute %d (cooperative launches, clusters, programmatic launches) is not simulated",
                   static_cast<int>(config->attrs[i].id));
  }
  const Shape shape = {{config->gridDimX, config->gridDimY, config->gridDimZ},
                       {config->blockDimX, config->blockDimY, config->blockDimZ},
                       config->sharedMemBytes};
  return launch_kernel(function, shape, config->hStream, arguments, extra);
}

// Blocks run one after another here, so one cannot wait for the others.
ENTRY_POINT cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                      CUstream stream, void** arguments) {
  BEGIN_CALL();
  if (uint64_t{grid_x} * grid_y * grid_z > 1) {
    return failure(CUDA_ERROR_NOT_SUPPORTED,
                   "a cooperative launch of several blocks is not simulated: blocks run one after another, so that the "
                   "grid cannot be synchronised");
  }
  const Shape shape = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
  return launch_kernel(function, shape, stream, arguments, nullptr);
}
