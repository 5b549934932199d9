// Selective scan, causal convolution and recurrences on every target, against the references in double.
#include "kernel_case.h"
#include "kernels/scan_tiles.h"

namespace {

using namespace mg;
using namespace mg::test;

// Packed sequences: around the stride of saved states, some of them empty.
struct Layout {
  std::vector<int32_t> starts{0}, positions;
  explicit Layout(const std::vector<int>& lengths) {
    for (const int n : lengths) {
      for (int i = 0; i < n; ++i) positions.push_back(i);
      starts.push_back(starts.back() + n);
    }
  }
  int64_t tokens() const { return starts.back(); }
  int64_t seqs() const { return (int64_t)starts.size() - 1; }
};
const std::vector<std::vector<int>> kLengths = {{1}, {5}, {31, 1, 0, 33}, {0, 97, 0}};
constexpr int64_t kChannels[] = {1, 15, 16, 17, 65, 130};

// What a kernel of ours leaves in `out` in double, as an input of another.
template <class Wide, class PlanOf, class Make> Buffer filled(Wide wide, PlanOf plan_of, const Make& make, Buffer& out) {
  out.reset();
  run_shares(reference_table().*wide, make(double()), plan_of(make(double())), false);
  std::vector<float> values;
  for (int64_t i = 0; i < out.size(); ++i) values.push_back((float)out.wide(i));
  return Buffer::of(std::move(values));
}

// Decays are between exp(-1.8) and exp(-0.05), so a state forgets what is about twenty rows old: it is below 20 and, a decay
// being off by 5 + 3 * 1.8 roundings, off by 20 * 10 * 20 of them at most. Of the sums, N, rows or channels take part.
constexpr double kStateError = 4000 * kU;

TEST_CASE("selective_scan and selective_scan_backward") {
  for (const auto& lengths : kLengths) {
    for (const int64_t channels : kChannels) {
      for (const int64_t states : {1, 3, 16, 17}) {
        for (const bool fused : {false, true}) {
          if (channels > 20 && fused != (states == 17)) continue;
          const Layout layout(lengths);
          const int64_t tokens = layout.tokens(), n = tokens * channels, rows = tokens / kScanStride + layout.seqs();
          CAPTURE(tokens); CAPTURE(channels); CAPTURE(states); CAPTURE(fused);
          Buffer u = Buffer::input(n, 1), delta = fused ? Buffer::input(n, 2, -2.0, -0.5) : Buffer::input(n, 2, 0.1, 0.6),
                 a = Buffer::input(channels * states, 3, -3.0, -0.5), b = Buffer::input(tokens * states, 4),
                 c = Buffer::input(tokens * states, 5), skip = Buffer::input(channels, 6), z = Buffer::input(n, 7),
                 bias = Buffer::input(channels, 8, -0.2, 0.2), state = Buffer::output(layout.seqs() * states * channels, 9),
                 saved = Buffer::output(rows * states * channels), y = Buffer::output(n), dy = Buffer::input(n, 10),
                 du = Buffer::output(n, 11), ddelta = Buffer::output(n, 12), dz = Buffer::output(n, 13),
                 da = Buffer::output(channels * states, 14), dskip = Buffer::output(channels, 15), dbias = Buffer::output(channels, 16),
                 db = Buffer::output(scan_blocks(channels) * tokens * states), dc = Buffer::output(db.size());
          Buffer* kept = &saved;
          bool stateful = false;
          const auto make = [&](auto t) {
            using T = decltype(t);
            ScanArgs<T> args{};
            args.u = u.as<T>(), args.delta = delta.as<T>(), args.a = a.as<T>(), args.b = b.as<T>(), args.c = c.as<T>();
            if (fused) args.skip = skip.as<T>(), args.z = z.as<T>(), args.delta_bias = bias.as<T>(), args.softplus = 1;
            args.state = stateful ? state.as<T>() : nullptr, args.saved = kept->as<T>();
            args.q_start = layout.starts.data(), args.y = y.as<T>();
            args.tokens = tokens, args.channels = channels, args.states = states, args.seqs = layout.seqs();
            return args;
          };
          const Tolerance near{64 * kU, kStateError}, sum{64 * kU, 2 * kStateError * (double)(states + 1)};
          CHECK_KERNEL(selective_scan, make, (Tolerances{sum, near}), &y, &saved);
          stateful = true;
          CHECK_KERNEL(selective_scan, make, (Tolerances{sum, near}), &y, &state);
          stateful = false;
          Buffer given = filled(&KernelTable<double>::selective_scan,
                                [](const auto& args) { return plan_selective_scan(args); }, make, saved);
          kept = &given;
          const auto back = [&](auto t) {
            using T = decltype(t);
            ScanBackwardArgs<T> args{};
            args.fwd = make(t), args.dy = dy.as<T>(), args.du = du.as<T>(), args.ddelta = ddelta.as<T>(), args.da = da.as<T>();
            if (fused) args.dz = dz.as<T>(), args.dskip = dskip.as<T>(), args.ddelta_bias = dbias.as<T>();
            args.part_db = db.as<T>(), args.part_dc = dc.as<T>();
            args.accumulate_du = fused, args.accumulate_ddelta = !fused, args.accumulate_da = fused, args.accumulate_dskip = 1;
            return args;
          };
          const Tolerance element{64 * kU, 20 * kStateError * (double)(states + 1)};
          const Tolerance total{64 * kU, 20 * kStateError * (double)(states + 1) * 10};  // errors of 130 terms: a random walk
          CHECK_KERNEL(selective_scan_backward, back, (Tolerances{element, element, total, total, total}), &du, &ddelta, &da, &db, &dc);
          if (fused) CHECK_KERNEL(selective_scan_backward, back, (Tolerances{element, total, total}), &dz, &dskip, &dbias);
        }
      }
    }
  }
}

TEST_CASE("causal_conv1d and causal_conv1d_backward") {
  for (const auto& lengths : kLengths) {
    for (const int64_t channels : kChannels) {
      for (const int64_t taps : {1, 2, 4, 7}) {
        for (int which = 0; which < 4; ++which) {
          const bool silu = which & 1, stateful = which & 2;
          const Layout layout(lengths);
          const int64_t tokens = layout.tokens(), n = tokens * channels;
          CAPTURE(tokens); CAPTURE(channels); CAPTURE(taps); CAPTURE(which);
          Buffer x = Buffer::input(n, 1), weight = Buffer::input(channels * taps, 2), bias = Buffer::input(channels, 3),
                 state = Buffer::output(layout.seqs() * (taps - 1) * channels, 4), y = Buffer::output(n), dy = Buffer::input(n, 5),
                 dx = Buffer::output(n, 6), dweight = Buffer::output(channels * taps, 7), dbias = Buffer::output(channels, 8);
          const auto make = [&](auto t) {
            using T = decltype(t);
            return ConvArgs<T>{x.as<T>(), weight.as<T>(), silu ? bias.as<T>() : nullptr, layout.starts.data(),
                               stateful ? state.as<T>() : nullptr, y.as<T>(), tokens, channels, taps, layout.seqs(),
                               silu ? Act::silu : Act::none};
          };
          const double size = 4.0 * (double)taps + 2.0;  // of the sum before the activation; each of its terms rounds
          const Tolerance element{16 * kU, size * (double)(taps + 8) * kU};
          CHECK_KERNEL(causal_conv1d, make, (Tolerances{element, {0.0, 0.0}}), &y, &state);
          if (stateful) continue;
          const auto back = [&](auto t) {
            using T = decltype(t);
            return ConvBackwardArgs<T>{make(t), dy.as<T>(), dx.as<T>(), dweight.as<T>(), dbias.as<T>(), silu, !silu, silu};
          };
          // The slope of silu is below 1.1 and is off by half the error of the sum, and by eight roundings of it and of itself.
          const double slope = 2.0 * size * (double)(taps + 16) * kU;
          const Tolerance gradient{16 * kU, 2.0 * (double)taps * slope}, total{16 * kU, 4.0 * (double)tokens * slope};
          CHECK_KERNEL(causal_conv1d_backward, back, (Tolerances{gradient, total, total}), &dx, &dweight, &dbias);
        }
      }
    }
  }
}

TEST_CASE("linear_recurrence, rg_lru and their backwards") {
  for (const auto& lengths : kLengths) {
    for (const int64_t channels : kChannels) {
      for (const bool stateful : {false, true}) {
        const Layout layout(lengths);
        const int64_t tokens = layout.tokens(), n = tokens * channels;
        CAPTURE(tokens); CAPTURE(channels); CAPTURE(stateful);
        Buffer x = Buffer::input(n, 1), a = Buffer::input(n, 2, -0.9, 0.9), gate = Buffer::input(n, 3),
               param = Buffer::input(channels, 4, -3.0, 1.0), state = Buffer::output(layout.seqs() * channels, 5), h = Buffer::output(n),
               dh = Buffer::input(n, 6), dx = Buffer::output(n, 7), da = Buffer::output(n, 8), dgate = Buffer::output(n, 9),
               dparam = Buffer::output(channels, 10);
        Buffer* kept = &h;
        const auto make = [&](auto t) {
          using T = decltype(t);
          return RecurrenceArgs<T>{x.as<T>(), a.as<T>(), layout.starts.data(), stateful ? state.as<T>() : nullptr, kept->as<T>(),
                                   tokens, channels, layout.seqs()};
        };
        const auto unit = [&](auto t) {
          using T = decltype(t);
          return RgLruArgs<T>{x.as<T>(), gate.as<T>(), a.as<T>(), param.as<T>(), layout.positions.data(), layout.starts.data(),
                              stateful ? state.as<T>() : nullptr, kept->as<T>(), tokens, channels, layout.seqs()};
        };
        // |h| < 20: ten rows of 2 are remembered, two roundings each; of RG-LRU, with a decay above exp(-8 * 0.9 * 1.4) or
        // near 1, thirty roundings of each of a hundred rows.
        CHECK_KERNEL(linear_recurrence, make, (Tolerance{8 * kU, 20 * 20 * kU}), &h, &state);
        CHECK_KERNEL(rg_lru, unit, (Tolerance{64 * kU, 20 * 3000 * kU}), &h, &state);
        if (stateful) continue;
        Buffer given = filled(&KernelTable<double>::linear_recurrence,
                              [](const auto& args) { return plan_linear_recurrence(args); }, make, h);
        kept = &given;
        const auto back = [&](auto t) {
          using T = decltype(t);
          return RecurrenceBackwardArgs<T>{make(t), dh.as<T>(), dx.as<T>(), da.as<T>(), 1, 0};
        };
        CHECK_KERNEL(linear_recurrence_backward, back, (Tolerance{16 * kU, 20 * 20 * 20 * kU}), &dx, &da);
        const auto unit_back = [&](auto t) {
          using T = decltype(t);
          return RgLruBackwardArgs<T>{unit(t), dh.as<T>(), dx.as<T>(), dgate.as<T>(), da.as<T>(), dparam.as<T>(), 1, 0, 1, 0};
        };
        const Tolerance element{64 * kU, 20 * 20 * 3000 * kU}, total{64 * kU, 20 * 20 * 3000 * 10 * kU};
        CHECK_KERNEL(rg_lru_backward, unit_back, (Tolerances{element, element, element, total}), &dx, &dgate, &da, &dparam);
      }
    }
  }
}

}  // namespace
