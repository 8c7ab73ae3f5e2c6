// Which instruction sets this machine has, and which one the kernels of this process use.
#pragma once

namespace ds {

// Ordered: a larger one includes the smaller ones. kReference = the scalar kernels, kept as an
// oracle.
enum class Isa : int { kReference = 0, kBaseline = 1, kAvx2 = 2, kAvx512 = 3, kAmx = 4 };

constexpr int kNumIsas = 5;
const char* isa_name(Isa isa);
bool isa_from_name(const char* name, Isa* out);  // "reference", "baseline", "avx2", "avx512", "amx"
Isa detected_isa();                              // the best this CPU and its operating system offer

}  // namespace ds
