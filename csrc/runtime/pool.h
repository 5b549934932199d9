// Cached memory for arrays: 64-byte aligned blocks in size classes, reused instead of returned, because a fresh
// allocation per op costs page faults. Large blocks ask for huge pages (madvise). Thread-safe.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <memory>
#include <vector>

#include "runtime/lifetimes.h"

namespace mg {

struct PoolStats {
  int64_t live_bytes = 0, peak_bytes = 0, cached_bytes = 0, blocks_made = 0, blocks_reused = 0;
};

class Pool {
 public:
  // keep_all: cached blocks are never returned to the system, whatever the limit; a recording's replay writes to them.
  explicit Pool(bool keep_all = false);
  ~Pool();  // frees the cached blocks; every live block must have come back (blocks keep their pool alive)
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // At least `bytes` (0 allowed), 64-byte aligned, contents undefined; throws std::bad_alloc. In builds with
  // MG_GUARD_BYTES the block stands between guard bytes that release() checks (abort with a message when overwritten)
  // and is filled with a signalling pattern.
  void* take(size_t bytes);
  void release(void* p) noexcept;  // any thread
  bool owns(const void* p) const noexcept;  // whether p, a live block of some pool, came from this one
  void trim() noexcept;            // give cached blocks back to the system
  PoolStats stats() const;

  // For a recording: from begin_log() on every block has a number and a lifetime. end_log() returns the lifetimes, and
  // where each block lay.
  void begin_log();
  int64_t log_clock() const;  // takes and releases so far
  std::vector<Lifetime> end_log(std::vector<char*>* payloads = nullptr);
  int64_t logged(const void* p, size_t* offset) const;  // the number of the live block that p points into, or -1
  void free_cached() noexcept;  // also those of a pool that keeps all: nothing may point into them any more

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

bool in_live_block(const void* p);  // of any pool; in builds with MG_GUARD_BYTES only
const std::shared_ptr<Pool>& default_pool();  // never destroyed
// The pool that new arrays of the calling thread come from: the default one, or a recording's private pool.
std::shared_ptr<Pool> current_pool();
void set_current_pool(std::shared_ptr<Pool> pool);  // nullptr: the default again

}  // namespace mg
