// The kernels compiled for avx512 (64-byte vectors).
#define DS_VEC_BYTES 64
#include "cpu/isa/table.h"

DS_EXPORT_KERNELS(kAvx512Kernels, Isa::kAvx512)
