// A tile at a time: load, lift, store. Where no number can leave the range of 32 bits, it is
// lifted in float64, which holds integers exactly and spares the conversions.
#include "orthogonal_exact_loops.h"

#include "../kernels/orthogonal_exact.h"
#include "isa.h"
#include "orthogonal_tiles.h"

namespace revgrad {
inline namespace REVGRAD_ISA {
namespace {

// The factors of a tile: one set for all lanes, or one a lane, with neighbours side by side.
struct Factors {
  const double* first;
  int64_t pitch;  // from one factor to the next
  bool finite;    // all of them

  const double* at(int i) const { return first + i * pitch; }
};

template <bool Up, bool Own, class N>
void rotate_rows(N* x, N* y, const double* outer, const double* inner, const double* turn,
                 int lanes) {
#pragma omp simd
  for (int w = 0; w < lanes; ++w) {
    const int c = Own ? w : 0;
    rotate_plane<Up>(x[w], y[w], outer[c], inner[c], turn[c]);
  }
}

template <bool Own, class N>
void sign_rows(N* tile, const Factors& f, int n, int lanes) {
  for (int j = 0; j < n; ++j) {
    const double* sign = f.at(3 * rotations_of(n) + j);
    N* row = tile + j * kLanes;
#pragma omp simd
    for (int w = 0; w < lanes; ++w) row[w] = turned(row[w], sign[Own ? w : 0]);
  }
}

// Rotations count column by column, each from the last row up; the matrix applies them from the
// last to the first, its inverse the other way round.
template <bool Up, bool Own, class N>
void lift_tile(N* tile, const Factors& f, int n, int lanes) {
  if (!Up) sign_rows<Own>(tile, f, n, lanes);
  int r = Up ? 0 : rotations_of(n) - 1;
  for (int c = 0; c < n - 1; ++c) {
    const int column = Up ? c : n - 2 - c;
    for (int s = 0; s < n - 1 - column; ++s) {
      N* y = tile + (Up ? n - 1 - s : column + 1 + s) * kLanes;
      rotate_rows<Up, Own>(y - kLanes, y, f.at(3 * r), f.at(3 * r + 1), f.at(3 * r + 2), lanes);
      r += Up ? 1 : -1;
    }
  }
  if (Up) sign_rows<Own>(tile, f, n, lanes);
}

// Whether nothing on the way becomes too large: `growth` in revgrad/fixed_point/rotation.py.
bool stays_in_range(const int32_t* tile, int n) {
  int32_t bits = 0;
#pragma omp simd reduction(| : bits)
  for (int i = 0; i < n * kLanes; ++i) bits |= tile[i] ^ tile[i] >> 31;
  return bits * (1.5 * std::sqrt(n)) + 2 * n * n < 0x1p31;
}

template <bool Up, bool Own>
void lift_any(int32_t* tile, double* wide, const Factors& f, int n, int lanes) {
  if (!f.finite || !stays_in_range(tile, n)) return lift_tile<Up, Own>(tile, f, n, lanes);
#pragma omp simd
  for (int i = 0; i < n * kLanes; ++i) wide[i] = tile[i];
  lift_tile<Up, Own>(wide, f, n, lanes);
#pragma omp simd
  for (int i = 0; i < n * kLanes; ++i) tile[i] = static_cast<int32_t>(wide[i]);
}

bool all_finite(const double* f, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += f[i] * 0;
  return sum == 0;
}

template <bool Up, bool Own>
void lift(const Blocks& b, const int32_t* from, const double* factors, int32_t* to, int64_t begin,
          int64_t end) {
  const Rows xs = rows_of_x(b), ys = rows_of_y(b);
  const Rows &source = Up ? ys : xs, &target = Up ? xs : ys;
  const int n = b.size(), count = factors_of(n);
  const int64_t length = lanes_of(b);
  const bool finite = all_finite(factors, count * b.channels);
  alignas(64) int32_t tile[kMaxBlock * kLanes];
  alignas(64) double wide[kMaxBlock * kLanes];
  for (int i = 0; i < n * kLanes; ++i) tile[i] = 0;
  for (int64_t line = begin; line < end; ++line) {
    const Site s = line_at(b, line);
    for (int64_t at = 0; at < length; at += kLanes) {
      const int lanes = static_cast<int>(length - at < kLanes ? length - at : kLanes);
      const int64_t x = s.x + at * xs.step, y = s.y + at * ys.step;
      const Factors f = {factors + (Own ? at : s.channel * count), Own ? b.channels : 1, finite};
      load(from + (Up ? y : x), source, tile, lanes);
      lift_any<Up, Own>(tile, wide, f, n, lanes);
      store(tile, target, to + (Up ? x : y), lanes);
    }
  }
}

void lift_either(bool up, const Blocks& b, const int32_t* from, const double* factors, int32_t* to,
                 int64_t begin, int64_t end) {
  const bool own = b.lanes_are_channels;
  if (up)
    (own ? lift<true, true> : lift<true, false>)(b, from, factors, to, begin, end);
  else
    (own ? lift<false, true> : lift<false, false>)(b, from, factors, to, begin, end);
}

}  // namespace
}  // namespace REVGRAD_ISA

const OrthogonalExactLoops REVGRAD_JOIN(orthogonal_exact_loops, REVGRAD_ISA) = {lift_either};

}  // namespace revgrad
