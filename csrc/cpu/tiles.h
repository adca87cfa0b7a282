// Tiles of numbers in the accumulator's type, between tensors of whatever type and the loops.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

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

// Writes a tile where nobody will read before it has left the caches: without fetching the lines
// first. `flush_past_cache` comes before other threads read.
template <class T>
void copy_past_cache(const T* tile, T* to, int64_t count) {
  const char* from = reinterpret_cast<const char*>(tile);
  char* into = reinterpret_cast<char*>(to);
  const size_t bytes = sizeof(T) * static_cast<size_t>(count);
  size_t i = 0;
#if defined(__SSE2__)
  const size_t misaligned = reinterpret_cast<uintptr_t>(into) % 16;
  i = misaligned == 0 ? 0 : 16 - misaligned;
  i = i < bytes ? i : bytes;
  memcpy(into, from, i);
  for (; i + 16 <= bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(into + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#endif
  memcpy(into + i, from + i, bytes - i);
}

RG_FN void flush_past_cache() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
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
