#include "runtime/platform.h"

#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#if !defined(_WIN32_WINNT) || _WIN32_WINNT < 0x0602
#undef _WIN32_WINNT
#define _WIN32_WINNT 0x0602  // WaitOnAddress: Windows 8
#endif
#include <malloc.h>
#include <windows.h>
#else
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if !defined(__linux__) && !defined(_WIN32)
#include <condition_variable>
#include <mutex>
#endif

namespace mg {
namespace {

#if !defined(_WIN32)
constexpr size_t kHuge = (size_t)2 << 20;
size_t whole_pages(size_t bytes) {
  const size_t page = 65536;  // a multiple of every page size in use
  return (bytes + page - 1) / page * page;
}
#endif

#if defined(__linux__)
uint32_t* futex_word(std::atomic<uint64_t>& word) {
  static_assert(sizeof(word) == sizeof(uint64_t), "a futex needs the plain word");
  return reinterpret_cast<uint32_t*>(&word) + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 1 : 0);
}
#elif !defined(_WIN32)
// One bell for all words: a rare wait wakes for another's ring, looks and sleeps on.
struct Bell {
  std::mutex mutex;
  std::condition_variable rung;
  static Bell& get() {
    static Bell* const bell = new Bell;
    return *bell;
  }
};
#endif

#if defined(__APPLE__)
// A number of the system's, 0 where it has no such name.
int64_t system_number(const char* name) {
  int64_t wide = 0;
  size_t size = sizeof wide;
  if (sysctlbyname(name, &wide, &size, nullptr, 0) != 0) return 0;
  return size == sizeof(int32_t) ? *reinterpret_cast<int32_t*>(&wide) : wide;
}
#endif

}  // namespace

#if defined(__linux__)
void sleep_while(std::atomic<uint64_t>& word, uint64_t value) {
  syscall(SYS_futex, futex_word(word), FUTEX_WAIT_PRIVATE, (uint32_t)value, nullptr, nullptr, 0);
}
void wake_sleepers(std::atomic<uint64_t>& word, int count) {
  syscall(SYS_futex, futex_word(word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}
#elif defined(_WIN32)
void sleep_while(std::atomic<uint64_t>& word, uint64_t value) {
  uint32_t low = (uint32_t)value;  // Windows is little endian
  WaitOnAddress(&word, &low, sizeof low, INFINITE);
}
void wake_sleepers(std::atomic<uint64_t>& word, int count) {
  if (count == 1) WakeByAddressSingle(&word);
  else WakeByAddressAll(&word);
}
#else
void sleep_while(std::atomic<uint64_t>& word, uint64_t value) {
  std::unique_lock<std::mutex> lock(Bell::get().mutex);
  if ((uint32_t)word.load() == (uint32_t)value) Bell::get().rung.wait(lock);
}
void wake_sleepers(std::atomic<uint64_t>&, int) {
  const std::lock_guard<std::mutex> lock(Bell::get().mutex);
  Bell::get().rung.notify_all();
}
#endif

#if defined(__linux__) && defined(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
bool prepare_barrier_of_all() { return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0; }
void barrier_of_all() { syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0); }
#elif defined(_WIN32)
bool prepare_barrier_of_all() { return true; }
void barrier_of_all() { FlushProcessWriteBuffers(); }
#else
bool prepare_barrier_of_all() { return false; }
void barrier_of_all() { std::atomic_thread_fence(std::memory_order_seq_cst); }
#endif

#if defined(__linux__)
int current_cpu() { return sched_getcpu(); }

std::vector<int> affinity() {
  std::vector<int> cpus;
  // The kernel refuses a mask smaller than its own, so grow until it fits.
  for (int room = 1024; room <= 1 << 18 && cpus.empty(); room *= 4) {
    cpu_set_t* set = CPU_ALLOC((size_t)room);
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE((size_t)room);
    CPU_ZERO_S(bytes, set);
    if (sched_getaffinity(0, bytes, set) == 0)
      for (int cpu = 0; cpu < room; ++cpu)
        if (CPU_ISSET_S((size_t)cpu, bytes, set)) cpus.push_back(cpu);
    CPU_FREE(set);
  }
  return cpus;
}

void run_on(const std::vector<int>& cpus, int except) {
  const int room = cpus.back() + 1;
  cpu_set_t* set = CPU_ALLOC((size_t)room);
  if (!set) return;
  const size_t bytes = CPU_ALLOC_SIZE((size_t)room);
  CPU_ZERO_S(bytes, set);
  for (int cpu : cpus)
    if (cpu != except) CPU_SET_S((size_t)cpu, bytes, set);
  if (CPU_COUNT_S(bytes, set) > 0) sched_setaffinity(0, bytes, set);
  CPU_FREE(set);
}
#elif defined(_WIN32)
// Of one processor group, which is where a process runs unless it asks for more.
int current_cpu() { return (int)GetCurrentProcessorNumber(); }

std::vector<int> affinity() {
  std::vector<int> cpus;
  DWORD_PTR mine = 0, all = 0;
  if (GetProcessAffinityMask(GetCurrentProcess(), &mine, &all))
    for (int cpu = 0; cpu < (int)(8 * sizeof mine); ++cpu)
      if (mine >> cpu & 1) cpus.push_back(cpu);
  return cpus;
}

void run_on(const std::vector<int>& cpus, int except) {
  DWORD_PTR mask = 0;
  for (int cpu : cpus)
    if (cpu != except && cpu < (int)(8 * sizeof mask)) mask |= (DWORD_PTR)1 << cpu;
  if (mask) SetThreadAffinityMask(GetCurrentThread(), mask);
}
#else
int current_cpu() { return -1; }
std::vector<int> affinity() { return {}; }
void run_on(const std::vector<int>&, int) {}
#endif

#if defined(_WIN32)
int cores_of_machine() {
  DWORD bytes = 0;
  GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
  std::vector<char> buffer(bytes);
  auto* const first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data());
  if (bytes == 0 || !GetLogicalProcessorInformationEx(RelationProcessorCore, first, &bytes)) return 0;
  int cores = 0;
  for (DWORD at = 0; at < bytes; ++cores)
    at += reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data() + at)->Size;
  return cores;
}
int64_t memory_of_machine() {
  MEMORYSTATUSEX status = {};
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) ? (int64_t)status.ullTotalPhys : 0;
}
#else
#if defined(__APPLE__)
int cores_of_machine() {
  const int64_t fast = system_number("hw.perflevel0.physicalcpu");
  return (int)(fast > 0 ? fast : system_number("hw.physicalcpu"));
}
#else
int cores_of_machine() { return 0; }
#endif
int64_t memory_of_machine() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? (int64_t)pages * (int64_t)page : 0;
}
#endif

bool allow_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#elif defined(__x86_64__) && defined(_WIN32)
  return true;  // Windows enables the tiles at a thread's first use
#else
  return false;
#endif
}

ArmFeatures arm_features() {
  ArmFeatures found;
#if defined(__aarch64__) && defined(__linux__)
  // Bit numbers of the kernel's ABI; older headers lack the names.
  found.dotprod = (getauxval(AT_HWCAP) >> 20 & 1) != 0;
  found.i8mm = (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
  found.bf16 = (getauxval(AT_HWCAP2) >> 14 & 1) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  found.dotprod = system_number("hw.optional.arm.FEAT_DotProd") != 0;
  found.i8mm = system_number("hw.optional.arm.FEAT_I8MM") != 0;
  found.bf16 = system_number("hw.optional.arm.FEAT_BF16") != 0;
#endif
  return found;
}

void trim_heap() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

#if defined(_WIN32)
void* take_lines(size_t bytes) { return _aligned_malloc(bytes, 64); }
void give_lines(void* p) { _aligned_free(p); }
// Large pages need a privilege that users lack.
void* take_pages(size_t bytes) { return VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE); }
void give_pages(void* p, size_t) { VirtualFree(p, 0, MEM_RELEASE); }
FILE* open_to_read(const char* path) { return fopen(path, "rbN"); }

std::string library_with(const void* function) {
  HMODULE module = nullptr;
  char path[MAX_PATH] = "";
  const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
  if (GetModuleHandleExA(flags, static_cast<const char*>(function), &module)) GetModuleFileNameA(module, path, MAX_PATH);
  return path;
}

void at_fork(void (*)(), void (*)(), void (*)()) {}
struct SignalsBlocked::Mask {};
SignalsBlocked::SignalsBlocked() = default;
SignalsBlocked::~SignalsBlocked() = default;
#else
void* take_lines(size_t bytes) {
  void* p = nullptr;
  return posix_memalign(&p, 64, bytes) == 0 ? p : nullptr;
}
void give_lines(void* p) { free(p); }

void* take_pages(size_t bytes) {
  const size_t length = whole_pages(bytes);
  void* raw = mmap(nullptr, length + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(raw);
  char* const block = begin + (kHuge - reinterpret_cast<uintptr_t>(begin) % kHuge) % kHuge;
  char* const end = begin + length + kHuge;
  if (block > begin) munmap(begin, (size_t)(block - begin));
  if (end > block + length) munmap(block + length, (size_t)(end - block) - length);
#ifdef MADV_HUGEPAGE
  madvise(block, length, MADV_HUGEPAGE);  // advice: refusal changes speed only
#endif
  return block;
}
void give_pages(void* p, size_t bytes) { munmap(p, whole_pages(bytes)); }
FILE* open_to_read(const char* path) { return fopen(path, "re"); }

std::string library_with(const void* function) {
  Dl_info info;
  return dladdr(const_cast<void*>(function), &info) && info.dli_fname ? info.dli_fname : "";
}

void at_fork(void (*before)(), void (*in_parent)(), void (*in_child)()) { pthread_atfork(before, in_parent, in_child); }

struct SignalsBlocked::Mask {
  sigset_t signals;
};
SignalsBlocked::SignalsBlocked() : before_(new Mask) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before_->signals);
}
SignalsBlocked::~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_->signals, nullptr); }
#endif

}  // namespace mg
