// Element-wise kernels, strided walks and reductions on every target, against the references in double.
#include "kernel_case.h"

#include <limits>

#include "core/rng.h"

namespace {

using namespace mg;
using namespace mg::test;

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
constexpr Act kActs[] = {Act::none, Act::gelu, Act::gelu_tanh, Act::relu, Act::relu2, Act::silu};

// With |x| <= 6: the gate has an absolute error of 3 u, so act(x) is off by 6 * 3 u and a few roundings; the slope holds
// x * gate * (1 - gate) * (derivative <= 10), each with a few u. 1e-37: what exp flushes to zero.
const Tolerance kActTolerance{6 * kU, 24 * kU + 1e-37}, kSlopeTolerance{8 * kU, 2 * 64 * kU};

TEST_CASE("act and act_backward") {
  for (const Act kind : kActs) {
    for (const int64_t n : kSizes) {
      for (const bool accumulate : {false, true}) {
        CAPTURE((int)kind); CAPTURE(n); CAPTURE(accumulate);
        Buffer x = Buffer::input(n, 1, -6.0, 6.0), dy = Buffer::input(n, 2), y = Buffer::output(n), dx = Buffer::output(n);
        const auto forward = [&](auto t) {
          using T = decltype(t);
          return ActArgs<T>{x.as<T>(), nullptr, y.as<T>(), n, kind, accumulate};
        };
        CHECK_KERNEL(act, forward, kActTolerance, &y);
        const auto backward = [&](auto t) {
          using T = decltype(t);
          return ActArgs<T>{x.as<T>(), dy.as<T>(), dx.as<T>(), n, kind, accumulate};
        };
        CHECK_KERNEL(act_backward, backward, kSlopeTolerance, &dx);
      }
    }
  }
}

TEST_CASE("activations far out, and in place") {
  for (const Act kind : kActs) {
    CAPTURE((int)kind);
    // Where x * x or x^3 overflows the result must not.
    Buffer y = Buffer::of({-1e30f, -1e20f, -1e13f, -40.0f, -0.0f, 0.0f, 1e-30f, 40.0f, 1e13f, 1e18f, kNan}, true);
    const auto forward = [&](auto t) {
      using T = decltype(t);
      return ActArgs<T>{y.as<T>(), nullptr, y.as<T>(), y.size(), kind, 0};
    };
    CHECK_KERNEL(act, forward, (Tolerance{8 * kU, 1e-17}), &y);
    Buffer x = Buffer::of({-1e30f, -1e13f, -40.0f, 40.0f, 1e13f, 1e30f, kNan});
    Buffer dx = Buffer::of({1, 2, 3, 4, 5, 6, 7}, true);
    const auto backward = [&](auto t) {
      using T = decltype(t);
      return ActArgs<T>{x.as<T>(), dx.as<T>(), dx.as<T>(), x.size(), kind, 0};
    };
    // Not the reference here: in double, too, inf * 0 appears. The limits are 0 and 1 (relu2: 2 x).
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      INFO(std::string(target.name));
      dx.reset();
      target.table()->act_backward(backward(float()), Share{0, 1, nullptr});
      for (int64_t i = 0; i < 6; ++i) {
        const double side = kind == Act::none || x.initial(i) > 0 ? 1.0 : 0.0;
        const double slope = kind == Act::relu2 ? 2.0 * side * x.initial(i) : side;
        CHECK(dx.narrow(i) == doctest::Approx(slope * dx.initial(i)).epsilon(1e-6));
      }
      if (kind == Act::gelu || kind == Act::gelu_tanh || kind == Act::silu || kind == Act::relu2) CHECK(std::isnan(dx.narrow(6)));
    }
  }
}

TEST_CASE("glu and glu_backward") {
  for (const Act kind : kActs) {
    for (const int64_t n : kSizes) {
      CAPTURE((int)kind); CAPTURE(n);
      Buffer gate = Buffer::input(n, 1, -6.0, 6.0), up = Buffer::input(n, 2), dy = Buffer::input(n, 3), y = Buffer::output(n);
      const auto forward = [&](auto t) {
        using T = decltype(t);
        GluArgs<T> args{};
        args.gate = gate.as<T>(), args.up = up.as<T>(), args.y = y.as<T>(), args.n = n, args.act = kind;
        return args;
      };
      CHECK_KERNEL(glu, forward, (Tolerance{8 * kU, 48 * kU + 1e-37}), &y);
      for (int which = 0; which < 8; ++which) {
        CAPTURE(which);
        const bool gate_wanted = which != 4, up_wanted = which != 5;
        Buffer dgate = Buffer::output(n, 7), dup = Buffer::output(n, 8);
        const auto backward = [&](auto t) {
          using T = decltype(t);
          auto args = forward(t);
          args.dy = dy.as<T>();
          args.dgate = gate_wanted ? dgate.as<T>() : nullptr;
          args.dup = up_wanted ? dup.as<T>() : nullptr;
          args.accumulate_dgate = which & 1, args.accumulate_dup = which >> 1 & 1;
          return args;
        };
        CHECK_KERNEL(glu_backward, backward, (Tolerance{8 * kU, 4 * 64 * kU}), &dgate, &dup);
      }
    }
  }
}

double right_unary(Unary op, double x) {
  double y = 0.0;
  ref::unary(UnaryArgs<double>{&x, &y, 1, op}, Share{0, 1, nullptr});
  return y;
}

// The promise of simd/math.h over floats of every size, sign and kind, in units in the last place of the result.
TEST_CASE("accuracy of exp, log, tanh, erf, sigmoid over all floats") {
  const struct {
    Unary op;
    double ulp, flushed;  // results smaller than `flushed` may be 0
  } functions[] = {{Unary::exp, 1.05, 1.17549436e-38}, {Unary::log, 0.8, 0.0},       {Unary::tanh, 1.35, 0.0},
                   {Unary::erf, 1.15, 0.0},            {Unary::sigmoid, 2.4, 1.2e-38}, {Unary::rsqrt, 1.51, 0.0},
                   {Unary::sqrt, 0.501, 0.0},          {Unary::reciprocal, 0.501, 0.0}};
  std::vector<float> x;
  for (uint64_t bits = 0; bits < (1ull << 32); bits += 9973) {
    const uint32_t word = (uint32_t)bits;
    float v;
    std::memcpy(&v, &word, 4);
    x.push_back(v);
  }
  for (const float v : {0.0f, -0.0f, 1.0f, kInf, -kInf, kNan, 88.7228394f, 88.73f, -87.3365448f, -87.34f, 1.17549435e-38f, 1e-45f})
    x.push_back(v);
  std::vector<float> y(x.size());
  for (const auto& function : functions) {
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      const UnaryArgs<float> args{x.data(), y.data(), (int64_t)x.size(), function.op};
      run_shares(target.table()->unary, args, plan_unary(args), false);
      double worst = 0.0;
      int64_t wrong = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double right = right_unary(function.op, x[i]);
        if (std::isnan(right) || std::isinf((float)right)) {
          wrong += std::isnan(right) ? !std::isnan(y[i]) : y[i] != (float)right;
        } else if (std::fabs(right) < function.flushed) {
          wrong += std::fabs(y[i]) > 1.2e-38f;
        } else {
          const double ulp = std::ldexp(1.0, std::max(std::ilogb(right), -126) - 23);
          worst = std::fmax(worst, right == 0.0 ? y[i] != 0.0f : std::fabs(y[i] - right) / ulp);
        }
      }
      INFO("operation " << (int)function.op << " on " << std::string(target.name));
      CHECK(worst <= function.ulp);
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("unary, fill and axpy at every size") {
  for (const int64_t n : kSizes) {
    CAPTURE(n);
    Buffer x = Buffer::input(n, 1, 0.01, 3.0), y = Buffer::output(n), alpha = Buffer::of({0.75f});
    for (int op = 0; op <= (int)Unary::cos; ++op) {
      CAPTURE(op);
      const auto make = [&](auto t) {
        using T = decltype(t);
        return UnaryArgs<T>{x.as<T>(), y.as<T>(), n, (Unary)op};
      };
      CHECK_KERNEL(unary, make, (Tolerance{5 * kU, 1e-37}), &y);
    }
    const auto filled = [&](auto t) {
      using T = decltype(t);
      return FillArgs<T>{y.as<T>(), n, -1.25};
    };
    CHECK_KERNEL(fill, filled, (Tolerance{0.0, 0.0}), &y);
    for (const double beta : {0.0, 1.0, -0.5}) {
      Buffer sum = beta == 0.0 && n > 0 ? Buffer::of(std::vector<float>((size_t)n, kNan), true) : Buffer::output(n);
      const auto make = [&](auto t) {
        using T = decltype(t);
        return AxpyArgs<T>{x.as<T>(), sum.as<T>(), beta == 1.0 ? nullptr : alpha.as<T>(), n, 1.5, beta};
      };
      CHECK_KERNEL(axpy, make, (Tolerance{0.0, 3 * kU * 6.0}), &sum);  // |alpha x| + |beta y| < 6
    }
  }
}

struct Strided {
  std::vector<int64_t> shape, a, b;  // strides of the two operands
};
// Contiguous; broadcast rows, columns and scalars; transposed; six axes; size-1 axes; nothing.
const Strided kStrided[] = {
    {{}, {}, {}},
    {{1}, {1}, {0}},
    {{17}, {1}, {1}},
    {{40000}, {1}, {0}},
    {{0}, {1}, {1}},
    {{3, 0, 2}, {0, 2, 1}, {0, 2, 1}},
    {{33, 65}, {65, 1}, {0, 1}},
    {{65, 33}, {33, 1}, {1, 0}},
    {{200, 170}, {1, 200}, {170, 1}},
    {{31, 1, 64}, {64, 64, 1}, {64, 7, 1}},
    {{5, 7, 9, 60}, {60, 300, 2100, 1}, {3780, 540, 60, 1}},
    {{2, 3, 4, 5, 6, 7}, {2520, 0, 210, 42, 0, 1}, {0, 840, 0, 42, 7, 0}},
    {{2, 3, 2, 3, 64, 33}, {1, 2, 6, 12, 36, 2304}, {38016, 12672, 6336, 2112, 33, 1}},
    {{300, 9}, {18, 2}, {9, 1}},
};

int64_t product(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}
int64_t span(const std::vector<int64_t>& shape, const std::vector<int64_t>& stride) {
  int64_t last = 1;
  for (size_t i = 0; i < shape.size(); ++i) last += (shape[i] - 1) * stride[i];
  return product(shape) == 0 ? 0 : last;
}

TEST_CASE("binary over strides") {
  for (const Strided& s : kStrided) {
    const int64_t n = product(s.shape);
    Buffer a = Buffer::input(span(s.shape, s.a), 1), b = Buffer::input(span(s.shape, s.b), 2, 0.5, 2.0), y = Buffer::output(n);
    for (int64_t i = 0; i < std::min(a.size(), b.size()); i += 5) a.set(i, b.initial(i));  // something for equal to find
    for (int op = 0; op <= (int)Binary::equal; ++op) {
      CAPTURE(op); CAPTURE(n);
      const auto make = [&](auto t) {
        using T = decltype(t);
        BinaryArgs<T> args{};
        args.a = a.as<T>(), args.b = b.as<T>(), args.y = y.as<T>();
        args.dims = (int32_t)s.shape.size(), args.op = (Binary)op;
        std::copy(s.shape.begin(), s.shape.end(), args.shape);
        std::copy(s.a.begin(), s.a.end(), args.stride_a);
        std::copy(s.b.begin(), s.b.end(), args.stride_b);
        return args;
      };
      CHECK_KERNEL(binary, make, (Tolerance{kU, 0.0}), &y);
    }
  }
}

TEST_CASE("binary with NaN and infinities") {
  const std::vector<float> values = {0.0f, 1.0f, -1.0f, kInf, -kInf, kNan, 1e-40f};
  Buffer a = Buffer::of(values), b = Buffer::of(values), y = Buffer::output(49);
  for (int op = 0; op <= (int)Binary::equal; ++op) {
    const auto make = [&](auto t) {
      using T = decltype(t);
      return BinaryArgs<T>{a.as<T>(), b.as<T>(), y.as<T>(), {7, 7}, {1, 0}, {0, 1}, 2, (Binary)op};
    };
    if ((Binary)op != Binary::div) CHECK_KERNEL(binary, make, (Tolerance{kU, 1e-44}), &y);  // 1 / 1e-40 is inf in float only
  }
}

TEST_CASE("copy both ways") {
  for (const Strided& s : kStrided) {
    const int64_t n = product(s.shape);
    for (const bool to_x : {false, true}) {
      for (const bool accumulate : {false, true}) {
        // The second strides do not overlap unless they broadcast, which a destination may not.
        const std::vector<int64_t>& stride = to_x ? s.b : s.a;
        bool overlaps = false;
        for (size_t i = 0; i < stride.size(); ++i) overlaps |= stride[i] == 0 && s.shape[i] > 1;
        if (to_x && overlaps) continue;
        CAPTURE(n); CAPTURE(to_x); CAPTURE(accumulate);
        Buffer x = to_x ? Buffer::output(span(s.shape, stride)) : Buffer::input(span(s.shape, stride), 3);
        Buffer y = to_x ? Buffer::input(n, 3) : Buffer::output(n);
        const auto make = [&](auto t) {
          using T = decltype(t);
          CopyArgs<T> args{};
          args.x = x.as<T>(), args.y = y.as<T>(), args.dims = (int32_t)s.shape.size();
          args.to_x = to_x, args.accumulate = accumulate;
          std::copy(s.shape.begin(), s.shape.end(), args.shape);
          std::copy(stride.begin(), stride.end(), args.stride);
          return args;
        };
        CHECK_KERNEL(copy, make, (Tolerance{kU, 0.0}), to_x ? &x : &y);
      }
    }
  }
}

TEST_CASE("reduce") {
  const int64_t shapes[][3] = {{1, 0, 3},  {3, 0, 1},   {0, 5, 2},   {1, 1, 1},    {1, 16385, 1},  {1, 40000, 1}, {7, 33, 1},
                               {65, 9, 1}, {300, 64, 1}, {3, 17, 31}, {1, 1000, 65}, {2, 40, 1000}, {5000, 3, 5},  {1, 3, 20000}};
  for (const auto& shape : shapes) {
    for (const bool accumulate : {false, true}) {
      for (const Reduce op : {Reduce::sum, Reduce::max}) {
        CAPTURE(shape[0]); CAPTURE(shape[1]); CAPTURE(shape[2]); CAPTURE(accumulate); CAPTURE((int)op);
        const int64_t n = shape[0] * shape[1] * shape[2];
        Buffer x = Buffer::input(n, 4), y = Buffer::output(shape[0] * shape[2]);
        if (op == Reduce::max && n > 100) x.set(n / 2, kNan), x.set(n / 3, kInf);
        const auto make = [&](auto t) {
          using T = decltype(t);
          return ReduceArgs<T>{x.as<T>(), y.as<T>(), nullptr, shape[0], shape[1], shape[2], op, accumulate};
        };
        // A chain of at most min(axis, 2048) additions: error <= links * u * (sum of |x| <= 2 axis); taken at 1/16, the
        // random walk being far inside its bound.
        const double links = (double)std::min<int64_t>(shape[1], 2048) + 2.0;
        CHECK_KERNEL(reduce, make, (Tolerance{2 * kU, kU * links * 2.0 * (double)shape[1] / 16.0 + 4 * kU}), &y);
      }
    }
  }
}

TEST_CASE("dropout: one mask on every target, in the right proportion") {
  for (const int64_t n : kSizes) {
    for (const double p : {0.0, 0.1, 0.5, 0.99, 1.0}) {
      for (const bool accumulate : {false, true}) {
        CAPTURE(n); CAPTURE(p); CAPTURE(accumulate);
        Buffer x = Buffer::input(n, 1, 1.0, 2.0), y = Buffer::output(n);
        const int64_t step = 12;
        const auto make = [&](auto t) {
          using T = decltype(t);
          return DropoutArgs<T>{x.as<T>(), y.as<T>(), &step, 0x1234567890abcdefull, 77, n, p, accumulate};
        };
        // A wrong mask bit shows as an error of at least 1: one comparison is both tests.
        if (p < 1.0) CHECK_KERNEL(dropout, make, (Tolerance{3 * kU, 3 * kU * 2.0 / (1.0 - p)}), &y);
        run_shares(current_target().table()->dropout, make(float()), plan_dropout(make(float())), false);
        if (p == 1.0 && !accumulate)
          for (int64_t i = 0; i < n; ++i) REQUIRE(y.narrow(i) == 0.0f);
      }
    }
  }
  const int64_t n = 1 << 20;
  std::vector<float> x(n, 1.0f), y(n);
  for (const double p : {0.1, 0.5, 0.9}) {
    for (int64_t step = 0; step < 3; ++step) {
      const DropoutArgs<float> args{x.data(), y.data(), &step, 5, 3, n, p, 0};
      run_shares(current_target().table()->dropout, args, plan_dropout(args), false);
      double kept = 0.0;
      for (const float v : y) kept += v != 0.0f;
      CHECK(std::fabs(kept - n * (1.0 - p)) < 5.0 * std::sqrt(n * p * (1.0 - p)));  // five standard deviations
    }
  }
}

TEST_CASE("philox matches the published vectors") {
  const Philox4 zeros = philox4x32(0, 0, 0);
  const uint32_t right_zeros[] = {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u};
  const Philox4 pi = philox4x32(0x299f31d0a4093822ull, 0x85a308d3243f6a88ull, 0x0370734413198a2eull);
  const uint32_t right_pi[] = {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u};
  for (int i = 0; i < 4; ++i) {
    CHECK(zeros.v[i] == right_zeros[i]);
    CHECK(pi.v[i] == right_pi[i]);
  }
  CHECK(dropout_threshold(0.0) == 0);
  CHECK(dropout_threshold(0.5) == 1u << 15);
  CHECK(dropout_threshold(1.0) == 1u << 16);
  CHECK(dropout_threshold(1e-9) == 1);  // some are dropped
  CHECK(dropout_threshold(1.0 - 1e-9) == 65535);
}

}  // namespace
