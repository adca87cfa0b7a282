// The test-only module: CUDA kernels on the CPU, and kernels with planted faults.
#include "bind.h"

#include "../kernels/platform.h"

namespace revgrad {

void bind_orthogonal(pybind11::module_& m);
void bind_orthogonal_exact(pybind11::module_& m);
void bind_expm_skew(pybind11::module_& m);
void bind_norm_act(pybind11::module_& m);

namespace {

// Reverses 64 numbers through shared memory, with or without the barrier that this needs.
__global__ void reverse(const float* from, float* to, bool barrier) {
  RG_DYNAMIC_SHARED(float, shared);
  shared[threadIdx.x] = from[threadIdx.x];
  if (barrier) __syncthreads();
  to[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// Half of the threads never come to the barrier.
__global__ void deadlock(float* to) {
  if (threadIdx.x < 32) __syncthreads();
  to[threadIdx.x] = 1;
}

// A sum over one warp; lane 31 stays away if `missing`.
__global__ void warp_sum(const float* from, float* to, bool missing) {
  if (missing && threadIdx.x == 31) __syncthreads();
  float value = from[threadIdx.x];
  for (int o = 16; o > 0; o >>= 1) value += __shfl_down_sync(0xffffffffu, value, o);
  if (threadIdx.x == 0) to[0] = value;
}

void run_reverse(Bytes from, Bytes to, bool barrier) {
  RG_LAUNCH(reverse, 1, 64, 64 * sizeof(float), nullptr, read<float>(from), write<float>(to),
            barrier);
}

void run_deadlock(Bytes to) { RG_LAUNCH(deadlock, 1, 64, 0, nullptr, write<float>(to)); }

void run_warp_sum(Bytes from, Bytes to, bool missing) {
  RG_LAUNCH(warp_sum, 1, 32, 0, nullptr, read<float>(from), write<float>(to), missing);
}

// Numbers through the host's conversions, to be compared with torch's.
void convert(const std::string& dtype, Bytes from, Bytes to, Bytes back) {
  by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t i = 0; i < from.size(); ++i) {
      const T narrow = static_cast<T>(read<float>(from)[i]);
      write<T>(to)[i] = narrow;
      write<float>(back)[i] = static_cast<float>(narrow);
    }
  });
}

}  // namespace
}  // namespace revgrad

PYBIND11_MODULE(revgrad_simt, m) {
  using namespace revgrad;
  m.attr("orders") = simt::kOrders;
  m.def("set_order", [](int order) {
    if (order < 0 || order >= simt::kOrders) throw std::invalid_argument("no such order");
    simt::order = static_cast<simt::Order>(order);
  });
  m.def("reverse", &run_reverse);
  m.def("deadlock", &run_deadlock);
  m.def("warp_sum", &run_warp_sum);
  m.def("convert", &convert);
  bind_orthogonal(m);
  bind_orthogonal_exact(m);
  bind_expm_skew(m);
  bind_norm_act(m);
}
