// One matrix at a time on one thread, padded so that products need no remainder loops.
#include "expm_skew_loops.h"

#include <memory>

#include "../kernels/dtype.h"
#include "../kernels/expm_skew.h"
#include "isa.h"

namespace revgrad {
inline namespace REVGRAD_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8;  // of a product at once, held in registers
#else
constexpr int kRows = 4;
#endif

// Lanes, the width of a vector, is 4, 8 or 16: small matrices want narrow ones.
template <class A, int Lanes>
struct LoopGroup {
  typedef A Vector __attribute__((vector_size(Lanes * sizeof(A)), aligned(sizeof(A)), may_alias));

  int n, ld, slot_size;
  A* scratch;

  static int rows(int n) { return (n + kRows - 1) / kRows * kRows; }
  static int columns(int n) { return (n + Lanes - 1) / Lanes * Lanes; }

  LoopGroup(int n_, A* scratch_)
      : n(n_), ld(columns(n_)), slot_size(rows(n_) * columns(n_)), scratch(scratch_) {}

  A* slot(int i) const { return scratch + i * slot_size; }

  static A root(A value) {
    if constexpr (sizeof(A) == 8) return __builtin_sqrt(value);
    return __builtin_sqrtf(static_cast<float>(value));
  }

  template <class F>
  RG_FN void each(F f) const {
    for (int i = 0; i < n; ++i)
#pragma GCC ivdep
      for (int j = 0; j < n; ++j) f(i, j, i * ld + j);
  }

  template <class F>
  void once(F f) const {
    f();
  }

  template <class F>
  A max(F f) const {
    A best = f(0);
    for (int i = 1; i < n; ++i) {
      const A next = f(i);
      best = next > best || next != next ? next : best;
    }
    return best;
  }

  template <class F>
  A sum(F f) const {
    A total = 0;
    for (int i = 0; i < n; ++i) total += f(i);
    return total;
  }

  void matmul(A* z, const A* x, const A* y) const {
    for (int i = 0; i < n; i += kRows)
      for (int j = 0; j < n; j += Lanes) {
        Vector sum[kRows] = {};
        const A* left = x + i * ld;
        for (int k = 0; k < n; ++k) {
          const Vector right = *reinterpret_cast<const Vector*>(y + k * ld + j);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) sum[r] += left[r * ld + k] * right;
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) *reinterpret_cast<Vector*>(z + (i + r) * ld + j) = sum[r];
      }
  }
};

template <class A>
std::unique_ptr<A[]> scratch_for(int n) {
  const size_t side = static_cast<size_t>((n + 15) / 16 * 16);
  return std::unique_ptr<A[]>(new A[kSlots * side * side]());
}

// Calls f with a group that suits the size.
template <class A, class F>
void with_group(int n, F f) {
  const std::unique_ptr<A[]> scratch = scratch_for<A>(n);
  if (n <= 4)
    f(LoopGroup<A, 4>(n, scratch.get()));
  else if (n <= 8 || sizeof(A) == 8)
    f(LoopGroup<A, 8>(n, scratch.get()));
  else
    f(LoopGroup<A, 16>(n, scratch.get()));
}

template <class A>
void forward(int n, const void* theta, void* result, void* tape, int32_t* plan, int64_t begin,
             int64_t end) {
  const int64_t area = static_cast<int64_t>(n) * n;
  with_group<A>(n, [=](auto group) {
    for (int64_t i = begin; i < end; ++i)
      expm_skew(group, static_cast<const A*>(theta) + i * area, static_cast<A*>(result) + i * area,
                tape == nullptr ? nullptr : static_cast<A*>(tape) + i * kTape * area, plan + 2 * i);
  });
}

template <class A>
void backward(int n, const void* grad, const void* theta, const void* result, const void* tape,
              const int32_t* plan, void* gradient, int64_t begin, int64_t end) {
  const int64_t area = static_cast<int64_t>(n) * n;
  with_group<A>(n, [=](auto group) {
    for (int64_t i = begin; i < end; ++i)
      expm_skew_backward(group, static_cast<const A*>(grad) + i * area,
                         static_cast<const A*>(theta) + i * area,
                         static_cast<const A*>(result) + i * area,
                         static_cast<const A*>(tape) + i * kTape * area, plan + 2 * i,
                         static_cast<A*>(gradient) + i * area);
  });
}

void forward_dtype(DType dtype, int n, const void* theta, void* result, void* tape, int32_t* plan,
                   int64_t begin, int64_t end) {
  (dtype == DType::f64 ? forward<double> : forward<float>)(n, theta, result, tape, plan, begin,
                                                           end);
}

void backward_dtype(DType dtype, int n, const void* grad, const void* theta, const void* result,
                    const void* tape, const int32_t* plan, void* gradient, int64_t begin,
                    int64_t end) {
  (dtype == DType::f64 ? backward<double> : backward<float>)(n, grad, theta, result, tape, plan,
                                                             gradient, begin, end);
}

}  // namespace
}  // namespace REVGRAD_ISA

const ExpmSkewLoops REVGRAD_JOIN(expm_skew_loops, REVGRAD_ISA) = {forward_dtype, backward_dtype};

}  // namespace revgrad
