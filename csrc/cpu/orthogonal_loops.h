// The block transform's loops, one table for each instruction set.
#pragma once

#include "../kernels/orthogonal.h"
#include "../tensor_types.h"

namespace revgrad {

struct OrthogonalLoops {
  // Writes the matrices q (matrices, K, K) as `rotate` reads them: `arranged` numbers at most.
  void (*arrange)(DType dtype, bool up, const Blocks& b, const void* q, void* to);
  // Lines [begin, end) of y = Q x, or of x = Q^T y if `up`.
  void (*rotate)(DType dtype, bool up, const Blocks& b, const void* from, const void* arranged,
                 void* to, int64_t begin, int64_t end);
  // Adds to sum[pair * channels + channel] (channels as lanes) or sum[pair] (one channel's lines)
  // the products of lines [begin, end).
  void (*weight)(DType dtype, const Blocks& b, const void* x, const void* y, double* sum,
                 int64_t begin, int64_t end);
};

extern const OrthogonalLoops orthogonal_loops_generic, orthogonal_loops_v3, orthogonal_loops_v4;

// Packs of channels may overlap, by less than kMostLanes.
constexpr int64_t kMostLanes = 64;
inline int64_t arranged(const Blocks& b) {
  const int64_t own = b.lanes_are_channels ? kMostLanes : 0;
  return (b.matrices() + own) * b.size() * b.size();
}

// A line is what neighbours in memory: the last axis at one (n, c, i, j), or all channels of one
// block. Lines of a channel follow one another.
inline int64_t lines_of(const Blocks& b) {
  return b.lanes_are_channels ? b.batch * b.positions()
                              : b.channels * b.batch * b.out[0] * b.out[1];
}

}  // namespace revgrad
