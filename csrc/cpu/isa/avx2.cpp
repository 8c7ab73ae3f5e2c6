// The kernels compiled for avx2 (32-byte vectors).
#define DS_VEC_BYTES 32
#include "cpu/isa/table.h"

DS_EXPORT_KERNELS(kAvx2Kernels, Isa::kAvx2)
