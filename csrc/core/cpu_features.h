// Which instruction sets this machine has, and which one the kernels of this process use.
#pragma once

namespace ds {

// Ordered: a larger one includes the smaller ones. kReference = the scalar kernels, kept as an
// oracle.
enum class Isa : int {
  kReference = 0,
  kBaseline = 1,
  kAvx2 = 2,
  kAvx512 = 3,
  kAmx = 4,
  kAmxEmulated = 5,  // for tests, on any machine: AMX's matrix tiles in plain C++
};

constexpr int kNumIsas = 5;  // that a machine can have
const char* isa_name(Isa isa);
// "reference", "baseline", "avx2", "avx512", "amx", "amx-emulated"
bool isa_from_name(const char* name, Isa* out);
Isa detected_isa();    // the best this CPU and its operating system offer
bool request_tiles();  // asks Linux for AMX's tile registers, for the whole process

}  // namespace ds
