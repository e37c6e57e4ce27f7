// Drives the kernels of every instruction set that this machine has, and the emulated tiles, over
// random small models. It needs no Python, so that sanitizers see every access.
//
//   driver [seed [models]] [--plant]
//
// Each model computes the same texts several times: whole and alone; in random pieces, beside other
// texts, on more threads; layer by layer. All must give the same bits, and those must lie near plain
// arithmetic in double precision. --plant makes one buffer a row too short, to prove that such a
// thing is noticed.
//
// Invariant: whatever a program is given lies in an allocation of exactly its size, and memory that
// nothing has been written to holds no numbers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "driver_models.h"
#include "program.h"

using namespace kvasir;

namespace {

// Of the root mean square of a text's logits: how far they may lie from double precision, root mean
// square and at most. Most of it is the rounding of activations to bfloat16; seen in 150 models were
// 0.013 and 0.07.
constexpr double kNear = 0.03, kNearEach = 0.2;

// --- kernels ------------------------------------------------------------------------------------

struct Course {  // how texts are computed
  int threads;
  bool whole;    // one text after another, each in one step
  bool layered;  // each layer by a call of its own
  bool plant;
};

struct Computed {
  std::vector<float> logits;  // [n, vocab_size]
  std::vector<bool> asked;    // [n]
};

// The texts' KV: blocks in no order, of a pool that is only as large as it must be.
struct Pool {
  std::vector<uint8_t> keys, values;
  std::vector<std::vector<int64_t>> blocks;  // of each text
  int64_t layer_bytes;

  Pool(Chance& chance, const Drawn& drawn) {
    int64_t n = 0;
    for (const auto& text : drawn.texts) {
      blocks.emplace_back((text.size() + drawn.block_tokens - 1) / drawn.block_tokens);
      n += int64_t(blocks.back().size());
    }
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = n - 1; i > 0; --i) std::swap(order[i], order[chance.between(0, i)]);
    for (auto& own : blocks)
      for (int64_t& block : own) block = order[--n];
    layer_bytes = int64_t(order.size()) * drawn.block_tokens * kv_row_bytes(drawn.model);
    keys.assign(layer_bytes * drawn.model.n_layers, 0xff);  // a bfloat16 of such bytes is no number
    values = keys;
  }
};

// Rows of the next step of each text.
std::vector<int64_t> cut(Chance& chance, const Drawn& drawn, const std::vector<int64_t>& done,
                         bool whole) {
  std::vector<int64_t> counts(done.size(), 0);
  for (size_t i = 0; i < done.size(); ++i) {
    const int64_t left = int64_t(drawn.texts[i].size()) - done[i];
    if (!left) continue;
    if (whole) {
      counts[i] = left;
      break;
    }
    if (chance.one_in(4)) continue;
    const int64_t most = chance.of({1, 8, 70, 700});
    const int64_t n = chance.between((most + 1) / 2, most);
    counts[i] = left > 3 ? std::min(n, left - 3) : 1;  // every text ends with decodes
  }
  return counts;
}

// One step over `counts` rows of each text, from `done` on.
void advance(Chance& chance, const Drawn& drawn, const Model& m, const Course& course, Pool& pool,
             Program& program, const std::vector<int64_t>& counts, std::vector<int64_t>& done,
             std::vector<Computed>& computed) {
  std::vector<int64_t> tokens, asked;
  std::vector<Span> spans;
  std::vector<std::pair<size_t, int64_t>> places;  // of the rows asked: text, position
  for (size_t i = 0; i < counts.size(); ++i) {
    if (!counts[i]) continue;
    spans.push_back({int64_t(tokens.size()), counts[i], done[i], pool.blocks[i].data()});
    for (int64_t end = done[i] + counts[i]; done[i] < end; ++done[i]) {
      if (course.whole || !chance.one_in(3)) {
        asked.push_back(int64_t(tokens.size()));
        places.emplace_back(i, done[i]);
      }
      tokens.push_back(drawn.texts[i][done[i]]);
    }
  }
  const int64_t n = int64_t(tokens.size()), n_asked = int64_t(asked.size());
  const int64_t stride = padded(m.vocab_size, kPanel);
  tokens.shrink_to_fit(), asked.shrink_to_fit(), spans.shrink_to_fit();
  std::vector<float> hidden(n * padded(m.hidden, kPanel), kNone);
  std::vector<float> logits(std::max<int64_t>(0, n_asked - course.plant) * stride, kNone);
  Step step{n, int64_t(spans.size()), n_asked, tokens.data(), spans.data(), asked.data(),
            hidden.data(), logits.data(), pool.keys.data(), pool.values.data(), pool.layer_bytes,
            drawn.block_tokens, 0, m.n_layers, 0};
  for (int layer = 0; course.layered && layer + 1 < m.n_layers; ++layer) {
    step.first_layer = layer;
    step.end_layer = layer + 1;
    program.run(step);
    step.first_layer = layer + 1;
  }
  step.end_layer = m.n_layers;
  program.run(step);
  for (int64_t i = 0; i < n_asked; ++i) {
    Computed& to = computed[places[i].first];
    std::memcpy(&to.logits[places[i].second * m.vocab_size], &logits[i * stride], 4 * m.vocab_size);
    to.asked[places[i].second] = true;
  }
}

std::vector<Computed> compute(uint64_t seed, const Drawn& drawn, const Model& m,
                              const Kernels& kernels, const Course& course) {
  Chance chance{seed};
  Pool pool(chance, drawn);
  Program program(m, kernels, course.threads);
  std::vector<Computed> computed;
  std::vector<int64_t> done(drawn.texts.size(), 0);
  for (const auto& text : drawn.texts)
    computed.push_back({std::vector<float>(text.size() * m.vocab_size, kNone),
                        std::vector<bool>(text.size(), false)});
  auto left = [&] {
    for (size_t i = 0; i < done.size(); ++i)
      if (done[i] < int64_t(drawn.texts[i].size())) return true;
    return false;
  };
  while (left()) {
    const std::vector<int64_t> counts = cut(chance, drawn, done, course.whole);
    if (std::accumulate(counts.begin(), counts.end(), int64_t(0)))
      advance(chance, drawn, m, course, pool, program, counts, done, computed);
  }
  return computed;
}

// --- checks -------------------------------------------------------------------------------------

struct Verdict {
  int64_t rows = 0;
  double worst = 0, worst_each = 0;
  std::string wrong;  // empty: nothing
};

bool all_finite(const float* x, int n) {
  for (int i = 0; i < n; ++i)
    if (!std::isfinite(x[i])) return false;
  return true;
}
bool none_a_number(const float* x, int n) {
  for (int i = 0; i < n; ++i)
    if (x[i] == x[i]) return false;
  return true;
}

// The first text is broken, on purpose; the others are sound.
void check_near(const Drawn& drawn, const std::vector<Computed>& whole, Verdict& verdict) {
  const int vocab = drawn.model.vocab_size;
  for (size_t i = 0; i < whole.size(); ++i) {
    double squares = 0, missed = 0, most = 0;
    const std::vector<float>& logits = whole[i].logits;
    for (size_t at = 0; at < logits.size(); at += vocab)
      if (i == 0 ? !none_a_number(&logits[at], vocab) : !all_finite(&logits[at], vocab))
        verdict.wrong = i == 0 ? "numbers out of none" : "logits that are not finite";
    for (size_t at = 0; i > 0 && at < logits.size(); ++at) {
      const double want = drawn.expected[i][at], off = std::fabs(logits[at] - want);
      squares += want * want;
      missed += off * off;
      most = std::fmax(most, off);
    }
    if (i == 0) continue;
    const double size = std::sqrt(squares / double(logits.size()));
    const double near = std::sqrt(missed / double(logits.size())) / size;
    verdict.worst = std::fmax(verdict.worst, near);
    verdict.worst_each = std::fmax(verdict.worst_each, most / size);
    if (!(near < kNear) || !(most / size < kNearEach)) verdict.wrong = "logits far from plain ones";
  }
}

void check_same(const Drawn& drawn, const std::vector<Computed>& whole,
                const std::vector<Computed>& other, Verdict& verdict) {
  const int vocab = drawn.model.vocab_size;
  for (size_t i = 1; i < whole.size(); ++i)
    for (size_t row = 0; row < other[i].asked.size(); ++row) {
      if (!other[i].asked[row]) continue;
      ++verdict.rows;
      if (std::memcmp(&whole[i].logits[row * vocab], &other[i].logits[row * vocab], 4 * vocab))
        verdict.wrong = "other bits for other steps, text " + std::to_string(i) + " row " +
                        std::to_string(row);
    }
}

// Where the first layer's queries, keys or values are no numbers, no logits may be.
void check_broken(uint64_t seed, const Drawn& drawn, const Kernels& kernels, Verdict& verdict) {
  Model m = drawn.model;
  std::vector<Layer> layers = drawn.layers;
  std::vector<float> bias(padded(layers[0].qkv.n_out, kPanel), 0);
  const int firsts[] = {0, m.n_heads, m.n_heads + m.n_kv_heads};
  bias[Chance{seed}.of(firsts) * m.head_dim] = kNone;
  layers[0].qkv.bias = bias.data();
  m.layers = layers.data();
  for (const Computed& text : compute(seed, drawn, m, kernels, {2, false, false, false}))
    if (!none_a_number(text.logits.data(), int(text.logits.size())))
      verdict.wrong = "a broken head that goes unseen";
}

void check(uint64_t seed, const Drawn& drawn, const Kernels& kernels, bool plant, Verdict& verdict) {
  const auto whole = compute(seed, drawn, drawn.model, kernels, {1, true, false, plant});
  check_near(drawn, whole, verdict);
  const Course courses[] = {{1, false, false, false}, {2, false, true, false}, {3, false, false, false}};
  for (const Course& course : courses)
    check_same(drawn, whole, compute(++seed, drawn, drawn.model, kernels, course), verdict);
  check_broken(++seed, drawn, kernels, verdict);
}

std::string described(const Drawn& drawn) {
  const Model& m = drawn.model;
  char text[200];
  std::snprintf(text, sizeof text,
                "%d layers, hidden %d, heads %d of %d x %d, inner %d, formats %d%d%d%d%d, codec %d, "
                "window %d, sinks %d, blocks of %d", m.n_layers, m.hidden, m.n_heads, m.n_kv_heads,
                m.head_dim, m.intermediate, m.layers[0].qkv.format, m.layers[0].output.format,
                m.layers[0].gate_up.format, m.layers[0].down.format, m.head.format, m.codec,
                int(m.layers[0].window), int(m.layers[0].sinks), drawn.block_tokens);
  return text;
}

}  // namespace

int main(int n_arguments, char** arguments) {
  bool plant = false;
  std::vector<uint64_t> numbers;
  for (int i = 1; i < n_arguments; ++i)
    if (!std::strcmp(arguments[i], "--plant")) plant = true;
    else numbers.push_back(std::strtoull(arguments[i], nullptr, 10));
  const uint64_t seed = numbers.size() > 0 ? numbers[0] : 0;
  const int models = numbers.size() > 1 ? int(numbers[1]) : 4;

  std::vector<std::unique_ptr<Drawn>> drawn;
  for (int i = 0; i < models; ++i) {
    drawn.push_back(draw(seed, i));
  }
  int failures = 0;
  for (int isa = 0; isa < kIsaCount; ++isa) {
    if (*against(isa)) {
      std::printf("%s: not here, %s\n", isa_name(isa), against(isa));
      continue;
    }
    Verdict verdict;
    for (int i = 0; i < models; ++i) {
      verdict.wrong.clear();
      check(seed + uint64_t(100 * i), *drawn[i], kernels_of(isa), plant, verdict);
      if (verdict.wrong.empty()) continue;
      ++failures;
      std::fprintf(stderr, "%s, model %d: %s (%s)\n", isa_name(isa), i, verdict.wrong.c_str(),
                   described(*drawn[i]).c_str());
    }
    std::printf("%s: %d models, %lld rows computed alike, off by %.4f, at most %.4f\n", isa_name(isa),
                models, static_cast<long long>(verdict.rows), verdict.worst, verdict.worst_each);
    std::fflush(stdout);
  }
  return failures != 0;
}
