// CUDA kernels of the block transform, its transpose and the gradient of its matrix.
#pragma once

#include "dtype.h"
#include "orthogonal.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

constexpr int kThreads = 256;

// Numbers the blocks such that neighbouring threads touch neighbouring memory.
RG_FN Site site_at(const Blocks& b, int64_t index) {
  if (b.lanes_are_channels) {
    const int64_t c = index % b.channels, rest = index / b.channels;
    return site_of(b, rest / b.positions(), c, rest % b.positions());
  }
  const int64_t position = index % b.positions(), plane = index / b.positions();
  return site_of(b, plane / b.channels, plane % b.channels, position);
}

template <class A>
RG_FN const A* matrix_of(const Blocks& b, const A* q, int64_t channel) {
  return q + (b.shared ? 0 : channel * b.size() * b.size());
}

// One thread a block of pixels. K pixels, known when compiled, stay in registers.
template <class T, int K, bool Up>
__global__ void rotate_fixed(const T* from, const Acc<T>* q, T* to, Blocks b) {
  using A = Acc<T>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < b.blocks();
       i += step) {
    const Site s = site_at(b, i);
    const A* m = matrix_of(b, q, s.channel);
    A pixel[K];
#pragma unroll
    for (int j = 0; j < K; ++j)
      pixel[j] = static_cast<A>(Up ? from[s.y + j * b.y[1]] : from[s.x + b.offset[j]]);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      A sum = 0;
#pragma unroll
      for (int j = 0; j < K; ++j) sum += (Up ? m[j * K + k] : m[k * K + j]) * pixel[j];
      to[Up ? s.x + b.offset[k] : s.y + k * b.y[1]] = static_cast<T>(sum);
    }
  }
}

// The same for any block: pixels are read again for every channel, from the cache.
template <class T, bool Up>
__global__ void rotate_any(const T* from, const Acc<T>* q, T* to, Blocks b) {
  using A = Acc<T>;
  const int size = b.size();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < b.blocks();
       i += step) {
    const Site s = site_at(b, i);
    const A* m = matrix_of(b, q, s.channel);
    for (int k = 0; k < size; ++k) {
      A sum = 0;
      for (int j = 0; j < size; ++j)
        sum += Up ? m[j * size + k] * static_cast<A>(from[s.y + j * b.y[1]])
                  : m[k * size + j] * static_cast<A>(from[s.x + b.offset[j]]);
      to[Up ? s.x + b.offset[k] : s.y + k * b.y[1]] = static_cast<T>(sum);
    }
  }
}

RG_FN unsigned grid_of(const Blocks& b) {
  const int64_t wanted = (b.blocks() + kThreads - 1) / kThreads, most = 65535 * 16;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

template <class T, bool Up>
void launch_rotate(const T* from, const Acc<T>* q, T* to, const Blocks& b, cudaStream_t stream) {
  const unsigned grid = grid_of(b);
  if (grid == 0) return;
  switch (b.size()) {
    case 2:
      RG_LAUNCH((rotate_fixed<T, 2, Up>), grid, kThreads, 0, stream, from, q, to, b);
      return;
    case 4:
      RG_LAUNCH((rotate_fixed<T, 4, Up>), grid, kThreads, 0, stream, from, q, to, b);
      return;
    case 8:
      RG_LAUNCH((rotate_fixed<T, 8, Up>), grid, kThreads, 0, stream, from, q, to, b);
      return;
    default:
      RG_LAUNCH((rotate_any<T, Up>), grid, kThreads, 0, stream, from, q, to, b);
  }
}

// The gradient of Q: sums of outer products. A channel's blocks are cut into `chunks` parts of a
// length that depends on the shape alone, so the sum does not depend on the machine.
constexpr int kTile = 32;
constexpr int64_t kChunk = 2048;

RG_FN int64_t weight_chunks(const Blocks& b) {
  return (b.batch * b.positions() + kChunk - 1) / kChunk;
}

RG_FN int64_t weight_partials(const Blocks& b) { return b.channels * weight_chunks(b); }

// partial[channel][chunk][k][j]; one CUDA block each. Tiles of both images are staged in shared
// memory; each thread owns some of the pairs (k, j), or, where pairs are few, a share of a tile.
template <class T>
__global__ void weight_partial(const T* x, const T* y, Acc<T>* partial, Blocks b) {
  using A = Acc<T>;
  RG_DYNAMIC_SHARED(A, shared);
  const int size = b.size(), pairs = size * size, threads = static_cast<int>(blockDim.x);
  const int me = static_cast<int>(threadIdx.x);
  A* xs = shared;
  A* ys = shared + size * (kTile + 1);
  const int64_t chunks = weight_chunks(b), channel = blockIdx.x / chunks;
  const int64_t count = b.batch * b.positions(), begin = blockIdx.x % chunks * kChunk;
  const int64_t end = begin + kChunk < count ? begin + kChunk : count;
  const int groups = pairs < threads ? threads / pairs : 1, group = me / pairs;
  constexpr int kOwned = kMaxBlock * kMaxBlock / kThreads;
  A sum[kOwned];
#pragma unroll
  for (int i = 0; i < kOwned; ++i) sum[i] = 0;

  for (int64_t at = begin; at < end; at += kTile) {
    const int tile = static_cast<int>(end - at < kTile ? end - at : kTile);
    for (int i = me; i < size * kTile; i += threads) {
      const int t = i % kTile, j = i / kTile;
      A pixel = 0, value = 0;
      if (t < tile) {
        const Site s = site_of(b, (at + t) / b.positions(), channel, (at + t) % b.positions());
        pixel = static_cast<A>(x[s.x + b.offset[j]]);
        value = static_cast<A>(y[s.y + j * b.y[1]]);
      }
      xs[j * (kTile + 1) + t] = pixel;
      ys[j * (kTile + 1) + t] = value;
    }
    __syncthreads();
    if (group < groups || groups == 1) {
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        const int pair = groups == 1 ? me + i * threads : me % pairs;
        if (pair < pairs && (groups == 1 || i == 0)) {
          const A* left = ys + pair / size * (kTile + 1);
          const A* right = xs + pair % size * (kTile + 1);
          for (int t = groups == 1 ? 0 : group; t < kTile; t += groups)
            sum[i] += left[t] * right[t];
        }
      }
    }
    __syncthreads();
  }

  A* mine = partial + static_cast<int64_t>(blockIdx.x) * pairs;
  if (groups == 1) {
#pragma unroll
    for (int i = 0; i < kOwned; ++i)
      if (me + i * threads < pairs) mine[me + i * threads] = sum[i];
    return;
  }
  shared[me] = sum[0];
  __syncthreads();
  if (me < pairs) {
    A total = 0;
    for (int g = 0; g < groups; ++g) total += shared[g * pairs + me];
    mine[me] = total;
  }
}

// grad[matrix][pair] = sum of the partials that belong to it; one warp each.
template <class A>
__global__ void weight_total(const A* partial, A* grad, int64_t terms, int pairs) {
  const int64_t matrix = blockIdx.x / pairs, pair = blockIdx.x % pairs;
  A sum = 0;
  for (int64_t i = threadIdx.x; i < terms; i += 32) sum += partial[(matrix * terms + i) * pairs + pair];
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, o);
  if (threadIdx.x == 0) grad[blockIdx.x] = sum;
}

// `partial` holds weight_partials(b) matrices. Without a single block the gradient is zero.
template <class T>
void launch_weight(const T* x, const T* y, Acc<T>* partial, Acc<T>* grad, const Blocks& b,
                   cudaStream_t stream) {
  using A = Acc<T>;
  const int size = b.size(), pairs = size * size;
  const int64_t matrices = b.matrices();
  if (matrices == 0) return;
  const int64_t staged = 2 * size * (kTile + 1);
  const size_t bytes = sizeof(A) * static_cast<size_t>(staged > kThreads ? staged : kThreads);
  const int64_t partials = weight_partials(b);
  if (partials > 0)
    RG_LAUNCH(weight_partial<T>, static_cast<unsigned>(partials), kThreads, bytes, stream, x, y,
              partial, b);
  RG_LAUNCH(weight_total<A>, static_cast<unsigned>(matrices * pairs), 32, 0, stream, partial, grad,
            partials / matrices, pairs);
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
