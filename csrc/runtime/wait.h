// Waiting: a short pause, the clock that bounds it, and sleep on a word until it changes (a futex on Linux).
#pragma once
#include <stdint.h>
#include <atomic>
#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

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

// Only the low half of the word is compared.
#if defined(__linux__)
inline uint32_t* futex_word(std::atomic<uint64_t>& word) {
  static_assert(sizeof(word) == sizeof(uint64_t), "a futex needs the plain word");
  return reinterpret_cast<uint32_t*>(&word) + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 1 : 0);
}
inline void sleep_while(std::atomic<uint64_t>& word, uint64_t value) {
  syscall(SYS_futex, futex_word(word), FUTEX_WAIT_PRIVATE, (uint32_t)value, nullptr, nullptr, 0);
}
inline void wake_sleepers(std::atomic<uint64_t>& word, int count) {
  syscall(SYS_futex, futex_word(word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}
#else
struct Bell {
  std::mutex mutex;
  std::condition_variable rung;
  static Bell& get() {
    static Bell* const bell = new Bell;
    return *bell;
  }
};
inline void sleep_while(std::atomic<uint64_t>& word, uint64_t value) {
  std::unique_lock<std::mutex> lock(Bell::get().mutex);
  if ((uint32_t)word.load() == (uint32_t)value) Bell::get().rung.wait(lock);
}
inline void wake_sleepers(std::atomic<uint64_t>&, int) {
  const std::lock_guard<std::mutex> lock(Bell::get().mutex);
  Bell::get().rung.notify_all();
}
#endif

// "I write A and read B, you write B and read A": one of both must see the other. The rare side (going to sleep) calls
// heavy(), the frequent side (publishing) light(), which costs nothing where the kernel can make all threads pass a
// barrier and is a full fence elsewhere.
class Barriers {
 public:
  void prepare() {
#if defined(__linux__) && defined(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    asymmetric_ = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
#endif
  }
  void light() const {
    if (asymmetric_) std::atomic_signal_fence(std::memory_order_seq_cst);
    else std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  void heavy() const {
#if defined(__linux__) && defined(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    if (asymmetric_) {
      syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
      return;
    }
#endif
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }

 private:
  bool asymmetric_ = false;
};

}  // namespace mg
