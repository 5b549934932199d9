// What attention promises bit for bit: a row depends on its own query and its own keys only.
#include <doctest/doctest.h>

#include <algorithm>

#include "attention_problem.h"
#include "targets/dispatch.h"

namespace {

using namespace attention_test;

Config rich(std::vector<Sequence> seqs) {
  Config c;
  c.seqs = std::move(seqs);
  c.heads = 4, c.kv_heads = 2, c.k_dim = 20, c.v_dim = 36, c.alibi = true, c.soft_cap = 4;
  return c;
}
Config plain(std::vector<Sequence> seqs) {
  Config c;
  c.seqs = std::move(seqs);
  c.k_dim = 32, c.v_dim = 32;
  return c;
}
Config windowed(std::vector<Sequence> seqs) {
  Config c = plain(std::move(seqs));
  c.window = 17;
  return c;
}
Config widely_windowed(std::vector<Sequence> seqs) {
  Config c = rich(std::move(seqs));
  c.window = 600;
  return c;
}
using Maker = Config (*)(std::vector<Sequence>);
constexpr Maker kMakers[] = {rich, plain, windowed};

template <class Each> void each_target(Each each) {
  for (const mg::Target& target : mg::targets()) {
    if (!target.supported) continue;
    INFO(std::string(target.name));
    each(*target.table());
  }
}

// Rows [from, from + count) of a matrix with this stride.
template <class T> std::vector<T> rows_of(const std::vector<T>& x, int64_t from, int64_t count, int64_t stride) {
  return std::vector<T>(x.begin() + from * stride, x.begin() + (from + count) * stride);
}

// Rows [at, at + rows) of `whole` once more, as a sequence of their own against the keys that they may see.
void check_again(const mg::KernelTable<float>& table, Maker maker, const Problem<float>& whole, int64_t at, int64_t rows) {
  const mg::AttentionArgs<float>& f = whole.args.fwd;
  const int64_t keys = at + rows;
  Problem<float> part(maker({{rows, keys}}));
  part.q = rows_of(whole.q, at, rows, f.q_stride);
  part.k = rows_of(whole.k, 0, keys + 2 * kGap, f.k_stride);
  part.v = rows_of(whole.v, 0, keys + 2 * kGap, f.v_stride);
  // The cache beyond the last key holds garbage.
  std::fill(part.k.end() - kGap * f.k_stride, part.k.end(), NAN);
  std::fill(part.v.end() - kGap * f.v_stride, part.v.end(), NAN);
  part.bind();
  forward(table, part);
  REQUIRE(same_bits(part.o, rows_of(whole.o, at, rows, f.o_stride)));
  for (int64_t h = 0; h < f.heads; ++h)
    REQUIRE(same_bits(rows_of(part.lse, h * rows, rows, 1), rows_of(whole.lse, h * f.q_rows + at, rows, 1)));
}

}  // namespace

TEST_CASE("attention: sequences have the same bits packed and alone, forward and backward") {
  each_target([](const mg::KernelTable<float>& table) {
    for (Maker maker : kMakers) {
      const std::vector<Sequence> seqs = {{3, 3}, {0, 0}, {70, 70}, {1, 130}, {0, 4}, {29, 100}, {65, 65}, {0, 0}};
      Problem<float> packed(maker(seqs));
      forward(table, packed);
      backward(table, packed);
      const mg::AttentionArgs<float>& f = packed.args.fwd;
      for (size_t s = 0; s < seqs.size(); ++s) {
        Problem<float> alone(maker({seqs[s]}));
        const int64_t row = packed.q_start[s], key = packed.k_start[s] - kGap, keys = seqs[s].keys + 2 * kGap;
        alone.q = rows_of(packed.q, row, seqs[s].rows, f.q_stride);
        alone.d_o = rows_of(packed.d_o, row, seqs[s].rows, f.o_stride);
        alone.k = rows_of(packed.k, key, keys, f.k_stride);
        alone.v = rows_of(packed.v, key, keys, f.v_stride);
        alone.dk.assign(alone.dk.size(), NAN);  // zeros are written to the gaps
        alone.dv.assign(alone.dv.size(), NAN);
        alone.bind();
        forward(table, alone);
        CHECK(same_bits(alone.o, rows_of(packed.o, row, seqs[s].rows, f.o_stride)));
        backward(table, alone);
        CHECK(same_bits(alone.dq, rows_of(packed.dq, row, seqs[s].rows, f.q_stride)));
        CHECK(same_bits(alone.dk, rows_of(packed.dk, key, keys, f.k_stride)));
        CHECK(same_bits(alone.dv, rows_of(packed.dv, key, keys, f.v_stride)));
      }
    }
  });
}

TEST_CASE("attention: a row decoded against a cache has the bits of the prefill, by 1, 3, 7 or more rows") {
  each_target([](const mg::KernelTable<float>& table) {
    constexpr int64_t kLength = 200;
    for (Maker maker : kMakers) {
      Problem<float> whole(maker({{kLength, kLength}}));
      forward(table, whole);
      for (int64_t step : {1, 3, 7, 33, 64})
        for (int64_t at = 0; at < kLength; at += step) check_again(table, maker, whole, at, std::min(step, kLength - at));
    }
  });
}

TEST_CASE("attention: long sequences, whose keys are packed for more rows, have the bits of short ones") {
  each_target([](const mg::KernelTable<float>& table) {
    constexpr int64_t kLength = 2140;
    for (Maker maker : {rich, plain, windowed}) {
      Problem<float> whole(maker({{kLength, kLength}}));
      const mg::AttentionArgs<float>& f = whole.args.fwd;
      REQUIRE(mg::forward_rows(f) * (f.heads / f.kv_heads) > mg::kStackedRows);
      CHECK(forward(table, whole));
      for (int64_t at : {int64_t{0}, int64_t{250}, kLength - 300}) check_again(table, maker, whole, at, 300);
    }
  });
}

TEST_CASE("attention: a row against many keys has the bits of the prefill, whether they are cut over shares or not") {
  each_target([](const mg::KernelTable<float>& table) {
    constexpr int64_t kLength = 1100;
    for (Maker maker : {rich, plain, windowed, widely_windowed}) {
      Problem<float> whole(maker({{kLength, kLength}}));
      forward(table, whole);
      const mg::AttentionArgs<float>& f = whole.args.fwd;
      for (int64_t at : {0, 62, 63, 64, 511, 512, 520, 1023, 1024, 1099}) {
        const std::vector<Sequence> seqs = {{1, at + 1}, {0, 3}, {1, kLength}};
        Problem<float> once(maker(seqs)), parts(maker(seqs));
        for (Problem<float>* p : {&once, &parts})
          for (size_t s : {size_t{0}, size_t{2}}) {
            const int64_t row = static_cast<int64_t>(s / 2), keys = seqs[s].keys, from = p->k_start[s];
            const auto copy = [&](std::vector<float>& to, const std::vector<float>& x, int64_t begin, int64_t place, int64_t n,
                                  int64_t stride) {
              std::copy_n(x.begin() + begin * stride, n * stride, to.begin() + place * stride);
            };
            copy(p->q, whole.q, keys - 1, row, 1, f.q_stride);
            copy(p->k, whole.k, kGap, from, keys, f.k_stride);
            copy(p->v, whole.v, kGap, from, keys, f.v_stride);
          }
        CHECK(forward(table, once));
        CHECK(mg::attention_parts(parts.args.fwd) > 0);
        CHECK(forward_in_parts(table, parts.args.fwd, at % 2 == 0));
        REQUIRE(same_bits(once.o, parts.o));
        REQUIRE(same_bits(once.lse, parts.lse));
        REQUIRE(same_bits(rows_of(once.o, 0, 1, f.o_stride), rows_of(whole.o, at, 1, f.o_stride)));
        REQUIRE(same_bits(rows_of(once.o, 1, 1, f.o_stride), rows_of(whole.o, kLength - 1, 1, f.o_stride)));
        for (int64_t h = 0; h < f.heads; ++h)
          REQUIRE(once.lse[static_cast<size_t>(h * 2)] == whole.lse[static_cast<size_t>(h * kLength + at)]);
      }
    }
  });
}

TEST_CASE("attention bf16: one query has the bits of the prefill, whatever the numbers are") {
  using mg::bf16;
  constexpr int64_t kRows = 20;
  enum Kind { ordinary, tiny, infinite, huge };
  const auto narrowed = [](const std::vector<float>& x, float by) {
    std::vector<bf16> y(x.size());
    for (size_t i = 0; i < x.size(); ++i) mg::assign(y[i], x[i] * by);
    return y;
  };
  for (int64_t each : {1, 2, 4, 5})
    for (int64_t width : {64, 96, 40})  // whole steps, and not
      for (int64_t keys : {64, 130, 700})
        for (Kind kind : {ordinary, tiny, infinite, huge}) {
          Config c;
          c.seqs = {{kRows, keys}};
          c.heads = 2 * each, c.k_dim = width, c.v_dim = width == 96 ? 32 : width;
          const Problem<float> p(c);
          const mg::AttentionArgs<float>& f = p.args.fwd;
          const std::vector<bf16> q = narrowed(p.q, 1.0f);
          // Products of values with probabilities that are too small to be normal.
          std::vector<bf16> k = narrowed(p.k, 1.0f), v = narrowed(p.v, kind == tiny ? std::ldexp(1.0f, -122) : 1.0f);
          if (kind == infinite) mg::assign(v[static_cast<size_t>((kGap + 5) * f.v_stride + 3)], -INFINITY);
          if (kind == infinite) mg::assign(v[static_cast<size_t>((kGap + keys - 30) * f.v_stride + f.v_stride - 2)], NAN);
          if (kind == huge) mg::assign(v[static_cast<size_t>((kGap + 8) * f.v_stride)], 3e38f);
          if (kind == huge) mg::assign(k[static_cast<size_t>((kGap + 9) * f.k_stride + 1)], 3e38f);
          const int32_t rows_start[2] = {0, static_cast<int32_t>(kRows)}, row_start[2] = {0, 1};
          std::vector<float> lse(static_cast<size_t>(kRows * c.heads));
          std::vector<bf16> whole(static_cast<size_t>(kRows * f.o_stride)), one(static_cast<size_t>(f.o_stride));
          mg::AttentionArgs<bf16> all = {}, last = {};
          for (mg::AttentionArgs<bf16>* a : {&all, &last}) {
            a->q = q.data(), a->k = k.data(), a->v = v.data(), a->o = whole.data(), a->lse = lse.data();
            a->q_start = rows_start, a->k_start = f.k_start, a->k_len = f.k_len;
            a->q_rows = kRows, a->k_rows = f.k_rows, a->seqs = 1, a->heads = f.heads, a->kv_heads = f.kv_heads;
            a->k_dim = f.k_dim, a->v_dim = f.v_dim, a->scale = f.scale, a->window = -1, a->causal = 1;
            a->q_stride = f.q_stride, a->k_stride = f.k_stride, a->v_stride = f.v_stride, a->o_stride = f.o_stride;
          }
          last.q += (kRows - 1) * f.q_stride, last.o = one.data(), last.q_start = row_start, last.q_rows = 1;
          for (const mg::Target& target : mg::targets()) {
            if (!target.supported) continue;
            INFO(std::string(target.name) << " each " << each << " width " << width << " keys " << keys << " kind " << kind);
            const mg::KernelTable<bf16>& table = *target.table_bf16();
            const bool in_parts = mg::attention_parts(last) > 0;
            CHECK(forward(table, all));
            CHECK((in_parts ? forward_in_parts(table, last) : forward(table, last)));
            bool same = true;
            for (size_t i = 0; i < one.size(); ++i) {
              const bf16 expected = whole[static_cast<size_t>((kRows - 1) * f.o_stride) + i];
              const bool nothing = std::isnan(mg::value_of(expected));
              same = same && (nothing ? std::isnan(mg::value_of(one[i])) : one[i].bits == expected.bits);
            }
            CHECK(same);
          }
        }
}

TEST_CASE("attention: the order of the shares, lse and accumulation do not change bits") {
  each_target([](const mg::KernelTable<float>& table) {
    for (Maker maker : kMakers) {
      const std::vector<Sequence> seqs = {{40, 40}, {1, 90}, {100, 100}};
      Problem<float> first(maker(seqs)), second(maker(seqs)), third(maker(seqs));
      forward(table, first);
      forward(table, second, true);
      CHECK(same_bits(first.o, second.o));
      CHECK(same_bits(first.lse, second.lse));
      third.args.fwd.lse = nullptr;
      forward(table, third);
      CHECK(same_bits(first.o, third.o));
      third.bind();
      third.lse = first.lse;
      third.args.fwd.lse = third.lse.data();
      backward(table, first);
      backward(table, second, true);
      CHECK(same_bits(first.dq, second.dq));
      CHECK(same_bits(first.dk, second.dk));
      CHECK(same_bits(first.dv, second.dv));
      // Adding to zeros is overwriting.
      third.args.accumulate_dk = third.args.accumulate_dv = 1;
      std::fill(third.dk.begin(), third.dk.end(), 0.0f);
      std::fill(third.dv.begin(), third.dv.end(), 0.0f);
      backward(table, third);
      CHECK(same_bits(first.dk, third.dk));
      CHECK(same_bits(first.dv, third.dv));
    }
  });
}

TEST_CASE("attention: a NaN reaches the rows that see it and no others") {
  each_target([](const mg::KernelTable<float>& table) {
    constexpr int64_t kLength = 100;
    for (Maker maker : kMakers)
      for (bool causal : {true, false})
        for (int64_t bad : {0, 5, 63, 64, 99})
          for (int where = 0; where < 3; ++where) {
            Config c = maker({{kLength, kLength}});
            c.causal = causal;
            Problem<float> clean(c), broken(c);
            const mg::AttentionArgs<float>& f = broken.args.fwd;
            const int64_t key = broken.k_start[0] + bad;
            if (where == 0) broken.k[static_cast<size_t>(key * f.k_stride)] = NAN;
            if (where == 1) broken.v[static_cast<size_t>(key * f.v_stride)] = NAN;
            if (where == 2) broken.q[static_cast<size_t>(bad * f.q_stride)] = NAN;
            forward(table, clean);
            forward(table, broken);
            backward(table, clean);
            backward(table, broken);
            for (int64_t row = 0; row < kLength; ++row) {
              const bool sees = where == 2 ? row == bad
                                           : (!causal || bad <= row) && (c.window < 0 || std::abs(row - bad) < c.window);
              const size_t at = static_cast<size_t>(row * f.o_stride);
              if (sees) {
                CHECK(std::isnan(broken.o[at]));
                if (where != 1) CHECK(std::isnan(broken.lse[static_cast<size_t>(row)]));
                CHECK(std::isnan(broken.dq[static_cast<size_t>(row * f.q_stride)]));
              } else {
                CHECK(same_bits(rows_of(broken.o, row, 1, f.o_stride), rows_of(clean.o, row, 1, f.o_stride)));
                CHECK(same_bits(rows_of(broken.dq, row, 1, f.q_stride), rows_of(clean.dq, row, 1, f.q_stride)));
              }
            }
          }
  });
}

TEST_CASE("attention: scores that overflow to minus infinity weigh nothing") {
  each_target([](const mg::KernelTable<float>& table) {
    Config c;
    c.seqs = {{80, 80}};
    c.heads = c.kv_heads = 1, c.k_dim = 1, c.v_dim = 1;
    Problem<float> p(c);
    std::fill(p.q.begin(), p.q.end(), 1e38f);
    for (int64_t i = 0; i < 80; ++i) p.k[static_cast<size_t>(p.k_start[0] + i)] = i < 70 ? -1e38f : 0.0f;
    forward(table, p);
    for (size_t row = 0; row < 70; ++row) CHECK(p.o[row] == 0.0f);
    CHECK(p.o[70] == p.v[static_cast<size_t>(p.k_start[0] + 70)]);
    backward(table, p);
    for (size_t row = 0; row < 70; ++row) CHECK(p.dq[row] == 0.0f);
    CHECK(std::isfinite(p.dv[static_cast<size_t>(p.k_start[0])]));
  });
}

TEST_CASE("attention: no query rows, no sequences") {
  each_target([](const mg::KernelTable<float>& table) {
    for (const std::vector<Sequence>& seqs : {std::vector<Sequence>{}, {{0, 0}}, {{0, 5}}}) {
      Problem<float> p(plain(seqs));
      CHECK(forward(table, p));
      CHECK(backward(table, p));
      for (int64_t r = 0; r < p.k_rows; ++r)
        if (p.owner(r) >= 0) CHECK(p.dk[static_cast<size_t>(r * p.args.fwd.k_stride)] == 0.0f);
    }
  });
}
