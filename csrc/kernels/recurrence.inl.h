// h[t] = a[t] * h[t-1] + x[t], lanes are channels. The vectors of a block are walked side by side: their chains overlap.

template <class T> void linear_recurrence(const RecurrenceArgs<T>& args, const Share& share) {
  const int64_t channels = args.channels, ahead = kScanAhead * channels;
  alignas(64) float h[kScanBlock];
  const Range blocks = range_of(share.index, scan_blocks(channels), recurrence_blocks_per_share(args));
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t begin = block * kScanBlock, width = at_most(channels - begin, kScanBlock);
    for (int64_t seq = 0; seq < args.seqs; ++seq) {
      const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
      if (first == last) continue;
      Wide<T>* state = args.state ? args.state + seq * channels + begin : nullptr;
      each_vec(0, width, [&](int64_t i, auto part) { store(h + i, state ? get(state + i, part) : zero()); });
      for (int64_t t = first; t < last; ++t) {
        each_vec(0, width, [&](int64_t i, auto part) {
          const int64_t at = t * channels + begin + i;
          __builtin_prefetch(args.x + at + ahead);
          __builtin_prefetch(args.a + at + ahead);
          __builtin_prefetch(args.h + at + ahead, 1);
          const Vec next = fma(get(args.a + at, part), load(h + i), get(args.x + at, part));
          store(h + i, next);
          put(args.h + at, next, part);
        });
      }
      if (state) each_vec(0, width, [&](int64_t i, auto part) { put(state + i, load(h + i), part); });
    }
  }
}

// The h of the forward is read as it was stored: in bf16 rounded.
template <class T> void linear_recurrence_backward(const RecurrenceBackwardArgs<T>& args, const Share& share) {
  const RecurrenceArgs<T>& fwd = args.fwd;
  const int64_t channels = fwd.channels, ahead = kScanAhead * channels;
  alignas(64) float g[kScanBlock];  // a[t + 1] * g[t + 1]
  const Range blocks = range_of(share.index, scan_blocks(channels), recurrence_blocks_per_share(fwd));
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t begin = block * kScanBlock, width = at_most(channels - begin, kScanBlock);
    for (int64_t seq = 0; seq < fwd.seqs; ++seq) {
      const int64_t first = fwd.q_start[seq], last = fwd.q_start[seq + 1];
      clear(g, kScanBlock);
      for (int64_t t = last - 1; t >= first; --t) {
        each_vec(0, width, [&](int64_t i, auto part) {
          const int64_t at = t * channels + begin + i;
          __builtin_prefetch(args.dh + at - ahead);
          __builtin_prefetch(fwd.a + at - ahead);
          const Vec now = add(get(args.dh + at, part), load(g + i));
          if (args.dx) store_or_add(args.dx + at, now, args.accumulate_dx, part);
          if (args.da) {
            const Vec before = t > first ? get(fwd.h + at - channels, part) : zero();
            store_or_add(args.da + at, mul(now, before), args.accumulate_da, part);
          }
          store(g + i, mul(get(fwd.a + at, part), now));
        });
      }
    }
  }
}

// A row's gates: x' = sigmoid(input) x, a and sqrt(1 - a^2), or 0 and 1 where the sequence begins.
struct RgLruRow {
  Vec input, recurrent, a, scale;
};
template <class T, class Lanes>
static inline RgLruRow rg_lru_row(const RgLruArgs<T>& args, int64_t at, Vec rate, bool begins, Lanes part) {
  RgLruRow row;
  row.input = scan_sigmoid(get(args.input + at, part));
  row.recurrent = scan_sigmoid(get(args.recurrent + at, part));
  row.a = exp(mul(rate, row.recurrent));
  row.scale = begins ? set1(1.0f) : sqrt(max(zero(), mul(sub(set1(1.0f), row.a), add(set1(1.0f), row.a))));
  if (begins) row.a = zero();
  return row;
}
static inline Vec rg_lru_rate(Vec param) { return mul(set1(-8.0f), softplus_of(param).value); }

template <class T> void rg_lru(const RgLruArgs<T>& args, const Share& share) {
  const int64_t channels = args.channels, ahead = kScanAhead * channels;
  alignas(64) float h[kScanBlock], rate[kScanBlock];
  const Range blocks = range_of(share.index, scan_blocks(channels), rg_lru_blocks_per_share(args));
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t begin = block * kScanBlock, width = at_most(channels - begin, kScanBlock);
    each_vec(0, width, [&](int64_t i, auto part) { store(rate + i, rg_lru_rate(get(args.param + begin + i, part))); });
    for (int64_t seq = 0; seq < args.seqs; ++seq) {
      const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
      if (first == last) continue;
      Wide<T>* state = args.state ? args.state + seq * channels + begin : nullptr;
      each_vec(0, width, [&](int64_t i, auto part) { store(h + i, state ? get(state + i, part) : zero()); });
      for (int64_t t = first; t < last; ++t) {
        const bool begins = args.positions[t] == 0;
        each_vec(0, width, [&](int64_t i, auto part) {
          const int64_t at = t * channels + begin + i;
          __builtin_prefetch(args.x + at + ahead);
          __builtin_prefetch(args.input + at + ahead);
          __builtin_prefetch(args.recurrent + at + ahead);
          const RgLruRow row = rg_lru_row(args, at, load(rate + i), begins, part);
          const Vec added = mul(row.scale, mul(row.input, get(args.x + at, part)));
          const Vec next = begins ? added : fma(row.a, load(h + i), added);
          store(h + i, next);
          put(args.h + at, next, part);
        });
      }
      if (state) each_vec(0, width, [&](int64_t i, auto part) { put(state + i, load(h + i), part); });
    }
  }
}

// With g the gradient of h: that of log a is a g h[t-1] - g x' a^2 / sqrt(1 - a^2). The h of the forward is read as it was
// stored. The gradient of param is one chain over rows, sequence by sequence, each from its last.
template <class T> void rg_lru_backward(const RgLruBackwardArgs<T>& args, const Share& share) {
  const RgLruArgs<T>& fwd = args.fwd;
  const int64_t channels = fwd.channels, ahead = kScanAhead * channels;
  const Vec least = set1((float)(0.5 / kRgLruSlope)), one = set1(1.0f);
  alignas(64) float g[kScanBlock], rate[kScanBlock], dparam[kScanBlock];
  const Range blocks = range_of(share.index, scan_blocks(channels), rg_lru_blocks_per_share(fwd));
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t begin = block * kScanBlock, width = at_most(channels - begin, kScanBlock);
    each_vec(0, width, [&](int64_t i, auto part) { store(rate + i, rg_lru_rate(get(fwd.param + begin + i, part))); });
    clear(dparam, kScanBlock);
    for (int64_t seq = 0; seq < fwd.seqs; ++seq) {
      const int64_t first = fwd.q_start[seq], last = fwd.q_start[seq + 1];
      clear(g, kScanBlock);
      for (int64_t t = last - 1; t >= first; --t) {
        const bool begins = fwd.positions[t] == 0;
        each_vec(0, width, [&](int64_t i, auto part) {
          const int64_t at = t * channels + begin + i;
          __builtin_prefetch(fwd.x + at - ahead);
          __builtin_prefetch(fwd.input + at - ahead);
          __builtin_prefetch(fwd.recurrent + at - ahead);
          __builtin_prefetch(fwd.h + at - ahead);
          __builtin_prefetch(args.dh + at - ahead);
          const RgLruRow row = rg_lru_row(fwd, at, load(rate + i), begins, part);
          const Vec x = get(fwd.x + at, part), now = add(get(args.dh + at, part), load(g + i)), gated = mul(now, row.scale);
          if (args.dx) store_or_add(args.dx + at, mul(gated, row.input), args.accumulate_dx, part);
          const Vec dinput = mul(mul(gated, x), mul(row.input, sub(one, row.input)));
          if (args.dinput) store_or_add(args.dinput + at, dinput, args.accumulate_dinput, part);
          Vec dlog = zero();
          if (!begins) {
            const Vec before = t > first ? get(fwd.h + at - channels, part) : zero();
            const Vec bend = div(mul(row.a, mul(row.input, x)), max(least, row.scale));
            dlog = mul(mul(now, row.a), sub(before, bend));
          }
          const Vec drecurrent = mul(mul(dlog, load(rate + i)), mul(row.recurrent, sub(one, row.recurrent)));
          if (args.drecurrent) store_or_add(args.drecurrent + at, drecurrent, args.accumulate_drecurrent, part);
          store(dparam + i, fma(dlog, row.recurrent, load(dparam + i)));
          store(g + i, mul(row.a, now));
        });
      }
    }
    if (!args.dparam) continue;
    each_vec(0, width, [&](int64_t i, auto part) {
      const Vec slope = mul(set1(-8.0f), softplus_of(get(fwd.param + begin + i, part)).slope);
      store_or_add(args.dparam + begin + i, mul(slope, load(dparam + i)), args.accumulate_dparam, part);
    });
  }
}
