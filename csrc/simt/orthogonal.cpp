// The block transform's CUDA kernels on the CPU, with the signatures of the raw operators.
#include "bind.h"
#include "geometry.h"

#include "../kernels/orthogonal.cuh"

namespace revgrad {
namespace {

void rotate(const std::string& dtype, bool up, std::vector<int64_t> geometry, bool channels_last,
            bool shared, Bytes from, Bytes q, Bytes to) {
  const Blocks b = blocks(geometry, channels_last, shared);
  by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto launch = up ? launch_rotate<T, true> : launch_rotate<T, false>;
    launch(read<T>(from), read<Acc<T>>(q), write<T>(to), b, nullptr);
  });
}

void weight(const std::string& dtype, std::vector<int64_t> geometry, bool channels_last,
            bool shared, Bytes x, Bytes y, Bytes grad) {
  const Blocks b = blocks(geometry, channels_last, shared);
  by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    std::vector<Acc<T>> partial(static_cast<size_t>(weight_partials(b) * b.size() * b.size()));
    launch_weight<T>(read<T>(x), read<T>(y), partial.data(), write<Acc<T>>(grad), b, nullptr);
  });
}

}  // namespace

void bind_orthogonal(pybind11::module_& m) {
  m.def("rotate", &rotate);
  m.def("weight", &weight);
}

}  // namespace revgrad
