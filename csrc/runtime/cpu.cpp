#include "runtime/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <cmath>
#include <set>
#include <thread>

#include "core/error.h"
#include "runtime/platform.h"

#if defined(__x86_64__) || defined(__i386__)
#define MG_X86 1
#include <cpuid.h>
#endif

namespace mg {
namespace {

bool bit(uint32_t word, int index) { return (word >> index & 1u) != 0; }

#if MG_X86
// _xgetbv needs -mxsave on the whole file; the instruction itself does not.
uint64_t read_xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}
#endif

// The whole of a small file, "" when it cannot be read. 1 MiB is far above any file of /proc or /sys read here.
std::string read_text(const std::string& path) {
  std::string text;
  FILE* file = open_to_read(path.c_str());
  if (!file) return text;
  char buffer[4096];
  size_t got;
  while (text.size() < (1u << 20) && (got = fread(buffer, 1, sizeof buffer, file)) > 0) text.append(buffer, got);
  fclose(file);
  return text;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + 1)
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

// The number at *at, advanced past it; -1 where there is none ("max", "-1", "").
int64_t take_number(const char** at) {
  char* end;
  const long long value = strtoll(*at, &end, 10);
  if (end == *at || value < 0) return -1;
  *at = end;
  return value;
}

// Where this process stands in one cgroup tree: its path and the places the tree may be mounted.
struct CgroupPlace {
  bool unified;
  std::string path;
  std::vector<std::string> mounts;
};

std::vector<CgroupPlace> cgroup_places(const std::string& root, const std::string& controller) {
  const std::string base = root + "/sys/fs/cgroup";
  // A container often cannot see its own path, only its cgroup as the root of the mount: look there in any case.
  CgroupPlace v2{true, "/", {base, base + "/unified"}};
  CgroupPlace v1{false, "/", {base + "/" + controller, base + "/cpu,cpuacct", base + "/cpuacct,cpu"}};
  for (const std::string& line : split(read_text(root + "/proc/self/cgroup"), '\n')) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string path = line.substr(second + 1);
    // A path that climbs out of the cgroup namespace names nothing that is mounted here.
    if (path.empty() || path[0] != '/' || path.find("/..") != std::string::npos) continue;
    const std::vector<std::string> names = split(line.substr(first + 1, second - first - 1), ',');
    if (names.size() == 1 && names[0].empty()) v2.path = path;
    if (std::find(names.begin(), names.end(), controller) != names.end()) v1.path = path;
  }
  return {v2, v1};
}

// The tightest limit from the process's own cgroup up to the root of each mount; `limit_in` gives 0 for none.
template <class LimitIn>
double tightest(const std::string& root, const char* controller, const LimitIn& limit_in) {
  double best = 0;
  for (const CgroupPlace& place : cgroup_places(root, controller)) {
    for (const std::string& mount : place.mounts) {
      std::string path = place.path;
      for (;;) {
        while (!path.empty() && path.back() == '/') path.pop_back();
        const double limit = limit_in(mount + path, place.unified);
        if (limit > 0 && (best == 0 || limit < best)) best = limit;
        if (path.empty()) break;
        path.resize(path.rfind('/'));
      }
    }
  }
  return best;
}

int requested_by(const char* variable) {
  const char* text = getenv(variable);
  if (!text || !*text) return 0;
  char* end;
  const long value = strtol(text, &end, 10);
  // OMP_NUM_THREADS may list one number per nesting level; the outermost is meant.
  const bool list = *end == ',' && strcmp(variable, "OMP_NUM_THREADS") == 0;
  if (end == text || (*end && !list) || value < 1 || value > 1024)
    throw Error("ConfigError", std::string(variable) + " must be a whole number from 1 to 1024, not \"" + text + "\"");
  return (int)value;
}

std::string short_number(double value) {
  char text[32];
  snprintf(text, sizeof text, "%.4g", value);
  return text;
}

}  // namespace

CpuidWords read_cpuid() {
  CpuidWords words;
#if MG_X86
  unsigned a, b, c, d;
  if (__get_cpuid_count(1, 0, &a, &b, &c, &d)) words.leaf1_ecx = c;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    words.leaf7_ebx = b;
    words.leaf7_ecx = c;
    words.leaf7_edx = d;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
      words.leaf7_1_eax = a;
      words.leaf7_1_edx = d;
    }
  }
  if (__get_cpuid(0, &a, &b, &c, &d)) words.amd = b == 0x68747541 || b == 0x6f677948;  // "Auth", "Hygo"
  const int osxsave = 27;
  if (bit(words.leaf1_ecx, osxsave)) words.xcr0 = read_xcr0();
#endif
  return words;
}

CpuFeatures features_of(const CpuidWords& words) {
  CpuFeatures features;
  // XCR0 counts only if the operating system has switched XSAVE on.
  const uint64_t saved = bit(words.leaf1_ecx, 27) ? words.xcr0 : 0;
  const bool saves_ymm = (saved & 0x6) == 0x6, saves_zmm = (saved & 0xe6) == 0xe6;
  const bool avx = saves_ymm && bit(words.leaf1_ecx, 28);
  features.sse42 = bit(words.leaf1_ecx, 20);
  features.avx2 = avx && bit(words.leaf7_ebx, 5);
  features.fma = avx && bit(words.leaf1_ecx, 12);
  features.f16c = avx && bit(words.leaf1_ecx, 29);
  features.avx_vnni = features.avx2 && bit(words.leaf7_1_eax, 4);
  features.avx512 = features.avx2 && saves_zmm && bit(words.leaf7_ebx, 16) && bit(words.leaf7_ebx, 17) &&
                    bit(words.leaf7_ebx, 30) && bit(words.leaf7_ebx, 31);
  features.avx512_vnni = features.avx512 && bit(words.leaf7_ecx, 11);
  features.avx512_bf16 = features.avx512 && bit(words.leaf7_1_eax, 5);
  const bool saves_tiles = (saved & 0x60000) == 0x60000;
  features.amx_bf16 = features.avx512 && saves_tiles && bit(words.leaf7_edx, 22) && bit(words.leaf7_edx, 24);
  features.pairs_pay = features.avx512_bf16 && words.amd;
  features.far_caches = features.avx2 && !words.amd;
  return features;
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = [] {
    CpuFeatures found = features_of(read_cpuid());
#if defined(__aarch64__)
    found.neon = true;  // part of the base architecture
    const ArmFeatures arm = arm_features();
    found.dotprod = arm.dotprod;
    found.i8mm = arm.i8mm;
    found.bf16 = arm.bf16;
#endif
    return found;
  }();
  return features;
}

std::string cpu_model() {
#if MG_X86
  uint32_t words[13] = {};
  for (unsigned leaf = 0; leaf < 3; ++leaf) {
    uint32_t* w = words + 4 * leaf;
    if (!__get_cpuid(0x80000002u + leaf, w, w + 1, w + 2, w + 3)) return "unknown";
  }
  std::string name(reinterpret_cast<const char*>(words));
  const size_t begin = name.find_first_not_of(' '), end = name.find_last_not_of(' ');
  if (begin != std::string::npos) return name.substr(begin, end - begin + 1);
#endif
  return "unknown";
}

std::string features_text(const CpuFeatures& features) {
  const struct {
    bool has;
    const char* name;
  } all[] = {{features.sse42, "sse4.2"}, {features.avx2, "avx2"}, {features.fma, "fma"}, {features.f16c, "f16c"},
             {features.avx_vnni, "avx_vnni"}, {features.avx512, "avx512"}, {features.avx512_vnni, "avx512_vnni"},
             {features.avx512_bf16, "avx512_bf16"}, {features.amx_bf16, "amx_bf16"}, {features.neon, "neon"},
             {features.dotprod, "dotprod"}, {features.i8mm, "i8mm"}, {features.bf16, "bf16"}};
  std::string text;
  for (const auto& feature : all)
    if (feature.has) text += (text.empty() ? "" : " ") + std::string(feature.name);
  return text.empty() ? "none" : text;
}

double cgroup_cpus(const std::string& root) {
  return tightest(root, "cpu", [](const std::string& folder, bool unified) {
    const std::string text = read_text(folder + (unified ? "/cpu.max" : "/cpu.cfs_quota_us"));
    const char* at = text.c_str();
    const int64_t quota = take_number(&at);
    const std::string period_text = unified ? at : read_text(folder + "/cpu.cfs_period_us");
    at = period_text.c_str();
    const int64_t period = take_number(&at);
    return quota > 0 && period > 0 ? (double)quota / (double)period : 0.0;
  });
}

int64_t cgroup_memory(const std::string& root) {
  const double limit = tightest(root, "memory", [](const std::string& folder, bool unified) {
    const std::string text = read_text(folder + (unified ? "/memory.max" : "/memory.limit_in_bytes"));
    const char* at = text.c_str();
    return (double)take_number(&at);
  });
  // v1 says "no limit" as a number close to 2^63.
  return limit > 0 && limit < 4e18 ? (int64_t)limit : 0;
}

std::vector<int> allowed_cpus() {
  std::vector<int> cpus = affinity();
  if (cpus.empty())
    for (int cpu = 0; cpu < (int)std::max(1u, std::thread::hardware_concurrency()); ++cpu) cpus.push_back(cpu);
  return cpus;
}

int physical_cores(const std::string& root, const std::vector<int>& cpus) {
  if (const int cores = root.empty() ? cores_of_machine() : 0) return std::min(cores, (int)cpus.size());
  std::set<std::string> cores;
  for (int cpu : cpus) {
    const std::string name = std::to_string(cpu);
    const std::string siblings = read_text(root + "/sys/devices/system/cpu/cpu" + name + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? "cpu" + name : siblings);
  }
  return std::max(1, (int)cores.size());
}

ThreadChoice choose_threads(int affinity, int physical_cores, double quota, int requested) {
  ThreadChoice choice;
  affinity = std::max(1, affinity);
  physical_cores = std::min(affinity, std::max(1, physical_cores));
  choice.quota = quota > 0 && quota < affinity;
  if (requested > 0) {
    choice.threads = requested;
    choice.why = std::to_string(requested) + " requested";
    return choice;
  }
  const int granted = quota > 0 ? (int)std::floor(std::min(quota, 1e6)) : affinity;
  choice.threads = std::max(1, std::min(physical_cores, granted));
  if (granted < physical_cores)
    choice.why = "cgroup quota " + short_number(quota) + " CPUs" +
                 (quota < 1 ? " rounded up" : quota > granted ? " rounded down" : "");
  else if (physical_cores < affinity)
    choice.why = std::to_string(physical_cores) + " cores of " + std::to_string(affinity) + " allowed CPUs";
  else
    choice.why = std::to_string(affinity) + " allowed CPUs";
  return choice;
}

ThreadChoice detect_threads() {
  const char* variable = "MICROGPT_NUM_THREADS";
  int requested = requested_by(variable);
  if (!requested) requested = requested_by(variable = "OMP_NUM_THREADS");
  const std::vector<int> cpus = allowed_cpus();
  ThreadChoice choice = choose_threads((int)cpus.size(), physical_cores("", cpus), cgroup_cpus(""), requested);
  if (requested) choice.why = std::string(variable) + "=" + getenv(variable);
  return choice;
}

}  // namespace mg
