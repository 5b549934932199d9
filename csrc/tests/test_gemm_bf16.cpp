// bfloat16 products on every compiled target, against plain loops in double on the same bf16 numbers.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/plan.h"
#include "targets/dispatch.h"

namespace {

using mg::bf16;
using mg::GemmArgs;

constexpr int64_t kGuard = 40;  // elements around C, of this value
constexpr float kGuardValue = -3.0e33f;

struct Numbers {
  std::vector<bf16> narrow;
  Numbers(int64_t n, uint64_t seed) : narrow((size_t)n) {
    uint64_t state = seed * 2654435761u + 88172645463325252ull;
    for (bf16& x : narrow) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      mg::assign(x, (float)((double)(state >> 40) / (1 << 23) - 1.0));
    }
  }
  double at(int64_t i) const { return mg::value_of(narrow[(size_t)i]); }
};

// Operands without room behind them (the address sanitizer sees a read too far), C between guards, narrow or wide.
struct Problem {
  int64_t m, n, k;
  bool trans_a, trans_b, wide, accumulate;
  Numbers a, b, before;
  std::vector<bf16> c;
  std::vector<float> wide_c;

  Problem(int64_t m, int64_t n, int64_t k, int flags)
      : m(m), n(n), k(k), trans_a(flags & 1), trans_b(flags & 2), wide(flags & 4), accumulate(flags & 8),
        a(m * k, 1), b(k * n, 2), before(m * n, 3), c((size_t)(m * n + 2 * kGuard)), wide_c(c.size(), kGuardValue) {
    for (bf16& x : c) mg::assign(x, kGuardValue);
    for (int64_t i = 0; i < m * n; ++i) {
      c[(size_t)(kGuard + i)] = before.narrow[(size_t)i];
      wide_c[(size_t)(kGuard + i)] = (float)before.at(i);
    }
  }
  GemmArgs<bf16> args() {
    GemmArgs<bf16> g = {};
    g.a = a.narrow.data(), g.b = b.narrow.data();
    if (wide) g.wide_c = wide_c.data() + kGuard;
    else g.c = c.data() + kGuard;
    g.m = m, g.n = n, g.k = k, g.batch = 1;
    g.lda = trans_a ? m : k, g.ldb = trans_b ? k : n, g.ldc = n;
    g.trans_a = trans_a, g.trans_b = trans_b, g.accumulate = accumulate;
    return g;
  }
  double result(int64_t i) const {
    return wide ? (double)wide_c[(size_t)(kGuard + i)] : (double)mg::value_of(c[(size_t)(kGuard + i)]);
  }
  bool guards_hold() const {
    bf16 guard;
    mg::assign(guard, kGuardValue);
    for (size_t i = 0; i < (size_t)kGuard; ++i) {
      if (c[i].bits != guard.bits || c[c.size() - 1 - i].bits != guard.bits) return false;
      if (wide_c[i] != kGuardValue || wide_c[c.size() - 1 - i] != kGuardValue) return false;
    }
    return true;
  }
  bool same_bits(const Problem& other) const {
    return std::memcmp(c.data(), other.c.data(), c.size() * sizeof(bf16)) == 0 &&
           std::memcmp(wide_c.data(), other.wide_c.data(), c.size() * sizeof(float)) == 0;
  }
};

void run(const mg::Target& target, const GemmArgs<bf16>& args, bool backwards = false) {
  const mg::Plan plan = mg::plan_gemm(args);
  for (int64_t i = 0; i < plan.shares; ++i) {
    std::vector<float> scratch(plan.scratch_bytes / sizeof(float), std::nanf(""));
    target.table_bf16()->gemm(args, mg::Share{backwards ? plan.shares - 1 - i : i, plan.shares, scratch.data()});
  }
}

// A chain of K products and the start: K + 3 roundings of 2^-24 of the sum of magnitudes, and 2^-8 of a result that is
// stored in bf16.
double worst(const Problem& p) {
  double worst = 0.0;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = p.accumulate ? p.before.at(i * p.n + j) : 0.0, size = std::fabs(sum);
      for (int64_t k = 0; k < p.k; ++k) {
        const double x = p.a.at(p.trans_a ? k * p.m + i : i * p.k + k), y = p.b.at(p.trans_b ? j * p.k + k : k * p.n + j);
        sum += x * y, size += std::fabs(x * y);
      }
      const double bound = (double)(p.k + 3) * std::ldexp(size, -24) + (p.wide ? 0.0 : std::ldexp(std::fabs(sum), -8));
      const double off = std::fabs(p.result(i * p.n + j) - sum) / (bound * 1.01 + 1e-37);
      worst = off > worst || std::isnan(off) ? off : worst;
    }
  }
  return worst;
}

template <class F> void for_each_target(F body) {
  for (const mg::Target& target : mg::targets())
    if (target.supported) body(target);
}

}  // namespace

TEST_CASE("gemm bf16: shapes, odd depths, transpositions, wide and narrow results") {
  const int64_t shapes[][3] = {{1, 1, 1},   {1, 7, 2},    {2, 16, 5},    {3, 7, 65},    {4, 33, 16},  {8, 17, 31},
                               {9, 20, 32}, {13, 33, 17}, {17, 31, 127}, {24, 63, 40},  {25, 65, 41}, {37, 128, 100},
                               {3, 4, 0},   {1, 300, 513}, {50, 70, 1031}, {12, 15, 600}, {130, 257, 5}, {64, 300, 257}, {95, 64, 2080}, {200, 96, 515}};
  for_each_target([&](const mg::Target& target) {
    for (const auto& shape : shapes) {
      for (int flags = 0; flags < 16; ++flags) {
        INFO("target " << target.name << ", m " << shape[0] << ", n " << shape[1] << ", k " << shape[2] << ", flags " << flags);
        Problem p(shape[0], shape[1], shape[2], flags);
        run(target, p.args());
        CHECK(worst(p) <= 1.0);
        CHECK(p.guards_hold());
      }
    }
  });
}

TEST_CASE("gemm bf16: strips and panels that are packed while others are in use") {
  for_each_target([&](const mg::Target& target) {
    for (int flags = 0; flags < 8; ++flags) {
      Problem p(18, 1100, 1056, flags);  // shares of more than one strip, where A is transposed also more than one block of K
      run(target, p.args());
      INFO("target " << target.name << ", flags " << flags);
      CHECK(worst(p) <= 1.0);
      CHECK(p.guards_hold());
    }
  });
}

TEST_CASE("gemm bf16: adding a product of nothing keeps C, denormals too") {
  for_each_target([&](const mg::Target& target) {
    for (int flags = 8; flags < 12; ++flags) {
      Problem p(24, 96, 0, flags);
      for (int64_t i = 0; i < 24 * 96; ++i) p.c[(size_t)(kGuard + i)].bits = (uint16_t)((i % 0x100) | (i % 2) << 15);
      const std::vector<bf16> before = p.c;
      run(target, p.args());
      INFO("target " << target.name << ", flags " << flags);
      CHECK(std::memcmp(before.data(), p.c.data(), before.size() * sizeof(bf16)) == 0);
    }
  });
}

TEST_CASE("gemm bf16: a row alone has the bits of a row among many, in any order of shares") {
  for_each_target([&](const mg::Target& target) {
    for (int64_t k : {31, 64, 1024, 1100}) {
      for (int flags = 0; flags < 16; ++flags) {
        Problem all(70, 130, k, flags), reverse(70, 130, k, flags), rows(70, 130, k, flags);
        run(target, all.args());
        run(target, reverse.args(), true);
        for (int64_t i = 0, count; i < 70; i += count) {
          count = i % 15 + 1 < 70 - i ? i % 15 + 1 : 70 - i;
          GemmArgs<bf16> some = rows.args();
          some.m = count, some.a += all.trans_a ? i : i * k;
          if (some.c) some.c += i * 130;
          if (some.wide_c) some.wide_c += i * 130;
          run(target, some);
        }
        CHECK(all.same_bits(reverse));
        CHECK(all.same_bits(rows));
      }
    }
  });
}

TEST_CASE("gemm bf16: few rows, whose product may be computed transposed, have the bits of many") {
  for_each_target([&](const mg::Target& target) {
    for (int64_t n : {5, 16, 33, 96}) {
      for (int64_t k : {31, 96, 1100, 2048}) {
        Problem all(300, n, k, 2), rows(300, n, k, 2);
        REQUIRE(all.trans_b);
        run(target, all.args());
        for (int64_t i = 0, next = 1; i < 300; i = next, next = 3 * next + 1 < 300 ? 3 * next + 1 : 300) {
          GemmArgs<bf16> some = rows.args();
          some.m = next - i, some.a += i * k;
          if (some.c) some.c += i * n;
          if (some.wide_c) some.wide_c += i * n;
          run(target, some);
        }
        INFO("target " << target.name << ", n " << n << ", k " << k);
        CHECK(all.same_bits(rows));
        CHECK(rows.guards_hold());
      }
    }
  });
}

TEST_CASE("bf16: rounding to nearest even, NaN stays NaN, on every target") {
  // Every upper half with lower halves at, below and above the tie.
  std::vector<float> wide;
  for (uint32_t high = 0; high < 0x10000u; high += 7)
    for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const uint32_t bits = high << 16 | low;
      float x;
      std::memcpy(&x, &bits, 4);
      wide.push_back(x);
    }
  const int64_t n = (int64_t)wide.size();
  for_each_target([&](const mg::Target& target) {
    std::vector<bf16> narrow((size_t)n);
    const mg::CastArgs<bf16> args{narrow.data(), wide.data(), n, 1, 0};
    const mg::Plan plan = mg::plan_cast(args);
    for (int64_t i = 0; i < plan.shares; ++i) target.table_bf16()->cast(args, mg::Share{i, plan.shares, nullptr});
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float x = wide[(size_t)i], y = mg::value_of(narrow[(size_t)i]);
      if (std::isnan(x)) {
        wrong += !std::isnan(y);
        continue;
      }
      // The two neighbours: the value with its lower half cleared, and the next one away from zero.
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      const uint32_t low = bits & 0xffffu, down = bits >> 16;
      const uint32_t right = low > 0x8000u || (low == 0x8000u && (down & 1u)) ? down + 1 : down;
      wrong += narrow[(size_t)i].bits != right;
    }
    CHECK(wrong == 0);
  });
}
