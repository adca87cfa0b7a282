// The fixed-point block transform's loop, one for each instruction set.
#pragma once

#include "../kernels/orthogonal.h"

namespace revgrad {

struct OrthogonalExactLoops {
  // Lines [begin, end) as in orthogonal_loops.h. The factors (kernels/orthogonal_exact.h) are
  // (channels, factors), or with channels as lanes (factors, channels).
  void (*lift)(bool up, const Blocks& b, const int32_t* from, const double* factors, int32_t* to,
               int64_t begin, int64_t end);
};

extern const OrthogonalExactLoops orthogonal_exact_loops_generic, orthogonal_exact_loops_v3,
    orthogonal_exact_loops_v4;

}  // namespace revgrad
