// Every type of quantized weight: products, rows and permuted columns on every target against the reference.
#include "core/qblock.h"
#include "kernel_case.h"

namespace {

using namespace mg;
using namespace mg::test;

// A weight with codes at the ends of their range as often as between; unit: scales of 1 and minima of -1.
struct Weight {
  std::vector<uint8_t> data;
  std::vector<float> tables;
  std::vector<int32_t> order;
  QWeight w;
};
Weight weight_of(QType type, int64_t n, int64_t k, int64_t group, bool unit, bool ordered = false) {
  const QTraits& t = kQTraits[(int)type];
  if (t.channel) group = q_channel_group(k);
  else if (t.group) group = t.group;
  Weight made;
  made.data.assign((size_t)(q_panels(n) * q_groups(k, group) * q_block_bytes(type, group)), 0xee);
  Random random(11);
  made.tables.resize((size_t)q_table_floats(type, n, k, group));
  for (size_t i = 0; i < made.tables.size(); ++i) made.tables[i] = (float)random.uniform(0.1, 1.0) - (i < 16 ? 0.5f : 0.0f);
  if (ordered) {
    for (int64_t i = 0; i < k; ++i) made.order.push_back((int32_t)((i * 37 + 5) % k));
  }
  made.w = {made.data.data(), n, k, group, type, made.tables.empty() ? nullptr : made.tables.data(),
            ordered ? made.order.data() : nullptr};
  const uint64_t most = (1u << (t.low + t.high)) - 1;
  const auto number = [&] { return unit ? 1.0f : half_value(half_of((float)random.uniform(-0.02, 0.02))); };
  for (int64_t row = 0; row < q_panels(n) * kQCols; ++row) {
    for (int64_t g = 0; g < q_groups(k, group); ++g) {
      const QColumn to = q_column(made.w, made.data.data(), row, g);
      std::vector<uint8_t> codes((size_t)group);
      for (uint8_t& code : codes) {
        const uint64_t kind = random.next() >> 20 & 3;
        code = (uint8_t)(kind == 0 ? 0 : kind == 1 ? most : (random.next() >> 20) % (most + 1));
      }
      q_put_codes(type, to, codes.data(), 0, group);
      if (t.part) {
        uint8_t scales[16], leasts[16];
        const bool wide = t.scale == QScale::fields_6k;
        const uint8_t limit = wide ? 255 : t.scale == QScale::fields_2k ? 15 : 63;
        const uint8_t one = t.scale == QScale::fields_3k || t.scale == QScale::fields_xs ? 33 : 1;
        for (int i = 0; i < 16; ++i) {
          scales[i] = unit ? one : (uint8_t)((random.next() >> 20) % (limit + 1u));
          leasts[i] = unit ? 1 : (uint8_t)((random.next() >> 20) % (limit + 1u));
        }
        q_put_fields(type, to, scales, leasts, half_of(unit ? 1.0f : number() / 32.0f), half_of(unit ? 1.0f : number() / 32.0f));
      } else if (t.scale == QScale::exponent || t.scale == QScale::nested) {
        to.scales[to.c] = (uint8_t)(unit ? 128 : 118 + (random.next() >> 20) % 4);
      } else {
        q_put_scale(type, to, number());
        if (t.least == QLeast::minimum) q_put_number(t.scale, q_least_at(type, to) + 2 * to.c, -number());
        else if (t.least == QLeast::zero) q_put_zero(type, to, (uint8_t)((random.next() >> 20) % (most + 1)));
      }
    }
  }
  return made;
}

struct Shape {
  int64_t m, n, k, group;
};
std::vector<Shape> shapes(QType type) {
  if (kQTraits[(int)type].part) return {{1, 33, 256, 256}, {2, 40, 512, 256}, {5, 64, 256, 256}, {7, 33, 512, 256}, {20, 32, 256, 256}, {109, 33, 512, 256}};
  std::vector<Shape> all = {{1, 40, 100, 32}, {2, 33, 72, 32}, {3, 1, 1, 32}, {6, 33, 288, 32}, {13, 40, 300, 32}, {40, 32, 64, 32}, {109, 33, 300, 32}};
  if (!kQTraits[(int)type].group)
    for (const int64_t group : {16, 24, 64, 256})
      for (const int64_t m : {1, 21}) all.push_back({m, 33, 300, group});
  return all;
}

// What roundings add at most: each of a few fma a part, of sums bounded by all that is added up.
double bound(const QWeight& w, double x_scale) {
  float values[256], scales[kQMostParts], leasts[kQMostParts];
  q_values(w, values);
  double most = 0.0, sums = 0.0;
  for (int i = 0; i < 1 << (kQTraits[(int)w.type].low + kQTraits[(int)w.type].high); ++i) most = std::fmax(most, std::fabs(values[i]));
  int parts = 0;
  for (int64_t g = 0; g < q_groups(w.k, w.group); ++g) {
    double largest = 0.0;
    for (int64_t row = 0; row < w.n; ++row) {
      double sum = 0.0;
      parts = q_parts(w, q_column(w, const_cast<uint8_t*>(w.data), row, g), scales, leasts);
      for (int p = 0; p < parts; ++p) sum += std::fabs(scales[p]) * most + std::fabs(leasts[p]);
      largest = std::fmax(largest, sum);
    }
    sums += largest;
  }
  return (double)(4 * parts * q_groups(w.k, w.group) + 4) * kU * sums * 127.0 * x_scale * (double)q_part(w.type, w.group);
}

std::string named(QType type, const Shape& s) {
  return std::string(kQTraits[(int)type].name) + " m " + std::to_string(s.m) + " n " + std::to_string(s.n) + " k " +
         std::to_string(s.k) + " group " + std::to_string(s.group);
}

// Activations as a target makes them.
struct Rows {
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> starts;
  Rows(const QWeight& w, int64_t m) {
    const int64_t groups = q_groups(w.k, w.group);
    codes.assign((size_t)(m * groups * w.group), (int8_t)77);
    scales.resize((size_t)(m * groups));
    starts.resize((size_t)(m * groups * q_starts(w.type)));
  }
  template <class T> QRowsArgs<T> args(const QWeight& w, const T* x, int64_t m) {
    return {x, codes.data(), scales.data(), starts.data(), w.order, m, w.k, w.group, w.type};
  }
};
QGemmArgs<float> product(const QWeight& w, const Rows& rows, int64_t m, float* c) {
  QGemmArgs<float> args{};
  args.w = w;
  args.codes = rows.codes.data(), args.scales = rows.scales.data(), args.starts = rows.starts.data();
  args.c = c, args.m = m, args.act = Act::none;
  return args;
}

TEST_CASE("products of every type") {
  for (int number = 0; number < kQTypes; ++number) {
    const QType type = (QType)number;
    if (kQTraits[number].book == QBook::floats) continue;
    for (const Shape& s : shapes(type)) {
      INFO(named(type, s));
      const bool ordered = !kQTraits[number].channel && s.m == 2;
      Buffer x = Buffer::input(s.m * s.k, 3), bias = Buffer::input(s.n, 4), residual = Buffer::input(s.m * s.n, 5);
      for (int64_t i = 0; i < s.m * s.k; i += 3) x.set(i, i % 2 ? 2.0f : -2.0f);  // the ends: 127 and -127
      for (const bool unit : {true, false}) {
        const Weight weight = weight_of(type, s.n, s.k, s.group, unit, ordered);
        Rows right(weight.w, s.m);
        ref::qrows(right.args(weight.w, x.as<double>(), s.m), Share{0, 1, nullptr});
        for (const Target& target : targets()) {
          if (!target.supported) continue;
          INFO(std::string(target.name));
          Rows rows(weight.w, s.m);
          const auto args = rows.args(weight.w, (const float*)x.as<float>(), s.m);
          run_shares(target.table()->qrows, args, plan_qrows(args), true);
          CHECK(rows.codes == right.codes);
          CHECK(rows.scales == right.scales);
          CHECK(rows.starts == right.starts);
        }
        if (unit) std::fill(right.scales.begin(), right.scales.end(), 1.0f);  // integers below 2^24: no tolerance
        Buffer c = Buffer::output(s.m * s.n), slope = Buffer::output(s.m * s.n);
        const auto make = [&](auto t) {
          using T = decltype(t);
          QGemmArgs<T> args{};
          args.w = weight.w;
          args.codes = right.codes.data(), args.scales = right.scales.data(), args.starts = right.starts.data();
          args.c = c.as<T>(), args.m = s.m, args.act = unit ? Act::none : Act::silu;
          if (!unit) args.bias = bias.as<T>(), args.residual = residual.as<T>(), args.slope = slope.as<T>();
          return args;
        };
        const Tolerance tolerance = unit ? Tolerance{0.0, 0.0} : Tolerance{8 * kU, 1.2 * bound(weight.w, 2.0 / 127.0) + 8 * kU};
        if (unit) CHECK_KERNEL(qgemm, make, tolerance, &c);
        else CHECK_KERNEL(qgemm, make, tolerance, &c, &slope);
      }
    }
  }
}

TEST_CASE("sums at the ends of their range are exact") {
  const int64_t m = 7, n = 33, k = 512;
  Buffer x = Buffer::input(m * k, 3);
  for (int64_t i = 0; i < m * k; ++i) {  // 127 and -127: all, none, every other one, pairs, quads; and sums that come back
    const int64_t row = i / k, at = i % k;
    const bool low = row == 0 ? false : row == 1 ? true : row == 6 ? at >= k / 2 : at >> (row - 2) & 1;
    x.set(i, low ? -2.0f : 2.0f);
  }
  for (int number = 0; number < kQTypes; ++number) {
    const QType type = (QType)number;
    const QTraits& t = kQTraits[number];
    if (t.book == QBook::floats) continue;
    INFO(std::string(t.name));
    for (int ends = 0; ends < 3; ++ends) {  // lowest codes, highest, by turns
      Weight weight = weight_of(type, n, k, 32, true);
      std::vector<uint8_t> codes((size_t)weight.w.group);
      for (size_t i = 0; i < codes.size(); ++i)
        codes[i] = (uint8_t)(ends == 1 || (ends == 2 && i % 2) ? (1u << (t.low + t.high)) - 1 : 0);
      for (int64_t row = 0; row < q_panels(n) * kQCols; ++row)
        for (int64_t g = 0; g < q_groups(k, weight.w.group); ++g)
          q_put_codes(type, q_column(weight.w, weight.data.data(), row, g), codes.data(), 0, weight.w.group);
      Rows rows(weight.w, m);
      ref::qrows(rows.args(weight.w, x.as<double>(), m), Share{0, 1, nullptr});
      std::fill(rows.scales.begin(), rows.scales.end(), 1.0f);
      Buffer c = Buffer::output(m * n);
      const auto make = [&](auto u) {
        using T = decltype(u);
        QGemmArgs<T> args{};
        args.w = weight.w;
        args.codes = rows.codes.data(), args.scales = rows.scales.data(), args.starts = rows.starts.data();
        args.c = c.as<T>(), args.m = m, args.act = Act::none;
        return args;
      };
      CHECK_KERNEL(qgemm, make, (Tolerance{0.0, 0.0}), &c);  // below 255 x 127 x 512 + 127 x 512 < 2^24
    }
  }
}

TEST_CASE("a row of every type has the same bits alone, and on every target that fuses multiplication and addition") {
  for (int number = 0; number < kQTypes; ++number) {
    const QType type = (QType)number;
    if (kQTraits[number].book == QBook::floats) continue;
    INFO(std::string(kQTraits[number].name));
    const int64_t m = 29, n = 70, k = kQTraits[number].part ? 512 : 200;
    const Weight weight = weight_of(type, n, k, 32, false);
    Buffer x = Buffer::input(m * k, 8);
    std::vector<float> first;
    for (const Target& target : targets()) {
      if (!target.supported) continue;
      INFO(std::string(target.name));
      const auto multiply = [&](const float* given, int64_t count) {
        Rows rows(weight.w, count);
        const auto args = rows.args(weight.w, given, count);
        run_shares(target.table()->qrows, args, plan_qrows(args), false);
        std::vector<float> c((size_t)(count * n));
        const auto gemm = product(weight.w, rows, count, c.data());
        run_shares(target.table()->qgemm, gemm, plan_qgemm(gemm), false);
        return c;
      };
      const std::vector<float> all = multiply(x.as<float>(), m);
      for (const int64_t count : {1, 2, 7, 13}) {
        for (int64_t r = 0; r + count <= m; r += count) {
          const std::vector<float> some = multiply(x.as<float>() + r * k, count);
          CHECK(std::memcmp(some.data(), all.data() + r * n, (size_t)(count * n) * sizeof(float)) == 0);
        }
      }
      if (std::string(target.name) == "scalar") continue;
      if (first.empty()) first = all;
      CHECK(first == all);
    }
  }
}

TEST_CASE("rows of every type as numbers") {
  for (int number = 0; number < kQTypes; ++number) {
    const QType type = (QType)number;
    INFO(std::string(kQTraits[number].name));
    const int64_t n = 50, k = kQTraits[number].part ? 512 : 150;
    const std::vector<int32_t> ids = {0, 49, 7, 7, 31, 32};
    for (const bool ordered : {false, true}) {
      const Weight weight = weight_of(type, n, k, 32, false, ordered && !kQTraits[number].channel);
      for (const bool gather : {false, true}) {
        const int64_t rows = gather ? (int64_t)ids.size() : 37;
        Buffer y = Buffer::output(rows * k);
        const auto make = [&](auto t) {
          using T = decltype(t);
          return QDequantizeArgs<T>{weight.w, gather ? ids.data() : nullptr, y.as<T>(), rows, 13};
        };
        CHECK_KERNEL(qdequantize, make, (Tolerance{0.0, 0.0}), &y);  // the same operations of float
      }
    }
  }
}

}  // namespace
