// CUDA launcher of the derivative of normalisation with an activation.
#include <torch/csrc/stable/library.h>

#include "../kernels/norm_act_backward.cuh"
#include "norm_call.h"

namespace revgrad {
namespace {

struct Gradients {
  Tensor x, weight, bias;
};

template <class T, class D>
void launch_as(const Tensor& dy, const Tensor& x, const NormCall<Acc<T>>& call,
               const Gradients& to) {
  using A = Acc<T>;
  const int64_t pairs = grad_scratch(call.norm, kWide<T>, call.given);
  const Tensor scratch = empty_on(x, {2 * pairs}, accumulator_of(x));
  launch_norm_act_backward<T, D>(
      static_cast<const D*>(dy.const_data_ptr()), static_cast<const T*>(x.const_data_ptr()),
      static_cast<T*>(to.x.mutable_data_ptr()), call,
      static_cast<A*>(to.weight.mutable_data_ptr()), static_cast<A*>(to.bias.mutable_data_ptr()),
      static_cast<GradSums<A>*>(scratch.mutable_data_ptr()), current_stream(x));
  check_launch();
}

// dy in x's type or in the one that sums are formed in.
Tensor suited_gradient(const Tensor& dy, const Tensor& x) {
  const ScalarType type = dy.scalar_type();
  if (type == x.scalar_type() || type == accumulator_of(x)) return dy;
  return torch::stable::to(dy, accumulator_of(x));
}

std::tuple<Tensor, Tensor, Tensor> norm_act_backward(
    const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
    const MaybeTensor& weight, const MaybeTensor& bias, int64_t groups, bool over_batch,
    bool constant_stats, int64_t activation, double slope) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Norm n = checked_norm(x, weight, bias, mean, rstd, groups, over_batch, activation);
  check_same_layout(x, dy, "dy");
  const Tensor gradient = suited_gradient(dy, x);
  check_same_layout(x, gradient, "dy");
  const ScalarType type = accumulator_of(x);
  const Gradients to{torch::stable::empty_like(x), empty_on(x, {n.channels}, type),
                     empty_on(x, {n.channels}, type)};
  with_number(x, [&](auto tag) {
    using T = decltype(tag);
    const auto call =
        norm_call<T>(n, weight, bias, mean, rstd, 0, activation, slope, constant_stats);
    if (gradient.scalar_type() == x.scalar_type())
      launch_as<T, T>(gradient, x, call, to);
    else
      launch_as<T, Acc<T>>(gradient, x, call, to);
  });
  return {to.x, to.weight, to.bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CUDA, m) {
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward));
}

}  // namespace revgrad
