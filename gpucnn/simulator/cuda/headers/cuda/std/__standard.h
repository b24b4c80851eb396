// CUDA's standard library: parts of the host's, which is compiled for the CPU as the kernels are.
#pragma once
namespace cuda {
namespace std {
using namespace gpucnn_std;
}
}  // namespace cuda
