// RWKV-7's time mixing, token by token. A share takes a sequence and a head. Rows of the state go by k, so that what a row
// is multiplied by is one number; a block of columns of S is walked twice a token, for S^T a and for the update.

struct RwkvRows {
  float *r, *w, *k, *a, *b, *v;  // of a token, as whole vectors
};
template <class T> static inline RwkvRows rwkv_rows(const Rwkv7Args<T>& args, int64_t time, float* to) {
  const int64_t keys = args.k_dim, step = padded(keys), at = time * keys;
  const RwkvRows rows = {to, to + step, to + 2 * step, to + 3 * step, to + 4 * step, to + 5 * step};
  pack_along<FloatWords<T>>(args.r + at, keys, 1, keys, rows.r, 0);
  pack_along<FloatWords<float>>(args.w + at, keys, 1, keys, rows.w, 0);
  pack_along<FloatWords<T>>(args.k + at, keys, 1, keys, rows.k, 0);
  pack_along<FloatWords<T>>(args.a + at, keys, 1, keys, rows.a, 0);
  pack_along<FloatWords<T>>(args.b + at, keys, 1, keys, rows.b, 0);
  pack_along<FloatWords<T>>(args.v + time * args.v_dim, args.v_dim, 1, args.v_dim, rows.v, 0);
  return rows;
}

// body(column, vectors) for padded columns, in blocks of four vectors and then of one.
template <class Body> static inline void rwkv_columns(int64_t width, const Body& body) {
  int64_t col = 0;
  for (; col + 4 * kWidth <= width; col += 4 * kWidth) body(col, Count<4>{});
  for (; col < width; col += kWidth) body(col, Count<1>{});
}

// `after` = the next state, of rows of whole vectors; sa = S^T a and y = (next S)^T r where they are wanted.
static inline void rwkv_step(const RwkvRows& t, int64_t keys, int64_t width, const float* before, float* after, float* sa, float* y) {
  rwkv_columns(width, [&](int64_t col, auto vectors) {
    constexpr int kVecs = decltype(vectors)::value;
    Vec sum[kVecs], out[kVecs], v[kVecs];
    for (int i = 0; i < kVecs; ++i) {
      sum[i] = out[i] = zero();
      v[i] = load(t.v + col + i * kWidth);
    }
    for (int64_t r = 0; r < keys; ++r) {
      const Vec a = set1(t.a[r]);
      for (int i = 0; i < kVecs; ++i) sum[i] = fma(a, load(before + r * width + col + i * kWidth), sum[i]);
    }
    for (int64_t r = 0; r < keys; ++r) {
      const Vec w = set1(t.w[r]), k = set1(t.k[r]), b = set1(t.b[r]), by = set1(t.r[r]);
      for (int i = 0; i < kVecs; ++i) {
        const int64_t at = r * width + col + i * kWidth;
        const Vec s = fma(b, sum[i], fma(k, v[i], mul(w, load(before + at))));
        store(after + at, s);
        out[i] = fma(by, s, out[i]);
      }
    }
    for (int i = 0; i < kVecs; ++i) {
      if (sa) store(sa + col + i * kWidth, sum[i]);
      if (y) store(y + col + i * kWidth, out[i]);
    }
  });
}

static inline int64_t rwkv_kept(int64_t begin, int64_t seq, int64_t row) {
  return begin / kRwkvStride + seq + (row - begin) / kRwkvStride;
}

// Scratch: rows of a token, its y, a state.
template <class T> static void rwkv7(const Rwkv7Args<T>& args, const Share& share) {
  const int64_t seq = share.index / args.heads, head = share.index % args.heads;
  if (seq >= args.seqs) return;
  const int64_t begin = args.q_start[seq], end = args.q_start[seq + 1];
  if (begin == end) return;
  const int64_t keys = args.k_dim, values = args.v_dim, width = padded(values), size = keys * values;
  float* rows = (float*)share.scratch;
  float *y = rows + 5 * padded(keys) + width, *state = y + width;
  float* initial = args.state ? args.state + (seq * args.heads + head) * size : nullptr;
  if (initial) read_state(initial, keys, values, state);
  else clear(state, keys * width);
  for (int64_t row = begin; row < end; ++row) {
    if (args.kept && (row - begin) % kRwkvStride == 0)
      write_state(state, keys, values, args.kept + (rwkv_kept(begin, seq, row) * args.heads + head) * size);
    const int64_t time = row * args.heads + head;
    rwkv_step(rwkv_rows(args, time, rows), keys, width, state, state, nullptr, y);
    write_rows(y, width, 1, values, kUnchanged, 0, args.y + time * values, values, false);
  }
  if (initial) write_state(state, keys, values, initial);
}

// Sums of rows of vectors, one number each, added to or written as dst[0, rows).
template <class T> static inline void rwkv_sums(const float* vectors, int64_t rows, bool accumulate, T* dst) {
  each_vec(0, rows, [&](int64_t r, auto part) {
    store_or_add(dst + r, lane_sums(vectors + r * kWidth, at_most(rows - r, kWidth)), accumulate, part);
  });
}

struct RwkvBackwardScratch {
  float *rows, *dy, *dv;                     // of a token; (V) each
  float *dr, *dw, *dk, *da, *db;             // (K, kWidth): sums lane by lane
  float *dstate, *states, *sa;               // (K, V), (kRwkvStride + 1, K, V), (kRwkvStride, V)
};

// dS becomes the gradient of the state before; every sum over columns is left lane by lane.
static inline void rwkv_step_backward(const RwkvRows& t, int64_t keys, int64_t width, const float* before, const float* sa,
                                      const RwkvBackwardScratch& s) {
  const float* after = before + keys * width;
  clear(s.dr, 5 * keys * kWidth);  // the five lie side by side
  rwkv_columns(width, [&](int64_t col, auto vectors) {
    constexpr int kVecs = decltype(vectors)::value;
    Vec dv[kVecs], dsa[kVecs];
    for (int i = 0; i < kVecs; ++i) dv[i] = dsa[i] = zero();
    for (int64_t r = 0; r < keys; ++r) {
      const Vec by = set1(t.r[r]), k = set1(t.k[r]), b = set1(t.b[r]);
      Vec dr = load(s.dr + r * kWidth), dw = load(s.dw + r * kWidth), dk = load(s.dk + r * kWidth), db = load(s.db + r * kWidth);
      for (int i = 0; i < kVecs; ++i) {
        const int64_t c = col + i * kWidth, at = r * width + c;
        const Vec dy = load(s.dy + c), d = fma(by, dy, load(s.dstate + at));
        store(s.dstate + at, d);
        dr = fma(load(after + at), dy, dr);
        dw = fma(load(before + at), d, dw);
        dk = fma(load(t.v + c), d, dk);
        db = fma(load(sa + c), d, db);
        dv[i] = fma(k, d, dv[i]);
        dsa[i] = fma(b, d, dsa[i]);
      }
      store(s.dr + r * kWidth, dr);
      store(s.dw + r * kWidth, dw);
      store(s.dk + r * kWidth, dk);
      store(s.db + r * kWidth, db);
    }
    for (int i = 0; i < kVecs; ++i) store(s.dv + col + i * kWidth, dv[i]);
    for (int64_t r = 0; r < keys; ++r) {
      const Vec w = set1(t.w[r]), a = set1(t.a[r]);
      Vec da = load(s.da + r * kWidth);
      for (int i = 0; i < kVecs; ++i) {
        const int64_t at = r * width + col + i * kWidth;
        da = fma(load(before + at), dsa[i], da);
        store(s.dstate + at, fma(a, dsa[i], mul(w, load(s.dstate + at))));
      }
      store(s.da + r * kWidth, da);
    }
  });
}

template <class T> static void rwkv7_backward(const Rwkv7BackwardArgs<T>& args, const Share& share) {
  const Rwkv7Args<T>& fwd = args.fwd;
  const int64_t seq = share.index / fwd.heads, head = share.index % fwd.heads;
  if (seq >= fwd.seqs) return;
  const int64_t begin = fwd.q_start[seq], end = fwd.q_start[seq + 1];
  const int64_t keys = fwd.k_dim, values = fwd.v_dim, width = padded(values), size = keys * width;
  RwkvBackwardScratch s;
  float* at = (float*)share.scratch;
  const auto take = [&](int64_t floats) {
    float* taken = at;
    at += floats;
    return taken;
  };
  s.rows = take(5 * padded(keys) + width);
  s.dy = take(width), s.dv = take(width);
  s.dr = take(keys * kWidth), s.dw = take(keys * kWidth), s.dk = take(keys * kWidth), s.da = take(keys * kWidth), s.db = take(keys * kWidth);
  s.dstate = take(size), s.states = take((kRwkvStride + 1) * size), s.sa = take(kRwkvStride * width);
  clear(s.dstate, size);
  const int64_t stretches = (end - begin + kRwkvStride - 1) / kRwkvStride;
  for (int64_t stretch = stretches - 1; stretch >= 0; --stretch) {
    const int64_t first = begin + stretch * kRwkvStride, count = at_most(end - first, kRwkvStride);
    read_state(fwd.kept + (rwkv_kept(begin, seq, first) * fwd.heads + head) * keys * values, keys, values, s.states);
    for (int64_t i = 0; i < count; ++i)
      rwkv_step(rwkv_rows(fwd, (first + i) * fwd.heads + head, s.rows), keys, width, s.states + i * size,
                s.states + (i + 1) * size, s.sa + i * width, nullptr);
    for (int64_t i = count - 1; i >= 0; --i) {
      const int64_t time = (first + i) * fwd.heads + head;
      pack_along<FloatWords<T>>(args.dy + time * values, values, 1, values, s.dy, 0);
      rwkv_step_backward(rwkv_rows(fwd, time, s.rows), keys, width, s.states + i * size, s.sa + i * width, s);
      rwkv_sums(s.dr, keys, args.accumulate_dr, args.dr + time * keys);
      rwkv_sums(s.dw, keys, args.accumulate_dw, args.dw + time * keys);
      rwkv_sums(s.dk, keys, args.accumulate_dk, args.dk + time * keys);
      rwkv_sums(s.da, keys, args.accumulate_da, args.da + time * keys);
      rwkv_sums(s.db, keys, args.accumulate_db, args.db + time * keys);
      write_rows(s.dv, width, 1, values, kUnchanged, 0, args.dv + time * values, values, args.accumulate_dv);
    }
  }
}
