// What this machine can do at most: how fast memory is read, how fast numbers are multiplied.
#pragma once
#include "kernels.h"

namespace kvasir {

// Bytes per second that `threads` threads read together of a buffer of `bytes`, in order of
// addresses. Throws std::bad_alloc where memory is short.
double read_rate(int threads, int64_t bytes);

// Operations per second (a multiply-accumulate is two) of `threads` threads together, at most.
double peak_rate(const Kernels& kernels, Peak kind, int threads);

}  // namespace kvasir
