// Waiting: a short pause, the clock that bounds it, and a barrier that costs its frequent side nothing. Sleeping on a word
// until it changes is in platform.h.
#pragma once
#include <stdint.h>
#include <atomic>
#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "runtime/platform.h"

namespace mg {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#endif
}

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// "I write A and read B, you write B and read A": one of both must see the other. The rare side (going to sleep) calls
// heavy(), the frequent side (publishing) light(), which costs nothing where the kernel can make all threads pass a
// barrier and is a full fence elsewhere.
class Barriers {
 public:
  void prepare() { asymmetric_ = prepare_barrier_of_all(); }
  void light() const {
    if (asymmetric_) std::atomic_signal_fence(std::memory_order_seq_cst);
    else std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  void heavy() const {
    if (asymmetric_) barrier_of_all();
    else std::atomic_thread_fence(std::memory_order_seq_cst);
  }

 private:
  bool asymmetric_ = false;
};

}  // namespace mg
