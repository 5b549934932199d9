#include "runtime/team.h"

#include <limits.h>

namespace mg {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;

// Nanoseconds waited, asking the clock rarely: most waits end within a few rounds.
class Patience {
 public:
  int64_t pause() {
    pause_briefly();
    if (++rounds_ % 16 == 0) {
      const int64_t now = now_ns();
      if (!start_) start_ = now;
      waited_ = now - start_;
    }
    return waited_;
  }

 private:
  unsigned rounds_ = 0;
  int64_t start_ = 0, waited_ = 0;
};

}  // namespace

bool Team::claim(uint64_t sequence, int member, uint32_t* left) {
  std::atomic<uint64_t>& word = members_[(size_t)member].claim;
  uint64_t seen = word.load(kRelaxed);
  for (;;) {
    *left = (uint32_t)(seen & (uint64_t)kMaxShares);
    if (seen >> 24 != sequence << 24 >> 24 || *left == 0) return false;
    if (word.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, kRelaxed)) return true;
  }
}

bool Team::anything_left(uint64_t sequence) const {
  for (int member = 0; member < size_; ++member) {
    const uint64_t word = members_[(size_t)member].claim.load(kRelaxed);
    if (word >> 24 == sequence << 24 >> 24 && (word & (uint64_t)kMaxShares)) return true;
  }
  return false;
}

// Runs what is left of the owner's range; the number of shares run. The view is trusted only after a claim.
int64_t Team::run_range(const View& view, int owner, int runner) {
  Member& me = members_[(size_t)runner];
  int64_t ran = 0;
  uint32_t left;
  while (claim(view.sequence, owner, &left)) {
    const int64_t index = (int64_t)range_end(view.shares, owner) - left;
    view.call(view.kernel, view.args, Share{index, view.shares, me.scratch.load(kRelaxed)});
    ++ran;
    if (runner == 0) {
      if (caller_.wake_pending) consider_waking(view);
      continue;
    }
    me.finished.store(me.finished.load(kRelaxed) + 1, kRelease);
    barriers_.light();
    if (board_.caller_sleeps.load(kRelaxed) && board_.caller_sleeps.exchange(0)) wake_sleepers(board_.caller_sleeps, 1);
  }
  if (owner != runner && ran) counters_.stolen_shares.fetch_add(ran, kRelaxed);
  return ran;
}

bool Team::all_finished(uint64_t target) const {
  uint64_t finished = 0;
  for (int member = 1; member < size_; ++member) finished += members_[(size_t)member].finished.load(kAcquire);
  return finished == target;
}

void Team::run(const Work& work) {
  if (work.scratch_bytes > caller_.scratch_bytes) {
    for (int member = 0; member < size_; ++member)
      members_[(size_t)member].scratch.store(caller_.scratch[(size_t)member].grow(work.scratch_bytes), kRelaxed);
    caller_.scratch_bytes = work.scratch_bytes;
  }
  caller_.running.store(true, kRelaxed);
  publish_cpu();
  const View view{board_.sequence.load(kRelaxed) + 1, work.call, work.kernel, work.args, (uint32_t)work.shares};
  board_.call.store(view.call, kRelaxed);
  board_.kernel.store(view.kernel, kRelaxed);
  board_.args.store(view.args, kRelaxed);
  board_.shares.store(view.shares, kRelaxed);
  for (int member = 0; member < size_; ++member) {
    members_[(size_t)member].claim.store(claim_word(view.sequence, range_size(view.shares, member)), kRelaxed);
    if (const Weights* next = work.ahead) {
      const uint32_t shares = (uint32_t)next->shares, first = range_end(shares, member) - range_size(shares, member);
      members_[(size_t)member].ahead.store(first < shares ? next->begin(next->args, first, shares) : nullptr, kRelaxed);
    } else {
      members_[(size_t)member].ahead.store(nullptr, kRelaxed);
    }
  }
  board_.sequence.store(view.sequence, kRelease);
  barriers_.light();
  const bool asleep = board_.sleepers.load(kRelaxed) > 0;
  if (asleep) begin_asleep(view);
  const int64_t own = run_range(view, 0, 0);
  finish(view, own);
  if (asleep) end_asleep(view);
  counters_.shared_nodes.store(counters_.shared_nodes.load(kRelaxed) + 1, kRelaxed);
  caller_.running.store(false, kRelaxed);
}

// Waking a thread costs the caller up to 20 microseconds (a virtual processor that was halted). So while workers sleep
// the caller works alone until that much work has gone by, unless the same kernel is known to be worth it at once.
Team::Callers::Guess& Team::guess_for(const View& view) {
  const uintptr_t hash = (reinterpret_cast<uintptr_t>(view.kernel) >> 4) * 31 + view.shares;
  Callers::Guess& guess = caller_.guesses[hash % 64];
  if (guess.kernel != view.kernel || guess.shares != view.shares) guess = {view.kernel, view.shares, 0};
  return guess;
}

void Team::begin_asleep(const View& view) {
  caller_.asleep_since = now_ns();
  // After so long a gap the workers would be asleep again anyway: earlier work says nothing about what comes.
  if (caller_.asleep_since - caller_.last_end > kIdleSpinNs) caller_.asleep_work = 0;
  caller_.wake_pending = true;
  Callers::Guess& guess = guess_for(view);
  if (guess.ns <= 2 * caller_.wake_cost) return;
  guess.ns -= guess.ns / 16;  // measured anew now and then
  wake(view.shares);
}

void Team::consider_waking(const View& view) {
  const int64_t worked = now_ns() - caller_.asleep_since;
  if (caller_.asleep_work + worked < caller_.wake_cost) return;
  guess_for(view).ns = worked;
  wake(view.shares);
}

void Team::wake(uint32_t shares) {
  caller_.wake_pending = false;
  caller_.asleep_work = 0;
  const int asleep = std::min(board_.sleepers.load(kRelaxed), (int32_t)shares - 1);
  if (asleep <= 0) return;
  const int64_t before = now_ns();
  board_.sleepers.fetch_sub(asleep, kRelaxed);
  wake_sleepers(board_.sequence, asleep);
  counters_.wakes.fetch_add(asleep, kRelaxed);
  caller_.wake_cost = (3 * caller_.wake_cost + std::min<int64_t>(now_ns() - before, 50000)) / 4;
}

void Team::end_asleep(const View& view) {
  caller_.last_end = now_ns();
  if (!caller_.wake_pending) return;
  caller_.wake_pending = false;
  const int64_t worked = caller_.last_end - caller_.asleep_since;
  caller_.asleep_work += worked;
  guess_for(view).ns = worked;
}

// Steals what nobody starts and waits for what somebody has started: for finished shares, never for a thread.
void Team::finish(const View& view, int64_t own) {
  const int64_t spin_until = spin_ ? kWaitSpinNs : 0, yield_until = spin_ ? kWaitYieldNs : kWaitYieldNs / 10;
  Patience patience;
  int64_t waited = 0;
  bool steals = true;
  caller_.ahead.look(members_[0].ahead.load(kRelaxed));
  for (;;) {
    const uint64_t target = caller_.finished_before + view.shares - (uint64_t)own;
    if (all_finished(target)) {
      caller_.finished_before = target;
      return;
    }
    const bool alone = caller_.wake_pending && board_.sleepers.load(kRelaxed) >= size_ - 1;
    if (steals && (!spin_ || alone || waited >= kStealAfterNs)) {
      for (int owner = 1; owner < size_; ++owner) own += run_range(view, owner, 0);
      steals = false;  // ranges never grow
      continue;
    }
    caller_.ahead.some();
    waited = patience.pause();
    if (waited < spin_until) continue;
    if (waited < yield_until) {
      std::this_thread::yield();
      continue;
    }
    board_.caller_sleeps.store(1, kRelaxed);
    barriers_.heavy();
    if (!all_finished(target)) sleep_while(board_.caller_sleeps, 1);
    board_.caller_sleeps.store(0, kRelaxed);
  }
}

// On the caller's processor a worker would only trade time slices with it.
void Team::keep_off_caller() const {
  const int caller = board_.caller_cpu.load(kRelaxed);
  if (caller >= 0 && caller == current_cpu()) run_on(cpus_, caller);
}

uint64_t Team::await(uint64_t seen, Ahead& ahead) {
  uint64_t now;
  if (spin_) {
    Patience patience;
    do {
      now = board_.sequence.load(kAcquire);
      if (now != seen) return now;
      ahead.some();
    } while (patience.pause() < kIdleSpinNs);
  }
  while ((now = board_.sequence.load(kAcquire)) == seen) {
    // Counted anew before every sleep, because a wake-up takes the count back whomever it reaches.
    board_.sleepers.fetch_add(1, kRelaxed);
    barriers_.heavy();
    if (board_.sequence.load(kRelaxed) == seen) sleep_while(board_.sequence, seen);
    keep_off_caller();
  }
  return now;
}

// Leaves the owners a moment to start; false when the node is over.
bool Team::await_steal(uint64_t sequence, Ahead& ahead) const {
  if (!spin_) return true;
  Patience patience;
  do {
    if (board_.sequence.load(kRelaxed) != sequence) return false;
    ahead.some();
  } while (patience.pause() < kStealAfterNs);
  return anything_left(sequence);
}

void Team::serve(int member) {
  const DefaultFloats floats;
  run_on(cpus_, -1);  // an OpenMP runtime may have bound this thread to one processor
  uint64_t sequence = 0;
  Ahead ahead;
  for (;;) {
    sequence = await(sequence, ahead);
    if (board_.stop.load(kRelaxed)) return;
    const View node = view(sequence);
    run_range(node, member, member);
    ahead.look(members_[(size_t)member].ahead.load(kRelaxed));
    keep_off_caller();
    if (!await_steal(sequence, ahead)) continue;
    for (int step = 1; step < size_; ++step) run_range(node, (member + step) % size_, member);
  }
}

void Team::stop() {
  board_.stop.store(true, kRelaxed);
  board_.sequence.store(board_.sequence.load(kRelaxed) + 1, kRelease);
  barriers_.heavy();
  wake_sleepers(board_.sequence, INT_MAX);
  runner.join();
}

}  // namespace mg
