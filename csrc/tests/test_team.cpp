// parallel.h: every share exactly once, whatever the threads do.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "core/error.h"
#include "runtime/float_state.h"
#include "runtime/parallel.h"
#include "runtime/program.h"
#include "targets/dispatch.h"

using namespace mg;

namespace {

struct Marks {
  uint32_t* marks;  // one per share
  int64_t work;     // rounds of busy work
};

void mark(void (*)(), const void* args, const Share& share) {
  const Marks& a = *static_cast<const Marks*>(args);
  uint64_t x = (uint64_t)share.index + 1;
  for (int64_t i = 0; i < a.work; ++i) x = x * 6364136223846793005u + 1;
  a.marks[share.index] += (uint32_t)share.index + 1 + (x == 0);
}

// Whether a node of `count` shares ran each share exactly once.
bool runs_once(Job& job, std::vector<uint32_t>& marks, int64_t count, int64_t work) {
  marks.assign((size_t)count, 0);
  const Marks args{marks.data(), work};
  job.run({mark, nullptr, &args, count, 0});
  for (int64_t i = 0; i < count; ++i)
    if (marks[(size_t)i] != (uint32_t)i + 1) return false;
  return true;
}

uint32_t next_random(uint32_t* state) {
  *state = *state * 1664525 + 1013904223;
  return *state >> 8;
}

}  // namespace

TEST_CASE("shares of every count on every number of threads") {
  for (int threads : {1, 2, 3, 4, 8, 16}) {
    set_num_threads(threads);
    CHECK(num_threads() == threads);
    std::vector<uint32_t> marks;
    bool right = true;
    Job job;
    for (int64_t count = 0; count <= 1000; ++count) right = right && runs_once(job, marks, count, 0);
    CAPTURE(threads);
    CHECK(right);
  }
}

TEST_CASE("many nodes of random sizes") {
  for (int threads : {2, 3}) {
    set_num_threads(threads);
    uint32_t random = (uint32_t)threads;
    std::vector<uint32_t> marks;
    int64_t wrong = 0;
    const int64_t before = team_stats().shared_nodes;
    for (int batch = 0; batch < 1000; ++batch) {
      Job job;
      for (int i = 0; i < 100; ++i) {
        const int64_t count = 2 + next_random(&random) % 40;
        wrong += !runs_once(job, marks, count, next_random(&random) % 8 ? 0 : next_random(&random) % 300);
      }
      // Let the workers fall asleep now and then.
      if (batch % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    CHECK(wrong == 0);
    CHECK(team_stats().shared_nodes - before == 100000);
  }
}

TEST_CASE("workers do take part, also after they slept") {
  set_num_threads(2);
  struct Args {
    std::thread::id caller;
    std::atomic<int>* elsewhere;
  };
  std::atomic<int> elsewhere{0};
  const Args args{std::this_thread::get_id(), &elsewhere};
  const auto slow = [](void (*)(), const void* a, const Share&) {
    const Args& real = *static_cast<const Args*>(a);
    if (std::this_thread::get_id() != real.caller) ++*real.elsewhere;
    // On a busy machine the worker may be long in coming, but within one node it must.
    if (*real.elsewhere == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  for (int round = 0; round < 20; ++round) {
    elsewhere = 0;
    Job job;
    job.run({slow, nullptr, &args, 10000, 0});
    CHECK(elsewhere >= 1);
    std::this_thread::sleep_for(std::chrono::microseconds(50 * (round % 5)));
  }
}

TEST_CASE("scratch is private, aligned and large enough") {
  for (int threads : {1, 2, 4}) {
    set_num_threads(threads);
    for (size_t bytes : {(size_t)1, (size_t)1000, (size_t)100000, (size_t)64}) {
      struct Args {
        size_t bytes;
        std::atomic<int>* wrong;
      };
      std::atomic<int> wrong{0};
      const Args args{bytes, &wrong};
      const auto fill = [](void (*)(), const void* a, const Share& share) {
        const Args& real = *static_cast<const Args*>(a);
        unsigned char* p = static_cast<unsigned char*>(share.scratch);
        if ((uintptr_t)p % 64) ++*real.wrong;
        for (int pass = 0; pass < 2; ++pass)
          for (size_t i = 0; i < real.bytes; i += 64) {
            if (pass && p[i] != (unsigned char)share.index) ++*real.wrong;
            p[i] = (unsigned char)share.index;
          }
      };
      Job job;
      for (int64_t shares : {1, 2, 50}) job.run({fill, nullptr, &args, shares, bytes});
      CHECK(wrong == 0);
    }
  }
}

// What the thread sanitizer watches: shares of one kernel must not write what another reads or writes.
TEST_CASE("kernels on three threads have the bits of one") {
  constexpr int64_t kRows = 190, kCols = 530, kDepth = 70;
  std::vector<float> a(kRows * kDepth), b(kCols * kDepth), mean(kRows, 0.25f), rstd(kRows, 1.5f);
  for (size_t i = 0; i < a.size(); ++i) a[i] = (float)(i * 37 % 101) / 50.0f - 1.0f;
  for (size_t i = 0; i < b.size(); ++i) b[i] = (float)(i * 53 % 103) / 51.0f - 1.0f;
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    INFO("target " << std::string(target.name));
    const KernelTable<float>& table = *target.table();
    std::vector<std::vector<float>> results[2];
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      std::vector<float> c(kRows * kCols), soft(c.size()), dweight(kCols), dbias(kCols);
      GemmArgs<float> gemm = {};
      gemm.a = a.data(), gemm.b = b.data(), gemm.c = c.data(), gemm.m = kRows, gemm.n = kCols, gemm.k = kDepth;
      gemm.lda = gemm.ldb = kDepth, gemm.ldc = kCols, gemm.batch = 1, gemm.trans_b = 1;
      launch("gemm", table.gemm, gemm, plan_gemm(gemm), {});
      const SoftmaxArgs<float> rows{c.data(), nullptr, soft.data(), kRows, kCols, 0.5, 0};
      launch("softmax", table.softmax, rows, plan_softmax(rows), {});
      NormBackwardArgs<float> norm = {};
      norm.dy = c.data(), norm.x = soft.data(), norm.mean = mean.data(), norm.rstd = rstd.data();
      norm.dweight = dweight.data(), norm.dbias = dbias.data(), norm.rows = kRows, norm.cols = kCols, norm.center = 1;
      launch("norm_backward_weight", table.norm_backward_weight, norm, plan_norm_backward_weight(norm), {});
      results[threads > 1] = {c, soft, dweight, dbias};
    }
    CHECK(results[0] == results[1]);
  }
}

TEST_CASE("two user threads at once") {
  set_num_threads(3);
  std::atomic<int64_t> wrong{0};
  const auto user = [&](uint32_t seed) {
    std::vector<uint32_t> marks;
    for (int batch = 0; batch < 300; ++batch) {
      Job job;
      for (int i = 0; i < 20; ++i) wrong += !runs_once(job, marks, 1 + next_random(&seed) % 60, 20);
    }
  };
  std::thread other(user, 1);
  user(2);
  other.join();
  CHECK(wrong == 0);
}

TEST_CASE("a run inside a share is serial and right") {
  set_num_threads(4);
  struct Args {
    Job* outer;
    std::atomic<int64_t>* wrong;
  };
  std::atomic<int64_t> wrong{0};
  const auto inside = [](void (*)(), const void* a, const Share& share) {
    const Args& real = *static_cast<const Args*>(a);
    std::vector<uint32_t> marks;
    Job own;
    *real.wrong += !runs_once(own, marks, 5 + share.index, 0);
    *real.wrong += !runs_once(*real.outer, marks, 7, 0);
    static_cast<unsigned char*>(share.scratch)[0] = 1;
    const Marks args{marks.data(), 0};
    own.run({mark, nullptr, &args, 2, 128});
  };
  Job job;
  const Args args{&job, &wrong};
  for (int i = 0; i < 200; ++i) job.run({inside, nullptr, &args, 20, 64});
  set_num_threads(1);
  for (int i = 0; i < 10; ++i) job.run({inside, nullptr, &args, 20, 64});
  CHECK(wrong == 0);
}

TEST_CASE("stop, restart, change the number of threads") {
  std::vector<uint32_t> marks;
  for (int round = 0; round < 30; ++round) {
    set_num_threads(2 + round % 3);
    Job job;
    CHECK(runs_once(job, marks, 33, 10));
    if (round % 2) set_num_threads(5);  // while a Job has the team: at the next one
    CHECK(runs_once(job, marks, 33, 10));
  }
  stop_team();
  const int64_t before = team_stats().shared_nodes;
  {
    Job job;
    CHECK(runs_once(job, marks, 33, 10));
  }
  CHECK(team_stats().shared_nodes == before);
  stop_team();
  set_num_threads(2);
  Job job;
  CHECK(runs_once(job, marks, 33, 10));
  CHECK(team_stats().shared_nodes == before + 1);
  CHECK_THROWS_AS(set_num_threads(0), Error);
  CHECK_THROWS_AS(set_num_threads(1025), Error);
  CHECK(num_threads() == 2);
}

TEST_CASE("fork in the middle of use") {
  set_num_threads(2);
  std::atomic<bool> over{false};
  std::atomic<int64_t> wrong{0};
  std::thread user([&] {
    std::vector<uint32_t> marks;
    while (!over) {
      Job job;
      for (int i = 0; i < 10; ++i) wrong += !runs_once(job, marks, 20, 100);
    }
  });
  int failed = 0;
  for (int trial = 0; trial < 50; ++trial) {
    auto outer = std::make_unique<Job>();
    std::vector<uint32_t> marks;
    if (trial % 2) wrong += !runs_once(*outer, marks, 20, 100);  // fork inside a Job
    const pid_t child = fork();
    if (child == 0) {
      alarm(30);
      bool right = trial % 2 == 0 || runs_once(*outer, marks, 17, 10);
      outer.reset();
      const int64_t before = team_stats().shared_nodes;
      for (int i = 0; i < 100; ++i) {
        Job job;
        right = right && runs_once(job, marks, 40, 50);
      }
      right = right && team_stats().shared_nodes - before == 100;  // with a team of its own
      stop_team();
      _exit(right ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    failed += status != 0;
  }
  over = true;
  user.join();
  CHECK(failed == 0);
  CHECK(wrong == 0);
  std::vector<uint32_t> marks;
  Job job;
  CHECK(runs_once(job, marks, 50, 10));
}

TEST_CASE("workers take no signals and leave the caller's mask alone") {
  set_num_threads(2);
  struct Args {
    std::thread::id caller;
    std::atomic<int>* open;
  };
  std::atomic<int> open{0};
  const Args args{std::this_thread::get_id(), &open};
  const auto look = [](void (*)(), const void* a, const Share&) {
    const Args& real = *static_cast<const Args*>(a);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    const bool is_open = !sigismember(&mask, SIGINT);
    if (is_open != (std::this_thread::get_id() == real.caller)) ++*real.open;
  };
  Job job;
  job.run({look, nullptr, &args, 10, 0});
  CHECK(open == 0);
}

TEST_CASE("floating point rounds and keeps small numbers as usual in every thread") {
  set_num_threads(3);
  std::atomic<int> wrong{0};
  const auto look = [](void (*)(), const void* a, const Share&) {
    volatile float small = 1e-40f, one = 1.0f, third = 3.0f;
    if (small * one != 1e-40f || one / third != 0.333333343f) ++**static_cast<std::atomic<int>* const*>(a);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  std::atomic<int>* const args = &wrong;
  Job job;
  job.run({look, nullptr, &args, 12, 0});
  CHECK(wrong == 0);
}

TEST_CASE("kernels compute in the default environment, and the caller gets its own back") {
#if defined(__aarch64__)
  const FloatState states[] = {1u << 24, 3u << 22, 1u << 24 | 1u << 22};  // flush to zero; toward zero; both
#else
  const FloatState states[] = {0x9fc0, 0x7f80, 0xdfc0, 0x1d00};  // FTZ and DAZ; toward zero; upward and both; traps
#endif
  const FloatState usual = float_state();
  const auto look = [](void (*)(), const void* a, const Share&) {
    if ((float_state() & kFloatControl) != kFloatDefault) ++**static_cast<std::atomic<int>* const*>(a);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  std::atomic<int> wrong{0};
  std::atomic<int>* const args = &wrong;
  for (const FloatState state : states) {
    stop_team();
    set_num_threads(3);  // the team starts, and inherits, within
    set_float_state(state);
    {
      Job job;
      job.run({look, nullptr, &args, 12, 0});
      job.run({look, nullptr, &args, 1, 0});
    }
    const FloatState after = float_state();
    set_float_state(usual);
    CHECK((after & kFloatControl) == (state & kFloatControl));
    CHECK(wrong == 0);
  }
}

TEST_CASE("the OpenMP runtime has a name") {
  CHECK(!openmp_runtime().empty());
  stop_team();
  set_num_threads(2);
}
