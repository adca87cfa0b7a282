// CUDA kernel of the block transform in fixed point.
#pragma once

#include "orthogonal.cuh"
#include "orthogonal_exact.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

// All rotations of one block, n of its numbers. Rotations count column by column, each from the
// last row up; the matrix applies them from the last to the first, its inverse the other way round.
template <bool Up>
RG_FN void lift_block(int32_t* v, const double* f, int n) {
  const double* signs = f + 3 * rotations_of(n);
  if (!Up)
    for (int j = 0; j < n; ++j) v[j] = turned(v[j], signs[j]);
  int r = Up ? 0 : rotations_of(n) - 1;
#pragma unroll
  for (int c = 0; c < n - 1; ++c) {
    const int column = Up ? c : n - 2 - c;
#pragma unroll
    for (int s = 0; s < n - 1 - column; ++s) {
      const int row = Up ? n - 1 - s : column + 1 + s;
      rotate_plane<Up>(v[row - 1], v[row], f[3 * r], f[3 * r + 1], f[3 * r + 2]);
      r += Up ? 1 : -1;
    }
  }
  if (Up)
    for (int j = 0; j < n; ++j) v[j] = turned(v[j], signs[j]);
}

// One thread a block of pixels, which stay in registers if their number K is known; K = 0: any.
template <int K, bool Up>
__global__ void lift_blocks(const int32_t* from, const double* factors, int32_t* to, Blocks b) {
  const int n = K > 0 ? K : b.size();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < b.blocks();
       i += step) {
    const Site s = site_at(b, i);
    int32_t v[K > 0 ? K : kMaxBlock];
#pragma unroll
    for (int j = 0; j < n; ++j) v[j] = Up ? from[s.y + j * b.y[1]] : from[s.x + b.offset[j]];
    lift_block<Up>(v, factors + s.channel * factors_of(n), n);
#pragma unroll
    for (int j = 0; j < n; ++j) to[Up ? s.x + b.offset[j] : s.y + j * b.y[1]] = v[j];
  }
}

template <bool Up>
void launch_lift(const int32_t* from, const double* factors, int32_t* to, const Blocks& b,
                 cudaStream_t stream) {
  const unsigned grid = grid_of(b);
  if (grid == 0) return;
  switch (b.size()) {
    case 2:
      RG_LAUNCH((lift_blocks<2, Up>), grid, kThreads, 0, stream, from, factors, to, b);
      return;
    case 4:
      RG_LAUNCH((lift_blocks<4, Up>), grid, kThreads, 0, stream, from, factors, to, b);
      return;
    case 8:
      RG_LAUNCH((lift_blocks<8, Up>), grid, kThreads, 0, stream, from, factors, to, b);
      return;
    default:
      RG_LAUNCH((lift_blocks<0, Up>), grid, kThreads, 0, stream, from, factors, to, b);
  }
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
