// One team of threads for the whole process; parallel.cpp is the only file that names OpenMP.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string>

#include "core/args.h"
#include "runtime/float_state.h"

namespace mg {

// Where share `share` of `shares` of a kernel begins to read weights; null: it reads none.
struct Weights {
  const char* (*begin)(const void* args, int64_t share, int64_t shares) = nullptr;
  const void* args = nullptr;
  int64_t shares = 0;
};

// `call` runs one share of a kernel: args are the kernel's arguments.
struct Work {
  void (*call)(void (*kernel)(), const void* args, const Share& share);
  void (*kernel)();
  const void* args;
  int64_t shares;
  size_t scratch_bytes;
  const Weights* ahead = nullptr;  // what is read next, which is fetched by whoever has finished
};

// A stretch of work on the team. The first run() with several shares tries to take the team for the calling thread, until
// the Job ends; while another thread has it, or one thread is configured, everything runs on the calling thread alone,
// with the same bits. run() returns when every share has finished; throws std::bad_alloc before any has started. A
// forked child builds a team of its own when it needs one. A share must not throw or fork; a run() inside it is serial.
class Job {
 public:
  Job() = default;
  ~Job() {
    if (team_) release();
  }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  void run(const Work& work) {
    if (work.shares == 1 && work.scratch_bytes == 0) work.call(work.kernel, work.args, Share{0, 1, nullptr});
    else run_shares(work);
  }

 private:
  void run_shares(const Work& work);
  void release();

  DefaultFloats floats_;
  class Team* team_ = nullptr;  // null: not taken
};

int num_threads();
// 1..1024; takes effect at the next job; the running team is ended first. Throws Error("ConfigError") outside the range.
void set_num_threads(int threads);
std::string openmp_runtime();  // "libgomp (OpenMP 4.5)" or the like
// At interpreter exit: joins the workers; everything is serial until set_num_threads(). Gives up waiting after two
// seconds if another thread is still inside a Job, whose end then stops the team.
void stop_team();
struct TeamStats {
  int64_t shared_nodes, stolen_shares, wakes;
};
TeamStats team_stats();

}  // namespace mg
