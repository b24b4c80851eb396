// Kernel parameters, one structure for each family of operations, passed by value. The structure of a single kernel is
// declared in the kernel's file, in the same form.
//
// A generic build compiles these structures unchanged. In a specialised build all fields but those marked RUN_TIME
// become `static constexpr` members with their values, so that `p.kernel_h` is a constant there; the kernels' source is
// the same. Fields are index_t, counted in elements, or double; the host parses each line that declares some.
//
// Most fields of the structures with more than 40 are one property of each of three axes, or of each array's five.
//
// Names: n images, c channels, (d, h, w) sizes; strides are named after their array and axis.

#define RUN_TIME

// A convolution over x [N, C, D, H, W], w [OC, C / G, KD, KH, KW], y [N, OC, OD, OH, OW].
//
// In a locally connected layer the weight varies with the output position: w_od, w_oh, w_ow and bias_od, … are not 0.
struct ConvParams {
  RUN_TIME index_t n;
  index_t c, oc;                                // channels in and out
  index_t c_group, oc_group;                    // and of one group
  index_t d, h, w;                              // input
  index_t od, oh, ow;                           // output
  index_t kd, kh, kw;                           // kernel
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;                  // padding before the first input
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;
  index_t w_oc, w_c, w_kd, w_kh, w_kw;
  index_t w_od, w_oh, w_ow;
  index_t bias_c, bias_d, bias_h, bias_w;
  index_t channels_last;                        // of the array that is written: whether c is innermost in memory
  index_t residues_d, residues_h, residues_w;   // backward input: residues mod stride, min(stride, size)
  index_t run_d, run_h, run_w;                  // inputs of the longest residue, ceil(size / stride)
  index_t tap_step_d, tap_step_h, tap_step_w;   // spacing of the taps of one residue: stride / gcd(stride, dilation)
  index_t output_step_d, output_step_h, output_step_w;  // and of their outputs: dilation / gcd(stride, dilation)
  RUN_TIME index_t splits, run;                 // backward weight: parts of the reduction, positions of one part
};

// Unfolding x [N, C, D, H, W] to columns [N, C * KD * KH * KW, OD * OH * OW] and back: see unfolding.cuh. Positions
// relative to the first padding are input positions plus `low`.
struct UnfoldParams {
  RUN_TIME index_t n;
  index_t c;
  index_t d, h, w;                              // input
  index_t od, oh, ow;                           // positions of the window
  index_t kd, kh, kw;                           // window
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;                  // padding before the first input
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t y_n, y_c, y_w;                        // columns
  index_t first_d, first_h, first_w;            // start of the tiled range, from the first padding
  index_t span_d, span_h, span_w;               // and its length
  index_t tile_c, tile_h, tile_w;
  index_t tiles_c, tiles_h, tiles_w;
  index_t plane, pitch, shared;                 // in shared memory: channel pitch, row pitch, and all elements
  index_t lanes;                                // threads of one run of positions, a power of two
  index_t step_d, step_h, step_w;               // consecutive taps that reach different inputs
  index_t x_is_dense;                           // rows of x follow each other in memory, and it is aligned
  index_t x_is_channels_last, has_gaps;         // some of the rows are read by no tap
};

// A depthwise convolution over x [N, C, D, H, W], w [C * M, 1, KD, KH, KW], y [N, C * M, OD, OH, OW], in shared-memory
// tiles. The box of an array that a tile covers, or reads, consists of contiguous runs.
struct DepthwiseParams {
  RUN_TIME index_t n;
  index_t c, multiplier;
  index_t d, h, w;                              // input
  index_t od, oh, ow;                           // output
  index_t kd, kh, kw;                           // kernel
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;                  // padding before the first input
  index_t tap_step_d, tap_step_h, tap_step_w;   // spacing of the taps of one residue: stride / gcd(stride, dilation)
  index_t output_step_d, output_step_h, output_step_w;  // and of their outputs: dilation / gcd(stride, dilation)
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;
  index_t w_oc, w_kd, w_kh, w_kw;
  index_t bias_c;
  index_t channels_last;                        // whether c is innermost in memory, of both arrays
  RUN_TIME index_t images;                      // that a block loops over
  index_t planes;                               // channels of x that a block takes
  index_t tile_d, tile_h, tile_w;               // of a block, among outputs; backward input: among inputs
  index_t tiles_d, tiles_h, tiles_w;
  index_t x_axes, y_axes;                       // direction of runs: one of the ALONG_… of depthwise.cuh
  index_t x_packs, y_packs;                     // of a run, at most
  index_t x_runs_c, x_runs_d, x_runs_h, x_runs_w;  // runs of a box along each axis, at most
  index_t y_runs_c, y_runs_d, y_runs_h, y_runs_w;
  index_t x_pitch_c, x_pitch_d, x_pitch_h, x_pitch_w;  // strides in shared memory
  index_t y_pitch_c, y_pitch_d, y_pitch_h, y_pitch_w;
  index_t x_at, y_at;                           // offsets of the boxes in shared memory, in 16 bytes
  index_t filter_pitch;                         // stride between channels' weights there
  index_t classes, slots;                       // rows of a tile: residues, and groups of ROWS rows in them all
  index_t columns, lanes;                       // of a row: of one residue, and of them all
  index_t vectors;                              // adjacent VECs of channels, forward and backward input: of a block
  index_t segment;                              // backward weight: lanes of a warp that share a sum
  index_t units, parts, part_run;               // parallel sums, parts of each, and groups of rows of a part
};

// A pooling of x [N, C, D, H, W] to y [N, C, OD, OH, OW], with indices at [N, C, OD, OH, OW].
//
// An adaptive axis has windows [floor(o * size / out), ceil((o + 1) * size / out)); its stride, … are unused.
struct PoolParams {
  RUN_TIME index_t n;
  index_t c;
  index_t d, h, w;                              // input
  index_t od, oh, ow;                           // output
  index_t adaptive_d, adaptive_h, adaptive_w;
  index_t kd, kh, kw;                           // taps of the longest window
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;                  // padding before the first input
  index_t readers_d, readers_h, readers_w;      // outputs that read one input, at most
  index_t high_d, high_h, high_w;               // and after the last
  index_t output_step_d, output_step_h, output_step_w;  // outputs that read one input: dilation / gcd(stride, dilation)
  index_t x_n, x_c, x_d, x_h, x_w;              // the input or its gradient
  index_t y_n, y_c, y_d, y_h, y_w;              // the output or its gradient
  index_t at_n, at_c, at_d, at_h, at_w;         // indices
  index_t channels_last;                        // of the array that is written
  index_t divides;                              // divisor of a sum: one of the DIVIDES_… of pooling.cuh
  RUN_TIME index_t tile_planes;                 // tiles (tiles.cuh): planes of a block; 0 where arrays are not staged
  index_t band_axis, bands, tile;               // bands of a plane, along D, H or W (0, 1, 2), of `tile` positions each
  index_t row_bands, row_tile;                  // bands along the next axis, of row_tile each; 1 where it is whole
  index_t inner;                                // channels of a block where channels are last, else 1
  index_t row_lanes, lanes;                     // item pitch of rows; threads of a window
  index_t by_rows;                              // whether the maximum of a window is that of its rows' maxima
  RUN_TIME index_t read_slots, write_slots, row_slots;  // slots that a block reads, writes and keeps for rows
  double divisor;                               // the caller's own number
};

// A resampling of x [N, C, D, H, W] to y [N, C, OD, OH, OW]: along each axis, output o is the weighted sum of the
// sources that its table lists, entries [starts[o], starts[o + 1]). The adjoint is a resampling by other tables.
struct ResampleParams {
  RUN_TIME index_t n;
  index_t c;
  index_t od, oh, ow;
  index_t starts_h, starts_w;                   // where the tables of H and W begin within `starts`
  index_t w;                                    // in tiles: columns of x,
  index_t tile_h, tile_w, inner, chunk;         // of one block: rows and columns of y, channels per step, steps,
  index_t band_h, span_h, ring;                 // rows of y per step, rows of x staged at once, and kept after W
  index_t x_pitch, z_pitch;                     // row pitch in shared memory, before W (of lanes along rows) and after
  index_t staged, blended, entries;             // elements there: before and after W, and of tables
  index_t lanes;                                // along rows and channels, for each column; 0 where they run along W
  index_t x_joined, y_joined;                   // contiguous elements: a position's (0), a row's (1), a tile's (2)
  index_t x_is_dense;                           // rows of x follow each other in memory, and it is aligned
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;
  index_t channels_last;                        // of y
};

// Values [N, C, D, H, W] and planes [N, C, PD, PH, PW] that indices [N, C, D, H, W] point into.
struct PlaneParams {
  RUN_TIME index_t n;
  index_t c;
  index_t d, h, w;
  index_t pd, ph, pw;
  index_t values_n, values_c, values_d, values_h, values_w;
  index_t planes_n, planes_c, planes_d, planes_h, planes_w;
  index_t at_n, at_c, at_d, at_h, at_w;         // indices
  index_t channels_last;                        // of the array that is written
  RUN_TIME index_t tile_planes;                 // tiles, as those of PoolParams
  index_t band_axis, bands, tile;
  index_t row_bands, row_tile;
  index_t inner;
  RUN_TIME index_t read_slots, write_slots;
};

// The norms' general kernels view x [N, G, C, P] as axes 0 to 3: those four in memory order, outermost first, joined
// where contiguous; so one numbering serves every layout, and consecutive indices are adjacent in memory. The outermost
// size is not needed. An axis is either kept or reduced, and has size 1 among the others. A statistic, weight or bias
// has stride 0 along the axes that it is shared over.

// Sums over the reduced axes, one for each position along the kept ones; or one elementwise step, in which a sum stands
// for the parameters that its elements share: see norm_tiles.cuh.
struct NormParams {
  RUN_TIME index_t kept, reduced;               // sums, and elements of each
  index_t kept_1, kept_2, kept_3;
  index_t reduced_1, reduced_2, reduced_3;
  index_t sums;                                 // adjacent sums of one block
  index_t side;                                 // contiguous packs of one sum
  index_t columns, rows;                        // threads that read contiguous memory, and rows of them
  index_t apart;                                // lanes of this stride share their sums; 0 for other layouts
  RUN_TIME index_t splits, run;                 // parts of each sum, and elements of one part
  RUN_TIME index_t divisor;                     // of the sums of the backward pass
  index_t centred;                              // whether statistics are about the mean, else about 0
  index_t moves;                                // whether mean and rstd vary along a reduced axis
  index_t weighs;                               // whether the sums have yet to be multiplied by weight
  index_t groups;                               // N * G sums of parts: G
  index_t has_rstd;                             // whether norm_apply is given rstd in place of the variance
  index_t activation;                           // one of those of bias_activation.cuh
  double negative_slope;
  double eps;                                   // added to the variance
  index_t x_0, x_1, x_2, x_3;
  index_t y_0, y_1, y_2, y_3;                   // grad_y, or residual
  index_t z_0, z_1, z_2, z_3;                   // what is written
  index_t added_0, added_1, added_2, added_3;   // residual, where y is grad_y
  index_t mean_0, mean_1, mean_2, mean_3;
  index_t rstd_0, rstd_1, rstd_2, rstd_3;       // or variance
  index_t weight_0, weight_1, weight_2, weight_3;
  index_t bias_0, bias_1, bias_2, bias_3;
  index_t sum_0, sum_1, sum_2, sum_3;           // of the results of sums
};

// Samples y [N, C, OD, OH, OW] of x [N, C, D, H, W] at the positions of a grid: see grid_sample.cuh.
struct GridSampleParams {
  RUN_TIME index_t n;
  index_t c;
  index_t d, h, w;                              // input
  index_t od, oh, ow;                           // samples
  index_t rank;                                 // coordinates of a position: along W, H and, in volumes, D
  index_t padding, aligned;                     // ZEROS, BORDER or REFLECTION; whether ends are centres of values
  index_t slots;                                // threads of the channels of a position
  index_t x_n, x_c, x_d, x_h, x_w;              // input or its gradient
  index_t y_n, y_c, y_d, y_h, y_w;              // samples or their gradient
  index_t grid_n, grid_d, grid_h, grid_w, grid_a;
  index_t channels_last;                        // of the array that is written: whether c is innermost in memory
};

// Rows [C, P] of x [N, G, C, P], each contiguous: see norm_rows.cuh.
struct NormRowParams {
  RUN_TIME index_t rows;                        // N * G
  index_t g;
  index_t segments, length;                     // C pieces of P elements; one of C where G and P are 1
  index_t along;                                // whether weights vary along a segment: G and P are 1
  index_t centred;                              // whether statistics are about the mean, else about 0
  index_t lanes;                                // threads of a segment, a power of two
  index_t at_once, turns;                       // parallel rows of a block, and its iterations
  index_t activation;                           // one of those of bias_activation.cuh
  double negative_slope;
  double eps;                                   // added to the variance
  index_t x_n, x_g;
  index_t y_n, y_g;                             // grad_y, or residual
  index_t z_n, z_g;                             // what is written
  index_t mean_n, mean_g;
  index_t rstd_n, rstd_g;
  index_t weight_g, weight_c;
  index_t bias_g, bias_c;
};
