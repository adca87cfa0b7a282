// Runs CUDA kernels on the host, one fiber per CUDA thread. For tests only.
//
// The blocks of a grid run one after another; the threads of a block are ucontext fibers that
// change over at barriers and warp collectives alone. A run is therefore deterministic, can be
// debugged and works under the sanitizers, and a second run under another Order makes a missing
// barrier visible as another result. Out of its reach: races within a stretch without barriers
// as the memory model sees them, alignment, occupancy, speed. compute-sanitizer covers those.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

namespace simt {

// Who goes next among the threads that can: lane after lane, or a warp as far as it gets.
enum class Order { lanes, lanes_reversed, lanes_shuffled, warps, warps_reversed };
constexpr int kOrders = 5;

// Where the lanes of one mask meet. A lane can be one meeting ahead of another, never two.
struct Meeting {
  uint64_t word[2][32] = {};
  unsigned turn[32] = {};
  unsigned arrived = 0, complete = 0;
  const char* site = nullptr;
};

struct Fiber {
  ucontext_t context;
  dim3 id;
  unsigned index = 0, turn = 0;
  std::unique_ptr<char[]> stack;
  bool done = false, at_barrier = false;
  const char* site = nullptr;
  Meeting* meeting = nullptr;

  bool can_run() const {
    return !done && !at_barrier && !(meeting != nullptr && meeting->complete <= turn);
  }
};

class Machine {
 public:
  dim3 grid, block, block_id;
  std::vector<char> dynamic;
  Fiber* current = nullptr;

  Machine(dim3 grid_, dim3 block_, size_t shared, std::function<void()> body, Order order)
      : grid(grid_), block(block_), dynamic(shared + 16), body_(std::move(body)), order_(order),
        fibers_(static_cast<size_t>(block_.x) * block_.y * block_.z) {
    if (fibers_.empty() || fibers_.size() > 1024) throw fault("a block has 1 to 1024 threads");
    if (shared > 48 * 1024) throw fault("more than 48 KiB of shared memory in a block");
    for (Fiber& f : fibers_) f.stack.reset(new char[kStack]);
  }

  void run() {
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          block_id = dim3(x, y, z);
          run_block();
        }
  }

  void barrier(const char* site) {
    current->site = site;
    current->at_barrier = true;
    leave();
  }

  // Each live lane of `mask` leaves a word and, when all have come, reads the others'.
  template <class Read>
  uint64_t meet(unsigned mask, uint64_t word, const char* site, Read read) {
    Fiber* self = current;
    const unsigned warp = self->index / 32, lane = self->index % 32;
    if ((mask >> lane & 1u) == 0)
      stop(std::string(site) + ": a lane outside the mask calls a warp collective");
    Meeting& m = meetings_[warp][mask];
    const unsigned turn = m.turn[lane]++, half = turn & 1u;
    if (m.arrived == 0)
      m.site = site;
    else if (m.site != site)
      stop(std::string(site) + ", " + m.site + ": lanes of a warp meet in different collectives");
    m.word[half][lane] = word;
    m.arrived |= 1u << lane;
    if (m.arrived == (mask & lanes_of(warp))) {
      m.arrived = 0;
      m.complete = turn + 1;
    } else {
      self->site = site;
      self->meeting = &m;
      self->turn = turn;
      leave();
      self->meeting = nullptr;
    }
    return read(m.word[half], lane);
  }

  static void entry();

 private:
  static constexpr size_t kStack = 256 * 1024;

  static std::runtime_error fault(const std::string& what) {
    return std::runtime_error("simt: " + what);
  }

  unsigned lanes_of(unsigned warp) const {
    const size_t left = fibers_.size() - warp * 32;
    return left >= 32 ? ~0u : (1u << left) - 1;
  }

  void leave() { swapcontext(&current->context, &home_); }

  // Exceptions cannot cross fibers: leave a note and go home for good.
  [[noreturn]] void stop(std::string what) {
    fault_ = std::move(what);
    setcontext(&home_);
    std::abort();
  }

  void step(Fiber& f) {
    current = &f;
    swapcontext(&home_, &f.context);
    if (!fault_.empty()) throw fault(fault_);
  }

  bool step_all(const unsigned* first, const unsigned* last) {
    bool any = false;
    for (; first != last; ++first)
      if (fibers_[*first].can_run()) {
        step(fibers_[*first]);
        any = true;
      }
    return any;
  }

  // Gives threads a turn; says whether any could take it.
  bool pass(std::vector<unsigned>& who) {
    if (order_ == Order::lanes_shuffled) std::shuffle(who.begin(), who.end(), random_);
    const unsigned* all = who.data();
    if (order_ < Order::warps) return step_all(all, all + who.size());
    bool any = false;
    for (size_t k = 0; k < who.size(); k += 32)
      while (step_all(all + k, all + std::min(k + 32, who.size()))) any = true;
    return any;
  }

  void prepare(unsigned index) {
    Fiber& f = fibers_[index];
    f.index = index;
    f.id = dim3(index % block.x, index / block.x % block.y, index / (block.x * block.y));
    f.done = f.at_barrier = false;
    f.meeting = nullptr;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = &home_;
    makecontext(&f.context, &Machine::entry, 0);
  }

  void run_block() {
    std::vector<unsigned> who(fibers_.size());
    std::iota(who.begin(), who.end(), 0u);
    if (order_ == Order::lanes_reversed || order_ == Order::warps_reversed)
      std::reverse(who.begin(), who.end());
    meetings_.assign((fibers_.size() + 31) / 32, {});
    std::memset(dynamic.data(), 0xff, dynamic.size());  // NaN, so that nothing reads it unset
    for (unsigned i = 0; i < fibers_.size(); ++i) prepare(i);
    do
      while (pass(who)) {
      }
    while (open_barrier());
  }

  // All threads stand still: at one barrier, at their ends, or for ever.
  bool open_barrier() {
    const Fiber* first = nullptr;
    size_t waiting = 0;
    for (const Fiber& f : fibers_) {
      if (f.done) continue;
      if (!f.at_barrier)
        throw fault(std::string(f.site) + ": a warp collective waits for lanes that never come");
      if (first != nullptr && first->site != f.site)
        throw fault(std::string(first->site) + ", " + f.site +
                    ": threads of one block wait at different barriers");
      first = &f;
      ++waiting;
    }
    if (first == nullptr) return false;
    if (waiting != fibers_.size())
      throw fault(std::string(first->site) + ": a barrier that some threads never reach");
    for (Fiber& f : fibers_) f.at_barrier = false;
    return true;
  }

  std::function<void()> body_;
  Order order_;
  std::vector<Fiber> fibers_;
  std::vector<std::map<unsigned, Meeting>> meetings_;
  ucontext_t home_;
  std::string fault_;
  std::mt19937 random_{1};
};

inline thread_local Machine* machine = nullptr;
inline thread_local Order order = Order::lanes;

inline void Machine::entry() {
  machine->body_();
  machine->current->done = true;
}

inline void launch(dim3 grid, dim3 block, size_t shared, std::function<void()> body) {
  Machine here(grid, block, shared, std::move(body), order);
  Machine* outer = machine;
  machine = &here;
  try {
    here.run();
  } catch (...) {
    machine = outer;
    throw;
  }
  machine = outer;
}

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a warp exchanges at most 8 bytes a lane");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T>
T unpack(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

// The value of the lane that `source(lane)` names.
template <class T, class Source>
T exchange(unsigned mask, T value, const char* site, Source source) {
  return unpack<T>(machine->meet(mask, pack(value), site, [&](const uint64_t* words, unsigned lane) {
    return words[source(lane)];
  }));
}

}  // namespace simt

#define SIMT_TEXT_(x) #x
#define SIMT_TEXT(x) SIMT_TEXT_(x)
#define SIMT_SITE __FILE__ ":" SIMT_TEXT(__LINE__)
#define threadIdx (::simt::machine->current->id)
#define blockIdx (::simt::machine->block_id)
#define blockDim (::simt::machine->block)
#define gridDim (::simt::machine->grid)
#define __syncthreads() ::simt::machine->barrier(SIMT_SITE)
#define __syncwarp() \
  ((void)::simt::exchange(~0u, 0, SIMT_SITE, [](unsigned lane) { return lane; }))
#define __shfl_sync(mask, value, from)             \
  ::simt::exchange(mask, value, SIMT_SITE, [&](unsigned) { return unsigned(from) & 31u; })
#define __shfl_down_sync(mask, value, delta)       \
  ::simt::exchange(mask, value, SIMT_SITE,         \
                   [&](unsigned lane) { return lane + (delta) < 32 ? lane + (delta) : lane; })
#define __shfl_up_sync(mask, value, delta)         \
  ::simt::exchange(mask, value, SIMT_SITE,         \
                   [&](unsigned lane) { return lane >= unsigned(delta) ? lane - (delta) : lane; })
#define __shfl_xor_sync(mask, value, other)        \
  ::simt::exchange(mask, value, SIMT_SITE, [&](unsigned lane) { return (lane ^ (other)) & 31u; })
#define RG_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(::simt::machine->dynamic.data())
#define RG_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ((void)(stream), ::simt::launch(grid, block, shared, [=] { kernel(__VA_ARGS__); }))
