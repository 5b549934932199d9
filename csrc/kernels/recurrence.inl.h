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
