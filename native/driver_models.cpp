#include "driver_models.h"

#include <cstring>
#include <utility>

#include "kernels.h"
#include "pack.h"

namespace kvasir {
namespace {

constexpr int kNothing = 0, kTiny = 1, kBroken = 2;  // tokens of special embeddings

// --- numbers ------------------------------------------------------------------------------------

bf16 to_bf16(float x) {  // towards zero
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bf16(bits >> 16);
}
double from_bf16(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
// IEEE half precision, towards zero; of what is normal there.
uint16_t to_half(double x) {
  int exponent;
  const double part = std::frexp(std::fabs(x), &exponent);
  return uint16_t((x < 0) << 15 | (exponent + 14) << 10 | int(part * 2048 - 1024));
}
double from_half(uint16_t x) {
  return std::ldexp((x >> 15 ? -1 : 1) * (1024 + (x & 1023)), (x >> 10 & 31) - 25);
}

// --- models -------------------------------------------------------------------------------------

// Rows from `used` on of each 16 are zero where gates and ups of a narrower layer lie.
struct Shape {
  int n_out, n_in, intermediate;  // 0: all rows are used
  bool used(int row) const { return !intermediate || row / 32 * 16 + row % 16 < intermediate; }
};

void draw_bf16(Chance& chance, const Shape& s, Projection& p) {
  std::vector<bf16> weight(p.exact.size());
  for (size_t i = 0; i < weight.size(); ++i) {
    weight[i] = s.used(int(i) / s.n_in) ? to_bf16(float(chance.number() / std::sqrt(s.n_in))) : 0;
    p.exact[i] = from_bf16(weight[i]);
  }
  pack_bf16(weight.data(), s.n_out, s.n_in, reinterpret_cast<bf16*>(p.packed.data()));
}

void draw_int8(Chance& chance, const Shape& s, Projection& p) {
  std::vector<int8_t> codes(p.exact.size());
  p.scale.assign(padded(s.n_out, kPanel), 0);
  for (int out = 0; out < s.n_out; ++out)
    p.scale[out] = float((1.5 + 0.5 * chance.number()) / (110 * std::sqrt(s.n_in)));
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = int8_t(s.used(int(i) / s.n_in) ? chance.between(-127, 127) : 0);
    p.exact[i] = double(codes[i]) * p.scale[i / s.n_in];
  }
  pack_int8(codes.data(), s.n_out, s.n_in, p.packed.data());
}

void draw_int4(Chance& chance, const Shape& s, Projection& p) {
  const int groups = (s.n_in + 31) / 32;
  std::vector<uint8_t> codes(p.exact.size());
  std::vector<uint16_t> scales(s.n_out * groups), least(s.n_out * groups);
  for (int i = 0; i < s.n_out * groups; ++i) {
    if (!s.used(i / groups)) continue;
    const double scale = (1 + 0.3 * chance.number()) / (4.6 * std::sqrt(s.n_in));
    scales[i] = to_half(scale);
    least[i] = to_half(-scale * (7.5 + 0.5 * chance.number()));
  }
  for (size_t i = 0; i < codes.size(); ++i) {
    const int row = int(i) / s.n_in, group = row * groups + int(i) % s.n_in / 32;
    if (!s.used(row)) continue;
    codes[i] = uint8_t(chance.between(0, 15));
    p.exact[i] = codes[i] * from_half(scales[group]) + from_half(least[group]);
  }
  pack_int4(codes.data(), scales.data(), least.data(), s.n_out, s.n_in, p.packed.data());
}

Linear draw_projection(Chance& chance, Drawn& drawn, const Shape& s, int format, bool biased) {
  Projection p;
  p.exact.assign(size_t(s.n_out) * s.n_in, 0);
  p.packed.resize(packed_bytes(format, s.n_out, s.n_in));
  (format == kBf16 ? draw_bf16 : format == kInt8 ? draw_int8 : draw_int4)(chance, s, p);
  if (biased) {
    p.bias.assign(padded(s.n_out, kPanel), 0);
    for (int out = 0; out < s.n_out; ++out)
      if (s.used(out)) p.bias[out] = float(0.5 * chance.number());
  }
  p.linear = {p.packed.data(), p.scale.empty() ? nullptr : p.scale.data(),
              biased ? p.bias.data() : nullptr, s.n_out, s.n_in, format, 0};
  drawn.projections.push_back(std::move(p));
  return drawn.projections.back().linear;
}

const float* draw_norm(Chance& chance, Drawn& drawn, int n, int64_t size) {
  std::vector<float> weight(size, 0);
  for (int i = 0; i < n; ++i) weight[i] = float(1 + 0.3 * chance.number());
  drawn.vectors.push_back(std::move(weight));
  return drawn.vectors.back().data();
}

void draw_sizes(Chance& chance, Model& m, bool long_texts) {
  m.n_layers = int(chance.between(1, long_texts ? 2 : 3));
  m.hidden = int(chance.one_in(2) ? 32 * chance.between(1, 4) : chance.between(9, 130));
  m.intermediate = int(chance.one_in(2) ? 32 * chance.between(1, 6) : chance.between(5, 200));
  m.vocab_size = int(chance.between(8, 140));
  m.head_dim = chance.of({8, 32, 64, 128, 256, 80, 96, 6, 40});
  m.n_kv_heads = int(chance.between(1, 3));
  int group = chance.of({1, 2, 3, 4, 7, 8, 16});
  const int most = long_texts ? 384 : 1024;  // plain arithmetic takes its time
  while (group > 1 && group * m.n_kv_heads * m.head_dim > most) group /= 2;
  while (m.n_kv_heads > 1 && group * m.n_kv_heads * m.head_dim > most) --m.n_kv_heads;
  m.n_heads = group * m.n_kv_heads;
  m.norm_eps = 1e-6f;
  m.rope_magnitude = chance.one_in(3) ? 1.1f : 1.0f;
}

void draw_layer(Chance& chance, Drawn& drawn, const int (&formats)[4], bool normed, bool biased) {
  const Model& m = drawn.model;
  Layer layer{};
  const int64_t width = padded(m.hidden, kPanel);
  layer.attention_norm = draw_norm(chance, drawn, m.hidden, width);
  layer.feed_forward_norm = draw_norm(chance, drawn, m.hidden, width);
  if (normed) layer.query_norm = draw_norm(chance, drawn, m.head_dim, m.head_dim);
  if (normed) layer.key_norm = draw_norm(chance, drawn, m.head_dim, m.head_dim);
  const int queries = m.n_heads * m.head_dim, keys = m.n_kv_heads * m.head_dim;
  const int turns = (m.intermediate + 15) / 16;
  auto draw = [&](const Shape& shape, int which, bool has_bias) {
    return draw_projection(chance, drawn, shape, formats[which], has_bias);
  };
  layer.qkv = draw({queries + 2 * keys, m.hidden, 0}, 0, biased);
  layer.output = draw({m.hidden, queries, 0}, 1, biased);
  layer.gate_up = draw({32 * turns, m.hidden, m.intermediate}, 2, biased && chance.one_in(2));
  layer.down = draw({m.hidden, m.intermediate, 0}, 3, false);
  if (chance.one_in(2)) {
    layer.window = chance.one_in(2) ? chance.between(1, 40) : chance.between(41, 700);
    if (chance.one_in(2)) layer.sinks = chance.one_in(4) ? 600 : chance.between(1, 20);
  }
  drawn.layers.push_back(layer);
}

void draw_texts(Chance& chance, Drawn& drawn, bool long_texts) {
  const int64_t vocab = drawn.model.vocab_size;
  drawn.texts.push_back(std::vector<int64_t>(chance.between(1, 60), kBroken));
  for (int64_t left = chance.between(2, 3); left > 0; --left) {
    const bool is_long = long_texts && left == 1;
    std::vector<int64_t> text(is_long ? chance.between(1030, 1500) : chance.between(1, 120));
    for (int64_t& token : text) token = chance.between(kBroken + 1, vocab - 1);
    if (chance.one_in(3)) text[chance.between(0, int64_t(text.size()) - 1)] = kNothing;
    if (chance.one_in(3)) text[chance.between(0, int64_t(text.size()) - 1)] = kTiny;
    drawn.texts.push_back(std::move(text));
  }
}

// --- plain arithmetic ---------------------------------------------------------------------------

// The two loops that take the time; what they read is no kernel's.
__attribute__((no_sanitize("address", "undefined"))) double dot(const double* a, const double* b,
                                                                int64_t n) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) sums[j] += a[i + j] * b[i + j];
  for (; i < n; ++i) sums[0] += a[i] * b[i];
  return sums[0] + sums[1] + sums[2] + sums[3];
}
__attribute__((no_sanitize("address", "undefined"))) void add_times(double* to, double factor,
                                                                    const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += factor * x[i];
}

using Matrix = std::vector<double>;  // [rows, width]

Matrix times(const Matrix& x, const Projection& p) {
  const int64_t n_in = p.linear.n_in, n_out = p.linear.n_out, rows = int64_t(x.size()) / n_in;
  Matrix y(rows * n_out);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t out = 0; out < n_out; ++out)
      y[row * n_out + out] = dot(&x[row * n_in], &p.exact[out * n_in], n_in) +
                             (p.bias.empty() ? 0.0 : double(p.bias[out]));
  return y;
}

void normalise(double* x, int64_t n, const float* weight, double eps) {
  const double scale = 1 / std::sqrt(dot(x, x, n) / double(n) + eps);
  for (int64_t i = 0; i < n; ++i) x[i] *= scale * weight[i];
}

Matrix normalised(Matrix x, const Model& m, const float* weight) {
  for (size_t at = 0; at < x.size(); at += m.hidden) normalise(&x[at], m.hidden, weight, m.norm_eps);
  return x;
}

void place_heads(Matrix& qkv, const Model& m, const Layer& layer) {
  const int dim = m.head_dim, half = dim / 2, heads = m.n_heads + m.n_kv_heads;
  const int64_t width = int64_t(heads + m.n_kv_heads) * dim;
  for (int64_t row = 0; row * width < int64_t(qkv.size()); ++row)
    for (int head = 0; head < heads; ++head) {
      double* x = &qkv[row * width + head * dim];
      const float* weight = head < m.n_heads ? layer.query_norm : layer.key_norm;
      if (weight) normalise(x, dim, weight, m.norm_eps);
      for (int i = 0; i < half; ++i) {
        const double angle = double(row) * m.frequencies[i], a = x[i], b = x[i + half];
        x[i] = (a * std::cos(angle) - b * std::sin(angle)) * m.rope_magnitude;
        x[i + half] = (b * std::cos(angle) + a * std::sin(angle)) * m.rope_magnitude;
      }
    }
}

Matrix attended(const Matrix& qkv, const Model& m, const Layer& layer) {
  const int dim = m.head_dim, group = m.n_heads / m.n_kv_heads;
  const int64_t width = int64_t(m.n_heads + 2 * m.n_kv_heads) * dim;
  const int64_t n = int64_t(qkv.size()) / width;
  Matrix out(n * m.n_heads * dim), weights(n);
  for (int64_t row = 0; row < n; ++row)
    for (int head = 0; head < m.n_heads; ++head) {
      const double* query = &qkv[row * width + head * dim];
      const double* key = &qkv[(m.n_heads + head / group) * dim];
      const double* value = key + m.n_kv_heads * dim;
      auto sees = [&](int64_t at) {
        return !layer.window || at > row - layer.window || at < layer.sinks;
      };
      double highest = -INFINITY, total = 0;
      for (int64_t at = 0; at <= row; ++at) {
        weights[at] = sees(at) ? dot(query, key + at * width, dim) / std::sqrt(dim) : -INFINITY;
        highest = std::fmax(highest, weights[at]);
      }
      for (int64_t at = 0; at <= row; ++at) total += weights[at] = std::exp(weights[at] - highest);
      for (int64_t at = 0; at <= row; ++at)
        if (sees(at))
          add_times(&out[(row * m.n_heads + head) * dim], weights[at] / total, value + at * width, dim);
    }
  return out;
}

void add(Matrix& to, const Matrix& x) { add_times(to.data(), 1, x.data(), int64_t(x.size())); }

Matrix plain_logits(const Drawn& drawn, const std::vector<int64_t>& text) {
  const Model& m = drawn.model;
  Matrix hidden;
  for (int64_t token : text)
    for (int i = 0; i < m.hidden; ++i) hidden.push_back(from_bf16(m.embedding[token * m.hidden + i]));
  for (int index = 0; index < m.n_layers; ++index) {
    const Layer& layer = m.layers[index];
    const Projection* p = &drawn.projections[4 * index];
    Matrix qkv = times(normalised(hidden, m, layer.attention_norm), p[0]);
    place_heads(qkv, m, layer);
    add(hidden, times(attended(qkv, m, layer), p[1]));
    const Matrix both = times(normalised(hidden, m, layer.feed_forward_norm), p[2]);
    Matrix inner;
    for (size_t row = 0; row < text.size(); ++row)
      for (int i = 0; i < m.intermediate; ++i) {
        const double* gate = &both[row * p[2].linear.n_out + i / 16 * 32 + i % 16];
        inner.push_back(gate[0] / (1 + std::exp(-gate[0])) * gate[16]);
      }
    add(hidden, times(inner, p[3]));
  }
  return times(normalised(hidden, m, m.final_norm), drawn.projections.back());
}

}  // namespace

std::unique_ptr<Drawn> draw(uint64_t seed, int number) {
  Chance chance{seed * 1000003 + uint64_t(number)};
  auto drawn = std::make_unique<Drawn>();
  Model& m = drawn->model;
  const bool long_texts = number % 2 == 0;
  draw_sizes(chance, m, long_texts);
  m.codec = number / 2 % 2 ? kRotatedInt8 : kPlain;
  drawn->block_tokens = chance.of({1, 4, 16, 64});
  int formats[5];
  const int all = int(chance.between(kBf16, kInt4));
  const bool mixed = chance.one_in(3);
  for (int& format : formats) format = mixed ? int(chance.between(kBf16, kInt4)) : all;
  const bool normed = chance.one_in(2), biased = chance.one_in(2);
  for (int i = 0; i < m.n_layers; ++i)
    draw_layer(chance, *drawn, {formats[0], formats[1], formats[2], formats[3]}, normed, biased);
  m.layers = drawn->layers.data();
  m.head = draw_projection(chance, *drawn, {m.vocab_size, m.hidden, 0}, formats[4], false);
  m.final_norm = draw_norm(chance, *drawn, m.hidden, padded(m.hidden, kPanel));
  std::vector<float> frequencies(m.head_dim / 2);
  for (int i = 0; i < m.head_dim / 2; ++i)
    frequencies[i] = float(std::pow(1e4, -2.0 * i / m.head_dim));
  drawn->vectors.push_back(std::move(frequencies));
  m.frequencies = drawn->vectors.back().data();
  drawn->embedding.resize(size_t(m.vocab_size) * m.hidden);
  for (size_t i = 0; i < drawn->embedding.size(); ++i) {
    const int token = int(i) / m.hidden;
    const double special[] = {0, 3e-38, kNone};
    drawn->embedding[i] = to_bf16(float(token <= kBroken ? special[token] : chance.number()));
  }
  m.embedding = drawn->embedding.data();
  draw_texts(chance, *drawn, long_texts);
  for (const auto& text : drawn->texts) drawn->expected.push_back(plain_logits(*drawn, text));
  return drawn;
}

}  // namespace kvasir
