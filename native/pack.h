// Weights [n_out, n_in] into panels of kPanel outputs. Sizes are padded with zeros.
#pragma once
#include "abi.h"

namespace kvasir {

int64_t packed_bytes(int32_t format, int64_t n_out, int64_t n_in);
void pack_bf16(const bf16* weight, int64_t n_out, int64_t n_in, bf16* packed);
// The row `out` [n_in] of a packed weight.
void unpack_bf16(const bf16* packed, int64_t n_in, int64_t out, float* row);
// codes are signed; stored plus 128
void pack_int8(const int8_t* codes, int64_t n_out, int64_t n_in, uint8_t* packed);
// w = scale * code + least; scales and least [n_out, n_in / 32] are IEEE half precision
void pack_int4(const uint8_t* codes, const uint16_t* scales, const uint16_t* least, int64_t n_out,
               int64_t n_in, uint8_t* packed);

}  // namespace kvasir
