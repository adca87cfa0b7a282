// A tile: up to kLanes blocks of a line, pixel by pixel, in the first-level cache.
#pragma once

#include "../kernels/dtype.h"
#include "../kernels/orthogonal.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

constexpr int kLanes = 64;

// How one side of a block lies in memory: `rows` pointers, each with `step` pixels of a block
// side by side. Pixel r * step + b of lane w is row[r][w * step + b].
struct Rows {
  int count, step;
  int64_t offset[kMaxBlock];
};

inline Rows rows_of_x(const Blocks& b) {
  Rows rows;
  rows.step = b.lanes_are_channels ? 1 : b.side[2];
  rows.count = b.size() / rows.step;
  for (int r = 0; r < rows.count; ++r) rows.offset[r] = b.offset[r * rows.step];
  return rows;
}

inline Rows rows_of_y(const Blocks& b) {
  Rows rows;
  rows.step = b.lanes_are_channels ? b.size() : 1;
  rows.count = b.size() / rows.step;
  for (int r = 0; r < rows.count; ++r) rows.offset[r] = r * b.y[1];
  return rows;
}

template <class A, class T, int Step>
inline void split(const T* row, A* tile, int lanes) {
#pragma omp simd
  for (int w = 0; w < lanes; ++w)
    for (int s = 0; s < Step; ++s) tile[s * kLanes + w] = static_cast<A>(row[w * Step + s]);
}

template <class A, class T, int Step>
inline void merge(const A* tile, T* row, int lanes) {
#pragma omp simd
  for (int w = 0; w < lanes; ++w)
    for (int s = 0; s < Step; ++s) put(tile[s * kLanes + w], row[w * Step + s]);
}

template <class A, class T>
void load(const T* from, const Rows& rows, A* tile, int lanes) {
  for (int r = 0; r < rows.count; ++r) {
    const T* row = from + rows.offset[r];
    A* into = tile + r * rows.step * kLanes;
    switch (rows.step) {
      case 1: split<A, T, 1>(row, into, lanes); break;
      case 2: split<A, T, 2>(row, into, lanes); break;
      case 4: split<A, T, 4>(row, into, lanes); break;
      case 8: split<A, T, 8>(row, into, lanes); break;
      default:
        for (int w = 0; w < lanes; ++w)
          for (int s = 0; s < rows.step; ++s)
            into[s * kLanes + w] = static_cast<A>(row[w * rows.step + s]);
    }
  }
}

template <class A, class T>
void store(const A* tile, const Rows& rows, T* to, int lanes) {
  for (int r = 0; r < rows.count; ++r) {
    T* row = to + rows.offset[r];
    const A* out = tile + r * rows.step * kLanes;
    switch (rows.step) {
      case 1: merge<A, T, 1>(out, row, lanes); break;
      case 2: merge<A, T, 2>(out, row, lanes); break;
      case 4: merge<A, T, 4>(out, row, lanes); break;
      case 8: merge<A, T, 8>(out, row, lanes); break;
      default:
        for (int w = 0; w < lanes; ++w)
          for (int s = 0; s < rows.step; ++s)
            put(out[s * kLanes + w], row[w * rows.step + s]);
    }
  }
}

// Where a line begins, and how many lanes it has.
inline Site line_at(const Blocks& b, int64_t line) {
  if (b.lanes_are_channels) return site_of(b, line / b.positions(), 0, line % b.positions());
  const int64_t per_image = b.out[0] * b.out[1];
  const int64_t position = line % per_image * b.out[2], plane = line / per_image;
  return site_of(b, plane % b.batch, plane / b.batch, position);
}

inline int64_t lanes_of(const Blocks& b) { return b.lanes_are_channels ? b.channels : b.out[2]; }

}  // namespace REVGRAD_ISA
}  // namespace revgrad
