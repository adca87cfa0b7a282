// From tensors to the geometry of a normalisation; shared by the CPU and the CUDA launcher.
#pragma once

#include <optional>

#include "kernels/norm_act.h"
#include "stable.h"

namespace revgrad {

using MaybeTensor = std::optional<Tensor>;

inline const void* data_or_null(const MaybeTensor& t) {
  return t.has_value() ? t->const_data_ptr() : nullptr;
}

// Whether the axes, walked from the last of `order` to its first, lie densely in memory.
inline bool is_dense(const Tensor& t, const std::vector<int64_t>& order) {
  int64_t expected = 1;
  for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
    if (t.size(*axis) == 1) continue;
    if (t.stride(*axis) != expected) return false;
    expected *= t.size(*axis);
  }
  return true;
}

inline std::vector<int64_t> axes_of(const Tensor& t, bool channels_last) {
  std::vector<int64_t> order = {0};
  if (!channels_last) order.push_back(1);
  for (int64_t axis = 2; axis < t.dim(); ++axis) order.push_back(axis);
  if (channels_last) order.push_back(1);
  return order;
}

// One-pixel images count as channels-last: their channels are neighbours in memory.
inline Norm norm_of(const Tensor& x, int64_t groups, bool over_batch) {
  STD_TORCH_CHECK(x.dim() >= 2, "revgrad: x must be (N, C, ...)");
  Norm n{};
  n.batch = x.size(0);
  n.channels = x.size(1);
  n.pixels = 1;
  for (int64_t axis = 2; axis < x.dim(); ++axis) n.pixels *= x.size(axis);
  n.groups = groups;
  n.over_batch = over_batch;
  STD_TORCH_CHECK(groups >= 1 && n.channels >= 1 && n.channels % groups == 0,
                  "revgrad: groups must divide the channels");
  STD_TORCH_CHECK(!over_batch || groups == n.channels,
                  "revgrad: statistics over the batch are those of one channel each");
  const bool contiguous = x.numel() == 0 || is_dense(x, axes_of(x, false));
  n.channels_last = n.pixels == 1 || !contiguous;
  STD_TORCH_CHECK(contiguous || is_dense(x, axes_of(x, true)),
                  "revgrad: x must be dense, contiguous or channels-last");
  return n;
}

// An image of the same shape and layout as x, of whatever type.
inline void check_same_layout(const Tensor& x, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(other.dim() == x.dim() && other.device() == x.device(), "revgrad: ", name,
                  " must have the shape and device of x");
  for (int64_t axis = 0; axis < x.dim(); ++axis)
    STD_TORCH_CHECK(other.size(axis) == x.size(axis) &&
                        (x.size(axis) == 1 || x.numel() == 0 || other.stride(axis) == x.stride(axis)),
                    "revgrad: ", name, " must have the shape and strides of x");
}

// weight, bias (count = channels), mean, rstd (count = statistics): in the accumulator's type.
inline void check_vector(const Tensor& x, const MaybeTensor& t, int64_t count, const char* name) {
  if (!t.has_value()) return;
  STD_TORCH_CHECK(t->scalar_type() == accumulator_of(x) && t->device() == x.device() &&
                      t->numel() == count && t->is_contiguous(),
                  "revgrad: ", name, " of the wrong type, device, size or layout");
}

inline Norm checked_norm(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                         const MaybeTensor& mean, const MaybeTensor& rstd, int64_t groups,
                         bool over_batch, int64_t activation) {
  const Norm n = norm_of(x, groups, over_batch);
  check_vector(x, weight, n.channels, "weight");
  check_vector(x, bias, n.channels, "bias");
  check_vector(x, mean, n.statistics(), "mean");
  check_vector(x, rstd, n.statistics(), "rstd");
  STD_TORCH_CHECK(mean.has_value() == rstd.has_value(), "revgrad: mean and rstd come together");
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::gelu),
                  "revgrad: no such activation: ", activation);
  return n;
}

// Where statistics go: new memory, so that no result is an input under another name.
inline Tensor statistics_like(const Tensor& x, const Norm& n, const MaybeTensor& given) {
  if (given.has_value()) return torch::stable::clone(*given);
  return empty_on(x, {n.over_batch ? 1 : n.batch, n.groups}, accumulator_of(x));
}

}  // namespace revgrad
