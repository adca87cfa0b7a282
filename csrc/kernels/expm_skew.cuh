// The small matrix exponential on the GPU: one block a matrix, scratch in global memory.
#pragma once

#include "dtype.h"
#include "expm_skew.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

constexpr int kPanel = 16;   // columns of X and rows of Y that are staged at once
constexpr int kSide = 16;    // threads along each side of a product
constexpr int kPerSide = kMaxMatrix / kSide;  // results of a thread along each side
constexpr int kSkewThreads = kSide * kSide;

// The threads of a block as the group that expm_skew.h is written over.
template <class A>
struct BlockGroup {
  int n, ld;
  A* scratch;  // of this block
  A* shared;   // 2 * kPanel * (kMaxMatrix + 1) numbers

  __device__ A* slot(int i) const { return scratch + i * n * n; }
  static __device__ float root(float value) { return sqrtf(value); }
  static __device__ double root(double value) { return sqrt(value); }

  template <class F>
  __device__ void each(F f) const {
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < n * n; at += kSkewThreads)
      f(at / n, at % n, at);
    __syncthreads();
  }

  template <class F>
  __device__ void once(F f) const {
    if (threadIdx.x == 0) f();
  }

  // Every row's value by one thread, then all of them by every thread.
  template <class F, class Join>
  __device__ A reduce(F f, Join join) const {
    __syncthreads();
    const int me = static_cast<int>(threadIdx.x);
    if (me < n) shared[me] = f(me);
    __syncthreads();
    A result = shared[0];
    for (int i = 1; i < n; ++i) result = join(result, shared[i]);
    __syncthreads();
    return result;
  }

  template <class F>
  __device__ A max(F f) const {
    return reduce(f, [](A a, A b) { return b > a || b != b ? b : a; });
  }

  template <class F>
  __device__ A sum(F f) const {
    return reduce(f, [](A a, A b) { return a + b; });
  }

  __device__ void matmul(A* z, const A* x, const A* y) const {
    const int me = static_cast<int>(threadIdx.x), row = me / kSide, column = me % kSide;
    constexpr int kPitch = kMaxMatrix + 1;
    A *xs = shared, *ys = shared + kPanel * kPitch;
    A sum[kPerSide][kPerSide] = {};
    for (int k0 = 0; k0 < n; k0 += kPanel) {
      __syncthreads();
      for (int at = me; at < kPanel * kMaxMatrix; at += kSkewThreads) {
        const int xk = at % kPanel, xi = at / kPanel, yj = at % kMaxMatrix, yk = at / kMaxMatrix;
        xs[xk * kPitch + xi] = xi < n && k0 + xk < n ? x[xi * n + k0 + xk] : A(0);
        ys[yk * kPitch + yj] = yj < n && k0 + yk < n ? y[(k0 + yk) * n + yj] : A(0);
      }
      __syncthreads();
      for (int k = 0; k < kPanel; ++k)
#pragma unroll
        for (int i = 0; i < kPerSide; ++i)
#pragma unroll
          for (int j = 0; j < kPerSide; ++j)
            sum[i][j] += xs[k * kPitch + row + i * kSide] * ys[k * kPitch + column + j * kSide];
    }
#pragma unroll
    for (int i = 0; i < kPerSide; ++i)
#pragma unroll
      for (int j = 0; j < kPerSide; ++j)
        if (row + i * kSide < n && column + j * kSide < n)
          z[(row + i * kSide) * n + column + j * kSide] = sum[i][j];
    __syncthreads();
  }
};

template <class A>
__device__ BlockGroup<A> block_group(int n, A* scratch, A* shared) {
  return {n, n, scratch + static_cast<int64_t>(blockIdx.x) * kSlots * n * n, shared};
}

template <class A>
__global__ void __launch_bounds__(kSkewThreads)
    expm_skew_kernel(const A* theta, A* result, A* tape, int32_t* plan, A* scratch, int n) {
  RG_DYNAMIC_SHARED(A, shared);
  BlockGroup<A> group = block_group(n, scratch, shared);
  const int64_t i = blockIdx.x, area = static_cast<int64_t>(n) * n;
  expm_skew(group, theta + i * area, result + i * area,
            tape == nullptr ? nullptr : tape + i * kTape * area, plan + 2 * i);
}

template <class A>
__global__ void __launch_bounds__(kSkewThreads)
    expm_skew_backward_kernel(const A* grad, const A* theta, const A* result, const A* tape,
                              const int32_t* plan, A* gradient, A* scratch, int n) {
  RG_DYNAMIC_SHARED(A, shared);
  BlockGroup<A> group = block_group(n, scratch, shared);
  const int64_t i = blockIdx.x, area = static_cast<int64_t>(n) * n;
  expm_skew_backward(group, grad + i * area, theta + i * area, result + i * area,
                     tape + i * kTape * area, plan + 2 * i, gradient + i * area);
}

template <class A>
constexpr size_t skew_shared_bytes() {
  return sizeof(A) * 2 * kPanel * (kMaxMatrix + 1);
}

// `scratch` holds kSlots matrices for each of the batch.
template <class A>
void launch_expm_skew(const A* theta, A* result, A* tape, int32_t* plan, A* scratch, int64_t batch,
                      int n, cudaStream_t stream) {
  if (batch == 0 || n == 0) return;
  RG_LAUNCH(expm_skew_kernel<A>, static_cast<unsigned>(batch), kSkewThreads,
            skew_shared_bytes<A>(), stream, theta, result, tape, plan, scratch, n);
}

template <class A>
void launch_expm_skew_backward(const A* grad, const A* theta, const A* result, const A* tape,
                               const int32_t* plan, A* gradient, A* scratch, int64_t batch, int n,
                               cudaStream_t stream) {
  if (batch == 0 || n == 0) return;
  RG_LAUNCH(expm_skew_backward_kernel<A>, static_cast<unsigned>(batch), kSkewThreads,
            skew_shared_bytes<A>(), stream, grad, theta, result, tape, plan, gradient, scratch, n);
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
