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
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch() {
  const cudaError_t code = cudaGetLastError();
  STD_TORCH_CHECK(code == cudaSuccess, "revgrad: a CUDA kernel did not start: ",
                  cudaGetErrorString(code));
}

}  // namespace revgrad
