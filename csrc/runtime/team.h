// The claim-and-steal protocol between a caller (member 0) and its workers. Knows nothing of how threads are made.
//
// A node's shares are divided into one contiguous range per member. A range is handed out through the member's claim
// word, (node number, shares left), so that a claim can only succeed for the node it was meant for and only while a
// share of that node is unfinished. The caller returns when all shares are finished, and only then touches the board
// again: what a worker read before a successful claim was therefore read from the right node.
#pragma once
#include <stdint.h>
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "runtime/parallel.h"
#include "runtime/platform.h"
#include "runtime/wait.h"

namespace mg {

// Long enough to bridge the gap between two nodes of a step, short against a time slice.
constexpr int64_t kIdleSpinNs = 50000;
// An awake owner starts on its range within a tenth of this.
constexpr int64_t kStealAfterNs = 3000;
// Of the weights that come next, what a member fetches at most while it waits. A few lines at a time: a fetch is dropped where
// too many are under way.
constexpr int64_t kAheadBytes = 128 << 10, kAheadLines = 8;
// A claimed share that takes longer is either large or its thread has lost the processor.
constexpr int64_t kWaitSpinNs = 50000, kWaitYieldNs = 200000;

// Memory for one share at a time, grown and kept.
class Scratch {
 public:
  Scratch() = default;
  Scratch(Scratch&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Scratch() { give_lines(data_); }
  void* grow(size_t bytes) {
    if (bytes > bytes_) {
      if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
      give_lines(data_);
      bytes_ = 0;
      const size_t rounded = (bytes + 63) / 64 * 64;
      data_ = take_lines(rounded);
      if (!data_) throw std::bad_alloc();
      bytes_ = rounded;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

struct TeamCounters {
  std::atomic<int64_t> shared_nodes{0}, stolen_shares{0}, wakes{0};
};

// What a member reads next, fetched while it waits.
class Ahead {
 public:
  void look(const char* next) {
    if (next == from_) return;  // some of it is there
    from_ = at_ = next;
  }
  void some() {
    if (!from_ || at_ - from_ >= kAheadBytes) return;
    for (int64_t line = 0; line < kAheadLines; ++line, at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char *from_ = nullptr, *at_ = nullptr;
};

class Team {
 public:
  static constexpr int64_t kMaxShares = ((int64_t)1 << 24) - 1;

  Team(int wanted, bool spin, std::vector<int> cpus, TeamCounters& counters)
      : wanted_(wanted), size_(wanted), spin_(spin), cpus_(std::move(cpus)), counters_(counters),
        members_(new Member[(size_t)wanted]) {
    caller_.scratch.resize((size_t)wanted);
    if (spin) barriers_.prepare();  // its interrupts cost more than fences where workers sleep after every node
  }

  int wanted() const { return wanted_; }
  void set_size(int size) { size_ = size; }  // before the first run(): how many members really came
  void publish_cpu() {
    const int cpu = current_cpu();
    if (cpu != board_.caller_cpu.load(std::memory_order_relaxed)) board_.caller_cpu.store(cpu, std::memory_order_relaxed);
  }

  // Set in a forked child, where the workers do not exist.
  void abandon() { lost_.store(true, std::memory_order_relaxed); }
  bool lost() const { return lost_.load(std::memory_order_relaxed); }
  bool usable() const { return !lost() && !caller_.running.load(std::memory_order_relaxed); }

  void run(const Work& work);  // by the caller
  void serve(int member);      // by a worker, until stop()
  void stop();

  std::thread runner;  // the thread that opened the workers' region

 private:
  struct alignas(128) Member {  // 128: the neighbouring line is prefetched with this one
    std::atomic<uint64_t> claim{0};     // node number << 24 | shares left
    std::atomic<uint64_t> finished{0};  // shares ever finished; written by the member alone
    std::atomic<void*> scratch{nullptr};
    std::atomic<const char*> ahead{nullptr};  // weights that it will read next
  };
  // One line, so that a spinning worker gets a whole node with one transfer.
  struct alignas(64) Board {
    std::atomic<uint64_t> sequence{0};
    std::atomic<void (*)(void (*)(), const void*, const Share&)> call{nullptr};
    std::atomic<void (*)()> kernel{nullptr};
    std::atomic<const void*> args{nullptr};
    std::atomic<uint32_t> shares{0};
    std::atomic<int32_t> caller_cpu{-1};
    std::atomic<uint64_t> caller_sleeps{0};
    std::atomic<int32_t> sleepers{0};  // at least the number of workers asleep
    std::atomic<bool> stop{false};
  };
  static_assert(sizeof(Board) == 64, "the board is one cache line");

  struct alignas(128) Callers {
    std::vector<Scratch> scratch;
    size_t scratch_bytes = 0;
    uint64_t finished_before = 0;  // by workers, up to the previous node
    Ahead ahead;
    std::atomic<bool> running{false};
    bool wake_pending = false;
    int64_t asleep_since = 0, asleep_work = 0, last_end = 0;  // see consider_waking()
    int64_t wake_cost = 5000;
    struct Guess {
      void (*kernel)() = nullptr;
      int64_t shares = 0, ns = 0;
    } guesses[64];
  };

  // What a member runs, as read from the board.
  struct View {
    uint64_t sequence;
    void (*call)(void (*)(), const void*, const Share&);
    void (*kernel)();
    const void* args;
    uint32_t shares;
  };
  View view(uint64_t sequence) const {
    const auto relaxed = std::memory_order_relaxed;
    return {sequence, board_.call.load(relaxed), board_.kernel.load(relaxed), board_.args.load(relaxed),
            board_.shares.load(relaxed)};
  }

  static uint64_t claim_word(uint64_t sequence, uint32_t left) { return sequence << 24 | left; }
  uint32_t range_size(uint32_t shares, int member) const {
    const uint32_t size = (uint32_t)size_;
    return shares / size + ((uint32_t)member < shares % size ? 1 : 0);
  }
  uint32_t range_end(uint32_t shares, int member) const {
    const uint32_t size = (uint32_t)size_, next = (uint32_t)member + 1;
    return shares / size * next + std::min(next, shares % size);
  }
  bool claim(uint64_t sequence, int member, uint32_t* left);
  bool anything_left(uint64_t sequence) const;
  int64_t run_range(const View& view, int owner, int runner);
  Callers::Guess& guess_for(const View& view);
  void begin_asleep(const View& view);
  void consider_waking(const View& view);
  void end_asleep(const View& view);
  void wake(uint32_t shares);
  void finish(const View& view, int64_t own);
  bool all_finished(uint64_t target) const;
  uint64_t await(uint64_t seen, Ahead& ahead);
  bool await_steal(uint64_t sequence, Ahead& ahead) const;

  void keep_off_caller() const;

  // Three kinds of data on lines of their own: read by all and never written while serving; the caller's; the board.
  const int wanted_;
  int size_;
  const bool spin_;
  const std::vector<int> cpus_;
  TeamCounters& counters_;
  std::unique_ptr<Member[]> members_;
  Barriers barriers_;
  std::atomic<bool> lost_{false};
  Callers caller_;
  alignas(128) Board board_;
};

}  // namespace mg
