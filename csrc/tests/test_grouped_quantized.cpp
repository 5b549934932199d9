// Products of experts with quantized weights: each expert's rows have the bits of a product of their own, in whichever order
// shares run and with exactly the scratch that the plan asks for.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/qblock.h"
#include "kernel_case.h"
#include "kernels/grouped_quantized.h"

namespace {

using namespace mg;
using namespace mg::test;

template <class T> const KernelTable<T>* table_of(const Target& target) {
  if constexpr (std::is_same_v<T, float>) return target.table();
  else return target.table_bf16();
}

template <class A> void run_all(void (*kernel)(const A&, const Share&), const A& args, Plan plan, bool backwards) {
  for (int64_t i = 0; i < plan.shares; ++i) {
    std::vector<float> scratch(plan.scratch_bytes / 4 + 48, std::nanf(""));
    const size_t skip = (64 - (size_t)(reinterpret_cast<uintptr_t>(scratch.data()) % 64)) / 4 % 16;  // as the team aligns it
    const float guard = -3.5e33f;
    for (size_t j = skip + plan.scratch_bytes / 4; j < scratch.size(); ++j) scratch[j] = guard;
    kernel(args, Share{backwards ? plan.shares - 1 - i : i, plan.shares, scratch.data() + skip});
    for (size_t j = skip + plan.scratch_bytes / 4; j < scratch.size(); ++j) CHECK(scratch[j] == guard);
  }
}

template <class T> bool same(const T* a, const std::vector<T>& b) {
  return b.empty() || std::memcmp(a, b.data(), b.size() * sizeof(T)) == 0;
}
template <class T> std::vector<T> random_of(int64_t size, uint64_t seed) {
  std::vector<T> made((size_t)size);
  Random random(seed);
  for (T& each : made) assign(each, (float)random.uniform(-1.0, 1.0));
  return made;
}

struct Rows {
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> starts;
  Rows(int64_t rows, int64_t groups, int64_t group, QType type)
      : codes((size_t)(rows * groups * group)), scales((size_t)(rows * groups)), starts((size_t)(rows * groups * q_starts(type))) {}
  bool operator==(const Rows& other) const {
    return codes == other.codes && scales == other.scales && starts == other.starts;
  }
};

template <class T> void check(const Target& target, QType type, std::vector<int64_t> counts, int64_t n, int64_t k, bool ordered) {
  const KernelTable<T>& table = *table_of<T>(target);
  const int64_t experts = (int64_t)counts.size(), group = kQTraits[(int)type].channel ? q_channel_group(k) : 32;
  const int64_t groups = q_groups(k, group), bytes = q_panels(n) * groups * q_block_bytes(type, group);
  const int64_t stride = bytes + (ordered ? 4 * k : 0);
  std::vector<int32_t> offsets = {0}, order;
  for (int64_t count : counts) offsets.push_back(offsets.back() + (int32_t)count);
  const int64_t rows = offsets.back(), tokens = rows / 2 + 1;
  for (int64_t r = 0; r < rows; ++r) order.push_back((int32_t)(r * 7 % (2 * tokens)));
  std::vector<uint8_t> data((size_t)(experts * stride));
  for (int64_t e = 0; e < experts; ++e) {
    const std::vector<float> values = random_of<float>(n * k, 11 + (uint64_t)e);
    uint8_t* to = data.data() + e * stride;
    const QuantizeArgs<float> args{values.data(), {to, n, k, group, type, nullptr, nullptr}, to, n, 0};
    run_all(table_of<float>(target)->quantize, args, plan_quantize(args), false);
    for (int64_t i = 0; ordered && i < k; ++i) {
      const int32_t column = (int32_t)((i * 5 + e) % k);  // k has no factor of 5
      memcpy(to + bytes + 4 * i, &column, 4);
    }
  }
  const auto weight = [&](int64_t e) {
    const uint8_t* at = data.data() + e * stride;
    return QWeight{at, n, k, group, type, nullptr, ordered ? reinterpret_cast<const int32_t*>(at + bytes) : nullptr};
  };
  const QExperts all = {offsets.data(), experts, stride};
  const std::vector<T> x = random_of<T>(rows * k, 3), bias = random_of<T>(experts * n, 4), dy = random_of<T>(rows * n, 5);
  const std::vector<T> given = random_of<T>(tokens * k, 6);
  for (const bool backwards : {false, true}) {
    // Activations: those of each expert's rows alone; gathered, those of the tokens.
    Rows made(rows, groups, group, type), found = made, whole(tokens, groups, group, type);
    const GroupedQRowsArgs<T> some = {{x.data(), made.codes.data(), made.scales.data(), made.starts.data(), weight(0).order, rows, k, group, type},
                                      all, table.qrows};
    run_all(&grouped_qrows<T>, some, plan_grouped_qrows(some), backwards);
    const QRowsArgs<T> every{given.data(), whole.codes.data(), whole.scales.data(), whole.starts.data(), nullptr, tokens, k, group, type};
    run_all(table.qrows, every, plan_qrows(every), backwards);
    const QGatherArgs gather = {whole.codes.data(), whole.scales.data(), whole.starts.data(), order.data(), found.codes.data(),
                                found.scales.data(), found.starts.data(), all, rows, tokens, 2, groups, group, type};
    run_all(&qgather, gather, plan_qgather(gather), backwards);
    std::vector<T> y((size_t)(rows * n)), numbers = y;
    std::vector<float> dx((size_t)(rows * k), 0.5f);
    GroupedQGemmArgs<T> product = {};
    product.product.w = weight(0), product.product.m = rows, product.product.c = y.data(), product.product.bias = bias.data();
    product.product.codes = made.codes.data(), product.product.scales = made.scales.data(), product.product.starts = made.starts.data();
    product.experts = all, product.kernel = table.qgemm;
    run_all(&grouped_qgemm<T>, product, plan_grouped_qgemm(product), backwards);
    GroupedQNumbersArgs<T> plain = {};
    plain.w = weight(0), plain.experts = all, plain.a = x.data(), plain.c = numbers.data(), plain.bias = bias.data(), plain.rows = rows;
    plain.numbers = table.qdequantize, plain.product = table.gemm;
    run_all(&grouped_qnumbers<T>, plain, plan_grouped_qnumbers(plain), backwards);
    GroupedQNumbersArgs<T> back = plain;
    back.a = dy.data(), back.bias = nullptr, back.c = nullptr, back.to_inputs = 1, back.accumulate = backwards;
    if constexpr (std::is_same_v<T, float>) back.c = dx.data();
    else back.wide_c = dx.data();
    run_all(&grouped_qnumbers<T>, back, plan_grouped_qnumbers(back), backwards);

    for (int64_t e = 0; e < experts; ++e) {
      const int64_t first = offsets[(size_t)e], count = offsets[(size_t)e + 1] - first;
      if (count == 0) continue;
      Rows one(count, groups, group, type);
      const auto part = [&](const Rows& of) {
        Rows cut = one;
        const int64_t starts = groups * q_starts(type);
        memcpy(cut.codes.data(), of.codes.data() + first * groups * group, cut.codes.size());
        memcpy(cut.scales.data(), of.scales.data() + first * groups, 4 * cut.scales.size());
        memcpy(cut.starts.data(), of.starts.data() + first * starts, 4 * cut.starts.size());
        return cut;
      };
      const auto round = [&](const T* values, const int32_t* columns) {
        const QRowsArgs<T> args{values, one.codes.data(), one.scales.data(), one.starts.data(), columns, count, k, group, type};
        run_all(table.qrows, args, plan_qrows(args), false);
      };
      std::vector<T> mine((size_t)(count * k));
      for (int64_t r = 0; r < count; ++r)
        memcpy(mine.data() + r * k, given.data() + order[(size_t)(first + r)] / 2 * k, (size_t)k * sizeof(T));
      round(mine.data(), nullptr);
      CHECK(part(found) == one);
      round(x.data() + first * k, weight(e).order);
      CHECK(part(made) == one);
      std::vector<T> right((size_t)(count * n));
      QGemmArgs<T> gemm = {};
      gemm.w = weight(e), gemm.codes = one.codes.data(), gemm.scales = one.scales.data(), gemm.starts = one.starts.data();
      gemm.c = right.data(), gemm.bias = bias.data() + e * n, gemm.m = count;
      run_all(table.qgemm, gemm, plan_qgemm(gemm), false);
      CHECK(same(y.data() + first * n, right));

      std::vector<T> values((size_t)(n * k));
      const QDequantizeArgs<T> all_rows = {weight(e), nullptr, values.data(), n, 0};
      run_all(table.qdequantize, all_rows, plan_qdequantize(all_rows), false);
      GemmArgs<T> times = {};
      times.a = x.data() + first * k, times.b = values.data(), times.c = right.data(), times.bias = bias.data() + e * n;
      times.m = count, times.n = n, times.k = k, times.lda = times.ldb = k, times.ldc = n, times.batch = 1, times.trans_b = 1;
      run_all(table.gemm, times, plan_gemm(times), false);
      CHECK(same(numbers.data() + first * n, right));
      std::vector<float> sums((size_t)(count * k), 0.5f);
      times.a = dy.data() + first * n, times.bias = nullptr, times.c = nullptr, times.accumulate = backwards;
      if constexpr (std::is_same_v<T, float>) times.c = sums.data();
      else times.wide_c = sums.data();
      times.n = k, times.k = n, times.lda = n, times.ldb = times.ldc = k, times.trans_b = 0;
      run_all(table.gemm, times, plan_gemm(times), false);
      CHECK(same(dx.data() + first * k, sums));
    }
  }
}

}  // namespace

TEST_CASE("groups of rows have the bits of quantized products of their own") {
  const std::vector<std::vector<int64_t>> splits = {{5, 0, 3}, {0, 0}, {1, 1, 1, 1, 1}, {0, 70, 0}, {300, 1, 259}, {13, 40, 0, 2}};
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    INFO(std::string(target.name));
    for (const auto& counts : splits) {
      for (const QType type : {QType::int4, QType::int8, QType::int8_channel}) {
        check<float>(target, type, counts, 65, 72, false);
        check<bf16>(target, type, counts, 65, 72, false);
      }
      check<float>(target, QType::int4, counts, 33, 48, true);
      check<bf16>(target, QType::int4, counts, 33, 48, true);
    }
    check<float>(target, QType::int4, {3, 0, 270}, 300, 2048, false);  // several pieces of numbers
    check<bf16>(target, QType::int4, {3, 0, 270}, 300, 2048, false);
  }
}
