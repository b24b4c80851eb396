// The simulated cards: what they are called and what they can do.
#include <stdio.h>
#include <string.h>

#include <atomic>

#include "control.h"
#include "devices.h"

namespace cudasim {

// Figures of a card, as its maker's data sheet and CUDA's table of compute capabilities give them.
struct Card {
  const char* setting;
  const char* name;
  int major, minor;
  int multiprocessors;
  int clock_khz;
  int memory_clock_khz;
  int memory_bus_bits;
  int l2_bytes;
  int shared_per_multiprocessor;
  int shared_per_block_optin;
  int reserved_shared_per_block;
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
  int single_to_double_ratio;
};

constexpr int kKiB = 1024, kMiB = 1024 * 1024;

constexpr Card kCards[] = {
    {"t4", "Tesla T4", 7, 5, 40, 1590000, 5001000, 256, 4 * kMiB, 64 * kKiB, 64 * kKiB, 0, 1024, 16, 32},
    {"a100", "NVIDIA A100-SXM4-40GB", 8, 0, 108, 1410000, 1215000, 5120, 40 * kMiB, 164 * kKiB, 163 * kKiB, kKiB, 2048,
     32, 2},
    {"h100", "NVIDIA H100 80GB HBM3", 9, 0, 132, 1980000, 2619000, 5120, 50 * kMiB, 228 * kKiB, 227 * kKiB, kKiB, 2048,
     32, 2},
    {"rtx4090", "NVIDIA GeForce RTX 4090", 8, 9, 128, 2520000, 10501000, 384, 72 * kMiB, 100 * kKiB, 99 * kKiB, kKiB,
     1536, 24, 64},
};

static const Card& card() {
  for (const Card& candidate : kCards) {
    if (settings().device_name == candidate.setting) return candidate;
  }
  return kCards[0];  // settings.cpp lets no other name through
}

// Attributes that the four cards have in common. All that is not listed, in either table, is 0: not
// supported, as textures, arrays, clusters or persisting parts of the L2 cache, whatever the card itself can do.
struct Attribute {
  int attribute;
  int value;
};

constexpr Attribute kCommon[] = {
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 * kKiB},
    {CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 64 * kKiB},
    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
    {CU_DEVICE_ATTRIBUTE_MAX_PITCH, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536},
    {CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT, 512},
    {CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT, 32},
    {CU_DEVICE_ATTRIBUTE_SURFACE_ALIGNMENT, 512},
    {CU_DEVICE_ATTRIBUTE_GPU_OVERLAP, 1},
    {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3},
    {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
    {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    {CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, 1},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1},
    {CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
    {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1},
};

static int attribute_of_card(const Card& card, int attribute, bool* known) {
  *known = true;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return card.major;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return card.minor;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return card.multiprocessors;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return card.clock_khz;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return card.memory_clock_khz;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return card.memory_bus_bits;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return card.l2_bytes;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return card.shared_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return card.shared_per_block_optin;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return card.reserved_shared_per_block;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return card.threads_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return card.blocks_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO: return card.single_to_double_ratio;
  }
  *known = false;
  return 0;
}

constexpr int kFirstBus = 1;  // device d sits at 0000:0(1 + d):00.0

int device_attribute(int device, CUdevice_attribute attribute) {
  if (attribute == CU_DEVICE_ATTRIBUTE_PCI_BUS_ID) return kFirstBus + device;
  bool known = false;
  const int value = attribute_of_card(card(), attribute, &known);
  if (known) return value;
  for (const Attribute& common : kCommon) {
    if (common.attribute == attribute) return common.value;
  }
  return 0;
}

static std::atomic<bool> is_initialised;

bool is_driver_initialised() { return is_initialised; }

bool is_device(int device) { return device >= 0 && device < settings().device_count; }

CUresult require_device(int device) {
  if (!is_initialised) return failure(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
  if (is_device(device)) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_DEVICE, "there is no device %d, only %d of them", device, settings().device_count);
}

static CUresult fill_uuid(CUuuid* uuid, CUdevice device) {
  if (!uuid) return failure(CUDA_ERROR_INVALID_VALUE, "the uuid must not be null");
  if (CUresult error = require_device(device)) return error;
  char text[sizeof uuid->bytes + 1];
  snprintf(text, sizeof text, "gpucnn-cudasim-%d", device);
  memcpy(uuid->bytes, text, sizeof uuid->bytes);
  return CUDA_SUCCESS;
}

}  // namespace cudasim

using namespace cudasim;

ENTRY_POINT cuInit(unsigned flags) {
  BEGIN_CALL();
  if (flags) return failure(CUDA_ERROR_INVALID_VALUE, "the flags must be 0, got %u", flags);
  if (settings().device_count == 0) return failure(CUDA_ERROR_NO_DEVICE, "GPUCNN_CUDA_DEVICES is 0");
  is_initialised = true;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDriverGetVersion(int* version) {
  BEGIN_CALL();
  if (!version) return failure(CUDA_ERROR_INVALID_VALUE, "the version must not be null");
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceGetCount(int* count) {
  BEGIN_CALL();
  if (!count) return failure(CUDA_ERROR_INVALID_VALUE, "the count must not be null");
  if (!is_initialised) return failure(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
  *count = settings().device_count;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceGet(CUdevice* device, int ordinal) {
  BEGIN_CALL();
  if (!device) return failure(CUDA_ERROR_INVALID_VALUE, "the device must not be null");
  if (CUresult error = require_device(ordinal)) return error;
  *device = ordinal;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceGetName(char* name, int length, CUdevice device) {
  BEGIN_CALL();
  if (!name || length <= 0) return failure(CUDA_ERROR_INVALID_VALUE, "there is no room for the name");
  if (CUresult error = require_device(device)) return error;
  snprintf(name, static_cast<size_t>(length), "%s (simulated)", card().name);
  return CUDA_SUCCESS;
}

#undef cuDeviceGetUuid  // newer headers give the name to the second version
ENTRY_POINT cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  BEGIN_CALL();
  return fill_uuid(uuid, device);
}

#undef cuDeviceGetUuid_v2
ENTRY_POINT cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  BEGIN_CALL();
  return fill_uuid(uuid, device);
}

ENTRY_POINT cuDeviceGetLuid(char*, unsigned*, CUdevice) {
  BEGIN_CALL();
  return failure(CUDA_ERROR_NOT_SUPPORTED, "only devices of Windows have a LUID");
}

ENTRY_POINT cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  BEGIN_CALL();
  if (!bytes) return failure(CUDA_ERROR_INVALID_VALUE, "the number of bytes must not be null");
  if (CUresult error = require_device(device)) return error;
  *bytes = settings().memory_bytes;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  BEGIN_CALL();
  const bool in_range = attribute > 0 && attribute < CU_DEVICE_ATTRIBUTE_MAX;
  if (!value || !in_range) return failure(CUDA_ERROR_INVALID_VALUE, "there is no device attribute %d", attribute);
  if (CUresult error = require_device(device)) return error;
  *value = device_attribute(device, attribute);
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceGetPCIBusId(char* text, int length, CUdevice device) {
  BEGIN_CALL();
  if (!text || length <= 0) return failure(CUDA_ERROR_INVALID_VALUE, "there is no room for the bus id");
  if (CUresult error = require_device(device)) return error;
  snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", kFirstBus + device);
  return CUDA_SUCCESS;
}

// Accepts domain:bus:device.function, domain:bus:device and bus:device.function, in hexadecimal.
ENTRY_POINT cuDeviceGetByPCIBusId(CUdevice* device, const char* text) {
  BEGIN_CALL();
  if (!device || !text) return failure(CUDA_ERROR_INVALID_VALUE, "the device and the bus id must not be null");
  if (CUresult error = require_device(0)) return error;
  unsigned domain = 0, bus = 0, slot = 0, function = 0;
  bool read = sscanf(text, "%x:%x:%x.%x", &domain, &bus, &slot, &function) >= 3;
  if (!read) {
    domain = 0;
    read = sscanf(text, "%x:%x.%x", &bus, &slot, &function) == 3;
  }
  const int found = static_cast<int>(bus) - kFirstBus;
  if (!read) return failure(CUDA_ERROR_INVALID_VALUE, "'%s' is not a PCI bus id", text);
  if (domain || slot || function || !is_device(found)) {
    return failure(CUDA_ERROR_INVALID_DEVICE, "there is no device at PCI bus id %s", text);
  }
  *device = found;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceGetExecAffinitySupport(int* supported, CUexecAffinityType, CUdevice device) {
  BEGIN_CALL();
  if (!supported) return failure(CUDA_ERROR_INVALID_VALUE, "the result must not be null");
  if (CUresult error = require_device(device)) return error;
  *supported = 0;
  return CUDA_SUCCESS;
}

// Every device reaches every other one.
ENTRY_POINT cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  BEGIN_CALL();
  if (!can) return failure(CUDA_ERROR_INVALID_VALUE, "the result must not be null");
  if (CUresult error = require_device(device)) return error;
  if (CUresult error = require_device(peer)) return error;
  *can = device != peer;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceGetP2PAttribute(int* value, CUdevice_P2PAttribute attribute, CUdevice device, CUdevice peer) {
  BEGIN_CALL();
  if (!value) return failure(CUDA_ERROR_INVALID_VALUE, "the value must not be null");
  if (CUresult error = require_device(device)) return error;
  if (CUresult error = require_device(peer)) return error;
  if (device == peer) return failure(CUDA_ERROR_INVALID_DEVICE, "the devices must differ");
  switch (attribute) {
    case CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK: *value = 0; return CUDA_SUCCESS;
    case CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED: *value = 1; return CUDA_SUCCESS;
    case CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED: *value = 1; return CUDA_SUCCESS;
    case CU_DEVICE_P2P_ATTRIBUTE_CUDA_ARRAY_ACCESS_SUPPORTED: *value = 0; return CUDA_SUCCESS;
    default: return failure(CUDA_ERROR_INVALID_VALUE, "there is no peer attribute %d", attribute);
  }
}
