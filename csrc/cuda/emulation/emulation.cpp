#include "cuda/emulation/emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace ds::emulation {

__thread Where where;

namespace {

constexpr size_t kStackBytes = 256 * 1024;  // of a fiber; only what is touched costs memory
constexpr size_t kMostShared = 227 * 1024;  // of a block on sm_90
constexpr size_t kGuardBytes = 4096;        // past the shared memory: must stay as it is
constexpr unsigned char kPoison = 0xff;     // floats, doubles and 16-bit floats: NaN
constexpr unsigned kMostThreads = 1024, kLanes = 32;

enum class Waits : uint8_t { kNot, kWarp, kBlock, kEnded };

struct Copy {
  void* to;
  const void* from;
  size_t n_bytes, n_valid;
};

struct Fiber {
  ucontext_t first;     // enters the fiber
  void* stack_pointer;  // where it was left
  Waits waits;
  bool started;
  uint32_t n_exchanges;
  Place place;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

// Registers that a call preserves, and the stack: what a switch between fibers has to keep.
#if defined(__x86_64__)
extern "C" void ds_emulation_switch(void** from, void* to);
asm(R"(
.text
.type ds_emulation_switch, @function
ds_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ds_emulation_switch, .-ds_emulation_switch
)");
#endif

class Machine {
 public:
  static Machine& here() {
    static thread_local std::unique_ptr<Machine> machine(new Machine);
    return *machine;
  }

  int run(const Place& grid, unsigned threads, size_t shared_bytes, void (*body)(void*),
          void* context);
  void give_way(Waits waits) {
    fiber_->waits = waits;
    leave();
  }
  Fiber& fiber() { return *fiber_; }
  unsigned char* shared() { return shared_; }
  unsigned char* exchanges(unsigned warp, uint32_t parity) {
    return exchanges_.data() + (warp * 2 + parity) * kLanes * kExchangeBytes;
  }

  std::string error;

 private:
  Machine()
      : exchanges_(kMostThreads / kLanes * 2 * kLanes * kExchangeBytes), fibers_(kMostThreads) {
    void* stacks = mmap(nullptr, kMostThreads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    stacks_ = stacks == MAP_FAILED ? nullptr : static_cast<unsigned char*>(stacks);
    void* shared = std::aligned_alloc(4096, kMostShared / 4096 * 4096 + 4096 + kGuardBytes);
    shared_ = static_cast<unsigned char*>(shared);
  }

  bool run_block(unsigned threads, size_t shared_bytes);
  bool run_warp(unsigned warp);
  void enter(Fiber& fiber);
  void leave();
  static void start();
  bool fails(const std::string& what);

  std::vector<unsigned char> exchanges_;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> warp_order_, lane_order_;
  unsigned char* stacks_ = nullptr;
  unsigned char* shared_ = nullptr;
  Fiber* fiber_ = nullptr;
  void* scheduler_ = nullptr;
  ucontext_t scheduler_context_;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
};

bool Machine::fails(const std::string& what) {
  error = "emulated kernel, block (" + std::to_string(where.block.x) + ", " +
          std::to_string(where.block.y) + ", " + std::to_string(where.block.z) + "): " + what;
  return false;
}

void Machine::start() {
  Machine& m = here();
  m.body_(m.context_);
  m.fiber_->waits = Waits::kEnded;
  m.leave();
}

void Machine::enter(Fiber& fiber) {
  fiber_ = &fiber;
  where.thread = fiber.place;
#if defined(__x86_64__)
  if (!fiber.started) {
    fiber.started = true;
    unsigned char* top = stacks_ + (fiber.place.x + 1) * kStackBytes;
    void** stack = reinterpret_cast<void**>(top);
    *--stack = nullptr;  // start() never returns
    *--stack = reinterpret_cast<void*>(&Machine::start);
    stack -= 6;
    std::fill(stack, stack + 6, nullptr);
    fiber.stack_pointer = stack;
  }
  ds_emulation_switch(&scheduler_, fiber.stack_pointer);
#else
  if (!fiber.started) {
    fiber.started = true;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = stacks_ + fiber.place.x * kStackBytes;
    fiber.first.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.first, &Machine::start, 0);
  }
  swapcontext(&scheduler_context_, &fiber.first);
#endif
}

void Machine::leave() {
#if defined(__x86_64__)
  ds_emulation_switch(&fiber_->stack_pointer, scheduler_);
#else
  swapcontext(&fiber_->first, &scheduler_context_);
#endif
}

// Runs the warp's lanes until all of them wait for the block or have ended.
bool Machine::run_warp(unsigned warp) {
  Fiber* lanes = &fibers_[warp * kLanes];
  for (;;) {
    for (const unsigned i : lane_order_)
      if (lanes[i].waits == Waits::kNot) enter(lanes[i]);
    unsigned at_warp = 0;
    for (unsigned i = 0; i < kLanes; ++i) at_warp += lanes[i].waits == Waits::kWarp;
    if (at_warp == 0) return true;
    if (at_warp < kLanes)
      return fails("only " + std::to_string(at_warp) + " lanes of warp " + std::to_string(warp) +
                   " reached a warp operation");
    for (unsigned i = 0; i < kLanes; ++i) lanes[i].waits = Waits::kNot;
  }
}

bool Machine::run_block(unsigned threads, size_t shared_bytes) {
  std::memset(shared_, kPoison, shared_bytes);
  std::memset(shared_ + shared_bytes, kPoison ^ 0x55, kGuardBytes);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& f = fibers_[i];
    f.waits = Waits::kNot;
    f.started = false;
    f.n_exchanges = 0;
    f.place = {i, 0, 0};
    f.open.clear();
    f.groups.clear();
  }
  for (;;) {
    for (const unsigned w : warp_order_)
      if (w * kLanes < threads && !run_warp(w)) return false;
    unsigned ended = 0;
    for (unsigned i = 0; i < threads; ++i) ended += fibers_[i].waits == Waits::kEnded;
    if (ended == threads) break;
    if (ended > 0)
      return fails(std::to_string(ended) + " of " + std::to_string(threads) +
                   " threads ended while the others wait at a barrier");
    for (unsigned i = 0; i < threads; ++i) fibers_[i].waits = Waits::kNot;
  }
  for (size_t i = 0; i < kGuardBytes; ++i)
    if (shared_[shared_bytes + i] != (kPoison ^ 0x55))
      return fails("wrote past its shared memory, byte " + std::to_string(shared_bytes + i));
  return true;
}

int Machine::run(const Place& blocks, unsigned threads, size_t shared_bytes, void (*body)(void*),
                 void* context) {
  Place& block = where.block;
  block = {};
  if (stacks_ == nullptr || shared_ == nullptr) return !fails("no memory");
  if (threads == 0 || threads > kMostThreads || threads % kLanes != 0)
    return !fails(std::to_string(threads) + " threads");
  if (shared_bytes > most_shared_bytes())
    return !fails(std::to_string(shared_bytes) + " shared bytes");
  const char* wanted = std::getenv("DOUBLESPARSE_EMULATION_ORDER");
  const std::string order = wanted != nullptr && *wanted != '\0' ? wanted : "forward";
  for (auto [list, n] : {std::pair{&warp_order_, kMostThreads / kLanes}, {&lane_order_, kLanes}}) {
    list->resize(n);
    for (unsigned i = 0; i < n; ++i) (*list)[i] = order == "reverse" ? n - 1 - i : i;
    if (order != "forward" && order != "reverse")
      std::shuffle(list->begin(), list->end(),
                   std::mt19937(std::strtoul(order.c_str(), nullptr, 10)));
  }
  const Place& grid = where.grid_extent = blocks;
  where.block_extent = {threads, 1, 1};
  body_ = body;
  context_ = context;
  for (block.z = 0; block.z < grid.z; ++block.z)
    for (block.y = 0; block.y < grid.y; ++block.y)
      for (block.x = 0; block.x < grid.x; ++block.x)
        if (!run_block(threads, shared_bytes)) return 1;
  return 0;
}

}  // namespace

size_t most_shared_bytes() {
  const char* wanted = std::getenv("DOUBLESPARSE_EMULATION_SHARED");
  const size_t n = wanted != nullptr ? std::strtoul(wanted, nullptr, 10) : kMostShared;
  return std::min(n, kMostShared);
}
void* shared_memory() {
  return Machine::here().shared();
}
void sync_block() {
  Machine::here().give_way(Waits::kBlock);
}
void sync_warp() {
  Machine::here().give_way(Waits::kWarp);
}

// Two buffers a warp: a lane shows its next bytes only after all lanes have arrived here, and so
// have read those before.
const unsigned char* exchange(const void* bytes, size_t n_bytes) {
  Machine& m = Machine::here();
  Fiber& f = m.fiber();
  unsigned char* all = m.exchanges(f.place.x / kLanes, f.n_exchanges++ & 1);
  std::memcpy(all + f.place.x % kLanes * kExchangeBytes, bytes, n_bytes);
  m.give_way(Waits::kWarp);
  return all;
}

void copy_later(void* to, const void* from, size_t n_bytes, size_t n_valid) {
  Machine::here().fiber().open.push_back({to, from, n_bytes, n_valid});
}
void commit_copies() {
  Fiber& f = Machine::here().fiber();
  f.groups.push_back(std::move(f.open));
  f.open.clear();
}
void wait_copies(int n_groups_left) {
  Fiber& f = Machine::here().fiber();
  while (f.groups.size() > static_cast<size_t>(n_groups_left)) {
    for (const Copy& c : f.groups.front()) {
      std::memcpy(c.to, c.from, c.n_valid);
      std::memset(static_cast<unsigned char*>(c.to) + c.n_valid, 0, c.n_bytes - c.n_valid);
    }
    f.groups.pop_front();
  }
}

int run_blocks(const Place& grid, unsigned threads, size_t shared_bytes, void (*body)(void*),
               void* context) {
  return Machine::here().run(grid, threads, shared_bytes, body, context);
}
const char* error_text() {
  return Machine::here().error.c_str();
}

}  // namespace ds::emulation
