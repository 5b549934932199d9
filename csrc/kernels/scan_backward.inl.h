// Selective scan, backward. A chunk of kScanStride rows at a time, the last first. Of a few states of a vector of channels
// the states and decays of the chunk are computed again from the saved state, into L1, and then walked back, with the
// gradient of the state in registers.

constexpr int kScanGroup = kRegisters == 32 ? 4 : 2;  // states walked together, so that their chains overlap

constexpr int64_t kScanSkew = 80;  // arrays a power of two apart would have loads wait for stores to the others

// Scratch of a share; plan_scan.cpp has its size. Rows are kScanBlock wide, lanes beyond the channels hold zeros.
struct ScanChunk {
  float *a, *h, *g, *da;                      // (N, block): A turned, the state before the chunk, gradients of state and of A
  float *d, *slope, *du, *dy, *y, *ddu, *dd;  // (stride, block): delta and its derivative by the input, delta * u, the
                                              // gradient before the gate, the value before the gate, gradients of du and d
  float *decay, *before;                      // (stride, group, kWidth): exp(d a), the state before the row
  float *sums_b, *sums_c;                     // (stride, group, kWidth): terms of the gradients of b and c, lane by lane
  float *b, *c;                               // (stride, N)
  float *dskip, *dbias;                       // (block)
};
static inline ScanChunk scan_chunk(float* at, int64_t states) {
  const int64_t square = states * kScanBlock, rows = kScanStride * kScanBlock, few = kScanStride * kScanGroup * kWidth;
  ScanChunk s;
  const auto take = [&](float*& p, int64_t n) { p = at, at += n + kScanSkew; };
  take(s.a, square), take(s.h, square), take(s.g, square), take(s.da, square);
  take(s.d, rows), take(s.slope, rows), take(s.du, rows), take(s.dy, rows), take(s.y, rows), take(s.ddu, rows), take(s.dd, rows);
  take(s.decay, few), take(s.before, few), take(s.sums_b, few), take(s.sums_c, few);
  take(s.b, kScanStride * padded(states)), take(s.c, kScanStride * padded(states)), take(s.dskip, kScanBlock);
  take(s.dbias, kScanBlock);
  return s;
}

// kGroup states from n on of the vector of channels at i, forward and back through `rows` rows.
template <int kGroup, bool kAddUp>
static inline void scan_states_back(const ScanChunk& s, int64_t rows, int64_t b_step, int64_t n, int64_t i) {
  Vec a[kGroup], h[kGroup];
#pragma GCC unroll 4
  for (int j = 0; j < kGroup; ++j) a[j] = load(s.a + (n + j) * kScanBlock + i), h[j] = load(s.h + (n + j) * kScanBlock + i);
  for (int64_t t = 0; t < rows; ++t) {
    const Vec d = load(s.d + t * kScanBlock + i), du = load(s.du + t * kScanBlock + i);
    const float *b = s.b + t * b_step + n, *c = s.c + t * b_step + n;
    Vec y = load(s.y + t * kScanBlock + i);
#pragma GCC unroll 4
    for (int j = 0; j < kGroup; ++j) {
      const int64_t at = (t * kScanGroup + j) * kWidth;
      const Vec decay = scan_exp2(mul(d, a[j]));
      store(s.before + at, h[j]);
      store(s.decay + at, decay);
      h[j] = fma(decay, h[j], mul(du, set1(b[j])));
      y = fma(h[j], set1(c[j]), y);
    }
    store(s.y + t * kScanBlock + i, y);
  }
  Vec g[kGroup], da[kGroup];
#pragma GCC unroll 4
  for (int j = 0; j < kGroup; ++j) g[j] = load(s.g + (n + j) * kScanBlock + i), da[j] = load(s.da + (n + j) * kScanBlock + i);
  for (int64_t t = rows - 1; t >= 0; --t) {
    const int64_t row = t * kScanBlock + i;
    const Vec d = load(s.d + row), du = load(s.du + row), dy = load(s.dy + row);
    const float *b = s.b + t * b_step + n, *c = s.c + t * b_step + n;
    Vec ddu = load(s.ddu + row), dd = load(s.dd + row);
#pragma GCC unroll 4
    for (int j = 0; j < kGroup; ++j) {
      const int64_t at = (t * kScanGroup + j) * kWidth;
      const Vec now = fma(dy, set1(c[j]), g[j]), before = load(s.before + at);
      store(s.sums_c + at, kAddUp ? fma(dy, h[j], load(s.sums_c + at)) : mul(dy, h[j]));
      store(s.sums_b + at, kAddUp ? fma(now, du, load(s.sums_b + at)) : mul(now, du));
      ddu = fma(now, set1(b[j]), ddu);
      g[j] = mul(now, load(s.decay + at));
      const Vec slope = mul(g[j], before);  // by d * a
      dd = fma(slope, a[j], dd);
      da[j] = fma(slope, d, da[j]);
      h[j] = before;
    }
    store(s.ddu + row, ddu);
    store(s.dd + row, dd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kGroup; ++j) store(s.g + (n + j) * kScanBlock + i, g[j]), store(s.da + (n + j) * kScanBlock + i, da[j]);
}

// Adds up lanes: (rows, group, kWidth) -> rows of `to`, kGroup numbers each.
template <int kGroup> static inline void scan_lane_sums(const float* sums, int64_t rows, float* to, int64_t step) {
  constexpr int kRows = kWidth / kScanGroup;
  alignas(64) float folded[kWidth];
  for (int64_t t = 0; t < rows; t += kRows) {
    const int64_t count = at_most(rows - t, kRows);
    store(folded, lane_sums(sums + t * kScanGroup * kWidth, count * kScanGroup));
    for (int64_t r = 0; r < count; ++r)
      for (int j = 0; j < kGroup; ++j) to[(t + r) * step + j] = folded[r * kScanGroup + j];
  }
}

template <int kGroup, class T>
static inline void scan_group_back(const ScanBackwardArgs<T>& args, const ScanChunk& s, int64_t from, int64_t rows, int64_t block,
                                   int64_t width, int64_t n) {
  const int64_t states = args.fwd.states, at = (block * args.fwd.tokens + from) * states + n;
  scan_states_back<kGroup, false>(s, rows, padded(states), n, 0);
  for (int64_t i = kWidth; i < width; i += kWidth) scan_states_back<kGroup, true>(s, rows, padded(states), n, i);
  scan_lane_sums<kGroup>(s.sums_b, rows, args.part_db + at, states);
  scan_lane_sums<kGroup>(s.sums_c, rows, args.part_dc + at, states);
}

// What comes before the states of rows [from, to), and what comes after them.
template <class T>
static void scan_begin_back(const ScanBackwardArgs<T>& args, const ScanChunk& s, int64_t from, int64_t to, int64_t begin,
                            int64_t width) {
  const ScanArgs<T>& fwd = args.fwd;
  for (int64_t t = from; t < to; ++t) {
    each_vec(0, width, [&](int64_t i, auto part) {
      const int64_t at = t * fwd.channels + begin + i, row = (t - from) * kScanBlock + i;
      const Vec raw = scan_delta(fwd, at, begin + i, part), u = get(fwd.u + at, part), dy = get(args.dy + at, part);
      const Softplus soft = fwd.softplus ? softplus_of(raw) : Softplus{raw, set1(1.0f)};
      const Vec d = lanes_or(soft.value, part, 0.0f);
      store(s.d + row, d);
      store(s.slope + row, soft.slope);
      store(s.du + row, mul(d, u));
      store(s.y + row, fwd.skip ? mul(get(fwd.skip + begin + i, part), u) : zero());
      store(s.ddu + row, zero());
      store(s.dd + row, zero());
      if (fwd.z) {
        const Vec z = get(fwd.z + at, part);
        store(s.dy + row, mul(dy, mul(z, scan_sigmoid(z))));
      } else {
        store(s.dy + row, dy);
      }
    });
    float *b = s.b + (t - from) * padded(fwd.states), *c = s.c + (t - from) * padded(fwd.states);
    each_vec(0, fwd.states, [&](int64_t n, auto part) {
      put(b + n, get(fwd.b + t * fwd.states + n, part), part);
      put(c + n, get(fwd.c + t * fwd.states + n, part), part);
    });
  }
}
template <class T>
static void scan_end_back(const ScanBackwardArgs<T>& args, const ScanChunk& s, int64_t from, int64_t to, int64_t begin,
                          int64_t width) {
  const ScanArgs<T>& fwd = args.fwd;
  for (int64_t t = to - 1; t >= from; --t) {
    each_vec(0, width, [&](int64_t i, auto part) {
      const int64_t at = t * fwd.channels + begin + i, row = (t - from) * kScanBlock + i;
      const Vec u = get(fwd.u + at, part), dy = load(s.dy + row), ddu = load(s.ddu + row);
      if (args.dz) {
        const Vec z = get(fwd.z + at, part), gate = scan_sigmoid(z), slope = mul(gate, fma(z, sub(set1(1.0f), gate), set1(1.0f)));
        store_or_add(args.dz + at, mul(mul(get(args.dy + at, part), load(s.y + row)), slope), args.accumulate_dz, part);
      }
      const Vec skip = fwd.skip ? mul(get(fwd.skip + begin + i, part), dy) : zero();
      if (args.du) store_or_add(args.du + at, fma(ddu, load(s.d + row), skip), args.accumulate_du, part);
      const Vec ddelta = mul(fma(ddu, u, mul(load(s.dd + row), set1(kScanLn2))), load(s.slope + row));
      if (args.ddelta) store_or_add(args.ddelta + at, ddelta, args.accumulate_ddelta, part);
      store(s.dskip + i, fma(dy, u, load(s.dskip + i)));
      store(s.dbias + i, add(lanes_or(ddelta, part, 0.0f), load(s.dbias + i)));
    });
  }
}

template <class T> static void scan_block_back(const ScanBackwardArgs<T>& args, int64_t block, const ScanChunk& s) {
  const ScanArgs<T>& fwd = args.fwd;
  const int64_t states = fwd.states, square = states * kScanBlock, begin = block * kScanBlock;
  const int64_t width = at_most(fwd.channels - begin, kScanBlock);
  scan_turn_a(fwd.a, states, begin, width, s.a);
  clear(s.da, square), clear(s.dskip, kScanBlock), clear(s.dbias, kScanBlock);
  for (int64_t seq = 0; seq < fwd.seqs; ++seq) {
    const int64_t first = fwd.q_start[seq], last = fwd.q_start[seq + 1];
    clear(s.g, square);
    for (int64_t i = (last - first + kScanStride - 1) / kScanStride - 1; i >= 0; --i) {
      const int64_t from = first + i * kScanStride, to = at_most(last, from + kScanStride);
      const int64_t row = first / kScanStride + seq + i;
      scan_load_state(fwd.saved + row * states * fwd.channels + begin, states, fwd.channels, width, s.h);
      scan_begin_back(args, s, from, to, begin, width);
      int64_t n = 0;
      for (; n + kScanGroup <= states; n += kScanGroup) scan_group_back<kScanGroup>(args, s, from, to - from, block, width, n);
      for (; n < states; ++n) scan_group_back<1>(args, s, from, to - from, block, width, n);
      scan_end_back(args, s, from, to, begin, width);
    }
  }
  const auto add_to = [](float* p, float x, bool accumulate) { *p = accumulate ? *p + x : x; };
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t n = 0; n < states && args.da; ++n)
      add_to(args.da + (begin + i) * states + n, s.da[n * kScanBlock + i], args.accumulate_da);
    if (args.dskip) add_to(args.dskip + begin + i, s.dskip[i], args.accumulate_dskip);
    if (args.ddelta_bias) add_to(args.ddelta_bias + begin + i, s.dbias[i], args.accumulate_ddelta_bias);
  }
}

template <class T> void selective_scan_backward(const ScanBackwardArgs<T>& args, const Share& share) {
  const ScanChunk scratch = scan_chunk((float*)share.scratch, args.fwd.states);
  const Range blocks = range_of(share.index, scan_blocks(args.fwd.channels), scan_blocks_per_share(args.fwd));
  for (int64_t block = blocks.begin; block < blocks.end; ++block) scan_block_back(args, block, scratch);
}
