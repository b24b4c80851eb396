// CUDA's standard library: the host's, which is compiled for the CPU as the kernels are.
#pragma once
namespace cuda {
namespace std = ::std;
}
