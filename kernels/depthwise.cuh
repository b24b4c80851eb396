// Shared code of the depthwise convolutions: partition of the arrays into blocks, and staging in shared memory.
//
// In addition to the types, the host defines: PACK, vector width of global memory accesses; VEC, adjacent channels per
// thread; ROWS, its consecutive rows of one residue modulo the dilation, or the stride; TAPS, rows of the filter per
// pass.

#define ALONG_CHANNELS 0  // a run is the channels of one pixel
#define ALONG_ROW 1       // part of a row
#define ALONG_ROWS 2      // whole rows
#define ALONG_PLANES 3    // whole planes of neighbouring channels

#define BATCH 4  // packs that a thread has in flight
#define SECTOR(type) (32 / static_cast<index_t>(sizeof(type)))  // elements; warps that start at one touch the fewest

// Least blocks per multiprocessor; 64-bit indices need more registers.
constexpr int RESIDENT = sizeof(index_t) == 4 ? 2 : 1;

struct Box {  // [first, last) of each axis
  Range d, h, w;
};

// Layout of the box of an array [C, D, H, W] in global and in shared memory.
struct Staged {
  index_t axes, packs;
  index_t runs_c, runs_d, runs_h, runs_w;
  index_t c, d, h, w;                          // strides in memory
  index_t pitch_c, pitch_d, pitch_h, pitch_w;  // in shared memory
  index_t channels, size_d, size_h, size_w;    // of the array
  index_t image;                               // elements of an image, from its first to its last, where runs are long
};

template <typename Params>
__device__ __forceinline__ Staged staged_x(const Params& p) {
  return {p.x_axes, p.x_packs, p.x_runs_c, p.x_runs_d, p.x_runs_h, p.x_runs_w, p.x_c, p.x_d, p.x_h, p.x_w,
          p.x_pitch_c, p.x_pitch_d, p.x_pitch_h, p.x_pitch_w, p.c, p.d, p.h, p.w, p.c * p.x_c};
}

template <typename Params>
__device__ __forceinline__ Staged staged_y(const Params& p) {
  return {p.y_axes, p.y_packs, p.y_runs_c, p.y_runs_d, p.y_runs_h, p.y_runs_w, p.y_c, p.y_d, p.y_h, p.y_w,
          p.y_pitch_c, p.y_pitch_d, p.y_pitch_h, p.y_pitch_w, p.c * p.multiplier, p.od, p.oh, p.ow,
          p.c * p.multiplier * p.y_c};
}

// --- The part of a block ---------------------------------------------------------------------------------------------

struct Place {
  index_t c, channels;  // of x: [c, c + channels)
  Range images;
  Box tile;
  index_t split;  // tile and images, whatever the channels
};

__device__ __forceinline__ Range part_of(index_t i, index_t run, index_t size) {
  return {i * run, least(i * run + run, size)};
}

// This block's part of an array of these sizes; consecutive blocks are adjacent in memory.
template <typename Params>
__device__ __forceinline__ Place place_of_block(const Params& p, index_t d, index_t h, index_t w) {
  const index_t chunks = (p.c + p.planes - 1) / p.planes, tiles = p.tiles_d * p.tiles_h * p.tiles_w;
  index_t i = static_cast<index_t>(blockIdx.x);
  index_t chunk, tile;
  if (p.channels_last) {
    chunk = i % chunks;
    i /= chunks;
    tile = i % tiles;
    i /= tiles;
  } else {
    tile = i % tiles;
    i /= tiles;
    chunk = i % chunks;
    i /= chunks;
  }
  Place place;
  place.c = chunk * p.planes;
  place.channels = least(p.planes, p.c - place.c);
  place.images = part_of(i, p.images, p.n);
  place.split = i * tiles + tile;
  place.tile.w = part_of(tile % p.tiles_w, p.tile_w, w);
  tile /= p.tiles_w;
  place.tile.h = part_of(tile % p.tiles_h, p.tile_h, h);
  place.tile.d = part_of(tile / p.tiles_h, p.tile_d, d);
  return place;
}

// The inputs that these outputs read, or the outputs that read these inputs, along one axis; possibly none.
__device__ __forceinline__ Range inputs_of(Range outputs, index_t kernel, index_t stride, index_t dilation,
                                           index_t low, index_t size) {
  return {most(0, outputs.first * stride - low),
          least(size, (outputs.last - 1) * stride + (kernel - 1) * dilation - low + 1)};
}

__device__ __forceinline__ Range outputs_of(Range inputs, index_t kernel, index_t stride, index_t dilation,
                                            index_t low, index_t out) {
  return {most(0, ceil_div(inputs.first + low - (kernel - 1) * dilation, stride)),
          least(out, (inputs.last - 1 + low) / stride + 1)};
}

// The box that a tile of outputs reads, extended along its runs: whole rows, whole planes.
template <typename Params>
__device__ __forceinline__ Box inputs_of(const Params& p, const Box& outputs) {
  Box box = {inputs_of(outputs.d, p.kd, p.stride_d, p.dilation_d, p.low_d, p.d),
             inputs_of(outputs.h, p.kh, p.stride_h, p.dilation_h, p.low_h, p.h),
             inputs_of(outputs.w, p.kw, p.stride_w, p.dilation_w, p.low_w, p.w)};
  if (p.x_axes >= ALONG_ROWS) box.w = {0, p.w};
  if (p.x_axes == ALONG_PLANES) box.h = {0, p.h}, box.d = {0, p.d};
  return box;
}

template <typename Params>
__device__ __forceinline__ Box outputs_of(const Params& p, const Box& inputs) {
  Box box = {outputs_of(inputs.d, p.kd, p.stride_d, p.dilation_d, p.low_d, p.od),
             outputs_of(inputs.h, p.kh, p.stride_h, p.dilation_h, p.low_h, p.oh),
             outputs_of(inputs.w, p.kw, p.stride_w, p.dilation_w, p.low_w, p.ow)};
  if (p.y_axes >= ALONG_ROWS) box.w = {0, p.ow};
  if (p.y_axes == ALONG_PLANES) box.h = {0, p.oh}, box.d = {0, p.od};
  return box;
}

__device__ __forceinline__ bool within(index_t i, Range range) { return i >= range.first && i < range.last; }

// i clamped to the range, relative to its first index: out-of-window threads read there and use 0 instead, so that the
// threads of a warp do not diverge. The range is not empty.
__device__ __forceinline__ index_t nearest(index_t i, Range range) {
  return least(most(i, range.first), range.last - 1) - range.first;
}

// N adjacent elements in shared memory, or zeros for padding; by a bit mask, so without branches.
template <int N>
__device__ __forceinline__ Pack<scalar_t, N> load_or_zeros(const scalar_t* from, bool has) {
  using Bits = typename WordOf<(sizeof(scalar_t) * N < 4 ? sizeof(scalar_t) * N : 4)>::type;
  Pack<scalar_t, N> pack = load_pack<N>(from);
  Bits bits[sizeof(pack) / sizeof(Bits)];
  memcpy(bits, &pack, sizeof(pack));
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(Bits)); ++i) {
    bits[i] = static_cast<Bits>(bits[i] & (0u - static_cast<unsigned>(has)));
  }
  memcpy(&pack, bits, sizeof(pack));
  return pack;
}

// Whether a tile has no reads or no readers: its windows are all padding, or its taps' outputs do not exist.
__device__ __forceinline__ bool is_empty(const Box& box) {
  return box.d.first >= box.d.last || box.h.first >= box.h.last || box.w.first >= box.w.last;
}

// The first tap that reads input i, where shift = i + low; `kernel` if none of its residue does.
__device__ __forceinline__ index_t first_tap(index_t shift, index_t kernel, index_t stride, index_t dilation,
                                             index_t tap_step) {
  index_t k = 0;
  while (k < tap_step && (shift - k * dilation) % stride != 0) ++k;
  return k == tap_step ? kernel : k;
}

// --- Between global and shared memory --------------------------------------------------------------------------------

struct PackPlace {
  index_t at, slot;    // of its first element, in the image and in shared memory
  index_t first, last;  // the run that it is part of
};

// Offset of a run modulo PACK, and of its box in shared memory; the same for all runs of a box.
__device__ __forceinline__ index_t phase_of(const Staged& s, const Box& box, index_t c) {
  return s.axes == ALONG_CHANNELS ? 0 : (c * s.c + box.d.first * s.d + box.h.first * s.h + box.w.first * s.w) % PACK;
}

// The i-th pack of a box of channels [c, c + count), or false if there is none.
__device__ __forceinline__ bool pack_place(const Staged& s, const Box& box, index_t c, index_t count, index_t i,
                                           PackPlace* place) {
  if (i >= s.runs_c * s.runs_d * s.runs_h * s.runs_w * s.packs) return false;
  const index_t pack = i % s.packs * PACK;
  i /= s.packs;
  const index_t w = i % s.runs_w;
  i /= s.runs_w;
  const index_t h = i % s.runs_h;
  i /= s.runs_h;
  const index_t d = i % s.runs_d;
  const index_t channel = i / s.runs_d;
  if (box.d.first + d >= box.d.last || box.h.first + h >= box.h.last || box.w.first + w >= box.w.last) return false;
  if (channel >= count) return false;

  index_t length = count;
  if (s.axes == ALONG_ROW) length = box.w.last - box.w.first;
  if (s.axes == ALONG_ROWS) length = (box.h.last - box.h.first) * s.size_w;
  if (s.axes == ALONG_PLANES) length = count * s.size_d * s.size_h * s.size_w;
  const index_t first =
      (c + channel) * s.c + (box.d.first + d) * s.d + (box.h.first + h) * s.h + (box.w.first + w) * s.w;
  place->first = first;
  place->last = first + length;
  place->at = first - phase_of(s, box, c) + pack;
  place->slot = channel * s.pitch_c + d * s.pitch_d + h * s.pitch_h + w * s.pitch_w + pack;
  return place->at < place->last;
}

// Copy the box of channels [c, c + count) of an image to shared memory, with several packs per thread in flight.
__device__ __forceinline__ void stage(const scalar_t* __restrict__ image, const Staged& s, const Box& box, index_t c,
                                      index_t count, scalar_t* shared) {
  const index_t packs = s.runs_c * s.runs_d * s.runs_h * s.runs_w * s.packs;
  const index_t threads = static_cast<index_t>(blockDim.x);
  for (index_t i = static_cast<index_t>(threadIdx.x); i < packs; i += BATCH * threads) {
    Pack<scalar_t, PACK> held[BATCH];
    PackPlace place[BATCH];
    bool has[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      has[b] = pack_place(s, box, c, count, i + b * threads, &place[b]);
      if (!has[b]) continue;
      const index_t at = place[b].at;
      // A pack may begin before its run or end after it, but not after the image.
      if (PACK == 1 || s.axes == ALONG_CHANNELS || at + PACK <= s.image) {
        held[b] = load_pack<PACK>(image + at);
      } else {
#pragma unroll
        for (int e = 0; e < PACK; ++e) {
          held[b].at[e] = at + e < s.image ? image[at + e] : scalar_t{};
        }
      }
    }
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      if (has[b]) store_pack(shared + place[b].slot, held[b]);
    }
  }
}

// Copy a box of channels [c, c + count) from shared memory to an image.
__device__ __forceinline__ void unstage(const scalar_t* shared, const Staged& s, const Box& box, index_t c,
                                        index_t count, scalar_t* __restrict__ image) {
  const index_t packs = s.runs_c * s.runs_d * s.runs_h * s.runs_w * s.packs;
  for (index_t i = static_cast<index_t>(threadIdx.x); i < packs; i += static_cast<index_t>(blockDim.x)) {
    PackPlace place;
    if (!pack_place(s, box, c, count, i, &place)) continue;
    if (PACK == 1 || (place.at >= place.first && place.at + PACK <= place.last)) {
      store_pack(image + place.at, load_pack<PACK>(shared + place.slot));
    } else {
      for (index_t e = 0; e < PACK; ++e) {  // elements of adjacent blocks are not written
        if (within(place.at + e, {place.first, place.last})) image[place.at + e] = shared[place.slot + e];
      }
    }
  }
}

// The weights of channels [c, c + count) of x, [count * M, filter_pitch], the bias of each sum after them.
template <typename Params, typename Bias>
__device__ __forceinline__ void stage_filters(const Params& p, const scalar_t* __restrict__ w,
                                              const Bias* __restrict__ bias, index_t c, index_t count,
                                              index_t sums_a_channel, acc_t* filters) {
  const index_t taps = p.kd * p.kh * p.kw, threads = static_cast<index_t>(blockDim.x);
  const index_t lead = c * p.multiplier * taps % SECTOR(scalar_t);
  for (index_t i = static_cast<index_t>(threadIdx.x) - lead; i < count * p.multiplier * taps; i += threads) {
    if (i < 0) continue;
    const Position k = position(i, 1, p.kd, p.kh, p.kw, false);
    filters[k.n * p.filter_pitch + i % taps] =
        widen(w[(c * p.multiplier + k.n) * p.w_oc + k.d * p.w_kd + k.h * p.w_kh + k.w * p.w_kw]);
  }
  if (!bias) return;
  for (index_t i = static_cast<index_t>(threadIdx.x); i < count * sums_a_channel; i += threads) {
    filters[i * (p.multiplier / sums_a_channel) * p.filter_pitch + taps] =
        widen(bias[(c * sums_a_channel + i) * p.bias_c]);
  }
}

// --- The part of a thread --------------------------------------------------------------------------------------------

struct Item {
  index_t channel, d, slot, lane;  // from the block's first
};

// The i-th VEC of channels, group of rows and column of a block: consecutive i are adjacent in memory. The block has
// `vectors` VECs of channels.
template <typename Params>
__device__ __forceinline__ Item item_of(const Params& p, index_t i, index_t vectors) {
  Item item;
  if (p.channels_last) {
    item.channel = i % vectors * VEC;
    i /= vectors;
  }
  item.lane = i % p.lanes;
  i /= p.lanes;
  item.slot = i % p.slots;
  i /= p.slots;
  if (p.channels_last) {
    item.d = i;
  } else {
    item.d = i % p.tile_d;
    item.channel = i / p.tile_d;
  }
  return item;
}

// The first row of a group, relative to the tile's first; its rows have stride `step`, the number of residues.
template <typename Params>
__device__ __forceinline__ index_t first_row(const Params& p, index_t slot, index_t step) {
  return slot % p.classes + slot / p.classes * ROWS * step;
}

// The weights of TAPS rows of a filter, at stride `step` from `first_kh` on, in column kw: for each of VEC channels.
template <typename Params>
__device__ __forceinline__ void load_weights(const Params& p, const acc_t* filter, index_t kd, index_t first_kh,
                                             index_t step, index_t kw, acc_t (&weights)[TAPS * VEC]) {
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap) {
    const index_t kh = least(first_kh + tap * step, p.kh - 1);
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
      weights[tap * VEC + e] = filter[e * p.filter_pitch + (kd * p.kh + kh) * p.kw + kw];
    }
  }
}

// Store the first `count` of a thread's rows, at stride `step`, plus the biases of their channels, at stride `pitch`.
__device__ __forceinline__ void store_rows(const acc_t (&sums)[ROWS * VEC], const acc_t* biases, index_t pitch,
                                           scalar_t* to, index_t step, index_t count) {
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    if (row >= count) break;
    Pack<scalar_t, VEC> results;
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
      acc_t sum = sums[row * VEC + e];
      if (biases) sum = sum + biases[e * pitch];
      results.at[e] = narrow(sum);
    }
    store_pack(to + row * step, results);
  }
}
