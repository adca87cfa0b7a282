// Tiles of numbers in the accumulator's type, between tensors of whatever type and the loops.
#pragma once

#include "../kernels/dtype.h"
#include "../tensor_types.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

constexpr int64_t kTile = 512;

template <class T>
void widen(const T* from, Acc<T>* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Acc<T>>(from[i]);
}

template <class T>
void narrow(const Acc<T>* from, T* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) put(from[i], to[i]);
}

// Calls f with a number of the type.
template <class F>
auto by_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f64: return f(double());
    case DType::bf16: return f(BFloat16());
    case DType::f16: return f(Half());
    default: return f(float());
  }
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
