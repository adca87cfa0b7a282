// The fixed-point block transform's CUDA kernel on the CPU.
#include "bind.h"
#include "geometry.h"

#include "../kernels/orthogonal_exact.cuh"

namespace revgrad {

void bind_orthogonal_exact(pybind11::module_& m) {
  m.def("lift", [](bool up, std::vector<int64_t> geometry, bool channels_last, Bytes from,
                   Bytes factors, Bytes to) {
    const auto launch = up ? launch_lift<true> : launch_lift<false>;
    launch(read<int32_t>(from), read<double>(factors), write<int32_t>(to),
           blocks(geometry, channels_last, false), nullptr);
  });
}

}  // namespace revgrad
