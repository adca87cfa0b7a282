// Statistics by runs and by columns, and the normalisation itself, tile by tile.
#include "norm_act_loops.h"

#include "isa.h"
#include "tiles.h"

namespace revgrad {
inline namespace REVGRAD_ISA {
namespace {

template <class A>
struct Pair {
  A sum, squares;
};

// Sums of x - pivot and of its square. Four streams, because one addition waits for the last.
template <class T>
Pair<double> sums_about(const T* x, int64_t count, Acc<T> pivot) {
  using A = Acc<T>;
  const int64_t quarter = count / 4;
  A s0 = 0, s1 = 0, s2 = 0, s3 = 0, q0 = 0, q1 = 0, q2 = 0, q3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, q0, q1, q2, q3)
  for (int64_t i = 0; i < quarter; ++i) {
    const A a = static_cast<A>(x[i]) - pivot, b = static_cast<A>(x[quarter + i]) - pivot;
    const A c = static_cast<A>(x[2 * quarter + i]) - pivot;
    const A d = static_cast<A>(x[3 * quarter + i]) - pivot;
    s0 += a, s1 += b, s2 += c, s3 += d;
    q0 += a * a, q1 += b * b, q2 += c * c, q3 += d * d;
  }
  for (int64_t i = 4 * quarter; i < count; ++i) {
    const A a = static_cast<A>(x[i]) - pivot;
    s0 += a, q0 += a * a;
  }
  const double sum = static_cast<double>(s0) + s1 + s2 + s3;
  return {sum, static_cast<double>(q0) + q1 + q2 + q3};
}

// About the mean of the first few, so that little is lost however far the mean is from zero.
template <class T>
Moments short_run(const T* x, int64_t count) {
  using A = Acc<T>;
  const int64_t few = count < 64 ? count : 64;
  const A pivot = static_cast<A>(sums_about(x, few, A(0)).sum / static_cast<double>(few));
  // Streams far apart would hide from the processor that memory is read in one go.
  constexpr int64_t kBlock = 1024 / sizeof(T);
  Pair<double> s{0, 0};
  for (int64_t i = 0; i < count; i += kBlock) {
    const Pair<double> some = sums_about(x + i, count - i < kBlock ? count - i : kBlock, pivot);
    s.sum += some.sum;
    s.squares += some.squares;
  }
  const double shift = s.sum / static_cast<double>(count);
  const double squares = s.squares - s.sum * shift;
  return {static_cast<double>(pivot) + shift, squares > 0 ? squares : 0};
}

// Sums a lane, about a pivot near its mean: in the accumulator's type for a few rows, then in
// double.
template <class A>
struct Columns {
  int64_t lanes;
  double *total, *total_squares;
  A *pivot, *sum, *squares;

  // No std::vector: the linker would keep one instruction set's for all (platform.h).
  Columns(int64_t lanes, double* scratch) : lanes(lanes) {
    for (int64_t i = 0; i < kColumnScratch * lanes; ++i) scratch[i] = 0;
    total = scratch;
    total_squares = scratch + lanes;
    pivot = reinterpret_cast<A*>(scratch + 2 * lanes);
    sum = reinterpret_cast<A*>(scratch + 3 * lanes);
    squares = reinterpret_cast<A*>(scratch + 4 * lanes);
  }

  template <class T>
  void set_pivot(const T* x, int64_t rows) {
    A* p = pivot;
    for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) p[l] += static_cast<A>(x[r * lanes + l]);
    const A share = A(1) / static_cast<A>(rows);
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) p[l] *= share;
  }

  // Several rows, so that sums are fetched and stored once for all of them.
  template <int rows, class T>
  void add_rows(const T* x) {
    const A* p = pivot;
    A *s = sum, *q = squares;
    const int64_t n = lanes;
#pragma omp simd
    for (int64_t l = 0; l < n; ++l) {
      A a = s[l], b = 0, c = q[l], d = 0;
#pragma GCC unroll 4
      for (int r = 0; r < rows; r += 2) {
        const A even = static_cast<A>(x[r * n + l]) - p[l];
        const A odd = static_cast<A>(x[(r + 1) * n + l]) - p[l];
        a += even, b += odd;
        c += even * even, d += odd * odd;
      }
      s[l] = a + b;
      q[l] = c + d;
    }
  }

  template <class T>
  void add(const T* x, int64_t count) {
    const A* p = pivot;
    A *s = sum, *q = squares;
#pragma omp simd
    for (int64_t l = 0; l < count; ++l) {
      const A a = static_cast<A>(x[l]) - p[l];
      s[l] += a;
      q[l] += a * a;
    }
  }

  void flush() {
    A *s = sum, *q = squares;
    double *ts = total, *tq = total_squares;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) {
      ts[l] += static_cast<double>(s[l]);
      tq[l] += static_cast<double>(q[l]);
      s[l] = 0;
      q[l] = 0;
    }
  }

  // Turns the sums of lanes [begin, end) into means and sums of squared differences from them.
  void to_moments(int64_t begin, int64_t end, int64_t count) {
    const double share = 1 / static_cast<double>(count);
#pragma omp simd
    for (int64_t l = begin; l < end; ++l) {
      const double shift = total[l] * share, left = total_squares[l] - total[l] * shift;
      total[l] = static_cast<double>(pivot[l]) + shift;
      total_squares[l] = left > 0 ? left : 0;
    }
  }
};

// The channels' moments from those of their lanes, of which those before `more` have `count` + 1
// numbers and the others `count`.
template <class A>
void fold(Columns<A>& all, int64_t channels, int64_t rows, int64_t count, int64_t more,
          Moments* out) {
  all.to_moments(0, more, count + 1);
  all.to_moments(more, all.lanes, count);
  const double share = 1 / static_cast<double>(rows);
  for (int64_t c = 0; c < channels; ++c) {
    double mean = 0, squares = 0;
    for (int64_t l = c; l < all.lanes; l += channels)
      mean += all.total[l] * static_cast<double>(count + (l < more));
    mean *= share;
    for (int64_t l = c; l < all.lanes; l += channels) {
      const double apart = all.total[l] - mean;
      squares += all.total_squares[l] + apart * apart * static_cast<double>(count + (l < more));
    }
    out[c] = {mean, squares};
  }
}

template <class T>
void columns(const T* x, int64_t rows, int64_t channels, double* scratch, Moments* out) {
  constexpr int64_t kFlush = 64;  // rows summed in the accumulator's type
  constexpr int kRows = sizeof(T) == 2 ? 8 : 4;
  const int64_t together = pixels_at_a_time(channels, rows, kColumnLanes);
  Columns<Acc<T>> all(together * channels, scratch);
  const int64_t full = rows / together, rest = rows % together * channels;
  all.set_pivot(x, full < 8 ? full : 8);
  for (int64_t r = 0; r < full;) {
    const int64_t stop = r + kFlush < full ? r + kFlush : full;
    for (; r + kRows <= stop; r += kRows) all.template add_rows<kRows>(x + r * all.lanes);
    for (; r < stop; ++r) all.add(x + r * all.lanes, all.lanes);
    all.flush();
  }
  all.add(x + full * all.lanes, rest);
  all.flush();
  fold(all, channels, rows, full, rest, out);
}

// A long run is a column whose pixels lie in all lanes.
template <class T>
Moments run(const T* x, int64_t count) {
  if (count < 32 * kColumnLanes) return short_run(x, count);
  double scratch[kColumnScratch * kColumnLanes];
  Moments m;
  columns(x, count, 1, scratch, &m);
  return m;
}

// Functions of their own, so that y has the same bits whether it is stored or added to a stream.
template <Activation kind, class T, class A>
__attribute__((noinline)) void activate_channel(const T* x, T* y, int64_t count,
                                                const Affine<A> a, A slope) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    put(activate<kind>(normalised(static_cast<A>(x[i]), a), slope), y[i]);
}

template <Activation kind, class T, class A>
__attribute__((noinline)) void activate_lanes(const T* x, T* y, int64_t count, const A* mean,
                                              const A* scale, const A* bias, A slope) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const Affine<A> a{mean[i], scale[i], bias[i]};
    put(activate<kind>(normalised(static_cast<A>(x[i]), a), slope), y[i]);
  }
}

template <class T>
void activate_tile(Shape act, const T* x, T* y, int64_t count, const Coefficients& c, int64_t lane,
                   bool lanes) {
  using A = Acc<T>;
  const A *mean = static_cast<const A*>(c.mean) + lane, *bias = static_cast<const A*>(c.bias) + lane;
  const A *scale = static_cast<const A*>(c.scale) + lane, slope = static_cast<A>(act.slope);
  with_activation(act.kind, [&](auto kind) {
    if (lanes)
      activate_lanes<kind()>(x, y, count, mean, scale, bias, slope);
    else
      activate_channel<kind()>(x, y, count, Affine<A>{*mean, *scale, *bias}, slope);
  });
}

// stream += sign * y, in the stream's type or the one that halves are computed in.
template <class T, class S>
void add_to(const T* y, S* stream, int64_t count, int sign) {
  using A = Acc<S>;
  const A factor = static_cast<A>(sign);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    put(static_cast<A>(stream[i]) + factor * static_cast<A>(static_cast<Acc<T>>(y[i])), stream[i]);
}

template <class T>
void add_to_grid(const T* y, int32_t* stream, int64_t count, int sign, Acc<T> steps) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    stream[i] = add_on_grid(stream[i], round_to_grid(static_cast<Acc<T>>(y[i]), steps), sign);
}

template <class T>
void add_tile(const T* y, int64_t at, int64_t count, const Output& out) {
  switch (out.stream) {
    case StreamType::none: return;
    case StreamType::same: return add_to(y, static_cast<T*>(out.to) + at, count, out.sign);
    case StreamType::f32: return add_to(y, static_cast<float*>(out.to) + at, count, out.sign);
    case StreamType::f64: return add_to(y, static_cast<double*>(out.to) + at, count, out.sign);
    case StreamType::fixed:
      return add_to_grid(y, static_cast<int32_t*>(out.to) + at, count, out.sign,
                         static_cast<Acc<T>>(out.steps));
  }
}

template <class T>
void apply(Shape act, const T* x, int64_t begin, int64_t count, int64_t lanes,
           const Coefficients& c, const Output& out) {
  alignas(64) T tile[kTile];
  const bool store = out.stream == StreamType::none, direct = store && !out.past_cache;
  const int64_t row = lanes > 0 ? lanes : count;
  for (int64_t start = 0; start < count; start += row) {
    const int64_t length = count - start < row ? count - start : row;
    for (int64_t lane = 0; lane < length; lane += kTile) {
      const int64_t at = begin + start + lane;
      const int64_t some = length - lane < kTile ? length - lane : kTile;
      T* y = direct ? static_cast<T*>(out.to) + at : tile;
      activate_tile(act, x + at, y, some, c, lanes > 0 ? lane : 0, lanes > 0);
      if (store && !direct) copy_past_cache(tile, static_cast<T*>(out.to) + at, some);
      add_tile(y, at, some, out);
    }
  }
  if (out.past_cache) flush_past_cache();
}

Moments run_dtype(DType dtype, const void* x, int64_t begin, int64_t count) {
  return by_dtype(dtype, [&](auto zero) {
    return run(static_cast<const decltype(zero)*>(x) + begin, count);
  });
}

void columns_dtype(DType dtype, const void* x, int64_t begin, int64_t rows, int64_t channels,
                   double* scratch, Moments* out) {
  by_dtype(dtype, [&](auto zero) {
    columns(static_cast<const decltype(zero)*>(x) + begin, rows, channels, scratch, out);
  });
}

void apply_dtype(DType dtype, Shape act, const void* x, int64_t begin, int64_t count,
                 int64_t lanes, const Coefficients& c, const Output& out) {
  by_dtype(dtype, [&](auto zero) {
    apply(act, static_cast<const decltype(zero)*>(x), begin, count, lanes, c, out);
  });
}

}  // namespace
}  // namespace REVGRAD_ISA

const NormActLoops REVGRAD_JOIN(norm_act_loops, REVGRAD_ISA) = {run_dtype, columns_dtype,
                                                                apply_dtype};

}  // namespace revgrad
