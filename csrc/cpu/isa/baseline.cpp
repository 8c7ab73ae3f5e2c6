// The kernels compiled for baseline (16-byte vectors).
#define DS_VEC_BYTES 16
#include "cpu/isa/table.h"

DS_EXPORT_KERNELS(kBaselineKernels, Isa::kBaseline)
