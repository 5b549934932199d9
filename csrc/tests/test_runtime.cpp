// cpu.h and pool.h. The team is in test_team.cpp.
#include <doctest/doctest.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "runtime/cpu.h"
#include "runtime/pool.h"
#include "runtime/program.h"
#include "targets/dispatch.h"

using namespace mg;

namespace {

// A made-up root directory, removed at the end.
class FakeRoot {
 public:
  FakeRoot() {
    char name[] = "/tmp/microgpt_root_XXXXXX";
    path = mkdtemp(name);
  }
  ~FakeRoot() {
    if (system(("rm -rf " + path).c_str()) != 0) MESSAGE("could not remove " << path);
  }
  FakeRoot& file(const std::string& name, const std::string& text) {
    for (size_t i = name.find('/', 1); i != std::string::npos; i = name.find('/', i + 1))
      mkdir((path + name.substr(0, i)).c_str(), 0755);
    std::ofstream(path + name) << text;
    return *this;
  }
  std::string path;
};

// Of a build's instruction sets, the one that such a machine is given.
std::string chosen(const CpuFeatures& cpu) {
  for (const Target& target : targets_of(cpu))
    if (target.supported) return target.name;
  return "";
}
bool built(const std::string& name) {
  const std::vector<Target> all = targets_of({});
  return std::any_of(all.begin(), all.end(), [&](const Target& target) { return name == target.name; });
}

std::string features(const CpuidWords& words) { return features_text(features_of(words)); }

// Runs `body` in a child with its stderr captured; the wait status.
template <class Body> int in_child(std::string* errors, const Body& body) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    dup2(ends[1], 2);
    signal(SIGABRT, SIG_DFL);  // not doctest's report
    body();
    _exit(0);
  }
  close(ends[1]);
  char buffer[512];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) errors->append(buffer, (size_t)got);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

}  // namespace

TEST_CASE("cpu features of recorded machines") {
  CHECK(features({}) == "none");
  const CpuidWords nehalem{0x0098e3bd, 0, 0, 0, 0, 0, 0};
  CHECK(features(nehalem) == "sse4.2");
  CpuidWords haswell{0x7fdafbbf, 0x000027ab, 0, 0, 0, 0, 7};
  CHECK(features(haswell) == "sse4.2 avx2 fma f16c");
  haswell.xcr0 = 3;  // the operating system saves SSE registers only
  CHECK(features(haswell) == "sse4.2");
  haswell.xcr0 = 7;
  haswell.leaf1_ecx &= ~(1u << 27);  // XSAVE is off: XCR0 means nothing
  CHECK(features(haswell) == "sse4.2");
  CpuidWords skylake_x{0x7ffefbff, 0xd39ffffb, 0, 0, 0, 0, 0xe7};
  CHECK(features(skylake_x) == "sse4.2 avx2 fma f16c avx512");
  for (uint64_t missing : {UINT64_C(0x20), UINT64_C(0x40), UINT64_C(0x80)}) {
    skylake_x.xcr0 = 0xe7 & ~missing;
    CHECK(features(skylake_x) == "sse4.2 avx2 fma f16c");
  }
  skylake_x.xcr0 = 0xe7;
  for (int bit : {16, 17, 30, 31}) {
    CpuidWords less = skylake_x;
    less.leaf7_ebx &= ~(1u << bit);
    CHECK_FALSE(features_of(less).avx512);
  }
  CpuidWords zen4{0xfffa3203, 0xf1bf07ab, 0x00405fc6, 0x10, 0x20, 0, 0xe7};
  zen4.amd = true;
  CHECK(features(zen4) == "sse4.2 avx2 fma f16c avx512 avx512_vnni avx512_bf16");
  // Tiles need the processor's two bits and two more that the operating system saves.
  CpuidWords tiles = zen4;
  tiles.leaf7_edx |= 1u << 22 | 1u << 24;
  CHECK_FALSE(features_of(tiles).amx_bf16);
  tiles.xcr0 |= 0x60000;
  CHECK(features(tiles) == "sse4.2 avx2 fma f16c avx512 avx512_vnni avx512_bf16 amx_bf16");
  for (const int bit : {22, 24}) {
    CpuidWords less = tiles;
    less.leaf7_edx &= ~(1u << bit);
    CHECK_FALSE(features_of(less).amx_bf16);
  }
  const CpuidWords alder_lake{0x7ffafbff, 0x239c27eb, 0x98c007ac, 0xfc18c410, 0x400810, 0, 0x207};
  CHECK(features(alder_lake) == "sse4.2 avx2 fma f16c avx_vnni");
  CpuidWords unsaved = alder_lake;
  unsaved.xcr0 = 3;
  CHECK(features(unsaved) == "sse4.2");

#ifndef MG_EVEX_VNNI  // whose build runs it elsewhere
  if (built("avx2vnni")) CHECK(chosen(features_of(alder_lake)) == "avx2vnni");
#endif
  if (built("avx512bf16")) CHECK(chosen(features_of(zen4)) == "avx512bf16");
  CpuidWords sapphire_rapids = zen4;  // without tiles, as in many virtual machines; AVX-VNNI beside AVX-512's
  sapphire_rapids.amd = false, sapphire_rapids.leaf7_1_eax |= 1u << 4;
  if (built("avx512vnni")) CHECK(chosen(features_of(sapphire_rapids)) == "avx512vnni");
  CHECK(features_of(sapphire_rapids).far_caches);
  CHECK_FALSE(features_of(zen4).far_caches);
  CHECK(chosen(features_of(nehalem)) == "scalar");
  CHECK(chosen(features_of(unsaved)) == "scalar");
}

TEST_CASE("instruction sets of AArch64 machines") {
  CpuFeatures cpu;
  cpu.neon = true;
  if (built("neon")) CHECK(chosen(cpu) == "neon");
  cpu.i8mm = true;  // not enough alone
  if (built("neon")) CHECK(chosen(cpu) == "neon");
  cpu.i8mm = false, cpu.dotprod = true;
  if (built("neon_dotprod")) CHECK(chosen(cpu) == "neon_dotprod");
  cpu.i8mm = true;
  if (built("neon_i8mm")) CHECK(chosen(cpu) == "neon_i8mm");
}

TEST_CASE("this machine is described") {
  CHECK(!cpu_model().empty());
  CHECK(features_text(cpu_features()) == features_text(cpu_features()));
  // Set where the processor is emulated, so that what it has is known.
  if (const char* expected = getenv("MICROGPT_TEST_FEATURES")) CHECK(features_text(cpu_features()) == expected);
  if (const char* expected = getenv("MICROGPT_TEST_TARGET")) CHECK(current_target().name == std::string(expected));
#if defined(__x86_64__)
  CHECK(cpu_features().avx2 == (bool)__builtin_cpu_supports("avx2"));
  CHECK(cpu_features().fma == (bool)__builtin_cpu_supports("fma"));
  CHECK(cpu_features().avx512 ==
        (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl")));
#endif
  CHECK(allowed_cpus().size() >= 1);
}

TEST_CASE("cgroup limits") {
  const std::string v2 = "/sys/fs/cgroup";
  SUBCASE("no cgroup at all") { CHECK(cgroup_cpus(FakeRoot().path) == 0.0); }
  SUBCASE("v2, own cgroup") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "0::/a/b\n").file(v2 + "/a/b/cpu.max", "150000 100000\n").file(v2 + "/a/cpu.max", "max 100000\n");
    CHECK(cgroup_cpus(root.path) == 1.5);
  }
  SUBCASE("v2, an ancestor is tighter") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "0::/a/b/c\n").file(v2 + "/a/b/c/cpu.max", "800000 100000\n").file(v2 + "/a/cpu.max", "25000 50000\n");
    CHECK(cgroup_cpus(root.path) == 0.5);
  }
  SUBCASE("v2, unlimited") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "0::/a\n").file(v2 + "/a/cpu.max", "max 100000\n");
    CHECK(cgroup_cpus(root.path) == 0.0);
  }
  SUBCASE("v2 in a container: own cgroup is the root of the mount") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "0::/kubepods/pod1/x\n").file(v2 + "/cpu.max", "300000 100000\n");
    CHECK(cgroup_cpus(root.path) == 3.0);
  }
  SUBCASE("v2, a path outside the namespace") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "0::/../other\n").file(v2 + "/cpu.max", "200000 100000\n");
    CHECK(cgroup_cpus(root.path) == 2.0);
  }
  SUBCASE("v1, own mount") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "5:cpu:/docker/1\n4:memory:/docker/1\n")
        .file(v2 + "/cpu/docker/1/cpu.cfs_quota_us", "250000\n")
        .file(v2 + "/cpu/docker/1/cpu.cfs_period_us", "100000\n")
        .file(v2 + "/cpu/cpu.cfs_quota_us", "-1\n")
        .file(v2 + "/cpu/cpu.cfs_period_us", "100000\n");
    CHECK(cgroup_cpus(root.path) == 2.5);
  }
  SUBCASE("v1, cpu,cpuacct, seen from a container") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "5:cpu,cpuacct:/docker/1\n")
        .file(v2 + "/cpu,cpuacct/cpu.cfs_quota_us", "100000\n")
        .file(v2 + "/cpu,cpuacct/cpu.cfs_period_us", "50000\n");
    CHECK(cgroup_cpus(root.path) == 2.0);
  }
  SUBCASE("v1 and v2 together: the tighter") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "5:cpu:/a\n0::/b\n")
        .file(v2 + "/cpu/a/cpu.cfs_quota_us", "400000\n")
        .file(v2 + "/cpu/a/cpu.cfs_period_us", "100000\n")
        .file(v2 + "/unified/b/cpu.max", "300000 100000\n");
    CHECK(cgroup_cpus(root.path) == 3.0);
  }
  SUBCASE("nonsense is no limit") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "\n:\nx\n0::\n0::/a\n").file(v2 + "/a/cpu.max", "12 0\n").file(v2 + "/cpu.max", "hello");
    CHECK(cgroup_cpus(root.path) == 0.0);
  }
  SUBCASE("memory") {
    FakeRoot root;
    root.file("/proc/self/cgroup", "0::/a\n4:memory:/m\n")
        .file(v2 + "/a/memory.max", "max\n")
        .file(v2 + "/memory/m/memory.limit_in_bytes", "2147483648\n")
        .file(v2 + "/memory/memory.limit_in_bytes", "9223372036854771712\n");
    CHECK(cgroup_memory(root.path) == 2147483648);
    CHECK(cgroup_memory(FakeRoot().path) == 0);
  }
}

TEST_CASE("physical cores") {
  FakeRoot root;
  for (int cpu = 0; cpu < 4; ++cpu)
    root.file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list",
              std::to_string(cpu % 2) + "," + std::to_string(cpu % 2 + 2) + "\n");
  CHECK(physical_cores(root.path, {0, 1, 2, 3}) == 2);
  CHECK(physical_cores(root.path, {0, 2}) == 1);
  CHECK(physical_cores(root.path, {0, 1}) == 2);
  CHECK(physical_cores(root.path, {3, 4, 5}) == 3);  // unknown ones count as cores
}

TEST_CASE("choose_threads") {
  const struct {
    int affinity, cores;
    double quota;
    int requested, threads;
    bool binds;
  } cases[] = {
      {1, 1, 0, 0, 1, false},    {2, 2, 0, 0, 2, false},     {4, 2, 0, 0, 2, false},    {16, 8, 0, 0, 8, false},
      {16, 8, 4, 0, 4, true},    {16, 8, 4.9, 0, 4, true},   {16, 8, 0.5, 0, 1, true},  {16, 8, 1.5, 0, 1, true},
      {16, 8, 8, 0, 8, true},    {16, 8, 16, 0, 8, false},   {16, 8, 64, 0, 8, false},  {2, 2, 2, 0, 2, false},
      {2, 2, 1.99, 0, 1, true},  {1, 8, 0, 0, 1, false},     {8, 0, 0, 0, 1, false},    {0, 0, 0, 0, 1, false},
      {4, 4, 0, 3, 3, false},    {2, 2, 0, 16, 16, false},   {16, 8, 2, 8, 8, true},    {1, 1, 0.1, 1, 1, true},
      {256, 128, 1e9, 0, 128, false}, {3, 3, -1, 0, 3, false},
  };
  for (const auto& c : cases) {
    CAPTURE(c.affinity);
    CAPTURE(c.quota);
    CAPTURE(c.requested);
    const ThreadChoice choice = choose_threads(c.affinity, c.cores, c.quota, c.requested);
    CHECK(choice.threads == c.threads);
    CHECK(choice.quota == c.binds);
  }
  CHECK(choose_threads(2, 2, 0, 0).why == "2 allowed CPUs");
  CHECK(choose_threads(4, 2, 0, 0).why == "2 cores of 4 allowed CPUs");
  CHECK(choose_threads(4, 4, 1.5, 0).why == "cgroup quota 1.5 CPUs rounded down");
  CHECK(choose_threads(4, 4, 0.5, 0).why == "cgroup quota 0.5 CPUs rounded up");
  CHECK(choose_threads(4, 4, 2, 0).why == "cgroup quota 2 CPUs");
}

TEST_CASE("thread count from the environment") {
  unsetenv("OMP_NUM_THREADS");
  setenv("MICROGPT_NUM_THREADS", "3", 1);
  CHECK(detect_threads().threads == 3);
  CHECK(detect_threads().why == "MICROGPT_NUM_THREADS=3");
  for (const char* bad : {"0", "-1", "1025", "two", "3x", "3,2", "99999999999999999999"}) {
    setenv("MICROGPT_NUM_THREADS", bad, 1);
    CHECK_THROWS_AS(detect_threads(), Error);
  }
  unsetenv("MICROGPT_NUM_THREADS");
  setenv("OMP_NUM_THREADS", "5,2", 1);
  CHECK(detect_threads().threads == 5);
  unsetenv("OMP_NUM_THREADS");
  const ThreadChoice choice = detect_threads();
  CHECK(choice.threads >= 1);
  CHECK(choice.threads <= (int)allowed_cpus().size());
}

TEST_CASE("pool reuses blocks, aligned, with little waste") {
  Pool pool;
#ifndef MG_GUARD_BYTES
  void* first = pool.take(1000);
  pool.release(first);
  CHECK(pool.take(970) == first);  // the same class
  pool.release(first);
  CHECK(pool.stats().blocks_made == 1);
  CHECK(pool.stats().blocks_reused == 1);
#endif
  for (size_t bytes = 0; bytes < 10000000; bytes += 1 + bytes / 7) {
    const int64_t before = pool.stats().live_bytes;
    char* p = static_cast<char*>(pool.take(bytes));
    CHECK((uintptr_t)p % 64 == 0);
    if (bytes) p[0] = p[bytes - 1] = 1;
    const int64_t capacity = pool.stats().live_bytes - before;
    CHECK(capacity >= (int64_t)bytes);
#ifndef MG_GUARD_BYTES
    CHECK(capacity <= (bytes <= 512 ? (int64_t)bytes + 64 : (int64_t)bytes + (int64_t)bytes / 8));
#endif
    CHECK(pool.owns(p));
    CHECK_FALSE(default_pool()->owns(p));
    pool.release(p);
    CHECK(pool.stats().live_bytes == before);
  }
  CHECK(pool.stats().cached_bytes > 0);
  CHECK(pool.stats().peak_bytes >= 9000000);
  pool.trim();
  CHECK(pool.stats().cached_bytes == 0);
  CHECK_THROWS_AS(pool.take(SIZE_MAX), std::bad_alloc);
  CHECK_THROWS_AS(pool.take((size_t)1 << 60), std::bad_alloc);
  CHECK(pool.stats().live_bytes == 0);
  pool.release(nullptr);
}

TEST_CASE("a recording's pool keeps its blocks") {
  Pool pool(true);
  void* p = pool.take(5000);
  pool.release(p);
  pool.trim();
  CHECK(pool.stats().cached_bytes >= 5000);
  CHECK(pool.take(5000) == p);
  pool.release(p);
}

TEST_CASE("current pool is per thread") {
  auto own = std::make_shared<Pool>();
  set_current_pool(own);
  CHECK(current_pool() == own);
  std::shared_ptr<Pool> other;
  std::thread([&] { other = current_pool(); }).join();
  CHECK(other == default_pool());
  set_current_pool(nullptr);
  CHECK(current_pool() == default_pool());
}

TEST_CASE("pool from four threads, blocks released by another thread, forks beside it") {
  Pool pool;
  std::atomic<bool> wrong{false}, over{false};
  std::vector<std::thread> threads;
  std::atomic<void*> handed{nullptr};
  for (uint32_t t = 1; t <= 4; ++t)
    threads.emplace_back([&, t] {
      uint32_t random = t;
      for (int i = 0; i < 30000; ++i) {
        random = random * 1664525 + 1013904223;
        const size_t bytes = 8 + (random >> 16) % 5000;
        unsigned char* p = static_cast<unsigned char*>(pool.take(bytes));
        memset(p, (int)t, bytes);
        if (p[0] != t || p[bytes / 2] != t || p[bytes - 1] != t) wrong = true;
        if (void* other = handed.exchange(p)) pool.release(other);
      }
    });
  std::thread forks([&] {
    while (!over) {
      const pid_t child = fork();
      if (child == 0) {
        alarm(20);
        pool.release(pool.take(100));
        _exit(0);
      }
      int status = -1;
      waitpid(child, &status, 0);
      if (status != 0) wrong = true;
    }
  });
  for (std::thread& thread : threads) thread.join();
  over = true;
  forks.join();
  if (void* last = handed.exchange(nullptr)) pool.release(last);
  CHECK_FALSE(wrong);
  CHECK(pool.stats().live_bytes == 0);
}

TEST_CASE("a second release is refused") {
  std::string errors;
  const int status = in_child(&errors, [] {
    Pool pool;
    void* p = pool.take(640);
    pool.release(p);
    pool.release(p);
  });
  CHECK(WIFSIGNALED(status));
  CHECK(errors.find("second or foreign release of a block of 640 bytes") != std::string::npos);
}

#ifdef MG_GUARD_BYTES
TEST_CASE("uses that are not true") {
  struct Copy {
    const float* from;
    float* to;
  };
  void (*const copy)(const Copy&, const Share&) = [](const Copy& args, const Share&) { *args.to = *args.from; };
  const int64_t shape[] = {16};
  const Array from = make_array(DType::f32, shape, 1), to = make_array(DType::f32, shape, 1);
  memset(from.data, 1, from.bytes()), memset(to.data, 2, to.bytes());
  const Copy args{from.as<float>(), to.as<float>() + 3};
  std::string errors;
  CHECK(!WIFSIGNALED(in_child(&errors, [&] { launch("copy", copy, args, {1, 0}, {&from, {&to, Use::written}}); })));
  CHECK(WIFSIGNALED(in_child(&errors, [&] { launch("copy", copy, args, {1, 0}, {&from, &to}); })));
  CHECK(errors.find("copy wrote to an array of 64 bytes that it is said to read") != std::string::npos);
  CHECK(WIFSIGNALED(in_child(&errors, [&] { launch("copy", copy, args, {1, 0}, {&from}); })));
  CHECK(errors.find("copy is given an array that its uses do not name, at byte 8") != std::string::npos);
}

TEST_CASE("guard bytes") {
  for (int offset : {-64, -1, 1001, 1064}) {
    CAPTURE(offset);
    std::string errors;
    const int status = in_child(&errors, [offset] {
      Pool pool;
      char* p = static_cast<char*>(pool.take(1001));
      p[offset] = (char)(p[offset] ^ 1);
      pool.release(p);
    });
    CHECK(WIFSIGNALED(status));
    const std::string side = offset < 0 ? "before the start" : "past the end";
    CHECK(errors.find("overwritten " + side + " of a block of 1001 bytes") != std::string::npos);
  }
  Pool pool;
  uint32_t* p = static_cast<uint32_t*>(pool.take(4096));
  for (int i = 0; i < 1024; ++i) CHECK(p[i] == 0x7fa00000);
  memset(p, 0, 4096);
  pool.release(p);
  CHECK(static_cast<uint32_t*>(pool.take(4096)) == p);
  CHECK(p[77] == 0x7fa00000);
  pool.release(p);
}
#endif
