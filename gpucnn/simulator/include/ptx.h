// Inline PTX, one function for each instruction: asm("ldmatrix.sync.x4 {%0,..}, [%4];" ..) becomes a call of
// gpucnn::ptx::ldmatrix_sync_x4(%0, .., %4). `lowering.py` reads from this file which instructions there are: a line
// that begins with "inline void NAME(". Outputs come first, the place of the call last.
#pragma once
#include "half_bits.h"
#include "interface.h"

namespace gpucnn {
namespace ptx {

// An operand with the constraint "l": a global address, as a pointer or an integer.
inline const char* address(const volatile void* pointer) { return (const char*)pointer; }
inline const char* address(uint64_t bits) { return (const char*)bits; }

// ---- Special registers: %laneid is special_laneid() -----------------------------------------------------------------

inline uint32_t special_tid_x() { return threadIdx.x; }
inline uint32_t special_tid_y() { return threadIdx.y; }
inline uint32_t special_tid_z() { return threadIdx.z; }
inline uint32_t special_ntid_x() { return blockDim.x; }
inline uint32_t special_ntid_y() { return blockDim.y; }
inline uint32_t special_ntid_z() { return blockDim.z; }
inline uint32_t special_ctaid_x() { return blockIdx.x; }
inline uint32_t special_ctaid_y() { return blockIdx.y; }
inline uint32_t special_ctaid_z() { return blockIdx.z; }
inline uint32_t special_nctaid_x() { return gridDim.x; }
inline uint32_t special_nctaid_y() { return gridDim.y; }
inline uint32_t special_nctaid_z() { return gridDim.z; }
inline uint32_t thread_in_block() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
inline uint32_t special_laneid() { return thread_in_block() % 32; }
inline uint32_t special_warpid() { return thread_in_block() / 32; }
inline uint32_t special_lanemask_eq() { return 1u << special_laneid(); }
inline uint32_t special_lanemask_lt() { return special_lanemask_eq() - 1; }
inline uint32_t special_lanemask_le() { return special_lanemask_lt() | special_lanemask_eq(); }
inline uint32_t special_lanemask_gt() { return ~special_lanemask_le(); }
inline uint32_t special_lanemask_ge() { return ~special_lanemask_lt(); }
inline uint32_t special_smid() { return 0; }  // blocks run one after another
inline uint32_t special_nsmid() { return 1; }
inline uint32_t special_clock() { return static_cast<uint32_t>(clock64()); }
inline uint64_t special_clock64() { return static_cast<uint64_t>(clock64()); }
inline uint64_t special_globaltimer() { return host_nanoseconds(); }

// ---- Moves and integers --------------------------------------------------------------------------------------------

inline void mov_u32(uint32_t& d, uint32_t a, Site = {}) { d = a; }
inline void mov_u32(int& d, uint32_t a, Site = {}) { d = static_cast<int>(a); }
inline void mov_s32(int& d, int a, Site = {}) { d = a; }
inline void mov_u64(unsigned long& d, uint64_t a, Site = {}) { d = a; }
inline void mov_u64(unsigned long long& d, uint64_t a, Site = {}) { d = a; }
inline void mov_u64(long long& d, uint64_t a, Site = {}) { d = static_cast<long long>(a); }
inline void mov_u64(unsigned long long& d, const char* a, Site = {}) { d = reinterpret_cast<uint64_t>(a); }
inline void mov_b32(uint32_t& d, float a, Site = {}) { d = float_to_bits(a); }
inline void mov_b32(uint32_t& d, uint32_t a, Site = {}) { d = a; }
inline void mov_b32(float& d, uint32_t a, Site = {}) { d = bits_to_float(a); }
inline void popc_b32(uint32_t& d, uint32_t a, Site = {}) { d = static_cast<uint32_t>(__popc(a)); }
inline void brev_b32(uint32_t& d, uint32_t a, Site = {}) { d = __brev(a); }
inline void clz_b32(uint32_t& d, uint32_t a, Site = {}) { d = static_cast<uint32_t>(__clz(static_cast<int>(a))); }
inline void prmt_b32(uint32_t& d, uint32_t a, uint32_t b, uint32_t c, Site = {}) { d = __byte_perm(a, b, c); }
inline void bfe_u32(uint32_t& d, uint32_t a, uint32_t start, uint32_t length, Site = {}) {
  start &= 0xff, length &= 0xff;
  const uint64_t shifted = start < 32 ? a >> start : 0;
  d = static_cast<uint32_t>(length < 32 ? shifted & ((1ull << length) - 1) : shifted);
}
inline void bfi_b32(uint32_t& d, uint32_t a, uint32_t b, uint32_t start, uint32_t length, Site = {}) {
  start &= 0xff, length &= 0xff;
  const uint64_t field = ((length < 32 ? 1ull << length : 1ull << 32) - 1) << (start < 32 ? start : 32);
  d = static_cast<uint32_t>((b & ~field) | (uint64_t{a} << (start < 32 ? start : 32) & field));
}
inline void add_u32(uint32_t& d, uint32_t a, uint32_t b, Site = {}) { d = a + b; }
inline void sub_u32(uint32_t& d, uint32_t a, uint32_t b, Site = {}) { d = a - b; }
inline void mul_lo_u32(uint32_t& d, uint32_t a, uint32_t b, Site = {}) { d = a * b; }
inline void mul_hi_u32(uint32_t& d, uint32_t a, uint32_t b, Site = {}) { d = __umulhi(a, b); }
inline void mad_lo_u32(uint32_t& d, uint32_t a, uint32_t b, uint32_t c, Site = {}) { d = a * b + c; }

// ---- Barriers and fences -------------------------------------------------------------------------------------------

inline void bar_sync(uint32_t number, Site site = Site::here()) {
  if (number != 0) trap("bar.sync of a barrier other than 0 is not simulated", site);
  barrier(false, site);
}
inline void membar_gl(Site site = Site::here()) { threadfence(site); }
inline void membar_sys(Site site = Site::here()) { threadfence(site); }
inline void membar_cta(Site = {}) {}

// ---- Conversions ---------------------------------------------------------------------------------------------------

inline void cvt_f32_f16(float& d, uint16_t a, Site = {}) { d = half_to_float(a); }
inline void cvt_f32_bf16(float& d, uint16_t a, Site = {}) { d = bfloat_to_float(a); }
inline void cvt_rn_f16_f32(uint16_t& d, float a, Site = {}) { d = float_to_half(a); }
inline void cvt_rn_bf16_f32(uint16_t& d, float a, Site = {}) { d = float_to_bfloat(a); }
inline void cvt_rna_tf32_f32(uint32_t& d, float a, Site = {}) { d = float_to_tf32(a); }
inline void cvt_rn_f16x2_f32(uint32_t& d, float high, float low, Site = {}) {
  d = static_cast<uint32_t>(float_to_half(high)) << 16 | float_to_half(low);
}
inline void cvt_rn_bf16x2_f32(uint32_t& d, float high, float low, Site = {}) {
  d = static_cast<uint32_t>(float_to_bfloat(high)) << 16 | float_to_bfloat(low);
}

// ---- Matrix products -----------------------------------------------------------------------------------------------

GPUCNN_UNCHECKED inline void mma(Operation operation, float* d, const MmaOperands& operands, Site site) {
  warp_operation({operation, 0xffffffffu, &operands, d, sizeof(MmaOperands), 0, 32, site});
}

inline void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
    uint32_t b1, float c0, float c1, float c2, float c3, Site site = Site::here()) {
  float d[4];
  mma(Operation::kMmaF16, d, {{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}}, site);
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}
inline void mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t b0, float c0, float c1, float c2,
    float c3, Site site = Site::here()) {
  float d[4];
  mma(Operation::kMmaF16Short, d, {{a0, a1, 0, 0}, {b0, 0}, {c0, c1, c2, c3}}, site);
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}
inline void mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(
    float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
    uint32_t b1, float c0, float c1, float c2, float c3, Site site = Site::here()) {
  float d[4];
  mma(Operation::kMmaBf16, d, {{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}}, site);
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}
inline void mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(
    float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
    uint32_t b1, float c0, float c1, float c2, float c3, Site site = Site::here()) {
  float d[4];
  mma(Operation::kMmaTf32, d, {{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}}, site);
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}

// ---- Matrix loads from shared memory -------------------------------------------------------------------------------

GPUCNN_UNCHECKED inline void load_matrices(int count, bool transposed, uint32_t* d, uint32_t row, Site site) {
  warp_operation({Operation::kLoadMatrix, 0xffffffffu, &row, d, sizeof row, count, transposed, site});
}

inline void ldmatrix_sync_aligned_m8n8_x1_shared_b16(uint32_t& d0, uint32_t row, Site site = Site::here()) {
  load_matrices(1, false, &d0, row, site);
}
inline void ldmatrix_sync_aligned_m8n8_x1_trans_shared_b16(uint32_t& d0, uint32_t row, Site site = Site::here()) {
  load_matrices(1, true, &d0, row, site);
}
inline void ldmatrix_sync_aligned_m8n8_x2_shared_b16(uint32_t& d0, uint32_t& d1, uint32_t row,
                                                     Site site = Site::here()) {
  uint32_t d[2];
  load_matrices(2, false, d, row, site);
  d0 = d[0], d1 = d[1];
}
inline void ldmatrix_sync_aligned_m8n8_x2_trans_shared_b16(uint32_t& d0, uint32_t& d1, uint32_t row,
                                                           Site site = Site::here()) {
  uint32_t d[2];
  load_matrices(2, true, d, row, site);
  d0 = d[0], d1 = d[1];
}
inline void ldmatrix_sync_aligned_m8n8_x4_shared_b16(uint32_t& d0, uint32_t& d1, uint32_t& d2, uint32_t& d3,
                                                     uint32_t row, Site site = Site::here()) {
  uint32_t d[4];
  load_matrices(4, false, d, row, site);
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}
inline void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint32_t& d0, uint32_t& d1, uint32_t& d2, uint32_t& d3,
                                                           uint32_t row, Site site = Site::here()) {
  uint32_t d[4];
  load_matrices(4, true, d, row, site);
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}

// ---- Asynchronous copies from global to shared memory --------------------------------------------------------------

inline void cp_async_ca_shared_global(uint32_t d, const char* a, int bytes, Site site = Site::here()) {
  async_copy(d, a, bytes, bytes, site);
}
inline void cp_async_ca_shared_global(uint32_t d, const char* a, int bytes, int source_bytes,
                                      Site site = Site::here()) {
  async_copy(d, a, bytes, source_bytes, site);
}
inline void cp_async_cg_shared_global(uint32_t d, const char* a, int bytes, Site site = Site::here()) {
  async_copy(d, a, bytes, bytes, site);
}
inline void cp_async_cg_shared_global(uint32_t d, const char* a, int bytes, int source_bytes,
                                      Site site = Site::here()) {
  async_copy(d, a, bytes, source_bytes, site);
}
inline void cp_async_cg_shared_global_L2_128B(uint32_t d, const char* a, int bytes, Site site = Site::here()) {
  async_copy(d, a, bytes, bytes, site);
}
inline void cp_async_cg_shared_global_L2_128B(uint32_t d, const char* a, int bytes, int source_bytes,
                                              Site site = Site::here()) {
  async_copy(d, a, bytes, source_bytes, site);
}
inline void cp_async_commit_group(Site = {}) { async_commit(); }
inline void cp_async_wait_group(int groups_left, Site site = Site::here()) { async_wait(groups_left, site); }
inline void cp_async_wait_all(Site site = Site::here()) {
  async_commit();
  async_wait(0, site);
}

}  // namespace ptx
}  // namespace gpucnn
