// Packs of neighbouring numbers in vector registers, in the accumulator's type. Written with the
// compiler's own vector types, so that one text serves every instruction set.
#pragma once

#include <cstring>
#include <limits>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../kernels/dtype.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(A));

// A pack is as many vectors; together they hold kPack lanes. Of bfloat16 it is two, the lanes with
// even and those with odd numbers: the upper and lower halves of 32-bit words.
template <class T>
constexpr int kParts = std::is_same_v<T, BFloat16> ? 2 : 1;
template <class T>
constexpr int kPack = kParts<T>* kWidth<Acc<T>>;

// --- shuffles ---

template <class V, int... I>
RG_FN V evens(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}
template <class V, int... I>
RG_FN V odds(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}
template <int from, class V, int... I>
RG_FN V interleaved(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (from + I / 2 + I % 2 * n)...);
}
template <class V>
using Lanes = std::make_integer_sequence<int, sizeof(V) / sizeof(std::declval<V>()[0])>;

// S vectors that follow one another become those of the numbers 0, 1, ... modulo S.
template <int S, class V>
RG_FN void unzip(V* v) {
  if constexpr (S > 1) {
    V even[S / 2], odd[S / 2];
    for (int i = 0; i < S / 2; ++i) {
      even[i] = evens(v[2 * i], v[2 * i + 1], Lanes<V>());
      odd[i] = odds(v[2 * i], v[2 * i + 1], Lanes<V>());
    }
    unzip<S / 2>(even);
    unzip<S / 2>(odd);
    for (int i = 0; i < S / 2; ++i) v[2 * i] = even[i], v[2 * i + 1] = odd[i];
  }
}

template <int S, class V>
RG_FN void zip(V* v) {
  if constexpr (S > 1) {
    V even[S / 2], odd[S / 2];
    for (int i = 0; i < S / 2; ++i) even[i] = v[2 * i], odd[i] = v[2 * i + 1];
    zip<S / 2>(even);
    zip<S / 2>(odd);
    for (int i = 0; i < S / 2; ++i) {
      v[2 * i] = interleaved<0>(even[i], odd[i], Lanes<V>());
      v[2 * i + 1] = interleaved<Lanes<V>::size() / 2>(even[i], odd[i], Lanes<V>());
    }
  }
}

// --- one vector from and to memory ---

template <class A>
RG_FN Vector<A> read(const A* from) {
  Vector<A> v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class A>
RG_FN Vector<A> broadcast(A a) {
  return a - Vector<A>{};
}

template <class A>
RG_FN void write(Vector<A> v, A* to) {
  memcpy(to, &v, sizeof v);
}

// Whether there are stores of whole cache lines that need not fetch them first; they want aligned
// memory, and `flush_past_cache` (tiles.h) in the end.
#if defined(__AVX512F__)
constexpr bool kStreams = true;
#else
constexpr bool kStreams = false;
#endif

template <class A>
RG_FN void write(Vector<A> v, A* to, bool past_cache) {
#if defined(__AVX512F__)
  if (past_cache) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to),
                                             reinterpret_cast<__m512i>(v));
#endif
  (void)past_cache;
  write(v, to);
}

RG_FN Vector<float> read(const Half* from) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Vector<float> v;
  for (int i = 0; i < kWidth<float>; ++i) v[i] = static_cast<float>(from[i]);
  return v;
#endif
}

RG_FN void write(Vector<float> v, Half* to, bool = false) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth<float>; ++i) put(v[i], to[i]);
#endif
}

// --- packs from and to rows in which S numbers of each lane stand side by side ---

// pack[s * kParts + part]: number s of the lanes of a part.
template <int S, class T>
RG_FN void read_row(const T* row, Vector<Acc<T>>* pack) {
  for (int s = 0; s < S; ++s) pack[s] = read(row + s * kWidth<Acc<T>>);
  unzip<S>(pack);
}

template <int S, class T>
RG_FN void write_row(Vector<Acc<T>>* pack, T* row, bool past_cache) {
  zip<S>(pack);
  for (int s = 0; s < S; ++s) write(pack[s], row + s * kWidth<Acc<T>>, past_cache);
}

using Words = Vector<uint32_t>;

// Rounded to bfloat16, in the upper half; ties to even. A NaN stays one if its lower half is zero,
// as in one that arithmetic makes, or has from a bfloat16 number or from `without_payload`.
RG_FN Words rounded_words(Vector<float> v) {
  const Words wide = reinterpret_cast<Words>(v);
  return wide + 0x7fffu + (wide >> 16 & 1u);
}

template <class A>
RG_FN A without_payload(A a) {
  return a == a ? a : std::numeric_limits<A>::quiet_NaN();
}

// Which word of S in a row has numbers 2 * pair and 2 * pair + 1 of the lanes of a part. With one
// number a lane a word has both parts.
template <int S>
constexpr int word_of(int pair, int part) {
  return part * (S / 2) + pair;
}

template <int S>
RG_FN void read_row(const BFloat16* row, Vector<float>* pack) {
  Words w[S];
  for (int s = 0; s < S; ++s)
    w[s] = read(reinterpret_cast<const uint32_t*>(row) + s * kWidth<float>);
  unzip<S>(w);
  for (int pair = 0; pair < (S + 1) / 2; ++pair)
    for (int part = 0; part < (S > 1 ? 2 : 1); ++part) {
      const Words both = w[word_of<S>(pair, part)];
      const int at = 4 * pair + part;
      pack[at] = reinterpret_cast<Vector<float>>(both << 16);
      pack[S > 1 ? at + 2 : 1] = reinterpret_cast<Vector<float>>(both & 0xffff0000u);
    }
}

template <int S>
RG_FN void write_row(Vector<float>* pack, BFloat16* row, bool past_cache) {
  Words w[S];
  for (int pair = 0; pair < (S + 1) / 2; ++pair)
    for (int part = 0; part < (S > 1 ? 2 : 1); ++part) {
      const int at = 4 * pair + part;
      const Words low = rounded_words(pack[at]), high = rounded_words(pack[S > 1 ? at + 2 : 1]);
      w[word_of<S>(pair, part)] = low >> 16 | (high & 0xffff0000u);
    }
  zip<S>(w);
  for (int s = 0; s < S; ++s)
    write(w[s], reinterpret_cast<uint32_t*>(row) + s * kWidth<float>, past_cache);
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
