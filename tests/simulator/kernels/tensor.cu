// Matrix products, matrix loads and asynchronous copies, as inline PTX.

__device__ __forceinline__ unsigned shared_of(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c [16, 8] += a [16, 16] b [16, 8] for one warp, the fragments loaded by ldmatrix from shared memory.
extern "C" __global__ void product_16_bit(const unsigned short* a, const unsigned short* b, float* c, int bf16,
                                          int bug) {
  __shared__ __align__(16) unsigned short as[16 * 16];
  __shared__ __align__(16) unsigned short bs[16 * 8];
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 256; i += 32) as[i] = a[i];
  for (int i = lane; i < 128; i += 32) bs[i] = b[i];
  __syncthreads();
  unsigned fa[4], fb[2];
  const unsigned row_a = shared_of(as + lane % 16 * 16 + lane / 16 * 8);
  const unsigned row_b = shared_of(bs + lane % 16 * 8);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3]) : "r"(row_a));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(fb[0]), "=r"(fb[1]) : "r"(row_b));
  if (bug) {
    const unsigned swapped = fa[1];
    fa[1] = fa[2];
    fa[2] = swapped;
  }
  float d[4];
  for (int i = 0; i < 4; i++) d[i] = c[(g + i / 2 * 8) * 8 + t * 2 + i % 2];
  if (bf16) mma_bf16(d, fa, fb);
  else mma_f16(d, fa, fb);
  for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

// c [16, 8] += a [16, 8] b [8, 8] of 16-bit floats for one warp.
extern "C" __global__ void product_short(const unsigned short* a, const unsigned short* b, float* c) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  unsigned fa[2];
  for (int i = 0; i < 2; i++) fa[i] = reinterpret_cast<const unsigned*>(a)[(g + i * 8) * 4 + t];
  const unsigned fb = b[t * 2 * 8 + g] | b[(t * 2 + 1) * 8 + g] << 16;
  float d[4];
  for (int i = 0; i < 4; i++) d[i] = c[(g + i / 2 * 8) * 8 + t * 2 + i % 2];
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(fa[0]), "r"(fa[1]), "r"(fb));
  for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

// c [16, 8] += a [16, 8] b [8, 8] for one warp.
extern "C" __global__ void product_tf32(const float* a, const float* b, float* c) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  unsigned fa[4], fb[2];
  for (int i = 0; i < 4; i++) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fa[i]) : "f"(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]));
  }
  for (int i = 0; i < 2; i++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fb[i]) : "f"(b[(t + i * 4) * 8 + g]));
  float d[4];
  for (int i = 0; i < 4; i++) d[i] = c[(g + i / 2 * 8) * 8 + t * 2 + i % 2];
  mma_tf32(d, fa, fb);
  for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

// Each lane's registers of ldmatrix over an 8 x 32 array of numbers.
extern "C" __global__ void load_matrices(const unsigned short* x, unsigned* y, int count, int transposed, int shift) {
  __shared__ __align__(16) unsigned short tile[8 * 32 + 8];
  const int lane = threadIdx.x;
  for (int i = lane; i < 8 * 32 + 8; i += 32) tile[i] = i < 256 ? x[i] : 0;
  __syncthreads();
  const unsigned row = shared_of(tile + lane % 8 * 32 + lane / 8 * 8) + shift;
  unsigned d[4] = {};
  if (count == 1 && transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(d[0]) : "r"(row));
  } else if (count == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(d[0]) : "r"(row));
  } else if (count == 2 && transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(row));
  } else if (count == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(row));
  } else if (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"  // matrix load
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row));
  }
  for (int m = 0; m < 4; m++) y[lane * 4 + m] = d[m];
}

// y = x through shared memory, `used` floats of each four copied and the others zero.
extern "C" __global__ void async_copy(const float* x, float* y, int used, int bug) {
  __shared__ __align__(16) float tile[2][32 * 4];
  const int t = threadIdx.x;
  for (int stage = 0; stage < 2; stage++) {
    const unsigned to = shared_of(&tile[stage][4 * t]);
    const float* from = x + stage * 128 + 4 * t + (bug == 3);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(4 * used));
    asm volatile("cp.async.commit_group;");
  }
  if (bug != 1) asm volatile("cp.async.wait_group 1;");
  if (bug != 2) __syncthreads();
  y[t] = tile[0][127 - t];  // read of the first stage
  if (bug == 4) y[t] = tile[1][t];  // read of the second stage
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  for (int i = 0; i < 4; i++) y[i * 32 + t] = tile[0][i * 32 + t];
  for (int i = 0; i < 4; i++) y[128 + i * 32 + t] = tile[1][i * 32 + t];
}

extern "C" __global__ void partial_warp(float* y, int n) {
  float d[4] = {};
  const unsigned a[4] = {}, b[2] = {};
  if (threadIdx.x < n) mma_f16(d, a, b);
  y[threadIdx.x] = d[0];
}

// Conversions of the 16-bit floats there and back.
extern "C" __global__ void to_float(const unsigned short* x, float* half, float* bfloat, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  asm("cvt.f32.f16 %0, %1;" : "=f"(half[i]) : "h"(x[i]));
  asm("cvt.f32.bf16 %0, %1;" : "=f"(bfloat[i]) : "h"(x[i]));
}

extern "C" __global__ void from_float(const float* x, unsigned short* half, unsigned short* bfloat, unsigned* tf32,
                                      unsigned* pair, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half[i]) : "f"(x[i]));
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bfloat[i]) : "f"(x[i]));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(tf32[i]) : "f"(x[i]));
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair[i]) : "f"(x[i]), "f"(1.0f));
}
