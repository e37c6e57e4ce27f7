#include "pack.h"

#include <cstring>

#include "kernels.h"

namespace kvasir {

namespace {
constexpr int64_t kNibbleBytes = 4 * kPanel * 4;
constexpr int64_t kGroupBytes = kNibbleBytes + 2 * kPanel * 2;
}  // namespace

int64_t packed_bytes(int32_t format, int64_t n_out, int64_t n_in) {
  const int64_t columns = padded(n_out, kPanel), inner = padded(n_in, kInner);
  if (format == kInt4) return columns / kPanel * (inner / 32) * kGroupBytes;
  return columns * inner * (format == kBf16 ? 2 : 1);
}

void pack_bf16(const bf16* weight, int64_t n_out, int64_t n_in, bf16* packed) {
  const int64_t inner = padded(n_in, kInner);
  std::memset(packed, 0, size_t(packed_bytes(kBf16, n_out, n_in)));
  for (int64_t out = 0; out < n_out; ++out) {
    bf16* panel = packed + out / kPanel * kPanel * inner + out % kPanel * 2;
    const bf16* row = weight + out * n_in;
    for (int64_t in = 0; in < n_in; ++in) panel[in / 2 * 2 * kPanel + in % 2] = row[in];
  }
}

void unpack_bf16(const bf16* packed, int64_t n_in, int64_t out, float* row) {
  const bf16* panel = packed + out / kPanel * kPanel * padded(n_in, kInner) + out % kPanel * 2;
  for (int64_t in = 0; in < n_in; ++in) row[in] = widened(panel[in / 2 * 2 * kPanel + in % 2]);
}

void pack_int8(const int8_t* codes, int64_t n_out, int64_t n_in, uint8_t* packed) {
  const int64_t inner = padded(n_in, kInner);
  std::memset(packed, 128, size_t(packed_bytes(kInt8, n_out, n_in)));
  for (int64_t out = 0; out < n_out; ++out) {
    uint8_t* panel = packed + out / kPanel * kPanel * inner + out % kPanel * 4;
    const int8_t* row = codes + out * n_in;
    for (int64_t in = 0; in < n_in; ++in)
      panel[in / 4 * 4 * kPanel + in % 4] = uint8_t(row[in] + 128);
  }
}

void pack_int4(const uint8_t* codes, const uint16_t* scales, const uint16_t* least, int64_t n_out,
               int64_t n_in, uint8_t* packed) {
  const int64_t groups = padded(n_in, kInner) / 32;
  std::memset(packed, 0, size_t(packed_bytes(kInt4, n_out, n_in)));
  for (int64_t out = 0; out < n_out; ++out) {
    uint8_t* panel = packed + out / kPanel * groups * kGroupBytes;
    const int64_t column = out % kPanel;
    for (int64_t group = 0; group < groups; ++group) {
      uint8_t* at = panel + group * kGroupBytes;
      for (int64_t i = 0; i < 32 && group * 32 + i < n_in; ++i) {
        const int64_t four = i / 4;
        uint8_t& byte = at[(four % 4 * kPanel + column) * 4 + i % 4];
        byte = uint8_t(byte | (codes[out * n_in + group * 32 + i] & 15) << (four < 4 ? 0 : 4));
      }
      const int64_t from = out * groups + group;
      std::memcpy(at + kNibbleBytes + 2 * column, scales + from, 2);
      std::memcpy(at + kNibbleBytes + 2 * (kPanel + column), least + from, 2);
    }
  }
}

}  // namespace kvasir
