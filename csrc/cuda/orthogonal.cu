// CUDA launchers of the block transform.
#include <torch/csrc/stable/library.h>

#include "../kernels/orthogonal.cuh"
#include "../orthogonal_shape.h"
#include "stream.h"

namespace revgrad {
namespace {

template <class T, bool Up>
void rotate_as(const Rotation& r, cudaStream_t stream) {
  launch_rotate<T, Up>(static_cast<const T*>(r.from.const_data_ptr()),
                       static_cast<const Acc<T>*>(r.q.const_data_ptr()),
                       static_cast<T*>(r.to.mutable_data_ptr()), r.blocks, stream);
}

template <bool Up>
Tensor rotate(const Tensor& image, const Tensor& matrix, std::vector<int64_t> stride,
              bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(image.get_device_index());
  Rotation r = rotation(image, matrix, stride, channels_last, Up);
  const cudaStream_t stream = current_stream(image);
  switch (dtype_of(image)) {
    case DType::f64: rotate_as<double, Up>(r, stream); break;
    case DType::f32: rotate_as<float, Up>(r, stream); break;
    case DType::bf16: rotate_as<BFloat16, Up>(r, stream); break;
    case DType::f16: rotate_as<Half, Up>(r, stream); break;
  }
  check_launch();
  return r.to;
}

template <class T>
void weight_as(const Reduction& r, const Tensor& partial, const Tensor& grad,
               cudaStream_t stream) {
  launch_weight<T>(static_cast<const T*>(r.x.const_data_ptr()),
                   static_cast<const T*>(r.y.const_data_ptr()),
                   static_cast<Acc<T>*>(partial.mutable_data_ptr()),
                   static_cast<Acc<T>*>(grad.mutable_data_ptr()), r.blocks, stream);
}

Tensor weight(const Tensor& x, const Tensor& y, std::vector<int64_t> stride, bool shared,
              bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Reduction r = reduction(x, y, stride, shared, channels_last);
  const ScalarType type = accumulator_of(x);
  const int64_t pairs = static_cast<int64_t>(r.blocks.size()) * r.blocks.size();
  Tensor grad = empty_on(x, weight_shape(r.blocks), type);
  if (r.blocks.blocks() == 0) return torch::stable::zero_(grad);
  const Tensor partial = empty_on(x, {weight_partials(r.blocks) * pairs}, type);
  const cudaStream_t stream = current_stream(x);
  switch (dtype_of(x)) {
    case DType::f64: weight_as<double>(r, partial, grad, stream); break;
    case DType::f32: weight_as<float>(r, partial, grad, stream); break;
    case DType::bf16: weight_as<BFloat16>(r, partial, grad, stream); break;
    case DType::f16: weight_as<Half>(r, partial, grad, stream); break;
  }
  check_launch();
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CUDA, m) {
  m.impl("orthogonal_down", TORCH_BOX(&rotate<false>));
  m.impl("orthogonal_up", TORCH_BOX(&rotate<true>));
  m.impl("orthogonal_weight", TORCH_BOX(&weight));
}

}  // namespace revgrad
