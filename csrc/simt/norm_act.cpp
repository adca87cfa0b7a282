// The CUDA kernels of normalisation on the CPU.
#include "bind.h"

#include <limits>

#include "../kernels/norm_act_backward.cuh"

namespace revgrad {
namespace {

// batch, channels, pixels, groups, over_batch, channels_last.
Norm norm_of(const std::vector<int64_t>& v) {
  if (v.size() != 6) throw std::invalid_argument("6 numbers make a normalisation");
  return {v[0], v[1], v[2], v[3], v[4] != 0, v[5] != 0};
}

template <class A>
const A* read_or_null(const Bytes& array) {
  return array.size() == 0 ? nullptr : read<A>(array);
}

// weight, bias (empty: none), mean, rstd; eps and slope.
template <class A>
NormCall<A> call_of(const Norm& n, const std::vector<Bytes>& vectors, double eps, double slope,
                    int activation, bool given) {
  return {n,
          read_or_null<A>(vectors.at(0)),
          read_or_null<A>(vectors.at(1)),
          write<A>(vectors.at(2)),
          write<A>(vectors.at(3)),
          static_cast<A>(eps),
          static_cast<A>(slope),
          static_cast<Activation>(activation),
          given};
}

template <class Pair, class A>
std::vector<Pair> unset(int64_t size) {
  Pair nothing;
  std::fill_n(reinterpret_cast<A*>(&nothing), sizeof(Pair) / sizeof(A),
              std::numeric_limits<A>::quiet_NaN());
  return std::vector<Pair>(static_cast<size_t>(size), nothing);
}

template <class T>
Target<T> target_of(const Bytes& from, const Bytes& to, const std::string& store, int sign,
                    int bits) {
  if (store == "write") return written_to(write<T>(to));
  const void* stream = read<char>(from);
  void* sum = write<char>(to);
  if (store == "int32") return added_to<T>(stream, sum, Store::add_fixed, sign, bits);
  Store kind = Store::add;
  by_dtype(store, [&](auto tag) {
    using S = decltype(tag);
    if (sizeof(S) > sizeof(T)) kind = sizeof(S) == 8 ? Store::add_double : Store::add_float;
  });
  return added_to<T>(stream, sum, kind, sign, bits);
}

void forward(const std::string& dtype, const std::vector<int64_t>& norm, Bytes x,
             const std::vector<Bytes>& vectors, double eps, double slope, int activation,
             bool given, Bytes from, Bytes to, const std::string& store, int sign, int bits) {
  const Norm n = norm_of(norm);
  by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = Acc<T>;
    auto scratch = unset<Moments<A>, A>(norm_scratch(n, kWide<T>, given));
    launch_norm_act<T>(read<T>(x), call_of<A>(n, vectors, eps, slope, activation, given),
                       target_of<T>(from, to, store, sign, bits), scratch.data(), nullptr);
  });
}

void backward(const std::string& dtype, bool wide_dy, const std::vector<int64_t>& norm, Bytes dy,
              Bytes x, const std::vector<Bytes>& vectors, double slope, int activation,
              bool constant, Bytes dx, Bytes dweight, Bytes dbias) {
  const Norm n = norm_of(norm);
  by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = Acc<T>;
    auto scratch = unset<GradSums<A>, A>(grad_scratch(n, kWide<T>, constant));
    const NormCall<A> call = call_of<A>(n, vectors, 0, slope, activation, constant);
    const auto launch = [&](auto* gradient) {
      launch_norm_act_backward(gradient, read<T>(x), write<T>(dx), call, write<A>(dweight),
                               write<A>(dbias), scratch.data(), nullptr);
    };
    if (wide_dy)
      launch(read<A>(dy));
    else
      launch(read<T>(dy));
  });
}

pybind11::dict forward_plan(const std::string& dtype, const std::vector<int64_t>& norm,
                            bool given) {
  NormPlan p{};
  by_dtype(dtype, [&](auto tag) {
    p = norm_plan(norm_of(norm), kWide<decltype(tag)>, given);
  });
  pybind11::dict d;
  d["unit"] = p.unit;
  d["held"] = p.held;
  d["threads"] = p.threads;
  d["width"] = p.width;
  d["blocks"] = p.blocks;
  d["pieces"] = p.columns.blocks() > 0 ? p.columns.cut.count : p.cut.count;
  d["piece"] = p.columns.blocks() > 0 ? p.columns.cut.size : p.cut.size;
  d["moment_blocks"] =
      p.columns.blocks() > 0 ? p.columns.blocks() : p.sets.count * p.cut.count;
  d["across"] = p.columns.across;
  return d;
}

pybind11::dict backward_plan(const std::string& dtype, const std::vector<int64_t>& norm,
                             bool constant) {
  GradPlan p{};
  by_dtype(dtype, [&](auto tag) {
    p = grad_plan(norm_of(norm), kWide<decltype(tag)>, constant);
  });
  pybind11::dict d;
  d["unit"] = p.teams.unit;
  d["held"] = p.teams.held;
  d["threads"] = p.teams.threads;
  d["by_row"] = p.by_row;
  d["pieces"] = p.layout.pieces;
  d["sums"] = p.sums;
  d["shifts"] = p.shifts;
  d["channel_blocks"] = p.total.of_channels;
  d["set_blocks"] = p.total.of_sets;
  d["channel_width"] = p.total.channel_width;
  d["set_width"] = p.total.set_width;
  return d;
}

}  // namespace

void bind_norm_act(pybind11::module_& m) {
  m.def("norm_act", &forward);
  m.def("norm_act_backward", &backward);
  m.def("norm_act_plan", &forward_plan);
  m.def("norm_act_backward_plan", &backward_plan);
}

}  // namespace revgrad
