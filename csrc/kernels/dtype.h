// Number types of tensors, and the types that kernels compute with.
#pragma once

#include <cstring>
#include <type_traits>

#include "platform.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace revgrad {
inline namespace REVGRAD_ISA {

RG_FN uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

RG_FN float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// bfloat16 is the upper half of a float: this half rounded, ties to even, above bits that are not
// to be read.
RG_FN uint32_t rounded_upper_half(float value) {
  const uint32_t wide = bits_of(value), even = wide + 0x7fffu + (wide >> 16 & 1u);
  return value != value ? 0x7fc00000u : even;
}

struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  RG_FN explicit BFloat16(float value)
      : bits(static_cast<uint16_t>(rounded_upper_half(value) >> 16)) {}
  RG_FN explicit operator float() const { return float_of(static_cast<uint32_t>(bits) << 16); }
};

// IEEE half precision. On the host in integer arithmetic without branches, which vectorises.
struct Half {
  uint16_t bits;

  Half() = default;
#if defined(__CUDA_ARCH__)
  RG_FN explicit Half(float value) : bits(__half_as_ushort(__float2half_rn(value))) {}
  RG_FN explicit operator float() const { return __half2float(__ushort_as_half(bits)); }
#else
  RG_FN explicit Half(float value) {
    const uint32_t wide = bits_of(value), size = wide & 0x7fffffffu;
    const uint32_t normal = ((size + 0xfffu + (size >> 13 & 1u)) >> 13) - (112u << 10);
    // Adding 1/2 rounds to a multiple of 2^-24, the spacing of the subnormal halves.
    const uint32_t small = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
    const uint32_t large = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t rest = size < 0x38800000u ? small : normal;
    bits = static_cast<uint16_t>((wide >> 16 & 0x8000u) | (size >= 0x477ff000u ? large : rest));
  }
  RG_FN explicit operator float() const {
    const uint32_t size = (bits & 0x7fffu) << 13;
    // Read as a float the exponent is 112 too small, for subnormal halves too.
    const uint32_t scaled = bits_of(float_of(size) * 0x1p112f);
    const uint32_t special = size >= 0x0f800000u ? 0x7f800000u : 0u;
    return float_of(scaled | special | (bits & 0x8000u) << 16);
  }
#endif
};

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulator<T>::type;

// Stores a number rounded to the type. g++ vectorises no loop that assigns a struct as a whole.
template <class T, class A>
RG_FN void put(A value, T& to) {
  if constexpr (std::is_same_v<T, BFloat16> || std::is_same_v<T, Half>)
    to.bits = T(static_cast<float>(value)).bits;
  else
    to = static_cast<T>(value);
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
