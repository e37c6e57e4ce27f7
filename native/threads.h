// A team of threads for the phases of a step. Between steps its threads sleep; at a barrier they
// spin for some microseconds and then sleep, so that a server beside them gets the cores.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace kvasir {

class Team {
 public:
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  // Run work(thread) on every thread, the caller's among them as thread 0; returns when all are done.
  void run(const std::function<void(int)>& work);

  // Inside of run, by every thread in the same order:

  // Share [0, n) in pieces of at most `most`; whoever is free takes the next. Ends with a barrier.
  template <typename Each>
  void share(int64_t n, int64_t most, const Each& each) {
    for (;;) {
      int64_t first = next_.load(std::memory_order_relaxed), count;
      do {
        if (first >= n) {
          barrier();
          return;
        }
        // the less is left, the smaller the pieces: threads end together
        count = (n - first) / (2 * size_);
        count = count < 1 ? 1 : count > most ? most : count;
      } while (!next_.compare_exchange_weak(first, first + count, std::memory_order_relaxed));
      each(first, first + count);
    }
  }
  void barrier();

 private:
  void serve(int thread);
  void end();

  const int size_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* work_ = nullptr;
  alignas(64) std::atomic<uint32_t> steps_{0};  // grows with every run; threads sleep on it
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> passed_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> ending_{false};
};

}  // namespace kvasir
