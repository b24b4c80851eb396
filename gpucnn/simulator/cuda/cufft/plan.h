// A plan: what is transformed, and where its elements lie.
#pragma once
#include <string>
#include <vector>

#include "interface.h"

namespace cudasim::cufft {

// An array of the device: `batch` transforms, each a box of elements. Sizes and strides count elements.
struct Layout {
  cudaDataType type;
  std::vector<size_t> embed;  // the box that the elements are a part of, its first size unused
  size_t stride;              // between elements of a row
  size_t distance;            // between transforms
};

enum class Kind { kComplex, kRealToComplex, kComplexToReal };

struct Plan {
  std::vector<size_t> sizes;  // of the transform, for real data those of the real array
  size_t batch = 0;           // 0: the plan was created, but not made
  Layout input;
  Layout output;
  bool is_default_layout = false;  // then real data in place are padded
  CUstream stream = nullptr;
  bool allocates = true;  // its work area itself, as cuFFT would
  void* work_area = nullptr;

  size_t work_bytes() const;
  Kind kind() const;
  size_t rows() const;  // of the innermost dimension, in a transform
  // Of the innermost dimension, as stored in the input or the output: half the spectrum of real data is not.
  size_t stored(const Layout& layout) const;
};

bool is_complex(cudaDataType type);
size_t bytes_of(cudaDataType type);

// Does all transforms of a plan, once: the work of a stream.
CUresult execute(const Plan& plan, const std::string& name, const void* input, void* output, int sign);

// Says on standard error why a call fails, makes that the detail of the last failure, and returns `result`.
cufftResult refuse(cufftResult result, const std::string& sentence);

}  // namespace cudasim::cufft
