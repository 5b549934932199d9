// All that differs between operating systems; no other file names one. What a system lacks is answered with "unknown" or
// does nothing, so callers have one path.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace mg {

// Sleeps while the low half of the word equals that of `value`; may return early. wake_sleepers() wakes at least `count`.
void sleep_while(std::atomic<uint64_t>& word, uint64_t value);
void wake_sleepers(std::atomic<uint64_t>& word, int count);

bool prepare_barrier_of_all();  // whether barrier_of_all() exists here
void barrier_of_all();          // every running thread of the process passes a full barrier

int current_cpu();               // -1: unknown
std::vector<int> affinity();     // CPUs that the calling thread may use, empty: unknown
void run_on(const std::vector<int>& cpus, int except);  // restricts the calling thread, if that leaves it a CPU
int cores_of_machine();          // physical (on hybrid machines the fast ones), 0: unknown or found in /sys
int64_t memory_of_machine();     // bytes, 0: unknown

struct ArmFeatures {
  bool dotprod = false, i8mm = false, bf16 = false;
};
ArmFeatures arm_features();

bool allow_tiles();  // whether this process may use AMX's tiles; asks the system for them

// Aligned to a cache line; nullptr when there is no memory.
void* take_lines(size_t bytes);
void give_lines(void* p);
// Whole pages, on huge pages where the system grants them; nullptr when there is no memory.
void* take_pages(size_t bytes);
void give_pages(void* p, size_t bytes);
void trim_heap();  // gives back what the C library holds and nobody uses, where it can

FILE* open_to_read(const char* path);  // a child process does not inherit it
std::string library_with(const void* function);  // the file that it was loaded from, "" unknown

// For fork; does nothing where there is none.
void at_fork(void (*before)(), void (*in_parent)(), void (*in_child)());

// While it lives, threads that the caller starts take no signals: these belong to the application's threads.
class SignalsBlocked {
 public:
  SignalsBlocked();
  ~SignalsBlocked();
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  struct Mask;
  std::unique_ptr<Mask> before_;
};

}  // namespace mg
