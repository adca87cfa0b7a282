// The number types that kernels accept, as a tag that crosses from launchers to loops.
#pragma once

namespace revgrad {

enum class DType { f64, f32, bf16, f16 };

}  // namespace revgrad
