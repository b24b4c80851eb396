// CUDA arrays: opaque on a GPU; here, rows one after another in device memory.
#include <mutex>
#include <set>

#include "runtime.h"

// The type is CUDA's, which leaves it open.
struct cudaArray {
  cudaChannelFormatDesc format;
  cudaExtent extent;  // in elements; height and depth are 0 where there is no such dimension
  unsigned flags;
  CUdeviceptr low;

  size_t element_bytes() const { return static_cast<size_t>(format.x + format.y + format.z + format.w) / 8; }
  size_t row_bytes() const { return extent.width * element_bytes(); }
  size_t rows() const { return extent.height ? extent.height : 1; }
  size_t slices() const { return extent.depth ? extent.depth : 1; }
};

namespace cudart {

static std::mutex arrays_lock;
// Never destroyed: arrays are freed by destructors that run at exit.
static auto& arrays = *new std::set<const cudaArray*>;

static bool is_array(const cudaArray* array) {
  const std::lock_guard<std::mutex> hold(arrays_lock);
  return arrays.count(array) != 0;
}

static bool is_channel_format(const cudaChannelFormatDesc& format) {
  const int bits = format.x;
  if (bits != 8 && bits != 16 && bits != 32) return false;
  const auto fits = [bits](int other) { return other == 0 || other == bits; };
  const bool counted = format.z == 0 ? format.w == 0 : format.y != 0;
  return counted && fits(format.y) && fits(format.z) && fits(format.w);
}

static cudaError_t create(cudaArray_t* result, const cudaChannelFormatDesc* format, cudaExtent extent, unsigned flags) {
  if (!result || !format || extent.width == 0) return record(CUDA_ERROR_INVALID_VALUE);
  if (!is_channel_format(*format)) return record(static_cast<CUresult>(cudaErrorInvalidChannelDescriptor));
  auto* array = new cudaArray{*format, extent, flags, 0};
  const size_t bytes = array->row_bytes() * array->rows() * array->slices();
  if (cudaError_t error = forward(cuMemAlloc, &array->low, bytes)) {
    delete array;
    return error;
  }
  const std::lock_guard<std::mutex> hold(arrays_lock);
  arrays.insert(array);
  *result = array;
  return cudaSuccess;
}

// One side of a copy of boxes: an array or pitched memory, from a position on.
struct Side {
  CUmemorytype type;
  const void* low;
  size_t pitch;        // bytes from row to row
  size_t slice_pitch;  // bytes from slice to slice
};

struct Box {
  size_t width;  // in bytes
  size_t height;
  size_t depth;
};

// The part of an array from `x` bytes, `y` rows and `z` slices on, if the box fits into it.
static bool array_side(const cudaArray* array, size_t x, size_t y, size_t z, Box box, Side* side) {
  if (!is_array(array)) return false;
  const bool fits = x + box.width <= array->row_bytes() && y + box.height <= array->rows() &&
                    z + box.depth <= array->slices();
  if (!fits) return false;
  const size_t slice = array->row_bytes() * array->rows();
  const size_t offset = z * slice + y * array->row_bytes() + x;
  *side = {CU_MEMORYTYPE_DEVICE, reinterpret_cast<const char*>(array->low) + offset, array->row_bytes(), slice};
  return true;
}

static CUresult copy_slice(const Side& to, const Side& from, Box box, size_t slice, bool async, CUstream stream) {
  const char* source = static_cast<const char*>(from.low) + slice * from.slice_pitch;
  const char* destination = static_cast<const char*>(to.low) + slice * to.slice_pitch;
  CUDA_MEMCPY2D copy = {};
  copy.srcMemoryType = from.type;
  copy.srcHost = source;
  copy.srcDevice = address(source);
  copy.srcPitch = from.pitch;
  copy.dstMemoryType = to.type;
  copy.dstHost = const_cast<char*>(destination);
  copy.dstDevice = address(destination);
  copy.dstPitch = to.pitch;
  copy.WidthInBytes = box.width;
  copy.Height = box.height;
  return async ? cuMemcpy2DAsync(&copy, stream) : cuMemcpy2DUnaligned(&copy);
}

// In the order of `stream`, or at once.
struct When {
  bool async;
  CUstream stream;
};

static cudaError_t copy_box(const Side& to, const Side& from, Box box, When when) {
  if (CUresult status = ensure_context()) return record(status);
  if (box.width == 0 || box.height == 0) return cudaSuccess;
  for (size_t slice = 0; slice < box.depth; slice++) {
    if (CUresult status = copy_slice(to, from, box, slice, when.async, when.stream)) return record(status);
  }
  return cudaSuccess;
}

struct ArrayPart {
  const cudaArray* array;
  size_t x;  // in bytes
  size_t y;
};

struct Pitched {
  const void* low;
  size_t pitch;
};

static cudaError_t copy_to_array(ArrayPart to, Pitched from, Box box, cudaMemcpyKind kind, When when) {
  Direction direction;
  Side array;
  if (!direction_of(kind, &direction)) return record(static_cast<CUresult>(cudaErrorInvalidMemcpyDirection));
  if (!array_side(to.array, to.x, to.y, 0, box, &array)) return record(CUDA_ERROR_INVALID_VALUE);
  return copy_box(array, {direction.source, from.low, from.pitch, 0}, box, when);
}

static cudaError_t copy_from_array(Pitched to, ArrayPart from, Box box, cudaMemcpyKind kind, When when) {
  Direction direction;
  Side array;
  if (!direction_of(kind, &direction)) return record(static_cast<CUresult>(cudaErrorInvalidMemcpyDirection));
  if (!array_side(from.array, from.x, from.y, 0, box, &array)) return record(CUDA_ERROR_INVALID_VALUE);
  return copy_box({direction.destination, to.low, to.pitch, 0}, array, box, when);
}

// ---- Copies in three dimensions ------------------------------------------------------------------------------------

// One side of cudaMemcpy3D as it is given: an array, positions in elements, or pitched memory, positions in bytes.
struct GivenSide {
  const cudaArray* array;
  cudaPos position;
  cudaPitchedPtr memory;
  CUmemorytype type;
};

static bool resolve(const GivenSide& given, Box box, Side* side) {
  const cudaPos at = given.position;
  if (given.array) {
    return is_array(given.array) && array_side(given.array, at.x * given.array->element_bytes(), at.y, at.z, box, side);
  }
  const size_t slice = given.memory.pitch * given.memory.ysize;
  const size_t offset = at.z * slice + at.y * given.memory.pitch + at.x;
  *side = {given.type, static_cast<const char*>(given.memory.ptr) + offset, given.memory.pitch, slice};
  return given.memory.ptr != nullptr;
}

static cudaError_t copy_3d(const cudaMemcpy3DParms* given, When when) {
  Direction direction;
  if (!given) return record(CUDA_ERROR_INVALID_VALUE);
  if (!direction_of(given->kind, &direction)) return record(static_cast<CUresult>(cudaErrorInvalidMemcpyDirection));
  Box box = {given->extent.width, given->extent.height, given->extent.depth};
  // The width counts elements where an array takes part.
  const cudaArray* array = given->srcArray ? given->srcArray : given->dstArray;
  if (array && !is_array(array)) return record(CUDA_ERROR_INVALID_HANDLE);
  if (array) box.width *= array->element_bytes();
  Side from;
  Side to;
  const bool valid = resolve({given->srcArray, given->srcPos, given->srcPtr, direction.source}, box, &from) &&
                     resolve({given->dstArray, given->dstPos, given->dstPtr, direction.destination}, box, &to);
  return valid ? copy_box(to, from, box, when) : record(CUDA_ERROR_INVALID_VALUE);
}

}  // namespace cudart

using namespace cudart;

RUNTIME_ENTRY cudaMallocArray(cudaArray_t* array, const cudaChannelFormatDesc* format, size_t width, size_t height,
                              unsigned flags) {
  return create(array, format, {width, height, 0}, flags);
}

RUNTIME_ENTRY cudaMalloc3DArray(cudaArray_t* array, const cudaChannelFormatDesc* format, cudaExtent extent,
                                unsigned flags) {
  return create(array, format, extent, flags);
}

RUNTIME_ENTRY cudaFreeArray(cudaArray_t array) {
  if (!array) return record(ensure_context());
  if (!is_array(array)) return record(CUDA_ERROR_INVALID_HANDLE);
  if (cudaError_t error = forward(cuMemFree, array->low)) return error;
  const std::lock_guard<std::mutex> hold(arrays_lock);
  arrays.erase(array);
  delete array;
  return cudaSuccess;
}

RUNTIME_ENTRY cudaGetChannelDesc(cudaChannelFormatDesc* format, cudaArray_const_t array) {
  if (CUresult injected = cudasim_begin_call(__func__)) return record(injected);
  if (!format || !is_array(array)) return record(CUDA_ERROR_INVALID_VALUE);
  *format = array->format;
  return cudaSuccess;
}

RUNTIME_ENTRY cudaMemcpy2DToArray(cudaArray_t array, size_t x, size_t y, const void* source, size_t pitch, size_t width,
                                  size_t height, cudaMemcpyKind kind) {
  return copy_to_array({array, x, y}, {source, pitch}, {width, height, 1}, kind, {false, nullptr});
}

RUNTIME_ENTRY cudaMemcpy2DToArrayAsync(cudaArray_t array, size_t x, size_t y, const void* source, size_t pitch,
                                       size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_to_array({array, x, y}, {source, pitch}, {width, height, 1}, kind, {true, stream});
}

RUNTIME_ENTRY cudaMemcpy2DFromArray(void* destination, size_t pitch, cudaArray_const_t array, size_t x, size_t y,
                                    size_t width, size_t height, cudaMemcpyKind kind) {
  return copy_from_array({destination, pitch}, {array, x, y}, {width, height, 1}, kind, {false, nullptr});
}

RUNTIME_ENTRY cudaMemcpy2DFromArrayAsync(void* destination, size_t pitch, cudaArray_const_t array, size_t x, size_t y,
                                         size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_from_array({destination, pitch}, {array, x, y}, {width, height, 1}, kind, {true, stream});
}

RUNTIME_ENTRY cudaMemcpy3D(const cudaMemcpy3DParms* parameters) { return copy_3d(parameters, {false, nullptr}); }

RUNTIME_ENTRY cudaMemcpy3DAsync(const cudaMemcpy3DParms* parameters, cudaStream_t stream) {
  return copy_3d(parameters, {true, stream});
}
