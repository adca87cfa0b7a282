// The few words of LibTorch's stable ABI that the launchers use.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "tensor_types.h"

namespace revgrad {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return DType::f64;
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, "revgrad: expected float64, float32, bfloat16 or float16");
  }
  return DType::f32;
}

inline int64_t bytes_of(const Tensor& t) {  // one number
  const DType dtype = dtype_of(t);
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// What kernels of this type of tensor compute with, and expect matrices in.
inline ScalarType accumulator_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_on(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype,
                       MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(size, dtype, std::nullopt, like.device(), std::nullopt, format);
}

inline void check_alike(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.device() == b.device(),
                  "revgrad: tensors of different type or device");
}

}  // namespace revgrad
