#include "runtime/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <new>

#include "runtime/cpu.h"
#include "runtime/platform.h"

namespace mg {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kMapped = (size_t)4 << 20;  // blocks from here on are whole pages, huge ones if granted
constexpr size_t kLargest = (size_t)1 << 62;
constexpr uint32_t kLive = 0x4556494c, kCached = 0x48434143;  // a wild or second release is caught, not obeyed
#ifdef MG_GUARD_BYTES
constexpr size_t kGuard = 64;
#else
constexpr size_t kGuard = 0;
#endif

// In front of every payload, on a cache line of its own.
struct alignas(kLine) Header {
  Header* next;
  const void* owner;  // the pool it came from
  size_t requested, capacity;
  uint32_t size_class, state;
  int64_t number;  // in the log of a recording, -1: not in it
  size_t shift;    // bytes of pages before it
};
static_assert(sizeof(Header) == kLine, "the payload must stay 64-byte aligned");

// Classes are multiples of 64 up to 512 and then 8 steps per power of two, so at most 1/8 of a request is wasted.
constexpr size_t kSmallClasses = 8;
constexpr size_t kClasses = kSmallClasses + 8 * (62 - 9);

struct SizeClass {
  size_t index, capacity;
};

SizeClass size_class_of(size_t bytes) {
  if (bytes <= 512) {
    const size_t lines = std::max<size_t>(1, (bytes + kLine - 1) / kLine);
    return {lines - 1, lines * kLine};
  }
  const size_t power = 63 - (size_t)__builtin_clzll(bytes - 1);  // 2^power <= bytes - 1
  const size_t step = (size_t)1 << (power - 3);
  const size_t steps = ((bytes - 1) >> (power - 3)) + 1;  // 9..16 steps
  return {kSmallClasses + 8 * (power - 9) + (steps - 9), steps * step};
}

size_t total_of(size_t capacity) { return sizeof(Header) + capacity; }

// Pages begin at multiples of 2 MB. All streams of a kernel would be at the same place of their pages, and in the same few
// sets of each cache; 5 lines apart they are not.
size_t next_shift() {
  static std::atomic<size_t> made{0};
  return made.fetch_add(1, std::memory_order_relaxed) % 16 * 5 * kLine;
}

Header* make_block(size_t capacity) {
  const size_t shift = capacity >= kMapped ? next_shift() : 0;
  void* p = capacity >= kMapped ? take_pages(shift + total_of(capacity)) : take_lines(total_of(capacity));
  if (!p) return nullptr;
  Header* const block = new (static_cast<char*>(p) + shift) Header;
  block->shift = shift;
  return block;
}

void free_blocks(Header* block) noexcept {
  while (block) {
    Header* const next = block->next;
    block->state = 0;
    if (block->capacity >= kMapped) give_pages(reinterpret_cast<char*>(block) - block->shift, block->shift + total_of(block->capacity));
    else give_lines(block);
    block = next;
  }
}

char* payload_of(Header* block) { return reinterpret_cast<char*>(block + 1) + kGuard; }

[[noreturn]] void die(const char* what, const Header* block) noexcept {
  fprintf(stderr, "microgpt: %s a block of %zu bytes\n", what, block->requested);
  abort();
}

#ifdef MG_GUARD_BYTES
unsigned char guard_byte(size_t i) { return (unsigned char)(0xa5 ^ (i * 29)); }

// All live blocks of all pools: payload -> bytes.
struct LiveBlocks {
  std::mutex mutex;
  std::map<const char*, size_t> blocks;
  static LiveBlocks& get() {
    static LiveBlocks* const live = new LiveBlocks;
    return *live;
  }
};

void arm(Header* block) {
  {
    LiveBlocks& live = LiveBlocks::get();
    const std::lock_guard<std::mutex> lock(live.mutex);
    live.blocks[payload_of(block)] = block->requested;
  }
  unsigned char* const front = reinterpret_cast<unsigned char*>(block + 1);
  unsigned char* const payload = front + kGuard;
  for (size_t i = 0; i < kGuard; ++i) front[i] = payload[block->requested + i] = guard_byte(i);
  const uint32_t signalling_nan = 0x7fa00000;
  for (size_t i = 0; i < block->requested; i += 4)
    memcpy(payload + i, &signalling_nan, std::min<size_t>(4, block->requested - i));
}

void check(Header* block) noexcept {
  {
    LiveBlocks& live = LiveBlocks::get();
    const std::lock_guard<std::mutex> lock(live.mutex);
    live.blocks.erase(payload_of(block));
  }
  const unsigned char* const front = reinterpret_cast<const unsigned char*>(block + 1);
  const unsigned char* const back = front + kGuard + block->requested;
  for (size_t i = 0; i < kGuard; ++i) {
    if (front[i] != guard_byte(i)) die("overwritten before the start of", block);
    if (back[i] != guard_byte(i)) die("overwritten past the end of", block);
  }
}
#else
void arm(Header*) {}
void check(Header*) noexcept {}
#endif

// A quarter of the memory this process may use.
size_t default_cache_limit() {
  const int64_t there = memory_of_machine();
  double memory = there > 0 ? (double)there : 4e9;
  const int64_t granted = cgroup_memory("");
  if (granted > 0) memory = std::min(memory, (double)granted);
  return (size_t)(memory / 4);
}

// Every pool is in a ring, for fork: one while another thread is inside a pool must not leave the child with a lock
// that nobody will open.
struct PoolRing {
  std::mutex* mutex = nullptr;
  PoolRing *previous = nullptr, *next = nullptr;
};

struct PoolRegistry {
  std::mutex mutex;
  PoolRing* first = nullptr;
  size_t cache_limit = default_cache_limit();

  PoolRegistry() { at_fork(lock_all, unlock_all, unlock_all); }
  static PoolRegistry& get() {
    static PoolRegistry* const registry = new PoolRegistry;  // pools outlive static destructors
    return *registry;
  }
  void add(PoolRing* ring) {
    const std::lock_guard<std::mutex> lock(mutex);
    ring->next = first;
    if (first) first->previous = ring;
    first = ring;
  }
  void remove(PoolRing* ring) {
    const std::lock_guard<std::mutex> lock(mutex);
    (ring->previous ? ring->previous->next : first) = ring->next;
    if (ring->next) ring->next->previous = ring->previous;
  }
  static void lock_all() {
    get().mutex.lock();
    for (PoolRing* ring = get().first; ring; ring = ring->next) ring->mutex->lock();
#ifdef MG_GUARD_BYTES
    LiveBlocks::get().mutex.lock();
#endif
  }
  static void unlock_all() {
#ifdef MG_GUARD_BYTES
    LiveBlocks::get().mutex.unlock();
#endif
    for (PoolRing* ring = get().first; ring; ring = ring->next) ring->mutex->unlock();
    get().mutex.unlock();
  }
};

}  // namespace

// The lifetimes of a recording's blocks so far; its clock counts takes and releases.
struct PoolLog {
  int64_t clock = 0;
  std::vector<Lifetime> blocks;
  std::vector<char*> payloads;          // by number
  std::map<const char*, int64_t> live;  // payload -> number
};

struct Pool::Impl {
  mutable std::mutex mutex;
  std::unique_ptr<PoolLog> log;
  Header* free[kClasses] = {};
  PoolStats stats;
  const bool keep_all;
  PoolRing ring;

  explicit Impl(bool keep) : keep_all(keep) { ring.mutex = &mutex; }
  void note(Header* block, size_t bytes) {  // under the mutex
    block->number = -1;
    if (!log) return;
    block->number = (int64_t)log->blocks.size();
    Lifetime life;
    life.bytes = bytes, life.from = log->clock++;
    log->blocks.push_back(life);
    log->payloads.push_back(payload_of(block));
    log->live[payload_of(block)] = block->number;
  }
  Header* detach_cached() {  // under the mutex
    Header* all = nullptr;
    for (Header*& list : free) {
      while (list) {
        Header* const block = list;
        list = block->next;
        block->next = all;
        all = block;
      }
    }
    stats.cached_bytes = 0;
    return all;
  }
};

Pool::Pool(bool keep_all) : impl_(new Impl(keep_all)) { PoolRegistry::get().add(&impl_->ring); }

Pool::~Pool() {
  PoolRegistry::get().remove(&impl_->ring);
  free_blocks(impl_->detach_cached());
}

void* Pool::take(size_t bytes) {
  if (bytes > kLargest - 2 * kGuard) throw std::bad_alloc();
  const SizeClass wanted = size_class_of(bytes + 2 * kGuard);
  Header* block;
  {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    Header** at = &impl_->free[wanted.index];
    // A replay writes each recorded size again, so guards of a recording must not move within a block.
    if (kGuard && impl_->keep_all)
      while (*at && (*at)->requested != bytes) at = &(*at)->next;
    block = *at;
    PoolStats& stats = impl_->stats;
    if (block) {
      *at = block->next;
      stats.cached_bytes -= (int64_t)wanted.capacity;
      stats.live_bytes += (int64_t)wanted.capacity;
      stats.peak_bytes = std::max(stats.peak_bytes, stats.live_bytes);
      ++stats.blocks_reused;
      impl_->note(block, bytes);
    }
  }
  if (!block) {
    block = make_block(wanted.capacity);
    if (!block) {
      trim();
      default_pool()->trim();
      block = make_block(wanted.capacity);
      if (!block) throw std::bad_alloc();
    }
    block->owner = impl_.get();
    block->capacity = wanted.capacity;
    block->size_class = (uint32_t)wanted.index;
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    PoolStats& stats = impl_->stats;
    stats.live_bytes += (int64_t)wanted.capacity;
    stats.peak_bytes = std::max(stats.peak_bytes, stats.live_bytes);
    ++stats.blocks_made;
    impl_->note(block, bytes);
  }
  block->next = nullptr;
  block->requested = bytes;
  block->state = kLive;
  arm(block);
  return payload_of(block);
}

void Pool::release(void* p) noexcept {
  if (!p) return;
  Header* const block = reinterpret_cast<Header*>(static_cast<char*>(p) - kGuard) - 1;
  if (block->state != kLive || block->owner != impl_.get()) die("second or foreign release of", block);
  check(block);
  block->state = kCached;
  const size_t limit = PoolRegistry::get().cache_limit;
  const bool keep_all = impl_->keep_all;
  Header* surplus = nullptr;
  {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    PoolStats& stats = impl_->stats;
    if (impl_->log && block->number >= 0) {
      PoolLog& log = *impl_->log;
      log.blocks[(size_t)block->number].until = log.clock++;
      log.live.erase(static_cast<const char*>(p));
    }
    stats.live_bytes -= (int64_t)block->capacity;
    // Past the limit everything goes at once: what is cached is then mostly of sizes no longer asked for.
    if (!keep_all && (size_t)stats.cached_bytes + block->capacity > limit) surplus = impl_->detach_cached();
    if (!keep_all && block->capacity > limit) {
      block->next = surplus;
      surplus = block;
    } else {
      block->next = impl_->free[block->size_class];
      impl_->free[block->size_class] = block;
      stats.cached_bytes += (int64_t)block->capacity;
    }
  }
  free_blocks(surplus);
}

bool Pool::owns(const void* p) const noexcept {
  return (reinterpret_cast<const Header*>(static_cast<const char*>(p) - kGuard) - 1)->owner == impl_.get();
}

void Pool::trim() noexcept {
  if (!impl_->keep_all) free_cached();
}

void Pool::free_cached() noexcept {
  Header* all;
  {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    all = impl_->detach_cached();
  }
  free_blocks(all);
}

void Pool::begin_log() {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->log.reset(new PoolLog);
}

std::vector<Lifetime> Pool::end_log(std::vector<char*>* payloads) {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  const std::unique_ptr<PoolLog> log = std::move(impl_->log);
  if (!log) return {};
  if (payloads) *payloads = std::move(log->payloads);
  return std::move(log->blocks);
}

int64_t Pool::log_clock() const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->log ? impl_->log->clock : 0;
}

int64_t Pool::logged(const void* p, size_t* offset) const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  if (!impl_->log) return -1;
  const PoolLog& log = *impl_->log;
  const char* const at = static_cast<const char*>(p);
  auto block = log.live.upper_bound(at);
  if (block == log.live.begin()) return -1;
  --block;
  *offset = (size_t)(at - block->first);
  // Just past the end belongs to the block too: a header stands before the next.
  return *offset <= log.blocks[(size_t)block->second].bytes ? block->second : -1;
}

PoolStats Pool::stats() const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->stats;
}

#ifdef MG_GUARD_BYTES
bool in_live_block(const void* p) {
  LiveBlocks& live = LiveBlocks::get();
  const std::lock_guard<std::mutex> lock(live.mutex);
  auto block = live.blocks.upper_bound(static_cast<const char*>(p));
  if (block == live.blocks.begin()) return false;
  --block;
  return static_cast<const char*>(p) < block->first + block->second;
}
#endif

const std::shared_ptr<Pool>& default_pool() {
  static const std::shared_ptr<Pool>* const pool = new std::shared_ptr<Pool>(std::make_shared<Pool>());
  return *pool;
}

namespace {
thread_local std::shared_ptr<Pool> chosen_pool;
}

std::shared_ptr<Pool> current_pool() { return chosen_pool ? chosen_pool : default_pool(); }
void set_current_pool(std::shared_ptr<Pool> pool) { chosen_pool = std::move(pool); }

}  // namespace mg
