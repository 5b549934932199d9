// Causal depthwise convolution of packed sequences. Lanes are channels; a share walks the rows of its blocks of channels, so
// that what a row needs of those before it is at hand.

// (width, K) -> (K, kScanBlock), zeros beyond.
template <class T>
static inline void conv_turn(const T* weight, int64_t taps, int64_t begin, int64_t width, float* turned) {
  for (int64_t k = 0; k < taps; ++k)
    for (int64_t i = 0; i < kScanBlock; ++i)
      turned[k * kScanBlock + i] = i < width ? value_of(weight[(begin + i) * taps + k]) : 0.0f;
}

// bias + sum over k of weight[k] * x[t - K + 1 + k], in the order of k; `before` is what the taps that lie before the
// sequence see: rows of the state, or null for zeros.
template <class T, class Lanes>
static inline Vec conv_row(const ConvArgs<T>& args, const float* weight, const Wide<T>* before, int64_t first, int64_t t,
                           int64_t channel, int64_t i, Lanes part) {
  const int64_t taps = args.taps, channels = args.channels;
  Vec sum = args.bias ? get(args.bias + channel, part) : zero();
  for (int64_t k = 0; k < taps; ++k) {
    const int64_t row = t - taps + 1 + k;
    const Vec by = load(weight + k * kScanBlock + i);
    if (row >= first) sum = fma(get(args.x + row * channels + channel, part), by, sum);
    else if (before) sum = fma(get(before + (row - first + taps - 1) * channels + channel, part), by, sum);
  }
  return sum;
}
// The same where all K rows are the sequence's, with K known.
template <int kTaps, class T, class Lanes>
static inline Vec conv_inner_row(const ConvArgs<T>& args, const float* weight, int64_t t, int64_t channel, int64_t i, Lanes part) {
  Vec sum = args.bias ? get(args.bias + channel, part) : zero();
  const T* x = args.x + (t - kTaps + 1) * args.channels + channel;
#pragma GCC unroll 4
  for (int k = 0; k < kTaps; ++k) sum = fma(get(x + k * args.channels, part), load(weight + k * kScanBlock + i), sum);
  return sum;
}

// Row t of a block, before the activation: use(i, sum, part) for each vector.
template <class T, class Use>
static inline void conv_block_row(const ConvArgs<T>& args, const float* weight, const Wide<T>* before, int64_t first, int64_t t,
                                  int64_t begin, int64_t width, const Use& use) {
  if (args.taps == 4 && t - 3 >= first)  // what nearly every model has
    each_vec(0, width, [&](int64_t i, auto part) { use(i, conv_inner_row<4>(args, weight, t, begin + i, i, part), part); });
  else
    each_vec(0, width, [&](int64_t i, auto part) { use(i, conv_row(args, weight, before, first, t, begin + i, i, part), part); });
}

// The last K - 1 rows of the sequence so far; where it is shorter, what the state held moves up.
template <class T>
static inline void conv_keep(const ConvArgs<T>& args, Wide<T>* state, int64_t first, int64_t last, int64_t begin, int64_t width) {
  const int64_t kept = args.taps - 1, channels = args.channels, rows = last - first;
  for (int64_t j = 0; j < kept; ++j) {
    const int64_t row = rows - kept + j;
    each_vec(begin, begin + width, [&](int64_t i, auto part) {
      const Vec x = row >= 0 ? get(args.x + (first + row) * channels + i, part) : get(state + (j + rows) * channels + i, part);
      put(state + j * channels + i, x, part);
    });
  }
}

template <class T> void causal_conv1d(const ConvArgs<T>& args, const Share& share) {
  float* weight = (float*)share.scratch;
  const Range blocks = range_of(share.index, scan_blocks(args.channels), conv_blocks_per_share(args));
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t begin = block * kScanBlock, width = at_most(args.channels - begin, kScanBlock);
    const int64_t ahead = kScanAhead * args.channels;
    conv_turn(args.weight, args.taps, begin, width, weight);
    for (int64_t seq = 0; seq < args.seqs; ++seq) {
      const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
      if (first == last) continue;
      Wide<T>* state = args.state ? args.state + seq * (args.taps - 1) * args.channels : nullptr;
      for (int64_t t = first; t < last; ++t) {
        conv_block_row(args, weight, state, first, t, begin, width, [&](int64_t i, Vec sum, auto part) {
          const int64_t at = t * args.channels + begin + i;
          __builtin_prefetch(args.x + at + ahead);
          __builtin_prefetch(args.y + at + ahead, 1);
          put(args.y + at, args.act == Act::silu ? mul(sum, scan_sigmoid(sum)) : sum, part);
        });
      }
      if (state) conv_keep(args, state, first, last, begin, width);
    }
  }
}

// dz = dy * act'(z), z computed again; from a sequence's last row to its first, so that dx[t] = sum over k of weight[k] *
// dz[t + K - 1 - k] has its K rows in a ring. Gradients of weight and bias are one chain over rows in that order.
template <class T> void causal_conv1d_backward(const ConvBackwardArgs<T>& args, const Share& share) {
  const ConvArgs<T>& fwd = args.fwd;
  const int64_t taps = fwd.taps, channels = fwd.channels, ahead = kScanAhead * channels;
  float *weight = (float*)share.scratch, *ring = weight + taps * kScanBlock, *dweight = ring + taps * kScanBlock,
        *dbias = dweight + taps * kScanBlock;
  const Range blocks = range_of(share.index, scan_blocks(channels), conv_blocks_per_share(fwd));
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t begin = block * kScanBlock, width = at_most(channels - begin, kScanBlock);
    conv_turn(fwd.weight, taps, begin, width, weight);
    clear(dweight, (taps + 1) * kScanBlock);
    for (int64_t seq = 0; seq < fwd.seqs; ++seq) {
      const int64_t first = fwd.q_start[seq], last = fwd.q_start[seq + 1];
      clear(ring, taps * kScanBlock);  // rows after the last have no gradient
      int64_t slot = 0;                // of row t; row t + j is j further on
      for (int64_t t = last - 1; t >= first; --t) {
        slot = slot ? slot - 1 : taps - 1;
        conv_block_row(fwd, weight, nullptr, first, t, begin, width, [&](int64_t i, Vec z, auto part) {
          const int64_t at = t * channels + begin + i;
          __builtin_prefetch(fwd.x + at - ahead);
          __builtin_prefetch(args.dy + at - ahead);
          if (args.dx) __builtin_prefetch(args.dx + at - ahead, 1);
          Vec dz = get(args.dy + at, part);
          if (fwd.act == Act::silu) {
            const Vec gate = scan_sigmoid(z);
            dz = mul(dz, mul(gate, fma(z, sub(set1(1.0f), gate), set1(1.0f))));
          }
          store(ring + slot * kScanBlock + i, dz);
          store(dbias + i, add(dz, load(dbias + i)));
          Vec dx = zero();
          for (int64_t k = taps - 1, from = slot; k >= 0; --k) {
            float* sum = dweight + k * kScanBlock + i;
            const int64_t row = t - taps + 1 + k;
            if (row >= first) store(sum, fma(dz, get(fwd.x + row * channels + begin + i, part), load(sum)));
            dx = fma(load(weight + k * kScanBlock + i), load(ring + from * kScanBlock + i), dx);
            from = from + 1 == taps ? 0 : from + 1;
          }
          if (args.dx) store_or_add(args.dx + at, dx, args.accumulate_dx, part);
        });
      }
    }
    const auto add_to = [](float* p, float x, bool accumulate) { *p = accumulate ? *p + x : x; };
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t k = 0; k < taps && args.dweight; ++k)
        add_to(args.dweight + (begin + i) * taps + k, dweight[k * kScanBlock + i], args.accumulate_dweight);
      if (args.dbias) add_to(args.dbias + begin + i, dbias[i], args.accumulate_dbias);
    }
  }
}
