// What crosses from Python to native code: plain structures of raw pointers, mirrored by
// kvasir/kernels/native/abi.py. Nothing here owns memory.
#pragma once
#include <cstdint>

namespace kvasir {

using bf16 = uint16_t;

inline float widened(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

// Output columns of one packed panel, and the multiple to which the inner dimension is padded.
constexpr int kPanel = 32;
constexpr int kInner = 32;
// Keys of one attention piece: pieces begin at multiples of it, whatever the step is.
constexpr int kPiece = 512;

enum Format : int32_t { kBf16 = 0, kInt8 = 1, kInt4 = 2 };
enum Codec : int32_t { kPlain = 0, kRotatedInt8 = 1 };

// y = x W^T + bias, the weight packed by pack.h.
struct Linear {
  const void* weight;
  const float* scale;  // [padded n_out], of int8 weights
  const float* bias;   // [padded n_out] or null
  int32_t n_out, n_in;
  int32_t format;  // Format
  int32_t reserved;
};

struct Layer {
  const float* attention_norm;     // [hidden]
  const float* query_norm;         // [head_dim] or null
  const float* key_norm;           // [head_dim] or null
  const float* feed_forward_norm;  // [hidden]
  Linear qkv, output, gate_up, down;
  int64_t window;  // last positions seen; 0 = all
  int64_t sinks;   // first positions that a window sees too
};

struct Model {
  int32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, intermediate, vocab_size;
  int32_t codec;  // Codec of KV
  float norm_eps, rope_magnitude;
  const float* frequencies;  // [head_dim / 2]
  const float* final_norm;   // [hidden]
  const bf16* embedding;     // [vocab_size, hidden], or null: the rows of the head, in bfloat16
  const Layer* layers;
  Linear head;
};

// One sequence's rows of a step: as kernels/paging.py's Span.
struct Span {
  int64_t row, n, start;
  const int64_t* blocks;
};

struct Step {
  int64_t n_rows, n_spans, n_asked;
  const int64_t* tokens;  // [n_rows]
  const Span* spans;      // in the order of their rows, without gaps
  const int64_t* asked;   // [n_asked] rows whose logits are wanted
  float* hidden;          // [n_rows, hidden padded to kPanel]
  float* logits;          // [n_asked, vocab_size padded to kPanel]
  uint8_t* keys;          // [n_layers, n_slots, row bytes]
  uint8_t* values;
  int64_t layer_bytes;  // of one plane
  int32_t block_tokens;
  int32_t first_layer, end_layer;  // the embedding comes before layer 0, logits after the last
  int32_t reserved;
};

}  // namespace kvasir
