// CPU launchers of the normalisation with an activation.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../norm_act_shape.h"
#include "isa.h"
#include "norm_act_plan.h"

namespace revgrad {
namespace {

const NormActLoops& loops() {
  static const NormActLoops& table = REVGRAD_PICK(NormActLoops, norm_act_loops);
  return table;
}

template <class A>
struct Forward {
  Plan plan;
  DType dtype;
  int64_t bytes;  // of a number
  Shape act;
  double eps;
  bool given;  // statistics
  const void* x;
  const A *weight, *bias;
  A *mean, *rstd;
  Output out;

  void part_moments(int64_t unit, int64_t part, Moments* into) const {
    const Stretch s = plan.part(unit, part);
    if (plan.by_runs) {
      *into = loops().run(dtype, x, s.begin, s.count);
      return;
    }
    const int64_t channels = plan.norm.channels, rows = s.count / channels;
    const int64_t lanes = pixels_at_a_time(channels, rows, kColumnLanes) * channels;
    std::vector<double> scratch(static_cast<size_t>(kColumnScratch * lanes));
    loops().columns(dtype, x, s.begin, rows, channels, scratch.data(), into);
  }

  // A unit's statistics from the moments of its parts.
  void combine(int64_t unit, const Moments* parts) const {
    const int64_t many = plan.statistics_of_unit();
    const double total = static_cast<double>(plan.norm.per_statistic());
    for (int64_t i = 0; i < many; ++i) {
      double sum = 0, squares = 0;
      plan.each_moment(i, parts, [&](const Moments& m, int64_t count) {
        sum += m.mean * static_cast<double>(count);
      });
      const double centre = sum / total;
      plan.each_moment(i, parts, [&](const Moments& m, int64_t count) {
        const double apart = m.mean - centre;
        squares += m.squares + apart * apart * static_cast<double>(count);
      });
      mean[unit * many + i] = static_cast<A>(centre);
      rstd[unit * many + i] = static_cast<A>(1 / std::sqrt(squares / total + eps));
    }
  }

  void apply(int64_t unit, int64_t piece, CoefficientsOf<A>& c) const {
    const Stretch s = plan.piece(unit, piece);
    c.set(plan, unit, piece, mean, rstd, weight, bias);
    loops().apply(dtype, act, x, s.begin, s.count, plan.lanes, c.pointers(), out);
  }

  // Where a unit stays in the cache between its statistics and its result.
  void unit_by_unit() const {
    torch::stable::parallel_for(
        0, plan.units, plan.grain(plan.units), [&](int64_t begin, int64_t end) {
          std::vector<Moments> parts(static_cast<size_t>(given ? 0 : plan.moments_of_unit()));
          CoefficientsOf<A> c(plan);
          for (int64_t unit = begin; unit < end; ++unit) {
            for (int64_t p = 0; !given && p < plan.parts; ++p)
              part_moments(unit, p, parts.data() + p * plan.moments_of_part());
            if (!given) combine(unit, parts.data());
            for (int64_t p = 0; p < plan.pieces; ++p) apply(unit, p, c);
          }
        });
  }

  void all_statistics() const {
    std::vector<Moments> all(static_cast<size_t>(plan.units * plan.moments_of_unit()));
    const int64_t tasks = plan.units * plan.parts;
    torch::stable::parallel_for(0, tasks, plan.grain(tasks), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        part_moments(t / plan.parts, t % plan.parts, all.data() + t * plan.moments_of_part());
    });
    const int64_t few = plan.grain(plan.units);
    torch::stable::parallel_for(0, plan.units, few, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit)
        combine(unit, all.data() + unit * plan.moments_of_unit());
    });
  }

  void part_by_part() const {
    if (!given) all_statistics();
    const int64_t tasks = plan.units * plan.pieces;
    torch::stable::parallel_for(0, tasks, plan.grain(tasks), [&](int64_t begin, int64_t end) {
      CoefficientsOf<A> c(plan);
      // Backwards: what was read last is still in the cache.
      for (int64_t t = end; t-- > begin;) apply(t / plan.pieces, t % plan.pieces, c);
    });
  }

  void run() const {
    plan.unit_by_unit(bytes, torch::stable::get_num_threads()) ? unit_by_unit() : part_by_part();
  }
};

struct Arguments {
  const Tensor& x;
  const MaybeTensor &weight, &bias, &mean, &rstd;
  int64_t groups;
  bool over_batch;
  double eps;
  int64_t activation;
  double slope;
};

template <class A>
void launch(const Arguments& a, const Norm& n, Tensor& mean, Tensor& rstd, const Output& out) {
  const Shape act{static_cast<Activation>(a.activation), a.slope};
  Forward<A>{Plan(n),
             dtype_of(a.x),
             bytes_of(a.x),
             act,
             a.eps,
             a.mean.has_value(),
             a.x.const_data_ptr(),
             static_cast<const A*>(data_or_null(a.weight)),
             static_cast<const A*>(data_or_null(a.bias)),
             static_cast<A*>(mean.mutable_data_ptr()),
             static_cast<A*>(rstd.mutable_data_ptr()),
             out}
      .run();
}

// Fills `out` and returns the statistics.
std::tuple<Tensor, Tensor> normalise(const Arguments& a, const Output& out) {
  const Norm n = checked_norm(a.x, a.weight, a.bias, a.mean, a.rstd, a.groups, a.over_batch,
                              a.activation);
  Tensor mean = statistics_like(a.x, n, a.mean), rstd = statistics_like(a.x, n, a.rstd);
  if (n.size() == 0) {
    if (!a.mean.has_value()) {
      torch::stable::zero_(mean);
      torch::stable::fill_(rstd, 1 / std::sqrt(a.eps));
    }
    return {mean, rstd};
  }
  if (a.x.scalar_type() == ScalarType::Double)
    launch<double>(a, n, mean, rstd, out);
  else
    launch<float>(a, n, mean, rstd, out);
  return {mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> norm_act(const Tensor& x, MaybeTensor weight, MaybeTensor bias,
                                            MaybeTensor mean, MaybeTensor rstd, int64_t groups,
                                            bool over_batch, double eps, int64_t activation,
                                            double slope) {
  Tensor y = torch::stable::empty_like(x);
  const Output out{nullptr, y.mutable_data_ptr(), StreamType::none, 1, 0,
                   x.numel() * bytes_of(x) > kPastCache};
  const auto [m, r] = normalise(
      {x, weight, bias, mean, rstd, groups, over_batch, eps, activation, slope}, out);
  return {y, m, r};
}

StreamType stream_type(const Tensor& stream, const Tensor& x) {
  if (stream.scalar_type() == ScalarType::Int) return StreamType::fixed;
  if (stream.scalar_type() == x.scalar_type()) return StreamType::same;
  STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, "revgrad: a stream narrower than x");
  if (stream.scalar_type() == ScalarType::Float) return StreamType::f32;
  STD_TORCH_CHECK(stream.scalar_type() == ScalarType::Double,
                  "revgrad: the stream must be int32, or have the type of x or a wider one");
  return StreamType::f64;
}

Output added(const Tensor& stream, void* sum, const Tensor& x, int64_t sign,
             int64_t fraction_bits) {
  check_same_layout(x, stream, "the stream");
  STD_TORCH_CHECK(sign == 1 || sign == -1, "revgrad: sign must be 1 or -1");
  return {stream.const_data_ptr(), sum, stream_type(stream, x), static_cast<int>(sign),
          std::ldexp(1.0, static_cast<int>(fraction_bits)),
          x.numel() * bytes_of(x) > kPastCache};
}

std::tuple<Tensor, Tensor> norm_act_update_(Tensor stream, const Tensor& x, MaybeTensor weight,
                                            MaybeTensor bias, MaybeTensor mean, MaybeTensor rstd,
                                            int64_t groups, bool over_batch, double eps,
                                            int64_t activation, double slope, int64_t sign,
                                            int64_t fraction_bits) {
  const Output out = added(stream, stream.mutable_data_ptr(), x, sign, fraction_bits);
  return normalise({x, weight, bias, mean, rstd, groups, over_batch, eps, activation, slope}, out);
}

std::tuple<Tensor, Tensor, Tensor> norm_act_update(
    const Tensor& stream, const Tensor& x, MaybeTensor weight, MaybeTensor bias, MaybeTensor mean,
    MaybeTensor rstd, int64_t groups, bool over_batch, double eps, int64_t activation,
    double slope, int64_t sign, int64_t fraction_bits) {
  Tensor sum = torch::stable::empty_like(stream);
  const Output out = added(stream, sum.mutable_data_ptr(), x, sign, fraction_bits);
  const auto [m, r] = normalise(
      {x, weight, bias, mean, rstd, groups, over_batch, eps, activation, slope}, out);
  return {sum, m, r};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(revgrad, CPU, m) {
  m.impl("norm_act", TORCH_BOX(&norm_act));
  m.impl("norm_act_update_", TORCH_BOX(&norm_act_update_));
  m.impl("norm_act_update", TORCH_BOX(&norm_act_update));
}

}  // namespace revgrad
