// CPU launcher of the normalisation's backward pass.
#include <torch/csrc/stable/library.h>

#include "../norm_act_shape.h"
#include "isa.h"
#include "norm_act_plan.h"

namespace revgrad {
namespace {

const NormActBackwardLoops& loops() {
  static const NormActBackwardLoops& table =
      REVGRAD_PICK(NormActBackwardLoops, norm_act_backward_loops);
  return table;
}

// What a thread holds for the piece at hand: one number each, or one a lane.
template <class A>
struct Workspace {
  CoefficientsOf<A> affine;
  std::vector<A> gain, offset, drift;
  std::vector<double> scratch;
  int64_t unit = -1;

  explicit Workspace(const Plan& plan)
      : affine(plan), gain(affine.size()), offset(affine.size()), drift(affine.size()),
        scratch(kSumScratch * affine.size()) {}
  BackwardCoefficients pointers() const { return {gain.data(), offset.data(), drift.data()}; }
};

// Sums come in pairs, of the gradients g before the affine map and of g * (x - mean), for slots: a
// channel of a sample, or of the whole batch where its pixels are one unit.
template <class A>
struct Backward {
  Plan plan;
  Gradient gradient;
  bool constant;
  const A *mean, *rstd, *weight, *bias;
  void* dx;
  std::vector<double> total, means;  // pairs for slots and for statistics

  Backward(const Norm& n, const Gradient& gradient, bool constant)
      : plan(n), gradient(gradient), constant(constant), total(2 * slots()),
        means(2 * n.statistics()) {}

  bool last() const { return plan.norm.channels_last; }
  int64_t slots() const { return plan.norm.channels * (last() ? plan.units : plan.norm.batch); }
  int64_t slots_of_unit() const { return last() ? plan.norm.channels : plan.planes(); }
  int64_t slots_of_piece() const { return last() ? plan.norm.channels : 1; }
  int64_t slot(int64_t unit, int64_t i) const {
    return last() ? unit * plan.norm.channels + i : plan.plane(unit, i * plan.pieces_of_plane);
  }
  int64_t channel(int64_t slot) const { return slot % plan.norm.channels; }
  int64_t statistic(int64_t slot) const {
    return plan.norm.statistic(slot / plan.norm.channels, channel(slot));
  }
  double weight_of(int64_t slot) const { return weight == nullptr ? 1 : weight[channel(slot)]; }

  void sum_piece(int64_t unit, int64_t piece, Workspace<A>& w, double* sums) const {
    const Stretch s = plan.piece(unit, piece);
    w.affine.set(plan, unit, piece, mean, rstd, weight, bias);
    const Coefficients c = w.affine.pointers();
    const int64_t channels = plan.norm.channels;
    if (last())
      loops().column_sums(gradient, s.begin, s.count / channels, channels, c, w.scratch.data(),
                          sums);
    else
      loops().sums(gradient, s.begin, s.count, c, sums);
  }

  // From the sums of a unit's pieces those of its slots, and the means that dx subtracts.
  void collect(int64_t unit, const double* sums) {
    const int64_t width = 2 * slots_of_piece();
    for (int64_t p = 0; p < plan.pieces; ++p) {
      double* into = &total[2 * slot(unit, last() ? 0 : p / plan.pieces_of_plane)];
      for (int64_t i = 0; i < width; ++i) into[i] += sums[p * width + i];
    }
    if (constant) return;
    for (int64_t i = 0; i < slots_of_unit(); ++i) {
      const int64_t at = slot(unit, i), s = statistic(at);
      const double r = rstd[s], share = r / static_cast<double>(plan.norm.per_statistic());
      means[2 * s] += weight_of(at) * total[2 * at] * share;
      means[2 * s + 1] += weight_of(at) * total[2 * at + 1] * share * r * r;
    }
  }

  void set_slopes(int64_t unit, int64_t piece, Workspace<A>& w) const {
    if (last() && w.unit == unit) return;
    w.unit = unit;
    const int64_t first = slot(unit, last() ? 0 : piece / plan.pieces_of_plane);
    const int64_t period = slots_of_piece();
    for (int64_t l = 0; l < period; ++l) {
      const int64_t at = first + l, k = statistic(at);
      w.gain[l] = static_cast<A>(weight_of(at)) * rstd[k];
      w.offset[l] = static_cast<A>(means[2 * k]);
      w.drift[l] = static_cast<A>(means[2 * k + 1]);
    }
    for (int64_t l = period; l < w.affine.size(); ++l) {
      w.gain[l] = w.gain[l - period];
      w.offset[l] = w.offset[l - period];
      w.drift[l] = w.drift[l - period];
    }
  }

  void apply(int64_t unit, int64_t piece, Workspace<A>& w) const {
    const Stretch s = plan.piece(unit, piece);
    w.affine.set(plan, unit, piece, mean, rstd, weight, bias);
    set_slopes(unit, piece, w);
    loops().apply(gradient, s.begin, s.count, plan.lanes, w.affine.pointers(), w.pointers(), dx);
  }

  // Where a unit stays in the cache between its sums and its result.
  void unit_by_unit() {
    const int64_t width = 2 * slots_of_piece();
    torch::stable::parallel_for(
        0, plan.units, plan.grain(plan.units), [&](int64_t begin, int64_t end) {
          Workspace<A> w(plan);
          for (int64_t unit = begin; unit < end; ++unit) {
            std::vector<double> sums(plan.pieces * width);
            for (int64_t p = 0; p < plan.pieces; ++p) sum_piece(unit, p, w, &sums[p * width]);
            collect(unit, sums.data());
            for (int64_t p = 0; p < plan.pieces; ++p) apply(unit, p, w);
          }
        });
  }

  void part_by_part() {
    const int64_t tasks = plan.units * plan.pieces, width = 2 * slots_of_piece();
    std::vector<double> sums(tasks * width);
    torch::stable::parallel_for(0, tasks, plan.grain(tasks), [&](int64_t begin, int64_t end) {
      Workspace<A> w(plan);
      for (int64_t t = begin; t < end; ++t)
        sum_piece(t / plan.pieces, t % plan.pieces, w, &sums[t * width]);
    });
    for (int64_t unit = 0; unit < plan.units; ++unit)
      collect(unit, &sums[unit * plan.pieces * width]);
    torch::stable::parallel_for(0, tasks, plan.grain(tasks), [&](int64_t begin, int64_t end) {
      Workspace<A> w(plan);
      // Backwards: what was read last is still in the cache.
      for (int64_t t = end; t-- > begin;) apply(t / plan.pieces, t % plan.pieces, w);
    });
  }

  void run(int64_t bytes_of_number, A* dweight, A* dbias) {
    plan.unit_by_unit(bytes_of_number, torch::stable::get_num_threads()) ? unit_by_unit()
                                                                         : part_by_part();
    const int64_t channels = plan.norm.channels;
    for (int64_t c = 0; c < channels; ++c) {
      double first = 0, second = 0;
      for (int64_t at = c; at < slots(); at += channels) {
        first += total[2 * at];
        second += total[2 * at + 1] * static_cast<double>(rstd[statistic(at)]);
      }
      dbias[c] = static_cast<A>(first);
      dweight[c] = static_cast<A>(second);
    }
  }
};

// Samples of one pixel have sums of their own, and share only the gradients of weight and bias.
template <class A>
void by_rows(const Norm& n, const Gradient& g, Rows rows, void* dx, A* dweight, A* dbias) {
  const std::vector<A> ones(n.channels, A(1)), zeros(n.channels, A(0));
  if (rows.weight == nullptr) rows.weight = ones.data();
  if (rows.bias == nullptr) rows.bias = zeros.data();
  const int64_t together = 128 + 2 * kRun / n.channels, parts = ceil_div(n.batch, together);
  std::vector<double> sums(static_cast<size_t>(2 * parts * n.channels));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(2 * n.channels));
    for (int64_t p = begin; p < end; ++p) {
      const int64_t stop = (p + 1) * together;
      loops().rows(g, rows, p * together, stop < n.batch ? stop : n.batch, scratch.data(), dx,
                   &sums[2 * p * n.channels]);
    }
  });
  for (int64_t c = 0; c < n.channels; ++c) {
    double first = 0, second = 0;
    for (int64_t p = 0; p < parts; ++p) {
      first += sums[2 * (p * n.channels + c)];
      second += sums[2 * (p * n.channels + c) + 1];
    }
    dbias[c] = static_cast<A>(first);
    dweight[c] = static_cast<A>(second);
  }
}

struct Pointers {
  const void *mean, *rstd, *weight, *bias;
  void *dx, *dweight, *dbias;
};

template <class A>
void launch(const Norm& n, const Gradient& g, bool constant, const Pointers& p, int64_t bytes) {
  A *dweight = static_cast<A*>(p.dweight), *dbias = static_cast<A*>(p.dbias);
  if (n.pixels == 1 && !n.over_batch) {
    const Rows rows{n.channels, n.groups, constant, p.mean, p.rstd, p.weight, p.bias};
    return by_rows(n, g, rows, p.dx, dweight, dbias);
  }
  Backward<A> b(n, g, constant);
  b.mean = static_cast<const A*>(p.mean);
  b.rstd = static_cast<const A*>(p.rstd);
  b.weight = static_cast<const A*>(p.weight);
  b.bias = static_cast<const A*>(p.bias);
  b.dx = p.dx;
  b.run(bytes, dweight, dbias);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const Tensor& mean,
                                            const Tensor& rstd, MaybeTensor weight,
                                            MaybeTensor bias, int64_t groups, bool over_batch,
                                            bool constant_stats, int64_t activation,
                                            double slope) {
  const Norm n = checked_norm(x, weight, bias, mean, rstd, groups, over_batch, activation);
  check_same_layout(x, dy, "dy");
  const ScalarType wide = accumulator_of(x);
  STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type() || dy.scalar_type() == wide,
                  "revgrad: dy must have the type of x or float32");
  Tensor dx = torch::stable::empty_like(x);
  Tensor dweight = empty_on(x, {n.channels}, wide), dbias = empty_on(x, {n.channels}, wide);
  if (n.size() == 0) return {dx, torch::stable::zero_(dweight), torch::stable::zero_(dbias)};
  const Gradient g{dtype_of(x), dy.scalar_type() == wide, dy.const_data_ptr(), x.const_data_ptr(),
                   {static_cast<Activation>(activation), slope},
                   n.size() * bytes_of(x) > kPastCache};
  const Pointers p{mean.const_data_ptr(),    rstd.const_data_ptr(),       data_or_null(weight),
                   data_or_null(bias),       dx.mutable_data_ptr(),
                   dweight.mutable_data_ptr(), dbias.mutable_data_ptr()};
  const int64_t bytes = bytes_of(x) + bytes_of(dy);
  wide == ScalarType::Double ? launch<double>(n, g, constant_stats, p, bytes)
                             : launch<float>(n, g, constant_stats, p, bytes);
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CPU, m) { m.impl("norm_act_backward", TORCH_BOX(&backward)); }

}  // namespace revgrad
