// The backward pass: sums of the gradients before the affine map, then dx from them.
#include "isa.h"
#include "norm_act_loops.h"
#include "tiles.h"

namespace revgrad {
inline namespace REVGRAD_ISA {
namespace {

// dy and x as numbers of one type, N: their own, or the accumulator's if dy has that.
template <class T, bool wide>
struct Source {
  using A = Acc<T>;
  using N = std::conditional_t<wide, A, T>;
  static constexpr bool kWidens = !std::is_same_v<N, T>;

  const N* dy;
  const T* from;
  T* to;  // dx
  bool direct;
  alignas(64) A tile[kWidens ? kTile : 1];
  alignas(64) N result[kTile];
  alignas(64) T narrowed[kWidens ? kTile : 1];

  explicit Source(const Gradient& g, void* dx = nullptr)
      : dy(static_cast<const N*>(g.dy)), from(static_cast<const T*>(g.x)),
        to(static_cast<T*>(dx)), direct(!g.past_cache) {}
  ~Source() {
    if (!direct) flush_past_cache();
  }

  const N* x(int64_t at, int64_t count) {
    if constexpr (kWidens) {
      widen(from + at, tile, count);
      return tile;
    } else {
      (void)count;
      return from + at;
    }
  }
  N* dx(int64_t at) {
    if constexpr (!kWidens)
      if (direct) return to + at;
    return result;
  }
  void store(int64_t at, int64_t count) {
    if constexpr (kWidens) {
      narrow(result, direct ? to + at : narrowed, count);
      if (!direct) copy_past_cache(narrowed, to + at, count);
    } else if (!direct) {
      copy_past_cache(result, to + at, count);
    }
  }
};

template <Activation kind, class A>
RG_FN A gradient(A dy, A x, const Affine<A>& a, A slope) {
  return dy * activation_slope<kind>(normalised(x, a), slope);
}

template <Activation kind, class N>
void sum_channel(const N* dy, const N* x, int64_t count, const Affine<Acc<N>> a, Acc<N> slope,
                 double* sums) {
  using A = Acc<N>;
  A first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
  for (int64_t i = 0; i < count; ++i) {
    const A value = static_cast<A>(x[i]);
    const A g = gradient<kind>(static_cast<A>(dy[i]), value, a, slope);
    first += g;
    second += g * (value - a.mean);
  }
  sums[0] += static_cast<double>(first);
  sums[1] += static_cast<double>(second);
}

template <Activation kind, class N, class A>
void sum_lanes(const N* dy, const N* x, int64_t count, const A* mean, const A* scale,
               const A* bias, A slope, A* first, A* second) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const Affine<A> a{mean[i], scale[i], bias[i]};
    const A value = static_cast<A>(x[i]);
    const A g = gradient<kind>(static_cast<A>(dy[i]), value, a, slope);
    first[i] += g;
    second[i] += g * (value - a.mean);
  }
}

template <Activation kind, class N, class A>
void dx_channel(const N* dy, const N* x, N* dx, int64_t count, const Affine<A> a, A slope, A gain,
                A offset, A drift) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const A value = static_cast<A>(x[i]);
    const A g = gradient<kind>(static_cast<A>(dy[i]), value, a, slope);
    put(gain * g - multiply_add(value - a.mean, drift, offset), dx[i]);
  }
}

template <Activation kind, class N, class A>
void dx_lanes(const N* dy, const N* x, N* dx, int64_t count, const A* mean, const A* scale,
              const A* bias, A slope, const A* gain, const A* offset, const A* drift) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const Affine<A> a{mean[i], scale[i], bias[i]};
    const A value = static_cast<A>(x[i]);
    const A g = gradient<kind>(static_cast<A>(dy[i]), value, a, slope);
    put(gain[i] * g - multiply_add(value - a.mean, drift[i], offset[i]), dx[i]);
  }
}

// Calls f(at, lane, count) for tiles of [begin, begin + count), rows of lanes if there are any.
template <class F>
RG_FN void each_tile(int64_t begin, int64_t count, int64_t lanes, F f) {
  const int64_t row = lanes > 0 ? lanes : count;
  for (int64_t start = 0; start < count; start += row) {
    const int64_t length = count - start < row ? count - start : row;
    for (int64_t lane = 0; lane < length; lane += kTile)
      f(begin + start + lane, lane, length - lane < kTile ? length - lane : kTile);
  }
}

template <class A>
struct Lanes {
  const A *mean, *scale, *bias;
  explicit Lanes(const Coefficients& c)
      : mean(static_cast<const A*>(c.mean)), scale(static_cast<const A*>(c.scale)),
        bias(static_cast<const A*>(c.bias)) {}
  Affine<A> first() const { return {*mean, *scale, *bias}; }
};

template <class T, bool wide>
void sums(const Gradient& g, int64_t begin, int64_t count, const Coefficients& c, double* sums) {
  Source<T, wide> source(g);
  const Affine<Acc<T>> a = Lanes<Acc<T>>(c).first();
  const Acc<T> slope = static_cast<Acc<T>>(g.act.slope);
  with_activation(g.act.kind, [&](auto kind) {
    each_tile(begin, count, 0, [&](int64_t at, int64_t, int64_t some) {
      sum_channel<kind()>(source.dy + at, source.x(at, some), some, a, slope, sums);
    });
  });
}

template <class T, bool wide>
void column_sums(const Gradient& g, int64_t begin, int64_t rows, int64_t channels,
                 const Coefficients& c, double* scratch, double* sums) {
  using A = Acc<T>;
  constexpr int64_t kFlush = 32;  // rows of lanes summed in the accumulator's type
  const int64_t lanes = pixels_at_a_time(channels, rows) * channels;
  A *first = reinterpret_cast<A*>(scratch), *second = first + lanes;
  Source<T, wide> source(g);
  const Lanes<A> l(c);
  const A slope = static_cast<A>(g.act.slope);
  for (int64_t start = 0; start < rows * channels; start += kFlush * lanes) {
    for (int64_t i = 0; i < lanes; ++i) first[i] = second[i] = 0;
    const int64_t left = rows * channels - start;
    with_activation(g.act.kind, [&](auto kind) {
      each_tile(begin + start, left < kFlush * lanes ? left : kFlush * lanes, lanes,
                [&](int64_t at, int64_t lane, int64_t some) {
                  sum_lanes<kind()>(source.dy + at, source.x(at, some), some, l.mean + lane,
                                    l.scale + lane, l.bias + lane, slope, first + lane,
                                    second + lane);
                });
    });
    for (int64_t i = 0; i < lanes; i += channels)
      for (int64_t k = 0; k < channels; ++k) {
        sums[2 * k] += static_cast<double>(first[i + k]);
        sums[2 * k + 1] += static_cast<double>(second[i + k]);
      }
  }
}

template <class T, bool wide>
void apply(const Gradient& g, int64_t begin, int64_t count, int64_t lanes, const Coefficients& c,
           const BackwardCoefficients& b, void* dx) {
  using A = Acc<T>;
  Source<T, wide> source(g, dx);
  const Lanes<A> l(c);
  const A *gain = static_cast<const A*>(b.gain), *offset = static_cast<const A*>(b.offset);
  const A *drift = static_cast<const A*>(b.drift), slope = static_cast<A>(g.act.slope);
  with_activation(g.act.kind, [&](auto kind) {
    each_tile(begin, count, lanes, [&](int64_t at, int64_t lane, int64_t some) {
      const auto* x = source.x(at, some);
      if (lanes > 0)
        dx_lanes<kind()>(source.dy + at, x, source.dx(at), some, l.mean + lane, l.scale + lane,
                         l.bias + lane, slope, gain + lane, offset + lane, drift + lane);
      else
        dx_channel<kind()>(source.dy + at, x, source.dx(at), some, l.first(), slope, *gain,
                           *offset, *drift);
      source.store(at, some);
    });
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
    each_tile(begin, count, 0, [&](int64_t at, int64_t lane, int64_t some) {
      row_sums<kind()>(source.dy + at, source.x(at, some), some, from(lane), total);
    });
    const double share = constant ? 0 : r.rstd / static_cast<double>(count);
    const A offset = static_cast<A>(total[0] * share), drift = static_cast<A>(total[1] * share * r.rstd);
    each_tile(begin, count, 0, [&](int64_t at, int64_t lane, int64_t some) {
      row_dx<kind()>(source.dy + at, source.x(at, some), source.dx(at), some, from(lane), offset,
                     drift);
      source.store(at, some);
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
