// Solves with triangular matrices, by substitution.
#pragma once
#include "multiply.h"
#include "sums.h"

namespace cudasim::cublas {

// Right-hand sides, which become the solutions: element (i, j) of side j.
template <class T>
struct Sides {
  T* data;
  int64_t row_step;
  int64_t column_step;

  T& operator()(int64_t i, int64_t j) const { return data[i * row_step + j * column_step]; }
};

// Solves a * X = X0 for `count` sides, where a is n x n and upper or lower triangular once its operation is applied.
template <class T>
void solve_triangle(const Operand<T>& a, int64_t n, bool upper, bool unit, const Sides<T>& x, int64_t count) {
  for (int64_t side = 0; side < count; side++) {
    for (int64_t step = 0; step < n; step++) {
      const int64_t i = upper ? n - 1 - step : step, first = upper ? i + 1 : 0;
      const T known = blocked_sum<T>(
          step, [&](int64_t j) { return a.template at<T>(i, first + j) * x(first + j, side); });
      const T rest = x(i, side) - known;
      x(i, side) = unit ? rest : rest / a.template at<T>(i, i);
    }
  }
}

}  // namespace cudasim::cublas
