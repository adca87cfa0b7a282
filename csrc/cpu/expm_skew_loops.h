// The small matrix exponential's loops, one table for each instruction set.
#pragma once

#include <cstdint>

#include "../tensor_types.h"

namespace revgrad {

struct ExpmSkewLoops {
  // Matrices [begin, end). `tape` may be null.
  void (*forward)(DType dtype, int n, const void* theta, void* result, void* tape, int32_t* plan,
                  int64_t begin, int64_t end);
  void (*backward)(DType dtype, int n, const void* grad, const void* theta, const void* result,
                   const void* tape, const int32_t* plan, void* gradient, int64_t begin,
                   int64_t end);
};

extern const ExpmSkewLoops expm_skew_loops_generic, expm_skew_loops_v3, expm_skew_loops_v4;

}  // namespace revgrad
