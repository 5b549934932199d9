// Recurrences with a matrix as state on every compiled target: near the plain loops in double, the same bits whatever the order
// of the shares, and nothing written behind the scratch that was planned. Derived bounds stand in tests/opcases.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/plan.h"
#include "ref/ref.h"
#include "targets/dispatch.h"

namespace {

using namespace mg;

// Arrays by number: random inputs, outputs full of NaN.
template <class T> class Arrays {
 public:
  T* input(int64_t n, double low, double high) {
    std::vector<T>& made = add(n);
    for (T& x : made) {
      state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
      x = static_cast<T>(static_cast<float>(low + (high - low) * static_cast<double>(state_ >> 11) / 9007199254740992.0));
    }
    return made.data();
  }
  T* output(int64_t n) {
    std::vector<T>& made = add(n);
    outputs_.push_back(all_.size() - 1);
    for (T& x : made) x = static_cast<T>(NAN);
    return made.data();
  }
  size_t outputs() const { return outputs_.size(); }
  const std::vector<T>& out(size_t i) const { return all_[outputs_[i]]; }

 private:
  std::vector<T>& add(int64_t n) {
    all_.reserve(64);  // so that pointers stay
    all_.emplace_back(static_cast<size_t>(n > 0 ? n : 1));
    return all_.back();
  }
  std::vector<std::vector<T>> all_;
  std::vector<size_t> outputs_;
  uint64_t state_ = 88172645463325252ull;
};

// Every share with garbage in a scratch of exactly the planned size; whether nothing was written behind it.
template <class Args, class Kernel> bool run(Kernel kernel, const Args& args, const Plan& plan, bool reversed) {
  constexpr size_t kBehind = 64;
  std::vector<unsigned char> memory(plan.scratch_bytes + 2 * kBehind);
  const size_t skip = (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  for (int64_t i = 0; i < plan.shares; ++i) {
    std::memset(memory.data(), 0xFF, memory.size());
    kernel(args, Share{reversed ? plan.shares - 1 - i : i, plan.shares, memory.data() + skip});
    for (size_t j = skip + plan.scratch_bytes; j < memory.size(); ++j)
      if (memory[j] != 0xFF) return false;
  }
  return true;
}

const std::vector<int32_t> kStarts = {0, 65, 65, 66, 200};
constexpr int64_t kTokens = 200, kSeqs = 4;

template <class T> struct Ssd {
  Arrays<T> arrays;
  SsdBackwardArgs<T> args{};
  Ssd(int64_t heads, int64_t groups, int64_t width, int64_t state) {
    SsdArgs<T>& f = args.fwd;
    f.tokens = kTokens, f.seqs = kSeqs, f.heads = heads, f.groups = groups, f.head_dim = width, f.state_dim = state;
    f.q_start = kStarts.data(), f.dt_min = 0.0, f.dt_max = INFINITY, f.softplus = 1;
    const int64_t size = width * state, rows = kTokens * heads, inputs = kTokens * groups * state;
    f.x = arrays.input(rows * width, -1, 1), f.dt = arrays.input(rows, -2, 1), f.a = arrays.input(heads, -2, -0.1);
    f.b = arrays.input(inputs, -1, 1), f.c = arrays.input(inputs, -1, 1);
    f.skip = arrays.input(heads, -1, 1), f.dt_bias = arrays.input(heads, -1, 1);
    args.dy = arrays.input(rows * width, -1, 1);
    f.y = arrays.output(rows * width);
    f.chunks = arrays.input(state_chunks(kTokens, kSeqs) * heads * size, 0, 0);
    args.dx = arrays.output(rows * width), args.ddt = arrays.output(rows);
    const int64_t parts = ssd_blocks(heads, groups) * inputs;
    args.part_db = arrays.output(parts), args.part_dc = arrays.output(parts), args.part_da = arrays.output(kSeqs * heads);
    args.part_dskip = arrays.output(kSeqs * heads), args.part_dbias = arrays.output(kSeqs * heads);
  }
  bool compute(const KernelTable<T>& table, bool reversed) {
    return run(table.ssd, args.fwd, plan_ssd(args.fwd), reversed) &&
           run(table.ssd_backward, args, plan_ssd_backward(args), reversed);
  }
};

template <class T> struct Delta {
  Arrays<T> arrays;
  DeltaBackwardArgs<T> args{};
  Delta(int64_t heads, int64_t key_heads, int64_t keys, int64_t values) {
    DeltaArgs<T>& f = args.fwd;
    f.tokens = kTokens, f.seqs = kSeqs, f.heads = heads, f.key_heads = key_heads, f.k_dim = keys, f.v_dim = values;
    f.q_start = kStarts.data(), f.scale = 0.3, f.normalize = 1;
    const int64_t k_rows = kTokens * key_heads * keys, v_rows = kTokens * heads * values, times = kTokens * heads;
    f.q = arrays.input(k_rows, -1, 1), f.k = arrays.input(k_rows, -1, 1), f.v = arrays.input(v_rows, -1, 1);
    f.g = arrays.input(times, -0.3, 0), f.beta = arrays.input(times, 0.1, 0.9);
    args.d_o = arrays.input(v_rows, -1, 1);
    f.o = arrays.output(v_rows);
    f.chunks = arrays.input(state_chunks(kTokens, kSeqs) * heads * keys * values, 0, 0);
    args.dq = arrays.output(k_rows), args.dk = arrays.output(k_rows), args.dv = arrays.output(v_rows);
    args.dg = arrays.output(times), args.dbeta = arrays.output(times);
  }
  bool compute(const KernelTable<T>& table, bool reversed) {
    return run(table.gated_delta, args.fwd, plan_gated_delta(args.fwd), reversed) &&
           run(table.gated_delta_backward, args, plan_gated_delta_backward(args), reversed);
  }
};

template <class T> struct Rwkv {
  Arrays<T> arrays;
  Rwkv7BackwardArgs<T> args{};
  Rwkv(int64_t heads, int64_t, int64_t keys, int64_t values) {
    Rwkv7Args<T>& f = args.fwd;
    f.tokens = kTokens, f.seqs = kSeqs, f.heads = heads, f.k_dim = keys, f.v_dim = values, f.q_start = kStarts.data();
    const int64_t k_rows = kTokens * heads * keys, v_rows = kTokens * heads * values;
    const double unit = 1.0 / std::sqrt(static_cast<double>(keys));
    f.r = arrays.input(k_rows, -1, 1), f.w = arrays.input(k_rows, 0.5, 0.9), f.k = arrays.input(k_rows, -1, 1);
    f.a = arrays.input(k_rows, -unit / 2, unit / 2), f.b = arrays.input(k_rows, -unit / 2, unit / 2);
    f.v = arrays.input(v_rows, -1, 1);
    args.dy = arrays.input(v_rows, -1, 1);
    f.y = arrays.output(v_rows);
    f.kept = arrays.input((kTokens / kRwkvStride + kSeqs) * heads * keys * values, 0, 0);
    for (T** each : {&args.dr, &args.dw, &args.dk, &args.da, &args.db}) *each = arrays.output(k_rows);
    args.dv = arrays.output(v_rows);
  }
  bool compute(const KernelTable<T>& table, bool reversed) {
    return run(table.rwkv7, args.fwd, plan_rwkv7(args.fwd), reversed) &&
           run(table.rwkv7_backward, args, plan_rwkv7_backward(args), reversed);
  }
};

// The largest difference relative to the largest number.
double distance(const std::vector<float>& ours, const std::vector<double>& right) {
  double off = 0.0, size = 0.0;
  for (size_t i = 0; i < right.size(); ++i) {
    const double each = std::fabs(ours[i] - right[i]);
    if (!(each <= off)) off = each;
    size = std::fmax(size, std::fabs(right[i]));
  }
  return off / size;
}

template <template <class> class Problem> void check(int64_t heads, int64_t groups, int64_t width, int64_t state) {
  Problem<double> right(heads, groups, width, state);
  CHECK(right.compute(reference_table(), false));
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    INFO(std::string(target.name) << " " << heads << " " << groups << " " << width << " " << state);
    Problem<float> forwards(heads, groups, width, state), backwards(heads, groups, width, state);
    CHECK(forwards.compute(*target.table(), false));
    CHECK(backwards.compute(*target.table(), true));
    for (size_t i = 0; i < forwards.arrays.outputs(); ++i) {
      INFO("output " << i);
      const std::vector<float>&a = forwards.arrays.out(i), &b = backwards.arrays.out(i);
      CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
      CHECK(distance(a, right.arrays.out(i)) <= 1e-5);
    }
  }
}

template <template <class> class Problem> void check_shapes() {
  check<Problem>(1, 1, 1, 1);
  check<Problem>(2, 1, 7, 17);
  check<Problem>(6, 2, 16, 16);
  check<Problem>(5, 1, 33, 31);
  check<Problem>(4, 4, 64, 48);
}

}  // namespace

TEST_CASE("state-space duality") { check_shapes<Ssd>(); }
TEST_CASE("gated delta rule") { check_shapes<Delta>(); }
TEST_CASE("RWKV-7's time mixing") { check_shapes<Rwkv>(); }
