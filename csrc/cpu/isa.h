// Which of the variants of a file this processor runs.
#pragma once

#include <cstdlib>
#include <cstring>

namespace revgrad {

// Tests ask for a lesser variant than the processor's best: generic or v3.
inline bool allowed(const char* variant) {
  const char* most = std::getenv("REVGRAD_CPU_VARIANT");
  if (most == nullptr) return true;
  return std::strcmp(most, "generic") != 0 && std::strcmp(variant, most) <= 0;
}

// The build compiles *_loops.cpp once for every variant it names here.
template <class Table>
const Table& pick(const Table* generic, const Table* v3, const Table* v4) {
#if defined(__x86_64__) && defined(__GNUC__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  if (v4 != nullptr && allowed("v4") && avx512 && avx2) return *v4;
  if (v3 != nullptr && allowed("v3") && avx2) return *v3;
#else
  (void)v3;
  (void)v4;
#endif
  return *generic;
}

}  // namespace revgrad

// REVGRAD_PICK(Loops, orthogonal_loops) takes orthogonal_loops_generic and, where the build made
// them, orthogonal_loops_v3 and _v4.
#if defined(REVGRAD_X86_VARIANTS)
#define REVGRAD_PICK(Table, name) ::revgrad::pick<Table>(&name##_generic, &name##_v3, &name##_v4)
#else
#define REVGRAD_PICK(Table, name) ::revgrad::pick<Table>(&name##_generic, nullptr, nullptr)
#endif

#define REVGRAD_JOIN_(a, b) a##_##b
#define REVGRAD_JOIN(a, b) REVGRAD_JOIN_(a, b)
