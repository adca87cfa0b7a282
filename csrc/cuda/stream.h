// The stream that torch is working on.
#pragma once

#include <cuda_runtime.h>

#include "../stable.h"

// Lives in libtorch_cuda alone. Weak, so that this library also loads beside a CPU build of torch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** ret_stream);

namespace revgrad {

inline cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "revgrad: this build of torch has no CUDA");
  void* stream = nullptr;
  // torch's own macro for this changed its name between 2.11 and 2.13.
  const AOTITorchError code = aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream);
  STD_TORCH_CHECK(code == AOTI_TORCH_SUCCESS, "revgrad: torch did not name its CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch() {
  const cudaError_t code = cudaGetLastError();
  STD_TORCH_CHECK(code == cudaSuccess, "revgrad: a CUDA kernel did not start: ",
                  cudaGetErrorString(code));
}

}  // namespace revgrad
