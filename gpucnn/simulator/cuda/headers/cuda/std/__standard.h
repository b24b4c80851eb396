// CUDA's standard library: the host's, which is compiled for the CPU as the kernels are. It is a namespace of its own,
// as programs may define in std what they miss there.
#pragma once
namespace cuda {
namespace std {
using namespace ::std;
}
}  // namespace cuda
