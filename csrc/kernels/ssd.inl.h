// Mamba-2's state-space duality, chunk by chunk. A share takes a sequence and a few heads of one group, which have B, C and
// their products in common. Within a chunk time lies along lanes where it can: y^T = S C^T needs neither S nor B turned.

// A chunk's times for one head.
struct SsdTimes : ChunkDecays {
  alignas(64) float dt[kStateChunk], slope[kStateChunk];  // d, and d d / d dt for the backward
};

// log(1 + e^x), within 3 ulp: log(w) e / (w - 1) makes up for the rounding of w = 1 + e.
static inline Vec softplus(Vec x) {
  const Vec e = exp(negate(abs(x))), w = add(set1(1.0f), e);
  const Vec log1p = select(eq(w, set1(1.0f)), e, div(mul(log(w), e), sub(w, set1(1.0f))));
  return select(eq(x, x), add(max(x, zero()), log1p), x);
}

template <class T>
static inline void ssd_times(const SsdArgs<T>& args, int64_t head, int64_t row, int64_t rows, SsdTimes& times) {
  const float bias = args.dt_bias ? args.dt_bias[head] : 0.0f;
  const Vec low = set1((float)args.dt_min), high = set1((float)args.dt_max);
  for (int64_t i = 0; i < kStateChunk; ++i)
    times.dt[i] = i < rows ? value_of(args.dt[(row + i) * args.heads + head]) + bias : 0.0f;
  for (int64_t i = 0; i < kStateChunk; i += kWidth) {
    const Vec raw = load(times.dt + i), d = args.softplus ? softplus(raw) : raw;
    const Vec slope = args.softplus ? sigmoid(raw) : set1(1.0f);
    store(times.dt + i, min(high, max(low, d)));  // keeps NaN
    store(times.slope + i, select(lt(d, low), zero(), select(lt(high, d), zero(), slope)));
  }
  for (int64_t i = rows; i < kStateChunk; ++i) times.dt[i] = 0.0f;
  sum_decays(times, rows, [&](int64_t i) { return (double)times.dt[i] * (double)args.a[head]; });
}

struct SsdScratch {
  float* states;              // (kSsdHeads, P, N)
  float *b, *c_turned;        // (chunk, N), (N, chunk)
  float *products, *weights;  // (chunk, chunk): B C^T, and a head's with decays
  float *x, *faded;           // (chunk, P): x, and x d with what fades till the end
  float* y;                   // (P, chunk)
};
template <class T> static inline SsdScratch ssd_scratch(const SsdArgs<T>& args, void* memory) {
  const int64_t width = padded(args.head_dim), state = padded(args.state_dim);
  SsdScratch s;
  s.states = (float*)memory;
  s.b = s.states + kSsdHeads * args.head_dim * state;
  s.c_turned = s.b + kStateChunk * state;
  s.products = s.c_turned + kStateChunk * state;
  s.weights = s.products + kStateChunk * kStateChunk;
  s.x = s.weights + kStateChunk * kStateChunk;
  s.faded = s.x + kStateChunk * width;
  s.y = s.faded + kStateChunk * width;
  return s;
}

// The heads of a share.
struct SsdUnit {
  int64_t seq, group, block, head, heads;
};
template <class T> static inline SsdUnit ssd_unit(const SsdArgs<T>& args, int64_t index) {
  const int64_t each = args.heads / args.groups, blocks = ssd_blocks(args.heads, args.groups);
  SsdUnit unit;
  unit.seq = index / (args.groups * blocks);
  unit.group = index / blocks % args.groups;
  unit.block = index % blocks;
  unit.head = unit.group * each + unit.block * kSsdHeads;
  unit.heads = at_most(kSsdHeads, each - unit.block * kSsdHeads);
  return unit;
}

// Row by row, the state where it lies.
template <class T> static void ssd_steps(const SsdArgs<T>& args, const SsdUnit& unit, int64_t row, int64_t rows, float* scratch) {
  const int64_t width = args.head_dim, n = args.state_dim;
  float *b = scratch, *c = b + padded(n);
  for (; rows > 0; ++row, --rows) {
    pack_along<FloatWords<T>>(args.b + (row * args.groups + unit.group) * n, n, 1, n, b, 0);
    pack_along<FloatWords<T>>(args.c + (row * args.groups + unit.group) * n, n, 1, n, c, 0);
    for (int64_t head = unit.head; head < unit.head + unit.heads; ++head) {
      SsdTimes times;
      ssd_times(args, head, row, 1, times);
      const Vec decay = set1(times.whole), skip = set1(args.skip ? args.skip[head] : 0.0f);
      const int64_t at = (row * args.heads + head) * width;
      float* state = args.state + (unit.seq * args.heads + head) * width * n;
      for (int64_t p = 0; p < width; p += kWidth) {
        const int64_t count = at_most(width - p, kWidth);
        alignas(64) float sums[kWidth * kWidth];
        for (int64_t r = 0; r < count; ++r) {
          float* s = state + (p + r) * n;
          const Vec x = set1(times.dt[0] * value_of(args.x[at + p + r]));
          Vec sum = zero();
          each_vec(0, n, [&](int64_t i, auto part) {
            const Vec now = fma(decay, get(s + i, part), mul(x, load(b + i)));
            put(s + i, now, part);
            sum = fma(now, load(c + i), sum);
          });
          store(sums + r * kWidth, sum);
        }
        const Vec x = count == kWidth ? load(args.x + at + p) : load_n(args.x + at + p, count);
        const Vec y = fma(skip, x, lane_sums(sums, count));
        if (count == kWidth) store(args.y + at + p, y);
        else store_n(args.y + at + p, y, count);
      }
    }
  }
}

// weights[j, i] = products[j, i] exp(sum_i - sum_j) d_j for i >= j, else 0.
static inline void ssd_weights(const float* products, const SsdTimes& times, int64_t rows, float* weights) {
  for (int64_t j = 0; j < rows; ++j) {
    float* to = weights + j * kStateChunk;
    const int64_t first = j / kWidth * kWidth;
    clear(to, first);
    chunk_decays(times.sum, times.sum[j], true, first, padded(rows), to);
    const Vec dt = set1(times.dt[j]);
    for (int64_t i = first; i < padded(rows); i += kWidth) {
      const Vec w = mul(mul(load(products + j * kStateChunk + i), load(to + i)), dt);
      store(to + i, i == first ? select(lt(add(set1((float)first), load(kLanes)), set1((float)j)), zero(), w) : w);
    }
  }
}

template <class T>
static void ssd_chunk(const SsdArgs<T>& args, int64_t head, int64_t row, int64_t rows, float* state, const SsdScratch& s) {
  const int64_t width = args.head_dim, wide = padded(width), n = args.state_dim, step = padded(n), cols = padded(rows);
  const int64_t stride = args.heads * width, at = row * stride + head * width;
  SsdTimes times;
  ssd_times(args, head, row, rows, times);
  pack_along<FloatWords<T>>(args.x + at, stride, rows, width, s.x, wide);
  ssd_weights(s.products, times, rows, s.weights);
  multiply<false>({state, step, s.c_turned, kStateChunk, s.y, kStateChunk}, width, cols, n, nullptr);
  for (int64_t p = 0; p < width; ++p)
    for (int64_t i = 0; i < cols; i += kWidth) {
      float* y = s.y + p * kStateChunk + i;
      store(y, mul(load(y), load(times.grows + i)));
    }
  const TileFactor one(1.0f), whole(times.whole);
  if (all_finite(s.x, rows, wide)) {
    multiply_some<true>({s.x, wide, s.weights, kStateChunk, s.y, kStateChunk}, width, cols, one.of,
                        [&](int64_t, int64_t, int64_t, int64_t end) { return Steps{0, at_most(end, rows)}; });
  } else {  // zero times NaN is not zero: what is later must not be looked at
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t p = 0; p < width; ++p) {
        float* y = s.y + p * kStateChunk + i;
        Vec sum = set1(*y);
        for (int64_t j = 0; j <= i; ++j) sum = fma(set1(s.x[j * wide + p]), set1(s.weights[j * kStateChunk + i]), sum);
        store_n(y, sum, 1);
      }
  }
  const Vec skip = set1(args.skip ? args.skip[head] : 0.0f);
  each_turned(s.y, rows, width, [&](int64_t i, int64_t p, Vec y, auto part) {
    put(args.y + at + i * stride + p, args.skip ? fma(skip, load(s.x + i * wide + p), y) : y, part);
  });
  alignas(64) float by[kStateChunk];
  for (int64_t i = 0; i < kStateChunk; i += kWidth) store(by + i, mul(load(times.dt + i), load(times.fades + i)));
  scale_rows(s.x, by, rows, wide, s.faded);
  multiply<true>({s.faded, wide, s.b, step, state, step}, width, step, rows, whole.of);
}

template <class T> static void ssd(const SsdArgs<T>& args, const Share& share) {
  const SsdUnit unit = ssd_unit(args, share.index);
  if (unit.seq >= args.seqs) return;
  const int64_t begin = args.q_start[unit.seq], end = args.q_start[unit.seq + 1];
  if (begin == end) return;
  const SsdScratch s = ssd_scratch(args, share.scratch);
  const int64_t width = args.head_dim, n = args.state_dim, step = padded(n), size = width * n;
  if (args.state && !args.chunks && end - begin <= kSsdSteps) return ssd_steps(args, unit, begin, end - begin, s.b);
  float* initial = args.state ? args.state + (unit.seq * args.heads + unit.head) * size : nullptr;
  for (int64_t h = 0; h < unit.heads; ++h) {
    if (initial) read_state(initial + h * size, width, n, s.states + h * width * step);
    else clear(s.states + h * width * step, width * step);
  }
  int64_t chunk = first_state_chunk(begin, unit.seq);
  for (int64_t row = begin; row < end; row += kStateChunk, ++chunk) {
    const int64_t rows = at_most(end - row, kStateChunk), stride = args.groups * n, at = row * stride + unit.group * n;
    pack_along<FloatWords<T>>(args.b + at, stride, rows, n, s.b, step);
    pack_turned<FloatWords<T>>(args.c + at, stride, rows, n, s.c_turned);
    multiply_some<false>({s.b, step, s.c_turned, kStateChunk, s.products, kStateChunk}, rows, padded(rows), nullptr,
                         [&](int64_t low, int64_t, int64_t, int64_t last) { return Steps{0, last > low ? n : 0}; });
    for (int64_t h = 0; h < unit.heads; ++h) {
      float* state = s.states + h * width * step;
      if (args.chunks) write_state(state, width, n, args.chunks + (chunk * args.heads + unit.head + h) * size);
      ssd_chunk(args, unit.head + h, row, rows, state, s);
    }
  }
  for (int64_t h = 0; h < unit.heads && initial; ++h)
    write_state(s.states + h * width * step, width, n, initial + h * size);
}
