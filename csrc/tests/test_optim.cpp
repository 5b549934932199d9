// Gradient norm, clipping and the optimizers on every target, against the references in double.
#include "kernel_case.h"

#include <limits>

namespace {

using namespace mg;
using namespace mg::test;

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

TEST_CASE("sum_squares") {
  for (const int64_t n : kSizes) {
    // Plain; squares that overflow float but not double; squares all below float.
    for (const double size : {2.0, 1e25, 1e-30}) {
      CAPTURE(n); CAPTURE(size);
      Buffer x = Buffer::input(n, 1, -size, size);
      const size_t chunks = (size_t)((n + kNormChunk - 1) / kNormChunk);
      std::vector<double> right(chunks + 1, -1.0);
      ref::sum_squares(SumSquaresArgs<double>{x.as<double>(), right.data(), n}, Share{0, 1, nullptr});
      for (const Target& target : targets()) {
        if (!target.supported) continue;
        INFO(std::string(target.name));
        std::vector<double> ours(chunks + 1, -1.0);
        const SumSquaresArgs<float> args{x.as<float>(), ours.data(), n};
        run_shares(target.table()->sum_squares, args, plan_sum_squares(args), true);
        // 256 squares in float chains of at most 64, positive: a few u of the sum.
        for (size_t i = 0; i < chunks; ++i) CHECK(std::fabs(ours[i] - right[i]) <= 8 * kU * right[i] + 1e-34);
        CHECK(ours[chunks] == -1.0);
      }
    }
  }
  for (const float bad : {kInf, -kInf, kNan}) {
    Buffer x = Buffer::input(300, 1);
    x.set(299, bad);
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      double sum = 0.0;
      target.table()->sum_squares(SumSquaresArgs<float>{x.as<float>(), &sum, 300}, Share{0, 1, nullptr});
      CHECK(!std::isfinite(sum));
    }
  }
}

TEST_CASE("clip") {
  struct Case {
    std::vector<double> partial;
    float loss;
    double max_norm;
    float norm, factor, finite;
  };
  const double nan = kNan, inf = kInf;
  const Case cases[] = {
      {{9.0, 16.0}, 1.0f, 1.0, 5.0f, (float)(1.0 / (5.0 + 1e-6)), 1.0f},
      {{9.0, 16.0}, 1.0f, 10.0, 5.0f, 1.0f, 1.0f},
      {{9.0, 16.0}, 1.0f, 0.0, 5.0f, 1.0f, 1.0f},
      {{}, 1.0f, 1.0, 0.0f, 1.0f, 1.0f},
      {{25.0}, kNan, 1.0, 5.0f, 0.0f, 0.0f},
      {{25.0}, kInf, 0.0, 5.0f, 0.0f, 0.0f},
      {{inf}, 1.0f, 1.0, kInf, 0.0f, 0.0f},
      {{nan, 1.0}, 1.0f, 1.0, kNan, 0.0f, 0.0f},
      {{1e80}, 1.0f, 1.0, std::numeric_limits<float>::max(), (float)1e-40, 1.0f},  // 1e40 is no float
  };
  for (const Case& c : cases) {
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      INFO(std::string(target.name));
      float control[5] = {kGuard, 0, 0, 0, kGuard};
      const ClipArgs<float> args{c.partial.data(), &c.loss, control + 1, (int64_t)c.partial.size(), c.max_norm};
      target.table()->clip(args, Share{0, 1, nullptr});
      CHECK(control[0] == kGuard);
      CHECK((std::isnan(c.norm) ? std::isnan(control[1]) : control[1] == c.norm));
      CHECK(control[2] == c.factor);
      CHECK(control[3] == c.finite);
      CHECK(control[4] == kGuard);
    }
  }
}

// Runs `steps` optimizer steps with fresh gradients, ours and the reference's side by side.
template <class Step>
void check_optimizer(int64_t n, int64_t steps, std::vector<Buffer*> state, Tolerance tolerance, const Step& one_step) {
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    INFO(std::string(target.name));
    for (Buffer* buffer : state) buffer->reset();
    for (int64_t step = 1; step <= steps; ++step) {
      Buffer grad = Buffer::input(n, (uint64_t)step);
      one_step(target, grad, step);
    }
    for (size_t i = 0; i < state.size(); ++i) {
      INFO("state " << i);
      CHECK(state[i]->guards_hold());
      CHECK(difference(*state[i], tolerance) == "");
    }
  }
}

TEST_CASE("adamw: fifty steps") {
  for (const int64_t n : kSizes) {
    CAPTURE(n);
    const bool controlled = n % 2;
    const double beta1 = n % 3 ? 0.9 : 0.8, beta2 = n % 3 ? 0.999 : 0.95;
    Buffer param = Buffer::output(n, 1), m = Buffer::of(std::vector<float>((size_t)n), true),
           v = Buffer::of(std::vector<float>((size_t)n), true), hyper = Buffer::of({0.01f}), control = Buffer::of({3, 0.25f, 1});
    // Each step rounds p (|p| < 3) a few times and the update (<= lr * about 2) by a few u; m and v forget.
    check_optimizer(n, n > 2000 ? 5 : 50, {&param, &m, &v}, Tolerance{16 * kU, 50 * 3 * kU},
                    [&](const Target& target, Buffer& grad, int64_t step) {
                      const auto make = [&](auto t) {
                        using T = decltype(t);
                        return AdamWArgs<T>{param.as<T>(), m.as<T>(), v.as<T>(), grad.as<T>(), hyper.as<T>(),
                                            controlled ? control.as<T>() : nullptr, &step, n, beta1, beta2, 1e-8, 0.1, 0.5, nullptr};
                      };
                      ref::adamw(make(double()), Share{0, 1, nullptr});
                      run_shares(target.table()->adamw, make(float()), plan_adamw(make(float())), step % 2);
                    });
  }
}

// Eight steps worked by hand in the order of torch.optim.AdamW's single-tensor code, one number, in double.
TEST_CASE("adamw is torch's formula") {
  double p = 0.5, m = 0.0, v = 0.0;
  float param = 0.5f, first = 0.0f, second = 0.0f;
  const float hyper = 0.125f;
  for (int64_t step = 1; step <= 8; ++step) {
    const float grad = (float)step / 8.0f - 0.375f;
    p *= 1.0 - 0.125 * 0.01;
    m = 0.9 * m + 0.1 * grad;
    v = 0.95 * v + 0.05 * grad * grad;
    const double step_size = 0.125 / (1.0 - std::pow(0.9, (double)step));
    p -= step_size * m / (std::sqrt(v) / std::sqrt(1.0 - std::pow(0.95, (double)step)) + 1e-8);
    const AdamWArgs<float> args{&param, &first, &second, &grad, &hyper, nullptr, &step, 1, 0.9, 0.95, 1e-8, 0.01, 1.0, nullptr};
    current_target().table()->adamw(args, Share{0, 1, nullptr});
    CHECK(std::fabs(param - p) <= 8 * 4 * kU);
  }
}

TEST_CASE("sgd") {
  for (const int64_t n : kSizes) {
    for (int which = 0; which < 8; ++which) {
      CAPTURE(n); CAPTURE(which);
      const bool momentum = which & 1, nesterov = (which & 2) && momentum, controlled = which & 4;
      Buffer param = Buffer::output(n, 1), buf = Buffer::of(std::vector<float>((size_t)n, kNan), true),
             hyper = Buffer::of({0.05f}), control = Buffer::of({3, 0.25f, 1});
      std::vector<Buffer*> state = {&param};
      if (momentum) state.push_back(&buf);
      // Five steps of values below 8, three roundings each.
      check_optimizer(n, 5, state, Tolerance{4 * kU, 5 * 3 * 8 * kU}, [&](const Target& target, Buffer& grad, int64_t step) {
        const auto make = [&](auto t) {
          using T = decltype(t);
          return SgdArgs<T>{param.as<T>(), momentum ? buf.as<T>() : nullptr, grad.as<T>(), hyper.as<T>(),
                            controlled ? control.as<T>() : nullptr, &step, n, momentum ? 0.9 : 0.0, 0.1, 2.0, nesterov, nullptr};
        };
        ref::sgd(make(double()), Share{0, 1, nullptr});
        run_shares(target.table()->sgd, make(float()), plan_sgd(make(float())), step % 2);
      });
    }
  }
}

TEST_CASE("a step that is not finite changes nothing") {
  Buffer param = Buffer::output(100, 1), m = Buffer::output(100, 2), v = Buffer::output(100, 3), grad = Buffer::input(100, 4),
         hyper = Buffer::of({0.1f}), control = Buffer::of({kNan, kNan, 0});
  grad.set(3, kNan);
  const int64_t step = 2;
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    const std::vector<float> before[] = {param.all(), m.all(), v.all()};
    target.table()->adamw({param.as<float>(), m.as<float>(), v.as<float>(), grad.as<float>(), hyper.as<float>(),
                           control.as<float>(), &step, 100, 0.9, 0.999, 1e-8, 0.1, 1.0, nullptr}, Share{0, 1, nullptr});
    target.table()->sgd({param.as<float>(), m.as<float>(), grad.as<float>(), hyper.as<float>(), control.as<float>(), &step, 100,
                         0.9, 0.1, 1.0, 1, nullptr}, Share{0, 1, nullptr});
    CHECK(same_bits(before[0], param.all()));
    CHECK(same_bits(before[1], m.all()));
    CHECK(same_bits(before[2], v.all()));
  }
}

}  // namespace
