// CPU launchers of the small matrix exponential.
#include <torch/csrc/stable/library.h>

#include "../expm_skew_shape.h"
#include "expm_skew_loops.h"
#include "isa.h"

namespace revgrad {
namespace {

const ExpmSkewLoops& loops() {
  static const ExpmSkewLoops& table = REVGRAD_PICK(ExpmSkewLoops, expm_skew_loops);
  return table;
}

// Matrices a thread takes at least: some ten microseconds of work.
int64_t grain(int n) { return 1 + 65536 / (static_cast<int64_t>(n) * n * n + 64); }

SkewResult forward(const Tensor& theta, bool save) {
  const SkewMatrices m = skew_matrices(theta);
  SkewResult out = skew_result(m, save);
  if (m.n == 0) return out;
  const DType dtype = dtype_of(theta);
  const void* from = m.theta.const_data_ptr();
  void* to = std::get<0>(out).mutable_data_ptr();
  void* tape = save ? std::get<1>(out).mutable_data_ptr() : nullptr;
  int32_t* plan = static_cast<int32_t*>(std::get<2>(out).mutable_data_ptr());
  torch::stable::parallel_for(0, m.batch, grain(m.n), [&](int64_t begin, int64_t end) {
    loops().forward(dtype, m.n, from, to, tape, plan, begin, end);
  });
  return out;
}

Tensor backward(const Tensor& grad, const Tensor& theta, const Tensor& result, const Tensor& tape,
                const Tensor& plan) {
  const SkewMatrices m = skew_matrices(theta);
  check_tape(m, grad, result, tape, plan);
  const Tensor g = torch::stable::contiguous(grad), e = torch::stable::contiguous(result);
  Tensor gradient = empty_on(theta, {m.batch, m.n, m.n}, theta.scalar_type());
  if (m.n == 0) return gradient;
  const DType dtype = dtype_of(theta);
  torch::stable::parallel_for(0, m.batch, grain(m.n), [&](int64_t begin, int64_t end) {
    loops().backward(dtype, m.n, g.const_data_ptr(), m.theta.const_data_ptr(), e.const_data_ptr(),
                     tape.const_data_ptr(), static_cast<const int32_t*>(plan.const_data_ptr()),
                     gradient.mutable_data_ptr(), begin, end);
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CPU, m) {
  m.impl("expm_skew", TORCH_BOX(&forward));
  m.impl("expm_skew_backward", TORCH_BOX(&backward));
}

}  // namespace revgrad
