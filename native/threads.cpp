#include "threads.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

namespace kvasir {
namespace {

constexpr int kSpins = 4000;  // some tens of microseconds, longer than threads of a phase differ

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr,
          nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr,
          nullptr, 0);
}

}  // namespace

Team::Team(int size) : size_(size < 1 ? 1 : size) {
  try {
    for (int thread = 1; thread < size_; ++thread)
      threads_.emplace_back([this, thread] { serve(thread); });
  } catch (...) {
    end();  // those that did start; a thread that nobody joins would end the process
    throw;
  }
}

Team::~Team() { end(); }

void Team::end() {
  ending_ = true;
  steps_.fetch_add(1);
  wake_all(steps_);
  for (auto& thread : threads_) thread.join();
}

void Team::run(const std::function<void(int)>& work) {
  work_ = &work;
  next_ = 0;
  steps_.fetch_add(1);
  if (size_ > 1) wake_all(steps_);
  work(0);
  barrier();  // nobody uses `work` any more
}

void Team::serve(int thread) {
  uint32_t seen = 0;
  for (;;) {
    while (steps_.load() == seen) sleep_while(steps_, seen);
    ++seen;
    if (ending_) return;
    (*work_)(thread);
    barrier();
  }
}

void Team::barrier() {
  if (size_ == 1) {
    next_.store(0, std::memory_order_relaxed);
    return;
  }
  const uint32_t mine = passed_.load();
  if (arrived_.fetch_add(1) + 1 == size_) {
    arrived_.store(0);
    next_.store(0);
    passed_.fetch_add(1);
    if (sleepers_.load()) wake_all(passed_);
    return;
  }
  for (int spin = 0; spin < kSpins; ++spin) {
    if (passed_.load(std::memory_order_acquire) != mine) return;
    __builtin_ia32_pause();
  }
  sleepers_.fetch_add(1);
  while (passed_.load() == mine) sleep_while(passed_, mine);
  sleepers_.fetch_sub(1);
}

}  // namespace kvasir
