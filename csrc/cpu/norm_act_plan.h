// How a normalisation is cut into pieces of work. Cuts depend on the shape alone, and so the
// results do not depend on how many threads there are.
#pragma once

#include <vector>

#include "norm_act_loops.h"

namespace revgrad {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Stretch {  // of memory
  int64_t begin, count;
};

// Units have statistics of their own: one statistic's planes, or one sample of a channels-last
// image (all samples, if statistics are over the batch).
//
// For statistics a unit is cut into parts: runs of numbers that belong to one statistic, or rows
// of pixels with a moment for every channel. For results it is cut into pieces: of one channel, or
// rows of pixels.
struct Plan {
  static constexpr int64_t kGrain = 16384;  // numbers a thread takes at least
  static constexpr int64_t kCached = 4 * 1024 * 1024;  // bytes that a core finds in some cache
  static constexpr int64_t kRowsAtLeast = 128;

  Norm norm;
  int64_t units, parts, pieces, lanes;
  bool by_runs;
  int64_t runs, run_length, parts_of_run;  // of a unit
  int64_t rows, rows_of_piece;             // of pixels of a unit
  int64_t pieces_of_plane;

  explicit Plan(const Norm& n) : norm(n) {
    n.channels_last ? cut_pixels() : cut_planes();
    parts_of_run = by_runs ? ceil_div(run_length, kRun) : 0;
    parts = by_runs ? runs * parts_of_run : pieces;
  }

  void cut_planes() {
    units = norm.statistics();
    by_runs = true;
    runs = norm.over_batch ? norm.batch : 1;
    run_length = norm.per_statistic() / runs;
    rows = rows_of_piece = lanes = 0;
    pieces_of_plane = ceil_div(norm.pixels, kRun);
    pieces = planes() * pieces_of_plane;
  }

  void cut_pixels() {
    units = norm.over_batch ? 1 : norm.batch;
    by_runs = !norm.over_batch && (norm.groups == 1 || norm.pixels == 1);
    runs = by_runs ? norm.groups : 0;
    run_length = by_runs ? norm.per_statistic() : 0;
    rows = norm.over_batch ? norm.batch * norm.pixels : norm.pixels;
    lanes = pixels_at_a_time(norm.channels, rows) * norm.channels;
    // Whole loops of lanes, so that only the last piece ends within one.
    const int64_t wanted = 2 * kRun / norm.channels;
    const int64_t step = lanes / norm.channels;
    rows_of_piece = ceil_div(wanted < kRowsAtLeast ? kRowsAtLeast : wanted, step) * step;
    pieces = ceil_div(rows, rows_of_piece);
    pieces_of_plane = 0;
  }

  int64_t planes() const { return norm.over_batch ? norm.batch : norm.per_group(); }
  int64_t numbers_of_unit() const { return norm.size() / units; }
  int64_t statistics_of_unit() const { return norm.channels_last ? norm.groups : 1; }
  int64_t moments_of_part() const { return by_runs ? 1 : norm.channels; }
  int64_t moments_of_unit() const { return parts * moments_of_part(); }
  // Whether every unit stays in the cache for a second pass, and there are enough of them.
  bool unit_by_unit(int64_t bytes_of_number, int64_t threads) const {
    return units >= threads && numbers_of_unit() * bytes_of_number <= kCached;
  }
  int64_t grain(int64_t tasks) const { return kGrain * tasks / norm.size() + 1; }

  // The plane of a piece of a unit, and its channel.
  int64_t plane(int64_t unit, int64_t piece) const {
    const int64_t p = piece / pieces_of_plane;
    return norm.over_batch ? p * norm.channels + unit : unit * planes() + p;
  }
  int64_t channel(int64_t unit, int64_t piece) const { return plane(unit, piece) % norm.channels; }

  Stretch part(int64_t unit, int64_t index) const {
    if (!by_runs) return piece(unit, index);
    const int64_t run = index / parts_of_run, at = index % parts_of_run * kRun;
    const bool apart = norm.over_batch;  // planes of one channel
    const int64_t first = apart ? (run * norm.channels + unit) : unit * runs + run;
    return {first * run_length + at, run_length - at < kRun ? run_length - at : kRun};
  }

  Stretch piece(int64_t unit, int64_t index) const {
    if (!norm.channels_last) {
      const int64_t at = index % pieces_of_plane * kRun, left = norm.pixels - at;
      return {plane(unit, index) * norm.pixels + at, left < kRun ? left : kRun};
    }
    const int64_t first = index * rows_of_piece, left = rows - first;
    const int64_t many = left < rows_of_piece ? left : rows_of_piece;
    return {(unit * rows + first) * norm.channels, many * norm.channels};
  }

  // Calls f(moments, how many numbers) for all that statistic `i` of a unit consists of.
  template <class F>
  void each_moment(int64_t i, const Moments* parts_of_unit, F f) const {
    if (by_runs) {
      const int64_t many = parts / statistics_of_unit();
      for (int64_t p = i * many; p < (i + 1) * many; ++p) f(parts_of_unit[p], part(0, p).count);
      return;
    }
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t many = part(0, p).count / norm.channels;
      const Moments* group = parts_of_unit + p * norm.channels + i * norm.per_group();
      for (int64_t c = 0; c < norm.per_group(); ++c) f(group[c], many);
    }
  }
};

// The coefficients of the channel of a piece, or of all lanes.
template <class A>
class CoefficientsOf {
 public:
  explicit CoefficientsOf(const Plan& plan)
      : many_(plan.lanes > 0 ? plan.lanes : 1), mean_(many_), scale_(many_), bias_(many_) {}

  void set(const Plan& plan, int64_t unit, int64_t piece, const A* mean, const A* rstd,
           const A* weight, const A* bias) {
    const Norm& n = plan.norm;
    if (!n.channels_last)
      return set_lane(0, plan.channel(unit, piece), unit, mean, rstd, weight, bias);
    if (unit == unit_) return;
    unit_ = unit;
    const int64_t group = n.per_group();
    for (int64_t g = 0, c = 0; g < n.groups; ++g)
      for (int64_t i = 0; i < group; ++i, ++c)
        set_lane(c, c, unit * n.groups + g, mean, rstd, weight, bias);
    for (int64_t l = n.channels; l < many_; ++l) {
      mean_[l] = mean_[l - n.channels];
      scale_[l] = scale_[l - n.channels];
      bias_[l] = bias_[l - n.channels];
    }
  }

  int64_t size() const { return many_; }
  Coefficients pointers() const { return {mean_.data(), scale_.data(), bias_.data()}; }

 private:
  void set_lane(int64_t lane, int64_t channel, int64_t statistic, const A* mean, const A* rstd,
                const A* weight, const A* bias) {
    mean_[lane] = mean[statistic];
    scale_[lane] = weight == nullptr ? rstd[statistic] : weight[channel] * rstd[statistic];
    bias_[lane] = bias == nullptr ? A(0) : bias[channel];
  }

  int64_t many_, unit_ = -1;
  std::vector<A> mean_, scale_, bias_;
};

}  // namespace revgrad
