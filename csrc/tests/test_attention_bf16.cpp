// Attention in bfloat16, and over keys and values of another type, on every compiled target against the plain loops in double
// on the same numbers. Every array lies between guards.
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "attention_problem.h"
#include "targets/dispatch.h"

namespace {

using namespace attention_test;
using mg::bf16;
using mg::KvType;
using mg::test::Guarded;

constexpr KvType kTypes[] = {KvType::same, KvType::f32, KvType::bf16, KvType::int8};

template <class T> const mg::KernelTable<T>& table_of(const mg::Target& target) {
  if constexpr (mg::kNarrow<T>) return *target.table_bf16();
  else return *target.table();
}

// The reference on numbers that bf16 holds; int8 keys and values are codes times a scale of the token and head.
struct Truth {
  Problem<double> p;
  KvType kv;
  std::vector<double> o, dq, dk, dv;  // what was there before
  std::vector<float> k_scales, v_scales;

  explicit Truth(const Config& c, KvType kv = KvType::same) : p(c), kv(kv) {
    for (std::vector<double>* numbers : {&p.q, &p.k, &p.v, &p.d_o, &p.o, &p.dq, &p.dk, &p.dv})
      for (double& x : *numbers) {
        bf16 rounded;
        mg::assign(rounded, static_cast<float>(x));
        x = mg::value_of(rounded);
      }
    if (kv == KvType::int8) {
      k_scales = make_codes(p.k, c.k_dim, p.args.fwd.k_stride, 8);
      v_scales = make_codes(p.v, c.v_dim, p.args.fwd.v_stride, 9);
    }
    o = p.o, dq = p.dq, dk = p.dk, dv = p.dv;
    reference_forward(p);
    if (kv == KvType::same) reference_backward(p);
  }
  std::vector<float> make_codes(std::vector<double>& x, int64_t dim, int64_t stride, uint64_t seed) const {
    const int64_t step = p.k_rows + mg::kKeyChunk;
    std::vector<float> scales = uniform(p.config.kv_heads * step, seed);
    for (int64_t h = 0; h < p.config.kv_heads; ++h)
      for (int64_t r = 0; r < step; ++r) {
        float& scale = scales[static_cast<size_t>(h * step + r)];
        if (r >= p.k_rows || p.owner(r) < 0) {
          scale = NAN;  // of nobody's keys, and behind them
          continue;
        }
        scale = (1.5f + scale) / 256.0f;
        for (int64_t i = 0; i < dim; ++i) {
          double& number = x[static_cast<size_t>(r * stride + h * dim + i)];
          number = std::nearbyint(127 * number) * scale;
        }
      }
    return scales;
  }
  // What is stored of keys or values.
  double number(const std::vector<double>& x, const std::vector<float>& scales, int64_t at, int64_t dim, int64_t stride) const {
    const int64_t row = at / stride, head = at % stride / dim;
    if (kv != KvType::int8) return x[static_cast<size_t>(at)];
    if (p.owner(row) < 0 || head >= p.config.kv_heads) return -128;
    return std::nearbyint(x[static_cast<size_t>(at)] / scales[static_cast<size_t>(head * (p.k_rows + mg::kKeyChunk) + row)]);
  }
};

// A target's arrays for it.
template <class T> struct Run {
  using Floats = Guarded<mg::Wide<T>>;
  Guarded<int32_t> q_start, k_start, k_len;
  Floats alibi, lse;
  Guarded<float> k_scales, v_scales;
  Guarded<unsigned char> k, v;
  Guarded<T> q, d_o, o, dq, dk, dv;
  mg::AttentionBackwardArgs<T> args = {};

  explicit Run(const Truth& t)
      : q_start(t.p.q_start), k_start(t.p.k_start), k_len(t.p.k_len), alibi(t.p.alibi), lse(static_cast<int64_t>(t.p.lse.size())),
        k_scales(t.k_scales), v_scales(t.v_scales), k(item_size(t.kv) * static_cast<int64_t>(t.p.k.size())),
        v(item_size(t.kv) * static_cast<int64_t>(t.p.v.size())), q(size(t.p.q)), d_o(size(t.p.d_o)), o(size(t.o)), dq(size(t.dq)),
        dk(size(t.dk)), dv(size(t.dv)) {
    const mg::AttentionArgs<double>& from = t.p.args.fwd;
    put(q, t.p.q), put(d_o, t.p.d_o), put(o, t.o), put(dq, t.dq), put(dk, t.dk), put(dv, t.dv);
    for (int64_t i = 0; i < size(t.p.k); ++i) store(k, t.kv, i, t.number(t.p.k, t.k_scales, i, from.k_dim, from.k_stride));
    for (int64_t i = 0; i < size(t.p.v); ++i) store(v, t.kv, i, t.number(t.p.v, t.v_scales, i, from.v_dim, from.v_stride));
    mg::AttentionArgs<T>& f = args.fwd;
    f.q = q.data(), f.k = reinterpret_cast<T*>(k.data()), f.v = reinterpret_cast<T*>(v.data());
    f.o = o.data(), f.lse = lse.data();
    f.q_start = q_start.data(), f.k_start = k_start.data(), f.k_len = k_len.data();
    f.alibi = t.p.config.alibi ? alibi.data() : nullptr;
    f.q_rows = from.q_rows, f.k_rows = from.k_rows, f.seqs = from.seqs, f.heads = from.heads, f.kv_heads = from.kv_heads;
    f.k_dim = from.k_dim, f.v_dim = from.v_dim, f.scale = from.scale, f.soft_cap = from.soft_cap, f.window = from.window;
    f.q_stride = from.q_stride, f.k_stride = from.k_stride, f.v_stride = from.v_stride, f.o_stride = from.o_stride;
    f.causal = from.causal, f.kv = t.kv, f.k_scales = k_scales.data(), f.v_scales = v_scales.data();
    args.d_o = d_o.data(), args.dq = dq.data(), args.dk = dk.data(), args.dv = dv.data();
    args.accumulate_dq = args.accumulate_dk = args.accumulate_dv = t.p.config.accumulate;
  }
  bool intact() const {
    return q_start.intact() && k_start.intact() && k_len.intact() && alibi.intact() && lse.intact() && k_scales.intact() &&
           v_scales.intact() && k.intact() && v.intact() && q.intact() && d_o.intact() && o.intact() && dq.intact() &&
           dk.intact() && dv.intact();
  }
  bool backward(const mg::KernelTable<T>& table, bool reversed = false) {
    return run_shares(table.attention_backward, args, mg::plan_attention_backward(args), reversed);
  }

  static int64_t size(const std::vector<double>& x) { return static_cast<int64_t>(x.size()); }
  static int64_t item_size(KvType kv) {
    return kv == KvType::same ? sizeof(T) : kv == KvType::f32 ? sizeof(float) : kv == KvType::bf16 ? sizeof(bf16) : 1;
  }
  static void put(Guarded<T>& to, const std::vector<double>& x) {
    for (size_t i = 0; i < x.size(); ++i) mg::assign(to[i], static_cast<float>(x[i]));
  }
  static void store(Guarded<unsigned char>& to, KvType kv, int64_t at, double x) {
    switch (kv) {
      case KvType::same: return mg::assign(reinterpret_cast<T*>(to.data())[at], static_cast<float>(x));
      case KvType::f32: return mg::assign(reinterpret_cast<float*>(to.data())[at], static_cast<float>(x));
      case KvType::bf16: return mg::assign(reinterpret_cast<bf16*>(to.data())[at], static_cast<float>(x));
      case KvType::int8: reinterpret_cast<int8_t*>(to.data())[at] = static_cast<int8_t>(x);
    }
  }
};

// What a target rounds, relative to it: results, factors of products (probabilities, gradients of scores), exponentials.
struct Rounding {
  double result, factor, exponential;
};

struct Bounds {
  std::vector<double> o, lse, dq, dk, dv;
};

// How far from the reference rounding may lead, element by element: the derivation of tests/opcases/attention.py, where a sum
// of n numbers is off by n eps of their sizes (Higham 2002, section 3.1), with the roundings of factors added. eps is twice
// float's unit roundoff, for targets whose fma rounds twice; tanh, exp and log are 6 roundings (ELEMENTARY there).
Bounds bounds_of(const Truth& t, const Rounding& rounding) {
  const double eps = std::ldexp(1.0, -23), elementary = 6;
  const Problem<double>& p = t.p;
  const Config& c = p.config;
  const mg::AttentionArgs<double>& f = p.args.fwd;
  Bounds b = {std::vector<double>(p.o.size()), std::vector<double>(p.lse.size()), std::vector<double>(p.dq.size()),
              std::vector<double>(p.dk.size()), std::vector<double>(p.dv.size())};
  for (size_t s = 0; s < c.seqs.size(); ++s)
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t i = 0; i < c.seqs[s].rows; ++i) {
        const int64_t keys = c.seqs[s].keys, row = p.q_start[s] + i, position = keys - c.seqs[s].rows + i;
        const int64_t q_at = row * f.q_stride + h * c.k_dim, o_at = row * f.o_stride + h * c.v_dim;
        const int64_t each = c.heads / c.kv_heads, group = h / each;
        const auto k_at = [&](int64_t j) { return (p.k_start[s] + j) * f.k_stride + group * c.k_dim; };
        const auto v_at = [&](int64_t j) { return (p.k_start[s] + j) * f.v_stride + group * c.v_dim; };
        const auto at = [](const std::vector<double>& x, int64_t place) { return x[static_cast<size_t>(place)]; };
        const auto bound = [](std::vector<double>& x, int64_t place) -> double& { return x[static_cast<size_t>(place)]; };
        const size_t lse_at = static_cast<size_t>(h * f.q_rows + row);
        const double lse = p.lse[lse_at], chunks = static_cast<double>(keys / mg::kKeyChunk + 1);
        const double terms = static_cast<double>(keys) + chunks + 8;

        struct Seen {
          int64_t key;
          double score, error, slope, tilt;  // tilt: how far off the slope of the cap may be
        };
        std::vector<Seen> seen;
        double largest = 0, top = -INFINITY;  // the largest relative error of an exponential; the largest score
        for (int64_t j = 0; j < keys; ++j) {
          if ((c.causal && j > position) || (c.window >= 0 && std::abs(j - position) >= c.window)) continue;
          double dot = 0, size = 0;
          for (int64_t d = 0; d < c.k_dim; ++d) {
            const double product = at(p.q, q_at + d) * at(p.k, k_at(j) + d);
            dot += product, size += std::abs(product);
          }
          Seen one = {j, f.scale * dot, eps * static_cast<double>(c.k_dim + 3) * f.scale * size, 1, 0};
          if (c.soft_cap > 0) {
            const double bend = std::tanh(one.score / c.soft_cap);
            one.tilt = 2 * one.error / c.soft_cap + 3 * elementary * eps;
            one.score = c.soft_cap * bend, one.slope = 1 - bend * bend;
            one.error += (elementary + 2) * eps * std::abs(one.score);
          }
          if (c.alibi) {
            const double bias = p.alibi[static_cast<size_t>(h)] * static_cast<double>(j - position);
            one.score += bias;
            one.error += eps * (std::abs(bias) + std::abs(one.score));
          }
          top = std::max(top, one.score);
          seen.push_back(one);
        }
        if (seen.empty()) continue;  // zeros
        // An exponential's argument is the difference of two rounded numbers; it is scaled again for each later chunk.
        const auto exponential = [&](const Seen& one) {
          const double argument = 2 * std::abs(one.score) + 2 * std::abs(top);
          return one.error + eps * (argument + (elementary + 1) * chunks) + rounding.exponential;
        };
        for (const Seen& one : seen) largest = std::max(largest, exponential(one));
        b.lse[lse_at] = largest + eps * (terms + std::abs(lse));
        for (int64_t d = 0; d < c.v_dim; ++d) {
          double& o = bound(b.o, o_at + d);
          o = rounding.result * std::abs(at(p.o, o_at + d));
          for (const Seen& one : seen)
            o += std::exp(one.score - lse) * (exponential(one) + largest + rounding.factor + eps * (2 * terms + 8)) *
                 std::abs(at(p.v, v_at(one.key) + d));
        }
        if (t.kv != KvType::same) continue;

        double delta = 0, delta_error = 0;
        for (int64_t d = 0; d < c.v_dim; ++d) {
          const double product = at(p.d_o, o_at + d) * at(p.o, o_at + d);
          delta += product;
          delta_error += eps * static_cast<double>(c.v_dim + 2) * std::abs(product);
          delta_error += std::abs(at(p.d_o, o_at + d)) * at(b.o, o_at + d);
        }
        const double of_row = rounding.factor + eps * terms;
        const double of_key = rounding.factor + eps * static_cast<double>(c.seqs[s].rows * each + 8);
        for (const Seen& one : seen) {
          const double prob = std::exp(one.score - lse);
          const double argument = eps * (2 * std::abs(one.score) + 4 * std::abs(lse) + elementary + 1);
          const double relative = one.error + argument + b.lse[lse_at] + rounding.exponential;
          double dp = 0, dp_size = 0;
          for (int64_t d = 0; d < c.v_dim; ++d) {
            const double product = at(p.d_o, o_at + d) * at(p.v, v_at(one.key) + d);
            dp += product, dp_size += std::abs(product);
            bound(b.dv, v_at(one.key) + d) += prob * (relative + of_key) * std::abs(at(p.d_o, o_at + d));
          }
          const double less = std::abs(dp - delta), ds = f.scale * prob * less * one.slope;
          const double off = delta_error + eps * (static_cast<double>(c.v_dim + 2) * dp_size + less);
          const double ds_error = f.scale * prob * (off * one.slope + less * ((relative + 3 * eps) * one.slope + one.tilt));
          for (int64_t d = 0; d < c.k_dim; ++d) {
            bound(b.dq, q_at + d) += (ds_error + of_row * ds) * std::abs(at(p.k, k_at(one.key) + d));
            bound(b.dk, k_at(one.key) + d) += (ds_error + of_key * ds) * std::abs(at(p.q, q_at + d));
          }
        }
      }
  const std::vector<double>* results[] = {&p.dq, &p.dk, &p.dv};
  std::vector<double>* bounds[] = {&b.dq, &b.dk, &b.dv};
  for (int which = 0; which < 3; ++which)
    for (size_t i = 0; i < results[which]->size(); ++i)
      if (double& x = (*bounds[which])[i]; x > 0) x += (rounding.result + eps) * std::abs((*results[which])[i]);
  return b;
}

// The largest error in units of the bound. Where the bound is zero (nothing seen, padding, nobody's keys) numbers must be equal.
template <class T> double worst(const Guarded<T>& got, const std::vector<double>& want, const std::vector<double>& bound) {
  double largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double x = mg::value_of(got[i]), limit = bound[i] * 1.02 + (bound[i] > 0 ? 1e-36 : 0);  // second order; denormals
    if (x == want[i]) continue;
    const double error = std::abs(x - want[i]) / limit;
    largest = error <= std::numeric_limits<double>::max() ? std::max(largest, error) : INFINITY;
  }
  return largest;
}

std::string describe(const Config& c, KvType kv) {
  std::string text = "heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " dims " + std::to_string(c.k_dim) +
                     "/" + std::to_string(c.v_dim) + (c.causal ? " causal" : " full") + " window " + std::to_string(c.window) +
                     (c.alibi ? " alibi" : "") + (c.soft_cap > 0 ? " cap" : "") + " stored as " +
                     std::to_string(static_cast<int>(kv)) + " seqs";
  for (const Sequence& s : c.seqs) text += " " + std::to_string(s.rows) + ":" + std::to_string(s.keys);
  return text;
}

template <class T> void check_case(const Config& config, KvType kv = KvType::same) {
  const Truth want(config, kv);
  const double result = mg::kNarrow<T> ? std::ldexp(1.0, -8) : std::ldexp(1.0, -23);
  const Bounds widened = bounds_of(want, {result, 0, 0});
  // avx512bf16 and avx512amx round factors; what becomes a bf16 there is an exponential of 18 bits (simd/math.h).
  const Bounds paired = mg::kNarrow<T> ? bounds_of(want, {result, std::ldexp(1.0, -8), std::ldexp(1.0, -18)}) : Bounds();
  for (const mg::Target& target : mg::targets()) {
    if (!target.supported) continue;
    INFO(std::string(target.name) << ": " << describe(config, kv));
    const std::string name = target.name;
    const Bounds& bounds = mg::kNarrow<T> && (name == "avx512bf16" || name == "avx512amx") ? paired : widened;
    Run<T> got(want);
    CHECK(forward(table_of<T>(target), got.args.fwd));
    CHECK(worst(got.o, want.p.o, bounds.o) <= 1);
    CHECK(worst(got.lse, want.p.lse, bounds.lse) <= 1);
    if (kv == KvType::same) {
      CHECK(got.backward(table_of<T>(target)));
      CHECK(worst(got.dq, want.p.dq, bounds.dq) <= 1);
      CHECK(worst(got.dk, want.p.dk, bounds.dk) <= 1);
      CHECK(worst(got.dv, want.p.dv, bounds.dv) <= 1);
    }
    CHECK(got.intact());
    if (mg::attention_parts(got.args.fwd) == 0) continue;
    Run<T> cut(want);
    CHECK(forward_in_parts(table_of<T>(target), cut.args.fwd, true));
    CHECK(cut.intact());
    CHECK(cut.o.same_bits(got.o));
    CHECK(cut.lse.same_bits(got.lse));
  }
}

constexpr int64_t kLengths[] = {1, 15, 64, 65, 200}, kWidths[] = {16, 32, 33, 64, 80, 128};

}  // namespace

TEST_CASE("attention bf16: lengths and head widths, both ways") {
  for (int64_t length : kLengths)
    for (int64_t width : kWidths)
      for (bool causal : {true, false}) {
        Config c;
        c.seqs = {{length, length}};
        c.k_dim = width, c.v_dim = width, c.causal = causal, c.kv_heads = causal ? 1 : 2, c.pad = width % 3;
        check_case<bf16>(c);
      }
}

TEST_CASE("attention bf16: windows, caps, slopes, shared heads, packed sequences, caches and gaps") {
  struct Variant {
    int64_t window, heads, kv_heads, k_dim, v_dim;
    bool alibi;
    double soft_cap;
  };
  const Variant variants[] = {{1, 2, 2, 16, 16, false, 0},  {17, 4, 1, 33, 20, false, 0}, {-1, 4, 2, 64, 64, false, 3},
                              {70, 6, 2, 80, 33, true, 2},  {-1, 2, 1, 1, 3, true, 0},    {-1, 8, 1, 128, 64, false, 0}};
  for (const Variant& v : variants)
    for (bool causal : {true, false})
      for (bool accumulate : {true, false}) {
        Config c;
        c.window = v.window, c.heads = v.heads, c.kv_heads = v.kv_heads, c.k_dim = v.k_dim, c.v_dim = v.v_dim;
        c.alibi = v.alibi, c.soft_cap = v.soft_cap, c.causal = causal, c.accumulate = accumulate, c.pad = accumulate ? 3 : 0;
        c.seqs = {{3, 3}, {0, 0}, {65, 65}, {1, 1}, {0, 7}, {15, 15}, {130, 130}, {0, 0}};
        check_case<bf16>(c);
        c.seqs = {{1, 200}, {7, 130}, {1, 64}, {2, 0}, {33, 90}, {20, 3}};  // more rows than keys: the first see nothing
        c.backwards = true;
        check_case<bf16>(c);
      }
}

TEST_CASE_TEMPLATE("attention: one query against keys of every type, whole and in parts", T, float, bf16) {
  for (KvType kv : kTypes)
    for (int64_t width : kWidths)
      for (int variant = 0; variant < 3; ++variant) {
        Config c;
        c.seqs = {{1, 1}, {1, 15}, {0, 3}, {1, 64}, {1, 65}, {1, 200}};
        c.kv_heads = 2, c.heads = variant == 0 ? 2 : variant == 1 ? 6 : 20, c.k_dim = width, c.v_dim = variant == 1 ? 33 : width;
        if (variant == 1) c.seqs.back().keys = 700, c.window = 600;
        if (variant == 2) c.alibi = true, c.soft_cap = 3, c.backwards = true;
        check_case<T>(c, kv);
      }
}

TEST_CASE_TEMPLATE("attention: rows against keys of every type", T, float, bf16) {
  for (KvType kv : kTypes)
    for (int64_t width : kWidths)
      for (int variant = 0; variant < 3; ++variant) {
        Config c;
        c.seqs = {{3, 3}, {0, 5}, {33, 65}, {1, 15}, {64, 64}, {9, 200}};
        c.heads = 4, c.kv_heads = variant == 1 ? 1 : 2, c.k_dim = width, c.v_dim = variant == 2 ? 20 : width;
        if (variant == 1) c.window = 20, c.causal = false, c.backwards = true;
        if (variant == 2) c.alibi = true, c.soft_cap = 3;
        check_case<T>(c, kv);
      }
}

// The ways around what is not finite: a factor of zero hides nothing in a product of tiles or pairs.
TEST_CASE("attention bf16: a NaN reaches the rows that see it and no others; the order of the shares changes no bit") {
  constexpr int64_t kLength = 99;
  for (int64_t bad : {0, 5, 63, 64, 98})
    for (int where = 0; where < 4; ++where) {
      Config c;
      c.seqs = {{kLength, kLength}};
      c.k_dim = 33, c.v_dim = 40;
      const Truth truth(c);
      for (const mg::Target& target : mg::targets()) {
        if (!target.supported) continue;
        INFO(std::string(target.name) << " bad " << bad << " where " << where);
        const mg::KernelTable<bf16>& table = *target.table_bf16();
        Run<bf16> clean(truth), broken(truth);
        const mg::AttentionArgs<bf16>& f = broken.args.fwd;
        const int64_t key = truth.p.k_start[0] + bad;
        if (where == 0) mg::assign(reinterpret_cast<bf16*>(broken.k.data())[key * f.k_stride], NAN);
        if (where == 1) mg::assign(reinterpret_cast<bf16*>(broken.v.data())[key * f.v_stride], NAN);
        if (where == 2) mg::assign(broken.q[static_cast<size_t>(bad * f.q_stride)], NAN);
        CHECK(forward(table, clean.args.fwd));
        CHECK(forward(table, broken.args.fwd, true));
        CHECK(clean.backward(table));
        CHECK(broken.backward(table, true));
        CHECK(clean.intact());
        CHECK(broken.intact());
        for (int64_t row = 0; row < kLength; ++row) {
          const size_t o = static_cast<size_t>(row * f.o_stride), q = static_cast<size_t>(row * f.q_stride);
          if (where < 3 && (where == 2 ? row == bad : bad <= row)) {
            CHECK(std::isnan(mg::value_of(broken.o[o])));
            CHECK(std::isnan(mg::value_of(broken.dq[q])));
            continue;
          }
          for (size_t i = 0; i < static_cast<size_t>(c.v_dim); ++i) REQUIRE(broken.o[o + i].bits == clean.o[o + i].bits);
          for (size_t i = 0; i < static_cast<size_t>(c.k_dim); ++i) REQUIRE(broken.dq[q + i].bits == clean.dq[q + i].bits);
        }
        if (where < 3) continue;
        CHECK(clean.dk.same_bits(broken.dk));
        CHECK(clean.dv.same_bits(broken.dv));
      }
    }
}
