// Barriers and warp operations that not all threads reach where `bug` says so.

extern "C" __global__ void divergent(float* y, int bug) {
  y[threadIdx.x] = 0.0f;
  if (!bug || threadIdx.x < 16)
    __syncthreads();  // first barrier
  else
    __syncthreads();  // second barrier
}

extern "C" __global__ void early_exit(float* y, int n) {
  if (threadIdx.x >= n) return;
  y[threadIdx.x] = 1.0f;
  __syncthreads();  // barrier after exit
}

extern "C" __global__ void votes(int* y) {
  const int t = threadIdx.x;
  y[t] = __syncthreads_count(t % 3 == 0);
  y[t] += 1000 * __syncthreads_and(t < 40);
  y[t] += 10000 * __syncthreads_or(t == 47);
}

extern "C" __global__ void half_warp(int* y, int bug) {
  int value = threadIdx.x;
  if (threadIdx.x < 16) value = __shfl_xor_sync(bug ? 0xffffffffu : 0xffffu, value, 1);  // shuffle
  y[threadIdx.x] = value;
}

extern "C" __global__ void outside_mask(int* y, int bug) {
  int value = threadIdx.x;
  if (threadIdx.x < 20) value = __shfl_xor_sync(bug ? 0xffffu : 0xfffffu, value, 0);  // lane outside
  y[threadIdx.x] = value;
}

extern "C" __global__ void source_outside(int* y, int bug) {
  int value = threadIdx.x;
  if (threadIdx.x < 16) value = __shfl_sync(0xffffu, value, bug ? 20 : 3);  // source
  y[threadIdx.x] = value;
}

extern "C" __global__ void different_operations(int* y, int bug) {
  if (bug && threadIdx.x == 7)
    y[threadIdx.x] = __ballot_sync(0xffffffffu, 1);  // a vote
  else
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);  // not a vote
}

extern "C" __global__ void exited_lanes(int* y, int bug) {
  if (bug && threadIdx.x == 31) return;
  __syncwarp();  // syncwarp
  y[threadIdx.x] = 1;
}

extern "C" __global__ void barrier_against_warp(int* y, int bug) {
  if (bug && threadIdx.x < 8)
    __syncthreads();  // barrier of eight
  else
    __syncwarp();  // warp of the others
  y[threadIdx.x] = 1;
}

extern "C" __global__ void shuffles(const int* x, int* y, int argument, int width, int which) {
  const int t = threadIdx.x;
  switch (which) {
    case 0: y[t] = __shfl_sync(0xffffffffu, x[t], argument, width); break;
    case 1: y[t] = __shfl_up_sync(0xffffffffu, x[t], argument, width); break;
    case 2: y[t] = __shfl_down_sync(0xffffffffu, x[t], argument, width); break;
    case 3: y[t] = __shfl_xor_sync(0xffffffffu, x[t], argument, width); break;
  }
}

extern "C" __global__ void warp_votes(const int* x, unsigned* y) {
  const int t = threadIdx.x;
  y[t] = __ballot_sync(0xffffffffu, x[t] > 0);
  y[32 + t] = __any_sync(0xffffffffu, x[t] > 100);
  y[64 + t] = __all_sync(0xffffffffu, x[t] > -100);
  y[96 + t] = __reduce_add_sync(0xffffffffu, x[t]);
  y[128 + t] = __reduce_min_sync(0xffffffffu, x[t]);
  y[160 + t] = __reduce_max_sync(0xffffffffu, x[t]);
  y[192 + t] = __activemask();
}

template <class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) value += __shfl_down_sync(0xffffffffu, value, delta);
  return value;
}

extern "C" __global__ void sums(const float* x, double* y) {
  const float single_sum = warp_sum(x[threadIdx.x]);
  const double double_sum = warp_sum(static_cast<double>(x[threadIdx.x]));
  if (threadIdx.x == 0) y[0] = single_sum;
  if (threadIdx.x == 0) y[1] = double_sum;
}
