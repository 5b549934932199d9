// Activations to int8, weights to codes and back.

// Largest |x| of a stretch; anything if one is NaN, which the sum of its codes then is.
template <class T> static inline float q_largest(const T* x, int64_t n) {
  Vec most = zero();
  each_vec(0, n, [&](int64_t i, auto part) { most = max(most, abs(get(x + i, part))); });
  return hmax(most);
}

static inline void q_bytes(int8_t* codes, Vec q, Full) { store_bytes(codes, q); }
static inline void q_bytes(int8_t* codes, Vec q, Part part) {
  int8_t lanes[kWidth];
  store_bytes(lanes, q);
  for (int64_t i = 0; i < kWidth && i < part.n; ++i) codes[i] = lanes[i];
}

// x * inverse to nearest whole numbers, as bytes; returns their sum, which is exact (up to 2^17 numbers of at most 127), or
// NaN where one is.
template <class T> static inline float q_round(const T* x, int64_t n, float inverse, int8_t* codes) {
  const Vec factor = set1(inverse);
  Vec sum = zero();
  each_vec(0, n, [&](int64_t i, auto part) {
    const Vec q = round_even(mul(get(x + i, part), factor));
    sum = add(sum, q);
    q_bytes(codes + i, max(min(select(eq(q, q), q, zero()), set1(127.0f)), set1(-127.0f)), part);
  });
  return hsum(sum);
}

// A tile's rows where groups are 32 numbers, whole and in the order of memory. As many groups go side by side as a vector has
// lanes: what reduces each of them is then one transpose and a few operations for all.
template <class T> static inline void q_plain_rows(const QRowsArgs<T>& args, int64_t first, int64_t height) {
  const int64_t count = args.k / kQPlain * height;  // groups of all rows, in the order of their scales
  const float factor = (float)q_start_factor(args.type);  // times a sum of codes: exact
  const T* x = args.x + first * args.k;
  int8_t* to = args.codes + first * args.k;
  int64_t row = 0;
  for (int64_t i = 0; i < count; i += kWidth) {
    const T* from[kWidth];
    int8_t* words[kWidth];
    Vec part[kWidth];
#pragma GCC unroll 16
    for (int j = 0; j < kWidth; ++j) {
      from[j] = x + row * args.k, words[j] = to + 4 * row;
      if (i + j + 1 < count && ++row == height) row = 0, x += kQPlain, to += kQPlain * height;  // else the last one again
      part[j] = abs(load(from[j]));
#pragma GCC unroll 8
      for (int64_t p = kWidth; p < kQPlain; p += kWidth) part[j] = max(part[j], abs(load(from[j] + p)));
    }
    gemm_transpose(part);
    Vec largest = part[0];
#pragma GCC unroll 16
    for (int j = 1; j < kWidth; ++j) largest = max(largest, part[j]);
    largest = select(lt(largest, set1(kQTiny)), zero(), largest);
    float inverse[kWidth], sums[kWidth];
    store(inverse, select(lt(zero(), largest), div(set1(127.0f), largest), zero()));
#pragma GCC unroll 16
    for (int j = 0; j < kWidth; ++j) {
      const Vec by = set1(inverse[j]);
      alignas(32) int8_t codes[kQPlain];
      int8_t* made = height == 1 ? words[j] : codes;
      part[j] = zero();
#pragma GCC unroll 8
      for (int64_t p = 0; p < kQPlain; p += kWidth) {
        const Vec q = round_even(mul(load(from[j] + p), by));
        part[j] = add(part[j], q);
        store_bytes(made + p, q);
      }
      if (height == 1) continue;
#pragma GCC unroll 8
      for (int64_t q = 0; q < kQPlain; q += 4) memcpy(words[j] + q * height, codes + q, 4);
    }
    gemm_transpose(part);
    Vec sum = part[0];
#pragma GCC unroll 16
    for (int j = 1; j < kWidth; ++j) sum = add(sum, part[j]);
    const Vec known = select(eq(sum, sum), sum, zero());
    const int64_t at = first * (args.k / kQPlain) + i, now = at_most(kWidth, count - i);
    store_n(args.scales + at, select(eq(sum, sum), div(largest, set1(127.0f)), set1(NAN)), now);
    store(sums, mul(known, set1(factor)));
    for (int64_t j = 0; j < now; ++j) args.starts[at + j] = (int32_t)sums[j];
  }
}

template <class T> static void qrows(const QRowsArgs<T>& args, const Share& share) {
  const int64_t most = q_tile_rows(args.type), tiles = q_tiles(args.m, most), groups = q_groups(args.k, args.group);
  const int64_t step = q_row_tiles(args.k), tile_end = (share.index + 1) * step < tiles ? (share.index + 1) * step : tiles;
  const int64_t parts = q_starts(args.type), length = parts > 1 ? args.group / kQSixteens : args.group;
  const int32_t factor = q_start_factor(args.type);
  int8_t codes[kQChunk];
  T ordered[kQMostGroup];
  for (int64_t tile = share.index * step; tile < tile_end; ++tile) {
    const int64_t first = q_tile_row(args.m, most, tile), height = q_tile_row(args.m, most, tile + 1) - first;
    if (parts == 1 && !args.order && args.group == kQPlain && args.k % kQPlain == 0) {
      q_plain_rows(args, first, height);
      continue;
    }
    int8_t* words = args.codes + first * groups * args.group;
    for (int64_t r = 0; r < height; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = g * args.group, n = args.k - begin < args.group ? args.k - begin : args.group;
        const T *row = args.x + (first + r) * args.k, *x = args.order ? ordered : row + begin;
        for (int64_t i = 0; args.order && i < n; ++i) ordered[i] = row[args.order[begin + i]];
        const float seen = q_largest(x, n), largest = seen < kQTiny ? 0.0f : seen, inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
        int32_t* starts = args.starts + first * groups * parts + g * parts * height + r;
        bool number = true;
        for (int64_t from = 0; from < args.group; from += length) {
          float sum = 0.0f;
          for (int64_t at = from; at < from + length; at += kQChunk) {
            const int64_t left = from + length - at, now = left < kQChunk ? left : kQChunk;
            const int64_t there = n - at < now ? (n - at > 0 ? n - at : 0) : now;
            sum += q_round(x + at, there, inverse, codes);
            memset(codes + there, 0, (size_t)(now - there));
            int8_t* to = words + ((begin + at) / 4 * height + r) * 4;
            for (int64_t i = 0; i < now; i += 4) memcpy(to + i * height, codes + i, 4);
          }
          number = number && sum == sum;
          starts[from / length * height] = sum == sum ? factor * (int32_t)sum : 0;
        }
        for (int64_t p = kQSixteens; p < parts; ++p)
          starts[p * height] = starts[2 * (p - kQSixteens) * height] + starts[(2 * (p - kQSixteens) + 1) * height];
        args.scales[first * groups + g * height + r] = number ? largest / 127.0f : NAN;
      }
    }
  }
}

// -- weights -------------------------------------------------------------------------------------------------------------
// How far beyond the range of the integers the largest weight may fall, in steps; from sweeps (docs/log.md).
constexpr int kQCandidates = 12;
struct QFit {
  float numerator, denominator;  // sum x q, sum q q of the integers: the scale, and how much of sum x x it explains
};
template <class T> static inline QFit q_fit(const T* x, int64_t n, float inverse, float low, float high) {
  const Vec factor = set1(inverse), least = set1(low), most = set1(high);
  Vec xq = zero(), qq = zero();
  each_vec(0, n, [&](int64_t i, auto part) {
    const Vec v = get(x + i, part), q = min(max(round_even(mul(v, factor)), least), most);
    xq = fma(v, q, xq);
    qq = fma(q, q, qq);
  });
  return {hsum(xq), hsum(qq)};
}

// The same for 8 bits, where what integers explain differs by less than float32 resolves: the error itself is compared, of
// the scale as it is stored.
constexpr int kQFineCandidates = 12;
template <class T> static inline float q_choose_fine(const T* x, int64_t n, float largest, float low, float high) {
  const float plain = half_value(half_of(largest / high));
  float best = INFINITY, scale = plain;
  for (int i = -1; i < kQFineCandidates; ++i) {
    float tried = plain;
    if (i >= 0) {
      const QFit fit = q_fit(x, n, (high - 4.0f + 0.5f * (float)i) / largest, low, high);
      tried = half_value(half_of(fit.numerator / fit.denominator));
    }
    if (!(tried > 0.0f && tried < INFINITY)) continue;
    const Vec factor = set1(1.0f / tried), back = set1(-tried), least = set1(low), most = set1(high);
    Vec error = zero();
    each_vec(0, n, [&](int64_t j, auto part) {
      const Vec v = get(x + j, part), off = fma(back, min(max(round_even(mul(v, factor)), least), most), v);
      error = fma(off, off, error);
    });
    const float sum = hsum(error);
    if (sum < best) best = sum, scale = tried;
  }
  return scale;
}

// The scale of one group: NaN where a number is not finite.
template <class T> static inline float q_choose(const T* x, int64_t n, const QTraits& traits) {
  const float largest = row_max(n, [&](int64_t i, auto part) { return abs(get(x + i, part)); });
  const float high = (float)((1 << traits.low) - 1 - traits.offset);
  if (!(largest < INFINITY)) return NAN;
  if (largest < kQTiny) return 0.0f;
  if (traits.low == 8) return traits.channel ? largest / high : q_choose_fine(x, n, largest, (float)-traits.offset, high);
  float best = -1.0f, scale = 0.0f;
  for (int side = -1; side <= 1; side += 2) {
    for (int i = 0; i < kQCandidates; ++i) {
      const float inverse = (float)side * (high - 1.0f + 0.25f * (float)i) / largest;
      const QFit fit = q_fit(x, n, inverse, (float)-traits.offset, high);
      const float explained = fit.denominator > 0.0f ? fit.numerator * (fit.numerator / fit.denominator) : 0.0f;
      if (explained > best) best = explained, scale = fit.numerator / fit.denominator;
    }
  }
  const float half = half_value(half_of(scale));
  return half < INFINITY && half > -INFINITY ? half : NAN;
}

template <class T> static void quantize(const QuantizeArgs<T>& args, const Share& share) {
  const QWeight& w = args.w;
  const QTraits& traits = kQTraits[(int)w.type];
  const float low = (float)-traits.offset, high = (float)((1 << traits.low) - 1 - traits.offset);
  const int64_t end = (share.index + 1) * kQCols, groups = q_groups(w.k, w.group);
  uint8_t codes[kQChunk];
  for (int64_t r = share.index * kQCols; r < end; ++r) {
    const bool there = r < args.rows;  // else a column that fills up the last panel
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * w.group, n = w.k - begin < w.group ? w.k - begin : w.group;
      const T* x = args.x + r * w.k + begin;
      const float scale = there ? q_choose(x, n, traits) : 0.0f;
      const float inverse = scale == scale && scale != 0.0f ? 1.0f / scale : 0.0f;
      const QColumn to = q_column(w, args.data, args.first + r, g);
      q_put_scale(w.type, to, scale);
      for (int64_t at = 0; at < w.group; at += kQChunk) {
        const int64_t now = w.group - at < kQChunk ? w.group - at : kQChunk;
        int64_t count = !there || n - at < 0 ? 0 : n - at < now ? n - at : now;
        if (scale != scale) count = 0;
        memset(codes + count, traits.offset, (size_t)(now - count));
        each_vec(0, count, [&](int64_t i, auto part) {
          float lanes[kWidth];
          store(lanes, min(max(round_even(mul(get(x + at + i, part), set1(inverse))), set1(low)), set1(high)));
          for (int64_t j = 0; j < kWidth && i + j < count; ++j) codes[i + j] = (uint8_t)((int32_t)lanes[j] + traits.offset);
        });
        q_put_codes(w.type, to, codes, at, now);
      }
    }
  }
}

// Products and sums as q_number has them; float16 arithmetic goes number by number.
template <class T> static inline void q_scaled(const QTraits& traits, const float* values, int64_t n, float scale, float least, T* y) {
  const Vec factor = set1(scale), more = set1(least);
  if (!traits.narrow) {
    each_vec(0, n, [&](int64_t j, auto part) {
      const Vec product = mul(get(values + j, part), factor);
      put(y + j, traits.least == QLeast::none ? product : add(product, more), part);
    });
    return;
  }
  float numbers[kQChunk];
  for (int64_t j = 0; j < n; ++j) numbers[j] = q_number(traits, values[j], scale, least);
  each_vec(0, n, [&](int64_t j, auto part) { put(y + j, get(numbers + j, part), part); });
}

template <class T> static void qdequantize(const QDequantizeArgs<T>& args, const Share& share) {
  const QWeight& w = args.w;
  const QTraits& traits = kQTraits[(int)w.type];
  const int64_t groups = q_groups(w.k, w.group), part = q_part(w.type, w.group);
  const Range rows = range_of(share.index, args.rows, rows_per_share(w.k));
  uint8_t codes[kQChunk] = {};
  float values[kQChunk], meaning[256], scales[kQMostParts], leasts[kQMostParts];
  T ordered[kQChunk];
  q_values(w, meaning);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int64_t row = args.ids ? args.ids[i] : args.first + i;
    for (int64_t g = 0; g < groups; ++g) {
      const QColumn from = q_column(w, (uint8_t*)w.data, row, g);
      q_parts(w, from, scales, leasts);
      const int64_t begin = g * w.group, n = w.k - begin < w.group ? w.k - begin : w.group;
      for (int64_t at = 0; at < n; at += kQChunk) {
        const int64_t now = w.group - at < kQChunk ? w.group - at : kQChunk, count = n - at < now ? n - at : now;
        q_get_codes(w.type, from, codes, at, now);
        if (traits.book == QBook::none)
          for (int64_t j = 0; j < count; j += kWidth) store(values + j, to_floats(less(load_bytes(codes + j), ints(traits.offset))));
        else
          for (int64_t j = 0; j < count; ++j) values[j] = meaning[codes[j]];
        T* y = w.order ? ordered : args.y + i * w.k + begin + at;
        for (int64_t j = 0; j < count; j += part) {
          const int64_t p = (at + j) / part, length = count - j < part ? count - j : part;
          q_scaled(traits, values + j, length, scales[p], leasts[p], y + j);
        }
        for (int64_t j = 0; w.order && j < count; ++j) args.y[i * w.k + w.order[begin + at + j]] = ordered[j];
      }
    }
  }
}
