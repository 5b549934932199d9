// What this machine can do and how many threads to use. Detection is split into reading (cpuid, XCR0, files) and pure
// functions of what was read, so that tests can feed recorded machines.
#pragma once
#include <stdint.h>
#include <string>
#include <vector>

namespace mg {

// Raw words of cpuid and XCR0; all zero where there is no cpuid.
struct CpuidWords {
  uint32_t leaf1_ecx = 0, leaf7_ebx = 0, leaf7_ecx = 0, leaf7_edx = 0, leaf7_1_eax = 0, leaf7_1_edx = 0;
  uint64_t xcr0 = 0;
  bool amd = false;  // AuthenticAMD or HygonGenuine
};

struct CpuFeatures {
  bool sse42 = false, avx2 = false, fma = false, f16c = false, avx_vnni = false;
  bool avx512 = false;  // F, BW, DQ, VL and the operating system saves the registers
  bool avx512_vnni = false, avx512_bf16 = false, amx_bf16 = false;
  bool pairs_pay = false;  // VDPBF16PS is worth using: on AMD it multiplies twice as much as an fma, on Intel half
  bool far_caches = false;  // L2 is left for something far: x86 but AMD's, whose L3 is near
  bool neon = false, dotprod = false, i8mm = false, bf16 = false;  // AArch64; bf16 has no kernels
};

CpuidWords read_cpuid();
CpuFeatures features_of(const CpuidWords& words);  // pure
const CpuFeatures& cpu_features();                 // of this machine, read once
std::string cpu_model();                           // "AMD EPYC ..." or "unknown"
std::string features_text(const CpuFeatures& features);  // "sse4.2 avx2 fma ..."

// Where a thread count came from, for `microgpt doctor`.
struct ThreadChoice {
  int threads = 1;
  std::string why;     // one line: "2 allowed CPUs", "cgroup quota 1.5 CPUs rounded down", "MICROGPT_NUM_THREADS=3"
  bool quota = false;  // a cgroup quota binds: waiting threads must not spin
};

// CPUs granted by cgroup v2 (cpu.max along the path in /proc/self/cgroup) or v1 (cpu.cfs_quota_us / cpu.cfs_period_us),
// the tightest on the way up to the root; 0 means no limit. `root` is prefixed to every path, for tests.
double cgroup_cpus(const std::string& root);
int64_t cgroup_memory(const std::string& root);  // the tightest memory limit in bytes, found the same way; 0 means none
std::vector<int> allowed_cpus();                 // of the calling thread, at least one
int physical_cores(const std::string& root, const std::vector<int>& cpus);  // different cores among `cpus`
// min(affinity, physical cores among them, floor(quota), at least 1) unless `requested` > 0. Pure.
ThreadChoice choose_threads(int affinity, int physical_cores, double quota, int requested);
// Reads the environment (MICROGPT_NUM_THREADS, else OMP_NUM_THREADS), affinity and cgroups. Throws Error("ConfigError")
// when the variable is not a whole number in 1..1024.
ThreadChoice detect_threads();

}  // namespace mg
