// Attention on every compiled target against the plain loops in double, and those against central differences.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "attention_problem.h"
#include "targets/dispatch.h"

namespace {

using namespace attention_test;

double largest_norm(const std::vector<double>& x, int64_t width, int64_t heads, int64_t stride) {
  double largest = 0;
  for (size_t row = 0; row + static_cast<size_t>(heads * width) <= x.size(); row += static_cast<size_t>(stride))
    for (int64_t h = 0; h < heads; ++h) {
      double sum = 0;
      for (int64_t i = 0; i < width; ++i) {
        const double value = x[row + static_cast<size_t>(h * width + i)];
        sum += value * value;
      }
      if (sum > largest) largest = sum;  // false for the NaN of keys that belong to nobody
    }
  return std::sqrt(largest);
}

// How far float may be from the reference: worst-case rounding of the sums (Higham 2002, section 3.1), carried through
// the formulas with the norms of this problem. eps is twice the unit roundoff, for targets whose fma rounds twice.
struct Bounds {
  double o, lse, dq, dk, dv;
};

Bounds bounds_of(Problem<double>& p) {
  const double eps = std::ldexp(1.0, -23);
  const Config& c = p.config;
  const mg::AttentionArgs<double>& f = p.args.fwd;
  double keys = 0, rows = 0, reach = 0;
  for (const Sequence& s : c.seqs) {
    keys = std::max(keys, static_cast<double>(s.keys));
    rows = std::max(rows, static_cast<double>(s.rows * (c.heads / c.kv_heads)));
    reach = std::max(reach, static_cast<double>(s.keys + s.rows));
  }
  const double q = largest_norm(p.q, c.k_dim, c.heads, f.q_stride), k = largest_norm(p.k, c.k_dim, c.kv_heads, f.k_stride);
  const double v = largest_norm(p.v, c.v_dim, c.kv_heads, f.v_stride), d_o = largest_norm(p.d_o, c.v_dim, c.heads, f.o_stride);
  const double product = f.scale * q * k, bias = c.alibi ? 0.5 * reach : 0;
  // A score: the chain over k_dim, then scale, cap and bias; the exponent is the difference of two such numbers.
  const double score = eps * (static_cast<double>(c.k_dim) * product + 6 * (product + bias) + 4 * c.soft_cap);
  const double prob = 2 * score + eps * (keys + 2 * (product + bias) + 16);  // relative
  const double o = v * (2 * prob + eps * (keys + 8));
  // Columns of P summed: the dv that a gradient of ones gives.
  Problem<double> ones(c);
  ones.args.accumulate_dv = 0;
  std::fill(ones.d_o.begin(), ones.d_o.end(), 1.0);
  reference_forward(ones);
  reference_backward(ones);
  double column = 0;
  for (int64_t r = 0; r < p.k_rows; ++r)
    for (int64_t g = 0; g < c.kv_heads && p.owner(r) >= 0; ++g)
      column = std::max(column, ones.dv[static_cast<size_t>(r * f.v_stride + g * c.v_dim)]);
  // |dP| and |delta| <= dp; a row of |dS| sums to at most 2 dp scale.
  const double dp = d_o * v, bend = c.soft_cap > 0 ? 2 * (score / c.soft_cap + 8 * eps) : 0;
  const double dp_error = eps * static_cast<double>(c.v_dim + 2) * dp * 2 + d_o * std::sqrt(static_cast<double>(c.v_dim)) * o;
  const double ds = f.scale * (2 * dp * (prob + bend + 8 * eps) + dp_error), ds_sum = f.scale * 2 * dp;
  const double one = c.accumulate ? eps : 0;  // what is there is at most 1, and adding to it rounds once
  return {o, score + eps * (keys + 8 + product + bias), k * (ds + eps * (keys + 8) * ds_sum) + one,
          q * column * (ds + eps * (rows + 8) * ds_sum) + one, d_o * column * (prob + eps * (rows + 8)) + one};
}

// The largest error in units of the bound; anything that is not a number counts as infinite.
double worst(const std::vector<float>& got, const std::vector<double>& want, double bound) {
  double largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (static_cast<double>(got[i]) == want[i]) continue;  // also infinities
    const double error = std::abs(static_cast<double>(got[i]) - want[i]) / bound;
    largest = error <= std::numeric_limits<double>::max() ? std::max(largest, error) : INFINITY;
  }
  return largest;
}

std::string describe(const Config& c) {
  std::string text = "heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " dims " + std::to_string(c.k_dim) +
                     "/" + std::to_string(c.v_dim) + (c.causal ? " causal" : " full") + " window " + std::to_string(c.window) +
                     (c.alibi ? " alibi" : "") + (c.soft_cap > 0 ? " cap" : "") + " seqs";
  for (const Sequence& s : c.seqs) text += " " + std::to_string(s.rows) + ":" + std::to_string(s.keys);
  return text;
}

void check_case(const Config& config) {
  Problem<double> want(config);
  reference_forward(want);
  reference_backward(want);
  const Bounds bounds = bounds_of(want);
  for (const mg::Target& target : mg::targets()) {
    if (!target.supported) continue;
    INFO(std::string(target.name) << ": " << describe(config));
    Problem<float> got(config);
    CHECK(forward(*target.table(), got));
    CHECK(worst(got.o, want.o, bounds.o) <= 1);
    CHECK(worst(got.lse, want.lse, bounds.lse) <= 1);
    CHECK(backward(*target.table(), got));
    // Elements that belong to nobody (padding, gaps) are compared too: both sides must have left them alone.
    CHECK(worst(got.dq, want.dq, bounds.dq) <= 1);
    CHECK(worst(got.dk, want.dk, bounds.dk) <= 1);
    CHECK(worst(got.dv, want.dv, bounds.dv) <= 1);
  }
}

}  // namespace

TEST_CASE("attention agrees with the reference: lengths and widths") {
  const int64_t lengths[] = {1, 2, 31, 32, 33, 64, 65, 130}, widths[] = {1, 4, 32, 33, 64};
  for (int64_t length : lengths)
    for (int64_t width : widths)
      for (bool causal : {true, false}) {
        Config c;
        c.seqs = {{length, length}};
        c.k_dim = width, c.v_dim = width, c.causal = causal, c.pad = width % 3;
        check_case(c);
      }
}

TEST_CASE("attention agrees with the reference: masks, biases, caps and shared heads") {
  struct Variant {
    int64_t window, heads, kv_heads, k_dim, v_dim;
    bool alibi;
    double soft_cap;
  };
  const Variant variants[] = {{1, 2, 2, 8, 8, false, 0},   {5, 2, 2, 33, 20, false, 0}, {0, 1, 1, 4, 4, false, 0},
                              {-1, 2, 2, 16, 48, true, 0}, {-1, 2, 2, 48, 16, false, 2}, {5, 4, 2, 12, 70, true, 3},
                              {-1, 6, 2, 64, 64, false, 0}, {-1, 4, 1, 5, 3, true, 0.5}, {70, 4, 1, 80, 96, false, 0},
                              {int64_t{1} << 62, 2, 1, 4, 4, false, 0}};
  for (const Variant& v : variants)
    for (bool causal : {true, false})
      for (bool accumulate : {true, false}) {
        Config c;
        c.window = v.window, c.heads = v.heads, c.kv_heads = v.kv_heads, c.k_dim = v.k_dim, c.v_dim = v.v_dim;
        c.alibi = v.alibi, c.soft_cap = v.soft_cap, c.causal = causal, c.accumulate = accumulate, c.pad = 3;
        c.seqs = {{150, 150}};
        check_case(c);
        c.seqs = {{3, 3}, {0, 0}, {40, 40}, {1, 1}, {0, 7}, {67, 67}, {0, 0}};  // packed, some empty
        check_case(c);
        c.seqs = {{1, 200}, {1, 1}, {7, 130}, {1, 64}, {1, 65}, {2, 0}, {33, 90}};  // with a cache
        c.backwards = true;
        check_case(c);
        c.seqs = {{70, 3}};  // more rows than keys: the first see nothing
        check_case(c);
      }
}

TEST_CASE("attention agrees with the reference: one row against many keys, heads shared by any number") {
  for (int64_t each : {1, 3, 8, 13})
    for (int64_t window : {-1, 700})
      for (int variant = 0; variant < 3; ++variant) {
        Config c;
        c.seqs = {{1, 1300}, {0, 5}, {1, 40}, {1, 600}};
        c.kv_heads = 2, c.heads = 2 * each, c.window = window, c.pad = variant;
        c.k_dim = variant == 0 ? 64 : 37, c.v_dim = variant == 0 ? 64 : 50;
        c.alibi = variant == 2, c.soft_cap = variant == 2 ? 3 : 0;
        check_case(c);
      }
}

TEST_CASE("a window of any size and position gives what the mask says") {
  for (int64_t window = 0; window <= 9; ++window)
    for (int64_t length : {1, 6, 40, 100})
      for (bool causal : {true, false}) {
        Config c;
        c.seqs = {{length, length + 5}, {5, 5}};
        c.window = window, c.k_dim = 4, c.v_dim = 4, c.causal = causal;
        check_case(c);
      }
}

TEST_CASE("the reference of attention backward agrees with central differences") {
  for (bool causal : {true, false})
    for (int variant = 0; variant < 3; ++variant) {
      Config c;
      c.seqs = {{5, 5}, {0, 2}, {2, 6}, {3, 1}};
      c.heads = 4, c.kv_heads = 2, c.k_dim = 3, c.v_dim = 5, c.causal = causal, c.pad = 1;
      if (variant == 1) c.alibi = true, c.soft_cap = 1.5;
      if (variant == 2) c.window = 3;
      Problem<double> p(c);
      reference_forward(p);
      reference_backward(p);
      const std::vector<double> *gradients[] = {&p.dq, &p.dk, &p.dv}, untouched[] = {p.dq, p.dk, p.dv};
      std::vector<double>* inputs[] = {&p.q, &p.k, &p.v};
      const int64_t strides[] = {p.args.fwd.q_stride, p.args.fwd.k_stride, p.args.fwd.v_stride};
      const auto loss = [&] {
        reference_forward(p);
        double sum = 0;
        for (size_t i = 0; i < p.o.size(); ++i)
          if (static_cast<int64_t>(i) % p.args.fwd.o_stride < c.heads * c.v_dim) sum += p.o[i] * p.d_o[i];
        return sum;
      };
      // Truncation is step^2 times a third derivative (of order 10 here), rounding 2^-53 |loss| / step.
      const double step = std::ldexp(1.0, -17), tolerance = 100 * step * step;
      for (int which = 0; which < 3; ++which)
        for (size_t i = 0; i < inputs[which]->size(); ++i) {
          const int64_t row = static_cast<int64_t>(i) / strides[which];
          if (static_cast<int64_t>(i) % strides[which] == strides[which] - 1) continue;  // padding
          if (which > 0 && p.owner(row) < 0) {
            CHECK((*gradients[which])[i] == untouched[which][i]);
            continue;
          }
          double& x = (*inputs[which])[i];
          const double at = x;
          x = at + step;
          const double up = loss();
          x = at - step;
          const double down = loss();
          x = at;
          CHECK(std::abs((up - down) / (2 * step) - (*gradients[which])[i]) <= tolerance);
        }
    }
}

// Of two keys with scores 0 and -x the second weighs e^-x / (1 + e^-x). With t = x log2 e, the kernel's t is off by one rounding
// and by that of its log2 e (a quarter of one), its 2^-t by 1.9e-7 more (simd/math.h); sum, reciprocal and product are one rounding
// each. Below the smallest normal the weight is 0.
TEST_CASE("attention: what a score weighs is as accurate as the exponential allows") {
  for (const mg::Target& target : mg::targets()) {
    if (!target.supported) continue;
    for (int64_t width : {1, 8, 16, 64})
      for (bool one_query : {false, true}) {
        constexpr int64_t kRows = 4000;
        Config c;
        c.seqs.assign(one_query ? kRows : 1, Sequence{one_query ? 1 : kRows, 2});
        c.heads = c.kv_heads = 1, c.k_dim = c.v_dim = width, c.causal = false;
        Problem<float> p(c);
        p.args.fwd.scale = 1;
        std::fill(p.q.begin(), p.q.end(), 0.0f);
        for (int64_t row = 0; row < kRows; ++row)
          p.q[static_cast<size_t>(row * width)] = static_cast<float>(row < 1000 ? row / 1000.0 : (row - 1000) / 33.0);
        for (size_t s = 0; s < p.k_start.size(); ++s)
          for (int64_t i = 0; i < 2 * width; ++i) {
            const size_t at = static_cast<size_t>(p.k_start[s] * width + i);
            p.k[at] = i == width ? -1.0f : 0.0f;
            p.v[at] = i < width ? 0.0f : 1.0f;
          }
        REQUIRE(forward(*target.table(), p));
        double worst = 0;  // of what is allowed
        for (int64_t row = 0; row < kRows; ++row) {
          const double x = static_cast<double>(p.q[static_cast<size_t>(row * width)]), t = x / std::log(2.0);
          const double weight = std::exp(-x) / (1 + std::exp(-x)), least = std::ldexp(1.0, -126);
          const double allowed = (1.9e-7 + std::log(2.0) * std::ldexp(t, -24) * 1.25 + 3 * std::ldexp(1.0, -24)) * weight;
          for (int64_t i = 0; i < width; ++i) {
            const double got = static_cast<double>(p.o[static_cast<size_t>(row * width + i)]);
            if (std::fabs(t - 126) < 1e-3) continue;
            if (weight < least) CHECK(got == 0);
            else worst = std::max(worst, std::fabs(got - weight) / allowed);
          }
        }
        INFO(std::string(target.name) << ", " << width << " wide, " << (one_query ? "a query each" : "together"));
        CHECK(worst < 1);
      }
  }
}

// Nobody holds the scores of all pairs: what a share needs, and what is kept between kernels, grows with T and not with T^2.
TEST_CASE_TEMPLATE("attention's memory is linear in the number of tokens", T, float, mg::bf16) {
  struct Heads {
    int64_t heads, kv_heads, width;
  };
  for (const Heads& h : {Heads{1, 1, 16}, {8, 8, 64}, {16, 4, 64}, {32, 1, 128}})
    for (int64_t seqs : {1, 3})
      for (int64_t tokens : {int64_t{2048}, int64_t{2100}, mg::kLongQueries, mg::kLongQueries + 52}) {
        const auto plans = [&](int64_t count, bool decode) {
          mg::AttentionBackwardArgs<T> args = {};
          mg::AttentionArgs<T>& f = args.fwd;
          f.q_rows = decode ? seqs : count * seqs, f.k_rows = count * seqs, f.seqs = seqs;
          f.heads = h.heads, f.kv_heads = h.kv_heads, f.k_dim = f.v_dim = h.width;
          const int64_t parts = mg::attention_parts(f) * h.heads * mg::part_floats(h.width) * int64_t{sizeof(float)};
          struct Plans {
            mg::Plan forward, backward;
            int64_t parts;
          };
          return Plans{mg::plan_attention(f), mg::plan_attention_backward(args), parts};
        };
        for (bool decode : {false, true}) {
          const auto once = plans(tokens, decode);
          INFO("heads " << h.heads << " / " << h.kv_heads << " of " << h.width << ", " << seqs << " sequences of " << tokens);
          CHECK(once.forward.scratch_bytes > 0);
          CHECK(plans(tokens / 4, decode).forward.scratch_bytes <= once.forward.scratch_bytes);
          for (int64_t times : {2, 4}) {
            const auto more = plans(times * tokens, decode);
            CHECK(more.forward.scratch_bytes <= static_cast<size_t>(times) * once.forward.scratch_bytes);
            // Of a block of rows, however many keys there are.
            if (tokens >= mg::kLongQueries) CHECK(more.forward.scratch_bytes == once.forward.scratch_bytes);
            CHECK(more.backward.scratch_bytes <= static_cast<size_t>(times) * once.backward.scratch_bytes);
            CHECK(more.parts <= times * once.parts);
            // Shares are what their work is worth, rounded down.
            CHECK(more.forward.shares < times * (once.forward.shares + 1));
            CHECK(more.backward.shares < times * (once.backward.shares + 1));
          }
        }
      }
}
