// Quantized weights: every target against the reference, integers exact at their extremes, rows alone and in a batch.
#include "core/qblock.h"
#include "kernel_case.h"

namespace {

using namespace mg;
using namespace mg::test;

int64_t group_of(QType type, int64_t k, int64_t group) { return kQTraits[(int)type].channel ? q_channel_group(k) : group; }

std::vector<uint8_t> empty_weight(QType type, int64_t n, int64_t k, int64_t group) {
  return std::vector<uint8_t>((size_t)(q_panels(n) * q_groups(k, group) * q_block_bytes(type, group)), 0xee);
}

// Codes at the ends of their range as often as between, and the scales given.
std::vector<uint8_t> packed(QType type, int64_t n, int64_t k, int64_t group, bool unit_scales) {
  std::vector<uint8_t> data = empty_weight(type, n, k, group), codes((size_t)(n * k));
  std::vector<float> scales((size_t)(n * q_groups(k, group)));
  Random random(7);
  const uint64_t most = (1u << kQTraits[(int)type].low) - 1;
  for (uint8_t& code : codes) {
    const uint64_t kind = random.next() >> 20 & 3;
    code = (uint8_t)(kind == 0 ? 0 : kind == 1 ? most : (random.next() >> 20) % (most + 1));
  }
  for (float& scale : scales) scale = unit_scales ? 1.0f : half_value(half_of((float)random.uniform(-0.02, 0.02)));
  const QPackArgs args{codes.data(), scales.data(), nullptr, nullptr, {data.data(), n, k, group, type, nullptr, nullptr},
                       data.data(), n, 0};
  run_shares(&qpack, args, plan_qpack(args), true);
  return data;
}

struct Shape {
  QType type;
  int64_t m, n, k, group;
};
std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const QType type : {QType::int8_channel, QType::int8, QType::int4}) {
    for (const int64_t m : {1, 2, 3, 5, 6, 7, 13, 30}) all.push_back({type, m, 40, 72, 32});
    for (const int64_t group : {16, 24, 64, 256}) all.push_back({type, 4, 33, 300, group});
    all.push_back({type, 3, 1, 1, 16});
    all.push_back({type, 130, 96, 1024, 32});
  }
  return all;
}

TEST_CASE("qrows and qgemm") {
  for (const Shape& s : shapes()) {
    const int64_t group = group_of(s.type, s.k, s.group), groups = q_groups(s.k, group);
    INFO(std::string(kQTraits[(int)s.type].name) << " m " << s.m << " n " << s.n << " k " << s.k << " group " << group);
    Buffer x = Buffer::input(s.m * s.k, 3), bias = Buffer::input(s.n, 4), residual = Buffer::input(s.m * s.n, 5);
    for (int64_t i = 0; i < s.m * s.k; i += 3) x.set(i, i % 2 ? 2.0f : -2.0f);  // the ends: 127 and -127
    std::vector<int8_t> codes((size_t)(s.m * groups * group)), right = codes;
    std::vector<float> scales((size_t)(s.m * groups)), right_scales = scales;
    std::vector<int32_t> starts((size_t)(s.m * groups)), right_starts = starts;
    ref::qrows(QRowsArgs<double>{x.as<double>(), right.data(), right_scales.data(), right_starts.data(), nullptr, s.m, s.k, group, s.type},
               Share{0, 1, nullptr});
    for (const bool unit : {true, false}) {
      const std::vector<uint8_t> data = packed(s.type, s.n, s.k, group, unit);
      const std::vector<float> ones((size_t)(s.m * groups), 1.0f);
      Buffer c = Buffer::output(s.m * s.n), slope = Buffer::output(s.m * s.n);
      const auto make = [&](auto t) {
        using T = decltype(t);
        QGemmArgs<T> args{};
        args.w = {data.data(), s.n, s.k, group, s.type, nullptr, nullptr};
        args.codes = right.data(), args.scales = unit ? ones.data() : right_scales.data(), args.starts = right_starts.data();
        args.c = c.as<T>(), args.m = s.m, args.act = unit ? Act::none : Act::silu;
        if (!unit) args.bias = bias.as<T>(), args.residual = residual.as<T>(), args.slope = slope.as<T>();
        return args;
      };
      // Sums of products below 2^24 are exact with scales of 1: no tolerance. With scales each group adds two roundings of
      // at most |sum so far|, bounded by groups * 128 * 127 * group * the scales.
      const double size = 0.02 * (2.0 / 127.0) * 128.0 * 127.0 * (double)(group * groups);
      const Tolerance tolerance = unit ? Tolerance{0.0, 0.0} : Tolerance{8 * kU, 4.0 * (double)(groups + 2) * kU * size + 8 * kU};
      if (unit) CHECK_KERNEL(qgemm, make, tolerance, &c);
      else CHECK_KERNEL(qgemm, make, tolerance, &c, &slope);
    }
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      INFO(std::string(target.name));
      const QRowsArgs<float> args{x.as<float>(), codes.data(), scales.data(), starts.data(), nullptr, s.m, s.k, group, s.type};
      std::fill(codes.begin(), codes.end(), (int8_t)77);
      run_shares(target.table()->qrows, args, plan_qrows(args), true);
      CHECK(codes == right);
      CHECK(scales == right_scales);
      CHECK(starts == right_starts);
    }
  }
}

TEST_CASE("a row of a quantized product has the same bits alone") {
  for (const QType type : {QType::int8_channel, QType::int8, QType::int4}) {
    const int64_t m = 29, n = 70, k = 200, group = group_of(type, k, 32), groups = q_groups(k, group);
    const std::vector<uint8_t> data = packed(type, n, k, group, false);
    Buffer x = Buffer::input(m * k, 8);
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      INFO(std::string(target.name));
      const auto product = [&](const float* rows, int64_t count) {
        std::vector<int8_t> codes((size_t)(count * groups * group));
        std::vector<float> scales((size_t)(count * groups)), c((size_t)(count * n));
        std::vector<int32_t> starts((size_t)(count * groups));
        const QRowsArgs<float> rounded{rows, codes.data(), scales.data(), starts.data(), nullptr, count, k, group, type};
        run_shares(target.table()->qrows, rounded, plan_qrows(rounded), false);
        QGemmArgs<float> args{};
        args.w = {data.data(), n, k, group, type, nullptr, nullptr};
        args.codes = codes.data(), args.scales = scales.data(), args.starts = starts.data(), args.c = c.data(), args.m = count;
        args.act = Act::none;
        run_shares(target.table()->qgemm, args, plan_qgemm(args), false);
        return c;
      };
      const std::vector<float> all = product(x.as<float>(), m);
      for (int64_t r = 0; r < m; ++r) {
        const std::vector<float> one = product(x.as<float>() + r * k, 1);
        CHECK(std::memcmp(one.data(), all.data() + r * n, (size_t)n * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("activations that are not finite") {
  const int64_t m = 8, n = 33, k = 96;
  for (const QType type : {QType::int8_channel, QType::int8, QType::int4}) {
    const int64_t group = group_of(type, k, 32), groups = q_groups(k, group);
    const std::vector<uint8_t> data = packed(type, n, k, group, false);
    for (const float bad : {NAN, INFINITY, -INFINITY, 1e-42f}) {
      for (const int64_t place : {int64_t(0), int64_t(31), int64_t(70)}) {
        Buffer x = Buffer::input(m * k, 8);
        for (int64_t i = 0; bad == 1e-42f && i < k; ++i) x.set(3 * k + i, bad);  // whose inverse is infinite
        x.set(3 * k + place, bad);
        for (const Target& target : targets()) {
          if (!target.supported) continue;
          INFO(std::string(target.name) << " " << bad << " at " << place);
          std::vector<int8_t> codes((size_t)(m * groups * group));
          std::vector<float> scales((size_t)(m * groups)), c((size_t)(m * n));
          std::vector<int32_t> starts((size_t)(m * groups));
          const QRowsArgs<float> rounded{x.as<float>(), codes.data(), scales.data(), starts.data(), nullptr, m, k, group, type};
          run_shares(target.table()->qrows, rounded, plan_qrows(rounded), false);
          QGemmArgs<float> args{};
          args.w = {data.data(), n, k, group, type, nullptr, nullptr};
          args.codes = codes.data(), args.scales = scales.data(), args.starts = starts.data(), args.c = c.data(), args.m = m;
          args.act = Act::none;
          run_shares(target.table()->qgemm, args, plan_qgemm(args), false);
          for (int64_t i = 0; i < m * n; ++i) {
            if (i / n != 3) CHECK(std::isfinite(c[(size_t)i]));
            else if (bad == 1e-42f) CHECK(c[(size_t)i] == 0.0f);
            else CHECK(std::isnan(c[(size_t)i]));
          }
        }
      }
    }
  }
}

TEST_CASE("qdequantize") {
  for (const QType type : {QType::int8_channel, QType::int8, QType::int4}) {
    const int64_t n = 50, k = 150, group = group_of(type, k, 32);
    const std::vector<uint8_t> data = packed(type, n, k, group, false);
    const std::vector<int32_t> ids = {0, 49, 7, 7, 31, 32};
    for (const bool gather : {false, true}) {
      const int64_t rows = gather ? (int64_t)ids.size() : 37;
      Buffer y = Buffer::output(rows * k);
      const auto make = [&](auto t) {
        using T = decltype(t);
        return QDequantizeArgs<T>{{data.data(), n, k, group, type, nullptr, nullptr}, gather ? ids.data() : nullptr, y.as<T>(), rows, 13};
      };
      CHECK_KERNEL(qdequantize, make, (Tolerance{0.0, 0.0}), &y);  // one product of 11 by 8 bits
    }
  }
}

struct Error {
  double root, size;  // of the squares of what rounding took, and of the numbers
};

TEST_CASE("quantize") {
  for (const QType type : {QType::int8_channel, QType::int8, QType::int4}) {
    for (const int64_t k : {1, 40, 520}) {
      const int64_t n = 45, group = group_of(type, k, 32), groups = q_groups(k, group);
      INFO(std::string(kQTraits[(int)type].name) << " k " << k);
      Buffer x = Buffer::input(n * k, 11);
      for (int64_t i = 0; i < k; ++i) x.set(i, 0.0f), x.set(2 * k + i, 1e-42f);
      x.set(k, NAN);
      std::vector<uint8_t> right = empty_weight(type, n, k, group);
      const QWeight w = {right.data(), n, k, group, type, nullptr, nullptr};
      ref::quantize(QuantizeArgs<double>{x.as<double>(), w, right.data(), n, 0}, Share{0, 1, nullptr});
      const auto error = [&](std::vector<uint8_t>& data, int64_t r, int64_t g) {
        const QColumn at = q_column(w, data.data(), r, g);
        std::vector<uint8_t> codes((size_t)group);
        q_get_codes(type, at, codes.data(), 0, group);
        double sum = 0.0, square = 0.0;
        for (int64_t i = g * group; i < std::min(k, (g + 1) * group); ++i) {
          square += x.wide(r * k + i) * x.wide(r * k + i);
          const double off = x.wide(r * k + i) - q_get_scale(type, at) * (codes[(size_t)(i % group)] - kQTraits[(int)type].offset);
          sum += off * off;
        }
        return Error{std::sqrt(sum), std::sqrt(square)};
      };
      for (const Target& target : targets()) {
        if (!target.supported) continue;
        INFO(std::string(target.name));
        std::vector<uint8_t> data = empty_weight(type, n, k, group);
        const QuantizeArgs<float> args{x.as<float>(), {data.data(), n, k, group, type, nullptr, nullptr}, data.data(), n, 0};
        run_shares(target.table()->quantize, args, plan_quantize(args), true);
        for (int64_t r = 0; r < q_panels(n) * kQCols; ++r) {
          for (int64_t g = 0; g < groups; ++g) {
            const float scale = q_get_scale(type, q_column(w, data.data(), r, g));
            if (r == 1 && g == 0) CHECK(std::isnan(scale));
            else if (r == 0 || r == 2 || r >= n) CHECK(scale == 0.0f);
            else {  // the search finds no worse, but for the rounding of its scale to float16 (1/2,048) and of its sums
              const Error ours = error(data, r, g), plain = error(right, r, g);
              CHECK(ours.root <= plain.root + plain.size / 2048.0 + 1e-6);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("qfit") {
  for (const int64_t length : {1, 16, 32, 100}) {
    for (const bool weighted : {false, true}) {
      for (const int kind : {0, 1, 2, 3, 4}) {  // 4 bits of either sign, 8 bits, a minimum, one that is bounded, a book
        const int64_t groups = 77, kinds = 3;
        INFO("length " << length << " kind " << kind << (weighted ? " weighted" : ""));
        Buffer x = Buffer::input(groups * length, 21), w = Buffer::input(kinds * length, 22, 0.0, 1.0);
        for (int64_t i = 0; i < length; ++i) x.set(i, 0.0f), x.set(length + i, 0.75f), x.set(2 * length + i, -1e-42f);
        const std::vector<float> steps = {-1.0f, -0.3f, 0.0f, 0.6f};  // the largest on no tie
        const std::vector<double> wide_steps(steps.begin(), steps.end());
        const bool line = kind == 2 || kind == 3;
        const int high = kind == 0 ? 7 : kind == 1 || kind == 4 ? 127 : 15, low = kind == 0 ? -8 : line ? 0 : -127;
        const auto fill = [&](auto& args) {
          args.groups = groups, args.length = length, args.kinds = kinds, args.count = (int64_t)steps.size();
          args.low = low, args.high = high, args.sides = line ? 1 : 2, args.rounds = 1, args.bounded = kind == 3;
          args.book = kind == 4 ? QBook::iq4 : QBook::none;
        };
        std::vector<double> right((size_t)groups), right_least((size_t)groups);
        QFitArgs<double> plain{};
        plain.x = x.as<double>(), plain.weights = weighted ? w.as<double>() : nullptr, plain.steps = wide_steps.data();
        plain.scale = right.data(), plain.least = line ? right_least.data() : nullptr;
        fill(plain);
        ref::qfit(plain, Share{0, 1, nullptr});
        const auto error = [&](int64_t g, double scale, double least) {
          double sum = 0.0;
          for (int64_t i = 0; i < length; ++i) {
            const double v = std::fabs(scale) > kQTiny ? (x.wide(g * length + i) + least) / scale : 0.0;
            double q = std::fmin(std::fmax(std::nearbyint(v), low), high);
            if (kind == 4) {
              q = kQIq4[0];
              for (const int8_t entry : kQIq4)
                if (std::fabs(v - entry) < std::fabs(v - q)) q = entry;
            }
            const double off = x.wide(g * length + i) + least - scale * q;
            sum += (weighted ? w.wide(g % kinds * length + i) : 1.0) * off * off;
          }
          return sum;
        };
        for (const Target& target : targets()) {
          if (!target.supported) continue;
          INFO(std::string(target.name));
          std::vector<float> scale((size_t)groups, NAN), least((size_t)groups, 0.0f);
          QFitArgs<float> args{};
          args.x = x.as<float>(), args.weights = weighted ? w.as<float>() : nullptr, args.steps = steps.data();
          args.scale = scale.data(), args.least = line ? least.data() : nullptr;
          fill(args);
          run_shares(target.table()->qfit, args, plan_qfit(args), true);
          for (int64_t g = 0; g < groups; ++g) {
            // Costs are sums of `length` squares of differences that are rounded at the numbers' size, 2: candidates of
            // almost the same cost may change places.
            const double ours = error(g, scale[(size_t)g], least[(size_t)g]), best = error(g, right[(size_t)g], right_least[(size_t)g]);
            const double off = 8.0 * kU * 2.0 * (double)length;
            CHECK(ours <= best * (1.0 + (double)(length + 8) * kU) + 2.0 * std::sqrt(best) * off + off * off);
            if (kind == 3) CHECK(least[(size_t)g] >= 0.0f);
          }
        }
      }
    }
  }
}

TEST_CASE("blocks of GGUF come back as they were") {
  for (int number = 0; number < kQTypes; ++number) {
    const QType type = (QType)number;
    const int64_t bytes = q_gguf_bytes(type), group = kQTraits[number].group ? kQTraits[number].group : 32, n = 70, groups = 3;
    if (!bytes) continue;
    INFO(std::string(kQTraits[number].name));
    std::vector<uint8_t> blocks((size_t)(n * groups * bytes)), again(blocks.size() + 1, 0x5a);
    Random random(9);
    for (uint8_t& byte : blocks) byte = (uint8_t)(random.next() >> 20);
    std::vector<uint8_t> data = empty_weight(type, n, groups * group, group);
    const QWeight w = {data.data(), n, groups * group, group, type, nullptr, nullptr};
    std::vector<int32_t> finite((size_t)q_panels(n));
    const QBlocksArgs in{blocks.data(), finite.data(), w, data.data(), n, 0};
    run_shares(&qblocks, in, plan_qblocks(in), true);
    const QUnblocksArgs out{w, again.data(), n, 0};
    run_shares(&qunblocks, out, plan_qunblocks(out), true);
    CHECK(again.back() == 0x5a);
    again.pop_back();
    CHECK(again == blocks);
    const QUnblocksArgs part{w, again.data(), 6, 64};  // the rows of a last panel
    run_shares(&qunblocks, part, plan_qunblocks(part), true);
    CHECK(std::memcmp(again.data(), blocks.data() + 64 * groups * bytes, (size_t)(6 * groups * bytes)) == 0);
  }
}

TEST_CASE("float16") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = half_value((uint16_t)bits);
    if (std::isnan(value)) CHECK(std::isnan(half_value(half_of(value))));
    else CHECK(half_of(value) == bits);
  }
  CHECK(half_of(65519.0f) == 0x7bff);
  CHECK(half_of(65520.0f) == 0x7c00);
  CHECK(half_of(1.00048828125f) == 0x3c00);  // half way: to even
  CHECK(half_of(1.00146484375f) == 0x3c02);
}

}  // namespace
