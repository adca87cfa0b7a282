// The geometry of the block transform, as Python gives it.
#pragma once

#include <stdexcept>
#include <vector>

#include "../kernels/orthogonal.h"

namespace revgrad {

// Sizes and strides as Python lists: batch, channels, 3 outputs, 3 sides, 5 + 5 strides.
inline Blocks blocks(const std::vector<int64_t>& v, bool channels_last, bool shared) {
  if (v.size() != 18) throw std::invalid_argument("18 numbers make a geometry");
  Blocks b{};
  b.batch = v[0];
  b.channels = v[1];
  for (int i = 0; i < 3; ++i) b.out[i] = v[2 + i];
  for (int i = 0; i < 3; ++i) b.side[i] = static_cast<int>(v[5 + i]);
  for (int i = 0; i < 5; ++i) b.x[i] = v[8 + i];
  for (int i = 0; i < 5; ++i) b.y[i] = v[13 + i];
  b.lanes_are_channels = channels_last;
  b.shared = shared;
  b.set_offsets();
  return b;
}

}  // namespace revgrad
