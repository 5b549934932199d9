// The backward of the gated delta rule: chunks from the last to the first, dS carried along, S taken from what the forward
// kept. With X as in the forward, W what O takes of it, E and F the decays since a chunk's begin and till its end:
//   dX = W^T dO + F K dS, then (I + A)^T R = dX       dv = beta R      dA = -R X^T     dW = dO X^T     P' = -beta E R
//   dQ = E dO S^T + ..    dK = P' S^T + F X dS^T + ..     dS <- exp(sum) dS + Q^T E dO + K^T P'
// where .. are dA and dW with their decays times keys and queries. Decays get their gradients as in ssd_backward.inl.h.

struct DeltaBackwardScratch {
  DeltaScratch fwd;                // states are dS
  float *state, *turned;           // (K, V), (V, K)
  float *dq, *dk, *part;           // (chunk, K)
  float *dkk, *dqk;                // (chunk, chunk): sums over value heads
  float *da, *dw;                  // (chunk, chunk)
  float *v, *d_o, *r;              // (chunk, V)
  float* x_turned;                 // (V, chunk)
};
template <class T> static inline DeltaBackwardScratch delta_backward_scratch(const DeltaArgs<T>& args, void* memory) {
  const int64_t keys = padded(args.k_dim), values = padded(args.v_dim), chunk = kStateChunk;
  DeltaBackwardScratch s;
  s.fwd = delta_scratch(args, memory);
  float* at = s.fwd.faded + chunk * values;
  const auto take = [&](int64_t floats) {
    float* taken = at;
    at += floats;
    return taken;
  };
  s.state = take(keys * values), s.turned = take(keys * values);
  s.dq = take(chunk * keys), s.dk = take(chunk * keys), s.part = take(chunk * keys);
  s.dkk = take(chunk * chunk), s.dqk = take(chunk * chunk), s.da = take(chunk * chunk), s.dw = take(chunk * chunk);
  s.v = take(chunk * values), s.d_o = take(chunk * values), s.r = take(chunk * values);
  s.x_turned = take(chunk * values);
  return s;
}

// (rows, cols) -> (cols, rows), both with padded rows.
static inline void turn_state(const float* src, int64_t rows, int64_t cols, float* dst) {
  const int64_t from = padded(cols), to = padded(rows);
  for (int64_t r = 0; r < rows; r += kWidth)
    for (int64_t c = 0; c < cols; c += kWidth) {
      Vec block[kWidth];
      for (int i = 0; i < kWidth; ++i) block[i] = r + i < rows ? load(src + (r + i) * from + c) : zero();
      gemm_transpose(block);
      for (int64_t i = 0; i < at_most(cols - c, kWidth); ++i) store(dst + (c + i) * to + r, block[i]);
    }
}

// sums[i] = a row of part times the row of `with`; total += part.
static inline void take_rows(const float* part, const float* with, int64_t rows, int64_t width, float* total, double* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    Vec sum = zero();
    for (int64_t j = i * width; j < (i + 1) * width; j += kWidth) {
      const Vec x = load(part + j);
      sum = fma(x, load(with + j), sum);
      store(total + j, add(load(total + j), x));
    }
    sums[i] = (double)hsum(sum);
  }
}

// da = R X^T and dw = dO X^T are given: dkk and dqk get them with their decays, dbeta what A's rows give, and between[t] the
// gradient of decay t within the chunk.
static inline void delta_pairs(const DeltaTimes& times, int64_t rows, const DeltaBackwardScratch& s, double* dbeta, double* between) {
  alignas(64) float decays[kStateChunk], from[kStateChunk] = {};
  for (int64_t i = rows - 1; i >= 0; --i) {
    const int64_t at = i * kStateChunk, last = i / kWidth * kWidth;
    chunk_decays(times.sum, times.sum[i], false, 0, last + kWidth, decays);
    const Vec here = set1((float)i), shrink = set1(-times.beta[i]);
    Vec sum = zero(), of_beta = zero();
    for (int64_t j = 0; j <= last; j += kWidth) {
      const Vec lane = add(set1((float)j), load(kLanes)), decay = load(decays + j);
      const Vec dkk = select(lt(lane, here), mul(load(s.da + at + j), decay), zero());
      const Vec dqk = select(le(lane, here), mul(load(s.dw + at + j), decay), zero());
      const Vec of_kk = mul(dkk, load(s.fwd.kk + at + j));
      store(s.dkk + at + j, fma(shrink, dkk, load(s.dkk + at + j)));
      store(s.dqk + at + j, add(load(s.dqk + at + j), dqk));
      of_beta = sub(of_beta, of_kk);
      const Vec column = add(load(from + j), fma(shrink, of_kk, mul(dqk, load(s.fwd.qk + at + j))));
      store(from + j, column);
      sum = add(sum, select(lt(lane, here), column, zero()));
    }
    between[i] = (double)hsum(sum);
    dbeta[i] += (double)hsum(of_beta);
  }
}

template <class T>
static void delta_chunk_backward(const DeltaBackwardArgs<T>& args, int64_t head, int64_t row, int64_t rows,
                                 const float* kept, float* dstate, const DeltaBackwardScratch& s) {
  const DeltaArgs<T>& fwd = args.fwd;
  const int64_t keys = fwd.k_dim, k_step = padded(keys), values = fwd.v_dim, step = padded(values), cols = padded(rows);
  const int64_t stride = fwd.heads * values, at = (row * fwd.heads + head) * values;
  const TileFactor one(1.0f);
  DeltaTimes times;
  delta_times(fwd, head, row, rows, times);
  const TileFactor whole(times.whole);
  delta_weights(times, rows, s.fwd);
  read_state(kept, keys, values, s.state);
  delta_solve(fwd, head, row, rows, s.state, times, s.fwd, s.fwd.out);
  pack_along<FloatWords<T>>(fwd.v + at, stride, rows, values, s.v, step);
  pack_along<FloatWords<T>>(args.d_o + at, stride, rows, values, s.d_o, step);
  pack_turned<FloatWords<float>>(s.fwd.x, step, rows, values, s.x_turned);
  const double kept_whole = (double)times.whole * state_dot(s.state, dstate, keys * step);

  // R, first as dX
  multiply<false>({s.fwd.k, k_step, dstate, step, s.r, step}, rows, step, keys, nullptr);
  scale_rows(s.r, times.fades, rows, step, s.r);
  multiply_some<true>({s.fwd.weights, kStateChunk, s.d_o, step, s.r, step}, rows, step, one.of,
                      [&](int64_t low, int64_t, int64_t, int64_t) { return Steps{low, rows}; });
  for (int64_t j = rows - 2; j >= 0; --j)
    multiply<true>({s.fwd.solve + (j + 1) * kStateChunk + j, kStateChunk, s.r + (j + 1) * step, step, s.r + j * step, step},
                   1, step, rows - 1 - j, one.of);
  write_rows(s.r, step, rows, values, times.beta, 1, args.dv + at, stride, args.accumulate_dv);

  const auto below = [&](int64_t, int64_t high, int64_t col, int64_t) { return Steps{0, col < high ? values : 0}; };
  multiply_some<false>({s.r, step, s.x_turned, kStateChunk, s.da, kStateChunk}, rows, cols, nullptr, below);
  multiply_some<false>({s.d_o, step, s.x_turned, kStateChunk, s.dw, kStateChunk}, rows, cols, nullptr, below);
  double dbeta[kStateChunk], between[kStateChunk], since[kStateChunk], of_keys[kStateChunk], till_end[kStateChunk];
  for (int64_t i = 0; i < rows; ++i) {
    const Vec grows = set1(times.grows[i]);
    Vec sum = zero();
    for (int64_t j = i * step; j < (i + 1) * step; j += kWidth)
      sum = fma(fnma(grows, load(s.fwd.out + j), load(s.v + j)), load(s.r + j), sum);
    dbeta[i] = (double)hsum(sum);
  }
  delta_pairs(times, rows, s, dbeta, between);

  // F X dS^T, E dO S^T, P' S^T
  turn_state(dstate, keys, values, s.turned);
  scale_rows(s.fwd.x, times.fades, rows, step, s.fwd.faded);
  multiply<false>({s.fwd.faded, step, s.turned, k_step, s.part, k_step}, rows, k_step, values, nullptr);
  take_rows(s.part, s.fwd.k, rows, k_step, s.dk, till_end);
  turn_state(s.state, keys, values, s.turned);
  scale_rows(s.d_o, times.grows, rows, step, s.d_o);
  multiply<false>({s.d_o, step, s.turned, k_step, s.part, k_step}, rows, k_step, values, nullptr);
  take_rows(s.part, s.fwd.q, rows, k_step, s.dq, since);
  scale_rows(s.r, times.shrink, rows, step, s.r);
  multiply<false>({s.r, step, s.turned, k_step, s.part, k_step}, rows, k_step, values, nullptr);
  take_rows(s.part, s.fwd.k, rows, k_step, s.dk, of_keys);
  multiply<true>({s.fwd.q, k_step, s.d_o, step, dstate, step}, keys, step, rows, whole.of);
  multiply<true>({s.fwd.k, k_step, s.r, step, dstate, step}, keys, step, rows, one.of);

  for (int64_t i = 0; i < rows; ++i) since[i] += of_keys[i];
  for (int64_t i = rows - 2; i >= 0; --i) since[i] += since[i + 1];
  double before = kept_whole;
  for (int64_t t = 0; t < rows; ++t) {
    const int64_t time = (row + t) * fwd.heads + head;
    const float dg = (float)(between[t] + since[t] + before);
    args.dg[time] = args.accumulate_dg ? args.dg[time] + dg : dg;
    args.dbeta[time] = args.accumulate_dbeta ? args.dbeta[time] + (float)dbeta[t] : (float)dbeta[t];
    before += till_end[t];
  }
}

// Rows of d(q as it counts) to rows of dq: q was multiplied by `by`, and by = scale / length where it was normalized.
template <class T>
static inline void delta_row_backward(const float* d, const float* row, float by, float scale, bool normalize, int64_t width,
                                      bool accumulate, T* to) {
  Vec along = zero();
  if (normalize)
    for (int64_t i = 0; i < width; i += kWidth) along = fma(load(d + i), load(row + i), along);
  const Vec off = set1(normalize ? hsum(along) / (scale * scale) : 0.0f), factor = set1(by);
  each_vec(0, width, [&](int64_t i, auto part) {
    store_or_add(to + i, mul(factor, fnma(off, load(row + i), load(d + i))), accumulate, part);
  });
}

template <class T> static void gated_delta_backward(const DeltaBackwardArgs<T>& args, const Share& share) {
  const DeltaArgs<T>& fwd = args.fwd;
  const int64_t seq = share.index / fwd.key_heads, group = share.index % fwd.key_heads;
  if (seq >= fwd.seqs) return;
  const int64_t begin = fwd.q_start[seq], end = fwd.q_start[seq + 1];
  const DeltaBackwardScratch s = delta_backward_scratch(fwd, share.scratch);
  const int64_t each = fwd.heads / fwd.key_heads, keys = fwd.k_dim, k_step = padded(keys), step = padded(fwd.v_dim);
  const int64_t first = group * each, size = keys * fwd.v_dim, from = first_state_chunk(begin, seq);
  const TileFactor one(1.0f);
  clear(s.fwd.states, each * keys * step);
  for (int64_t chunk = (end - begin + kStateChunk - 1) / kStateChunk - 1; chunk >= 0; --chunk) {
    const int64_t row = begin + chunk * kStateChunk, rows = at_most(end - row, kStateChunk);
    float by_q[kStateChunk], by_k[kStateChunk];
    delta_keys(fwd, group, row, rows, s.fwd, by_q, by_k);
    clear(s.dkk, kStateChunk * kStateChunk);
    clear(s.dqk, kStateChunk * kStateChunk);
    clear(s.dq, rows * k_step);
    clear(s.dk, rows * k_step);
    for (int64_t h = 0; h < each; ++h)
      delta_chunk_backward(args, first + h, row, rows, fwd.chunks + ((from + chunk) * fwd.heads + first + h) * size,
                           s.fwd.states + h * keys * step, s);
    const auto above = [&](int64_t, int64_t high, int64_t, int64_t) { return Steps{0, high}; };
    const auto below = [&](int64_t low, int64_t, int64_t, int64_t) { return Steps{low, rows}; };
    multiply_some<false>({s.dqk, kStateChunk, s.fwd.k, k_step, s.dq, k_step}, rows, k_step, one.of, above);
    multiply_some<true>({s.dqk, kStateChunk, s.fwd.q, k_step, s.dk, k_step}, rows, k_step, one.of, below);
    multiply_some<false>({s.dkk, kStateChunk, s.fwd.k, k_step, s.dk, k_step}, rows, k_step, one.of, above);
    multiply_some<true>({s.dkk, kStateChunk, s.fwd.k, k_step, s.dk, k_step}, rows, k_step, one.of, below);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = ((row + i) * fwd.key_heads + group) * keys, here = i * k_step;
      delta_row_backward(s.dq + here, s.fwd.q + here, by_q[i], (float)fwd.scale, fwd.normalize, keys, args.accumulate_dq,
                         args.dq + at);
      delta_row_backward(s.dk + here, s.fwd.k + here, by_k[i], 1.0f, fwd.normalize, keys, args.accumulate_dk, args.dk + at);
    }
  }
}
