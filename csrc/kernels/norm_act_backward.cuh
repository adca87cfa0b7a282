// CUDA kernels of the derivative of normalisation with an activation.
//
// With dz, the gradient before the activation, and h = (x - mean) * rstd:
//   dbias = sum dz, dweight = sum dz h,
//   dx = rstd * (weight dz - mean(weight dz) - h mean(weight dz h)),
// sums over a channel, means over a statistic. A contiguous statistic of one channel that fits into
// registers is read once. Otherwise one pass sums and one writes dx. Sums are of fixed order.
#pragma once

#include "norm_act.cuh"

namespace revgrad {
inline namespace REVGRAD_ISA {

// Sums of dz and of dz h; or, of a statistic, what they take from dx: plain + by_h * h.
template <class A>
struct GradSums {
  A plain, by_h;
};

// Where a channel's sums lie that the passes before leave, to be added up.
struct SumsLayout {
  int64_t samples, pieces, sample_pitch, channel_pitch, piece_pitch;

  RG_FN int64_t at(int64_t sample, int64_t channel, int64_t piece) const {
    return sample * sample_pitch + channel * channel_pitch + piece * piece_pitch;
  }
};

// What dx of a number is made with.
template <class A>
struct GradPoint {
  Affine<A> affine;
  A rstd;
  GradSums<A> shift;

  RG_FN A h(A x) const { return (x - affine.mean) * rstd; }
  RG_FN A dx(A dz, A its_h) const {
    return affine.scale * dz - shift.plain - its_h * shift.by_h;
  }
};

// `shifts` of every statistic, where there are any.
template <class A>
RG_FN GradPoint<A> grad_point(const NormCall<A>& call, int64_t channel, int64_t set,
                              const GradSums<A>* shifts) {
  const GradSums<A> none{0, 0};
  return {call.affine(channel, call.mean[set], call.rstd[set]), call.rstd[set],
          shifts == nullptr ? none : shifts[set]};
}

// Calls f(v, unit of x, point, dz, h) for every number at hand.
template <int K, class D, class T, int V, class Walk, class PointOf, class A, class F>
__device__ void for_gradients(Unit<D, V> (&dy)[K], Unit<T, V> (&x)[K], Walk walk,
                              PointOf point_of, const NormCall<A>& call, F f) {
  const A below = slope_below_zero(call.activation, call.slope);
  for_activation<false>(call.activation, [&](auto activation) {
    constexpr Activation kKind = decltype(activation)::value;
    for_units<kKind>(dy, x, walk, [&](const Unit<D, V>& gradients, Unit<T, V>& unit) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const GradPoint<A> p = point_of(walk, v);
        const A number = static_cast<A>(unit.get(v));
        const A slope = activation_slope<kKind>(normalised(number, p.affine), below);
        f(v, unit, p, static_cast<A>(gradients.get(v)) * slope, p.h(number));
      }
    });
  });
}

// Units of both images that a thread holds: of a whole statistic, and on its way through.
template <int V>
constexpr int kGradHeld = V == 1 ? 8 : 4;
template <int V>
constexpr int kGradBatch = V == 1 ? 4 : 2;

template <class D, class T>
struct GradImages {
  const D* dy;
  const T* x;
  T* dx;
  bool wide;
};

template <int K, class T, int V, class Walk>
__device__ void write_units(const Unit<T, V> (&units)[K], Walk walk, T* to, bool wide) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (walk.valid()) put_unit(to + walk.offset(), units[k], wide);
    walk.next();
  }
}

// dx in the place of x.
template <int K, class D, class T, int V, class Walk, class PointOf, class A>
__device__ void to_dx(Unit<D, V> (&dy)[K], Unit<T, V> (&x)[K], const Walk& walk,
                      PointOf point_of, const NormCall<A>& call) {
  for_gradients(dy, x, walk, point_of, call,
                [&](int v, Unit<T, V>& unit, const GradPoint<A>& p, A dz, A h) {
                  unit.set(v, static_cast<T>(p.dx(dz, h)));
                });
}

// One team a statistic, which its registers hold: of one channel, whose sums it leaves in
// sums[set], or, where Flat, one number of each of many channels.
template <class T, class D, int V, bool Flat>
__global__ void __launch_bounds__(kMostThreads)
    grad_sets(GradImages<D, T> images, NormCall<Acc<T>> call, Sets sets, GradSums<Acc<T>>* sums,
              int width) {
  using A = Acc<T>;
  using Walk = SetWalk<V, int, Flat>;
  __shared__ A shared[2 * kWarp];
  const Team<A> team{width, shared};
  const int64_t teams = blockDim.x / static_cast<unsigned>(width);
  const int64_t mine = blockIdx.x * teams + team.index();
  const bool here = mine < sets.count;
  const int64_t set = here ? mine : 0;
  const int size = static_cast<int>(sets.size() / V);
  const Walk walk(sets, set, team.lane(), here ? size : 0, width);
  constexpr int K = kGradHeld<V>;
  Unit<D, V> dy[K];
  Unit<T, V> x[K];
  get_units(dy, images.dy, walk, images.wide);
  get_units(x, images.x, walk, images.wide);
  const A mean = call.mean[set], rstd = call.rstd[set];
  GradSums<A> shift{0, 0}, sum{0, 0};
  const auto point_of = [&](const Walk& w, int v) {
    return GradPoint<A>{call.affine(w.channel(v), mean, rstd), rstd, shift};
  };
  for_gradients(dy, x, walk, point_of, call,
                [&](int, const Unit<T, V>&, const GradPoint<A>& p, A dz, A h) {
                  const A weighted = Flat ? p.affine.scale * dz : dz;
                  sum.plain += weighted;
                  sum.by_h += weighted * h;
                });
  team.sum(sum.plain, sum.by_h);
  if constexpr (!Flat) {
    if (here && team.lane() == 0) sums[set] = sum;
    const A scale = call.affine(walk.channel(0), mean, rstd).scale;
    sum = {scale * sum.plain, scale * sum.by_h};
  }
  if (!call.given) {
    const A share = A(1) / static_cast<A>(sets.size());
    shift = {sum.plain * share, sum.by_h * share};
  }
  to_dx(dy, x, walk, point_of, call);
  write_units(x, walk, images.dx, images.wide);
}

// sums[plane][piece]: of pieces of the planes of a contiguous image.
template <class T, class D, int V>
__global__ void __launch_bounds__(kNormThreads, 4)
    sums_of_planes(GradImages<D, T> images, NormCall<Acc<T>> call, Planes planes,
                   GradSums<Acc<T>>* sums) {
  using A = Acc<T>;
  __shared__ A shared[2 * kWarp];
  const Team<A> team{planes.width, shared};
  PlaneSite s = plane_site<V>(planes, blockIdx.x);
  const int64_t channels = call.norm.channels;
  const int64_t plane = s.plane < planes.count ? s.plane : 0;
  const int64_t sample = plane / channels, channel = plane % channels;
  const GradPoint<A> point =
      grad_point<A>(call, channel, call.norm.statistic(sample, channel), nullptr);
  GradSums<A> sum{0, 0};
  for (; s.walk.valid(); s.walk.advance(kGradBatch<V>)) {
    Unit<D, V> dy[kGradBatch<V>];
    Unit<T, V> x[kGradBatch<V>];
    get_units(dy, images.dy, s.walk, images.wide);
    get_units(x, images.x, s.walk, images.wide);
    for_gradients(
        dy, x, s.walk, [&](const LineWalk&, int) { return point; }, call,
        [&](int, const Unit<T, V>&, const GradPoint<A>&, A dz, A h) {
          sum.plain += dz;
          sum.by_h += dz * h;
        });
  }
  team.sum(sum.plain, sum.by_h);
  if (s.plane < planes.count && team.lane() == 0)
    sums[s.plane * planes.cut.count + s.piece] = sum;
}

// A sum over the threads below, in the same columns. `shared` holds N numbers for each thread.
template <int N, class A>
__device__ void gather_sums(A (&values)[N], const Columns& c, int down, A* shared) {
  const int me = static_cast<int>(threadIdx.x);
  for (int half = c.down / 2; half > 0; half /= 2) {
    if (down >= half && down < 2 * half)
      for (int i = 0; i < N; ++i) shared[i * kNormThreads + me] = values[i];
    __syncthreads();
    if (down < half)
      for (int i = 0; i < N; ++i) values[i] += shared[i * kNormThreads + me + half * c.across];
    __syncthreads();
  }
}

// What V channels of a pixel are differentiated with, by the statistics of one sample.
template <int V, class A>
__device__ void set_points(GradPoint<A> (&points)[V], const NormCall<A>& call, int64_t sample,
                           int64_t channel, const GradSums<A>* shifts) {
#pragma unroll
  for (int v = 0; v < V; ++v)
    points[v] =
        grad_point<A>(call, channel + v, call.norm.statistic(sample, channel + v), shifts);
}

// sums[sample][piece][channel]: of pieces of columns. Where ByRow, each row is a sample, and its V
// channels are of one statistic.
template <class T, class D, int V, bool ByRow>
__global__ void __launch_bounds__(kNormThreads, 2)
    sums_of_columns(GradImages<D, T> images, NormCall<Acc<T>> call, Columns columns,
                    GradSums<Acc<T>>* sums) {
  using A = Acc<T>;
  constexpr int K = ByRow ? 1 : kGradBatch<V>;
  __shared__ A shared[2 * V * kNormThreads];
  ColumnSite s = column_site<V>(columns, blockIdx.x);
  GradPoint<A> points[V] = {};
  A sum[2 * V] = {};
  if constexpr (!ByRow)
    if (s.active) set_points<V, A>(points, call, s.sample, s.channel, nullptr);
  for (; s.walk.valid(); s.walk.advance(K)) {
    Unit<D, V> dy[K];
    Unit<T, V> x[K];
    get_units(dy, images.dy, s.walk, images.wide);
    get_units(x, images.x, s.walk, images.wide);
    if constexpr (ByRow) {
      const int64_t set = call.norm.statistic(s.walk.row, s.channel);
#pragma unroll
      for (int v = 0; v < V; ++v)
        points[v] = grad_point<A>(call, s.channel + v, set, nullptr);
    }
    for_gradients(
        dy, x, s.walk, [&](const LineWalk&, int v) { return points[v]; }, call,
        [&](int v, const Unit<T, V>&, const GradPoint<A>&, A dz, A h) {
          sum[v] += dz;
          sum[V + v] += dz * h;
        });
  }
  gather_sums(sum, columns, s.down, shared);
  if (!s.active || s.down > 0) return;
  const int64_t at = (s.sample * columns.cut.count + s.piece) * columns.channels + s.channel;
#pragma unroll
  for (int v = 0; v < V; ++v) sums[at + v] = {sum[v], sum[V + v]};
}

// How many blocks of total_sums there are for channels and for statistics, and how wide their teams.
struct TotalBlocks {
  int64_t of_channels, of_sets;
  int channel_width, set_width;
};

// dweight and dbias of every channel, then the shifts of `sets` statistics; one team each.
template <class A>
__global__ void __launch_bounds__(kNormThreads)
    total_sums(const GradSums<A>* sums, SumsLayout layout, NormCall<A> call, TotalBlocks blocks,
               int64_t sets, A* dweight, A* dbias, GradSums<A>* shifts) {
  __shared__ A shared[2 * kWarp];
  const bool of_channel = blockIdx.x < blocks.of_channels;
  const Team<A> team{of_channel ? blocks.channel_width : blocks.set_width, shared};
  const Norm& n = call.norm;
  const int64_t block = blockIdx.x - (of_channel ? 0 : blocks.of_channels);
  const int64_t item = block * (kNormThreads / team.width) + team.index();
  const bool here = item < (of_channel ? n.channels : sets);
  const int64_t channels = of_channel ? 1 : n.per_group();
  const int64_t first = of_channel ? item : item % n.groups * n.per_group();
  const bool all_samples = of_channel || n.over_batch;
  const int64_t sample = all_samples ? 0 : item / n.groups;
  const int64_t terms = here ? (all_samples ? layout.samples : 1) * channels * layout.pieces : 0;
  GradSums<A> total{0, 0};
  for (int64_t i = team.lane(); i < terms; i += team.width) {
    const int64_t channel = first + i / layout.pieces % channels;
    const GradSums<A> term = sums[layout.at(sample + i / layout.pieces / channels, channel,
                                            i % layout.pieces)];
    const A weight = of_channel || call.weight == nullptr ? A(1) : call.weight[channel];
    total.plain += weight * term.plain;
    total.by_h += weight * term.by_h;
  }
  team.sum(total.plain, total.by_h);
  if (!here || team.lane() > 0) return;
  if (of_channel) {
    dbias[item] = total.plain;
    dweight[item] = total.by_h;
  } else {
    const A share = call.rstd[item] / static_cast<A>(n.per_statistic());
    shifts[item] = {total.plain * share, total.by_h * share};
  }
}

// dx by the shifts, contiguous; none where statistics are constants.
template <class T, class D, int V>
__global__ void __launch_bounds__(kNormThreads, 4)
    grad_planes(GradImages<D, T> images, NormCall<Acc<T>> call, Planes planes,
                const GradSums<Acc<T>>* shifts) {
  using A = Acc<T>;
  PlaneSite s = plane_site<V>(planes, block_from_the_end());
  if (!s.walk.valid()) return;
  const int64_t sample = s.plane / call.norm.channels, channel = s.plane % call.norm.channels;
  const GradPoint<A> point =
      grad_point<A>(call, channel, call.norm.statistic(sample, channel), shifts);
  for (; s.walk.valid(); s.walk.advance(kGradBatch<V>)) {
    Unit<D, V> dy[kGradBatch<V>];
    Unit<T, V> x[kGradBatch<V>];
    get_units(dy, images.dy, s.walk, images.wide);
    get_units(x, images.x, s.walk, images.wide);
    to_dx(dy, x, s.walk, [&](const LineWalk&, int) { return point; }, call);
    write_units(x, s.walk, images.dx, images.wide);
  }
}

// dx by the shifts, channels-last.
template <class T, class D, int V>
__global__ void __launch_bounds__(kNormThreads, 2)
    grad_columns(GradImages<D, T> images, NormCall<Acc<T>> call, Columns columns,
                 const GradSums<Acc<T>>* shifts) {
  using A = Acc<T>;
  ColumnSite s = column_site<V>(columns, block_from_the_end());
  if (!s.walk.valid()) return;
  GradPoint<A> points[V];
  set_points(points, call, s.sample, s.channel, shifts);
  for (; s.walk.valid(); s.walk.advance(kGradBatch<V>)) {
    Unit<D, V> dy[kGradBatch<V>];
    Unit<T, V> x[kGradBatch<V>];
    get_units(dy, images.dy, s.walk, images.wide);
    get_units(x, images.x, s.walk, images.wide);
    to_dx(dy, x, s.walk, [&](const LineWalk&, int v) { return points[v]; }, call);
    write_units(x, s.walk, images.dx, images.wide);
  }
}

// How a backward pass is carried out, from shape and type alone.
struct GradPlan {
  NormPlan teams;  // of grad_sets, where `teams.held`
  bool by_row;     // sums over channels-last rows, each a sample of its own
  Planes planes;   // for sums_of_planes
  Columns columns; // for sums_of_columns
  SumsLayout layout;
  int64_t sums, shifts;  // how many
  TotalBlocks total;
};

inline TotalBlocks total_blocks(const Norm& n, const SumsLayout& layout, int64_t shifts) {
  TotalBlocks b{};
  b.channel_width = width_for_terms(layout.samples * layout.pieces);
  b.set_width =
      width_for_terms((n.over_batch ? layout.samples : 1) * n.per_group() * layout.pieces);
  b.of_channels = ratio_up(n.channels, kNormThreads / b.channel_width);
  b.of_sets = ratio_up(shifts, kNormThreads / b.set_width);
  return b;
}

inline void grad_sums_plan(GradPlan& p, const Norm& n, int held) {
  if (n.channels_last) {
    p.by_row = p.teams.held;
    p.columns = columns_of(n, n.over_batch || p.by_row, p.teams.unit, held);
    const Columns& c = p.columns;
    p.layout = {c.samples, c.cut.count, c.cut.count * n.channels, 1, n.channels};
  } else if (p.teams.held) {
    p.layout = {n.over_batch ? 1 : n.batch, 1, n.channels, 1, 1};
  } else {
    p.planes = planes_of(n, p.teams.unit, held);
    p.layout = {n.batch, p.planes.cut.count, n.channels * p.planes.cut.count, p.planes.cut.count,
                1};
  }
  p.sums = p.layout.samples * n.channels * p.layout.pieces;
}

inline GradPlan grad_plan(const Norm& n, int wide, bool constant) {
  GradPlan p{};
  p.teams.unit = unit_of(n, wide);
  p.teams.sets = sets_of(n);
  const int held = p.teams.unit == 1 ? kGradHeld<1> : kGradHeld<2>;
  const int64_t units = p.teams.sets.size() / p.teams.unit;
  const bool one_channel = !n.channels_last && n.per_group() == 1;
  p.teams.held = n.size() > 0 && (one_channel || is_flat(n)) && units <= kMostThreads * held;
  if (p.teams.held) set_teams(p.teams, units, held);
  grad_sums_plan(p, n, 2 * held);
  p.shifts = p.teams.held || constant ? 0 : n.statistics();
  p.total = total_blocks(n, p.layout, p.shifts);
  return p;
}

// How many pairs of sums a call keeps between its kernels.
inline int64_t grad_scratch(const Norm& n, int wide, bool constant) {
  const GradPlan p = grad_plan(n, wide, constant);
  return p.sums + p.shifts;
}

template <class T, class D, int V>
void launch_grad_sums(const GradImages<D, T>& images, const GradPlan& p,
                      const NormCall<Acc<T>>& call, GradSums<Acc<T>>* sums, cudaStream_t stream) {
  const auto of_sets = p.teams.sets.flat ? grad_sets<T, D, V, true> : grad_sets<T, D, V, false>;
  if (p.teams.held)
    RG_LAUNCH(of_sets, static_cast<unsigned>(p.teams.blocks), p.teams.threads, 0, stream, images,
              call, p.teams.sets, sums, p.teams.width);
  if (p.columns.blocks() > 0 && p.by_row)
    RG_LAUNCH((sums_of_columns<T, D, V, true>), static_cast<unsigned>(p.columns.blocks()),
              kNormThreads, 0, stream, images, call, p.columns, sums);
  else if (p.columns.blocks() > 0)
    RG_LAUNCH((sums_of_columns<T, D, V, false>), static_cast<unsigned>(p.columns.blocks()),
              kNormThreads, 0, stream, images, call, p.columns, sums);
  else if (p.planes.count > 0 && p.planes.blocks() > 0)
    RG_LAUNCH((sums_of_planes<T, D, V>), static_cast<unsigned>(p.planes.blocks()), kNormThreads,
              0, stream, images, call, p.planes, sums);
}

template <class T, class D, int V>
void launch_grad_units(GradImages<D, T> images, const GradPlan& p, const NormCall<Acc<T>>& call,
                       Acc<T>* dweight, Acc<T>* dbias, GradSums<Acc<T>>* scratch,
                       cudaStream_t stream) {
  using A = Acc<T>;
  const Norm& n = call.norm;
  GradSums<A>* shifts = p.shifts > 0 ? scratch + p.sums : nullptr;
  images.wide = V == 1 || (is_aligned<D, V>(images.dy) && is_aligned<T, V>(images.x) &&
                           is_aligned<T, V>(images.dx));
  launch_grad_sums<T, D, V>(images, p, call, scratch, stream);
  RG_LAUNCH(total_sums<A>, static_cast<unsigned>(p.total.of_channels + p.total.of_sets),
            kNormThreads, 0, stream, static_cast<const GradSums<A>*>(scratch), p.layout, call,
            p.total, p.shifts, dweight, dbias, shifts);
  if (p.teams.held || n.size() == 0) return;
  if (n.channels_last) {
    const Columns c = columns_of(n, n.over_batch, V, 4 * kGradBatch<V>);
    RG_LAUNCH((grad_columns<T, D, V>), static_cast<unsigned>(c.blocks()), kNormThreads, 0, stream,
              images, call, c, static_cast<const GradSums<A>*>(shifts));
  } else {
    const Planes planes = planes_of(n, V, 2 * kGradBatch<V>);
    RG_LAUNCH((grad_planes<T, D, V>), static_cast<unsigned>(planes.blocks()), kNormThreads, 0,
              stream, images, call, planes, static_cast<const GradSums<A>*>(shifts));
  }
}

// `call.given`: statistics are constants. `scratch` holds grad_scratch(...) pairs.
template <class T, class D>
void launch_norm_act_backward(const D* dy, const T* x, T* dx, const NormCall<Acc<T>>& call,
                              Acc<T>* dweight, Acc<T>* dbias, GradSums<Acc<T>>* scratch,
                              cudaStream_t stream) {
  const GradPlan p = grad_plan(call.norm, kWide<T>, call.given);
  const GradImages<D, T> images{dy, x, dx, true};
  if (p.teams.unit == 1)
    launch_grad_units<T, D, 1>(images, p, call, dweight, dbias, scratch, stream);
  else
    launch_grad_units<T, D, kWide<T>>(images, p, call, dweight, dbias, scratch, stream);
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
