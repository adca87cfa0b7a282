// The geometry of the block transform: which pixels form a block, and where its channels lie.
#pragma once

#include "platform.h"

namespace revgrad {

constexpr int kMaxBlock = 64;  // pixels of a block; revgrad/ops/orthogonal.py asks the same

// The large image x (batch, channels, ...) and the small one y (batch, channels * block, ...),
// with three spatial axes; missing ones have size 1. Strides count elements.
struct Blocks {
  int64_t batch, channels;
  int64_t out[3];     // spatial size of y, and number of blocks along each axis of x
  int side[3];        // pixels of a block along each axis
  int64_t x[5], y[5]; // strides of batch, channel and the three axes
  bool lanes_are_channels;  // channels-last: neighbours in memory are neighbouring channels
  bool shared;        // one Q for all channels
  int64_t offset[kMaxBlock];  // of each pixel of a block in x, last axis fastest

  RG_FN int size() const { return side[0] * side[1] * side[2]; }
  RG_FN int64_t positions() const { return out[0] * out[1] * out[2]; }
  RG_FN int64_t blocks() const { return batch * channels * positions(); }
  RG_FN int64_t matrices() const { return shared ? 1 : channels; }

  RG_FN void set_offsets() {
    int at = 0;
    for (int i = 0; i < side[0]; ++i)
      for (int j = 0; j < side[1]; ++j)
        for (int k = 0; k < side[2]; ++k) offset[at++] = i * x[2] + j * x[3] + k * x[4];
  }
};

// One block: its channel, its first pixel in x and its first channel in y.
struct Site {
  int64_t channel, x, y;
};

RG_FN Site site_of(const Blocks& b, int64_t n, int64_t c, int64_t position) {
  const int64_t k = position % b.out[2], rest = position / b.out[2];
  const int64_t j = rest % b.out[1], i = rest / b.out[1];
  Site s;
  s.channel = c;
  s.x = n * b.x[0] + c * b.x[1] + i * b.side[0] * b.x[2] + j * b.side[1] * b.x[3] +
        k * b.side[2] * b.x[4];
  s.y = n * b.y[0] + c * b.size() * b.y[1] + i * b.y[2] + j * b.y[3] + k * b.y[4];
  return s;
}

}  // namespace revgrad
