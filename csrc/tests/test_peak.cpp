// The loops that measure the machine, on every target: what they leave behind, not how fast they are.
#include "kernel_case.h"

namespace {

using namespace mg;
using namespace mg::test;

TEST_CASE("peak") {
  for (const int64_t shares : {0, 1, 3}) {
    CAPTURE(shares);
    std::vector<double> right((size_t)shares + 1, -1.0);
    ref::peak(PeakArgs<double>{right.data(), shares}, Share{0, 1, nullptr});
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      INFO(std::string(target.name));
      std::vector<float> narrow((size_t)shares + 1, -1.0f), wide = narrow;
      const PeakArgs<float> args{wide.data(), shares};
      run_shares(target.table()->peak, args, plan_peak(args), true);
      const PeakArgs<bf16> pairs{narrow.data(), shares};
      run_shares(target.table_bf16()->peak, pairs, plan_peak(pairs), true);
      // Exact: the chains end at 1, or go back to where they began with mean 1.
      for (size_t i = 0; i <= (size_t)shares; ++i) {
        CHECK((double)wide[i] == right[i]);
        CHECK((double)narrow[i] == right[i]);
      }
    }
  }
}

TEST_CASE("read") {
  for (const int64_t n : {int64_t(0), int64_t(1), int64_t(17), kReadGrain, kReadGrain + 1, 3 * kReadGrain - 5}) {
    CAPTURE(n);
    Buffer x = Buffer::input(n, 1);
    const size_t chunks = (size_t)((n + kReadGrain - 1) / kReadGrain);
    std::vector<double> right(chunks + 1, -1.0);
    ref::read(ReadArgs<double>{x.as<double>(), right.data(), n}, Share{0, 1, nullptr});
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      INFO(std::string(target.name));
      std::vector<double> ours(chunks + 1, -1.0);
      const ReadArgs<float> args{x.as<float>(), ours.data(), n};
      run_shares(target.table()->read, args, plan_read(args), true);
      // Chains of at most 128 (kSumBlock / 4 vectors of 4) additions of numbers below 2, then double.
      for (size_t i = 0; i < chunks; ++i) CHECK(std::fabs(ours[i] - right[i]) <= 132 * kU * 2.0 * (double)kReadGrain);
      CHECK(ours[chunks] == -1.0);
    }
  }
}

}  // namespace
