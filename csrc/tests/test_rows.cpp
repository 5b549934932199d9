// Norms, softmax, embeddings, rotary positions and cross-entropy on every target, against the references in double.
#include "kernel_case.h"

#include <limits>

namespace {

using namespace mg;
using namespace mg::test;

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

struct Grid {
  int64_t rows, cols;
};
// Short rows of every length, several to a share; long ones, one or a few to a share; none.
std::vector<Grid> grids() {
  std::vector<Grid> all = {{0, 5}, {3, 1000}, {40, 1000}, {2, 16384}, {2, 16385}, {3, 40000}, {16385, 1}, {9000, 3}};
  for (const int64_t cols : kShortSizes)
    if (cols > 0) all.push_back({3, cols}), all.push_back({300, cols});
  return all;
}

TEST_CASE("norm") {
  for (const Grid& grid : grids()) {
    for (const double offset : {0.0, 1000.0, -1e5}) {
      for (int which = 0; which < 8; ++which) {
        const bool center = which & 1, weighted = which & 2, biased = which & 4;
        const int64_t rows = grid.rows, cols = grid.cols, n = rows * cols;
        if (n > 20000 && which != 7 && which != 2) continue;
        CAPTURE(rows); CAPTURE(cols); CAPTURE(offset); CAPTURE(which);
        Buffer x = Buffer::input(n, 1, offset - 2.0, offset + 2.0), y = Buffer::output(n), mean = Buffer::output(rows),
               rstd = Buffer::output(rows), weight = Buffer::input(cols, 2), bias = Buffer::input(cols, 3);
        const auto make = [&](auto t) {
          using T = decltype(t);
          return NormArgs<T>{x.as<T>(), weighted ? weight.as<T>() : nullptr, biased ? bias.as<T>() : nullptr, y.as<T>(),
                             center ? mean.as<T>() : nullptr, rstd.as<T>(), rows, cols, 0.01, center};
        };
        // rstd is at most 1 / sqrt(0.01), in long rows about 0.87. A few roundings of x - mean (<= 4) times rstd and the
        // weight, whatever the mean is; only the mean itself is as coarse as floats of its size.
        const double steep = cols > 30 ? 1.2 : 10.0;
        const Tolerance of_y{8 * kU, 16 * kU * steep}, of_rstd{16 * kU, 0.0}, of_mean{2 * kU, 4 * kU};
        CHECK_KERNEL(norm, make, (Tolerances{of_y, of_rstd, of_mean}), &y, &rstd, &mean);
      }
    }
  }
}

TEST_CASE("norm of rows whose first numbers lie far from the mean") {
  for (const double far : {50.0, -3000.0}) {
    const int64_t rows = 3, cols = 4000;
    Buffer x = Buffer::input(rows * cols, 1, -2.0, 2.0), y = Buffer::output(rows * cols), mean = Buffer::output(rows),
           rstd = Buffer::output(rows);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < 64; ++i) x.set(row * cols + i, far);
    const auto make = [&](auto t) {
      using T = decltype(t);
      return NormArgs<T>{x.as<T>(), nullptr, nullptr, y.as<T>(), mean.as<T>(), rstd.as<T>(), rows, cols, 0.01, 1};
    };
    // As above, with rstd below 1. The sum of x - mean cancels numbers of size |far|, 64 of 4000, in chains of few roundings.
    const double coarse = 64.0 / 4000.0 * (far < 0 ? -far : far);
    const Tolerance of_y{8 * kU, 16 * kU}, of_rstd{16 * kU, 0.0}, of_mean{2 * kU, 4 * kU * (1.0 + coarse)};
    CHECK_KERNEL(norm, make, (Tolerances{of_y, of_rstd, of_mean}), &y, &rstd, &mean);
  }
}

TEST_CASE("norm in place, and of a row with NaN") {
  Buffer y = Buffer::output(3 * 65), rstd = Buffer::output(3);
  y.set(70, kNan);
  const auto make = [&](auto t) {
    using T = decltype(t);
    return NormArgs<T>{y.as<T>(), nullptr, nullptr, y.as<T>(), nullptr, rstd.as<T>(), 3, 65, 1e-5, 0};
  };
  CHECK_KERNEL(norm, make, (Tolerance{16 * kU, 0.0}), &y, &rstd);
}

TEST_CASE("norm_backward and norm_backward_weight") {
  for (const Grid& grid : grids()) {
    for (int which = 0; which < 8; ++which) {
      const bool center = which & 1, weighted = which & 2, accumulate = which & 4;
      const int64_t rows = grid.rows, cols = grid.cols, n = rows * cols;
      if (n > 20000 && which != 7 && which != 0) continue;
      CAPTURE(rows); CAPTURE(cols); CAPTURE(which);
      Buffer dy = Buffer::input(n, 1), x = Buffer::input(n, 2), weight = Buffer::input(cols, 3),
             mean = Buffer::input(rows, 4, -0.1, 0.1), rstd = Buffer::input(rows, 5, 0.5, 1.5), dx = Buffer::output(n),
             dweight = Buffer::output(cols, 6), dbias = Buffer::output(cols, 7);
      const auto make = [&](auto t) {
        using T = decltype(t);
        NormBackwardArgs<T> args{};
        args.dy = dy.as<T>(), args.x = x.as<T>(), args.weight = weighted ? weight.as<T>() : nullptr;
        args.mean = center ? mean.as<T>() : nullptr, args.rstd = rstd.as<T>(), args.dx = dx.as<T>();
        args.rows = rows, args.cols = cols, args.center = center, args.accumulate_dx = accumulate;
        return args;
      };
      // |g| <= 4, |xhat| <= 3.2, so the largest term is 1.5 * 3.2 * 13 = 62, with a dozen roundings of itself.
      CHECK_KERNEL(norm_backward, make, (Tolerance{4 * kU, 12 * 62 * kU}), &dx);
      if (plan_norm_backward(make(float{})).shares == 1) {  // the parts of one share are the sums; see below
        Buffer parts = Buffer::output(cols, 8), more = Buffer::output(cols, 9);
        const auto both = [&](auto t) {
          using T = decltype(t);
          auto args = make(t);
          args.part_dweight = parts.as<T>(), args.part_dbias = more.as<T>();
          return args;
        };
        CHECK_KERNEL(norm_backward, both, (Tolerance{4 * kU, 12 * 62 * kU + 6.4 * kU * ((double)rows + 4)}), &dx, &parts, &more);
      }
      for (int wanted = 1; wanted < 4; ++wanted) {
        const auto weights = [&](auto t) {
          using T = decltype(t);
          auto args = make(t);
          args.dx = nullptr;
          args.dweight = wanted & 1 ? dweight.as<T>() : nullptr, args.dbias = wanted & 2 ? dbias.as<T>() : nullptr;
          args.accumulate_dweight = accumulate, args.accumulate_dbias = !accumulate;
          return args;
        };
        // A chain over the rows of terms <= 6.4: a random walk, sqrt(rows) partial sums of size sqrt(rows) * 6.4.
        CHECK_KERNEL(norm_backward_weight, weights, (Tolerance{4 * kU, 6.4 * kU * ((double)rows + 4)}), &dweight, &dbias);
      }
    }
  }
}

TEST_CASE("norm_backward in place of dy") {
  Buffer x = Buffer::input(5 * 33, 2), rstd = Buffer::input(5, 5, 0.5, 1.5), dx = Buffer::output(5 * 33);
  const auto make = [&](auto t) {
    using T = decltype(t);
    NormBackwardArgs<T> args{};
    args.dy = dx.as<T>(), args.x = x.as<T>(), args.rstd = rstd.as<T>(), args.dx = dx.as<T>(), args.rows = 5, args.cols = 33;
    return args;
  };
  CHECK_KERNEL(norm_backward, make, (Tolerance{4 * kU, 12 * 62 * kU}), &dx);
}

TEST_CASE("softmax and softmax_backward") {
  for (const Grid& grid : grids()) {
    const int64_t rows = grid.rows, cols = grid.cols, n = rows * cols;
    for (const double scale : {1.0, -0.5, 30.0}) {
      for (const bool in_place : {false, true}) {
        CAPTURE(rows); CAPTURE(cols); CAPTURE(scale); CAPTURE(in_place);
        Buffer x = Buffer::input(n, 1), y = Buffer::output(n);
        const auto make = [&](auto t) {
          using T = decltype(t);
          return SoftmaxArgs<T>{in_place ? y.as<T>() : x.as<T>(), nullptr, y.as<T>(), rows, cols, scale, 0};
        };
        // The exponent scale * x - top has an absolute error of two roundings of 2 |scale|, which exp makes relative.
        CHECK_KERNEL(softmax, make, (Tolerance{kU * (12.0 + 4.0 * std::fabs(scale)), 1e-37}), &y);
      }
    }
    for (int which = 0; which < 3; ++which) {
      CAPTURE(rows); CAPTURE(cols); CAPTURE(which);
      const bool accumulate = which == 1, in_place = which == 2;
      Buffer y = Buffer::input(n, 1, 0.0, 2.0 / (double)cols), dy = Buffer::input(n, 2), dx = Buffer::output(n);
      const auto make = [&](auto t) {
        using T = decltype(t);
        return SoftmaxArgs<T>{y.as<T>(), in_place ? dx.as<T>() : dy.as<T>(), dx.as<T>(), rows, cols, 0.125, accumulate};
      };
      // |dot| <= 4, y <= 2 / cols.
      const double size = 0.125 * 2.0 / (double)cols * 6.0;
      CHECK_KERNEL(softmax_backward, make, (Tolerance{4 * kU, 16 * kU * size + 2 * kU * accumulate}), &dx);
    }
  }
}

TEST_CASE("softmax of unusual rows") {
  const int64_t cols = 21;
  std::vector<float> values;
  for (int row = 0; row < 6; ++row)
    for (int64_t i = 0; i < cols; ++i) {
      const float large = -10000.0f + 0.25f * (float)i;  // lanes past the end must not count as 0
      const float rows[] = {-kInf, i % 3 ? -kInf : (float)i, i == 4 ? kInf : 1.0f, i == 20 ? kNan : 1.0f, large, -large * 1e30f};
      values.push_back(rows[row]);
    }
  Buffer x = Buffer::of(values), y = Buffer::output(6 * cols);
  const auto make = [&](auto t) {
    using T = decltype(t);
    return SoftmaxArgs<T>{x.as<T>(), nullptr, y.as<T>(), 6, cols, 1.0, 0};
  };
  CHECK_KERNEL(softmax, make, (Tolerance{24 * kU, 1e-37}), &y);
}

std::vector<int32_t> random_ids(int64_t n, int64_t below, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> ids((size_t)n);
  for (int32_t& id : ids) id = (int32_t)(random.next() >> 20) % (int32_t)below;
  for (int32_t& id : ids) id = id < 0 ? -id : id;
  return ids;
}

TEST_CASE("embedding and embedding_backward") {
  for (const int64_t width : {1, 2, 3, 7, 8, 15, 16, 17, 33, 63, 64, 65, 128, 200, 1000}) {
    for (const int64_t tokens : {0, 1, 17, 40, 500}) {
      for (const bool accumulate : {false, true}) {
        CAPTURE(width); CAPTURE(tokens); CAPTURE(accumulate);
        const int64_t vocab = 29;
        const std::vector<int32_t> ids = random_ids(tokens, vocab, 3);
        Buffer table = Buffer::input(vocab * width, 1), y = Buffer::output(tokens * width), dy = Buffer::input(tokens * width, 2),
               dtable = Buffer::output(vocab * width);
        const auto forward = [&](auto t) {
          using T = decltype(t);
          return EmbeddingArgs<T>{table.as<T>(), ids.data(), y.as<T>(), tokens, width, vocab, accumulate};
        };
        CHECK_KERNEL(embedding, forward, (Tolerance{kU, 0.0}), &y);
        const auto backward = [&](auto t) {
          using T = decltype(t);
          return EmbeddingBackwardArgs<T>{dy.as<T>(), ids.data(), dtable.as<T>(), tokens, width, vocab, accumulate};
        };
        // About tokens / vocab additions to each element, partial sums below 2 * sqrt(additions) * 3.
        CHECK_KERNEL(embedding_backward, backward, (Tolerance{kU, kU * 8.0 * (1.0 + (double)tokens / 8.0)}), &dtable);
      }
    }
  }
}

TEST_CASE("rope") {
  const int64_t shapes[][2] = {{1, 0}, {2, 1}, {3, 1}, {6, 3}, {16, 8}, {16, 4}, {34, 17}, {64, 32}, {65, 32}, {128, 40}};
  for (const auto& shape : shapes) {
    for (const int64_t tokens : {0, 1, 5, 200}) {
      for (int which = 0; which < 16; ++which) {
        const bool interleaved = which & 1, inverse = which & 2, accumulate = which & 4, in_place = which & 8;
        const int64_t head_dim = shape[0], half = shape[1], heads = 3, n = tokens * heads * head_dim;
        CAPTURE(head_dim); CAPTURE(half); CAPTURE(tokens); CAPTURE(which);
        const std::vector<int32_t> positions = random_ids(tokens, 11, 5);
        Buffer x = Buffer::input(n, 1), cos = Buffer::input(11 * half, 2, -1.0, 1.0), sin = Buffer::input(11 * half, 3, -1.0, 1.0),
               y = Buffer::output(n);
        const auto make = [&](auto t) {
          using T = decltype(t);
          return RopeArgs<T>{in_place ? y.as<T>() : x.as<T>(), positions.data(), cos.as<T>(), sin.as<T>(), y.as<T>(), tokens,
                             heads, head_dim, half, 11, interleaved, inverse, accumulate};
        };
        CHECK_KERNEL(rope, make, (Tolerance{2 * kU, 3 * 4 * kU}), &y);  // two products <= 2, their sum <= 4
      }
    }
  }
}

TEST_CASE("cross_entropy") {
  std::vector<Grid> all = {{0, 5}, {1, 50257}, {40, 1000}, {700, 65}};
  for (const int64_t cols : kShortSizes)
    if (cols > 0) all.push_back({4, cols});
  for (const Grid& grid : all) {
    for (const double offset : {0.0, -10000.0}) {  // far below 0: lanes past the end must not count
      for (int which = 0; which < 3; ++which) {
        const int64_t rows = grid.rows, vocab = grid.cols;
        CAPTURE(rows); CAPTURE(vocab); CAPTURE(offset); CAPTURE(which);
        const bool gradient = which > 0, in_place = which == 2;
        std::vector<int32_t> targets = random_ids(rows, vocab, 6);
        for (size_t i = 2; i < targets.size(); i += 4) targets[i] = -1;
        Buffer logits = Buffer::input(rows * vocab, 1, offset - 8.0, offset + 8.0), losses = Buffer::output(rows),
               dlogits = in_place ? Buffer::of(logits.values(), true) : Buffer::output(rows * vocab),
               inv_count = Buffer::of({0.125f});
        const auto make = [&](auto t) {
          using T = decltype(t);
          return CrossEntropyArgs<T>{in_place ? dlogits.as<T>() : logits.as<T>(), targets.data(), losses.as<T>(),
                                     gradient ? dlogits.as<T>() : nullptr, in_place ? nullptr : inv_count.as<T>(), rows, vocab,
                                     0.0, 0.0};
        };
        // x - top <= 16 is rounded once, exp and the sum add a few u: 24 u of each probability, and of sum.
        const Tolerance of_loss{2 * kU, 24 * kU}, of_gradient{28 * kU, 1e-37};
        CHECK_KERNEL(cross_entropy, make, (Tolerances{of_loss, of_gradient}), &losses, &dlogits);
      }
    }
  }
}

TEST_CASE("cross_entropy of unusual rows") {
  const int64_t vocab = 19;
  std::vector<float> values;
  for (int row = 0; row < 5; ++row)
    for (int64_t i = 0; i < vocab; ++i) {
      const float rows[] = {-kInf, i % 3 ? -kInf : (float)i, i == 4 ? kInf : 1.0f, i == 18 ? kNan : 1.0f, i == 7 ? 0.0f : -200.0f};
      values.push_back(rows[row]);
    }
  Buffer logits = Buffer::of(values), losses = Buffer::output(5), dlogits = Buffer::output(5 * vocab);
  const std::vector<int32_t> targets = {3, 1, 2, 2, 7};  // the second has probability 0: loss +inf, gradient -1
  const auto make = [&](auto t) {
    using T = decltype(t);
    return CrossEntropyArgs<T>{logits.as<T>(), targets.data(), losses.as<T>(), dlogits.as<T>(), nullptr, 5, vocab, 0.0, 0.0};
  };
  CHECK_KERNEL(cross_entropy, make, (Tolerance{28 * kU, 1e-37}), &losses, &dlogits);
}

TEST_CASE("count_targets") {
  const std::vector<int32_t> all[] = {{}, {-1}, {-100, -1}, {0}, {5, -1, 7, 0, -100}};
  const float right[] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f / 3.0f};
  for (size_t i = 0; i < 5; ++i) {
    Buffer out = Buffer::output(1);
    const auto make = [&](auto t) {
      using T = decltype(t);
      return CountArgs<T>{all[i].data(), out.as<T>(), (int64_t)all[i].size()};
    };
    CHECK_KERNEL(count_targets, make, (Tolerance{kU, 0.0}), &out);
    CHECK(out.narrow(0) == right[i]);
  }
}

}  // namespace
