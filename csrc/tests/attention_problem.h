// A case of attention: inputs, outputs between guards, and the runs of a kernel table on it. For test_attention*.cpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "guarded.h"
#include "kernels/plan.h"
#include "kernels/tiles.h"
#include "ref/ref.h"

namespace attention_test {

struct Sequence {
  int64_t rows, keys;
};

struct Config {
  std::vector<Sequence> seqs;
  int64_t heads = 2, kv_heads = 2, k_dim = 8, v_dim = 8;
  bool causal = true;
  int64_t window = -1;
  bool alibi = false;
  double soft_cap = 0;
  int64_t pad = 0;          // extra elements from token to token
  bool backwards = false;   // the sequences' keys lie in the opposite order
  bool accumulate = false;  // gradients add to what is there
};

constexpr int64_t kGap = 2;  // rows of keys that belong to nobody, before each sequence and at the end
constexpr float kGuard = -7.5e33f;

inline std::vector<float> uniform(int64_t n, uint64_t seed) {
  std::vector<float> x(static_cast<size_t>(n));
  uint64_t state = seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull;
  for (float& v : x) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    v = static_cast<float>(static_cast<double>(state >> 40) / (1 << 23) - 1.0);
  }
  return x;
}

// T = float for the targets, double for the reference: the same numbers.
template <class T> struct Problem {
  Config config;
  std::vector<int32_t> q_start, k_start, k_len;
  int64_t q_rows = 0, k_rows = 0;
  std::vector<T> q, k, v, d_o, alibi, o, lse, dq, dk, dv;
  mg::AttentionBackwardArgs<T> args;

  explicit Problem(const Config& c) : config(c), args() {
    const size_t seqs = c.seqs.size();
    k_start.resize(seqs);
    q_start.push_back(0);
    for (const Sequence& s : c.seqs) {
      q_start.push_back(q_start.back() + static_cast<int32_t>(s.rows));
      k_len.push_back(static_cast<int32_t>(s.keys));
    }
    for (size_t i = 0; i < seqs; ++i) {
      const size_t s = c.backwards ? seqs - 1 - i : i;
      k_start[s] = static_cast<int32_t>(k_rows + kGap);
      k_rows += kGap + c.seqs[s].keys;
    }
    k_rows += kGap;
    q_rows = q_start.back();
    const int64_t q_stride = c.heads * c.k_dim + c.pad, o_stride = c.heads * c.v_dim + c.pad;
    const int64_t k_stride = c.kv_heads * c.k_dim + c.pad, v_stride = c.kv_heads * c.v_dim + c.pad;
    q = input(q_rows * q_stride, 1), k = input(k_rows * k_stride, 2), v = input(k_rows * v_stride, 3);
    d_o = input(q_rows * o_stride, 4);
    dq = input(q_rows * q_stride, 5), dk = input(k_rows * k_stride, 6), dv = input(k_rows * v_stride, 7);
    o.assign(static_cast<size_t>(q_rows * o_stride), T(kGuard));
    lse.assign(static_cast<size_t>(q_rows * c.heads), T(kGuard));
    for (int64_t h = 0; h < c.heads; ++h) alibi.push_back(static_cast<T>(std::ldexp(1.0, -static_cast<int>(h) - 1)));
    for (int64_t r = 0; r < k_rows; ++r) {
      if (owner(r) >= 0) continue;  // nobody may read these
      for (int64_t i = 0; i < k_stride; ++i) k[static_cast<size_t>(r * k_stride + i)] = std::numeric_limits<T>::quiet_NaN();
      for (int64_t i = 0; i < v_stride; ++i) v[static_cast<size_t>(r * v_stride + i)] = std::numeric_limits<T>::quiet_NaN();
    }
    mg::AttentionArgs<T>& f = args.fwd;
    f.q_rows = q_rows, f.k_rows = k_rows, f.seqs = static_cast<int64_t>(seqs);
    f.heads = c.heads, f.kv_heads = c.kv_heads, f.k_dim = c.k_dim, f.v_dim = c.v_dim;
    f.q_stride = q_stride, f.k_stride = k_stride, f.v_stride = v_stride, f.o_stride = o_stride;
    f.scale = 1.5 / std::sqrt(static_cast<double>(c.k_dim)), f.soft_cap = c.soft_cap, f.window = c.window;
    f.causal = c.causal;
    args.accumulate_dq = args.accumulate_dk = args.accumulate_dv = c.accumulate;
    bind();
  }
  Problem(const Problem&) = delete;

  void bind() {
    mg::AttentionArgs<T>& f = args.fwd;
    f.q = q.data(), f.k = k.data(), f.v = v.data(), f.o = o.data(), f.lse = lse.data();
    f.q_start = q_start.data(), f.k_start = k_start.data(), f.k_len = k_len.data();
    f.alibi = config.alibi ? alibi.data() : nullptr;
    args.d_o = d_o.data(), args.dq = dq.data(), args.dk = dk.data(), args.dv = dv.data();
  }
  // The sequence that a row of keys belongs to, or -1.
  int64_t owner(int64_t row) const {
    for (size_t s = 0; s < k_start.size(); ++s)
      if (row >= k_start[s] && row < k_start[s] + k_len[s]) return static_cast<int64_t>(s);
    return -1;
  }
  static std::vector<T> input(int64_t n, uint64_t seed) {
    const std::vector<float> x = uniform(n, seed);
    return std::vector<T>(x.begin(), x.end());
  }
};

// Every share of a kernel, in either order, each with fresh garbage (NaN) in a scratch of exactly the planned size.
// Gives false if something was written beside the scratch.
template <class Args, class Kernel> bool run_shares(Kernel kernel, const Args& args, const mg::Plan& plan, bool reversed) {
  mg::test::Guarded<unsigned char> scratch(static_cast<int64_t>(plan.scratch_bytes));
  for (int64_t i = 0; i < plan.shares; ++i) {
    scratch.forget();
    kernel(args, mg::Share{reversed ? plan.shares - 1 - i : i, plan.shares, scratch.data()});
    if (!scratch.intact()) return false;
  }
  return true;
}
template <class T> bool forward(const mg::KernelTable<T>& table, const mg::AttentionArgs<T>& args, bool reversed = false) {
  return run_shares(table.attention, args, mg::plan_attention(args), reversed);
}
template <class T> bool forward(const mg::KernelTable<T>& table, Problem<T>& p, bool reversed = false) {
  return forward(table, p.args.fwd, reversed);
}
// The forward in two kernels, where there are parts.
template <class T> bool forward_in_parts(const mg::KernelTable<T>& table, mg::AttentionArgs<T> args, bool reversed = false) {
  mg::test::Guarded<mg::Wide<T>> parts(mg::attention_parts(args) * args.heads * mg::part_floats(args.v_dim));
  args.parts = parts.data();
  bool fine = forward(table, args, reversed);
  args.merge = 1;
  fine = fine && forward(table, args, reversed);
  return fine && parts.intact();
}
template <class T> bool backward(const mg::KernelTable<T>& table, Problem<T>& p, bool reversed = false) {
  return run_shares(table.attention_backward, p.args, mg::plan_attention_backward(p.args), reversed);
}
inline void reference_forward(Problem<double>& p) {
  run_shares(&mg::ref::attention, p.args.fwd, mg::plan_attention(p.args.fwd), false);
}
inline void reference_backward(Problem<double>& p) {
  run_shares(&mg::ref::attention_backward, p.args, mg::plan_attention_backward(p.args), false);
}

template <class T> bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace attention_test
