// Lines are cut into tiles that stay in the first-level cache: load, rotate, store.
#include "orthogonal_loops.h"

#include "../kernels/dtype.h"
#include "isa.h"

namespace revgrad {
inline namespace REVGRAD_ISA {
namespace {

constexpr int kLanes = 64;

// How one side of a block lies in memory: `rows` pointers, each with `step` pixels of a block
// side by side. Pixel r * step + b of lane w is row[r][w * step + b].
struct Rows {
  int count, step;
  int64_t offset[kMaxBlock];
};

Rows rows_of_x(const Blocks& b) {
  Rows rows;
  rows.step = b.lanes_are_channels ? 1 : b.side[2];
  rows.count = b.size() / rows.step;
  for (int r = 0; r < rows.count; ++r) rows.offset[r] = b.offset[r * rows.step];
  return rows;
}

Rows rows_of_y(const Blocks& b) {
  Rows rows;
  rows.step = b.lanes_are_channels ? b.size() : 1;
  rows.count = b.size() / rows.step;
  for (int r = 0; r < rows.count; ++r) rows.offset[r] = r * b.y[1];
  return rows;
}

template <class A, class T, int Step>
inline void split(const T* row, A* tile, int lanes) {
#pragma omp simd
  for (int w = 0; w < lanes; ++w)
    for (int s = 0; s < Step; ++s) tile[s * kLanes + w] = static_cast<A>(row[w * Step + s]);
}

template <class A, class T, int Step>
inline void merge(const A* tile, T* row, int lanes) {
#pragma omp simd
  for (int w = 0; w < lanes; ++w)
    for (int s = 0; s < Step; ++s) put(tile[s * kLanes + w], row[w * Step + s]);
}

template <class A, class T>
void load(const T* from, const Rows& rows, A* tile, int lanes) {
  for (int r = 0; r < rows.count; ++r) {
    const T* row = from + rows.offset[r];
    A* into = tile + r * rows.step * kLanes;
    switch (rows.step) {
      case 1: split<A, T, 1>(row, into, lanes); break;
      case 2: split<A, T, 2>(row, into, lanes); break;
      case 4: split<A, T, 4>(row, into, lanes); break;
      case 8: split<A, T, 8>(row, into, lanes); break;
      default:
        for (int w = 0; w < lanes; ++w)
          for (int s = 0; s < rows.step; ++s)
            into[s * kLanes + w] = static_cast<A>(row[w * rows.step + s]);
    }
  }
}

template <class A, class T>
void store(const A* tile, const Rows& rows, T* to, int lanes) {
  for (int r = 0; r < rows.count; ++r) {
    T* row = to + rows.offset[r];
    const A* out = tile + r * rows.step * kLanes;
    switch (rows.step) {
      case 1: merge<A, T, 1>(out, row, lanes); break;
      case 2: merge<A, T, 2>(out, row, lanes); break;
      case 4: merge<A, T, 4>(out, row, lanes); break;
      case 8: merge<A, T, 8>(out, row, lanes); break;
      default:
        for (int w = 0; w < lanes; ++w)
          for (int s = 0; s < rows.step; ++s)
            put(out[s * kLanes + w], row[w * rows.step + s]);
    }
  }
}

// to[k] = sum over j of q[k * row + j * column] from[j]; a whole tile, so that lanes are constant.
template <class A, int K>
void rotate_tile(const A* from, const A* q, int row, int column, A* to) {
  A m[K * K];
  for (int k = 0; k < K; ++k)
    for (int j = 0; j < K; ++j) m[k * K + j] = q[k * row + j * column];
  for (int k = 0; k < K; ++k) {
#pragma omp simd
    for (int w = 0; w < kLanes; ++w) {
      A sum = 0;
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) sum += m[k * K + j] * from[j * kLanes + w];
      to[k * kLanes + w] = sum;
    }
  }
}

template <class A>
void rotate_tile_any(const A* from, const A* q, int size, int row, int column, A* to) {
  for (int k = 0; k < size; ++k) {
    A sum[kLanes] = {};
    for (int j = 0; j < size; ++j) {
      const A weight = q[k * row + j * column];
#pragma omp simd
      for (int w = 0; w < kLanes; ++w) sum[w] += weight * from[j * kLanes + w];
    }
    memcpy(to + k * kLanes, sum, sizeof sum);
  }
}

// The same where every lane, a channel, has its own matrix; q points to the first lane's.
template <class A>
void rotate_tile_lanes(const A* from, const A* q, int size, int row, int column, int64_t channels,
                       int lanes, A* to) {
  for (int k = 0; k < size; ++k) {
    A sum[kLanes] = {};
    for (int j = 0; j < size; ++j) {
      const A* weight = q + (k * row + j * column) * channels;
#pragma omp simd
      for (int w = 0; w < lanes; ++w) sum[w] += weight[w] * from[j * kLanes + w];
    }
    memcpy(to + k * kLanes, sum, sizeof sum);
  }
}

// Where a line begins, and how many lanes it has.
Site line_at(const Blocks& b, int64_t line) {
  if (b.lanes_are_channels) return site_of(b, line / b.positions(), 0, line % b.positions());
  const int64_t per_image = b.out[0] * b.out[1];
  const int64_t position = line % per_image * b.out[2], plane = line / per_image;
  return site_of(b, plane % b.batch, plane / b.batch, position);
}

int64_t lanes_of(const Blocks& b) { return b.lanes_are_channels ? b.channels : b.out[2]; }

template <class T>
void rotate(bool up, const Blocks& b, const T* from, const Acc<T>* q, T* to, int64_t begin,
            int64_t end) {
  using A = Acc<T>;
  const Rows xs = rows_of_x(b), ys = rows_of_y(b);
  const Rows &source = up ? ys : xs, &target = up ? xs : ys;
  const int size = b.size(), row = up ? 1 : size, column = up ? size : 1;
  const int64_t length = lanes_of(b);
  const bool own = b.lanes_are_channels && !b.shared;
  alignas(64) A in[kMaxBlock * kLanes], out[kMaxBlock * kLanes];
  for (int i = 0; i < size * kLanes; ++i) in[i] = 0;
  for (int64_t line = begin; line < end; ++line) {
    const Site s = line_at(b, line);
    const A* m = q + (b.shared || own ? 0 : s.channel * size * size);
    for (int64_t at = 0; at < length; at += kLanes) {
      const int lanes = static_cast<int>(length - at < kLanes ? length - at : kLanes);
      const int64_t x = s.x + at * xs.step, y = s.y + at * ys.step;
      load(from + (up ? y : x), source, in, lanes);
      if (own)
        rotate_tile_lanes(in, m + at, size, row, column, b.channels, lanes, out);
      else if (size == 2)
        rotate_tile<A, 2>(in, m, row, column, out);
      else if (size == 4)
        rotate_tile<A, 4>(in, m, row, column, out);
      else if (size == 8)
        rotate_tile<A, 8>(in, m, row, column, out);
      else
        rotate_tile_any(in, m, size, row, column, out);
      store(out, target, to + (up ? x : y), lanes);
    }
  }
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

template <class T>
void rotate_bytes(bool up, const Blocks& b, const void* from, const void* q, void* to,
                  int64_t begin, int64_t end) {
  rotate<T>(up, b, static_cast<const T*>(from), static_cast<const Acc<T>*>(q),
            static_cast<T*>(to), begin, end);
}

template <class T>
void weight_bytes(const Blocks& b, const void* x, const void* y, double* sum, int64_t begin,
                  int64_t end) {
  weight<T>(b, static_cast<const T*>(x), static_cast<const T*>(y), sum, begin, end);
}

void rotate_dtype(DType dtype, bool up, const Blocks& b, const void* from, const void* q, void* to,
                  int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f64: return rotate_bytes<double>(up, b, from, q, to, begin, end);
    case DType::f32: return rotate_bytes<float>(up, b, from, q, to, begin, end);
    case DType::bf16: return rotate_bytes<BFloat16>(up, b, from, q, to, begin, end);
    case DType::f16: return rotate_bytes<Half>(up, b, from, q, to, begin, end);
  }
}

void weight_dtype(DType dtype, const Blocks& b, const void* x, const void* y, double* sum,
                  int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f64: return weight_bytes<double>(b, x, y, sum, begin, end);
    case DType::f32: return weight_bytes<float>(b, x, y, sum, begin, end);
    case DType::bf16: return weight_bytes<BFloat16>(b, x, y, sum, begin, end);
    case DType::f16: return weight_bytes<Half>(b, x, y, sum, begin, end);
  }
}

}  // namespace
}  // namespace REVGRAD_ISA

const OrthogonalLoops REVGRAD_JOIN(orthogonal_loops, REVGRAD_ISA) = {rotate_dtype, weight_dtype};

}  // namespace revgrad
