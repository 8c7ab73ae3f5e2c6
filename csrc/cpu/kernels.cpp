#include "cpu/kernels.h"

#include <algorithm>
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
#ifdef DS_HAVE_amx
void amx_group_conv(const GroupConvTile&);
void amx_weight_grad(const WeightGradBlock<bf16>&);
void amx_tile_spmm(const TileSpmmPart&);
#endif
void emulated_group_conv(const GroupConvTile&);
void emulated_weight_grad(const WeightGradBlock<bf16>&);
void emulated_tile_spmm(const TileSpmmPart&);

namespace {

// Another instruction set's kernels, and matrix tiles.
KernelTable with_tiles(const KernelTable& base, Isa isa, void (*group_conv)(const GroupConvTile&),
                       void (*weight_grad)(const WeightGradBlock<bf16>&),
                       void (*tile_spmm)(const TileSpmmPart&)) {
  KernelTable table = base;
  table.isa = isa;
  table.group_conv = group_conv;
  table.tile_weight_grad = weight_grad;
  table.tile_spmm = tile_spmm;
  return table;
}

}  // namespace

// The best instruction set up to `cap` that this machine has and this build has kernels for.
static Isa compiled_isa(Isa cap) {
  int isa = static_cast<int>(std::min(cap, detected_isa()));
  while (kernel_table_of(static_cast<Isa>(isa)) == nullptr) --isa;  // kReference always exists
  return static_cast<Isa>(isa);
}

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
#if defined(DS_HAVE_amx) && defined(DS_HAVE_avx512)
    case Isa::kAmx: {
      static const KernelTable table =
          with_tiles(kAvx512Kernels, isa, amx_group_conv, amx_weight_grad, amx_tile_spmm);
      return &table;
    }
#endif
    case Isa::kAmxEmulated: {
      static const KernelTable table =
          with_tiles(*kernel_table_of(compiled_isa(Isa::kAvx512)), isa, emulated_group_conv,
                     emulated_weight_grad, emulated_tile_spmm);
      return &table;
    }
    default:
      return nullptr;
  }
}

Isa chosen_isa() {
  static const Isa chosen = [] {
    Isa wanted;
    const char* name = std::getenv("DOUBLESPARSE_ISA");
    if (name == nullptr || !isa_from_name(name, &wanted)) wanted = Isa::kAmx;
    if (wanted == Isa::kAmxEmulated) return wanted;
    const Isa isa = compiled_isa(wanted);
    // Tile registers have to be asked for; here, once, where they would be used.
    return isa == Isa::kAmx && !request_tiles() ? compiled_isa(Isa::kAvx512) : isa;
  }();
  return chosen;
}

const KernelTable& kernel_table() {
  static const KernelTable* const table = kernel_table_of(chosen_isa());
  return *table;
}

}  // namespace ds
