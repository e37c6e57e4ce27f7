#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "pack.h"

namespace kvasir {

namespace {

constexpr int64_t kPartRows = 512;     // their activations stay in the cache of one layer's phases
constexpr int64_t kRowsAtOnce = 16;    // of the phases that go row by row

}  // namespace

void Buffer::Free::operator()(void* p) const { std::free(p); }

void* Buffer::at_least(size_t n_bytes) {
  if (n_bytes > size_) {
    memory_.reset();
    size_ = 0;
    const size_t rounded = padded(int64_t(n_bytes), 4096);
    void* fresh = std::aligned_alloc(64, rounded);
    if (!fresh) throw std::bad_alloc();
    std::memset(fresh, 0, rounded);  // what pads a row is 0 and stays so
    memory_.reset(fresh);
    size_ = rounded;
  }
  return memory_.get();
}

struct Program::Unit {  // one attention task: all pieces of one KV head, or one piece of all heads
  const Span* span;
  int64_t row, n;      // of the step
  int32_t kv_head;
  int64_t piece, end_piece;
  int64_t partial;  // offset in floats, or -1
};

struct Program::Part {
  int64_t row, n;
  std::vector<Unit> units;    // the largest first
  std::vector<Unit> merges;
  int64_t partial_floats;
};

Program::Program(const Model& model, const Kernels& kernels, int threads)
    : model_(model),
      kernels_(kernels),
      team_(threads),
      hidden_(padded(model.hidden, kPanel)),
      queries_(padded(int64_t(model.n_heads) * model.head_dim, kInner)),
      qkv_(padded(int64_t(model.n_heads + 2 * model.n_kv_heads) * model.head_dim, kPanel)),
      inner_(padded(model.intermediate, kInner)) {}

size_t Program::scratch_bytes() const {
  size_t total = 0;
  for (const Buffer* buffer : {&norms_, &attended_, &activated_, &wide_, &heads_, &angles_,
                               &slots_, &partial_, &scratch_})
    total += buffer->bytes();
  return total;
}

Rows Program::rows_at(Buffer& buffer, int64_t n, int64_t width) {
  const int64_t groups = width / 32;
  auto* at = static_cast<uint8_t*>(buffer.at_least(size_t(n * (4 * width + 12 + 4 * groups)) + 7 * 64));
  auto take = [&at](int64_t n_bytes) {
    uint8_t* taken = at;
    at += padded(n_bytes, 64);
    return taken;
  };
  Rows rows;
  rows.values = reinterpret_cast<bf16*>(take(2 * n * width));
  rows.high = reinterpret_cast<int8_t*>(take(n * width));
  rows.low = reinterpret_cast<int8_t*>(take(n * width));
  rows.scale = reinterpret_cast<float*>(take(4 * n));
  rows.high_sum = reinterpret_cast<int32_t*>(take(4 * n));
  rows.low_sum = reinterpret_cast<int32_t*>(take(4 * n));
  rows.group_sums = reinterpret_cast<float*>(take(4 * n * groups));
  rows.stride = width;
  return rows;
}

std::vector<Program::Part> Program::parts_of(const Step& step) const {
  std::vector<Part> parts;
  for (int64_t row = 0; row < step.n_rows; row += kPartRows) {
    Part part{row, std::min(kPartRows, step.n_rows - row), {}, {}, 0};
    plan_attention(step, part);
    parts.push_back(std::move(part));
  }
  return parts;
}

void Program::plan_attention(const Step& step, Part& part) const {
  const int64_t group = model_.n_heads / model_.n_kv_heads;
  const int64_t rows_at_once = std::max<int64_t>(1, kernels_.attend_rows / group);
  for (int64_t s = step.n_spans - 1; s >= 0; --s) {
    const Span& span = step.spans[s];
    const int64_t low = std::max(span.row, part.row);
    const int64_t high = std::min(span.row + span.n, part.row + part.n);
    if (low >= high) continue;
    const bool split = (high - low) * group <= kFewQueries;
    const int64_t first = low + (high - low - 1) / rows_at_once * rows_at_once;
    for (int64_t row = first; row >= low; row -= rows_at_once) {
      const int64_t n = std::min(rows_at_once, high - row);
      const int64_t end = span.start + row + n - span.row;
      const int64_t pieces = (end + kPiece - 1) / kPiece;
      if (!split || pieces == 1) {
        for (int32_t head = 0; head < model_.n_kv_heads; ++head)
          part.units.push_back({&span, row, n, head, 0, pieces, -1});
        continue;
      }
      // all heads of a piece together: their rows lie side by side
      Unit unit{&span, row, n, 0, 0, pieces, part.partial_floats};
      part.merges.push_back(unit);
      const int64_t states = n * model_.n_heads * state_floats(model_);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        unit.piece = piece;
        unit.end_piece = piece + 1;
        unit.partial = part.partial_floats + piece * states;
        part.units.push_back(unit);
      }
      part.partial_floats += pieces * states;
    }
  }
}

void Program::make_room(const Step& step, const std::vector<Part>& parts) {
  // always for a whole part: rows lie the same way in every step, and what pads them stays 0
  const int64_t n = kPartRows;
  int64_t partial = 0;
  for (const Part& part : parts) partial = std::max(partial, part.partial_floats);
  norm_rows_ = rows_at(norms_, n, hidden_);
  attended_rows_ = rows_at(attended_, n, queries_);
  activated_rows_ = rows_at(activated_, n, inner_);
  wide_.at_least(size_t(4 * n * qkv_));
  heads_.at_least(size_t(2 * n * model_.n_heads * model_.head_dim));
  angles_.at_least(size_t(8 * step.n_rows * (model_.head_dim / 2)));
  slots_.at_least(size_t(8 * step.n_rows));
  partial_.at_least(size_t(4 * partial));
  scratch_stride_ = padded(kernels_.attend_scratch_bytes(model_), 4096);
  scratch_.at_least(size_t(scratch_stride_ * team_.size()));
}

void Program::run(const Step& step) {
  std::vector<Part> parts = parts_of(step);
  make_room(step, parts);
  team_.run([&](int thread) {
    if (kernels_.begin) kernels_.begin();
    compute(step, parts, thread);
    if (kernels_.end) kernels_.end();
  });
}

void Program::compute(const Step& step, std::vector<Part>& parts, int thread) {
  if (step.first_layer == 0) embed(step);  // a later call of the same step finds it done
  for (int index = step.first_layer; index < step.end_layer; ++index)
    for (const Part& part : parts) layer(step, part, index, thread);
  if (step.end_layer == model_.n_layers && step.n_asked) logits(step);
}

// Where each row stands, where its KV goes, and its embedding.
void Program::embed(const Step& step) {
  const int64_t half = model_.head_dim / 2;
  auto* slots = static_cast<int64_t*>(slots_.at_least(0));
  auto* cosines = static_cast<float*>(angles_.at_least(0));
  float* sines = cosines + step.n_rows * half;
  team_.share(step.n_rows, kRowsAtOnce, [&](int64_t first, int64_t end) {
    int64_t s = 0;
    for (int64_t row = first; row < end; ++row) {
      while (row >= step.spans[s].row + step.spans[s].n) ++s;
      const Span& span = step.spans[s];
      const int64_t position = span.start + row - span.row;
      slots[row] = span.blocks[position / step.block_tokens] * step.block_tokens +
                   position % step.block_tokens;
      for (int64_t i = 0; i < half; ++i) {
        const float angle = float(position) * model_.frequencies[i];
        cosines[row * half + i] = std::cos(angle) * model_.rope_magnitude;
        sines[row * half + i] = std::sin(angle) * model_.rope_magnitude;
      }
      const int64_t token = step.tokens[row];
      float* to = step.hidden + row * hidden_;
      if (model_.embedding) {
        const bf16* from = model_.embedding + token * model_.hidden;
        for (int64_t i = 0; i < model_.hidden; ++i) to[i] = widened(from[i]);
      } else {
        unpack_bf16(static_cast<const bf16*>(model_.head.weight), model_.hidden, token, to);
      }
      for (int64_t i = model_.hidden; i < hidden_; ++i) to[i] = 0.0f;
    }
  });
}

void Program::layer(const Step& step, const Part& part, int index, int thread) {
  const Layer& layer = model_.layers[index];
  const int64_t half = model_.head_dim / 2;
  float* hidden = step.hidden + part.row * hidden_;
  auto* wide = static_cast<float*>(wide_.at_least(0));
  auto* cosines = static_cast<const float*>(angles_.at_least(0));
  const auto* slots = static_cast<const int64_t*>(slots_.at_least(0)) + part.row;

  normalise(hidden, layer.attention_norm, layer.qkv, norm_rows_, part.n, nullptr);
  project(layer.qkv, norm_rows_, part.n, kStore, wide, nullptr, qkv_);
  team_.share(part.n, kRowsAtOnce, [&](int64_t first, int64_t end) {
    kernels_.rotate({wide, qkv_, &model_, &layer, cosines + part.row * half,
                     cosines + (step.n_rows + part.row) * half, slots,
                     static_cast<bf16*>(heads_.at_least(0)), step.keys + index * step.layer_bytes,
                     step.values + index * step.layer_bytes, first, end});
  });
  attend(step, part, index, thread);
  quantise(layer.output, attended_rows_, part.n);
  project(layer.output, attended_rows_, part.n, kAdd, hidden, nullptr, hidden_);
  normalise(hidden, layer.feed_forward_norm, layer.gate_up, norm_rows_, part.n, nullptr);
  project(layer.gate_up, norm_rows_, part.n, kSiluTimes, nullptr, activated_rows_.values, inner_);
  quantise(layer.down, activated_rows_, part.n);
  project(layer.down, activated_rows_, part.n, kAdd, hidden, nullptr, hidden_);
}

void Program::attend(const Step& step, const Part& part, int index, int thread) {
  const auto* queries = static_cast<const bf16*>(heads_.at_least(0));
  auto* partial = static_cast<float*>(partial_.at_least(0));
  auto task_of = [&](const Unit& unit) {
    const int64_t row = unit.row - part.row;
    return AttendTask{&model_,
                      &model_.layers[index],
                      queries + row * model_.n_heads * model_.head_dim,
                      attended_rows_.values + row * queries_,
                      queries_,
                      unit.partial < 0 ? nullptr : partial + unit.partial,
                      step.keys + index * step.layer_bytes,
                      step.values + index * step.layer_bytes,
                      unit.span->blocks,
                      step.block_tokens,
                      unit.span->start + unit.row - unit.span->row,
                      unit.n,
                      unit.kv_head,
                      unit.piece,
                      unit.end_piece,
                      static_cast<uint8_t*>(scratch_.at_least(0)) + thread * scratch_stride_};
  };
  team_.share(int64_t(part.units.size()), 1, [&](int64_t first, int64_t) {
    kernels_.attend(task_of(part.units[first]));
  });
  if (part.merges.empty()) return;
  team_.share(int64_t(part.merges.size()), 8, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) kernels_.merge(task_of(part.merges[i]));
  });
}

void Program::normalise(const float* hidden, const float* weight, const Linear& into,
                        const Rows& rows, int64_t n, const int64_t* from) {
  team_.share(n, kRowsAtOnce, [&](int64_t first, int64_t end) {
    kernels_.norm({hidden, hidden_, n, weight, model_.norm_eps, model_.hidden, into.format, &rows,
                   first, end, from});
  });
}

void Program::quantise(const Linear& into, const Rows& rows, int64_t n) {
  if (into.format == kBf16) return;
  team_.share(n, kRowsAtOnce, [&](int64_t first, int64_t end) {
    kernels_.quantise({&rows, into.n_in, into.format, first, end});
  });
}

void Program::project(const Linear& linear, const Rows& rows, int64_t n, Then then, float* wide,
                      bf16* narrow, int64_t stride) {
  const int64_t panels = padded(linear.n_out, kPanel) / kPanel;
  // enough pieces for the team, also where there are few panels
  const int64_t wanted = std::max<int64_t>(1, 4 * team_.size() / std::max<int64_t>(1, panels));
  const int64_t rows_each = padded((n + wanted - 1) / wanted, 32);
  const int64_t row_parts = (n + rows_each - 1) / rows_each;
  const int64_t most = n <= 32 ? 64 : 1;
  team_.share(panels * row_parts, most, [&](int64_t first, int64_t end) {
    for (int64_t at = first; at < end;) {
      const int64_t part = at / panels;
      const int64_t last = std::min(end, (part + 1) * panels);
      kernels_.linear({&linear, &rows, part * rows_each, std::min(n, (part + 1) * rows_each),
                       at - part * panels, last - part * panels, then, wide, narrow, stride});
      at = last;
    }
  });
}

void Program::logits(const Step& step) {
  const int64_t stride = padded(model_.vocab_size, kPanel);
  for (int64_t first = 0; first < step.n_asked; first += kPartRows) {
    const int64_t n = std::min(kPartRows, step.n_asked - first);
    normalise(step.hidden, model_.final_norm, model_.head, norm_rows_, n, step.asked + first);
    project(model_.head, norm_rows_, n, kStore, step.logits + first * stride, nullptr, stride);
  }
}

}  // namespace kvasir
