// Kernels whose requests can be counted by hand.

extern "C" __global__ void copy(const float* __restrict__ x, float* __restrict__ y, int step, int shift) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i * step + shift];
}

extern "C" __global__ void copy_four(const float4* __restrict__ x, float4* __restrict__ y) {
  y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void copy_bytes(const signed char* __restrict__ x, signed char* __restrict__ y) {
  y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void read_twice(const float* __restrict__ x, float* __restrict__ y) {
  const float first = x[threadIdx.x];  // once
  __syncthreads();
  y[threadIdx.x] = first + x[blockDim.x - 1 - threadIdx.x];  // again
}

extern "C" __global__ void in_rounds(const float* __restrict__ x, float* __restrict__ y) {
  float sum = 0;
  for (int round = 0; round < 2; round++) {
    if (round || threadIdx.x < 4) sum += x[round ? 512 + threadIdx.x / 2 : threadIdx.x];  // by some, then by all
    __syncthreads();
  }
  y[threadIdx.x] = sum;
}

extern "C" __global__ void two_widths(const float* __restrict__ x, float* __restrict__ y) {
  y[threadIdx.x] = x[threadIdx.x] + float4(reinterpret_cast<const float4*>(x)[threadIdx.x]).y;  // one and four
}

extern "C" __global__ void triangle(const float* __restrict__ x, float* __restrict__ y) {
  float sum = 0;
  for (int i = 0; i <= static_cast<int>(threadIdx.x); i++) sum += x[i * 32 + threadIdx.x];  // a row
  y[threadIdx.x] = sum;
}

extern "C" __global__ void shared_four(float* y, int step) {
  __shared__ float tile[1024];
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i] = 0;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x * step % 1024];  // read back
}

extern "C" __global__ void shared_halving(float* y, int step) {
  __shared__ float tile[1024];
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i] = 0;
  __syncthreads();
  float sum = 0;
  for (int s = step; s > 0; s /= 2) sum += tile[threadIdx.x * s % 1024];  // ever nearer
  y[threadIdx.x] = sum;
}

extern "C" __global__ void shared_two(float* y, int a, int b) {
  __shared__ float tile[1024];
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i] = 0;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x * a % 1024] - tile[threadIdx.x * b % 1024];  // two at once
}

extern "C" __global__ void shared_eight(float* y, int step) {
  __shared__ float2 tile[1024];
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i] = make_float2(0, 0);
  __syncthreads();
  const float2 value = tile[threadIdx.x * step % 1024];  // two back
  y[threadIdx.x] = value.x + value.y;
}

extern "C" __global__ void shared_sixteen(float* y, int step) {
  __shared__ float4 tile[1024];
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i] = make_float4(0, 0, 0, 0);
  __syncthreads();
  const float4 value = tile[threadIdx.x * step % 1024];  // four back
  y[threadIdx.x] = value.x + value.y + value.z + value.w;
}

extern "C" __global__ void diverging(const float* __restrict__ x, float* __restrict__ y, int bits) {
  if (threadIdx.x & bits) {  // which way
    y[threadIdx.x] = x[threadIdx.x];
  } else {
    for (int i = 0; i < 3; i++) y[threadIdx.x] += x[i];
  }
}

extern "C" __global__ void sum_of_warp(const float* __restrict__ x, float* __restrict__ y, int* __restrict__ count) {
  float sum = x[threadIdx.x];
  for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);  // shuffled
  if (threadIdx.x % 32 == 0) y[threadIdx.x / 32] = sum;
  if (threadIdx.x % 32 < 2) atomicAdd(count, 1);  // counted
}

extern "C" __global__ void staged(const float* __restrict__ x, float* __restrict__ y) {
  __shared__ float tile[256];
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(tile + 4 * threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x + 4 * threadIdx.x));  // copied
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void outside(const float* __restrict__ x, float* __restrict__ y) { y[threadIdx.x] = x[1000]; }
