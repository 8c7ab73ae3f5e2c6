#include "cpu/kernels.h"

#include <cstdlib>

namespace ds {

extern const KernelTable kReferenceKernels;
extern const KernelTable kBaselineKernels;
#ifdef DS_HAVE_avx2
extern const KernelTable kAvx2Kernels;
#endif
#ifdef DS_HAVE_avx512
extern const KernelTable kAvx512Kernels;
#endif

const KernelTable* kernel_table_of(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return &kReferenceKernels;
    case Isa::kBaseline:
      return &kBaselineKernels;
#ifdef DS_HAVE_avx2
    case Isa::kAvx2:
      return &kAvx2Kernels;
#endif
#ifdef DS_HAVE_avx512
    case Isa::kAvx512:
      return &kAvx512Kernels;
#endif
    default:
      return nullptr;
  }
}

Isa chosen_isa() {
  static const Isa chosen = [] {
    Isa cap = detected_isa();
    Isa wanted;
    const char* name = std::getenv("DOUBLESPARSE_ISA");
    if (name != nullptr && isa_from_name(name, &wanted) && wanted < cap) cap = wanted;
    int isa = static_cast<int>(cap);
    while (kernel_table_of(static_cast<Isa>(isa)) == nullptr) --isa;  // kReference always exists
    return static_cast<Isa>(isa);
  }();
  return chosen;
}

const KernelTable& kernel_table() {
  static const KernelTable* const table = kernel_table_of(chosen_isa());
  return *table;
}

}  // namespace ds
