// Common blocks in lines long enough are rotated pack by pack in registers. Others are cut into tiles
// that stay in the first-level cache: load, rotate, store.
#include "orthogonal_loops.h"

#include "isa.h"
#include "orthogonal_packs.h"
#include "tiles.h"

namespace revgrad {
inline namespace REVGRAD_ISA {
namespace {

// to[k] = sum over j of m[k * size + j] from[j]; a whole tile, so that lanes are constant.
template <class A>
void rotate_tile(const A* from, const A* m, int size, A* to) {
  for (int k = 0; k < size; ++k) {
    A sum[kLanes] = {};
    for (int j = 0; j < size; ++j) {
      const A weight = m[k * size + j];
#pragma omp simd
      for (int w = 0; w < kLanes; ++w) sum[w] += weight * from[j * kLanes + w];
    }
    memcpy(to + k * kLanes, sum, sizeof sum);
  }
}

// The same where every lane, a channel, has its own matrix; m points to the first lane's.
template <class A>
void rotate_tile_lanes(const A* from, const A* m, int size, int64_t channels, int lanes, A* to) {
  for (int k = 0; k < size; ++k) {
    A sum[kLanes] = {};
    for (int j = 0; j < size; ++j) {
      const A* weight = m + (k * size + j) * channels;
#pragma omp simd
      for (int w = 0; w < lanes; ++w) sum[w] += weight[w] * from[j * kLanes + w];
    }
    memcpy(to + k * kLanes, sum, sizeof sum);
  }
}

// How `rotate` wants the matrices: where (matrices, K, K) is to be read by rows, or by columns.
struct Order {
  int row, column;

  Order(const Blocks& b, bool up) : row(up ? 1 : b.size()), column(up ? b.size() : 1) {}
};

template <class T>
void arrange(const Blocks& b, bool up, const Acc<T>* q, Acc<T>* to) {
  const int size = b.size(), pairs = size * size;
  const Order order(b, up);
  const bool packed = pack_loop<T>(b, up) != nullptr;
  if (!b.lanes_are_channels || b.shared) {
    for (int64_t i = 0; i < b.matrices() * pairs; ++i)
      to[i] = without_payload(
          q[i / pairs * pairs + i % pairs / size * order.row + i % size * order.column]);
    return;
  }
  const int64_t lanes = packed ? kPack<T> : b.channels;
  const int64_t packs = packed ? packs_of<T>(b.channels) : 1;
  for (int64_t p = 0; p < packs; ++p)
    for (int i = 0; i < pairs; ++i)
      for (int64_t l = 0; l < lanes; ++l) {
        const int64_t part = packed ? l / kWidth<Acc<T>> : 0, w = l - part * kWidth<Acc<T>>;
        const int64_t c = packed ? pack_begin<T>(p, b.channels) + w * kParts<T> + part : l;
        to[(p * pairs + i) * lanes + l] =
            without_payload(q[c * pairs + i / size * order.row + i % size * order.column]);
      }
}

// How many lines follow one another along an axis of this length: their places need no division.
int64_t run_of(int64_t line, int64_t end, int64_t length) {
  const int64_t left = length - line % length;
  return left < end - line ? left : end - line;
}

// Contiguous: a line's lanes lie side by side, and have one matrix.
template <class T>
void rotate_lines(PackLoop<T> loop, bool up, const Blocks& b, const T* from, const Acc<T>* m,
                  T* to, int64_t begin, int64_t end) {
  const Rows xs = rows_of_x(b), ys = rows_of_y(b);
  const Rows &source = up ? ys : xs, &target = up ? xs : ys;
  const int64_t length = lanes_of(b), full = length / kPack<T>, rest = length - kPack<T>;
  const int64_t from_step = kPack<T> * source.step, to_step = kPack<T> * target.step;
  const int64_t x_line = b.side[1] * b.x[3], y_line = b.y[3];
  const int64_t from_line = up ? y_line : x_line, to_line = up ? x_line : y_line;
  const bool past_cache = goes_past_cache(b, up, to);
  for (int64_t line = begin; line < end;) {
    const Site s = line_at(b, line);
    const Acc<T>* mine = m + (b.shared ? 0 : s.channel * b.size() * b.size());
    const int64_t count = run_of(line, end, b.out[1]);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t x = s.x + i * x_line, y = s.y + i * y_line;
      const T* source_line = from + (up ? y : x);
      T* target_line = to + (up ? x : y);
      loop({source_line, target_line, from_step, to_step, full, from_line, to_line, past_cache},
           source, target, mine);
      if (full * kPack<T> < length)
        loop({source_line + rest * source.step, target_line + rest * target.step, 0, 0, 1,
              from_line, to_line, false},
             source, target, mine);
    }
    line += count;
  }
}

// Channels-last: a pack of channels, with its matrices, goes through many positions of a row.
template <class T>
void rotate_positions(PackLoop<T> loop, bool up, const Blocks& b, const T* from, const Acc<T>* m,
                      T* to, int64_t begin, int64_t end) {
  const Rows xs = rows_of_x(b), ys = rows_of_y(b);
  const Rows &source = up ? ys : xs, &target = up ? xs : ys;
  const int64_t x_step = b.side[2] * b.x[4], y_step = b.y[4];
  const int64_t numbers = b.shared ? 0 : kPack<T> * b.size() * b.size();  // matrices of a pack
  const bool past_cache = goes_past_cache(b, up, to);
  constexpr int64_t kTogether = 8;  // positions, which stay in the cache for all packs
  for (int64_t line = begin; line < end;) {
    const Site s = line_at(b, line);
    const int64_t run = run_of(line, end, b.out[2]), count = run < kTogether ? run : kTogether;
    for (int64_t p = 0; p < packs_of<T>(b.channels); ++p) {
      const int64_t at = pack_begin<T>(p, b.channels);
      loop({from + (up ? s.y : s.x) + at * source.step, to + (up ? s.x : s.y) + at * target.step,
            up ? y_step : x_step, up ? x_step : y_step, count, kTogether * (up ? y_step : x_step),
            kTogether * (up ? x_step : y_step), past_cache},
           source, target, m + p * numbers);
    }
    line += count;
  }
}

template <class T>
void rotate_tiles(bool up, const Blocks& b, const T* from, const Acc<T>* m, T* to, int64_t begin,
                  int64_t end) {
  using A = Acc<T>;
  const Rows xs = rows_of_x(b), ys = rows_of_y(b);
  const Rows &source = up ? ys : xs, &target = up ? xs : ys;
  const int size = b.size();
  const int64_t length = lanes_of(b);
  const bool own = b.lanes_are_channels && !b.shared;
  alignas(64) A in[kMaxBlock * kLanes], out[kMaxBlock * kLanes];
  for (int i = 0; i < size * kLanes; ++i) in[i] = 0;
  for (int64_t line = begin; line < end; ++line) {
    const Site s = line_at(b, line);
    const A* mine = m + (b.shared || own ? 0 : s.channel * size * size);
    for (int64_t at = 0; at < length; at += kLanes) {
      const int lanes = static_cast<int>(length - at < kLanes ? length - at : kLanes);
      const int64_t x = s.x + at * xs.step, y = s.y + at * ys.step;
      load(from + (up ? y : x), source, in, lanes);
      if (own)
        rotate_tile_lanes(in, mine + at, size, b.channels, lanes, out);
      else
        rotate_tile(in, mine, size, out);
      store(out, target, to + (up ? x : y), lanes);
    }
  }
}

template <class T>
void rotate(bool up, const Blocks& b, const T* from, const Acc<T>* m, T* to, int64_t begin,
            int64_t end) {
  const PackLoop<T> loop = pack_loop<T>(b, up);
  if (loop == nullptr) return rotate_tiles(up, b, from, m, to, begin, end);
  (b.lanes_are_channels ? rotate_positions<T> : rotate_lines<T>)(loop, up, b, from, m, to, begin,
                                                                 end);
  flush_past_cache();
}

template <class A>
A dot(const A* a, const A* b, int lanes) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int w = 0; w < lanes; ++w) sum += a[w] * b[w];
  return sum;
}

template <class T>
void weight(const Blocks& b, const T* x, const T* y, double* sum, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const Rows xs = rows_of_x(b), ys = rows_of_y(b);
  const int size = b.size();
  const int64_t length = lanes_of(b);
  alignas(64) A pixels[kMaxBlock * kLanes], values[kMaxBlock * kLanes];
  for (int64_t line = begin; line < end; ++line) {
    const Site s = line_at(b, line);
    for (int64_t at = 0; at < length; at += kLanes) {
      const int lanes = static_cast<int>(length - at < kLanes ? length - at : kLanes);
      load(x + s.x + at * xs.step, xs, pixels, lanes);
      load(y + s.y + at * ys.step, ys, values, lanes);
      for (int k = 0; k < size; ++k)
        for (int j = 0; j < size; ++j) {
          const A *left = values + k * kLanes, *right = pixels + j * kLanes;
          if (!b.lanes_are_channels) {
            sum[k * size + j] += static_cast<double>(dot(left, right, lanes));
            continue;
          }
          double* mine = sum + (k * size + j) * b.channels + at;
#pragma omp simd
          for (int w = 0; w < lanes; ++w) mine[w] += static_cast<double>(left[w] * right[w]);
        }
    }
  }
}

// --- by type ---

void arrange_dtype(DType dtype, bool up, const Blocks& b, const void* q, void* to) {
  by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    arrange<T>(b, up, static_cast<const Acc<T>*>(q), static_cast<Acc<T>*>(to));
  });
}

void rotate_dtype(DType dtype, bool up, const Blocks& b, const void* from, const void* m, void* to,
                  int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    rotate(up, b, static_cast<const T*>(from), static_cast<const Acc<T>*>(m), static_cast<T*>(to),
           begin, end);
  });
}

void weight_dtype(DType dtype, const Blocks& b, const void* x, const void* y, double* sum,
                  int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    weight(b, static_cast<const T*>(x), static_cast<const T*>(y), sum, begin, end);
  });
}

}  // namespace
}  // namespace REVGRAD_ISA

const OrthogonalLoops REVGRAD_JOIN(orthogonal_loops, REVGRAD_ISA) = {
    arrange_dtype, rotate_dtype, weight_dtype};

}  // namespace revgrad
