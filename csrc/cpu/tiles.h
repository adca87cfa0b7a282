// How the loops go over an image: blocks of a few rows, steps of one or two numbers, and tiles of
// numbers in between where a block cannot be read or written where it lies.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../kernels/dtype.h"
#include "../tensor_types.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

constexpr int64_t kTileWidth = 128;  // lanes of a block
constexpr int64_t kTile = 8 * kTileWidth;

// A step of a loop takes one number, or the two bfloat16 of a 32-bit word: in vectors of words,
// which are as long as those of the floats, nothing has to be packed or unpacked.
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
template <class N>
constexpr int kStep = std::is_same_v<N, BFloat16> ? 2 : 1;
#else
template <class N>
constexpr int kStep = 1;
#endif

template <class A>
struct Two {
  A first, second;  // the second one is 0 in a step of one number
};

template <int step, class N>
RG_FN Two<Acc<N>> get_step(const N* from, int64_t index) {
  if constexpr (step == 2) {
    uint32_t word;
    memcpy(&word, from + 2 * index, sizeof word);
    return {float_of(word << 16), float_of(word & 0xffff0000u)};
  } else {
    return {static_cast<Acc<N>>(from[index]), 0};
  }
}

template <int step, class N>
RG_FN void put_step(Acc<N> first, Acc<N> second, N* to, int64_t index) {
  if constexpr (step == 2) {
    const uint32_t low = rounded_upper_half(first) >> 16;
    const uint32_t word = low | (rounded_upper_half(second) & 0xffff0000u);
    memcpy(to + 2 * index, &word, sizeof word);
  } else {
    (void)second;
    put(first, to[index]);
  }
}

// What loops over numbers of type T read: float16 comes as tiles of floats where the processor has
// instructions for the whole, which the compiler finds in no loop.
#if defined(__F16C__)
template <class T>
using Loop = std::conditional_t<std::is_same_v<T, Half>, float, T>;
#else
template <class T>
using Loop = T;
#endif

// Rows of numbers, `pitch` apart in memory.
template <class N>
struct Block {
  N* begin;
  int64_t pitch;
  RG_FN N* row(int64_t r) const { return begin + r * pitch; }
};

template <class T>
void widen(const T* from, Acc<T>* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, Half>)
    for (; i + 8 <= count; i += 8) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
#endif
#pragma omp simd
  for (int64_t j = i; j < count; ++j) to[j] = static_cast<Acc<T>>(from[j]);
}

template <class T>
void narrow(const Acc<T>* from, T* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, Half>)
    for (; i + 8 <= count; i += 8) {
      const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
    }
#endif
#pragma omp simd
  for (int64_t j = i; j < count; ++j) put(from[j], to[j]);
}

// The rows of a block as the loops read them; the tile is used if their type is another one.
template <class N, class T>
Block<const N> rows_to_read(const T* from, int64_t rows, int64_t width, int64_t pitch,
                           Acc<T>* tile) {
  if constexpr (std::is_same_v<N, T>) {
    (void)rows, (void)width, (void)tile;
    return {from, pitch};
  } else {
    for (int64_t r = 0; r < rows; ++r) widen(from + r * pitch, tile + r * width, width);
    return {tile, width};
  }
}

// Calls f(at, count, step) for tiles of [begin, begin + count), the step a constant.
template <int step, class F>
RG_FN void each_tile(int64_t begin, int64_t count, F f) {
  for (int64_t done = 0; done < count; done += kTile) {
    const int64_t left = count - done < kTile ? count - done : kTile, even = left / step * step;
    if (even > 0) f(begin + done, even, std::integral_constant<int, step>());
    if (even < left) f(begin + done + even, left - even, std::integral_constant<int, 1>());
  }
}

// Calls f(rows, step, at, lane, width) for blocks of [begin, begin + count), an image of rows of
// `lanes` numbers. The number of rows, `several` or 1, and the step are constants. What comes from
// memory is wanted `in_order`, one row after the other, or the processor fetches too little ahead.
template <int several, int step, class F>
RG_FN void each_block(int64_t begin, int64_t count, int64_t lanes, bool in_order, F f) {
  const auto blocks = [&](auto rows, int64_t start, int64_t length) {
    for (int64_t lane = 0; lane < length; lane += kTileWidth) {
      const int64_t at = begin + start + lane;
      const int64_t width = length - lane < kTileWidth ? length - lane : kTileWidth;
      // In steps of two, coefficients would be sorted anew for every row.
      const int64_t even = in_order && step > 1 ? 0 : width / step * step;
      if (even > 0) f(rows, std::integral_constant<int, step>(), at, lane, even);
      const std::integral_constant<int, 1> one;
      for (int64_t r = 0; even < width && r < rows(); ++r)
        f(one, one, at + r * lanes + even, lane + even, width - even);
    }
  };
  int64_t start = 0;
  for (; !in_order && start + several * lanes <= count; start += several * lanes)
    blocks(std::integral_constant<int, several>(), start, lanes);
  for (; start < count; start += lanes)
    blocks(std::integral_constant<int, 1>(), start, count - start < lanes ? count - start : lanes);
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
