// CUDA launchers of normalisation with an activation, and of a stream's update.
#include <torch/csrc/stable/library.h>

#include "../kernels/norm_act.cuh"
#include "../norm_act_shape.h"
#include "norm_call.h"

namespace revgrad {
namespace {

template <class T>
void launch_as(const Tensor& x, const NormCall<Acc<T>>& call, const Target<T>& target) {
  const int64_t moments = norm_scratch(call.norm, kWide<T>, call.given);
  const Tensor scratch = empty_on(x, {3 * moments}, accumulator_of(x));
  launch_norm_act<T>(static_cast<const T*>(x.const_data_ptr()), call, target,
                     static_cast<Moments<Acc<T>>*>(scratch.mutable_data_ptr()),
                     current_stream(x));
  check_launch();
}

std::tuple<Tensor, Tensor, Tensor> norm_act(const Tensor& x, const MaybeTensor& weight,
                                            const MaybeTensor& bias, const MaybeTensor& mean,
                                            const MaybeTensor& rstd, int64_t groups,
                                            bool over_batch, double eps, int64_t activation,
                                            double slope) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Norm n = checked_norm(x, weight, bias, mean, rstd, groups, over_batch, activation);
  const Tensor m = statistics_like(x, n, mean), r = statistics_like(x, n, rstd);
  const Tensor y = torch::stable::empty_like(x);
  with_number(x, [&](auto tag) {
    using T = decltype(tag);
    launch_as<T>(x, norm_call<T>(n, weight, bias, m, r, eps, activation, slope, mean.has_value()),
                 written_to(static_cast<T*>(y.mutable_data_ptr())));
  });
  return {y, m, r};
}

Store store_of(const Tensor& x, const Tensor& stream) {
  const ScalarType type = stream.scalar_type();
  if (type == ScalarType::Int) return Store::add_fixed;
  if (type == x.scalar_type()) return Store::add;
  const bool wider = x.scalar_type() != ScalarType::Double;
  if (type == ScalarType::Double && wider) return Store::add_double;
  STD_TORCH_CHECK(type == ScalarType::Float && wider,
                  "revgrad: the stream must be int32, or as wide as x");
  return Store::add_float;
}

// Fills `sum`, which may be the stream, and returns the statistics.
std::tuple<Tensor, Tensor> add(const Tensor& stream, void* sum, const Tensor& x,
                               const MaybeTensor& weight, const MaybeTensor& bias,
                               const MaybeTensor& mean, const MaybeTensor& rstd, int64_t groups,
                               bool over_batch, double eps, int64_t activation, double slope,
                               int64_t sign, int64_t fraction_bits) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Norm n = checked_norm(x, weight, bias, mean, rstd, groups, over_batch, activation);
  check_same_layout(x, stream, "the stream");
  STD_TORCH_CHECK(fraction_bits >= 0 && fraction_bits <= 30, "revgrad: 0 to 30 fraction bits");
  const Tensor m = statistics_like(x, n, mean), r = statistics_like(x, n, rstd);
  const Store store = store_of(x, stream);
  with_number(x, [&](auto tag) {
    using T = decltype(tag);
    launch_as<T>(x, norm_call<T>(n, weight, bias, m, r, eps, activation, slope, mean.has_value()),
                 added_to<T>(stream.const_data_ptr(), sum, store, sign < 0 ? -1 : 1,
                             static_cast<int>(fraction_bits)));
  });
  return {m, r};
}

std::tuple<Tensor, Tensor> norm_act_update_(Tensor stream, const Tensor& x,
                                            const MaybeTensor& weight, const MaybeTensor& bias,
                                            const MaybeTensor& mean, const MaybeTensor& rstd,
                                            int64_t groups, bool over_batch, double eps,
                                            int64_t activation, double slope, int64_t sign,
                                            int64_t fraction_bits) {
  return add(stream, stream.mutable_data_ptr(), x, weight, bias, mean, rstd, groups, over_batch,
             eps, activation, slope, sign, fraction_bits);
}

std::tuple<Tensor, Tensor, Tensor> norm_act_update(
    const Tensor& stream, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean, const MaybeTensor& rstd, int64_t groups, bool over_batch, double eps,
    int64_t activation, double slope, int64_t sign, int64_t fraction_bits) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor sum = torch::stable::empty_like(stream);
  const auto [m, r] = add(stream, sum.mutable_data_ptr(), x, weight, bias, mean, rstd, groups,
                          over_batch, eps, activation, slope, sign, fraction_bits);
  return {sum, m, r};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CUDA, m) {
  m.impl("norm_act", TORCH_BOX(&norm_act));
  m.impl("norm_act_update_", TORCH_BOX(&norm_act_update_));
  m.impl("norm_act_update", TORCH_BOX(&norm_act_update));
}

}  // namespace revgrad
