// CUDA launchers of the small matrix exponential.
#include <torch/csrc/stable/library.h>

#include "../expm_skew_shape.h"
#include "../kernels/expm_skew.cuh"
#include "stream.h"

namespace revgrad {
namespace {

Tensor scratch_for(const SkewMatrices& m) {
  return empty_on(m.theta, {m.batch, kSlots, m.n, m.n}, m.theta.scalar_type());
}

template <class A>
const A* read(const Tensor& t) {
  return static_cast<const A*>(t.const_data_ptr());
}

template <class A>
A* write(const Tensor& t) {
  return static_cast<A*>(t.mutable_data_ptr());
}

template <class A>
void forward_as(const SkewMatrices& m, const SkewResult& out, bool save, cudaStream_t stream) {
  const Tensor scratch = scratch_for(m);
  launch_expm_skew<A>(read<A>(m.theta), write<A>(std::get<0>(out)),
                      save ? write<A>(std::get<1>(out)) : nullptr,
                      write<int32_t>(std::get<2>(out)), write<A>(scratch), m.batch, m.n, stream);
}

SkewResult forward(const Tensor& theta, bool save) {
  const torch::stable::accelerator::DeviceGuard guard(theta.get_device_index());
  const SkewMatrices m = skew_matrices(theta);
  const SkewResult out = skew_result(m, save);
  const cudaStream_t stream = current_stream(theta);
  if (dtype_of(theta) == DType::f64)
    forward_as<double>(m, out, save, stream);
  else
    forward_as<float>(m, out, save, stream);
  check_launch();
  return out;
}

template <class A>
void backward_as(const SkewMatrices& m, const Tensor& grad, const Tensor& result,
                 const Tensor& tape, const Tensor& plan, const Tensor& gradient,
                 cudaStream_t stream) {
  const Tensor scratch = scratch_for(m);
  launch_expm_skew_backward<A>(read<A>(grad), read<A>(m.theta), read<A>(result), read<A>(tape),
                               read<int32_t>(plan), write<A>(gradient), write<A>(scratch), m.batch,
                               m.n, stream);
}

Tensor backward(const Tensor& grad, const Tensor& theta, const Tensor& result, const Tensor& tape,
                const Tensor& plan) {
  const torch::stable::accelerator::DeviceGuard guard(theta.get_device_index());
  const SkewMatrices m = skew_matrices(theta);
  check_tape(m, grad, result, tape, plan);
  const Tensor g = torch::stable::contiguous(grad), e = torch::stable::contiguous(result);
  const Tensor gradient = empty_on(theta, {m.batch, m.n, m.n}, theta.scalar_type());
  const cudaStream_t stream = current_stream(theta);
  if (dtype_of(theta) == DType::f64)
    backward_as<double>(m, g, e, tape, plan, gradient, stream);
  else
    backward_as<float>(m, g, e, tape, plan, gradient, stream);
  check_launch();
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CUDA, m) {
  m.impl("expm_skew", TORCH_BOX(&forward));
  m.impl("expm_skew_backward", TORCH_BOX(&backward));
}

}  // namespace revgrad
