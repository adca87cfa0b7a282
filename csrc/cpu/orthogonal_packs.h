// The block transform of one pack of lanes after the other, all in registers.
#pragma once

#include "orthogonal_tiles.h"
#include "packs.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

// Packs that follow one another: where the first lies on both sides, and how far the next is.
template <class T>
struct Packs {
  const T* from;
  T* to;
  int64_t from_step, to_step, count;
  int64_t from_ahead, to_ahead;  // how far away what is worth fetching already
  bool past_cache;               // write so; all rows are aligned
};

// Rows are short, so that the processor does not see by itself where the next ones are.
template <int count, int S, bool write, class T>
RG_FN void fetch_rows(const T* at, const Rows& rows) {
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r)
    for (int s = 0; s < S; ++s) __builtin_prefetch(at + rows.offset[r] + s * kPack<T>, write, 3);
}

// to[k] = sum over j of m[k * K + j] from[j]. A matrix for all lanes; or, with Own, one a lane, a
// pack of each coefficient.
template <class T, int K, int From, int To, bool Own>
__attribute__((noinline)) void rotate_packs(Packs<T> packs, const Rows& source,
                                            const Rows& target, const Acc<T>* __restrict m) {
  using A = Acc<T>;
  constexpr int parts = kParts<T>;
  const auto coefficient = [&](int k, int j, int part) {
    const int at = k * K + j;
    return Own ? read(m + (at * parts + part) * kWidth<A>) : broadcast(m[at]);
  };
  for (int64_t n = 0; n < packs.count; ++n) {
    const T* from = packs.from + n * packs.from_step;
    T* to = packs.to + n * packs.to_step;
    // Too many coefficients for the registers would be spread out to the stack once a call.
    if constexpr (K > 4) asm("" : "+r"(m));
    fetch_rows<K / From, From, false>(from + packs.from_ahead, source);
    if (!packs.past_cache) fetch_rows<K / To, To, true>(to + packs.to_ahead, target);
    Vector<A> in[K * parts];
#pragma GCC unroll 8
    for (int r = 0; r < K / From; ++r)
      read_row<From>(from + source.offset[r], in + r * From * parts);
#pragma GCC unroll 8
    for (int r = 0; r < K / To; ++r) {
      Vector<A> out[To * parts];
#pragma GCC unroll 16
      for (int i = 0; i < To * parts; ++i) {
        const int k = r * To + i / parts, part = i % parts;
        Vector<A> sum = coefficient(k, 0, part) * in[part];
#pragma GCC unroll 8
        for (int j = 1; j < K; ++j) sum += coefficient(k, j, part) * in[j * parts + part];
        out[i] = sum;
      }
      write_row<To>(out, to + target.offset[r], packs.past_cache);
    }
  }
}

template <class T>
using PackLoop = void (*)(Packs<T>, const Rows&, const Rows&, const Acc<T>*);

template <class T, int K, int S>
PackLoop<T> pack_loop_of(bool source_has_step, bool own) {
  if constexpr (S == K)
    if (own) return source_has_step ? rotate_packs<T, K, S, 1, true> : rotate_packs<T, K, 1, S, true>;
  return source_has_step ? rotate_packs<T, K, S, 1, false> : rotate_packs<T, K, 1, S, false>;
}

// The loop for these blocks, or null: there is one for 2, 4 and 8 pixels and long enough lines.
template <class T>
PackLoop<T> pack_loop(const Blocks& b, bool up) {
  if (lanes_of(b) < kPack<T>) return nullptr;
  const bool own = b.lanes_are_channels && !b.shared, stepped = up == b.lanes_are_channels;
  const int step = b.lanes_are_channels ? b.size() : b.side[2];
  switch (b.size() * 16 + step) {
    case 2 * 16 + 1: return pack_loop_of<T, 2, 1>(stepped, own);
    case 2 * 16 + 2: return pack_loop_of<T, 2, 2>(stepped, own);
    case 4 * 16 + 1: return pack_loop_of<T, 4, 1>(stepped, own);
    case 4 * 16 + 2: return pack_loop_of<T, 4, 2>(stepped, own);
    case 4 * 16 + 4: return pack_loop_of<T, 4, 4>(stepped, own);
    case 8 * 16 + 1: return pack_loop_of<T, 8, 1>(stepped, own);
    case 8 * 16 + 2: return pack_loop_of<T, 8, 2>(stepped, own);
    case 8 * 16 + 4: return pack_loop_of<T, 8, 4>(stepped, own);
    case 8 * 16 + 8: return pack_loop_of<T, 8, 8>(stepped, own);
    default: return nullptr;
  }
}

// Packs cover a line; the last may overlap the one before it, and writes the same again.
template <class T>
int64_t packs_of(int64_t length) {
  return (length + kPack<T> - 1) / kPack<T>;
}
template <class T>
int64_t pack_begin(int64_t pack, int64_t length) {
  const int64_t at = pack * kPack<T>, last = length - kPack<T>;
  return at < last ? at : last;
}

// A result this large has left the caches before it is read, so its lines need not be fetched to be
// written; if each store covers whole ones.
template <class T>
bool goes_past_cache(const Blocks& b, bool up, const T* to) {
  constexpr int64_t kPastCache = 16 * 1024 * 1024, kLine = 64 / sizeof(T);
  const bool large = static_cast<int64_t>(sizeof(T)) * b.blocks() * b.size() >= kPastCache;
  if (!kStreams || std::is_same_v<T, Half> || !large) return false;
  const int64_t* strides = up ? b.x : b.y;
  const int lane = b.lanes_are_channels ? 1 : 4;
  int64_t all = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) / sizeof(T));
  for (int axis = 0; axis < 5; ++axis)
    if (axis != lane) all |= strides[axis];
  return all % kLine == 0 && lanes_of(b) % kPack<T> == 0;
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
