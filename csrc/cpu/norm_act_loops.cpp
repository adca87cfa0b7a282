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

// Sums of x - pivot and of its square. Several streams, because one addition waits for the last.
template <class T>
Pair<double> sums_about(const T* x, int64_t count, Acc<T> pivot) {
  using A = Acc<T>;
  constexpr int step = kStep<T>;
  const int64_t half = count / (2 * step);
  A s0 = 0, s1 = 0, s2 = 0, s3 = 0, q0 = 0, q1 = 0, q2 = 0, q3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, q0, q1, q2, q3)
  for (int64_t i = 0; i < half; ++i) {
    const Two<A> u = get_step<step>(x, i), v = get_step<step>(x, half + i);
    const A a = u.first - pivot, b = v.first - pivot;
    s0 += a, s1 += b, q0 += a * a, q1 += b * b;
    if constexpr (step == 2) {
      const A c = u.second - pivot, d = v.second - pivot;
      s2 += c, s3 += d, q2 += c * c, q3 += d * d;
    }
  }
  for (int64_t i = 2 * step * half; i < count; ++i) {
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
  constexpr int64_t kBlock = 4096 / sizeof(T);
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
  void add(const T* x, int64_t width, A* tile) {
    using N = Loop<T>;
    const auto block = [&](auto count, auto step, int64_t at, int64_t lane, int64_t some) {
      add_block<count(), step()>(rows_to_read<N>(x + at, count(), some, lanes, tile), lane, some);
    };
    each_block<rows, kStep<N>>(0, rows > 1 ? rows * lanes : width, lanes, false, block);
  }

  template <int rows, int step, class N>
  void add_block(Block<const N> x, int64_t lane, int64_t width) {
    const A* p = pivot + lane;
    A *s = sum + lane, *q = squares + lane;
#pragma omp simd
    for (int64_t l = 0; l < width / step; ++l) {
      const int64_t i = l * step, j = i + step - 1;
      const A at = p[i], other_at = p[j];
      A a = s[i], b = s[j], c = q[i], d = q[j];
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const Two<A> v = get_step<step>(x.row(r), l);
        const A one = v.first - at, two = v.second - other_at;
        a += one, b += two;
        c += one * one, d += two * two;
      }
      s[j] = b, q[j] = d;
      s[i] = a, q[i] = c;
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
  alignas(64) Acc<T> tile[std::is_same_v<Loop<T>, T> ? 1 : kTile];
  const int64_t together = pixels_at_a_time(channels, rows, kColumnLanes);
  Columns<Acc<T>> all(together * channels, scratch);
  const int64_t full = rows / together, rest = rows % together * channels;
  all.set_pivot(x, full < 8 ? full : 8);
  for (int64_t r = 0; r < full;) {
    const int64_t stop = r + kFlush < full ? r + kFlush : full;
    for (; r + kRows <= stop; r += kRows)
      all.template add<kRows>(x + r * all.lanes, all.lanes, tile);
    for (; r < stop; ++r) all.template add<1>(x + r * all.lanes, all.lanes, tile);
    all.flush();
  }
  all.template add<1>(x + full * all.lanes, rest, tile);
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
template <Activation kind, int step, class N, class A>
__attribute__((noinline)) void activate_channel(const N* x, N* y, int64_t count,
                                                const Affine<A> a, A slope) {
#pragma omp simd
  for (int64_t i = 0; i < count / step; ++i) {
    const Two<A> v = get_step<step>(x, i);
    put_step<step>(activate<kind>(normalised(v.first, a), slope),
                   activate<kind>(normalised(v.second, a), slope), y, i);
  }
}

// What rows share is in scalars: g++ vectorises no loop around another one that reads structs.
template <Activation kind, int rows, int step, class N, class A>
__attribute__((noinline)) void activate_lanes(Block<const N> x, Block<N> y, int64_t width,
                                              const Lanes<A> lanes, A slope) {
#pragma omp simd
  for (int64_t l = 0; l < width / step; ++l) {
    const int64_t i = l * step, j = i + step - 1;
    const A mean = lanes.mean[i], scale = lanes.scale[i], bias = lanes.bias[i];
    const A mean2 = lanes.mean[j], scale2 = lanes.scale[j], bias2 = lanes.bias[j];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Two<A> v = get_step<step>(x.row(r), l);
      const A z = normalised(v.first, Affine<A>{mean, scale, bias});
      const A z2 = normalised(v.second, Affine<A>{mean2, scale2, bias2});
      put_step<step>(activate<kind>(z, slope), activate<kind>(z2, slope), y.row(r), l);
    }
  }
}

// sum = stream + sign * y, in the stream's type or the one that halves are computed in.
template <class T, class S>
void add_to(const T* y, const S* stream, S* sum, int64_t count, int sign) {
  using A = Acc<S>;
  const A factor = static_cast<A>(sign);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    put(static_cast<A>(stream[i]) + factor * static_cast<A>(static_cast<Acc<T>>(y[i])), sum[i]);
}

template <class T>
void add_to_grid(const T* y, const int32_t* stream, int32_t* sum, int64_t count, int sign,
                 Acc<T> steps) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    sum[i] = add_on_grid(stream[i], round_to_grid(static_cast<Acc<T>>(y[i]), steps), sign);
}

// Where blocks of results go: at once where they shall be, or through a tile.
template <class T>
class Results {
 public:
  using N = Loop<T>;

  explicit Results(const Output& out)
      : out_(out), direct_(out.stream == StreamType::none && !out.past_cache) {}
  ~Results() {
    if (out_.past_cache) flush_past_cache();
  }

  Block<const N> source(const T* x, int64_t rows, int64_t width, int64_t pitch) {
    return rows_to_read<N>(x, rows, width, pitch, wide_);
  }
  Block<N> place(int64_t at, int64_t width, int64_t pitch) {
    if constexpr (!std::is_same_v<N, T>)
      return {wide_, width};
    else if (direct_)
      return {static_cast<T*>(out_.to) + at, pitch};
    else
      return {tile_, width};
  }
  __attribute__((noinline)) void finish(int64_t at, int64_t rows, int64_t width, int64_t pitch) {
    if (direct_ && std::is_same_v<N, T>) return;
    for (int64_t r = 0; r < rows; ++r, at += pitch) {
      T* y = direct_ ? static_cast<T*>(out_.to) + at : tile_ + r * width;
      if constexpr (!std::is_same_v<N, T>) narrow(wide_ + r * width, y, width);
      if (!direct_) send(y, at, width);
    }
  }

 private:
  void send(const T* y, int64_t at, int64_t count) {
    switch (out_.stream) {
      case StreamType::none: return copy_past_cache(y, static_cast<T*>(out_.to) + at, count);
      case StreamType::same: return add<T>(y, at, count);
      case StreamType::f32: return add<float>(y, at, count);
      case StreamType::f64: return add<double>(y, at, count);
      case StreamType::fixed:
        return add_to_grid(y, static_cast<const int32_t*>(out_.from) + at,
                           static_cast<int32_t*>(out_.to) + at, count, out_.sign,
                           static_cast<Acc<T>>(out_.steps));
    }
  }
  template <class S>
  void add(const T* y, int64_t at, int64_t count) {
    add_to(y, static_cast<const S*>(out_.from) + at, static_cast<S*>(out_.to) + at, count,
           out_.sign);
  }

  Output out_;
  bool direct_;
  alignas(64) T tile_[kTile];
  alignas(64) Acc<T> wide_[std::is_same_v<N, T> ? 1 : kTile];
};

template <class T>
void apply(Shape act, const T* x, int64_t begin, int64_t count, int64_t lanes,
           const Coefficients& c, const Output& out) {
  using A = Acc<T>;
  using N = Loop<T>;
  const A slope = static_cast<A>(act.slope);
  const bool in_order = out.past_cache && sizeof(T) > 2;  // halves are bound by arithmetic
  Results<T> results(out);
  with_activation(act.kind, [&](auto kind) {
    const auto block = [&](auto rows, auto step, int64_t at, int64_t lane, int64_t width) {
      activate_lanes<kind(), rows(), step()>(results.source(x + at, rows(), width, lanes),
                                             results.place(at, width, lanes), width,
                                             Lanes<A>(c, lane), slope);
      results.finish(at, rows(), width, lanes);
    };
    const auto tile = [&](int64_t at, int64_t some, auto step) {
      activate_channel<kind(), step()>(results.source(x + at, 1, some, some).begin,
                                       results.place(at, some, some).begin, some,
                                       Lanes<A>(c, 0).first(), slope);
      results.finish(at, 1, some, some);
    };
    if (lanes > 0)
      each_block<kRowsAtOnce<kind()>, kStep<N>>(begin, count, lanes, in_order, block);
    else
      each_tile<kStep<N>>(begin, count, tile);
  });
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
