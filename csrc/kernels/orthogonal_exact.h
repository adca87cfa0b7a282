// One plane rotation of integers by lifting: three shears, each with its product rounded.
#pragma once

#include <cmath>

#include "platform.h"

namespace revgrad {

// The factors of a matrix of size n, as `packed` in revgrad/fixed_point/rotation.py gives them:
// three numbers a rotation, the coefficients of the outer and the inner shear and the half turn
// (1 or -1); then n signs.
RG_FN int rotations_of(int n) { return n * (n - 1) / 2; }
RG_FN int factors_of(int n) { return 3 * rotations_of(n) + n; }

inline namespace REVGRAD_ISA {

// x + round(y * by), ties to even. Integers wrap around, so that whatever was added can be taken
// back; a product can only just leave the range, since no coefficient is larger than 1.
RG_FN int32_t sheared(int32_t x, int32_t y, double by) {
  const int64_t product = static_cast<int64_t>(rint(static_cast<double>(y) * by));
  return static_cast<int32_t>(static_cast<uint32_t>(x) + static_cast<uint32_t>(product));
}

RG_FN int32_t turned(int32_t x, double turn) {
  return turn < 0 ? static_cast<int32_t>(0u - static_cast<uint32_t>(x)) : x;
}

// The same bits, of numbers that nowhere leave the range of 32 bits.
RG_FN double sheared(double x, double y, double by) { return x + rint(y * by); }
RG_FN double turned(double x, double turn) { return x * turn; }

template <bool Up, class N>
RG_FN void rotate_plane(N& x, N& y, double outer, double inner, double turn) {
  if (Up) {
    x = turned(x, turn), y = turned(y, turn);
    outer = -outer, inner = -inner;
  }
  x = sheared(x, y, outer);
  y = sheared(y, x, inner);
  x = sheared(x, y, outer);
  if (!Up) x = turned(x, turn), y = turned(y, turn);
}

}  // namespace REVGRAD_ISA
}  // namespace revgrad
