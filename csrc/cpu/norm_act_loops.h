// The normalisation's loops, one table for each instruction set.
#pragma once

#include "../kernels/norm_act.h"
#include "../tensor_types.h"

namespace revgrad {

// Of some numbers; how many they are is known from the geometry.
struct Moments {
  double mean, squares;  // sum of squared differences from the mean
};

constexpr int64_t kRun = 16384;  // numbers at most that `run` takes

// Pixels whose channels lie side by side are treated as one row where there are few channels, so
// that loops are long: lanes = pixels at a time * channels, with coefficients for each lane.
constexpr int64_t kLanes = 128;
constexpr int64_t kColumnLanes = 64;  // of statistics, whose loop takes several rows at a time
RG_FN int64_t pixels_at_a_time(int64_t channels, int64_t pixels, int64_t lanes = kLanes) {
  const int64_t wanted = channels < lanes ? lanes / channels : 1;
  return wanted < pixels ? wanted : pixels;
}

constexpr int64_t kColumnScratch = 5;
constexpr int64_t kSumScratch = 4;

// Where results go: into y, or with a stream's numbers, `from`, into the same or another one, where
// `steps` (of the grid, in a unit) is not 0 if that is fixed-point.
enum class StreamType { none, same, f32, f64, fixed };
struct Output {
  const void* from;
  void* to;
  StreamType stream;
  int sign;
  double steps;
  bool past_cache;  // it is too large to stay in the caches until it is read
};

constexpr int64_t kPastCache = 16 * 1024 * 1024;  // bytes of such a result

// One channel's, in the accumulator's type behind the pointers; one number each, or one a lane.
struct Coefficients {
  const void *mean, *scale, *bias;
};

inline namespace REVGRAD_ISA {

template <class A>
struct Lanes {
  const A *mean, *scale, *bias;

  Lanes(const Coefficients& c, int64_t lane)
      : mean(static_cast<const A*>(c.mean) + lane), scale(static_cast<const A*>(c.scale) + lane),
        bias(static_cast<const A*>(c.bias) + lane) {}
  Affine<A> first() const { return {*mean, *scale, *bias}; }
};

// Rows at once, so that a lane's coefficients are fetched once for all of them; fewer where the
// activation is long, or the code would be too.
template <Activation kind>
constexpr int kRowsAtOnce = kind == Activation::silu || kind == Activation::gelu ? 2 : 8;

}  // namespace REVGRAD_ISA

// dx = gain * g - (offset + (x - mean) * drift), with the gradient g before the affine map.
struct BackwardCoefficients {
  const void *gain, *offset, *drift;
};

struct Shape {  // of an activation
  Activation kind;
  double slope;
};

struct NormActLoops {
  Moments (*run)(DType dtype, const void* x, int64_t begin, int64_t count);
  // One for each channel of `rows` pixels, the first number at `begin`. The scratch memory holds
  // kColumnScratch numbers a lane.
  void (*columns)(DType dtype, const void* x, int64_t begin, int64_t rows, int64_t channels,
                  double* scratch, Moments* out);
  // Numbers [begin, begin + count) of one channel; or pixels, `lanes` numbers at a time.
  void (*apply)(DType dtype, Shape act, const void* x, int64_t begin, int64_t count,
                int64_t lanes, const Coefficients& c, const Output& out);
};

extern const NormActLoops norm_act_loops_generic, norm_act_loops_v3, norm_act_loops_v4;

// Inputs of the backward pass. `wide`: dy is of the accumulator's type.
struct Gradient {
  DType dtype;
  bool wide;
  const void *dy, *x;
  Shape act;
  bool past_cache;  // dx is too large to stay in the caches until it is read
};

// Samples of one pixel, each a row of channels.
struct Rows {
  int64_t channels, groups;
  bool constant;              // statistics
  const void *mean, *rstd;    // (samples, groups)
  const void *weight, *bias;  // a number a channel
};

struct NormActBackwardLoops {
  // Adds to sums[0] the gradients g before the affine map, to sums[1] those times (x - mean).
  void (*sums)(const Gradient& g, int64_t begin, int64_t count, const Coefficients& c,
               double* sums);
  // The same for each channel of `rows` pixels, in sums[2 * channel] and sums[2 * channel + 1]. The
  // scratch memory holds kSumScratch numbers a lane.
  void (*column_sums)(const Gradient& g, int64_t begin, int64_t rows, int64_t channels,
                      const Coefficients& c, double* scratch, double* sums);
  void (*apply)(const Gradient& g, int64_t begin, int64_t count, int64_t lanes,
                const Coefficients& c, const BackwardCoefficients& b, void* dx);
  // Writes dx of samples [first, last) of one pixel each, and adds the gradients of bias and
  // weight to sums[2 * channel] and sums[2 * channel + 1].
  void (*rows)(const Gradient& g, const Rows& rows, int64_t first, int64_t last, double* scratch,
               void* dx, double* sums);
};

extern const NormActBackwardLoops norm_act_backward_loops_generic, norm_act_backward_loops_v3,
    norm_act_backward_loops_v4;

}  // namespace revgrad
