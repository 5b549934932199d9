#include "runtime/parallel.h"

#include <stdio.h>
#include <system_error>

#include "core/error.h"
#include "runtime/cpu.h"
#include "runtime/platform.h"
#include "runtime/team.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace mg {
namespace {

std::atomic<int> wanted_threads{0};  // 0: not detected yet
std::atomic<bool> stopped{false};    // by stop_team()
// Held by the Job that has the team, and by whoever starts or ends it. Guards `failed_for`.
std::atomic<bool> team_taken{false};
std::atomic<Team*> the_team{nullptr};
int failed_for = 0;  // the thread count for which threads could not be had; not tried again
TeamCounters counters;

bool try_take() {
  return !team_taken.load(std::memory_order_relaxed) && !team_taken.exchange(true, std::memory_order_acquire);
}
void give_back() { team_taken.store(false, std::memory_order_release); }

// Workers get the team through a global, so that no data passes through the OpenMP runtime, which race detectors
// cannot see into.
std::atomic<Team*> starting{nullptr};
std::atomic<int> serving{0}, expected{0};

void serve_starting_team(int worker) {
  Team* const team = starting.load(std::memory_order_acquire);
  serving.fetch_add(1, std::memory_order_acq_rel);
  team->serve(worker + 1);
  serving.fetch_sub(1, std::memory_order_acq_rel);
}

// The region that all workers live in; returns when the team is stopped.
void host_workers(int workers) {
#if defined(_OPENMP)
  omp_set_dynamic(0);
#pragma omp parallel num_threads(workers)
  {
    if (omp_get_thread_num() == 0) expected.store(omp_get_num_threads(), std::memory_order_release);
    serve_starting_team(omp_get_thread_num());
  }
#else
  std::vector<std::thread> others;
  int came = 1;
  try {
    for (; came < workers; ++came) others.emplace_back(serve_starting_team, came);
  } catch (const std::system_error&) {
  }
  expected.store(came, std::memory_order_release);
  serve_starting_team(0);
  for (std::thread& other : others) other.join();
#endif
}

// The child has none of the workers, and nobody to open a lock that another thread held. The old team is leaked.
void forget_team_in_child() {
  if (Team* team = the_team.load(std::memory_order_relaxed)) team->abandon();
  the_team.store(nullptr, std::memory_order_relaxed);
  give_back();
}

Team* start_team(int threads) {
  static const bool registered = (at_fork(nullptr, nullptr, forget_team_in_child), true);
  (void)registered;
  std::vector<int> cpus = allowed_cpus();
  const int available = (int)cpus.size();
  // Spinning takes time from others where there are more threads than processors, or where time itself is rationed.
  const bool spin = threads <= available && !choose_threads(available, available, cgroup_cpus(""), threads).quota;
  std::unique_ptr<Team> team(new Team(threads, spin, std::move(cpus), counters));
  serving.store(0, std::memory_order_relaxed);
  expected.store(0, std::memory_order_relaxed);
  starting.store(team.get(), std::memory_order_release);
  try {
    const SignalsBlocked blocked;
    team->runner = std::thread(host_workers, threads - 1);
  } catch (const std::system_error&) {
    return nullptr;
  }
  for (int workers; (workers = expected.load(std::memory_order_acquire)) == 0 ||
                    serving.load(std::memory_order_acquire) < workers;)
    std::this_thread::yield();
  team->set_size(expected.load(std::memory_order_relaxed) + 1);
  return team.release();
}

// The calling thread has taken the team.
void end_team() {
  Team* const team = the_team.load(std::memory_order_relaxed);
  if (!team) return;
  the_team.store(nullptr, std::memory_order_relaxed);
  team->stop();
  // Already zero, the runner is joined; but a race detector sees only this, not OpenMP's join.
  while (serving.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  delete team;
}

bool outdated(const Team* team) {
  return stopped.load(std::memory_order_relaxed) || team->wanted() != wanted_threads.load(std::memory_order_relaxed);
}

Team* take_team() {
  const int threads = num_threads();
  if (threads == 1 || stopped.load(std::memory_order_relaxed) || !try_take()) return nullptr;
  Team* team = the_team.load(std::memory_order_relaxed);
  if (team && !outdated(team)) return team;
  try {
    end_team();
    if (failed_for != threads) {
      team = start_team(threads);
      the_team.store(team, std::memory_order_relaxed);
      failed_for = team ? 0 : threads;
      if (team) return team;
    }
  } catch (...) {
    give_back();
    throw;
  }
  give_back();
  return nullptr;
}

thread_local Scratch serial_scratch;

void run_serial(const Work& work) {
  if (work.scratch_bytes == 0) {
    for (int64_t i = 0; i < work.shares; ++i) work.call(work.kernel, work.args, Share{i, work.shares, nullptr});
    return;
  }
  // Taken out while in use, so that a run inside a share gets its own.
  Scratch scratch(std::move(serial_scratch));
  void* const memory = scratch.grow(work.scratch_bytes);
  for (int64_t i = 0; i < work.shares; ++i) work.call(work.kernel, work.args, Share{i, work.shares, memory});
  serial_scratch = std::move(scratch);
}

}  // namespace

void Job::run_shares(const Work& work) {
  if (work.shares > 1 && work.shares <= Team::kMaxShares) {
    if (!team_) team_ = take_team();
    if (team_ && team_->usable()) {
      team_->run(work);
      return;
    }
  }
  run_serial(work);
}

void Job::release() {
  if (team_->lost()) return;  // forked since: the lock is no longer ours
  if (outdated(team_)) end_team();
  give_back();
}

int num_threads() {
  int threads = wanted_threads.load(std::memory_order_relaxed);
  if (threads == 0) {
    const int detected = detect_threads().threads;
    threads = wanted_threads.compare_exchange_strong(threads, detected) ? detected : threads;
  }
  return threads;
}

void set_num_threads(int threads) {
  if (threads < 1 || threads > 1024)
    throw Error("ConfigError", "the number of threads must be from 1 to 1024, not " + std::to_string(threads));
  wanted_threads.store(threads);
  stopped.store(false);
  if (!try_take()) return;  // the Job that has the team ends it
  failed_for = 0;
  if (const Team* team = the_team.load(std::memory_order_relaxed))
    if (outdated(team)) end_team();
  give_back();
}

void stop_team() {
  stopped.store(true);
  for (int64_t deadline = now_ns() + 2000000000; !try_take();) {
    if (now_ns() > deadline) return;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  end_team();
  give_back();
}

std::string openmp_runtime() {
#if defined(_OPENMP)
  std::string name = "OpenMP runtime";
  const std::string file = library_with(reinterpret_cast<const void*>(&omp_get_max_threads));
  for (const char* known : {"libgomp", "libiomp", "libomp"})
    if (file.find(known) != std::string::npos) name = known;
  const struct {
    int date;
    const char* version;
  } versions[] = {{202111, "5.2"}, {202011, "5.1"}, {201811, "5.0"}, {201511, "4.5"}, {201307, "4.0"}};
  for (const auto& version : versions)
    if (_OPENMP >= version.date) return name + " (OpenMP " + version.version + ")";
  return name + " (OpenMP " + std::to_string(_OPENMP) + ")";
#else
  return "std::thread (built without OpenMP)";
#endif
}

TeamStats team_stats() {
  return {counters.shared_nodes.load(), counters.stolen_shares.load(), counters.wakes.load()};
}

}  // namespace mg
