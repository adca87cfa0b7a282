// The small matrix exponential's CUDA kernels on the CPU.
#include "bind.h"

#include <limits>

#include "../kernels/expm_skew.cuh"

namespace revgrad {
namespace {

template <class A>
std::vector<A> scratch_for(int64_t batch, int n) {
  return std::vector<A>(static_cast<size_t>(batch * kSlots * n * n),
                        std::numeric_limits<A>::quiet_NaN());
}

template <class F>
void by_matrix_dtype(const std::string& name, F f) {
  if (name == "float64") return f(double{});
  if (name == "float32") return f(float{});
  throw std::invalid_argument("no kernel takes " + name);
}

void forward(const std::string& dtype, int64_t batch, int n, bool save, Bytes theta, Bytes result,
             Bytes tape, Bytes plan) {
  by_matrix_dtype(dtype, [&](auto tag) {
    using A = decltype(tag);
    std::vector<A> scratch = scratch_for<A>(batch, n);
    launch_expm_skew<A>(read<A>(theta), write<A>(result), save ? write<A>(tape) : nullptr,
                        write<int32_t>(plan), scratch.data(), batch, n, nullptr);
  });
}

void backward(const std::string& dtype, int64_t batch, int n, Bytes grad, Bytes theta,
              Bytes result, Bytes tape, Bytes plan, Bytes gradient) {
  by_matrix_dtype(dtype, [&](auto tag) {
    using A = decltype(tag);
    std::vector<A> scratch = scratch_for<A>(batch, n);
    launch_expm_skew_backward<A>(read<A>(grad), read<A>(theta), read<A>(result), read<A>(tape),
                                 read<int32_t>(plan), write<A>(gradient), scratch.data(), batch, n,
                                 nullptr);
  });
}

}  // namespace

void bind_expm_skew(pybind11::module_& m) {
  m.def("expm_skew", &forward);
  m.def("expm_skew_backward", &backward);
}

}  // namespace revgrad
