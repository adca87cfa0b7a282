// CPU launchers of the block transform in fixed point.
#include <torch/csrc/stable/library.h>

#include "../orthogonal_shape.h"
#include "isa.h"
#include "orthogonal_exact_loops.h"
#include "orthogonal_loops.h"

namespace revgrad {
namespace {

constexpr int64_t kGrain = 4096;  // numbers a thread takes at least

Tensor lift(const Tensor& image, const Tensor& factors, const std::vector<int64_t>& stride,
            bool channels_last, bool up) {
  static const OrthogonalExactLoops& loops =
      REVGRAD_PICK(OrthogonalExactLoops, orthogonal_exact_loops);
  Rotation r = lifting(image, factors, stride, channels_last, up);
  const Blocks& b = r.blocks;
  if (b.blocks() == 0) return r.to;
  // Neighbouring lanes, if they are channels, read neighbouring factors.
  const Tensor f =
      channels_last ? torch::stable::contiguous(torch::stable::transpose(r.q, 0, 1)) : r.q;
  const int32_t* from = static_cast<const int32_t*>(r.from.const_data_ptr());
  const double* numbers = static_cast<const double*>(f.const_data_ptr());
  int32_t* to = static_cast<int32_t*>(r.to.mutable_data_ptr());
  const int64_t lines = lines_of(b), length = b.blocks() * b.size() / lines;
  torch::stable::parallel_for(0, lines, kGrain / length + 1, [&](int64_t begin, int64_t end) {
    loops.lift(up, b, from, numbers, to, begin, end);
  });
  return r.to;
}

Tensor down(const Tensor& x, const Tensor& factors, std::vector<int64_t> stride,
            bool channels_last) {
  return lift(x, factors, stride, channels_last, false);
}

Tensor up(const Tensor& y, const Tensor& factors, std::vector<int64_t> stride,
          bool channels_last) {
  return lift(y, factors, stride, channels_last, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CPU, m) {
  m.impl("orthogonal_down_exact", TORCH_BOX(&down));
  m.impl("orthogonal_up_exact", TORCH_BOX(&up));
}

}  // namespace revgrad
