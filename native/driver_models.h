// Random small models for driver.cpp, and what plain arithmetic in double precision makes of them.
#pragma once
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "abi.h"

namespace kvasir {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

struct Chance {
  uint64_t state;

  uint64_t next() {  // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t between(int64_t low, int64_t high) {  // both included
    return low + int64_t(next() % uint64_t(high - low + 1));
  }
  bool one_in(int64_t n) { return between(1, n) == 1; }
  double number() { return (double(next() >> 11) / (1ull << 52) - 1) * std::sqrt(3.0); }  // variance 1
  template <size_t N>
  int of(const int (&choices)[N]) { return choices[between(0, N - 1)]; }
};

// A projection as the kernels get it, and its numbers.
struct Projection {
  Linear linear{};
  std::vector<uint8_t> packed;
  std::vector<float> scale, bias;  // padded
  std::vector<double> exact;       // [n_out, n_in]
};

struct Drawn {
  Model model{};
  int block_tokens;
  std::vector<Layer> layers;
  std::vector<Projection> projections;  // by layer: qkv, output, gate_up, down; then the head
  std::vector<std::vector<float>> vectors;
  std::vector<bf16> embedding;
  std::vector<std::vector<int64_t>> texts;
  std::vector<std::vector<double>> expected;  // logits of each text, [n, vocab_size]
};

// The model `number` of `seed`. Its first text consists of a token whose embedding is no number.
std::unique_ptr<Drawn> draw(uint64_t seed, int number);

}  // namespace kvasir
