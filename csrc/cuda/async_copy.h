// Copies from global to shared memory that run while the block computes (cp.async, sm_80). A thread
// sees its own copies once it has waited for their group, the others' after a barrier more.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// kBytes (4, 8 or 16, both addresses aligned to it) from `from`, or zeros where not `valid`: then
// `from` is not read, but must be some valid address.
template <int kBytes>
DS_DEVICE void copy_async(void* to_shared, const void* from, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef DS_EMULATED
  emulation::copy_later(to_shared, from, kBytes, valid ? kBytes : 0);
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  const int n_valid = valid ? kBytes : 0;
  if constexpr (kBytes == 16)  // past L1: gathered rows are shared by blocks, not within one
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n_valid)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
                 "r"(n_valid)
                 : "memory");
#endif
}

// Ends a group: what was issued since the last one.
DS_DEVICE void commit_copies() {
#ifdef DS_EMULATED
  emulation::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most kLeft of this thread's groups are under way.
template <int kLeft>
DS_DEVICE void wait_copies() {
#ifdef DS_EMULATED
  emulation::wait_copies(kLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace ds::gpu
