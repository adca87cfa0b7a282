// What differs between nvcc, the simulator and a plain C++ compiler, and nothing else.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define RG_FN __host__ __device__ __forceinline__
#define RG_BODY __host__ __device__ __forceinline__
#define RG_DYNAMIC_SHARED(T, name)                                      \
  extern __shared__ __align__(16) unsigned char rg_shared_bytes[];      \
  T* name = reinterpret_cast<T*>(rg_shared_bytes)
#define RG_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__)
#else
#if defined(REVGRAD_SIMT)
#include "../simt/simt.h"
#endif
#define RG_FN inline __attribute__((always_inline))
#define RG_BODY inline  // long enough to be a function of its own on the host
#endif

// One file is compiled for several instruction sets. Without a namespace for each, the linker
// would keep one copy of every inline function, perhaps the one this processor cannot run.
#ifndef REVGRAD_ISA
#define REVGRAD_ISA generic
#endif
