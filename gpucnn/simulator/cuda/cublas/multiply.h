// C = alpha * op(A) * op(B) + beta * C, in blocks that are packed first so that compilers vectorise the inner loop.
#pragma once
#include <algorithm>
#include <memory>

#include "interface.h"
#include "numbers.h"

namespace cudasim::cublas {

// What the inputs of a product in float are rounded to first.
enum class Rounding { kNone, kTf32, kHalf, kBFloat16 };

float rounded(float value, Rounding rounding);

struct Product {
  cublasOperation_t op_a;
  cublasOperation_t op_b;
  int m;
  int n;
  int k;
  Rounding rounding = Rounding::kNone;
  bool half_sums = false;  // sums are rounded to half as they grow
};

// The parts of a product. A block of C is summed over blocks of k in the order of k: the same way on every machine.
constexpr int kTileRows = 8, kTileColumns = 4;
constexpr int kBlockRows = 128, kBlockColumns = 128, kBlockDepth = 256;
constexpr int kHalfDepth = 16;  // between roundings of sums in half

// A column-major matrix with its operation: element (i, j) of op(data).
template <class T>
struct Operand {
  const T* data;
  int64_t row_step;
  int64_t column_step;
  bool conjugated;

  Operand(const T* pointer, int64_t lead, cublasOperation_t operation)
      : data(pointer),
        row_step(operation == CUBLAS_OP_N ? 1 : lead),
        column_step(operation == CUBLAS_OP_N ? lead : 1),
        conjugated(operation == CUBLAS_OP_C) {}

  template <class Sum>
  Sum at(int64_t i, int64_t j) const {
    const Sum value = static_cast<Sum>(data[i * row_step + j * column_step]);
    return conjugated ? conjugate(value) : value;
  }
};

// Room for the packed blocks of A and B and for the sums of a block of C.
template <class Sum>
struct Blocks {
  Sum a[kBlockRows * kBlockDepth];
  Sum b[kBlockDepth * kBlockColumns];
  Sum sums[kBlockColumns / kTileColumns * (kBlockRows / kTileRows)][kTileColumns][kTileRows];
};

inline int divide_up(int value, int by) { return (value + by - 1) / by; }

// Packs `count` rows of op(A), or columns of op(B), from `first` on, in groups of `width`: element l of all lines of a
// group lies together. `read(line, l)` gives an element; lines beyond the last one are zero.
template <int width, class Sum, class Read>
void pack(Sum* packed, int count, int depth, Read read) {
  for (int group = 0; group < count; group += width) {
    const int lines = std::min(width, count - group);
    for (int l = 0; l < depth; l++, packed += width) {
      for (int line = 0; line < lines; line++) packed[line] = read(group + line, l);
      for (int line = lines; line < width; line++) packed[line] = Sum(0);
    }
  }
}

template <class Sum>
void round_inputs(Sum*, size_t, Rounding) {}
void round_inputs(float* values, size_t count, Rounding rounding);
inline void round_inputs(Complex<float>* values, size_t count, Rounding rounding) {
  round_inputs(&values->re, 2 * count, rounding);
}

// Adds the product of a packed group of rows and a packed group of columns to the sums of a tile.
template <class Sum>
void multiply_tile(const Sum* __restrict a, const Sum* __restrict b, int depth, Sum (*__restrict sums)[kTileRows]) {
  Sum tile[kTileColumns][kTileRows];
  for (int j = 0; j < kTileColumns; j++) {
    for (int i = 0; i < kTileRows; i++) tile[j][i] = Sum(0);
  }
  for (int l = 0; l < depth; l++, a += kTileRows, b += kTileColumns) {
    for (int j = 0; j < kTileColumns; j++) {
      for (int i = 0; i < kTileRows; i++) tile[j][i] += a[i] * b[j];
    }
  }
  for (int j = 0; j < kTileColumns; j++) {
    for (int i = 0; i < kTileRows; i++) sums[j][i] += tile[j][i];
  }
}

template <class Sum>
void round_sums(Blocks<Sum>&, int) {}
inline void round_sums(Blocks<float>& space, int tiles) {
  float* sums = &space.sums[0][0][0];
  for (int i = 0; i < tiles * kTileRows * kTileColumns; i++) sums[i] = rounded(sums[i], Rounding::kHalf);
}

// Sums of C's block [row, row + rows) x [column, column + columns).
template <class Sum, class In>
void sum_block(const Product& product, const Operand<In>& a, const Operand<In>& b, int row, int rows, int column,
               int columns, Blocks<Sum>& space) {
  const int tile_rows = divide_up(rows, kTileRows), tile_columns = divide_up(columns, kTileColumns);
  const int tiles = tile_rows * tile_columns;
  std::fill_n(&space.sums[0][0][0], tiles * kTileRows * kTileColumns, Sum(0));
  const int block_depth = product.half_sums ? kHalfDepth : kBlockDepth;
  for (int low = 0; low < product.k; low += block_depth) {
    const int depth = std::min(block_depth, product.k - low);
    pack<kTileRows>(space.a, rows, depth, [&](int i, int l) { return a.template at<Sum>(row + i, low + l); });
    pack<kTileColumns>(space.b, columns, depth, [&](int j, int l) { return b.template at<Sum>(low + l, column + j); });
    round_inputs(space.a, static_cast<size_t>(tile_rows) * kTileRows * depth, product.rounding);
    round_inputs(space.b, static_cast<size_t>(tile_columns) * kTileColumns * depth, product.rounding);
    for (int tile = 0; tile < tiles; tile++) {
      const Sum* rows_of_a = space.a + tile % tile_rows * kTileRows * depth;
      const Sum* columns_of_b = space.b + tile / tile_rows * kTileColumns * depth;
      multiply_tile(rows_of_a, columns_of_b, depth, space.sums[tile]);
    }
    if (product.half_sums) round_sums(space, tiles);
  }
}

// Calls write(i, j, sum) with each element of op(A) * op(B); for all of a column before the next one within a block.
template <class Sum, class In, class Write>
void for_each_sum(const Product& product, const In* a, int64_t lead_a, const In* b, int64_t lead_b, Write write) {
  const Operand<In> left(a, lead_a, product.op_a), right(b, lead_b, product.op_b);
  const std::unique_ptr<Blocks<Sum>> space(new Blocks<Sum>);
  for (int column = 0; column < product.n; column += kBlockColumns) {
    const int columns = std::min(kBlockColumns, product.n - column);
    for (int row = 0; row < product.m; row += kBlockRows) {
      const int rows = std::min(kBlockRows, product.m - row), tile_rows = divide_up(rows, kTileRows);
      sum_block(product, left, right, row, rows, column, columns, *space);
      for (int j = 0; j < columns; j++) {
        for (int i = 0; i < rows; i++) {
          const int tile = j / kTileColumns * tile_rows + i / kTileRows;
          write(row + i, column + j, space->sums[tile][j % kTileColumns][i % kTileRows]);
        }
      }
    }
  }
}

template <class Sum, class In, class Out>
void multiply(const Product& product, Sum alpha, const In* a, int64_t lead_a, const In* b, int64_t lead_b, Sum beta,
              Out* c, int64_t lead_c) {
  const bool overwrites = beta == Sum(0);  // then c may hold anything, NaN included
  for_each_sum<Sum>(product, a, lead_a, b, lead_b, [=](int64_t i, int64_t j, Sum sum) {
    Out& result = c[i + j * lead_c];
    result = static_cast<Out>(overwrites ? alpha * sum : alpha * sum + beta * static_cast<Sum>(result));
  });
}

}  // namespace cudasim::cublas
