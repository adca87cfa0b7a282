// What the CUDA kernels of normalisation are made of: units of memory, walks, teams, moments.
#pragma once

#include <type_traits>

#include "dtype.h"
#include "norm_act.h"

namespace revgrad {
inline namespace REVGRAD_ISA {

constexpr int kWarp = 32;
constexpr int kNormThreads = 256;   // of a block, where nothing else is said
constexpr int kMostThreads = 1024;  // of a block that holds a whole statistic

// V neighbours in memory, moved at once. V and the order of every sum follow from the shape alone:
// where a pointer is not aligned, only the way in which a unit is moved changes, never a bit.
// Halves stay packed in registers, two in one.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Unit {
  static constexpr bool kPacked = sizeof(T) == 2 && V > 1;
  using Word = typename std::conditional<kPacked, uint32_t, T>::type;
  Word word[kPacked ? V / 2 : V];

  RG_FN T get(int v) const {
    if constexpr (kPacked) {
      T value;
      value.bits = static_cast<uint16_t>(word[v / 2] >> v % 2 * 16);
      return value;
    } else {
      return word[v];
    }
  }
  RG_FN void set(int v, T value) {
    if constexpr (kPacked) {
      const uint32_t bits = static_cast<uint32_t>(value.bits) << v % 2 * 16;
      word[v / 2] = (word[v / 2] & (v % 2 == 0 ? 0xffff0000u : 0xffffu)) | bits;
    } else {
      word[v] = value;
    }
  }
};

template <class T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

template <class T, int V>
inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Unit<T, V>) == 0;
}

template <bool Wide, int V, class T>
RG_FN Unit<T, V> get_unit(const T* from) {
  if constexpr (Wide) {
    return *reinterpret_cast<const Unit<T, V>*>(from);
  } else {
    Unit<T, V> unit{};
#pragma unroll
    for (int v = 0; v < V; ++v) unit.set(v, from[v]);
    return unit;
  }
}

template <class T, int V>
RG_FN void put_unit(T* to, const Unit<T, V>& unit, bool wide) {
  if (wide) {
    *reinterpret_cast<Unit<T, V>*>(to) = unit;
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = unit.get(v);
}

// K units of a walk, those beyond its end zero.
template <bool Wide, int K, class T, int V, class Walk>
RG_FN void get_units_as(Unit<T, V> (&to)[K], const T* from, Walk walk) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (walk.valid())
      to[k] = get_unit<Wide, V>(from + walk.offset());
    else
      to[k] = Unit<T, V>{};
    walk.next();
  }
}

// The branch stands outside, so that the loads of one thread are under way together.
template <int K, class T, int V, class Walk>
RG_FN void get_units(Unit<T, V> (&to)[K], const T* from, const Walk& walk, bool wide) {
  if (V == 1 || wide)
    get_units_as<true>(to, from, walk);
  else
    get_units_as<false>(to, from, walk);
}

// A contiguous image's statistics: each has `rows` stretches of `length` numbers, `pitch` apart.
// Its first channel is followed by others from row to row, or, where `flat`, from number to number.
struct Sets {
  int64_t count, rows, length, pitch, span, groups, per_group;
  bool channel_by_row, flat;

  RG_FN int64_t size() const { return rows * length; }
};

// One-pixel images whose samples stand alone: a statistic is one stretch of channels.
RG_FN bool is_flat(const Norm& n) { return n.pixels == 1 && !n.over_batch; }

RG_FN Sets sets_of(const Norm& n) {
  Sets s;
  s.count = n.statistics();
  s.groups = n.groups;
  s.per_group = n.per_group();
  s.span = n.over_batch ? n.pixels : s.per_group * n.pixels;
  s.flat = is_flat(n);
  s.channel_by_row = !s.flat && !n.over_batch;
  s.rows = n.over_batch ? n.batch : s.flat ? 1 : s.per_group;
  s.length = s.flat ? s.per_group : n.pixels;
  s.pitch = n.over_batch ? n.channels * n.pixels : n.pixels;
  return s;
}

// Every `step`-th unit of one statistic, from `unit` to `end`.
template <int V, class Index, bool Flat = false>
class SetWalk {
 public:
  RG_FN SetWalk(const Sets& s, int64_t set, Index unit, Index end, Index step)
      : base_(set * s.span), pitch_(s.pitch), channel_(set % s.groups * s.per_group),
        length_(static_cast<Index>(s.length / V)), unit_(unit), end_(end), step_(step),
        row_(0), at_(unit), row_step_(0), rest_(step), by_row_(s.channel_by_row) {
    if (s.rows > 1 && length_ > 0) {
      row_ = unit / length_;
      at_ = unit - row_ * length_;
      row_step_ = step / length_;
      rest_ = step - row_step_ * length_;
    }
  }

  RG_FN bool valid() const { return unit_ < end_; }
  RG_FN int left() const {  // at most a large number
    const Index units = (end_ - unit_ + step_ - 1) / step_;
    return units < 1024 ? static_cast<int>(units) : 1024;
  }
  RG_FN int64_t offset() const {
    return base_ + row_ * pitch_ + static_cast<int64_t>(at_) * V;
  }
  RG_FN int64_t channel(int v) const {
    if constexpr (Flat) return channel_ + static_cast<int64_t>(at_) * V + v;
    (void)v;
    return by_row_ ? channel_ + row_ : channel_;
  }
  RG_FN void next() {
    unit_ += step_;
    row_ += row_step_;
    at_ += rest_;
    if (at_ >= length_) {
      at_ -= length_;
      ++row_;
    }
  }
  RG_FN void advance(int times) {
    for (int i = 0; i < times; ++i) next();
  }

 private:
  int64_t base_, pitch_, channel_;
  Index length_, unit_, end_, step_, row_, at_, row_step_, rest_;
  bool by_row_;
};

// `left` units, `step` numbers apart; in a channels-last image each in another row.
struct LineWalk {
  int64_t at, step, row, row_step;
  int left;

  RG_FN bool valid() const { return left > 0; }
  RG_FN int64_t offset() const { return at; }
  RG_FN void next() { advance(1); }
  RG_FN void advance(int times) {
    at += times * step;
    row += times * row_step;
    left -= times;
  }
};

// Threads that share a sum: 1, 2, 4, ... 32 neighbours, or else the whole block. Every thread of
// the block must call.
template <class A>
struct Team {
  int width;
  A* shared;  // 2 * kWarp numbers

  __device__ int lane() const { return static_cast<int>(threadIdx.x) % width; }
  __device__ int index() const { return static_cast<int>(threadIdx.x) / width; }
  __device__ int first_lane() const {
    return static_cast<int>(threadIdx.x) % kWarp / width * width;
  }

  // The first thread's value.
  __device__ A first(A value) const {
    if (width <= kWarp) return __shfl_sync(0xffffffffu, value, first_lane());
    __syncthreads();
    if (threadIdx.x == 0) shared[0] = value;
    __syncthreads();
    return shared[0];
  }

  // Two sums at once, each in an order of its own, the same in every thread.
  __device__ void sum(A& a, A& b) const {
    for (int o = (width < kWarp ? width : kWarp) / 2; o > 0; o /= 2) {
      a += __shfl_down_sync(0xffffffffu, a, o);
      b += __shfl_down_sync(0xffffffffu, b, o);
    }
    if (width <= kWarp) {
      a = __shfl_sync(0xffffffffu, a, first_lane());
      b = __shfl_sync(0xffffffffu, b, first_lane());
      return;
    }
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    __syncthreads();
    if (threadIdx.x % kWarp == 0) {
      shared[warp] = a;
      shared[kWarp + warp] = b;
    }
    __syncthreads();
    a = b = 0;
    for (int w = 0; w < width / kWarp; ++w) {
      a += shared[w];
      b += shared[kWarp + w];
    }
  }
};

// Of `count` numbers: their mean and the sum of the squares of their distances from it.
template <class A>
struct Moments {
  A count, mean, squares;

  // Chan, Golub and LeVeque's merge.
  RG_FN void add(const Moments& other) {
    if (other.count == A(0)) return;
    const A total = count + other.count, away = other.mean - mean;
    const A share = other.count / total;
    squares += other.squares + away * away * count * share;
    mean += away * share;
    count = total;
  }
};

template <class A>
RG_FN A inverse_root(A value) {
  if constexpr (sizeof(A) == sizeof(float))
    return A(1) / sqrtf(value);
  else
    return A(1) / sqrt(value);
}

// The team's numbers as one. Means are summed from the first thread's on, lest a large one cancel.
template <class A>
__device__ Moments<A> pooled(const Team<A>& team, Moments<A> mine) {
  const A origin = team.first(mine.mean);
  if (mine.count == A(0)) mine.mean = origin;
  A count = mine.count, sum = mine.count * (mine.mean - origin);
  team.sum(count, sum);
  const A mean = count > A(0) ? origin + sum / count : A(0);
  const A away = mine.mean - mean;
  A squares = mine.squares + mine.count * away * away, none = 0;
  team.sum(squares, none);
  return {count, mean, squares};
}

// Pieces that a length is cut into, by the shape alone, so that no sum depends on the machine:
// enough blocks for the largest GPUs, but each with `least` to do.
struct Pieces {
  int64_t size, count;

  RG_FN int64_t begin(int64_t i) const { return i * size; }
  RG_FN int64_t end(int64_t i, int64_t length) const {
    return begin(i) + size < length ? begin(i) + size : length;
  }
};

constexpr int64_t kBlocksWanted = 2048;

inline int64_t ratio_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `others`: how many blocks there are for each piece.
inline Pieces pieces(int64_t length, int64_t least, int64_t others) {
  const int64_t most = ratio_up(kBlocksWanted, others < 1 ? 1 : others);
  const int64_t size = ratio_up(ratio_up(length, most), least) * least;
  return {size, length == 0 ? 0 : ratio_up(length, size)};
}

inline int power_of_two(int64_t at_least, int most) {
  int n = 1;
  while (n < at_least && n < most) n *= 2;
  return n;
}

// Of a team that adds up so many terms.
inline int width_for_terms(int64_t terms) {
  return terms <= 2 * kWarp ? power_of_two(terms, kWarp) : kNormThreads;
}

// Blocks of kNormThreads over the planes of a contiguous image: narrow teams with a plane each, or
// the whole block with a piece of one.
struct Planes {
  int64_t count, length;  // of a plane, in units
  Pieces cut;
  int width;

  RG_FN int64_t blocks() const {
    const int64_t teams = kNormThreads / width;
    return (count + teams - 1) / teams * cut.count;
  }
};

inline Planes planes_of(const Norm& n, int width_of_unit, int64_t batch) {
  Planes p;
  p.count = n.batch * n.channels;
  p.length = n.pixels / width_of_unit;
  const bool narrow = p.length <= kWarp * batch;
  p.width = narrow ? power_of_two(p.length, kWarp) : kNormThreads;
  p.cut = narrow ? Pieces{p.length, p.length > 0 ? 1 : 0}
                 : pieces(p.length, kNormThreads * batch, p.count);
  return p;
}

// The blocks of a grid from the last to the first. Where the kernel before this one read the same
// image, the image's end is what the cache still holds.
__device__ inline int64_t block_from_the_end() {
  return static_cast<int64_t>(gridDim.x) - 1 - blockIdx.x;
}

// One thread's part of a plane.
struct PlaneSite {
  int64_t plane, piece;
  LineWalk walk;
};

template <int V>
__device__ PlaneSite plane_site(const Planes& p, int64_t block) {
  const int me = static_cast<int>(threadIdx.x), lane = me % p.width;
  PlaneSite s{};
  s.piece = block % p.cut.count;
  s.plane = block / p.cut.count * (kNormThreads / p.width) + me / p.width;
  const int64_t first = p.cut.begin(s.piece) + lane;
  const int64_t left = s.plane < p.count ? p.cut.end(s.piece, p.length) - first : 0;
  s.walk.at = (s.plane * p.length + first) * V;
  s.walk.step = static_cast<int64_t>(p.width) * V;
  s.walk.left = left > 0 ? static_cast<int>((left + p.width - 1) / p.width) : 0;
  return s;
}

// Blocks of kNormThreads over a channels-last image: `across` units of channels, and `down` rows
// at once of a piece of the rows that one sample (or the batch) has.
struct Columns {
  int64_t samples, rows, channels, units, tiles;
  Pieces cut;
  int across, down;

  RG_FN int64_t blocks() const { return samples * cut.count * tiles; }
};

// The widest of the tiles that leave the fewest threads idle; none narrower than 128 bytes.
inline int tile_width(int64_t units) {
  int best = power_of_two(units, kWarp);
  for (int width = best / 2; width >= 8; width /= 2)
    if (ratio_up(units, width) * width < ratio_up(units, best) * best) best = width;
  return best;
}

inline Columns columns_of(const Norm& n, bool joined, int width_of_unit, int64_t batch) {
  Columns c;
  c.samples = joined ? 1 : n.batch;
  c.rows = joined ? n.batch * n.pixels : n.pixels;
  c.channels = n.channels;
  c.units = n.channels / width_of_unit;
  c.across = tile_width(c.units);
  c.down = kNormThreads / c.across;
  c.tiles = ratio_up(c.units, c.across);
  c.cut = pieces(c.rows, c.down * batch, c.samples * c.tiles);
  return c;
}

// One thread's part of a channels-last image.
struct ColumnSite {
  int64_t sample, piece, channel;
  int down;  // the thread's place in its column
  bool active;
  LineWalk walk;
};

template <int V>
__device__ ColumnSite column_site(const Columns& c, int64_t block) {
  const int64_t part = block / c.tiles;
  const int64_t unit = block % c.tiles * c.across + threadIdx.x % c.across;
  ColumnSite s;
  s.sample = part / c.cut.count;
  s.piece = part % c.cut.count;
  s.down = static_cast<int>(threadIdx.x) / c.across;
  s.active = unit < c.units;
  s.channel = unit * V;
  s.walk.row = s.sample * c.rows + c.cut.begin(s.piece) + s.down;
  s.walk.row_step = c.down;
  const int64_t left = c.cut.end(s.piece, c.rows) - c.cut.begin(s.piece) - s.down;
  s.walk.at = s.walk.row * c.channels + s.channel;
  s.walk.step = c.down * c.channels;
  s.walk.left = s.active && left > 0 ? static_cast<int>((left + c.down - 1) / c.down) : 0;
  return s;
}

// Calls f with the activation as a constant, f.value. No activation is the leaky ReLU of slope 1;
// for its derivative, which does not tell 0 from -0, the ReLU is that of slope 0.
template <Activation kind>
struct ActivationIs {
  static constexpr Activation value = kind;
};

template <bool Relu, class F>
__device__ void for_activation(Activation kind, F f) {
  if (kind == Activation::silu) return f(ActivationIs<Activation::silu>());
  if (kind == Activation::gelu) return f(ActivationIs<Activation::gelu>());
  if constexpr (Relu)
    if (kind == Activation::relu) return f(ActivationIs<Activation::relu>());
  f(ActivationIs<Activation::leaky_relu>());
}

template <class A>
RG_FN A slope_below_zero(Activation kind, A slope) {
  return kind == Activation::none ? A(1) : kind == Activation::relu ? A(0) : slope;
}

template <int K, class U>
RG_FN void rotate(U (&units)[K]) {
  const U first = units[0];
#pragma unroll
  for (int k = 1; k < K; ++k) units[k - 1] = units[k];
  units[K - 1] = first;
}

// Calls f(a[k], b[k]) for the units of a walk, which goes along. Registers have no addresses, so
// loops over them are unrolled; where the activation is long, units come to the first place in
// turn instead, or the code would be too.
template <Activation kind, int K, class U, class W, class Walk, class F>
__device__ void for_units(U (&a)[K], W (&b)[K], Walk& walk, F f) {
  if constexpr (kind == Activation::silu || kind == Activation::gelu) {
#pragma unroll 1
    for (int k = 0; k < K; ++k) {
      if (walk.valid()) f(a[0], b[0]);
      rotate(a);
      if (static_cast<void*>(a) != static_cast<void*>(b)) rotate(b);
      walk.next();
    }
  } else {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (walk.valid()) f(a[k], b[k]);
      walk.next();
    }
  }
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
