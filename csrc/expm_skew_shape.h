// Checks and result tensors of the matrix exponential; shared by the CPU and the CUDA launcher.
#pragma once

#include <tuple>

#include "kernels/expm_skew.h"
#include "stable.h"

namespace revgrad {

struct SkewMatrices {
  Tensor theta;
  int64_t batch;
  int n;
};

inline SkewMatrices skew_matrices(const Tensor& theta) {
  STD_TORCH_CHECK(theta.dim() == 3 && theta.size(1) == theta.size(2) &&
                      theta.size(1) <= kMaxMatrix,
                  "revgrad: expected (batch, n, n) with n up to ", kMaxMatrix);
  STD_TORCH_CHECK(theta.scalar_type() == accumulator_of(theta),
                  "revgrad: expected float32 or float64");
  return {torch::stable::contiguous(theta), theta.size(0), static_cast<int>(theta.size(1))};
}

// The exponential, what its backward pass reuses, and for each matrix rung and halvings.
using SkewResult = std::tuple<Tensor, Tensor, Tensor>;

inline SkewResult skew_result(const SkewMatrices& m, bool save) {
  const ScalarType type = m.theta.scalar_type();
  return {empty_on(m.theta, {m.batch, m.n, m.n}, type),
          empty_on(m.theta, {save ? m.batch : 0, kTape, m.n, m.n}, type),
          empty_on(m.theta, {m.batch, 2}, ScalarType::Int)};
}

inline void check_tape(const SkewMatrices& m, const Tensor& grad, const Tensor& result,
                       const Tensor& tape, const Tensor& plan) {
  check_alike(m.theta, grad);
  check_alike(m.theta, result);
  check_alike(m.theta, tape);
  const int64_t count = m.batch * m.n * m.n;
  STD_TORCH_CHECK(grad.numel() == count && result.numel() == count &&
                      tape.numel() == kTape * count && plan.numel() == 2 * m.batch &&
                      plan.scalar_type() == ScalarType::Int && tape.is_contiguous() &&
                      plan.is_contiguous() && plan.device() == tape.device(),
                  "revgrad: a tape that does not belong to these matrices");
}

}  // namespace revgrad
