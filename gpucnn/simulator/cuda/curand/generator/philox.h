// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011).
#pragma once
#include <stdint.h>

namespace cudasim::random {

struct PhiloxBlock {
  uint32_t words[4];
};

inline PhiloxBlock philox(PhiloxBlock counter, uint64_t key) {
  constexpr int kRounds = 10;
  constexpr uint64_t kFirstFactor = 0xD2511F53;
  constexpr uint64_t kSecondFactor = 0xCD9E8D57;
  constexpr uint32_t kFirstStep = 0x9E3779B9;   // of the golden ratio
  constexpr uint32_t kSecondStep = 0xBB67AE85;  // of the square root of 3
  auto low_key = static_cast<uint32_t>(key);
  auto high_key = static_cast<uint32_t>(key >> 32);
  uint32_t* at = counter.words;
  for (int round = 0; round < kRounds; round++) {
    const uint64_t first = kFirstFactor * at[0];
    const uint64_t second = kSecondFactor * at[2];
    const PhiloxBlock next = {{static_cast<uint32_t>(second >> 32) ^ at[1] ^ low_key, static_cast<uint32_t>(second),
                               static_cast<uint32_t>(first >> 32) ^ at[3] ^ high_key, static_cast<uint32_t>(first)}};
    counter = next;
    low_key += kFirstStep;
    high_key += kSecondStep;
  }
  return counter;
}

// The random words from which one number is drawn. Each number of a sequence has words of its own, found by its index:
// the sequence is the same however many numbers a call asks for, and however many words each number takes.
class Bits {
 public:
  // `kind` tells the sequences of different generators apart that were given the same seed.
  Bits(uint64_t seed, uint32_t kind, uint64_t index) : seed_(seed), kind_(kind), index_(index) {}

  uint32_t next32() {
    if (used_ == 4) refill();
    return block_.words[used_++];
  }

  uint64_t next64() {
    const uint64_t high = next32();
    return high << 32 | next32();
  }

 private:
  void refill() {
    const PhiloxBlock counter = {
        {static_cast<uint32_t>(index_), static_cast<uint32_t>(index_ >> 32), block_number_++, kind_}};
    block_ = philox(counter, seed_);
    used_ = 0;
  }

  uint64_t seed_;
  uint32_t kind_;
  uint64_t index_;
  uint32_t block_number_ = 0;
  PhiloxBlock block_ = {};
  int used_ = 4;
};

}  // namespace cudasim::random
