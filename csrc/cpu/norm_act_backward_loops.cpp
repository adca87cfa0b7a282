// The backward pass: sums of the gradients before the affine map, then dx from them.
#include "isa.h"
#include "norm_act_loops.h"
#include "tiles.h"

namespace revgrad {
inline namespace REVGRAD_ISA {
namespace {

// dy and x as numbers of one type, N, and where dx goes.
template <class T, bool wide>
class Source {
 public:
  using A = Acc<T>;
  using D = std::conditional_t<wide, A, T>;        // dy's own type
  using N = std::conditional_t<wide, A, Loop<T>>;  // the loops'
  static constexpr bool kSame = std::is_same_v<N, T>;

  explicit Source(const Gradient& g, void* dx = nullptr)
      : dy_(static_cast<const D*>(g.dy)), x_(static_cast<const T*>(g.x)),
        dx_(static_cast<T*>(dx)), direct_(!g.past_cache) {}
  ~Source() {
    if (!direct_) flush_past_cache();
  }

  Block<const N> dy(int64_t at, int64_t rows, int64_t width, int64_t pitch) {
    return rows_to_read<N>(dy_ + at, rows, width, pitch, dy_tile_);
  }
  Block<const N> x(int64_t at, int64_t rows, int64_t width, int64_t pitch) {
    return rows_to_read<N>(x_ + at, rows, width, pitch, x_tile_);
  }
  Block<N> place(int64_t at, int64_t width, int64_t pitch) {
    if constexpr (kSame)
      if (direct_) return {dx_ + at, pitch};
    return {result_, width};
  }
  __attribute__((noinline)) void finish(int64_t at, int64_t rows, int64_t width, int64_t pitch) {
    if (direct_ && kSame) return;
    for (int64_t r = 0; r < rows; ++r, at += pitch) {
      const N* from = result_ + r * width;
      if constexpr (kSame) {
        copy_past_cache(from, dx_ + at, width);
      } else {
        narrow(from, direct_ ? dx_ + at : narrowed_, width);
        if (!direct_) copy_past_cache(narrowed_, dx_ + at, width);
      }
    }
  }

 private:
  const D* dy_;
  const T* x_;
  T* dx_;
  bool direct_;
  alignas(64) A dy_tile_[std::is_same_v<N, D> ? 1 : kTile];
  alignas(64) A x_tile_[kSame ? 1 : kTile];
  alignas(64) N result_[kTile];
  alignas(64) T narrowed_[kSame ? 1 : kTile];
};

template <Activation kind, class A>
RG_FN A gradient(A dy, A x, const Affine<A>& a, A slope) {
  return dy * activation_slope<kind>(normalised(x, a), slope);
}

// Two streams, because one addition waits for the last.
template <Activation kind, int step, class N, class A>
__attribute__((noinline)) void sum_channel(const N* dy, const N* x, int64_t count,
                                           const Affine<A> a, A slope, double* sums) {
  const int64_t half = count / (2 * step);
  A s0 = 0, s1 = 0, s2 = 0, s3 = 0, m0 = 0, m1 = 0, m2 = 0, m3 = 0;
  const auto add = [&](A dy, A x, A& sum, A& moment) {
    const A g = gradient<kind>(dy, x, a, slope);
    sum += g;
    moment += g * (x - a.mean);
  };
#pragma omp simd reduction(+ : s0, s1, s2, s3, m0, m1, m2, m3)
  for (int64_t i = 0; i < half; ++i) {
    const Two<A> d = get_step<step>(dy, i), v = get_step<step>(x, i);
    const Two<A> e = get_step<step>(dy, half + i), w = get_step<step>(x, half + i);
    add(d.first, v.first, s0, m0);
    add(e.first, w.first, s1, m1);
    if constexpr (step == 2) {
      add(d.second, v.second, s2, m2);
      add(e.second, w.second, s3, m3);
    }
  }
  for (int64_t i = 2 * step * half; i < count; ++i)
    add(static_cast<A>(dy[i]), static_cast<A>(x[i]), s0, m0);
  sums[0] += static_cast<double>(s0) + s1 + s2 + s3;
  sums[1] += static_cast<double>(m0) + m1 + m2 + m3;
}

// Adds to the sums of every lane.
template <Activation kind, int rows, int step, class N, class A>
__attribute__((noinline)) void sum_lanes(Block<const N> dy, Block<const N> x, int64_t width,
                                         Lanes<A> lanes, A slope, A* first, A* second) {
#pragma omp simd
  for (int64_t l = 0; l < width / step; ++l) {
    const int64_t i = l * step, j = i + step - 1;
    const A mean = lanes.mean[i], scale = lanes.scale[i], bias = lanes.bias[i];
    const A mean2 = lanes.mean[j], scale2 = lanes.scale[j], bias2 = lanes.bias[j];
    A sum = first[i], sum2 = first[j], moment = second[i], moment2 = second[j];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Two<A> v = get_step<step>(x.row(r), l), d = get_step<step>(dy.row(r), l);
      const A g = gradient<kind>(d.first, v.first, Affine<A>{mean, scale, bias}, slope);
      const A g2 = gradient<kind>(d.second, v.second, Affine<A>{mean2, scale2, bias2}, slope);
      sum += g, sum2 += g2;
      moment += g * (v.first - mean), moment2 += g2 * (v.second - mean2);
    }
    first[j] = sum2, second[j] = moment2;
    first[i] = sum, second[i] = moment;
  }
}

// The lanes' gain, offset and drift, or those of a channel.
template <class A>
struct Slopes {
  const A *gain, *offset, *drift;

  Slopes(const BackwardCoefficients& b, int64_t lane)
      : gain(static_cast<const A*>(b.gain) + lane), offset(static_cast<const A*>(b.offset) + lane),
        drift(static_cast<const A*>(b.drift) + lane) {}
};

template <Activation kind, int step, class N, class A>
__attribute__((noinline)) void dx_channel(const N* dy, const N* x, N* dx, int64_t count,
                                          const Affine<A> a, const Slopes<A> s, A slope) {
  const A gain = *s.gain, offset = *s.offset, drift = *s.drift;
#pragma omp simd
  for (int64_t i = 0; i < count / step; ++i) {
    const Two<A> v = get_step<step>(x, i), d = get_step<step>(dy, i);
    const A g = gradient<kind>(d.first, v.first, a, slope);
    const A g2 = gradient<kind>(d.second, v.second, a, slope);
    put_step<step>(gain * g - multiply_add(v.first - a.mean, drift, offset),
                   gain * g2 - multiply_add(v.second - a.mean, drift, offset), dx, i);
  }
}

template <Activation kind, int rows, int step, class N, class A>
__attribute__((noinline)) void dx_lanes(Block<const N> dy, Block<const N> x, Block<N> dx,
                                        int64_t width, Lanes<A> lanes, Slopes<A> s, A slope) {
#pragma omp simd
  for (int64_t l = 0; l < width / step; ++l) {
    const int64_t i = l * step, j = i + step - 1;
    const A mean = lanes.mean[i], scale = lanes.scale[i], bias = lanes.bias[i];
    const A mean2 = lanes.mean[j], scale2 = lanes.scale[j], bias2 = lanes.bias[j];
    const A gain = s.gain[i], offset = s.offset[i], drift = s.drift[i];
    const A gain2 = s.gain[j], offset2 = s.offset[j], drift2 = s.drift[j];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Two<A> v = get_step<step>(x.row(r), l), d = get_step<step>(dy.row(r), l);
      const A g = gradient<kind>(d.first, v.first, Affine<A>{mean, scale, bias}, slope);
      const A g2 = gradient<kind>(d.second, v.second, Affine<A>{mean2, scale2, bias2}, slope);
      put_step<step>(gain * g - multiply_add(v.first - mean, drift, offset),
                     gain2 * g2 - multiply_add(v.second - mean2, drift2, offset2), dx.row(r), l);
    }
  }
}

// Sums of every lane: in the accumulator's type for a few rows, then in double.
template <class A>
struct LaneSums {
  int64_t lanes;
  double *total, *total_moment;
  A *first, *second;

  LaneSums(int64_t lanes, double* scratch) : lanes(lanes) {
    for (int64_t i = 0; i < kSumScratch * lanes; ++i) scratch[i] = 0;
    total = scratch;
    total_moment = scratch + lanes;
    first = reinterpret_cast<A*>(scratch + 2 * lanes);
    second = reinterpret_cast<A*>(scratch + 3 * lanes);
  }

  void flush() {
    double *t = total, *m = total_moment;
    A *f = first, *s = second;
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) {
      t[l] += static_cast<double>(f[l]);
      m[l] += static_cast<double>(s[l]);
      f[l] = 0;
      s[l] = 0;
    }
  }

  void add_to(double* sums, int64_t channels) const {
    for (int64_t begin = 0; begin < lanes; begin += channels)
      for (int64_t k = 0; k < channels; ++k) {
        sums[2 * k] += total[begin + k];
        sums[2 * k + 1] += total_moment[begin + k];
      }
  }
};

template <class T, bool wide>
void sums(const Gradient& g, int64_t begin, int64_t count, const Coefficients& c, double* sums) {
  using A = Acc<T>;
  Source<T, wide> source(g);
  with_activation(g.act.kind, [&](auto kind) {
    each_tile<1>(begin, count, [&](int64_t at, int64_t some, auto) {
      sum_channel<kind(), kStep<typename Source<T, wide>::N>>(
          source.dy(at, 1, some, some).begin, source.x(at, 1, some, some).begin, some,
          Lanes<A>(c, 0).first(), static_cast<A>(g.act.slope), sums);
    });
  });
}

template <class T, bool wide>
void column_sums(const Gradient& g, int64_t begin, int64_t rows, int64_t channels,
                 const Coefficients& c, double* scratch, double* sums) {
  using A = Acc<T>;
  constexpr int64_t kFlush = 32;  // rows of lanes summed in the accumulator's type
  const int64_t lanes = pixels_at_a_time(channels, rows) * channels, count = rows * channels;
  LaneSums<A> all(lanes, scratch);
  Source<T, wide> source(g);
  const A slope = static_cast<A>(g.act.slope);
  with_activation(g.act.kind, [&](auto kind) {
    const auto block = [&](auto several, auto step, int64_t at, int64_t lane, int64_t width) {
      sum_lanes<kind(), several(), step()>(source.dy(at, several(), width, lanes),
                                           source.x(at, several(), width, lanes), width,
                                           Lanes<A>(c, lane), slope, all.first + lane,
                                           all.second + lane);
    };
    for (int64_t start = 0; start < count; start += kFlush * lanes) {
      const int64_t left = count - start, some = left < kFlush * lanes ? left : kFlush * lanes;
      each_block<kRowsAtOnce<kind()>, kStep<typename Source<T, wide>::N>>(
          begin + start, some, lanes, g.past_cache, block);
      all.flush();
    }
  });
  all.add_to(sums, channels);
}

template <class T, bool wide>
void apply(const Gradient& g, int64_t begin, int64_t count, int64_t lanes, const Coefficients& c,
           const BackwardCoefficients& b, void* dx) {
  using A = Acc<T>;
  Source<T, wide> source(g, dx);
  const A slope = static_cast<A>(g.act.slope);
  with_activation(g.act.kind, [&](auto kind) {
    const auto block = [&](auto rows, auto step, int64_t at, int64_t lane, int64_t width) {
      dx_lanes<kind(), rows(), step()>(source.dy(at, rows(), width, lanes),
                                       source.x(at, rows(), width, lanes),
                                       source.place(at, width, lanes), width, Lanes<A>(c, lane),
                                       Slopes<A>(b, lane), slope);
      source.finish(at, rows(), width, lanes);
    };
    const auto tile = [&](int64_t at, int64_t some, auto step) {
      dx_channel<kind(), step()>(source.dy(at, 1, some, some).begin,
                                 source.x(at, 1, some, some).begin,
                                 source.place(at, some, some).begin, some,
                                 Lanes<A>(c, 0).first(), Slopes<A>(b, 0), slope);
      source.finish(at, 1, some, some);
    };
    constexpr int kSteps = kStep<typename Source<T, wide>::N>;
    if (lanes > 0)
      each_block<kRowsAtOnce<kind()>, kSteps>(begin, count, lanes, g.past_cache, block);
    else
      each_tile<kSteps>(begin, count, tile);
  });
}

// One group of a row: its channels' coefficients, and where their gradients are summed.
template <class A>
struct RowGroup {
  A mean, rstd, slope;
  const A *weight, *bias;
  A *dbias, *dweight;
};

// Sums of g * weight and of that times the normalised x.
template <Activation kind, class N, class A>
void row_sums(const N* dy, const N* x, int64_t count, const RowGroup<A>& r, double* sums) {
  A first = 0, second = 0;
  const RowGroup<A> own = r;
#pragma omp simd reduction(+ : first, second)
  for (int64_t i = 0; i < count; ++i) {
    const Affine<A> a{own.mean, own.weight[i] * own.rstd, own.bias[i]};
    const A value = static_cast<A>(x[i]), unit = (value - own.mean) * own.rstd;
    const A g = gradient<kind>(static_cast<A>(dy[i]), value, a, own.slope);
    own.dbias[i] += g;
    own.dweight[i] += g * unit;
    first += g * own.weight[i];
    second += g * own.weight[i] * unit;
  }
  sums[0] += static_cast<double>(first);
  sums[1] += static_cast<double>(second);
}

template <Activation kind, class N, class A>
void row_dx(const N* dy, const N* x, N* dx, int64_t count, const RowGroup<A>& r, A offset,
            A drift) {
  const RowGroup<A> own = r;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const Affine<A> a{own.mean, own.weight[i] * own.rstd, own.bias[i]};
    const A value = static_cast<A>(x[i]);
    const A g = gradient<kind>(static_cast<A>(dy[i]), value, a, own.slope);
    put(a.scale * g - multiply_add(value - own.mean, drift, offset), dx[i]);
  }
}

template <class T, bool wide>
void row(Source<T, wide>& source, Activation act, int64_t begin, int64_t count,
         const RowGroup<Acc<T>>& r, bool constant) {
  using A = Acc<T>;
  const auto from = [&](int64_t lane) {
    return RowGroup<A>{r.mean,        r.rstd,         r.slope,         r.weight + lane,
                       r.bias + lane, r.dbias + lane, r.dweight + lane};
  };
  with_activation(act, [&](auto kind) {
    double total[2] = {0, 0};
    each_tile<1>(begin, count, [&](int64_t at, int64_t some, auto) {
      row_sums<kind()>(source.dy(at, 1, some, some).begin, source.x(at, 1, some, some).begin, some,
                       from(at - begin), total);
    });
    const double share = constant ? 0 : r.rstd / static_cast<double>(count);
    const A offset = static_cast<A>(total[0] * share), drift = static_cast<A>(total[1] * share * r.rstd);
    each_tile<1>(begin, count, [&](int64_t at, int64_t some, auto) {
      row_dx<kind()>(source.dy(at, 1, some, some).begin, source.x(at, 1, some, some).begin,
                     source.place(at, some, some).begin, some, from(at - begin), offset,
                     drift);
      source.finish(at, 1, some, some);
    });
  });
}

template <class T, bool wide>
void rows(const Gradient& g, const Rows& all, int64_t first, int64_t last, double* scratch,
          void* dx, double* sums) {
  using A = Acc<T>;
  constexpr int64_t kFlush = 32;  // rows summed in the accumulator's type
  const int64_t channels = all.channels, count = channels / all.groups;
  A *dbias = reinterpret_cast<A*>(scratch), *dweight = dbias + channels;
  const A *mean = static_cast<const A*>(all.mean), *rstd = static_cast<const A*>(all.rstd);
  const A *weight = static_cast<const A*>(all.weight), *bias = static_cast<const A*>(all.bias);
  Source<T, wide> source(g, dx);
  for (int64_t start = first; start < last; start += kFlush) {
    for (int64_t c = 0; c < channels; ++c) dbias[c] = dweight[c] = 0;
    for (int64_t n = start; n < last && n < start + kFlush; ++n)
      for (int64_t k = 0; k < all.groups; ++k) {
        const int64_t s = n * all.groups + k, c = k * count;
        const RowGroup<A> r{mean[s],  rstd[s],   static_cast<A>(g.act.slope), weight + c,
                            bias + c, dbias + c, dweight + c};
        row(source, g.act.kind, n * channels + c, count, r, all.constant);
      }
    for (int64_t c = 0; c < channels; ++c) {
      sums[2 * c] += static_cast<double>(dbias[c]);
      sums[2 * c + 1] += static_cast<double>(dweight[c]);
    }
  }
}

// Calls f(a number of x's type, whether dy is wider).
template <class F>
void by_types(const Gradient& g, F f) {
  by_dtype(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (g.wide && !std::is_same_v<T, Acc<T>>) return f(zero, std::true_type());
    return f(zero, std::false_type());
  });
}

void sums_any(const Gradient& g, int64_t begin, int64_t count, const Coefficients& c,
              double* out) {
  by_types(g, [&](auto zero, auto wide) {
    sums<decltype(zero), wide()>(g, begin, count, c, out);
  });
}

void column_sums_any(const Gradient& g, int64_t begin, int64_t rows, int64_t channels,
                     const Coefficients& c, double* scratch, double* out) {
  by_types(g, [&](auto zero, auto wide) {
    column_sums<decltype(zero), wide()>(g, begin, rows, channels, c, scratch, out);
  });
}

void apply_any(const Gradient& g, int64_t begin, int64_t count, int64_t lanes,
               const Coefficients& c, const BackwardCoefficients& b, void* dx) {
  by_types(g, [&](auto zero, auto wide) {
    apply<decltype(zero), wide()>(g, begin, count, lanes, c, b, dx);
  });
}

void rows_any(const Gradient& g, const Rows& all, int64_t first, int64_t last, double* scratch,
              void* dx, double* out) {
  by_types(g, [&](auto zero, auto wide) {
    rows<decltype(zero), wide()>(g, all, first, last, scratch, dx, out);
  });
}

}  // namespace
}  // namespace REVGRAD_ISA

const NormActBackwardLoops REVGRAD_JOIN(norm_act_backward_loops, REVGRAD_ISA) = {
    sums_any, column_sums_any, apply_any, rows_any};

}  // namespace revgrad
