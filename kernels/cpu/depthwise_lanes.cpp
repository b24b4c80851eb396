// Convolution of groups of 4, 8 or 16 channels where they are innermost in memory, in three directions; see depthwise.hpp.
//
// Weights are packed to [taps, group, channels], with the bias as one more row.
#include "vectors.hpp"

struct Params {
  index_t n, c, width;  // width: channels of a row of packed weights or partial sums, in whole vectors
  index_t target_d, target_h, target_w;  // sizes: of y, or of grad_x in dgrad
  index_t source_d, source_h, source_w;  // of x, or of grad_y in dgrad
  index_t kernel_d, kernel_h, kernel_w;
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;
  index_t to_n, to_d, to_h, to_w;
  index_t from_n, from_d, from_h, from_w;
  index_t group;
  index_t w_g, w_m, w_c, w_d, w_h, w_w;
  index_t bias_c;
  index_t dgrad;             // whether targets are grad_x
  index_t items;
  index_t prefetches;        // whether the source's next rows are asked for
  index_t pieces, piece;     // of a row of targets that items share, and the targets of one, in whole blocks
  index_t parts;             // of the batch, each with its partial sums, in wgrad
  index_t pixels;            // positions whose products are summed before they join the others, in wgrad
  index_t acts, smooth;      // the epilogue
  double least, most, slope;
};

#include "depthwise.hpp"

static Group group_of(const Params* p) {
  return p->group == 4 ? GROUP_OF<4> : p->group == 8 ? GROUP_OF<8> : GROUP_OF<16>;
}

// y, or grad_x, of [N, D, H, W, C] and packed weights.
KERNEL depthwise_lanes(const Params* p, const scalar_t* from, const scalar_t* weight, scalar_t* to, scalar_t* workspace,
                       int64_t item) {
  Room room(p, workspace);
  for_rows(p, item, [&](index_t n, Box box) {
    contract(p, room, group_of(p), from + n * p->from_n, weight, to + n * p->to_n, box);
  });
}

// Partial sums [taps, group, width] of grad_w, one for each item.
KERNEL depthwise_lanes_gradient(const Params* p, const scalar_t* from, const scalar_t* to, scalar_t* partial,
                                scalar_t* workspace, int64_t item) {
  Room room(p, workspace);
  add_rows(p, room, group_of(p), from, to, partial, item);
}

// weight [taps * group + 1, width] of w [groups, group, group, KD, KH, KW] and bias [C].
KERNEL depthwise_lanes_weight(const Params* p, const scalar_t* w, const scalar_t* bias, scalar_t* weight,
                              scalar_t* workspace, int64_t item) {
  for (index_t d = 0; d < p->kernel_d; d++)
    for (index_t h = 0; h < p->kernel_h; h++)
      for (index_t k = 0; k < p->kernel_w; k++)
        for (index_t from = 0; from < p->group; from++, weight += p->width) {
          const scalar_t* tap = w + from * p->w_c + d * p->w_d + h * p->w_h + k * p->w_w;
          for (index_t g = 0; g < p->c / p->group; g++)
            for (index_t m = 0; m < p->group; m++) weight[g * p->group + m] = tap[g * p->w_g + m * p->w_m];
        }
  for (index_t c = 0; c < p->c; c++) weight[c] = bias ? bias[c * p->bias_c] : 0;
}

// grad_w [groups, group, group, KD, KH, KW], in the place of `w`, of the partial sums in their order.
KERNEL depthwise_lanes_total(const Params* p, const scalar_t* partial, scalar_t* w, scalar_t* workspace, int64_t item) {
  index_t count = p->kernel_d * p->kernel_h * p->kernel_w * p->group * p->width;
  for (index_t d = 0; d < p->kernel_d; d++)
    for (index_t h = 0; h < p->kernel_h; h++)
      for (index_t k = 0; k < p->kernel_w; k++)
        for (index_t from = 0; from < p->group; from++, partial += p->width) {
          scalar_t* tap = w + from * p->w_c + d * p->w_d + h * p->w_h + k * p->w_w;
          for (index_t c = 0; c < p->c; c++) {
            scalar_t sum = 0;
            for (index_t i = 0; i < p->parts; i++) sum += partial[i * count + c];
            tap[c / p->group * p->w_g + c % p->group * p->w_m] = sum;
          }
        }
}
