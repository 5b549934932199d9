// Products of small matrices in scratch, on attention's register tile, and what recurrences in chunks share.

// The summed index that rows [low, high) and columns [col, end) need.
struct Steps {
  int64_t from, to;
};

// C = factor * C + A B over padded columns; a null factor starts from zero, else it points to kTallRows equal numbers.
// kAcross: A's rows lie side by side. Every element is one chain in order, whatever the tiles are. `steps` gives Steps; what
// it leaves out must be zero in A or B.
struct Operands {
  const float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step;
  float* c;
  int64_t c_step;
};
template <bool kAcross, class StepsOf>
static inline void multiply_some(const Operands& o, int64_t rows, int64_t cols, const float* factor, const StepsOf& steps) {
  const int64_t tiles = parts_of(rows, kTallRows);
  for (int64_t i = 0; i < tiles; ++i) {
    const RowPart part = part_of(rows, tiles, i);
    const int64_t height = part.high - part.low, block = (height <= kLowRows ? 4 : 2) * kWidth;
    for (int64_t col = 0; col < cols; col += block) {
      const int64_t width = at_most(cols - col, block);
      const Steps s = steps(part.low, part.high, col, col + width);
      ProductTile t;
      t.a = kAcross ? o.a + s.from * o.a_step + part.low : o.a + part.low * o.a_step + s.from;
      t.b = o.b + s.from * o.b_step + col;
      t.c = o.c + part.low * o.c_step + col;
      t.a_step = o.a_step, t.b_step = o.b_step, t.c_step = o.c_step;
      t.factor = factor;
      t.steps = at_least(s.to - s.from, 0);
      product_tile_of<FmaStep, kAcross>((int)height, (int)(width / kWidth))(t);
    }
  }
}
template <bool kAcross>
static inline void multiply(const Operands& o, int64_t rows, int64_t cols, int64_t steps, const float* factor) {
  multiply_some<kAcross>(o, rows, cols, factor, [&](int64_t, int64_t, int64_t, int64_t) { return Steps{0, steps}; });
}

// The same number for each row of a tile.
struct TileFactor {
  alignas(64) float of[16];
  explicit TileFactor(float x) {
    for (float& each : of) each = x;
  }
};

// Rows of a state, `width` numbers each, to rows of whole vectors and back.
static inline void read_state(const float* src, int64_t rows, int64_t width, float* dst) {
  const int64_t step = padded(width);
  for (int64_t r = 0; r < rows; ++r)
    each_vec(0, width, [&](int64_t i, auto part) { store(dst + r * step + i, get(src + r * width + i, part)); });
}
static inline void write_state(const float* src, int64_t rows, int64_t width, float* dst) {
  const int64_t step = padded(width);
  for (int64_t r = 0; r < rows; ++r)
    each_vec(0, width, [&](int64_t i, auto part) { put(dst + r * width + i, load(src + r * step + i), part); });
}

// dst[r] = by[r] * src[r] for rows of `width` padded numbers.
static inline void scale_rows(const float* src, const float* by, int64_t rows, int64_t width, float* dst) {
  for (int64_t r = 0; r < rows; ++r) {
    const Vec factor = set1(by[r]);
    for (int64_t i = 0; i < width; i += kWidth) store(dst + r * width + i, mul(factor, load(src + r * width + i)));
  }
}

// Whether all of `rows` rows of `width` padded numbers are finite.
static inline bool all_finite(const float* x, int64_t rows, int64_t width) {
  Vec probe = zero();
  for (int64_t i = 0; i < rows * width; i += kWidth) probe = fma(load(x + i), zero(), probe);
  return hsum(probe) == 0.0f;
}

// body(row, column, vector, part) for the turned matrix of src (cols, kStateChunk): rows [0, rows), vectors of columns.
template <class Body> static inline void each_turned(const float* src, int64_t rows, int64_t cols, const Body& body) {
  for (int64_t col = 0; col < cols; col += kWidth)
    for (int64_t row = 0; row < rows; row += kWidth) {
      Vec block[kWidth];
      const int64_t there = at_most(cols - col, kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) block[i] = i < there ? load(src + (col + i) * kStateChunk + row) : zero();
      gemm_transpose(block);
      for (int64_t i = 0; i < at_most(rows - row, kWidth); ++i) {
        if (there == kWidth) body(row + i, col, block[i], Full{});
        else body(row + i, col, block[i], Part{there});
      }
    }
}

// Sum of a[i] b[i].
static inline double state_dot(const float* a, const float* b, int64_t n) {
  return blocked_sum(n, [&](int64_t i, auto part) { return mul(get(a + i, part), get(b + i, part)); });
}

// Decays of a chunk for one head. Sums of logarithms are in double: a difference of two of them keeps its digits.
struct ChunkDecays {
  double sum[kStateChunk];
  alignas(64) float grows[kStateChunk], fades[kStateChunk];  // exp(sum up to t), exp(sum after t)
  float whole;                                               // exp(sum of all)
};

// exp(base - sum[i]) or, turned, exp(sum[i] - base) for whole vectors of [from, to).
static inline void chunk_decays(const double* sum, double base, bool turned, int64_t from, int64_t to, float* out) {
  for (int64_t i = from; i < to; i += kWidth) {
    float x[kWidth];
    for (int j = 0; j < kWidth; ++j) x[j] = (float)(turned ? sum[i + j] - base : base - sum[i + j]);
    store(out + i, exp(load(x)));
  }
}

template <class LogAt> static inline void sum_decays(ChunkDecays& decays, int64_t rows, const LogAt& log_at) {
  double sum = 0.0;
  for (int64_t i = 0; i < kStateChunk; ++i) {
    if (i < rows) sum += log_at(i);
    decays.sum[i] = sum;
  }
  chunk_decays(decays.sum, 0.0, true, 0, kStateChunk, decays.grows);
  chunk_decays(decays.sum, sum, false, 0, kStateChunk, decays.fades);
  decays.whole = decays.grows[kStateChunk - 1];
}
