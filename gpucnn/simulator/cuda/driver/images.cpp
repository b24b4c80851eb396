// Images of modules: what they are, and how they are loaded.
#include "images.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

namespace cudasim {

constexpr uint32_t kFatBinary = 0xba55ed50;
constexpr uint32_t kFatBinaryWrapper = 0x466243b1;

#if defined(__x86_64__)
constexpr uint16_t kHostMachine = EM_X86_64;
#else
constexpr uint16_t kHostMachine = EM_AARCH64;
#endif

static CUresult refuse_gpu_image(const char* kind) {
  return failure(CUDA_ERROR_INVALID_IMAGE,
                 "the image is %s: it was compiled for a GPU and cannot run here; the simulator runs what its own "
                 "NVRTC compiles from CUDA C++",
                 kind);
}

static bool is_ptx(const char* text) {
  return strncmp(text, ".version", 8) == 0 || strncmp(text, "//", 2) == 0;
}

static CUresult refuse_foreign(const void* data) {
  uint32_t magic;
  memcpy(&magic, data, sizeof magic);
  if (magic == kFatBinary || magic == kFatBinaryWrapper) return refuse_gpu_image("a fat binary of NVIDIA's compiler");
  if (is_ptx(static_cast<const char*>(data))) return refuse_gpu_image("PTX");
  return failure(CUDA_ERROR_INVALID_IMAGE,
                 "the image is none that the simulator's NVRTC compiles, it begins with 0x%08x", magic);
}

CUresult measure_image(const void* data, size_t* bytes) {
  if (!data) return failure(CUDA_ERROR_INVALID_VALUE, "no image was given");
  if (memcmp(data, ELFMAG, SELFMAG) != 0) return refuse_foreign(data);
  const auto* header = static_cast<const Elf64_Ehdr*>(data);
  if (header->e_machine == EM_CUDA) return refuse_gpu_image("a cubin");
  if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != kHostMachine || header->e_type != ET_DYN) {
    return failure(CUDA_ERROR_INVALID_IMAGE, "the image is an ELF file, but no shared object for this processor");
  }
  *bytes = header->e_shoff + size_t{header->e_shentsize} * header->e_shnum;  // linkers put the section headers last
  return CUDA_SUCCESS;
}

// ---- Loading -------------------------------------------------------------------------------------------------------

static bool write_all(int file, const void* data, size_t bytes) {
  const char* rest = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = write(file, rest, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    rest += done;
    bytes -= static_cast<size_t>(done);
  }
  return true;
}

int memory_file(const char* name, const void* data, size_t bytes, unsigned flags) {
  const int file = memfd_create(name, flags);
  if (file < 0 || write_all(file, data, bytes)) return file;
  close(file);
  return -1;
}

// Appends a number to a path in a form that means nothing: each bit as "/." or as "/".
static void append_bits(std::string& path, uint64_t number) {
  for (int bit = 0; bit < 64; bit++) path += number >> bit & 1 ? "/." : "/";
}

// A path of an open file that was never used before: the loader takes a file for one that it has loaded by its path,
// and file numbers come again. The count of paths is written into it, and which driver of the process counts them.
static std::string new_path(int file) {
  static uint64_t count = 0;
  std::string path = "/proc/self/fd";
  append_bits(path, reinterpret_cast<uintptr_t>(&count));
  append_bits(path, ++count);
  return path + "/" + std::to_string(file);
}

// Each load is of a new file: the same image loaded twice has its variables twice, as on a device.
static void* load(const void* data, size_t bytes) {
  const int file = memory_file("cuda-module", data, bytes, MFD_CLOEXEC);
  if (file < 0) return nullptr;
  const std::string path = new_path(file);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  close(file);
  return library;
}

template <class T>
static void find(void* library, const char* symbol, T& address) {
  address = reinterpret_cast<T>(dlsym(library, symbol));
}

CUresult open_image(const void* data, size_t bytes, const std::string& name, Image& image) {
  image.name = name;
  image.library = load(data, bytes);
  if (!image.library) {
    const char* reason = dlerror();
    return failure(CUDA_ERROR_INVALID_IMAGE, "the image cannot be loaded: %s", reason ? reason : strerror(errno));
  }
  find(image.library, "gpucnn_launch", image.launch);
  find(image.library, "gpucnn_error", image.error);
  find(image.library, "gpucnn_image", image.range);
  find(image.library, "gpucnn_entries", image.entries);
  find(image.library, "gpucnn_variables", image.variables);
  const int *count, *checked;
  find(image.library, "gpucnn_entry_count", count);
  find(image.library, "gpucnn_checked", checked);
  if (!image.launch || !image.error || !image.range || !image.entries || !count) {
    return failure(CUDA_ERROR_INVALID_IMAGE, "the image is a shared object, but not of the simulator's compiler");
  }
  image.entry_count = *count;
  image.checked = checked && *checked;
  if (image.checked) image.bytes.assign(static_cast<const char*>(data), bytes);
  return CUDA_SUCCESS;
}

Image::~Image() {
  if (library) dlclose(library);
}

CUresult read_image(const char* path, std::string* bytes) {
  FILE* file = path ? fopen(path, "rb") : nullptr;
  if (!file) return failure(CUDA_ERROR_FILE_NOT_FOUND, "cannot open the image %s", path ? path : "(null)");
  char part[1 << 16];
  for (size_t count; (count = fread(part, 1, sizeof part, file)) > 0;) bytes->append(part, count);
  fclose(file);
  const size_t read = bytes->size();
  if (read < sizeof(Elf64_Ehdr)) bytes->resize(sizeof(Elf64_Ehdr));  // a header can be read of any file
  size_t wanted = 0;
  if (CUresult error = measure_image(bytes->data(), &wanted)) return error;
  if (read < wanted) return failure(CUDA_ERROR_INVALID_IMAGE, "the image %s is cut short", path);
  return CUDA_SUCCESS;
}

}  // namespace cudasim
