// From tensors to the geometry of the block transform; shared by the CPU and the CUDA launcher.
#pragma once

#include "kernels/orthogonal.h"
#include "kernels/orthogonal_exact.h"
#include "stable.h"

namespace revgrad {

inline MemoryFormat memory_format(const Tensor& t, bool channels_last) {
  if (!channels_last) return MemoryFormat::Contiguous;
  return t.dim() == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
}

// Strides of batch, channel and three spatial axes; missing axes come first and are never walked.
inline void copy_strides(const Tensor& t, int64_t (&into)[5]) {
  const int missing = 5 - static_cast<int>(t.dim());
  into[0] = t.stride(0);
  into[1] = t.stride(1);
  for (int axis = 0; axis < 3; ++axis)
    into[2 + axis] = axis < missing ? 0 : t.stride(2 + axis - missing);
}

// x or y as a kernel takes it: channels side by side, or else the last axis. Other strides are free.
inline Tensor suited(const Tensor& t, bool channels_last) {
  const int64_t lane = channels_last ? 1 : t.dim() - 1;
  if (t.stride(lane) == 1 || t.size(lane) == 1) return t;
  return torch::stable::contiguous(t, memory_format(t, channels_last));
}

// Everything but the strides, from the shape of x (or of y, where `large` is false).
inline Blocks blocks_of(const Tensor& t, bool large, const std::vector<int64_t>& stride,
                        bool shared, bool channels_last) {
  const int64_t axes = t.dim() - 2;
  STD_TORCH_CHECK(axes >= 1 && axes <= 3 && static_cast<int64_t>(stride.size()) == axes,
                  "revgrad: one stride for each of 1 to 3 spatial axes");
  STD_TORCH_CHECK(!channels_last || axes >= 2, "revgrad: channels-last needs 2 or 3 axes");
  Blocks b{};
  b.batch = t.size(0);
  b.lanes_are_channels = channels_last;
  b.shared = shared;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t from = axis - (3 - axes);
    b.side[axis] = from < 0 ? 1 : static_cast<int>(stride[from]);
    STD_TORCH_CHECK(b.side[axis] >= 1, "revgrad: a stride below 1");
    const int64_t pixels = from < 0 ? 1 : t.size(2 + from);
    STD_TORCH_CHECK(!large || pixels % b.side[axis] == 0, "revgrad: an axis not made of blocks");
    b.out[axis] = large ? pixels / b.side[axis] : pixels;
  }
  STD_TORCH_CHECK(b.size() <= kMaxBlock, "revgrad: a block of more than ", kMaxBlock, " pixels");
  STD_TORCH_CHECK(large || t.size(1) % b.size() == 0, "revgrad: channels not made of blocks");
  b.channels = large ? t.size(1) : t.size(1) / b.size();
  return b;
}

// The shape of y (or of x, if `up`).
inline std::vector<int64_t> result_shape(const Blocks& b, int64_t dims, bool up) {
  std::vector<int64_t> shape = {b.batch, up ? b.channels : b.channels * b.size()};
  for (int64_t axis = 5 - dims; axis < 3; ++axis)
    shape.push_back(up ? b.out[axis] * b.side[axis] : b.out[axis]);
  return shape;
}

inline void check_matrix(const Blocks& b, const Tensor& q, const Tensor& image) {
  STD_TORCH_CHECK(q.scalar_type() == accumulator_of(image) && q.device() == image.device(),
                  "revgrad: a matrix of the wrong type or device");
  STD_TORCH_CHECK(q.size(q.dim() - 1) == b.size() && q.size(q.dim() - 2) == b.size() &&
                      (b.shared || q.size(0) == b.channels),
                  "revgrad: a matrix of the wrong shape");
}

// The tensors of one call, as the kernels take them.
struct Rotation {
  Blocks blocks;
  Tensor from, q, to;
};

inline Rotation placed(const Blocks& blocks, const Tensor& image, const Tensor& matrix,
                       bool channels_last, bool up) {
  Rotation r;
  r.blocks = blocks;
  r.from = suited(image, channels_last);
  r.q = torch::stable::contiguous(matrix);
  r.to = empty_on(image, result_shape(r.blocks, image.dim(), up), image.scalar_type(),
                  memory_format(image, channels_last));
  copy_strides(up ? r.to : r.from, r.blocks.x);
  copy_strides(up ? r.from : r.to, r.blocks.y);
  r.blocks.set_offsets();
  return r;
}

inline Rotation rotation(const Tensor& image, const Tensor& matrix,
                         const std::vector<int64_t>& stride, bool channels_last, bool up) {
  const Blocks b = blocks_of(image, !up, stride, matrix.dim() == 2, channels_last);
  check_matrix(b, matrix, image);
  return placed(b, image, matrix, channels_last, up);
}

// In fixed point, with the factors of the matrices (kernels/orthogonal_exact.h) in their place.
inline Rotation lifting(const Tensor& image, const Tensor& factors,
                        const std::vector<int64_t>& stride, bool channels_last, bool up) {
  const Blocks b = blocks_of(image, !up, stride, false, channels_last);
  STD_TORCH_CHECK(image.scalar_type() == ScalarType::Int, "revgrad: expected int32");
  STD_TORCH_CHECK(factors.scalar_type() == ScalarType::Double && factors.device() == image.device(),
                  "revgrad: factors of the wrong type or device");
  STD_TORCH_CHECK(factors.dim() == 2 && factors.size(0) == b.channels &&
                      factors.size(1) == factors_of(b.size()),
                  "revgrad: factors of the wrong shape");
  return placed(b, image, factors, channels_last, up);
}

struct Reduction {
  Blocks blocks;
  Tensor x, y;
};

inline Reduction reduction(const Tensor& x, const Tensor& y, const std::vector<int64_t>& stride,
                           bool shared, bool channels_last) {
  check_alike(x, y);
  Reduction r;
  r.blocks = blocks_of(x, true, stride, shared, channels_last);
  const std::vector<int64_t> shape = result_shape(r.blocks, x.dim(), false);
  STD_TORCH_CHECK(y.dim() == x.dim(), "revgrad: images of different dimension");
  for (int64_t axis = 0; axis < x.dim(); ++axis)
    STD_TORCH_CHECK(y.size(axis) == shape[axis], "revgrad: images that do not fit together");
  r.x = suited(x, channels_last);
  r.y = suited(y, channels_last);
  copy_strides(r.x, r.blocks.x);
  copy_strides(r.y, r.blocks.y);
  r.blocks.set_offsets();
  return r;
}

inline std::vector<int64_t> weight_shape(const Blocks& b) {
  if (b.shared) return {b.size(), b.size()};
  return {b.channels, b.size(), b.size()};
}

}  // namespace revgrad
