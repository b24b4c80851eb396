// Operations of a warp: the last lane to arrive carries the operation out for all.
#include <string.h>

#include "../include/half_bits.h"
#include "profile.h"
#include "scheduler.h"

namespace gpucnn {

const char* operation_name(Operation operation) {
  switch (operation) {
    case Operation::kShuffleIndex: return "__shfl_sync";
    case Operation::kShuffleUp: return "__shfl_up_sync";
    case Operation::kShuffleDown: return "__shfl_down_sync";
    case Operation::kShuffleXor: return "__shfl_xor_sync";
    case Operation::kBallot: return "a warp vote";
    case Operation::kReduceAdd: return "__reduce_add_sync";
    case Operation::kReduceMin: return "__reduce_min_sync";
    case Operation::kReduceMax: return "__reduce_max_sync";
    case Operation::kSyncWarp: return "__syncwarp";
    case Operation::kLoadMatrix: return "ldmatrix";
    case Operation::kMmaF16: return "mma.sync.m16n8k16 f16";
    case Operation::kMmaF16Short: return "mma.sync.m16n8k8 f16";
    case Operation::kMmaBf16: return "mma.sync.m16n8k16 bf16";
    case Operation::kMmaTf32: return "mma.sync.m16n8k8 tf32";
  }
  return "?";
}

static bool takes_part(const Rendezvous& meeting, int lane) { return meeting.arrived >> lane & 1; }

// ---- Shuffles, votes, reductions -----------------------------------------------------------------------------------

// The lane that `lane` reads from: its own where the wanted one is outside its segment.
static int source_lane(const WarpCall& call, int lane) {
  const int first = lane & ~(call.width - 1);
  const int last = first + call.width - 1;
  switch (call.operation) {
    case Operation::kShuffleIndex: return first | (call.argument & (call.width - 1));
    case Operation::kShuffleUp: return lane - call.argument < first ? lane : lane - call.argument;
    case Operation::kShuffleDown: return lane + call.argument > last ? lane : lane + call.argument;
    default: return (lane ^ call.argument) > last ? lane : lane ^ call.argument;
  }
}

static void shuffle(const Rendezvous& meeting) {
  constexpr int kMaxBytes = 16;
  char values[kWarpSize][kMaxBytes];
  for (int lane = 0; lane < kWarpSize; lane++) {
    if (takes_part(meeting, lane)) memcpy(values[lane], meeting.lanes[lane]->input, meeting.call.bytes);
  }
  for (int lane = 0; lane < kWarpSize; lane++) {
    if (!takes_part(meeting, lane)) continue;
    const WarpCall& call = *meeting.lanes[lane];
    const int source = source_lane(call, lane);
    if (!takes_part(meeting, source)) {
      fail(ErrorKind::kSynchronisation, Where(call.site), "%s: lane %d reads from lane %d, which does not take part",
           operation_name(call.operation), lane, source);
    }
    memcpy(call.output, values[source], call.bytes);
  }
}

static void ballot(const Rendezvous& meeting) {
  unsigned votes = 0;
  for (int lane = 0; lane < kWarpSize; lane++) {
    if (takes_part(meeting, lane) && *static_cast<const unsigned*>(meeting.lanes[lane]->input)) votes |= 1u << lane;
  }
  for (int lane = 0; lane < kWarpSize; lane++) {
    if (takes_part(meeting, lane)) *static_cast<unsigned*>(meeting.lanes[lane]->output) = votes;
  }
}

static int64_t combine(Operation operation, int64_t a, int64_t b) {
  if (operation == Operation::kReduceMin) return a < b ? a : b;
  if (operation == Operation::kReduceMax) return a > b ? a : b;
  return a + b;
}

static void reduce(const Rendezvous& meeting) {
  bool first = true;
  int64_t result = 0;
  for (int lane = 0; lane < kWarpSize; lane++) {
    if (!takes_part(meeting, lane)) continue;
    const int64_t value = *static_cast<const int64_t*>(meeting.lanes[lane]->input);
    result = first ? value : combine(meeting.call.operation, result, value);
    first = false;
  }
  for (int lane = 0; lane < kWarpSize; lane++) {
    if (takes_part(meeting, lane)) *static_cast<int64_t*>(meeting.lanes[lane]->output) = result;
  }
}

// ---- Matrices: fragment layouts of the PTX ISA; g = lane / 4, t = lane % 4 --------------------------------------

// Matrix m has its rows at the addresses of lanes 8m .. 8m+7; a lane gets elements 2t and 2t+1 of row g.
static void load_matrices(const Rendezvous& meeting) {
  const bool transposed = meeting.call.width != 0;
  for (int m = 0; m < meeting.call.argument; m++) {
    const uint16_t* rows[8];
    for (int row = 0; row < 8; row++) {
      const WarpCall& call = *meeting.lanes[m * 8 + row];
      const uint32_t address = *static_cast<const uint32_t*>(call.input);
      rows[row] = reinterpret_cast<const uint16_t*>(shared_pointer(address, Where(call.site)));
    }
    for (int lane = 0; lane < kWarpSize; lane++) {
      const int g = lane / 4, t = lane % 4;
      const uint32_t low = transposed ? rows[2 * t][g] : rows[g][2 * t];
      const uint32_t high = transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
      static_cast<uint32_t*>(meeting.lanes[lane]->output)[m] = low | high << 16;
    }
  }
}

struct Tile {
  float a[16][16];
  float b[16][8];
};

static float half_of(uint32_t pair, int which, bool bf16) {
  const uint16_t bits = static_cast<uint16_t>(pair >> 16 * which);
  return bf16 ? bfloat_to_float(bits) : half_to_float(bits);
}

static void gather_16_bit(const MmaOperands& operands, int lane, bool bf16, Tile& tile) {
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 8; i++) {
    const int row = g + 8 * (i / 2 % 2), k = 2 * t + i % 2 + 8 * (i / 4);
    tile.a[row][k] = half_of(operands.a[i / 2], i % 2, bf16);
  }
  for (int i = 0; i < 4; i++) {
    const int k = 2 * t + i % 2 + 8 * (i / 2);
    tile.b[k][g] = half_of(operands.b[i / 2], i % 2, bf16);
  }
}

static void gather_tf32(const MmaOperands& operands, int lane, Tile& tile) {
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) tile.a[g + 8 * (i % 2)][t + 4 * (i / 2)] = tf32_to_float(operands.a[i]);
  for (int i = 0; i < 2; i++) tile.b[t + 4 * i][g] = tf32_to_float(operands.b[i]);
}

// d = a * b + c. Products are exact in double; the hardware rounds sums in a way of its own.
static void multiply(const Rendezvous& meeting) {
  const Operation operation = meeting.call.operation;
  const int depth = operation == Operation::kMmaTf32 || operation == Operation::kMmaF16Short ? 8 : 16;
  Tile tile;
  for (int lane = 0; lane < kWarpSize; lane++) {
    const MmaOperands& operands = *static_cast<const MmaOperands*>(meeting.lanes[lane]->input);
    if (operation == Operation::kMmaTf32) gather_tf32(operands, lane, tile);
    else gather_16_bit(operands, lane, operation == Operation::kMmaBf16, tile);
  }
  for (int lane = 0; lane < kWarpSize; lane++) {
    const MmaOperands& operands = *static_cast<const MmaOperands*>(meeting.lanes[lane]->input);
    float* d = static_cast<float*>(meeting.lanes[lane]->output);
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      double sum = operands.c[i];
      for (int k = 0; k < depth; k++) sum += static_cast<double>(tile.a[row][k]) * tile.b[k][column];
      d[i] = static_cast<float>(sum);
    }
  }
}

// ---- Meeting -------------------------------------------------------------------------------------------------------

static bool needs_whole_warp(Operation operation) { return operation >= Operation::kLoadMatrix; }

static void carry_out(const Rendezvous& meeting, Warp& warp) {
  const WarpCall& call = meeting.call;
  if (needs_whole_warp(call.operation) && meeting.arrived != ~0u) {
    fail(ErrorKind::kSynchronisation, Where(call.site), "%s needs all 32 lanes, but only 0x%08x are there",
         operation_name(call.operation), meeting.arrived);
  }
  switch (call.operation) {
    case Operation::kShuffleIndex:
    case Operation::kShuffleUp:
    case Operation::kShuffleDown:
    case Operation::kShuffleXor: shuffle(meeting); break;
    case Operation::kBallot: ballot(meeting); break;
    case Operation::kReduceAdd:
    case Operation::kReduceMin:
    case Operation::kReduceMax: reduce(meeting); break;
    case Operation::kSyncWarp: warp.epoch++; break;
    case Operation::kLoadMatrix: load_matrices(meeting); break;
    case Operation::kMmaF16:
    case Operation::kMmaF16Short:
    case Operation::kMmaBf16:
    case Operation::kMmaTf32: multiply(meeting); break;
  }
}

static void check_row_address(const WarpCall& call) {
  const uint32_t address = *static_cast<const uint32_t*>(call.input);
  if (address % 16) {
    fail(ErrorKind::kMisaligned, Where(call.site), "ldmatrix needs rows at multiples of 16 bytes, not at %u", address);
  }
  check_access(shared_pointer(address, Where(call.site)), 16, Access::kRead, Where(call.site));
}

static void check_call(const WarpCall& call, unsigned lane) {
  const char* name = operation_name(call.operation);
  if (!(call.mask >> lane & 1)) {
    fail(ErrorKind::kSynchronisation, Where(call.site), "%s: lane %u calls it with mask 0x%08x, which leaves it out",
         name, lane, call.mask);
  }
  const bool is_shuffle = call.operation <= Operation::kShuffleXor;
  if (is_shuffle && (call.width < 1 || call.width > kWarpSize || (call.width & (call.width - 1)))) {
    fail(ErrorKind::kSynchronisation, Where(call.site), "%s: width %d is not a power of two up to 32", name,
         call.width);
  }
  if (call.operation == Operation::kLoadMatrix && static_cast<int>(lane) < 8 * call.argument) check_row_address(call);
}

static bool same_operation(const WarpCall& a, const WarpCall& b) {
  return a.mask == b.mask && a.operation == b.operation && a.site.line == b.site.line && a.bytes == b.bytes;
}

static void join(Rendezvous& meeting, const WarpCall& call, unsigned lane) {
  if (!meeting.arrived) {
    meeting.call = call;
  } else if (!same_operation(meeting.call, call)) {
    const WarpCall& other = meeting.call;
    fail(ErrorKind::kSynchronisation, Where(call.site),
         "divergent warp: lane %u is at %s with mask 0x%08x, another lane at %s with mask 0x%08x in %s:%d", lane,
         operation_name(call.operation), call.mask, operation_name(other.operation), other.mask, other.site.file,
         other.site.line);
  }
  meeting.lanes[lane] = &call;
  meeting.arrived |= 1u << lane;
}

static void release(Rendezvous& meeting, unsigned warp) {
  for (int lane = 0; lane < kWarpSize; lane++) {
    if (!takes_part(meeting, lane)) continue;
    Thread& thread = machine.threads[warp * kWarpSize + lane];
    if (thread.state == ThreadState::kInWarpOperation) thread.state = ThreadState::kReady;
  }
  meeting.arrived = 0;
}

void warp_operation(const WarpCall& call) {
  const unsigned lane = current_lane();
  const unsigned number = current_warp();
  Warp& warp = machine.warps[number];
  check_call(call, lane);
  if (machine.profile) profile_collective(operation_name(call.operation), call.site);
  Rendezvous& meeting = warp.rendezvous[__builtin_ctz(call.mask)];
  join(meeting, call, lane);
  if (meeting.arrived == (call.mask & warp.existing)) {
    if (machine.profile && meeting.arrived == warp.existing) flush_warp_profile(number);
    carry_out(meeting, warp);
    release(meeting, number);
    return;
  }
  machine.current->state = ThreadState::kInWarpOperation;
  machine.current->site = call.site;
  yield();
}

unsigned active_lanes() { return machine.warps[current_warp()].alive; }

}  // namespace gpucnn
