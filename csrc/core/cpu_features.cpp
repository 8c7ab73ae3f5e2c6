#include "core/cpu_features.h"

#include <cstring>
#if defined(__x86_64__)
  #include <cpuid.h>
#endif
#if defined(__linux__)
  #include <sys/syscall.h>
  #include <unistd.h>
#endif

namespace ds {

namespace {

const char* const kNames[] = {"reference", "baseline", "avx2", "avx512", "amx", "amx-emulated"};

#if defined(__x86_64__)
// AMX-TILE, AMX-BF16, AVX512-BF16 and AVX512-VBMI2 of the CPU, and an operating system that saves
// the tiles.
bool has_amx_bf16() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((c & 1u << 6) == 0) return false;  // VBMI2
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0 || a < 1) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a & 1u << 5) == 0) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & 1u << 27) == 0) return false;  // XGETBV
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileStates = 3u << 17;  // XTILECFG, XTILEDATA
  return (low & kTileStates) == kTileStates;
}
#endif

}  // namespace

const char* isa_name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

bool isa_from_name(const char* name, Isa* out) {
  for (int i = 0; i <= static_cast<int>(Isa::kAmxEmulated); ++i) {
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
  if (avx512 && has_amx_bf16()) return Isa::kAmx;
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
  if (!__builtin_cpu_supports("sse4.2")) return Isa::kReference;
#endif
  return Isa::kBaseline;
}

bool request_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kReqXcompPerm = 0x1023, kXtileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kReqXcompPerm, kXtileData) == 0;
#else
  return false;
#endif
}

}  // namespace ds
