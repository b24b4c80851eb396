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
