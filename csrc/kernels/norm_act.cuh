// CUDA kernels of normalisation with an activation, and of the update of a coupling's stream.
//
// A contiguous statistic that fits into the registers of a block is read once and written once;
// a larger one is cut into pieces whose moments are merged, then read again. Result and update
// are one kernel that ends in another store, so that both have the same bits.
#pragma once

#include "norm_act_parts.cuh"

namespace revgrad {
inline namespace REVGRAD_ISA {

// What all kernels of one call are told. mean and rstd are read where `given`, else written.
template <class A>
struct NormCall {
  Norm norm;
  const A *weight, *bias;
  A *mean, *rstd;
  A eps, slope;
  Activation activation;
  bool given;

  RG_FN Affine<A> affine(int64_t channel, A its_mean, A its_rstd) const {
    return {its_mean, weight == nullptr ? its_rstd : its_rstd * weight[channel],
            bias == nullptr ? A(0) : bias[channel]};
  }
  RG_FN Affine<A> affine_at(int64_t sample, int64_t channel) const {
    const int64_t s = norm.statistic(sample, channel);
    return affine(channel, mean[s], rstd[s]);
  }
  RG_FN A rstd_of(const Moments<A>& m) const {
    return inverse_root((m.count > A(0) ? m.squares / m.count : A(0)) + eps);
  }
};

// Where the result goes: into y, or onto a stream of its own type, a wider one, or int32.
enum class Store { write, add, add_float, add_double, add_fixed };

template <class T>
struct Target {
  const void* from;  // the stream; `to` itself, if that changes in place
  void* to;
  Store kind;
  bool wide;
  int sign;
  Acc<T> steps;  // of the int32 grid, in 1
};

template <class T>
inline Target<T> written_to(T* y) {
  return {nullptr, y, Store::write, true, 1, 1};
}

template <class T>
inline Target<T> added_to(const void* stream, void* sum, Store kind, int sign,
                          int fraction_bits) {
  return {stream, sum, kind, true, sign, static_cast<Acc<T>>(int64_t{1} << fraction_bits)};
}

template <int K, class T, int V, class Walk, class AffineOf, class A>
__device__ void activate_units(Unit<T, V> (&units)[K], Walk walk, AffineOf affine_of,
                               Activation kind, A given_slope) {
  const A slope = slope_below_zero(kind, given_slope);
  for_activation<true>(kind, [&](auto activation) {
    constexpr Activation kKind = decltype(activation)::value;
    for_units<kKind>(units, units, walk, [&](Unit<T, V>& unit, Unit<T, V>&) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A z = normalised(static_cast<A>(unit.get(v)), affine_of(walk, v));
        unit.set(v, static_cast<T>(activate<kKind>(z, slope)));
      }
    });
  });
}

// A few units of the stream at once: they may be wide, and registers hold the result too.
template <class S, int K, class T, int V, class Walk, class Sum>
__device__ void add_units(const Unit<T, V> (&units)[K], Walk walk, const Target<T>& to, Sum sum) {
  const S* from = static_cast<const S*>(to.from);
  S* into = static_cast<S*>(to.to);
  constexpr int kFew = K == 2 || sizeof(Unit<S, V>) >= 32 ? 2 : 4;
#pragma unroll
  for (int first = 0; first < K; first += kFew) {
    Unit<S, V> held[kFew];
    get_units(held, from, walk, to.wide);
#pragma unroll
    for (int k = 0; k < kFew; ++k) {
      if (walk.valid()) {
#pragma unroll
        for (int v = 0; v < V; ++v) held[k].set(v, sum(held[k].get(v), units[first + k].get(v)));
        put_unit(into + walk.offset(), held[k], to.wide);
      }
      walk.next();
    }
  }
}

template <class S, int K, class T, int V, class Walk>
__device__ void add_floats(const Unit<T, V> (&units)[K], const Walk& walk, const Target<T>& to) {
  using A = Acc<S>;
  const A sign = static_cast<A>(to.sign);
  add_units<S>(units, walk, to, [&](S old, T y) {
    return static_cast<S>(static_cast<A>(old) + sign * static_cast<A>(static_cast<Acc<T>>(y)));
  });
}

template <int K, class T, int V, class Walk>
__device__ void store_units(const Unit<T, V> (&units)[K], Walk walk, const Target<T>& to) {
  switch (to.kind) {
    case Store::write:
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (walk.valid()) put_unit(static_cast<T*>(to.to) + walk.offset(), units[k], to.wide);
        walk.next();
      }
      return;
    case Store::add: return add_floats<T>(units, walk, to);
    case Store::add_float:
      if constexpr (sizeof(T) < sizeof(float)) add_floats<float>(units, walk, to);
      return;
    case Store::add_double:
      if constexpr (sizeof(T) < sizeof(double)) add_floats<double>(units, walk, to);
      return;
    case Store::add_fixed:
      return add_units<int32_t>(units, walk, to, [&](int32_t old, T y) {
        const auto on_grid = round_to_grid(static_cast<Acc<T>>(y), to.steps);
        return add_on_grid(old, on_grid, to.sign);
      });
  }
}

// How many units a thread holds: of a whole statistic, and of an image that it walks through.
template <int V>
constexpr int kHeld = V == 1 ? 16 : V == 8 ? 4 : 8;
template <int V>
constexpr int kBatch = V == 1 ? 8 : V == 8 ? 2 : 4;

// The moments of the first `count` units, in two passes, with what the first mean lacks.
template <class A, int K, class T, int V>
__device__ Moments<A> moments_of(const Unit<T, V> (&units)[K], int count) {
  if (count <= 0) return {0, 0, 0};
  A sum = 0, rest = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (k < count)
#pragma unroll
      for (int v = 0; v < V; ++v) sum += static_cast<A>(units[k].get(v));
  const A numbers = static_cast<A>((count < K ? count : K) * V), share = A(1) / numbers;
  const A mean = sum * share;
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (k < count)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A away = static_cast<A>(units[k].get(v)) - mean;
        rest += away;
        squares += away * away;
      }
  return {numbers, mean + rest * share, squares - rest * rest * share};
}

// One team a statistic, which its registers hold.
template <class T, int V, bool Flat>
__global__ void __launch_bounds__(kMostThreads)
    norm_sets(const T* x, bool wide, NormCall<Acc<T>> call, Sets sets, Target<T> target,
              int width) {
  using A = Acc<T>;
  using Walk = SetWalk<V, int, Flat>;
  __shared__ A shared[2 * kWarp];
  const Team<A> team{width, shared};
  const int64_t teams = blockDim.x / static_cast<unsigned>(width);
  const int64_t mine = blockIdx.x * teams + team.index();
  const bool here = mine < sets.count;
  const int64_t set = here ? mine : 0;
  const Walk walk(sets, set, team.lane(), here ? static_cast<int>(sets.size() / V) : 0, width);
  Unit<T, V> units[kHeld<V>];
  get_units(units, x, walk, wide);
  A mean = 0, rstd = 0;
  if (call.given) {
    mean = call.mean[set];
    rstd = call.rstd[set];
  } else {
    const Moments<A> m = pooled(team, moments_of<A>(units, walk.left()));
    mean = m.mean;
    rstd = call.rstd_of(m);
    if (here && team.lane() == 0) {
      call.mean[set] = mean;
      call.rstd[set] = rstd;
    }
  }
  activate_units(
      units, walk,
      [&](const Walk& w, int v) { return call.affine(w.channel(v), mean, rstd); },
      call.activation, call.slope);
  store_units(units, walk, target);
}

// partial[set][piece]: the moments of pieces of a contiguous statistic; one block each.
template <class T, int V>
__global__ void __launch_bounds__(kNormThreads)
    moments_of_sets(const T* x, bool wide, Sets sets, Pieces cut, Moments<Acc<T>>* partial) {
  using A = Acc<T>;
  __shared__ A shared[2 * kWarp];
  const Team<A> team{kNormThreads, shared};
  const int64_t set = blockIdx.x / cut.count, piece = blockIdx.x % cut.count;
  SetWalk<V, int64_t> walk(sets, set, cut.begin(piece) + threadIdx.x,
                           cut.end(piece, sets.size() / V), kNormThreads);
  Moments<A> mine{0, 0, 0};
  while (walk.valid()) {
    Unit<T, V> units[kBatch<V>];
    get_units(units, x, walk, wide);
    mine.add(moments_of<A>(units, walk.left()));
    walk.advance(kBatch<V>);
  }
  mine = pooled(team, mine);
  if (threadIdx.x == 0) partial[blockIdx.x] = mine;
}

// The moments of V columns, which are of equally many numbers each.
template <class A, int V>
struct ColumnMoments {
  A count = 0, mean[V] = {}, squares[V] = {};

  // The first of K rows of units.
  template <int K, class T>
  __device__ void add(const Unit<T, V> (&units)[K], int rows) {
    const A here = static_cast<A>(rows < K ? rows : K), total = count + here;
    const A part = A(1) / here, share = here / total, factor = count * share;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A sum = 0, its_squares = 0;
#pragma unroll
      for (int k = 0; k < K; ++k) sum += static_cast<A>(units[k].get(v));  // zero beyond the end
      const A its_mean = sum * part, away = its_mean - mean[v];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const A d = static_cast<A>(units[k].get(v)) - its_mean;
        if (k < rows) its_squares += d * d;
      }
      squares[v] += its_squares + away * away * factor;
      mean[v] += away * share;
    }
    count = total;
  }

  // Those of the threads below, in the same columns: again and again half of the threads give
  // theirs to the other half. `shared` holds 2 V + 1 numbers for each thread.
  __device__ void gather(const Columns& c, int down, A* shared) {
    const int me = static_cast<int>(threadIdx.x);
    for (int half = c.down / 2; half > 0; half /= 2) {
      if (down >= half && down < 2 * half) {
        shared[me] = count;
        for (int v = 0; v < V; ++v) shared[(1 + v) * kNormThreads + me] = mean[v];
        for (int v = 0; v < V; ++v) shared[(1 + V + v) * kNormThreads + me] = squares[v];
      }
      __syncthreads();
      if (down < half) merge(shared + me + half * c.across);
      __syncthreads();
    }
  }

 private:
  __device__ void merge(const A* other) {
    if (other[0] == A(0)) return;
    const A total = count + other[0], share = other[0] / total, factor = count * share;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A away = other[(1 + v) * kNormThreads] - mean[v];
      squares[v] += other[(1 + V + v) * kNormThreads] + away * away * factor;
      mean[v] += away * share;
    }
    count = total;
  }
};

// partial[sample][piece][channel]: the moments of pieces of columns.
template <class T, int V>
__global__ void __launch_bounds__(kNormThreads)
    moments_of_columns(const T* x, bool wide, Columns columns, Moments<Acc<T>>* partial) {
  using A = Acc<T>;
  constexpr int K = kBatch<V>;
  __shared__ A shared[(2 * V + 1) * kNormThreads];
  ColumnSite s = column_site<V>(columns, blockIdx.x);
  ColumnMoments<A, V> mine;
  for (; s.walk.valid(); s.walk.advance(K)) {
    Unit<T, V> units[K];
    get_units(units, x, s.walk, wide);
    mine.add(units, s.walk.left);
  }
  mine.gather(columns, s.down, shared);
  if (!s.active || s.down > 0) return;
  const int64_t at = (s.sample * columns.cut.count + s.piece) * columns.channels + s.channel;
#pragma unroll
  for (int v = 0; v < V; ++v) partial[at + v] = {mine.count, mine.mean[v], mine.squares[v]};
}

// Which moments belong to a statistic: `pieces` rows, `pitch` apart, of `per_group` neighbours.
struct Partials {
  int64_t sets, groups, pieces, per_group, pitch;

  RG_FN int64_t size() const { return pieces * per_group; }
  RG_FN int64_t at(int64_t set, int64_t i) const {
    return set / groups * pieces * pitch + set % groups * per_group + i / per_group * pitch +
           i % per_group;
  }
};

// mean and rstd from the partial moments; one team a statistic.
template <class A>
__global__ void __launch_bounds__(kNormThreads)
    merge_moments(const Moments<A>* partial, Partials p, NormCall<A> call, int width) {
  __shared__ A shared[2 * kWarp];
  const Team<A> team{width, shared};
  const int64_t set = static_cast<int64_t>(blockIdx.x) * (kNormThreads / width) + team.index();
  const int64_t terms = set < p.sets ? p.size() : 0;
  Moments<A> mine{0, 0, 0};
  for (int64_t i = team.lane(); i < terms; i += width) mine.add(partial[p.at(set, i)]);
  mine = pooled(team, mine);
  if (set >= p.sets || team.lane() > 0) return;
  call.mean[set] = mine.mean;
  call.rstd[set] = call.rstd_of(mine);
}

// The result by given statistics, contiguous.
template <class T, int V>
__global__ void __launch_bounds__(kNormThreads, 4)
    norm_planes(const T* x, bool wide, NormCall<Acc<T>> call, Planes planes, Target<T> target) {
  PlaneSite s = plane_site<V>(planes, block_from_the_end());
  if (!s.walk.valid()) return;
  const int64_t channels = call.norm.channels;
  const Affine<Acc<T>> affine = call.affine_at(s.plane / channels, s.plane % channels);
  for (; s.walk.valid(); s.walk.advance(kBatch<V>)) {
    Unit<T, V> units[kBatch<V>];
    get_units(units, x, s.walk, wide);
    activate_units(
        units, s.walk, [&](const LineWalk&, int) { return affine; }, call.activation, call.slope);
    store_units(units, s.walk, target);
  }
}

// The result by given statistics, channels-last.
template <class T, int V>
__global__ void __launch_bounds__(kNormThreads, 3)
    norm_columns(const T* x, bool wide, NormCall<Acc<T>> call, Columns columns,
                 Target<T> target) {
  ColumnSite s = column_site<V>(columns, block_from_the_end());
  if (!s.walk.valid()) return;
  Affine<Acc<T>> affine[V];
#pragma unroll
  for (int v = 0; v < V; ++v) affine[v] = call.affine_at(s.sample, s.channel + v);
  for (; s.walk.valid(); s.walk.advance(kBatch<V>)) {
    Unit<T, V> units[kBatch<V>];
    get_units(units, x, s.walk, wide);
    activate_units(
        units, s.walk, [&](const LineWalk&, int v) { return affine[v]; }, call.activation,
        call.slope);
    store_units(units, s.walk, target);
  }
}

// How a call is carried out, from shape and type alone.
struct NormPlan {
  int unit;          // numbers moved at once
  bool held;         // by norm_sets; else, unless statistics are given, their moments first
  int width;         // of the teams of norm_sets or merge_moments
  unsigned threads;  // of a block of norm_sets
  int64_t blocks;    // of norm_sets or merge_moments
  Sets sets;
  Pieces cut;        // of sets, for moments_of_sets
  Columns columns;   // for moments_of_columns
  Partials partials;
};

inline int units_held(int unit) {
  return unit == 1 ? kHeld<1> : unit == 8 ? kHeld<8> : kHeld<4>;
}

// The neighbours in memory that are alike: a plane's pixels, or the channels of a pixel.
inline int64_t neighbours(const Norm& n) {
  if (is_flat(n)) return n.per_group();
  return n.channels_last ? n.channels : n.pixels;
}

inline int unit_of(const Norm& n, int wide) { return neighbours(n) % wide == 0 ? wide : 1; }

// Teams for statistics of so many units, of which a thread holds at most `held`.
inline void set_teams(NormPlan& p, int64_t units, int held) {
  p.threads = kNormThreads;
  if (units <= kWarp * held) {
    p.width = power_of_two(units, kWarp);
    p.blocks = ratio_up(p.sets.count, kNormThreads / p.width);
    return;
  }
  const int64_t relaxed = ratio_up(units, kWarp * held / 2);  // warps
  const int64_t warps = relaxed * kWarp <= 512 ? relaxed : ratio_up(units, kWarp * held);
  p.threads = static_cast<unsigned>(warps * kWarp);
  p.width = static_cast<int>(p.threads);
  p.blocks = p.sets.count;
}

inline NormPlan norm_plan(const Norm& n, int wide, bool given) {
  NormPlan p{};
  p.unit = unit_of(n, wide);
  p.sets = sets_of(n);
  const int held = units_held(p.unit);
  const int64_t units = p.sets.size() / p.unit;
  const bool in_sets = !n.channels_last || is_flat(n);
  p.held = in_sets && units <= kMostThreads * held && (is_flat(n) || !given);
  if (p.held) {
    set_teams(p, units, held);
    return p;
  }
  if (in_sets) {
    p.cut = pieces(units, held * kNormThreads, p.sets.count);
    p.partials = {p.sets.count, 1, p.cut.count, 1, 1};
  } else {
    p.columns = columns_of(n, n.over_batch, p.unit, held);
    p.partials = {p.sets.count, n.groups, p.columns.cut.count, n.per_group(), n.channels};
  }
  p.width = width_for_terms(p.partials.size());
  p.blocks = ratio_up(p.sets.count, kNormThreads / p.width);
  return p;
}

// How many moments a call keeps between its kernels.
inline int64_t norm_scratch(const Norm& n, int wide, bool given) {
  const NormPlan p = norm_plan(n, wide, given);
  if (p.held || given) return 0;
  return p.columns.blocks() > 0 ? p.columns.samples * p.columns.cut.count * n.channels
                                : p.sets.count * p.cut.count;
}

template <class T, int V>
void launch_moments(const T* x, bool wide, const NormPlan& p, const NormCall<Acc<T>>& call,
                    Moments<Acc<T>>* scratch, cudaStream_t stream) {
  using A = Acc<T>;
  if (p.columns.blocks() > 0)
    RG_LAUNCH((moments_of_columns<T, V>), static_cast<unsigned>(p.columns.blocks()), kNormThreads,
              0, stream, x, wide, p.columns, scratch);
  else if (p.sets.count * p.cut.count > 0)
    RG_LAUNCH((moments_of_sets<T, V>), static_cast<unsigned>(p.sets.count * p.cut.count),
              kNormThreads, 0, stream, x, wide, p.sets, p.cut, scratch);
  RG_LAUNCH(merge_moments<A>, static_cast<unsigned>(p.blocks), kNormThreads, 0, stream,
            static_cast<const Moments<A>*>(scratch), p.partials, call, p.width);
}

template <class T, int V>
void launch_norm_units(const T* x, const NormPlan& p, const NormCall<Acc<T>>& call,
                       const Target<T>& target, Moments<Acc<T>>* scratch, cudaStream_t stream) {
  const Norm& n = call.norm;
  const bool wide = is_aligned<T, V>(x);
  if (p.held) {
    const auto kernel = p.sets.flat ? norm_sets<T, V, true> : norm_sets<T, V, false>;
    RG_LAUNCH(kernel, static_cast<unsigned>(p.blocks), p.threads, 0, stream, x, wide, call,
              p.sets, target, p.width);
    return;
  }
  if (!call.given) launch_moments<T, V>(x, wide, p, call, scratch, stream);
  if (n.size() == 0) return;
  if (n.channels_last) {
    const Columns c = columns_of(n, n.over_batch, V, 4 * kBatch<V>);
    RG_LAUNCH((norm_columns<T, V>), static_cast<unsigned>(c.blocks()), kNormThreads, 0, stream, x,
              wide, call, c, target);
  } else {
    const Planes planes = planes_of(n, V, 2 * kBatch<V>);
    RG_LAUNCH((norm_planes<T, V>), static_cast<unsigned>(planes.blocks()), kNormThreads, 0,
              stream, x, wide, call, planes, target);
  }
}

template <class S, int V>
bool both_are_aligned(const void* from, const void* to) {  // null is
  return is_aligned<S, V>(static_cast<const S*>(from)) &&
         is_aligned<S, V>(static_cast<const S*>(to));
}

template <class T, int V>
bool target_is_aligned(const Target<T>& to) {
  switch (to.kind) {
    case Store::add_float: return both_are_aligned<float, V>(to.from, to.to);
    case Store::add_double: return both_are_aligned<double, V>(to.from, to.to);
    case Store::add_fixed: return both_are_aligned<int32_t, V>(to.from, to.to);
    default: return both_are_aligned<T, V>(to.from, to.to);
  }
}

// `scratch` holds norm_scratch(...) moments.
template <class T>
void launch_norm_act(const T* x, const NormCall<Acc<T>>& call, Target<T> target,
                     Moments<Acc<T>>* scratch, cudaStream_t stream) {
  const NormPlan p = norm_plan(call.norm, kWide<T>, call.given);
  if (p.sets.count == 0) return;
  if (p.unit == 1) {
    target.wide = true;
    launch_norm_units<T, 1>(x, p, call, target, scratch, stream);
  } else {
    target.wide = target_is_aligned<T, kWide<T>>(target);
    launch_norm_units<T, kWide<T>>(x, p, call, target, scratch, stream);
  }
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
