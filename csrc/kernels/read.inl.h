// The machine's limit of reading memory; a bench holds kernels that wait for memory against it.

// partial[c] = sum of chunk c. Shares: one chunk.
void read(const ReadArgs<float>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kReadGrain);
  if (range.begin == range.end) return;
  const float* x = args.x + range.begin;
  args.partial[share.index] = blocked_sum(range.end - range.begin, [&](int64_t i, auto part) { return get(x + i, part); });
}
