// Sums in blocks: the same on every machine, and closer to the truth than one long chain.
#pragma once
#include <algorithm>
#include <cstdint>

namespace cudasim::cublas {

constexpr int64_t kSumBlock = 256;

template <class Sum, class Term>
Sum blocked_sum(int64_t n, Term term) {
  Sum total = Sum(0);
  for (int64_t low = 0; low < n; low += kSumBlock) {
    Sum block = Sum(0);
    for (int64_t i = low; i < std::min(n, low + kSumBlock); i++) block += term(i);
    total += block;
  }
  return total;
}

}  // namespace cudasim::cublas
