// Accesses that nothing orders where `bug` says so; otherwise a barrier, an atomic operation or a fence does.

extern "C" __global__ void reverse(float* y, int bug) {
  __shared__ float tile[64];
  for (int pass = 0; pass < 2; pass++) {
    tile[threadIdx.x] = threadIdx.x + pass;  // fill
    if (bug != 1) __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];  // use
    if (bug != 2) __syncthreads();
  }
}

extern "C" __global__ void reduce_dynamic(const float* x, float* y, int bug) {
  extern __shared__ float sums[];
  const int t = threadIdx.x;
  sums[t] = x[blockIdx.x * blockDim.x + t];
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) sums[t] += sums[t + half];
    if (!bug) __syncthreads();
  }
  if (t == 0) y[blockIdx.x] = sums[0];
}

extern "C" __global__ void between_blocks(float* y, int bug) {
  const int i = bug ? threadIdx.x : blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = blockIdx.x;  // block write
}

extern "C" __global__ void read_other_block(float* x, float* y, int bug) {
  y[blockIdx.x] = x[blockIdx.x];
  x[bug ? (blockIdx.x + 1) % gridDim.x : blockIdx.x] = 0.0f;  // overwrite
}

extern "C" __global__ void accumulate(float* sum, int bug) {
  if (bug)
    *sum += 1.0f;  // plain sum
  else
    atomicAdd(sum, 1.0f);
}

extern "C" __global__ void atomic_then_plain(int* x, int bug) {
  atomicMax(x, static_cast<int>(threadIdx.x));
  if (!bug) __syncthreads();
  if (threadIdx.x == 0) x[1] = x[0];  // plain read
}

extern "C" __global__ void last_block(const float* x, float* parts, float* sum, int* count, int bug) {
  __shared__ float sums[64];
  __shared__ bool last;
  const int t = threadIdx.x;
  sums[t] = x[blockIdx.x * 64 + t];
  __syncthreads();
  for (int half = 32; half > 0; half /= 2) {
    if (t < half) sums[t] += sums[t + half];
    __syncthreads();
  }
  if (t == 0) {
    parts[blockIdx.x] = sums[0];
    if (!bug) __threadfence();
    last = atomicAdd(count, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last && t == 0) {
    float total = 0.0f;
    for (unsigned block = 0; block < gridDim.x; block++) total += parts[block];  // read of parts
    *sum = total;
  }
}

extern "C" __global__ void fence_without_barrier(float* parts, float* sum, int* count, int bug) {
  parts[blockIdx.x * 32 + threadIdx.x] = 1.0f;
  if (!bug) __syncthreads();  // or thread 0 fences before the others have written
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(count, 1) == static_cast<int>(gridDim.x) - 1) {
      float total = 0.0f;
      for (unsigned i = 0; i < gridDim.x * 32; i++) total += parts[i];  // read of all parts
      *sum = total;
    }
  }
}

extern "C" __global__ void neighbours(float* y, int bug) {
  __shared__ float tile[64];
  tile[threadIdx.x] = threadIdx.x;
  if (!bug) __syncwarp();
  y[threadIdx.x] = tile[threadIdx.x ^ 1];  // neighbour
  if (bug != 2) __syncwarp();
  tile[threadIdx.x] = y[threadIdx.x];
}

extern "C" __global__ void across_warps(float* y, int bug) {
  __shared__ float tile[64];
  tile[threadIdx.x] = threadIdx.x;
  __syncwarp();
  if (!bug) __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x ^ 32];  // other warp
}

extern "C" __global__ void small_neighbours(unsigned char* y, double* z) {
  __shared__ unsigned char small[64];
  small[threadIdx.x] = threadIdx.x;
  small[threadIdx.x] += 1;
  y[threadIdx.x] = small[threadIdx.x];
  z[threadIdx.x] = threadIdx.x;
  reinterpret_cast<float*>(z)[2 * threadIdx.x] += 1.0f;
}

extern "C" __global__ void order(int* places, int* count) {
  if (threadIdx.x == 0) places[atomicAdd(count, 1)] = blockIdx.x;
  __syncthreads();
  places[gridDim.x + atomicAdd(count + 1 + blockIdx.x, 1) + blockIdx.x * blockDim.x] = threadIdx.x;
}
