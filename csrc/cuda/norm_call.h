// What the CUDA launchers of normalisation, forward and backward, share.
#pragma once

#include <tuple>

#include "../kernels/norm_act.cuh"
#include "../norm_act_shape.h"
#include "stream.h"

namespace revgrad {

// Calls f with a number of x's type.
template <class F>
void with_number(const Tensor& x, F f) {
  switch (dtype_of(x)) {
    case DType::f64: return f(double{});
    case DType::f32: return f(float{});
    case DType::bf16: return f(BFloat16{});
    case DType::f16: return f(Half{});
  }
}

template <class T>
NormCall<Acc<T>> norm_call(const Norm& n, const MaybeTensor& weight, const MaybeTensor& bias,
                           const Tensor& mean, const Tensor& rstd, double eps, int64_t activation,
                           double slope, bool given) {
  using A = Acc<T>;
  return {n,
          static_cast<const A*>(data_or_null(weight)),
          static_cast<const A*>(data_or_null(bias)),
          static_cast<A*>(mean.mutable_data_ptr()),
          static_cast<A*>(rstd.mutable_data_ptr()),
          static_cast<A>(eps),
          static_cast<A>(slope),
          static_cast<Activation>(activation),
          given};
}

}  // namespace revgrad
