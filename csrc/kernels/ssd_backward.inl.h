// The backward of the state-space duality: chunks from the last to the first, dS carried along, S taken from what the forward
// kept. With L the decays of a chunk, M = C B^T o L, dM = dY x^T, and E, F the decays since its begin and till its end:
//   dx^T = (dY^T M + dS B^T F) d      dC = E dY S + (dM o L d) B      dB = F d x dS + (dM o L d)^T C
//   dS <- exp(sum) dS + (E dY)^T C
// A decay at t lies between every pair i >= t > j, between t's S and all i >= t, and between all j < t and the end: its
// gradient is a sum of those pairs only, never a difference of larger sums.

struct SsdBackwardScratch {
  float *dstates, *state;             // (kSsdHeads, P, N), (P, N)
  float *b, *c, *b_turned;            // (chunk, N) twice, (N, chunk)
  float *db, *dc, *dc_head;           // (chunk, N)
  float *products, *pairs;            // (chunk, chunk): C B^T; sums over heads of dM o L d
  float *weights, *dweights;          // (chunk, chunk): M, dM
  float *x, *dy, *scaled;             // (chunk, P)
  float *x_turned, *dx;               // (P, chunk)
};
template <class T> static inline SsdBackwardScratch ssd_backward_scratch(const SsdArgs<T>& args, void* memory) {
  const int64_t width = padded(args.head_dim), state = padded(args.state_dim), chunk = kStateChunk;
  SsdBackwardScratch s;
  float* at = (float*)memory;
  const auto take = [&](int64_t floats) {
    float* taken = at;
    at += floats;
    return taken;
  };
  s.dstates = take(kSsdHeads * args.head_dim * state);
  s.state = take(width * state);
  s.b = take(chunk * state), s.c = take(chunk * state), s.b_turned = take(chunk * state);
  s.db = take(chunk * state), s.dc = take(chunk * state), s.dc_head = take(chunk * state);
  s.products = take(chunk * chunk), s.pairs = take(chunk * chunk);
  s.weights = take(chunk * chunk), s.dweights = take(chunk * chunk);
  s.x = take(chunk * width), s.dy = take(chunk * width), s.scaled = take(chunk * width);
  s.x_turned = take(chunk * width), s.dx = take(chunk * width);
  return s;
}

// weights = products o L; pairs += dweights o L d; between[t] = the gradient of decay t within the chunk.
static inline void ssd_pairs(const SsdTimes& times, int64_t rows, const SsdBackwardScratch& s, double* between) {
  alignas(64) float decays[kStateChunk], from[kStateChunk] = {};  // from[j]: sum over rows >= i of the pairs (row, j)
  for (int64_t i = rows - 1; i >= 0; --i) {
    const int64_t at = i * kStateChunk, last = i / kWidth * kWidth;
    chunk_decays(times.sum, times.sum[i], false, 0, last + kWidth, decays);
    Vec sum = zero();
    for (int64_t j = 0; j <= last; j += kWidth) {
      const Vec lane = add(set1((float)j), load(kLanes)), here = set1((float)i);
      const Vec decay = select(le(lane, here), load(decays + j), zero());
      const Vec m = mul(load(s.products + at + j), decay), dt = load(times.dt + j), dm = load(s.dweights + at + j);
      store(s.weights + at + j, m);
      store(s.pairs + at + j, fma(mul(dm, decay), dt, load(s.pairs + at + j)));
      const Vec column = fma(mul(dm, m), dt, load(from + j));
      store(from + j, column);
      sum = add(sum, select(lt(lane, here), column, zero()));
    }
    for (int64_t j = last + kWidth; j < padded(rows); j += kWidth) store(s.weights + at + j, zero());
    between[i] = (double)hsum(sum);
  }
}

struct SsdSums {
  double a, skip, bias;
};

template <class T>
static void ssd_chunk_backward(const SsdBackwardArgs<T>& args, int64_t head, int64_t row, int64_t rows, const float* kept,
                               float* dstate, SsdSums& sums, const SsdBackwardScratch& s) {
  const SsdArgs<T>& fwd = args.fwd;
  const int64_t width = fwd.head_dim, wide = padded(width), n = fwd.state_dim, step = padded(n), cols = padded(rows);
  const int64_t stride = fwd.heads * width, at = row * stride + head * width;
  SsdTimes times;
  ssd_times(fwd, head, row, rows, times);
  const TileFactor one(1.0f), whole(times.whole);
  pack_along<FloatWords<T>>(fwd.x + at, stride, rows, width, s.x, wide);
  pack_turned<FloatWords<T>>(fwd.x + at, stride, rows, width, s.x_turned);
  pack_along<FloatWords<T>>(args.dy + at, stride, rows, width, s.dy, wide);
  read_state(kept, width, n, s.state);
  const double kept_whole = (double)times.whole * state_dot(s.state, dstate, width * step);

  multiply_some<false>({s.dy, wide, s.x_turned, kStateChunk, s.dweights, kStateChunk}, rows, cols, nullptr,
                       [&](int64_t, int64_t high, int64_t col, int64_t) { return Steps{0, col < high ? width : 0}; });
  double between[kStateChunk], since[kStateChunk];
  ssd_pairs(times, rows, s, between);

  // dx^T / d, and what each row gave to the end of the chunk
  multiply<false>({dstate, step, s.b_turned, kStateChunk, s.dx, kStateChunk}, width, cols, n, nullptr);
  alignas(64) float till_end[kStateChunk], ddt[kStateChunk];
  for (int64_t j = 0; j < cols; j += kWidth) {
    Vec sum = zero();
    for (int64_t p = 0; p < width; ++p) {
      float* dx = s.dx + p * kStateChunk + j;
      const Vec x = mul(load(dx), load(times.fades + j));
      store(dx, x);
      sum = fma(x, load(s.x_turned + p * kStateChunk + j), sum);
    }
    store(till_end + j, mul(sum, load(times.dt + j)));
  }
  multiply_some<true>({s.dy, wide, s.weights, kStateChunk, s.dx, kStateChunk}, width, cols, one.of,
                      [&](int64_t, int64_t, int64_t col, int64_t) { return Steps{col, rows}; });
  for (int64_t j = 0; j < cols; j += kWidth) {
    Vec sum = zero();
    for (int64_t p = 0; p < width; ++p)
      sum = fma(load(s.dx + p * kStateChunk + j), load(s.x_turned + p * kStateChunk + j), sum);
    store(ddt + j, sum);
  }
  const Vec skip = set1(fwd.skip ? fwd.skip[head] : 0.0f);
  each_turned(s.dx, rows, width, [&](int64_t j, int64_t p, Vec dx, auto part) {
    const Vec x = fma(skip, load(s.dy + j * wide + p), mul(dx, set1(times.dt[j])));
    store_or_add(args.dx + at + j * stride + p, x, args.accumulate_dx, part);
  });
  if (fwd.skip) sums.skip += state_dot(s.x, s.dy, rows * wide);

  // dB of the state at the end, then dC and dS of the state at the begin
  alignas(64) float by[kStateChunk];
  for (int64_t i = 0; i < kStateChunk; i += kWidth) store(by + i, mul(load(times.dt + i), load(times.fades + i)));
  scale_rows(s.x, by, rows, wide, s.scaled);
  multiply<false>({s.scaled, wide, dstate, step, s.db, step}, rows, step, width, one.of);
  scale_rows(s.dy, times.grows, rows, wide, s.scaled);
  multiply<false>({s.scaled, wide, s.state, step, s.dc_head, step}, rows, step, width, nullptr);
  for (int64_t i = 0; i < rows; ++i) {
    Vec sum = zero();
    for (int64_t j = i * step; j < (i + 1) * step; j += kWidth) {
      const Vec dc = load(s.dc_head + j);
      sum = fma(dc, load(s.c + j), sum);
      store(s.dc + j, add(load(s.dc + j), dc));
    }
    since[i] = (double)hsum(sum);
  }
  multiply<true>({s.scaled, wide, s.c, step, dstate, step}, width, step, rows, whole.of);

  double before = kept_whole;  // the state at the begin, and rows before t, to the end
  for (int64_t i = rows - 2; i >= 0; --i) since[i] += since[i + 1];
  for (int64_t t = 0; t < rows; ++t) {
    const double d = between[t] + since[t] + before;
    const float dtime = (float)((double)fwd.a[head] * d + (double)ddt[t]) * times.slope[t];
    T& to = args.ddt[(row + t) * fwd.heads + head];
    assign(to, args.accumulate_ddt ? value_of(to) + dtime : dtime);
    sums.a += (double)times.dt[t] * d;
    sums.bias += (double)dtime;
    before += (double)till_end[t];
  }
}

template <class T> static void ssd_backward(const SsdBackwardArgs<T>& args, const Share& share) {
  const SsdArgs<T>& fwd = args.fwd;
  const SsdUnit unit = ssd_unit(fwd, share.index);
  if (unit.seq >= fwd.seqs) return;
  const int64_t begin = fwd.q_start[unit.seq], end = fwd.q_start[unit.seq + 1];
  const SsdBackwardScratch s = ssd_backward_scratch(fwd, share.scratch);
  const int64_t width = fwd.head_dim, n = fwd.state_dim, step = padded(n), size = width * n, stride = fwd.groups * n;
  SsdSums sums[kSsdHeads] = {};
  clear(s.dstates, unit.heads * width * step);
  const int64_t chunks = (end - begin + kStateChunk - 1) / kStateChunk, first = first_state_chunk(begin, unit.seq);
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t row = begin + chunk * kStateChunk, rows = at_most(end - row, kStateChunk);
    const int64_t at = row * stride + unit.group * n;
    pack_along<FloatWords<T>>(fwd.b + at, stride, rows, n, s.b, step);
    pack_along<FloatWords<T>>(fwd.c + at, stride, rows, n, s.c, step);
    pack_turned<FloatWords<T>>(fwd.b + at, stride, rows, n, s.b_turned);
    multiply_some<false>({s.c, step, s.b_turned, kStateChunk, s.products, kStateChunk}, rows, padded(rows), nullptr,
                         [&](int64_t, int64_t high, int64_t col, int64_t) { return Steps{0, col < high ? n : 0}; });
    clear(s.pairs, kStateChunk * kStateChunk);
    clear(s.db, rows * step);
    clear(s.dc, rows * step);
    for (int64_t h = 0; h < unit.heads; ++h)
      ssd_chunk_backward(args, unit.head + h, row, rows,
                         fwd.chunks + ((first + chunk) * fwd.heads + unit.head + h) * size,
                         s.dstates + h * width * step, sums[h], s);
    const TileFactor one(1.0f);
    multiply_some<false>({s.pairs, kStateChunk, s.b, step, s.dc, step}, rows, step, one.of,
                         [&](int64_t, int64_t high, int64_t, int64_t) { return Steps{0, high}; });
    multiply_some<true>({s.pairs, kStateChunk, s.c, step, s.db, step}, rows, step, one.of,
                        [&](int64_t low, int64_t, int64_t, int64_t) { return Steps{low, rows}; });
    const int64_t part = unit.block * fwd.tokens * stride + at;
    write_rows(s.db, step, rows, n, kUnchanged, 0, args.part_db + part, stride, false);
    write_rows(s.dc, step, rows, n, kUnchanged, 0, args.part_dc + part, stride, false);
  }
  for (int64_t h = 0; h < unit.heads; ++h) {
    const int64_t at = unit.seq * fwd.heads + unit.head + h;
    args.part_da[at] = (float)sums[h].a;
    if (args.part_dskip) args.part_dskip[at] = (float)sums[h].skip;
    if (args.part_dbias) args.part_dbias[at] = (float)sums[h].bias;
  }
}
