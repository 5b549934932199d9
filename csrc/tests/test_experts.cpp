// Experts: products over groups of rows with exactly the scratch that their plans ask for, on every target, beside one plain
// product a group; routing and rows beside the reference.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernel_case.h"
#include "kernels/grouped_tiles.h"

namespace {

using namespace mg;
using namespace mg::test;

template <class T> T of(float x) {
  T made;
  assign(made, x);
  return made;
}

template <class T> struct Problem {
  std::vector<T> x, weight, bias, dy;
  std::vector<int32_t> offsets;
  int64_t rows, n, k, experts;

  Problem(std::vector<int64_t> counts, int64_t n, int64_t k) : n(n), k(k), experts((int64_t)counts.size()) {
    offsets.push_back(0);
    for (int64_t count : counts) offsets.push_back(offsets.back() + (int32_t)count);
    rows = offsets.back();
    Random random(7);
    const auto fill = [&](std::vector<T>& to, int64_t size) {
      to.resize((size_t)size);
      for (T& each : to) each = of<T>((float)random.uniform(-1.0, 1.0));
    };
    fill(x, rows * k), fill(weight, experts * n * k), fill(bias, experts * n), fill(dy, rows * n);
  }
};

template <class T> const KernelTable<T>* table_of(const Target& target) {
  if constexpr (std::is_same_v<T, float>) return target.table();
  else return target.table_bf16();
}

// Runs every share with its own scratch, full of NaN, between guards.
template <class A> void run_all(void (*kernel)(const A&, const Share&), const A& args, Plan plan, bool backwards) {
  for (int64_t i = 0; i < plan.shares; ++i) {
    std::vector<float> scratch(plan.scratch_bytes / 4 + 32, std::nanf(""));
    const float guard = -3.5e33f;
    for (int j = 0; j < 16; ++j) scratch[(size_t)j] = scratch[scratch.size() - 1 - (size_t)j] = guard;
    kernel(args, Share{backwards ? plan.shares - 1 - i : i, plan.shares, scratch.data() + 16});
    for (int j = 0; j < 16; ++j) {
      CHECK(scratch[(size_t)j] == guard);
      CHECK(scratch[scratch.size() - 1 - (size_t)j] == guard);
    }
  }
}

template <class T> std::vector<T> plain(const Target& target, GemmArgs<T> args, std::vector<T> c) {
  args.c = c.data(), args.batch = 1;
  run_all(table_of<T>(target)->gemm, args, plan_gemm(args), false);
  return c;
}

template <class T> bool same(const T* a, const std::vector<T>& b) {
  return b.empty() || std::memcmp(a, b.data(), b.size() * sizeof(T)) == 0;
}
template <class T> std::vector<T> halves(int64_t n) { return std::vector<T>((size_t)n, of<T>(0.5f)); }

// Each group's rows are those of a product of their own, bit for bit, in whichever order shares run.
template <class T> void check(const Target& target, std::vector<int64_t> counts, int64_t n, int64_t k) {
  const Problem<T> p(counts, n, k);
  for (const bool accumulate : {false, true}) {
    for (const bool backwards : {false, true}) {
      std::vector<T> y = halves<T>(p.rows * n), dx = halves<T>(p.rows * k);
      std::vector<T> dw = halves<T>(p.experts * n * k), db = halves<T>(p.experts * n);
      GroupedArgs<T> forward = {};
      forward.a = p.x.data(), forward.b = p.weight.data(), forward.c = y.data(), forward.offsets = p.offsets.data();
      forward.bias = accumulate ? nullptr : p.bias.data();
      forward.rows = p.rows, forward.n = n, forward.k = k, forward.experts = p.experts;
      forward.trans_b = 1, forward.accumulate = accumulate;
      run_all(table_of<T>(target)->grouped_linear, forward, plan_grouped_linear(forward), backwards);
      GroupedArgs<T> back = forward;
      back.a = p.dy.data(), back.c = dx.data(), back.bias = nullptr, back.n = k, back.k = n, back.trans_b = 0;
      run_all(table_of<T>(target)->grouped_linear, back, plan_grouped_linear(back), backwards);
      GroupedWeightArgs<T> weight = {};
      weight.a = p.dy.data(), weight.b = p.x.data(), weight.c = dw.data(), weight.offsets = p.offsets.data();
      weight.rows = p.rows, weight.m = n, weight.n = k, weight.experts = p.experts, weight.accumulate = accumulate;
      run_all(table_of<T>(target)->grouped_weight, weight, plan_grouped_weight(weight), backwards);
      GroupedWeightArgs<T> bias = weight;
      bias.b = nullptr, bias.c = db.data(), bias.n = 1;
      run_all(table_of<T>(target)->grouped_sum, bias, plan_grouped_sum(bias), backwards);
      for (int64_t e = 0; e < p.experts; ++e) {
        const int64_t first = p.offsets[(size_t)e], count = p.offsets[(size_t)e + 1] - first;
        GemmArgs<T> one = {};
        one.a = p.x.data() + first * k, one.b = p.weight.data() + e * n * k;
        one.bias = forward.bias ? forward.bias + e * n : nullptr;
        one.m = count, one.n = n, one.k = k, one.lda = one.ldb = k, one.ldc = n, one.trans_b = 1;
        one.accumulate = accumulate;
        CHECK(same(y.data() + first * n, plain(target, one, halves<T>(count * n))));
        one.a = p.dy.data() + first * n, one.bias = nullptr;
        one.n = k, one.k = n, one.lda = n, one.ldb = one.ldc = k, one.trans_b = 0;
        CHECK(same(dx.data() + first * k, plain(target, one, halves<T>(count * k))));
        one.b = p.x.data() + first * k, one.m = n, one.k = count, one.lda = n, one.trans_a = 1;
        CHECK(same(dw.data() + e * n * k, plain(target, one, halves<T>(n * k))));
        for (int64_t i = 0; i < n; ++i) {
          double sum = accumulate ? 0.5 : 0.0, size = 0.5;
          for (int64_t r = first; r < first + count; ++r) {
            const double each = value_of(p.dy[(size_t)(r * n + i)]);
            sum += each, size += std::fabs(each);
          }
          const double unit = sizeof(T) == 2 ? 1.0 / 256 : kU, got = value_of(db[(size_t)(e * n + i)]);
          CHECK(std::fabs(got - sum) <= (double)(count + 2) * kU * size + unit * std::fabs(sum));
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("groups of rows have the bits of products of their own") {
  const std::vector<std::vector<int64_t>> splits = {{5, 0, 3},  {0, 0},        {1, 1, 1, 1, 1},
                                                    {0, 70, 0}, {300, 1, 259}, {13, 40, 0, 2}};
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    INFO(std::string(target.name));
    for (const auto& counts : splits) {
      for (const auto& shape : {std::pair<int64_t, int64_t>{5, 3}, {65, 33}, {290, 17}, {33, 600}, {0, 4}, {4, 0}}) {
        check<float>(target, counts, shape.first, shape.second);
        check<bf16>(target, counts, shape.first, shape.second);
      }
    }
  }
}

TEST_CASE("there are never more units than the grid has") {
  Random random(3);
  for (int trial = 0; trial < 20000; ++trial) {
    const int64_t experts = 1 + (int64_t)(random.next() % 40), rows = (int64_t)(random.next() % 3000);
    const GroupedGrid grid = grouped_grid(rows, 1 + (int64_t)(random.next() % 900), 1 + (int64_t)(random.next() % 900), experts);
    std::vector<int64_t> counts((size_t)experts, 0);
    for (int64_t left = rows; left > 0;) {
      const int64_t some = 1 + (int64_t)(random.next() % (uint64_t)left);
      counts[random.next() % (uint64_t)experts] += some;
      left -= some;
    }
    int64_t blocks = 0;
    for (int64_t count : counts) blocks += (count + kGroupRows - 1) / kGroupRows;
    CHECK(blocks <= grid.blocks);
    CHECK((rows == 0 || grid.shares >= 1));
    CHECK(grid.shares <= grid.blocks * grid.col_blocks);
  }
}

TEST_CASE("routing and rows") {
  for (const int64_t experts : {1, 2, 7, 64}) {
    for (const int64_t tokens : {0, 1, 5, 700}) {
      const int64_t chosen = experts < 3 ? experts : 3, width = 37, rows = tokens * chosen;
      Buffer logits = Buffer::input(tokens * experts, 1), dy = Buffer::input(rows, 2), x = Buffer::input(tokens * width, 3);
      std::vector<int32_t> ids((size_t)rows), order((size_t)rows), place((size_t)rows), offsets((size_t)experts + 1);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t j = 0; j < chosen; ++j) ids[(size_t)(t * chosen + j)] = (int32_t)((t + j) % experts);
      for (const Score score : {Score::softmax, Score::sigmoid}) {
        for (const int32_t renormalize : {0, 1}) {
          Buffer y = Buffer::output(rows), dx = Buffer::output(tokens * experts);
          const auto make = [&](auto t) {
            using T = decltype(t);
            RouteWeightsArgs<T> args{};
            args.logits = logits.as<T>(), args.ids = ids.data(), args.dy = dy.as<T>(), args.y = y.as<T>(), args.dx = dx.as<T>();
            args.tokens = tokens, args.experts = experts, args.chosen = chosen, args.scale = 1.5, args.eps = 1e-6;
            args.score = score, args.renormalize = renormalize, args.accumulate = 1;
            return args;
          };
          CHECK_KERNEL(route_weights, make, (Tolerance{2 * kU, 0.0}), &y);
          CHECK_KERNEL(route_weights_backward, make, (Tolerance{4 * kU, 8 * kU}), &dx);
        }
      }
      Buffer load = Buffer::output(experts), y = Buffer::output(rows * width), back = Buffer::output(tokens * width);
      const auto sort = [&](auto t) {
        using T = decltype(t);
        return SortExpertsArgs<T>{ids.data(), order.data(), place.data(), offsets.data(), load.as<T>(), rows, experts};
      };
      CHECK_KERNEL(sort_experts, sort, (Tolerance{0.0, 0.0}), &load);
      for (int64_t i = 0; i < rows; ++i) {
        CHECK(order[(size_t)place[(size_t)i]] == i);
        CHECK(place[(size_t)i] >= offsets[(size_t)ids[(size_t)i]]);
        CHECK(place[(size_t)i] < offsets[(size_t)ids[(size_t)i] + 1]);
      }
      const auto gather = [&](auto t) {
        using T = decltype(t);
        return GatherArgs<T>{x.as<T>(), order.data(), dy.as<T>(), y.as<T>(), rows, chosen, width, 1};
      };
      CHECK_KERNEL(gather_rows, gather, (Tolerance{2 * kU, 8 * kU}), &y);
      Buffer out = Buffer::input(rows * width, 5), dweights = Buffer::output(rows);
      const auto combine = [&](auto t) {
        using T = decltype(t);
        CombineArgs<T> args{};
        args.x = out.as<T>(), args.place = place.data(), args.weights = dy.as<T>(), args.residual = x.as<T>();
        args.dy = x.as<T>(), args.y = back.as<T>(), args.dweights = dweights.as<T>();
        args.tokens = tokens, args.chosen = chosen, args.width = width, args.accumulate = 1;
        return args;
      };
      CHECK_KERNEL(combine_rows, combine, (Tolerance{kU, 64 * kU}), &back);
      CHECK_KERNEL(combine_dot, combine, (Tolerance{kU, 4.0 * (double)(width + 2) * kU * 4.0}), &dweights);
    }
  }
}
