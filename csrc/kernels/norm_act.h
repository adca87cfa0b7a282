// Normalisation with an activation: what is normalised together, the activations, the grid.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "platform.h"

namespace revgrad {

// revgrad/ops/norm_act.py counts them alike.
enum class Activation { none, relu, leaky_relu, silu, gelu };

// An image as (batch, channels, pixels), dense in memory; `channels_last`: (batch, pixels,
// channels). Statistics are those of (statistics / groups, groups): of the channels of a group of
// one sample, or of one channel over all samples where `over_batch` (then groups = channels).
struct Norm {
  int64_t batch, channels, pixels, groups;
  bool over_batch, channels_last;

  RG_FN int64_t size() const { return batch * channels * pixels; }
  RG_FN int64_t statistics() const { return over_batch ? groups : batch * groups; }
  RG_FN int64_t per_group() const { return channels / groups; }  // channels
  RG_FN int64_t per_statistic() const {                          // numbers
    return (over_batch ? batch : 1) * per_group() * pixels;
  }
  RG_FN int64_t statistic(int64_t sample, int64_t channel) const {
    return (over_batch ? 0 : sample * groups) + channel / per_group();
  }
};

inline namespace REVGRAD_ISA {

// What one channel is normalised with: z = (x - mean) * scale + bias.
template <class A>
struct Affine {
  A mean, scale, bias;
};

template <class A>
RG_FN A multiply_add(A a, A b, A c);

template <>
RG_FN float multiply_add(float a, float b, float c) {
#if defined(__CUDACC__) || defined(__FMA__)
  return fmaf(a, b, c);
#else
  return a * b + c;  // without the instruction, fmaf would be a slow function
#endif
}

template <>
RG_FN double multiply_add(double a, double b, double c) {
#if defined(__CUDACC__) || defined(__FMA__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

template <class A>
RG_FN A normalised(A x, const Affine<A>& a) {
  return multiply_add(x - a.mean, a.scale, a.bias);
}

// e^x for x in [-87, 88], clamped to it. Written out for the host, where it must vectorise: the
// power of two nearest below in size times Taylor's polynomial, off by less than two units.
RG_FN float exponential(float x) {
#if defined(__CUDACC__)
  return expf(x);
#else
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: a sum with it holds an integer in its last bits
  const float shifted = multiply_add(x, 1.44269504f, magic);
  const float n = shifted - magic;
  // ln 2 in two parts, the first short enough to be exact times n.
  const float r = multiply_add(n, 2.12194440e-4f, multiply_add(n, -0.693359375f, x));
  float p = 1.0f / 5040.0f;
  p = multiply_add(p, r, 1.0f / 720.0f);
  p = multiply_add(p, r, 1.0f / 120.0f);
  p = multiply_add(p, r, 1.0f / 24.0f);
  p = multiply_add(p, r, 1.0f / 6.0f);
  p = multiply_add(p, r, 0.5f);
  p = multiply_add(p, r, 1.0f);
  p = multiply_add(p, r, 1.0f);
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
#endif
}

RG_FN double exponential(double x) { return exp(x); }

template <class A>
RG_FN A sigmoid(A z) {
  return A(1) / (A(1) + exponential(-z));
}

// The normal distribution's function and density.
template <class A>
struct Gauss {
  A below, density;
};

RG_FN Gauss<float> gauss(float z) {
  Gauss<float> g;
#if defined(__CUDACC__)
  g.below = 0.5f * erfcf(-0.707106781f * z);
  g.density = 0.398942280f * expf(-0.5f * z * z);
#else
  // Below -|z|: density times a polynomial in t, fitted by least squares to a relative 4e-8.
  const float size = z < 0.0f ? -z : z;
  const float e = exponential(-0.5f * z * z);
  const float t = 1.0f / multiply_add(0.35f, size, 1.0f);
  float p = -0.0291460059f;
  p = multiply_add(p, t, 0.143972014f);
  p = multiply_add(p, t, -0.255714821f);
  p = multiply_add(p, t, 0.159174738f);
  p = multiply_add(p, t, -0.0231102088f);
  p = multiply_add(p, t, 0.105508163f);
  p = multiply_add(p, t, 0.119832824f);
  p = multiply_add(p, t, 0.139861876f);
  p = multiply_add(p, t, 0.139621404f);
  const float tail = p * t * e;
  g.below = z < 0.0f ? tail : 1.0f - tail;
  g.density = 0.398942280f * e;
#endif
  return g;
}

RG_FN Gauss<double> gauss(double z) {
  return {0.5 * erfc(-0.70710678118654752440 * z), 0.39894228040143267794 * exp(-0.5 * z * z)};
}

template <Activation kind, class A>
RG_FN A activate(A z, A slope) {
  if constexpr (kind == Activation::relu) return z < A(0) ? A(0) : z;
  if constexpr (kind == Activation::leaky_relu) return z > A(0) ? z : z * slope;
  if constexpr (kind == Activation::silu) return z * sigmoid(z);
  if constexpr (kind == Activation::gelu) return z * gauss(z).below;
  (void)slope;
  return z;
}

// The derivative of `activate`; torch's where there is none, at 0.
template <Activation kind, class A>
RG_FN A activation_slope(A z, A slope) {
  if constexpr (kind == Activation::relu) return z > A(0) ? A(1) : A(0);
  if constexpr (kind == Activation::leaky_relu) return z > A(0) ? A(1) : slope;
  if constexpr (kind == Activation::silu) {
    const A s = sigmoid(z);
    return s * multiply_add(z, A(1) - s, A(1));
  }
  if constexpr (kind == Activation::gelu) {
    const Gauss<A> g = gauss(z);
    return multiply_add(z, g.density, g.below);
  }
  (void)z, (void)slope;
  return A(1);
}

// Integers nearest to y * steps, ties to even, as revgrad/fixed_point/grid.py rounds. `steps` is a
// power of two, so the product is exact. Numbers that no int32 holds give the least one.
RG_FN int32_t round_to_grid(float y, float steps) {
  const float v = y * steps;
#if defined(__CUDACC__) || defined(__SSE4_1__)
  const float whole = rintf(v);
#else
  // Floats from 2^23 on have no digits behind the point; smaller ones lose them in the sum.
  const float size = v < 0.0f ? -v : v;
  const float nearest = (size + 8388608.0f) - 8388608.0f;
  const float whole = size < 8388608.0f ? (v < 0.0f ? -nearest : nearest) : v;
#endif
  const bool fits = whole >= -2147483648.0f && whole < 2147483648.0f;
  return fits ? static_cast<int32_t>(fits ? whole : 0.0f) : INT32_MIN;
}

RG_FN int32_t round_to_grid(double y, double steps) {
  const double v = y * steps;
#if defined(__CUDACC__) || defined(__SSE4_1__)
  const double whole = rint(v);
#else
  const double size = v < 0.0 ? -v : v;
  const double nearest = (size + 4503599627370496.0) - 4503599627370496.0;
  const double whole = size < 4503599627370496.0 ? (v < 0.0 ? -nearest : nearest) : v;
#endif
  const bool fits = whole >= -2147483648.0 && whole <= 2147483647.0;
  return fits ? static_cast<int32_t>(fits ? whole : 0.0) : INT32_MIN;
}

// n + sign * m for sign = 1 or -1, modulo 2^32.
RG_FN int32_t add_on_grid(int32_t n, int32_t m, int sign) {
  const uint32_t a = static_cast<uint32_t>(n), b = static_cast<uint32_t>(m);
  return static_cast<int32_t>(sign < 0 ? a - b : a + b);
}

// Calls f with the activation as a constant: f(std::integral_constant<Activation, ...>).
template <class F>
void with_activation(Activation kind, F f) {
  switch (kind) {
    case Activation::none: return f(std::integral_constant<Activation, Activation::none>());
    case Activation::relu: return f(std::integral_constant<Activation, Activation::relu>());
    case Activation::leaky_relu:
      return f(std::integral_constant<Activation, Activation::leaky_relu>());
    case Activation::silu: return f(std::integral_constant<Activation, Activation::silu>());
    case Activation::gelu: return f(std::integral_constant<Activation, Activation::gelu>());
  }
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
