// Matrix products on every compiled target, against the plain loops in double.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/gemm_tiles.h"
#include "kernels/plan.h"
#include "ref/ref.h"
#include "targets/dispatch.h"

namespace {

using mg::Act;
using mg::GemmArgs;

constexpr float kGuard = -7.5e33f;
constexpr int64_t kGuardFloats = 48;

std::vector<float> uniform(size_t n, uint32_t seed) {
  std::vector<float> x(n);
  uint64_t state = seed * 2654435761u + 88172645463325252ull;
  for (float& v : x) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    v = (float)((double)(state >> 40) / (1 << 23) - 1.0);
  }
  return x;
}

struct Shape {
  int64_t m, n, k, batch = 1;
};

struct Options {
  bool trans_a = false, trans_b = false, accumulate = false, bias = false, slope = false, residual = false;
  bool residual_is_c = false, factor = false;
  Act act = Act::none;
  int64_t pad = 0;  // extra elements from row to row
};

// The operands of one product, and C and the slopes between guards.
struct Problem {
  Shape shape;
  Options options;
  int64_t lda, ldb, ldc, size_a, size_b, size_c;
  std::vector<float> a, b, bias, residual, factor, c, slope;

  Problem(Shape s, Options o) : shape(s), options(o) {
    const int64_t rows_a = o.trans_a ? s.k : s.m, rows_b = o.trans_b ? s.n : s.k;
    lda = (o.trans_a ? s.m : s.k) + o.pad, ldb = (o.trans_b ? s.k : s.n) + o.pad, ldc = s.n + o.pad;
    size_a = rows_a * lda, size_b = rows_b * ldb, size_c = s.m * ldc;
    // No room after the last element of A and B: the address sanitizer sees a read too far.
    a = uniform((size_t)(s.batch * size_a), 1), b = uniform((size_t)(s.batch * size_b), 2);
    if (!a.empty()) a.resize(a.size() - (size_t)o.pad);
    if (!b.empty()) b.resize(b.size() - (size_t)o.pad);
    a.shrink_to_fit(), b.shrink_to_fit();
    if (a.empty()) a.reserve(1);  // empty arrays have an address, as the pool's have
    if (b.empty()) b.reserve(1);
    bias = uniform((size_t)s.n, 3), residual = uniform((size_t)(s.batch * size_c), 4);
    factor = uniform((size_t)(s.batch * size_c), 6);
    c = guarded(uniform((size_t)(s.batch * size_c), 5));
    slope = guarded(std::vector<float>((size_t)(s.batch * size_c), 0.25f));
  }

  // Guards before, after, and between rows.
  std::vector<float> guarded(const std::vector<float>& x) const {
    std::vector<float> out(x.size() + 2 * kGuardFloats, kGuard);
    for (int64_t r = 0; r < shape.batch * shape.m; ++r) {
      for (int64_t j = 0; j < shape.n; ++j) out[(size_t)(kGuardFloats + r * ldc + j)] = x[(size_t)(r * ldc + j)];
    }
    return out;
  }
  bool guards_hold(const std::vector<float>& x) const {
    std::vector<bool> inside(x.size(), false);
    for (int64_t r = 0; r < shape.batch * shape.m; ++r) {
      for (int64_t j = 0; j < shape.n; ++j) inside[(size_t)(kGuardFloats + r * ldc + j)] = true;
    }
    for (size_t i = 0; i < x.size(); ++i) {
      if (!inside[i] && x[i] != kGuard) return false;
    }
    return true;
  }

  GemmArgs<float> args() {
    GemmArgs<float> g = {};
    g.a = a.data(), g.b = b.data(), g.c = c.data() + kGuardFloats;
    if (options.bias) g.bias = bias.data();
    if (options.slope) g.slope = slope.data() + kGuardFloats;
    if (options.factor) g.factor = factor.data();
    if (options.residual) g.residual = residual.data();
    if (options.residual_is_c) g.residual = g.c;
    g.m = shape.m, g.n = shape.n, g.k = shape.k, g.lda = lda, g.ldb = ldb, g.ldc = ldc;
    g.batch = shape.batch, g.stride_a = size_a, g.stride_b = size_b, g.stride_c = size_c;
    g.trans_a = options.trans_a, g.trans_b = options.trans_b, g.accumulate = options.accumulate;
    g.act = options.act;
    return g;
  }
};

enum class Order { forward, reverse };

void run(const mg::Target& target, const GemmArgs<float>& args, Order order = Order::forward) {
  const mg::Plan plan = mg::plan_gemm(args);
  const size_t floats = plan.scratch_bytes / sizeof(float);
  CHECK(plan.scratch_bytes == floats * sizeof(float));
  for (int64_t i = 0; i < plan.shares; ++i) {
    // Exactly the scratch asked for, full of NaN: a share may not rely on what it finds.
    std::vector<float> scratch(floats, std::nanf(""));
    const int64_t index = order == Order::forward ? i : plan.shares - 1 - i;
    target.table()->gemm(args, mg::Share{index, plan.shares, scratch.data()});
  }
}

std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// Compares with the reference and with |A||B|, which bounds the error: (K + 3) rounding errors of 2^-24 each relative
// to the sum of magnitudes, and what the activation adds (its slope is at most 1.13, its own error a few ulps; relu2 has
// slope 2 |x|). The slope's own slope is at most 1 (relu2: 2), its error a few ulps of 1 + |x|; relu's is 0 or 1.
void check(const mg::Target& target, const Shape& shape, const Options& options) {
  Problem p(shape, options);
  std::vector<double> a = widen(p.a), b = widen(p.b), c = widen(p.c), slope = widen(p.slope), bias = widen(p.bias);
  std::vector<double> residual = widen(p.residual), factor = widen(p.factor);
  const std::vector<double> c_before = c;
  const GemmArgs<float> args = p.args();
  GemmArgs<double> wide = {};
  wide.m = args.m, wide.n = args.n, wide.k = args.k, wide.lda = args.lda, wide.ldb = args.ldb, wide.ldc = args.ldc;
  wide.batch = args.batch, wide.stride_a = args.stride_a, wide.stride_b = args.stride_b, wide.stride_c = args.stride_c;
  wide.trans_a = args.trans_a, wide.trans_b = args.trans_b, wide.accumulate = args.accumulate, wide.act = args.act;
  wide.a = a.data(), wide.b = b.data(), wide.c = c.data() + kGuardFloats;
  if (args.bias) wide.bias = bias.data();
  if (args.slope) wide.slope = slope.data() + kGuardFloats;
  if (args.factor) wide.factor = factor.data();
  if (options.residual) wide.residual = residual.data();
  if (options.residual_is_c) wide.residual = wide.c;
  const mg::Plan plan = mg::plan_gemm(wide);
  for (int64_t i = 0; i < plan.shares; ++i) mg::ref::gemm(wide, mg::Share{i, plan.shares, nullptr});
  run(target, args);

  double worst = 0.0;
  for (int64_t q = 0; q < shape.batch; ++q) {
    for (int64_t i = 0; i < shape.m; ++i) {
      for (int64_t j = 0; j < shape.n; ++j) {
        double sum = 0.0, exact = options.bias ? bias[(size_t)j] : 0.0;
        for (int64_t k = 0; k < shape.k; ++k) {
          const double x = a[(size_t)(q * p.size_a + (options.trans_a ? k * p.lda + i : i * p.lda + k))];
          const double y = b[(size_t)(q * p.size_b + (options.trans_b ? j * p.ldb + k : k * p.ldb + j))];
          sum += std::fabs(x * y), exact += x * y;
        }
        const size_t at = (size_t)(kGuardFloats + q * p.size_c + i * p.ldc + j);
        if (options.accumulate) sum += std::fabs(c_before[at]);
        if (options.bias) sum += std::fabs(bias[(size_t)j]);
        const double unit = std::ldexp(1.0, -24), steps = (double)shape.k + 3.0;
        double bound = steps * unit * sum;
        if (options.slope && !(options.act == Act::relu && std::fabs(exact) <= bound)) {
          double off = options.act == Act::none || options.act == Act::relu ? 0.0 : bound + 16.0 * unit * (1.0 + std::fabs(exact));
          if (options.act == Act::relu2) off *= 2.0;
          worst = std::fmax(worst, std::fabs(p.slope[at] - slope[at]) / (off + 1e-37));
        }
        if (options.factor) bound = (bound + 2.0 * unit * sum) * std::fabs(factor[at - kGuardFloats]);
        if (options.act == Act::relu2) bound *= 2.0 * sum + 1.0;
        else if (options.act != Act::none) bound = 1.13 * bound + 16.0 * unit * sum;
        if (options.residual) bound += 2.0 * unit * std::fabs(residual[at - kGuardFloats]);
        if (options.residual_is_c) bound += 2.0 * unit * std::fabs(c_before[at]);
        bound += unit * std::fabs(c[at]);
        worst = std::fmax(worst, std::fabs(p.c[at] - c[at]) / (bound + 1e-37));
        if (std::isnan(p.c[at])) worst = HUGE_VAL;
      }
    }
  }
  INFO("target " << target.name << ", m " << shape.m << ", n " << shape.n << ", k " << shape.k << ", batch "
                 << shape.batch << ", trans " << options.trans_a << options.trans_b << ", act " << (int)options.act);
  CHECK(worst <= 1.0);
  CHECK(p.guards_hold(p.c));
  CHECK(p.guards_hold(p.slope));
}

template <class F> void for_each_target(F body) {
  for (const mg::Target& target : mg::targets()) {
    if (target.supported) body(target);
  }
}

template <class F> void for_each_transposition(F body) {
  for (int t = 0; t < 4; ++t) body((t & 1) != 0, (t & 2) != 0);
}

}  // namespace

TEST_CASE("gemm: shapes and transpositions") {
  const Shape shapes[] = {
      {0, 5, 3},      {5, 0, 3},     {3, 4, 0},     {1, 1, 1},        {1, 7, 2},       {2, 16, 5},     {3, 7, 65},
      {4, 33, 16},    {5, 32, 31},   {6, 16, 8},    {7, 17, 9},       {11, 31, 13},    {12, 32, 64},   {13, 33, 17},
      {16, 28, 16},   {16, 64, 16},  {17, 31, 127}, {24, 63, 40},     {25, 65, 41},    {37, 128, 100}, {127, 129, 131},
      {50, 200, 300}, {1, 300, 513}, {130, 257, 5}, {12, 15, 600},    {3, 4, 5, 7},    {1, 1, 3, 200}, {9, 20, 30, 3},
      {0, 4, 4, 2},   {4, 4, 4, 0},  {33, 47, 259}, {64, 300, 257, 2}, {24, 1100, 1056}};
  for_each_target([&](const mg::Target& target) {
    for (const Shape& shape : shapes) {
      for_each_transposition([&](bool trans_a, bool trans_b) {
        Options options;
        options.trans_a = trans_a, options.trans_b = trans_b;
        check(target, shape, options);
        options.accumulate = true, options.pad = 3;
        check(target, shape, options);
      });
    }
  });
}

TEST_CASE("gemm: groups of tiles of a transposed A, whose rows share cache sets") {
  // Tiles of 12 and 11 rows (6 and 5) in the last group, groups that are packed while others are in use, in part, or not;
  // more than one block of K and more than one strip.
  const Shape shapes[] = {{95, 64, 520}, {94, 256, 70}, {200, 288, 1030}, {251, 300, 513}, {47, 96, 33}, {61, 545, 530}};
  for_each_target([&](const mg::Target& target) {
    for (const Shape& shape : shapes) {
      for (bool trans_b : {false, true}) {
        Options options;
        options.trans_a = true, options.trans_b = trans_b, options.accumulate = trans_b, options.bias = !trans_b;
        options.pad = 512 - shape.m;
        check(target, shape, options);
      }
    }
  });
}

TEST_CASE("gemm: what lies behind L2 decides what is packed and how W is fetched, not the bits") {
  const bool of_machine = mg::gemm_far_caches;
  for_each_target([&](const mg::Target& target) {
    const auto compare = [&](const Shape& shape, const Options& options) {
      mg::gemm_far_caches = true;
      check(target, shape, options);
      Problem far(shape, options), near(shape, options);
      run(target, far.args());
      mg::gemm_far_caches = false;
      check(target, shape, options);
      run(target, near.args());
      CHECK(std::memcmp(far.c.data(), near.c.data(), far.c.size() * sizeof(float)) == 0);
    };
    Options options;
    options.trans_a = true, options.bias = true;
    // The last in blocks of 130 x 200: narrow vectors pack them either way.
    for (const Shape& shape : {Shape{300, 160, 530}, Shape{512, 96, 70}, Shape{97, 64, 1030}, Shape{520, 400, 530}}) {
      for (const int64_t row : {300, 512}) {  // floats: by itself, and with rows that share cache sets
        options.pad = row > shape.m ? row - shape.m : 0;
        compare(shape, options);
      }
    }
    options.trans_a = false, options.trans_b = true, options.pad = 0;
    for (int64_t m = 1; m <= 12; ++m)
      for (const int64_t k : {100, 801}) compare({m, 70, k}, options);  // short and long rows of W
  });
  mg::gemm_far_caches = of_machine;
}

TEST_CASE("gemm: every height and width of a tile") {
  for_each_target([&](const mg::Target& target) {
    for (int64_t m = 1; m <= 26; ++m) {
      for (int64_t n = 1; n <= 40; n += m % 2 ? 2 : 5) {
        for_each_transposition([&](bool trans_a, bool trans_b) {
          Options options;
          options.trans_a = trans_a, options.trans_b = trans_b, options.bias = true;
          check(target, {m, n, 19}, options);
        });
      }
    }
  });
}

TEST_CASE("gemm: bias, activation, residual, slope, factor") {
  const Shape shapes[] = {{3, 7, 65}, {1, 40, 24}, {17, 31, 0}, {17, 70, 31}, {14, 35, 600, 2}, {2, 300, 300}};
  for_each_target([&](const mg::Target& target) {
    for (const Shape& shape : shapes) {
      for (Act act : {Act::none, Act::gelu, Act::gelu_tanh, Act::relu, Act::relu2, Act::silu}) {
        for (int bits = 0; bits < 12; ++bits) {
          for_each_transposition([&](bool trans_a, bool trans_b) {
            Options options;
            options.trans_a = trans_a, options.trans_b = trans_b, options.act = act, options.pad = bits % 3;
            options.bias = bits & 1, options.slope = bits & 2;
            options.residual = (bits >> 2) == 1, options.residual_is_c = (bits >> 2) == 2;
            check(target, shape, options);
          });
        }
      }
      for_each_transposition([&](bool trans_a, bool trans_b) {
        Options options;
        options.trans_a = trans_a, options.trans_b = trans_b, options.factor = true;
        check(target, shape, options);
      });
    }
  });
}

TEST_CASE("gemm: a row alone has the bits of a row among many") {
  for_each_target([&](const mg::Target& target) {
    for (int64_t k : {31, 64, 512, 600, 1024}) {  // 512, 1024: rows share cache sets, and are taken up whole or copied
      for_each_transposition([&](bool trans_a, bool trans_b) {
        for (bool accumulate : {false, true}) {
          Options options;
          options.trans_a = trans_a, options.trans_b = trans_b, options.accumulate = accumulate;
          options.bias = !accumulate;
          options.act = accumulate ? Act::none : Act::gelu;
          const int64_t n = k % 512 ? 77 : 160;  // enough for copies of the rows of A
          Problem all({33, n, k}, options), rows({33, n, k}, options);
          run(target, all.args());
          for (int64_t i = 0, count; i < 33; i += count) {  // 1, 2, 4, 8, 3, 6 and 9 rows
            count = i % 13 + 1 < 33 - i ? i % 13 + 1 : 33 - i;
            GemmArgs<float> some = rows.args();
            some.m = count;
            some.a += trans_a ? i : i * rows.lda;
            some.c += i * rows.ldc;
            run(target, some);
          }
          CHECK(std::memcmp(all.c.data(), rows.c.data(), all.c.size() * sizeof(float)) == 0);
        }
      });
    }
  });
}

TEST_CASE("gemm: few rows times a B larger than the caches") {
  // 2048 x 2048 floats are where few rows change to reading B along its rows; the bits may not.
  Options options;
  options.bias = options.residual = true;
  for_each_target([&](const mg::Target& target) {
    Problem all({9, 2048, 2048}, options), rows({9, 2048, 2048}, options);
    run(target, all.args());
    for (int64_t i = 0, count = 4; i < 9; i += count, count = i == 4 ? 3 : 2) {
      GemmArgs<float> some = rows.args();
      some.m = count, some.a += i * rows.lda, some.c += i * rows.ldc, some.residual += i * rows.ldc;
      run(target, some);
    }
    CHECK(std::memcmp(all.c.data(), rows.c.data(), all.c.size() * sizeof(float)) == 0);
  });
}

TEST_CASE("gemm: bits do not depend on how columns or shares are cut") {
  for_each_target([&](const mg::Target& target) {
    for_each_transposition([&](bool trans_a, bool trans_b) {
      Options options;
      options.trans_a = trans_a, options.trans_b = trans_b, options.bias = true, options.residual_is_c = true;
      const Shape shape = {150, 330, 300};
      Problem forward(shape, options), reverse(shape, options), split(shape, options);
      CHECK(mg::plan_gemm(forward.args()).shares > 1);
      run(target, forward.args());
      run(target, reverse.args(), Order::reverse);
      CHECK(std::memcmp(forward.c.data(), reverse.c.data(), forward.c.size() * sizeof(float)) == 0);
      for (int64_t j = 0, cols; j < shape.n; j += cols) {
        cols = j % 60 + 1 < shape.n - j ? j % 60 + 1 : shape.n - j;
        GemmArgs<float> some = split.args();
        some.n = cols;
        some.b += trans_b ? j * split.ldb : j;
        some.bias += j, some.c += j, some.residual += j;
        run(target, some);
      }
      CHECK(std::memcmp(forward.c.data(), split.c.data(), forward.c.size() * sizeof(float)) == 0);
    });
  });
}

TEST_CASE("gemm: NaN and infinity stay in their row and column") {
  for_each_target([&](const mg::Target& target) {
    for_each_transposition([&](bool trans_a, bool trans_b) {
      for (int64_t m : {2, 20}) {
        Options options;
        options.trans_a = trans_a, options.trans_b = trans_b;
        Problem p({m, 21, 19}, options);
        p.a[(size_t)(trans_a ? 3 * p.lda + 1 : 1 * p.lda + 3)] = HUGE_VALF;
        p.b[(size_t)(trans_b ? 20 * p.ldb + 18 : 18 * p.ldb + 20)] = std::nanf("");
        run(target, p.args());
        bool right = true;
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < 21; ++j) {
            right = right && std::isfinite(p.c[(size_t)(kGuardFloats + i * p.ldc + j)]) == (i != 1 && j != 20);
          }
        }
        CHECK(right);
      }
    });
  });
}

TEST_CASE("gemm: shares cover C once, evenly") {
  for (bool packs_a : {false, true}) {
    for (int64_t m : {1, 12, 13, 64, 127, 512, 2048}) {
      for (int64_t n : {1, 31, 64, 128, 131, 1536, 50257}) {
        const mg::GemmGrid grid = mg::gemm_grid(m, n, 512, 1, packs_a);
        int64_t area = 0, most = 0, least = m * n;
        for (int64_t i = 0; i < mg::gemm_shares(grid); ++i) {
          const mg::GemmBlock block = mg::gemm_block(grid, i, m, n, 1);
          const int64_t rows = block.row_end - block.row_begin, cols = block.col_end - block.col_begin;
          CHECK((rows > 0 && rows <= grid.rows && cols > 0 && cols <= grid.cols));
          area += rows * cols, most = rows * cols > most ? rows * cols : most, least = rows * cols < least ? rows * cols : least;
        }
        CHECK(area == m * n);
        // Blocks differ by one step each way, and the last step may be short.
        CHECK(most - least <= 2 * (grid.rows * mg::kGemmColStep + grid.cols * grid.row_step));
      }
    }
  }
}

TEST_CASE("gemm: the plan") {
  GemmArgs<float> args = {};
  args.batch = 1;
  const auto shares = [&](int64_t m, int64_t n, int64_t k, int64_t batch) {
    args.m = m, args.n = n, args.k = k, args.batch = batch;
    return mg::plan_gemm(args).shares;
  };
  CHECK(shares(0, 5, 5, 1) == 0);
  CHECK(shares(16, 64, 16, 1) == 1);
  CHECK(shares(1, 3072, 768, 1) >= 4);
  CHECK(shares(768, 512, 128, 1) >= 4);
  CHECK(shares(4096, 4096, 4096, 1) <= 64);
  CHECK(shares(16, 16, 16, 1000) <= 64);
  CHECK(shares(16, 16, 16, 1000) > 1);
  CHECK(shares(1 << 20, 1 << 20, 1 << 20, 1) <= 64);
  CHECK(shares(64, 64, 1000, 1) == 2);
}
