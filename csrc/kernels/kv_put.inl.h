// Keys and values on their way into a cache of another type.

template <class T, class S> static inline void kv_copy(const T* x, S* to, int64_t n) {
  each_vec(0, n, [&](int64_t i, auto part) { put(to + i, get(x + i, part), part); });
}

template <class T> static void kv_put(const KvPutArgs<T>& args, const Share& share) {
  const int64_t row = args.heads * args.width;
  const Range range = range_of(share.index, args.tokens, rows_per_share(row));
  for (int64_t t = range.begin; t < range.end; ++t) {
    const T* x = args.x + t * row;
    const int64_t to = args.ids[t] * row;
    if (args.kv == KvType::f32) kv_copy(x, (float*)args.data + to, row);
    if (args.kv == KvType::bf16) kv_copy(x, (bf16*)args.data + to, row);
    for (int64_t h = 0; h < args.heads && args.kv == KvType::int8; ++h, x += args.width) {
      const float seen = q_largest(x, args.width), largest = seen < kQTiny ? 0.0f : seen;
      const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
      const float sum = q_round(x, args.width, inverse, (int8_t*)args.data + to + h * args.width);
      args.scales[h * args.scale_step + args.ids[t]] = sum == sum ? largest / 127.0f : NAN;
    }
  }
}
