// CPU launchers of the block transform.
#include <torch/csrc/stable/library.h>

#include "../orthogonal_shape.h"
#include "isa.h"
#include "orthogonal_loops.h"

namespace revgrad {
namespace {

const OrthogonalLoops& loops() {
  static const OrthogonalLoops& table = REVGRAD_PICK(OrthogonalLoops, orthogonal_loops);
  return table;
}

constexpr int64_t kGrain = 16384;  // numbers a thread takes at least

Tensor rotate(const Tensor& image, const Tensor& matrix, const std::vector<int64_t>& stride,
              bool channels_last, bool up) {
  Rotation r = rotation(image, matrix, stride, channels_last, up);
  const Blocks& b = r.blocks;
  if (b.blocks() == 0) return r.to;
  const DType dtype = dtype_of(image);
  // Or floats; from the beginning of a cache line on, so that no vector lies in two.
  std::vector<double> matrices(static_cast<size_t>(arranged(b)) + 8);
  double* m = matrices.data();
  while (reinterpret_cast<uintptr_t>(m) % 64 != 0) ++m;
  loops().arrange(dtype, up, b, r.q.const_data_ptr(), m);
  const void* from = r.from.const_data_ptr();
  void* to = r.to.mutable_data_ptr();
  const int64_t lines = lines_of(b), length = b.blocks() * b.size() / lines;
  torch::stable::parallel_for(0, lines, kGrain / length + 1, [&](int64_t begin, int64_t end) {
    loops().rotate(dtype, up, b, from, m, to, begin, end);
  });
  return r.to;
}

Tensor down(const Tensor& x, const Tensor& q, std::vector<int64_t> stride, bool channels_last) {
  return rotate(x, q, stride, channels_last, false);
}

Tensor up(const Tensor& y, const Tensor& q, std::vector<int64_t> stride, bool channels_last) {
  return rotate(y, q, stride, channels_last, true);
}

// Lines go to a number of sums that depends on the shape alone, so the result does not depend on
// how many threads there are.
struct Parts {
  int64_t groups, lines, parts, sums;  // groups of lines, each cut into parts, each with its sums

  Parts(const Blocks& b) {
    groups = b.lanes_are_channels ? 1 : b.channels;
    lines = lines_of(b) / groups;
    sums = static_cast<int64_t>(b.size()) * b.size() * (b.lanes_are_channels ? b.channels : 1);
    const int64_t wanted = 32 / groups + 1;
    parts = lines < wanted ? lines : wanted;
  }
};

// Adds up the parts: part p of group g at sum[(g * parts + p) * sums].
template <class A>
void collect(const Blocks& b, const Parts& p, const std::vector<double>& sum, A* grad) {
  const int64_t pairs = static_cast<int64_t>(b.size()) * b.size();
  std::vector<double> total(static_cast<size_t>(b.matrices() * pairs));
  for (int64_t c = 0; c < b.channels; ++c)
    for (int64_t i = 0; i < pairs; ++i)
      for (int64_t part = 0; part < p.parts; ++part) {
        const int64_t at = b.lanes_are_channels ? part * p.sums + i * b.channels + c
                                                : (c * p.parts + part) * p.sums + i;
        total[(b.shared ? 0 : c) * pairs + i] += sum[at];
      }
  for (size_t i = 0; i < total.size(); ++i) grad[i] = static_cast<A>(total[i]);
}

Tensor weight(const Tensor& x, const Tensor& y, std::vector<int64_t> stride, bool shared,
              bool channels_last) {
  const Reduction r = reduction(x, y, stride, shared, channels_last);
  const Blocks& b = r.blocks;
  Tensor grad = empty_on(x, weight_shape(b), accumulator_of(x));
  if (b.blocks() == 0) return torch::stable::zero_(grad);
  const Parts p(b);
  std::vector<double> sum(static_cast<size_t>(p.groups * p.parts * p.sums));
  const DType dtype = dtype_of(x);
  const void *xs = r.x.const_data_ptr(), *ys = r.y.const_data_ptr();
  torch::stable::parallel_for(0, p.groups * p.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / p.parts * p.lines, part = task % p.parts;
      loops().weight(dtype, b, xs, ys, sum.data() + task * p.sums,
                     first + part * p.lines / p.parts, first + (part + 1) * p.lines / p.parts);
    }
  });
  if (dtype == DType::f64)
    collect(b, p, sum, static_cast<double*>(grad.mutable_data_ptr()));
  else
    collect(b, p, sum, static_cast<float*>(grad.mutable_data_ptr()));
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CPU, m) {
  m.impl("orthogonal_down", TORCH_BOX(&down));
  m.impl("orthogonal_up", TORCH_BOX(&up));
  m.impl("orthogonal_weight", TORCH_BOX(&weight));
}

}  // namespace revgrad
