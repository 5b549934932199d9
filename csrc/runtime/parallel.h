// One team of threads for the whole process; parallel.cpp is the only file that names OpenMP.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string>

#include "core/args.h"

namespace mg {

// `call` runs one share of a kernel: args are the kernel's arguments.
struct Work {
  void (*call)(void (*kernel)(), const void* args, const Share& share);
  void (*kernel)();
  const void* args;
  int64_t shares;
  size_t scratch_bytes;
};

// A stretch of work on the team. Constructing it tries to take the team for the calling thread; when another thread has
// it, or the process is a forked child that has not rebuilt it, or one thread is configured, everything runs on the
// calling thread alone, with the same bits. run() returns when every share has finished.
class Job {
 public:
  Job();
  ~Job();
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  void run(const Work& work);

 private:
  void* team_;  // null: serial
};

int num_threads();
// 1..1024; takes effect at the next job; the running team is ended first. Throws Error("ConfigError") outside the range.
void set_num_threads(int threads);
std::string openmp_runtime();  // "libgomp (OpenMP 4.5)" or the like
void stop_team();              // at interpreter exit: joins the workers
struct TeamStats {
  int64_t shared_nodes, stolen_shares, wakes;
};
TeamStats team_stats();

}  // namespace mg
