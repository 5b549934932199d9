// The gated delta rule, chunk by chunk. A share takes a sequence and one key head with its value heads, which have the
// products of its keys and queries in common.

struct DeltaScratch {
  float* states;                // (H / G, K, V)
  float *q, *k, *k_turned;      // (chunk, K) twice, (K, chunk)
  float *kk, *qk;               // (chunk, chunk): K K^T and Q K^T
  float *solve, *weights;       // (chunk, chunk): -A, and what O takes of X
  float *x, *out, *faded;       // (chunk, V)
};
template <class T> static inline DeltaScratch delta_scratch(const DeltaArgs<T>& args, void* memory) {
  const int64_t keys = padded(args.k_dim), values = padded(args.v_dim), chunk = kStateChunk;
  DeltaScratch s;
  s.states = (float*)memory;
  s.q = s.states + args.heads / args.key_heads * args.k_dim * values;
  s.k = s.q + chunk * keys;
  s.k_turned = s.k + chunk * keys;
  s.kk = s.k_turned + chunk * keys;
  s.qk = s.kk + chunk * chunk;
  s.solve = s.qk + chunk * chunk;
  s.weights = s.solve + chunk * chunk;
  s.x = s.weights + chunk * chunk;
  s.out = s.x + chunk * values;
  s.faded = s.out + chunk * values;
  return s;
}

// A row, multiplied by `scale` and, where asked, divided by its length; gives what it was multiplied by.
template <class T> static inline float delta_row(const T* src, int64_t width, bool normalize, float scale, float* dst) {
  pack_along<FloatWords<T>>(src, width, 1, width, dst, 0);
  float by = scale;
  if (normalize) {
    Vec sum = zero();
    for (int64_t i = 0; i < width; i += kWidth) sum = fma(load(dst + i), load(dst + i), sum);
    by = scale / sqrtf(hsum(sum) + (float)kDeltaEps);
  }
  for (int64_t i = 0; i < width; i += kWidth) store(dst + i, mul(load(dst + i), set1(by)));
  return by;
}

template <int kCount> struct Count {
  static constexpr int value = kCount;
};

// Row by row, the state where it lies: S^T k and S^T q in one walk, and S^T q of the next S by q . k.
template <class T>
static void delta_steps(const DeltaArgs<T>& args, int64_t seq, int64_t group, int64_t row, int64_t rows, float* scratch) {
  constexpr int kSpan = 4;
  const int64_t each = args.heads / args.key_heads, keys = args.k_dim, values = args.v_dim;
  float *q = scratch, *k = q + padded(keys);
  for (; rows > 0; ++row, --rows) {
    const int64_t at = (row * args.key_heads + group) * keys;
    delta_row(args.q + at, keys, args.normalize, (float)args.scale, q);
    delta_row(args.k + at, keys, args.normalize, 1.0f, k);
    Vec sum = zero();
    for (int64_t i = 0; i < keys; i += kWidth) sum = fma(load(q + i), load(k + i), sum);
    const Vec qk = set1(hsum(sum));
    for (int64_t head = group * each; head < (group + 1) * each; ++head) {
      const int64_t time = row * args.heads + head;
      const Vec decay = exp(set1(args.g[time])), beta = set1(args.beta[time]);
      float* state = args.state + (seq * args.heads + head) * keys * values;
      const T* v = args.v + time * values;
      T* o = args.o + time * values;
      const auto columns = [&](int64_t col, auto vectors, auto part) {
        constexpr int kVecs = decltype(vectors)::value;
        Vec of_k[kVecs], of_q[kVecs];
        for (int i = 0; i < kVecs; ++i) of_k[i] = of_q[i] = zero();
        for (int64_t r = 0; r < keys; ++r) {
          const Vec by_k = set1(k[r]), by_q = set1(q[r]);
          for (int i = 0; i < kVecs; ++i) {
            const Vec s = get(state + r * values + col + i * kWidth, part);
            of_k[i] = fma(by_k, s, of_k[i]);
            of_q[i] = fma(by_q, s, of_q[i]);
          }
        }
        for (int i = 0; i < kVecs; ++i) {
          of_k[i] = mul(beta, fnma(decay, of_k[i], get(v + col + i * kWidth, part)));
          put(o + col + i * kWidth, fma(qk, of_k[i], mul(decay, of_q[i])), part);
        }
        for (int64_t r = 0; r < keys; ++r) {
          const Vec by_k = set1(k[r]);
          for (int i = 0; i < kVecs; ++i) {
            float* s = state + r * values + col + i * kWidth;
            put(s, fma(by_k, of_k[i], mul(decay, get(s, part))), part);
          }
        }
      };
      int64_t col = 0;
      for (; col + kSpan * kWidth <= values; col += kSpan * kWidth) columns(col, Count<kSpan>{}, Full{});
      for (; col + kWidth <= values; col += kWidth) columns(col, Count<1>{}, Full{});
      if (col < values) columns(col, Count<1>{}, Part{values - col});
    }
  }
}

// What the value heads have in common: rows of q and k as they count, and their products. by_q and by_k (chunk) are what
// they were multiplied by, or null.
template <class T>
static inline void delta_keys(const DeltaArgs<T>& args, int64_t group, int64_t row, int64_t rows, const DeltaScratch& s,
                              float* by_q, float* by_k) {
  const int64_t keys = args.k_dim, step = padded(keys), cols = padded(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = ((row + i) * args.key_heads + group) * keys;
    const float of_q = delta_row(args.q + at, keys, args.normalize, (float)args.scale, s.q + i * step);
    const float of_k = delta_row(args.k + at, keys, args.normalize, 1.0f, s.k + i * step);
    if (by_q) by_q[i] = of_q, by_k[i] = of_k;
  }
  pack_turned<FloatWords<float>>(s.k, step, rows, keys, s.k_turned);
  const auto below = [&](int64_t, int64_t high, int64_t col, int64_t) { return Steps{0, col < high ? keys : 0}; };
  multiply_some<false>({s.k, step, s.k_turned, kStateChunk, s.kk, kStateChunk}, rows, cols, nullptr, below);
  multiply_some<false>({s.q, step, s.k_turned, kStateChunk, s.qk, kStateChunk}, rows, cols, nullptr, below);
}

// Decays and betas of a chunk for one value head.
struct DeltaTimes : ChunkDecays {
  alignas(64) float beta[kStateChunk], shrink[kStateChunk];  // shrink = -beta e^sum
};
template <class T>
static inline void delta_times(const DeltaArgs<T>& args, int64_t head, int64_t row, int64_t rows, DeltaTimes& times) {
  sum_decays(times, rows, [&](int64_t i) { return (double)args.g[(row + i) * args.heads + head]; });
  for (int64_t i = 0; i < kStateChunk; ++i) times.beta[i] = i < rows ? args.beta[(row + i) * args.heads + head] : 0.0f;
  for (int64_t i = 0; i < kStateChunk; i += kWidth)
    store(times.shrink + i, negate(mul(load(times.beta + i), load(times.grows + i))));
}

// solve[i, j] = -beta_i kk[i, j] decay for j < i, weights[i, j] = qk[i, j] decay for j <= i, else 0.
static inline void delta_weights(const DeltaTimes& times, int64_t rows, const DeltaScratch& s) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = i * kStateChunk, last = i / kWidth * kWidth;
    float* to = s.weights + at;
    chunk_decays(times.sum, times.sum[i], false, 0, last + kWidth, to);
    const Vec shrink = set1(-times.beta[i]), here = set1((float)i);
    for (int64_t j = 0; j <= last; j += kWidth) {
      const Vec lane = add(set1((float)j), load(kLanes)), decay = load(to + j);
      const Vec w = mul(load(s.qk + at + j), decay), a = mul(mul(load(s.kk + at + j), decay), shrink);
      store(to + j, select(le(lane, here), w, zero()));
      store(s.solve + at + j, select(lt(lane, here), a, zero()));
    }
    for (int64_t j = last + kWidth; j < padded(rows); j += kWidth) {
      store(to + j, zero());
      store(s.solve + at + j, zero());
    }
  }
}

// (I + A) X = beta (V - e^sum K S), row by row: a row looks at earlier ones only. `kept` gets K S, if it is not null.
template <class T>
static inline void delta_solve(const DeltaArgs<T>& args, int64_t head, int64_t row, int64_t rows, const float* state,
                               const DeltaTimes& times, const DeltaScratch& s, float* kept) {
  const int64_t keys = args.k_dim, values = args.v_dim, step = padded(values);
  const TileFactor one(1.0f);
  multiply<false>({s.k, padded(keys), state, step, s.x, step}, rows, step, keys, nullptr);
  for (int64_t i = 0; i < rows; ++i) {
    const T* v = args.v + ((row + i) * args.heads + head) * values;
    const Vec beta = set1(times.beta[i]), shrink = set1(times.shrink[i]);
    each_vec(0, values, [&](int64_t j, auto part) {
      float* x = s.x + i * step + j;
      if (kept) store(kept + i * step + j, load(x));
      store(x, fma(shrink, load(x), mul(beta, get(v + j, part))));
    });
    multiply<false>({s.solve + i * kStateChunk, kStateChunk, s.x, step, s.x + i * step, step}, 1, step, i, one.of);
  }
}

template <class T>
static void delta_chunk(const DeltaArgs<T>& args, int64_t head, int64_t row, int64_t rows, float* state,
                        const DeltaScratch& s) {
  const int64_t keys = args.k_dim, k_step = padded(keys), values = args.v_dim, step = padded(values);
  DeltaTimes times;
  delta_times(args, head, row, rows, times);
  delta_weights(times, rows, s);
  delta_solve(args, head, row, rows, state, times, s, nullptr);
  multiply<false>({s.q, k_step, state, step, s.out, step}, rows, step, keys, nullptr);
  scale_rows(s.out, times.grows, rows, step, s.out);
  const TileFactor one(1.0f), whole(times.whole);
  if (all_finite(s.x, rows, step)) {
    multiply_some<false>({s.weights, kStateChunk, s.x, step, s.out, step}, rows, step, one.of,
                         [](int64_t, int64_t high, int64_t, int64_t) { return Steps{0, high}; });
  } else {  // zero times NaN is not zero: what is later must not be looked at
    for (int64_t i = 0; i < rows; ++i)
      multiply<false>({s.weights + i * kStateChunk, kStateChunk, s.x, step, s.out + i * step, step}, 1, step, i + 1, one.of);
  }
  write_rows(s.out, step, rows, values, kUnchanged, 0, args.o + (row * args.heads + head) * values, args.heads * values, false);
  scale_rows(s.x, times.fades, rows, step, s.faded);
  multiply<true>({s.k, k_step, s.faded, step, state, step}, keys, step, rows, whole.of);
}

template <class T> static void gated_delta(const DeltaArgs<T>& args, const Share& share) {
  const int64_t seq = share.index / args.key_heads, group = share.index % args.key_heads;
  if (seq >= args.seqs) return;
  const int64_t begin = args.q_start[seq], end = args.q_start[seq + 1];
  if (begin == end) return;
  const DeltaScratch s = delta_scratch(args, share.scratch);
  if (args.state && !args.chunks && end - begin <= kDeltaSteps) return delta_steps(args, seq, group, begin, end - begin, s.q);
  const int64_t each = args.heads / args.key_heads, keys = args.k_dim, values = args.v_dim, step = padded(values);
  const int64_t size = keys * values, first = group * each;
  float* initial = args.state ? args.state + (seq * args.heads + first) * size : nullptr;
  for (int64_t h = 0; h < each; ++h) {
    if (initial) read_state(initial + h * size, keys, values, s.states + h * keys * step);
    else clear(s.states + h * keys * step, keys * step);
  }
  int64_t chunk = first_state_chunk(begin, seq);
  for (int64_t row = begin; row < end; row += kStateChunk, ++chunk) {
    const int64_t rows = at_most(end - row, kStateChunk);
    delta_keys(args, group, row, rows, s, nullptr, nullptr);
    for (int64_t h = 0; h < each; ++h) {
      float* state = s.states + h * keys * step;
      if (args.chunks) write_state(state, keys, values, args.chunks + (chunk * args.heads + first + h) * size);
      delta_chunk(args, first + h, row, rows, state, s);
    }
  }
  for (int64_t h = 0; h < each && initial; ++h) write_state(s.states + h * keys * step, keys, values, initial + h * size);
}
