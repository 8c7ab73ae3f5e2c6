#include "core/cpu_features.h"

#include <cstring>

namespace ds {

namespace {
const char* const kNames[kNumIsas] = {"reference", "baseline", "avx2", "avx512", "amx"};
}

const char* isa_name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

bool isa_from_name(const char* name, Isa* out) {
  for (int i = 0; i < kNumIsas; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) {
      *out = static_cast<Isa>(i);
      return true;
    }
  }
  return false;
}

Isa detected_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The same sets that the objects are compiled for: x86-64-v3 and x86-64-v4.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
  if (!__builtin_cpu_supports("sse4.2")) return Isa::kReference;
#endif
  return Isa::kBaseline;
}

}  // namespace ds
