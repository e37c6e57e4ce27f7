// A model's program: every layer's phases over the rows of a step, carried out by a team.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace kvasir {

// Memory that grows and is reused from step to step, aligned to a cache line.
class Buffer {
 public:
  void* at_least(size_t n_bytes);
  size_t bytes() const { return size_; }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

class Program {
 public:
  // `model` and what it points to must outlive the program.
  Program(const Model& model, const Kernels& kernels, int threads);
  void run(const Step& step);
  size_t scratch_bytes() const;

 private:
  // Rows of a step that pass through a layer's phases together.
  struct Part;
  struct Unit;

  void compute(const Step& step, std::vector<Part>& parts, int thread);
  void embed(const Step& step);
  void layer(const Step& step, const Part& part, int index, int thread);
  void attend(const Step& step, const Part& part, int index, int thread);
  void project(const Linear& linear, const Rows& rows, int64_t n, Then then, float* wide,
               bf16* narrow, int64_t stride);
  void normalise(const float* hidden, const float* weight, const Linear& into, const Rows& rows,
                 int64_t n, const int64_t* from);
  void quantise(const Linear& into, const Rows& rows, int64_t n);
  void logits(const Step& step);
  std::vector<Part> parts_of(const Step& step) const;
  void plan_attention(const Step& step, Part& part) const;
  void make_room(const Step& step, const std::vector<Part>& parts);
  Rows rows_at(Buffer& buffer, int64_t n, int64_t width);

  const Model model_;
  const Kernels& kernels_;
  Team team_;
  const int64_t hidden_, queries_, qkv_, inner_;  // widths, padded
  Buffer norms_, attended_, activated_, wide_, heads_, angles_, slots_, partial_, scratch_;
  Rows norm_rows_{}, attended_rows_{}, activated_rows_{};
  int64_t scratch_stride_ = 0;
};

}  // namespace kvasir
