// Rotary positions.

// One head, pairs (i, i + half). `turn` is 1, or -1 to rotate back.
template <class T>
static inline void rope_halves(const RopeArgs<T>& args, const T* x, const float* cos, const float* sin, float turn, T* y) {
  const int64_t half = args.half;
  each_vec(0, half, [&](int64_t i, auto part) {
    ask_to_write(y + i + kPutAhead, part);
    ask_to_write(y + half + i + kPutAhead, part);
    const Vec a = get(x + i, part), b = get(x + half + i, part);
    const Vec c = get(cos + i, part), s = mul(get(sin + i, part), set1(turn));
    store_or_add(y + i, fnma(b, s, mul(a, c)), args.accumulate, part);
    store_or_add(y + half + i, fma(a, s, mul(b, c)), args.accumulate, part);
  });
}

// One head, pairs (2i, 2i + 1).
template <class T>
static inline void rope_pairs(const RopeArgs<T>& args, const T* x, const float* cos, const float* sin, float turn, T* y) {
  for (int64_t i = 0; i < args.half; ++i) {
    const float a = value_of(x[2 * i]), b = value_of(x[2 * i + 1]), c = cos[i], s = sin[i] * turn;
    const float first = a * c - b * s, second = b * c + a * s;
    assign(y[2 * i], args.accumulate ? value_of(y[2 * i]) + first : first);
    assign(y[2 * i + 1], args.accumulate ? value_of(y[2 * i + 1]) + second : second);
  }
}

// y (+)= rotated x; components from 2 * half on are copied. Shares: rows_per_share(heads * head_dim) tokens.
template <class T> void rope(const RopeArgs<T>& args, const Share& share) {
  const float turn = args.inverse ? -1.0f : 1.0f;
  const Range tokens = range_of(share.index, args.tokens, rows_per_share(args.heads * args.head_dim));
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const float* cos = args.cos + args.positions[t] * args.half;
    const float* sin = args.sin + args.positions[t] * args.half;
    for (int64_t h = 0; h < args.heads; ++h) {
      const int64_t at = (t * args.heads + h) * args.head_dim;
      const T* x = args.x + at;
      T* y = args.y + at;
      (args.interleaved ? rope_pairs<T> : rope_halves<T>)(args, x, cos, sin, turn, y);
      each_vec(2 * args.half, args.head_dim,
               [&](int64_t i, auto part) { store_or_add(y + i, get(x + i, part), args.accumulate, part); });
    }
  }
}
