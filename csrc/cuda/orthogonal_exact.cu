// CUDA launchers of the block transform in fixed point.
#include <torch/csrc/stable/library.h>

#include "../kernels/orthogonal_exact.cuh"
#include "../orthogonal_shape.h"
#include "stream.h"

namespace revgrad {
namespace {

template <bool Up>
Tensor lift(const Tensor& image, const Tensor& factors, std::vector<int64_t> stride,
            bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(image.get_device_index());
  Rotation r = lifting(image, factors, stride, channels_last, Up);
  launch_lift<Up>(static_cast<const int32_t*>(r.from.const_data_ptr()),
                  static_cast<const double*>(r.q.const_data_ptr()),
                  static_cast<int32_t*>(r.to.mutable_data_ptr()), r.blocks,
                  current_stream(image));
  check_launch();
  return r.to;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CUDA, m) {
  m.impl("orthogonal_down_exact", TORCH_BOX(&lift<false>));
  m.impl("orthogonal_up_exact", TORCH_BOX(&lift<true>));
}

}  // namespace revgrad
