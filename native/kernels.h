// The table that every instruction set fills: what a step is made of, on rows of one thread.
//
// Invariant: a row's result depends on that row alone. Sums run in one order whatever rows are
// computed beside it, and keys are cut at multiples of kPiece.
#pragma once
#include "abi.h"

// Of what must stay in registers: gcc would call it.
#define KVASIR_INLINE __attribute__((always_inline)) inline

namespace kvasir {

inline int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows that enter a projection, in the form that its weight's format wants.
struct Rows {
  bf16* values;         // [n, stride], for kBf16
  int8_t* high;         // [n, stride]: x = scale * (256 high + low), for kInt8 and kInt4
  int8_t* low;          // [n, stride]
  float* scale;         // [n]
  int32_t* high_sum;    // [n], for kInt8
  int32_t* low_sum;     // [n]
  float* group_sums;    // [n, stride / 32] of 256 high + low, for kInt4
  int64_t stride;
};

// How a product begins: from zero; from zero, with a panel that streams in from memory; from what c
// holds, so that a sum may be taken in parts without rounding otherwise.
enum Mma { kFresh, kStream, kAccumulate };

// With no more rows than these, memory bounds a product, and the panel is asked for so many bytes
// ahead.
constexpr int kStreamRows = 4;
constexpr int kStreamAhead = 6144;

// Of each head: no more queries than these share out the pieces of their text.
constexpr int kFewQueries = 32;

enum Then : int32_t { kStore, kAdd, kSiluTimes };

struct LinearTask {
  const Linear* linear;
  const Rows* rows;
  int64_t row, end_row;
  int64_t panel, end_panel;
  Then then;
  float* wide;    // kStore, kAdd: [rows, wide_stride]
  bf16* narrow;   // kSiluTimes: [rows, narrow_stride]; a panel holds 16 gates, then their 16 ups
  int64_t stride;
};

struct NormTask {
  const float* hidden;  // [n, hidden_stride]
  int64_t hidden_stride, n;
  const float* weight;
  float eps;
  int32_t width;
  int32_t format;  // of the rows that come out
  const Rows* rows;
  int64_t row, end_row;
  const int64_t* from;  // the hidden row of each row, or null: the same
};

struct QuantiseTask {  // rows.values -> rows.high, low, …
  const Rows* rows;
  int32_t width, format;
  int64_t row, end_row;
};

struct RotateTask {  // norm of heads, RoPE, KV into the pool
  const float* qkv;  // [n, stride]
  int64_t stride;
  const Model* model;
  const Layer* layer;
  const float* cosines;  // [n, head_dim / 2]
  const float* sines;
  const int64_t* slots;  // [n]
  bf16* queries;         // [n, n_heads * head_dim]
  uint8_t* keys;         // one layer's planes
  uint8_t* values;
  int64_t row, end_row;
};

struct AttendTask {
  const Model* model;
  const Layer* layer;
  const bf16* queries;  // [n, n_heads, head_dim], from the task's first row on
  bf16* out;            // [n, out_stride], likewise
  int64_t out_stride;
  float* partial;       // null, or for few queries their states [n_kv_heads, queries], by piece
  const uint8_t* keys;
  const uint8_t* values;
  const int64_t* blocks;
  int64_t block_tokens;
  int64_t position, n;  // of the task's first row; rows
  int32_t kv_head;      // not of few queries: they are of all heads
  int64_t piece, end_piece;
  uint8_t* scratch;
};

// What is multiplied at a peak rate: bfloat16 or bytes.
enum Peak : int32_t { kPeakBf16, kPeakBytes };

struct Kernels {
  const char* name;
  int attend_rows;  // queries of one attention task
  void (*linear)(const LinearTask&);
  void (*norm)(const NormTask&);
  void (*quantise)(const QuantiseTask&);
  void (*rotate)(const RotateTask&);
  void (*attend)(const AttendTask&);
  void (*merge)(const AttendTask&);  // the partial states, in order of position, into out
  int64_t (*attend_scratch_bytes)(const Model&);
  void (*begin)();  // of a step, on each thread
  void (*end)();
  double (*peak)(Peak kind, double seconds);  // operations per second of one thread, at most
};

// Bytes of the state of one query: highest score, total, values.
inline int64_t state_floats(const Model& model) { return 2 + padded(model.head_dim, kPanel); }

inline int64_t kv_row_bytes(const Model& model) {
  const int64_t numbers = int64_t(model.n_kv_heads) * model.head_dim;
  return model.codec == kPlain ? 2 * numbers : numbers + 2 * model.n_kv_heads;
}

}  // namespace kvasir
