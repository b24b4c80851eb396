// Accesses that go wrong where `bug` says so, and do not otherwise.

extern "C" __global__ void copy(const float* __restrict__ x, float* __restrict__ y, int n, int shift) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i + shift];  // global read
}

extern "C" __global__ void scatter(float* y, int shift) {
  y[static_cast<int>(threadIdx.x) + shift] = 1.0f;  // global write
}

extern "C" __global__ void write_input(const float* x, float* y, int bug) {
  float* target = bug ? const_cast<float*>(x) : y;
  target[threadIdx.x] = 1.0f;  // write through const
}

extern "C" __global__ void shared_bounds(float* y, int shift) {
  __shared__ float before[32];
  __shared__ float tile[32];
  before[threadIdx.x] = 0.0f;
  float* at = tile + threadIdx.x;
  *(at + shift) = 2.0f;  // shared write
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x] + before[threadIdx.x];
}

extern "C" __global__ void dynamic_bounds(float* y) {
  extern __shared__ float values[];
  values[threadIdx.x] = threadIdx.x;  // dynamic write
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void inner_index(float* y, int shift) {
  __shared__ float tile[4][8];
  tile[threadIdx.x][threadIdx.y + shift] = 1.0f;  // inner index
  __syncthreads();
  y[threadIdx.x * 8 + threadIdx.y] = tile[threadIdx.x][threadIdx.y];
}

extern "C" __global__ void local_index(float* y, int i) {
  float local[4] = {1, 2, 3, 4};
  y[threadIdx.x] = local[i];  // local index
}

extern "C" __global__ void vectors(const float* x, float* y) {
  const float4 four = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x);  // vector read
  y[threadIdx.x] = four.x + four.y + four.z + four.w;
}

extern "C" __global__ void null_pointer(const float* x, float* y) {
  y[threadIdx.x] = x ? x[threadIdx.x] : -1.0f;
}

extern "C" __global__ void through_null(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];  // read through null
}

extern "C" __global__ void uninitialised(float* y, int bug) {
  __shared__ float tile[64];
  if (!bug || threadIdx.x != 5) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x ^ 1];  // shared read
}

extern "C" __global__ void left_by_last_block(float* y, int bug) {
  __shared__ float tile[32];
  if (!bug || blockIdx.x == 0) tile[threadIdx.x] = 1.0f;
  y[blockIdx.x * 32 + threadIdx.x] = tile[threadIdx.x];  // read of the last block's
}

extern "C" __global__ void bytes(unsigned char* y) {
  __shared__ unsigned char tile[37];
  tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = tile[36 - threadIdx.x];
}

extern "C" __global__ void halves(const unsigned short* x, unsigned* y, int n) {
  const int i = threadIdx.x;
  __shared__ unsigned pairs[32];
  reinterpret_cast<unsigned short*>(pairs)[2 * i] = x[2 * i];
  reinterpret_cast<unsigned short*>(pairs)[2 * i + 1] = x[2 * i + 1];
  __syncthreads();
  if (i < n) y[i] = pairs[n - 1 - i];
}

extern "C" __global__ void overlapping(const float* x, float* y, int n) {
  const int i = threadIdx.x;
  if (i < n) y[i] = x[i] + 1.0f;
}

__constant__ float taps[3] = {1.0f, 2.0f, 1.0f};
__device__ int zero;

extern "C" __global__ void constants(float* y) { y[threadIdx.x] = taps[threadIdx.x] + zero; }

extern "C" __global__ void arithmetic(const int* x, int* y, int which) {
  const int a = x[0], b = x[1];
  switch (which) {
    case 0: y[0] = a + b; break;   // addition
    case 1: y[0] = a - b; break;   // subtraction
    case 2: y[0] = a * b; break;   // multiplication
    case 3: y[0] = a / b; break;   // division
    case 4: y[0] = a % b; break;   // remainder
    case 5: y[0] = a << b; break;  // shift
    case 6: y[0] = -a; break;      // negation
  }
}

extern "C" __global__ void unsigned_arithmetic(const unsigned* x, unsigned* y) { y[0] = x[0] + x[1] * 3u; }

extern "C" __global__ void asserts(int value) {
  assert(value == 3);  // assertion
  if (value != 3) __trap();
}
