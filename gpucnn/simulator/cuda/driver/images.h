// Images of modules: shared objects that the simulator's compiler makes, loaded into this process.
#pragma once
#include <string>

#include "../../runtime/launch.h"
#include "driver.h"

namespace cudasim {

struct Image {
  std::string name;  // of the file, for messages
  void* library = nullptr;
  const gpucnn::Entry* entries = nullptr;
  int entry_count = 0;
  const gpucnn::Variable* variables = nullptr;  // ends with a row of zeros
  bool checked = false;                         // it was compiled with checks
  std::string bytes;                            // of a checked image: debug information explains its addresses

  // Of the runtime that the image is linked with.
  int (*launch)(const gpucnn::Launch*) = nullptr;
  const gpucnn::ErrorReport* (*error)() = nullptr;
  void (*range)(const void* address, uint64_t* low, uint64_t* high) = nullptr;

  Image() = default;
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  ~Image();
};

// The size of an image, which programs do not tell; a failure for one that cannot run.
CUresult measure_image(const void* data, size_t* bytes);

CUresult open_image(const void* data, size_t bytes, const std::string& name, Image& image);
// A file that exists in memory only; -1 if there is no room for it.
int memory_file(const char* name, const void* data, size_t bytes, unsigned flags);

CUresult read_image(const char* path, std::string* bytes);

// "kernel.cu:12" of an address within the image; empty if it is not known.
std::string source_line(const Image& image, uint64_t address);

}  // namespace cudasim
