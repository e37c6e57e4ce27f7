#include "limits.h"

#include <emmintrin.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "threads.h"

namespace kvasir {
namespace {

constexpr int64_t kLargePage = 2 << 20;
constexpr int64_t kStride = 128;  // bytes of one turn of the loop
constexpr int kPasses = 3;
constexpr double kPeakSeconds = 0.2;

struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};

double seconds_now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Something that depends on all `bytes` from `from` on.
int read_all(const uint8_t* from, int64_t bytes) {
  __m128i sums[4] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128(),
                     _mm_setzero_si128()};
  for (int64_t at = 0; at < bytes; at += kStride) {
    const __m128i* p = (const __m128i*)(from + at);
    __builtin_prefetch(from + at + kStreamAhead);
    __builtin_prefetch(from + at + kStreamAhead + 64);
    for (int i = 0; i < 8; ++i) sums[i % 4] = _mm_xor_si128(sums[i % 4], _mm_load_si128(p + i));
  }
  return _mm_cvtsi128_si32(
      _mm_xor_si128(_mm_xor_si128(sums[0], sums[1]), _mm_xor_si128(sums[2], sums[3])));
}

}  // namespace

double read_rate(int threads, int64_t bytes) {
  Team team(threads);
  const int64_t part = padded((bytes + team.size() - 1) / team.size(), kLargePage);
  const int64_t all = part * team.size();
  std::unique_ptr<uint8_t, Free> memory((uint8_t*)std::aligned_alloc(kLargePage, all));
  if (!memory) throw std::bad_alloc();
  madvise(memory.get(), all, MADV_HUGEPAGE);
  team.run([&](int thread) { std::memset(memory.get() + thread * part, thread + 1, part); });
  std::vector<int> results(16 * team.size());
  const double began = seconds_now();
  team.run([&](int thread) {
    for (int pass = 0; pass < kPasses; ++pass)
      results[16 * thread] += read_all(memory.get() + thread * part, part);
  });
  const double took = seconds_now() - began;
  volatile int used = 0;
  for (int result : results) used = used + result;
  return kPasses * double(all) / took;
}

double peak_rate(const Kernels& kernels, Peak kind, int threads) {
  Team team(threads);
  std::vector<double> rates(8 * team.size());
  team.run([&](int thread) { rates[8 * thread] = kernels.peak(kind, kPeakSeconds); });
  double all = 0;
  for (double rate : rates) all += rate;
  return all;
}

}  // namespace kvasir
