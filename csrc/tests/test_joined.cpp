// Several products of the same rows as one kernel: gemm's bits on every target, nothing written beside the results.
#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "kernels/plan.h"
#include "ref/ref.h"
#include "targets/dispatch.h"

namespace {

using mg::bf16;
using mg::GemmArgs;
using mg::JoinedGemmArgs;

constexpr size_t kGuard = 64;

template <class T> std::vector<T> numbers(int64_t n, uint64_t seed) {
  std::vector<T> x((size_t)n);
  uint64_t state = seed * 2654435761u + 88172645463325252ull;
  for (T& v : x) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    const float value = (float)((double)(state >> 40) / (1 << 23) - 1.0);
    if constexpr (sizeof(T) == sizeof(double)) v = value;
    else mg::assign(v, value);
  }
  if (x.empty()) x.reserve(1);
  return x;
}

template <class T> struct Problem {
  int64_t m, k;
  std::vector<int64_t> widths;
  std::vector<T> a;
  std::vector<std::vector<T>> b, bias, c;

  Problem(int64_t rows, int64_t inner, std::vector<int64_t> n) : m(rows), k(inner), widths(std::move(n)), a(numbers<T>(m * k, 1)) {
    for (size_t i = 0; i < widths.size(); ++i) {
      b.push_back(numbers<T>(widths[i] * k, 10 + i)), bias.push_back(numbers<T>(widths[i], 20 + i));
      c.push_back(numbers<T>(m * widths[i] + 2 * (int64_t)kGuard, 30));
    }
  }
  const T* bias_of(size_t i) const { return i % 2 ? bias[i].data() : nullptr; }
  JoinedGemmArgs<T> args() {
    JoinedGemmArgs<T> joined = {};
    joined.a = a.data(), joined.m = m, joined.k = k, joined.count = (int32_t)widths.size();
    for (size_t i = 0; i < widths.size(); ++i) joined.weights[i] = {b[i].data(), bias_of(i), c[i].data() + kGuard, widths[i]};
    return joined;
  }
  GemmArgs<T> single(size_t i) {
    GemmArgs<T> one = {};
    one.a = a.data(), one.b = b[i].data(), one.c = c[i].data() + kGuard, one.bias = bias_of(i);
    one.m = m, one.n = one.ldc = widths[i], one.k = one.lda = one.ldb = k, one.batch = 1, one.trans_b = 1;
    return one;
  }
};

template <class Args, class Kernel> void run(Kernel kernel, const Args& args, const mg::Plan& plan, bool backwards) {
  for (int64_t i = 0; i < plan.shares; ++i) {
    std::vector<float> scratch(plan.scratch_bytes / sizeof(float), 1e30f);
    kernel(args, mg::Share{backwards ? plan.shares - 1 - i : i, plan.shares, scratch.data()});
  }
}

template <class T, class Table> void check(const Table& table) {
  const std::vector<int64_t> sets[] = {{1}, {64, 64}, {33, 0, 31, 100}, {576, 192, 192}, {1, 700, 5}};
  for (const auto& widths : sets) {
    for (int64_t m : {(int64_t)0, (int64_t)1, (int64_t)5, mg::kJoinedRows}) {
      for (int64_t k : {0, 1, 31, 100, 600}) {
        for (bool backwards : {false, true}) {
          Problem<T> joined(m, k, widths), single(m, k, widths);
          const auto args = joined.args();
          run(table.gemm_joined, args, mg::plan_gemm_joined(args), backwards);
          for (size_t i = 0; i < widths.size(); ++i) {
            const auto one = single.single(i);
            run(table.gemm, one, mg::plan_gemm(one), false);
            INFO("m " << m << ", k " << k << ", weight " << i << " of " << widths[i]);
            CHECK(std::memcmp(joined.c[i].data(), single.c[i].data(), joined.c[i].size() * sizeof(T)) == 0);
          }
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("joined products have gemm's bits") {
  for (const mg::Target& target : mg::targets()) {
    if (!target.supported) continue;
    INFO("target " << target.name);
    check<float>(*target.table());
    check<bf16>(*target.table_bf16());
  }
  check<double>(mg::ref::table());
}
