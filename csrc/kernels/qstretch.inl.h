// Products with the types that have no tiles of their own: blocks are expanded once for all the tiles of a share.

struct QStretchTile {
  const int8_t* a;  // [quad][row] words
  const uint8_t *b, *high, *table;
  int64_t parts, part, b_step;   // of k; bytes of codes from part to part, or of a block from group to group
  const uint8_t* own;            // the blocks that the codes are from: what follows them is fetched,
  int64_t own_step;              // so many bytes for each part
  const float *scales, *leasts;  // [part][column]
  const int32_t* starts;         // [part][row]: less the sum of codes
  const int32_t* firsts;         // these times the codes' offset
  const float* sums;             // these as numbers, where there are leasts
  const float* x_scales;         // [part][row], or [row] where a scale serves all parts
  float* out;                    // [row][kQCols], added to
};

// What is read later is fetched meanwhile, at first into L2, because L1 can wait for few lines at a time. Few tiles, whose time is
// memory's, ask for a line beside each vector, and again nearer to its use: a processor drops what goes beyond the lines that it
// follows. Where bytes are made once for many tiles, a part asks for its share of the next stretch at once.
constexpr int64_t kQFar = 16384, kQSoon = 4096, kQNear = 1024;

// Codes of a part as bytes, in a stretch or in blocks of 8 bits.
template <int Bits> struct QWhole : QBytes<Bits> {
  static constexpr bool kSpread = false;
  static inline int64_t part(const QStretchTile& t) { return t.part; }
  template <int R, int V, class Fetch>
  static inline __attribute__((always_inline)) void dots(const QStretchTile& t, QSums<R, V, Bits>& sums, int64_t p, int64_t col, const int8_t* a,
                                                         const Fetch&) {
    const uint8_t* b = t.b + p * t.b_step + 4 * col;
    q_dots<QBytes<Bits>, R, V>(sums, a, t.part / 4, [&](int64_t quad, int q, int v) __attribute__((always_inline)) {
      return QBytes<Bits>::take(b + quad * 4 * kQCols + v * 4 * kWidth, q);
    });
  }
};
// Codes of a part taken out of the planes of blocks: what few tiles do, each for itself. How long a part of such a block is is known.
template <class Planes, bool Super> struct QSplit : Planes {
  static constexpr bool kSpread = true;
  static inline int64_t part(const QStretchTile& t) { return Super ? Planes::kPart : t.part; }
  template <int R, int V, class Fetch>
  static inline __attribute__((always_inline)) void dots(const QStretchTile& t, QSums<R, V, Planes::kBits>& sums, int64_t p, int64_t col, const int8_t* a,
                                                         const Fetch& fetch) {
    const int64_t skip = Super ? 0 : p * t.b_step, first = Super ? p * Planes::kPart / 4 : 0;
    const uint8_t *low = t.b + skip, *high = t.high + skip, *table = t.table;
    q_dots<Planes, R, V>(sums, a, part(t) / 4, [&](int64_t quad, int q, int v) __attribute__((always_inline)) {
      fetch((quad + q) * V + v);
      return Planes::take(low, high, table, first + quad, q, 4 * (col + v * kWidth));
    });
  }
};

// Super: the activations have one scale for all parts.
template <class Codes, int R, bool Super, bool Least> static void q_tile_stretch(const QStretchTile& t) {
  constexpr int V = q_vectors(R, Codes::kBits, true);
  for (int64_t col = 0; col < kQCols; col += V * kWidth) {
    const int8_t* a = t.a;
    const int64_t own_step = col == 0 ? t.own_step : 0;
    Vec total[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total[r][v] = Super ? zero() : load(t.out + r * kQCols + col + v * kWidth);
    }
    for (int64_t p = 0; p < t.parts; ++p) {
      const uint8_t* own = t.own + p * own_step;
      QSums<R, V, Codes::kBits> sums;
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Ints first = ints(Least ? 0 : t.firsts[p * R + r]);
        sums.start(r, sums.kLess128 ? less(first, raised(ints(t.starts[p * R + r]), 7)) : first);
      }
      const auto fetch = [&](int64_t line) __attribute__((always_inline)) {
        const uint8_t* from = own + 64 * line;
        if (64 * line >= own_step) return;
        __builtin_prefetch(from + kQFar, 0, 2);
        if (Codes::kSpread) __builtin_prefetch(from + kQSoon, 0, 2);
        __builtin_prefetch(from + (Codes::kSpread ? kQNear : t.parts * own_step));
      };
      const int64_t spread = Codes::kSpread ? Codes::part(t) / 4 * V : 0;  // lines
      for (int64_t line = spread; 64 * line < own_step; ++line) fetch(line);
      Codes::template dots<R, V>(t, sums, p, col, a, fetch);
      Vec scale[V], least[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        scale[v] = load(t.scales + p * kQCols + col + v * kWidth);
        if (Least) least[v] = load(t.leasts + p * kQCols + col + v * kWidth);
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Vec x_sum = Least ? set1(t.sums[p * R + r]) : zero();  // negative
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          if (Super) {
            total[r][v] = fma(to_floats(sums.get(r, v)), scale[v], total[r][v]);
            if (Least) total[r][v] = fnma(least[v], x_sum, total[r][v]);
          } else if (Least) {
            const Vec part = fnma(least[v], x_sum, mul(to_floats(sums.get(r, v)), scale[v]));
            total[r][v] = fma(part, set1(t.x_scales[p * R + r]), total[r][v]);
          } else {
            total[r][v] = fma(to_floats(sums.get(r, v)), mul(scale[v], set1(t.x_scales[p * R + r])), total[r][v]);
          }
        }
      }
      a += R * Codes::part(t);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        float* out = t.out + r * kQCols + col + v * kWidth;
        store(out, Super ? fma(total[r][v], set1(t.x_scales[r]), load(out)) : total[r][v]);
      }
    }
  }
}

// Of so few tiles each takes codes apart for itself, and no bytes are stored; not where a lane's work is a loop.
constexpr int64_t kQSplitTiles = kLaneLoops ? 0 : 2;

using QStretchFn = void (*)(const QStretchTile&);
template <class Codes, bool Super, bool Least> static inline QStretchFn q_stretch_of(int64_t rows) {
  static constexpr QStretchFn tiles[kQGroupRows] = {
      &q_tile_stretch<Codes, 1, Super, Least>, &q_tile_stretch<Codes, 2, Super, Least>, &q_tile_stretch<Codes, 3, Super, Least>,
      &q_tile_stretch<Codes, 4, Super, Least>, &q_tile_stretch<Codes, 5, Super, Least>, &q_tile_stretch<Codes, 6, Super, Least>};
  return tiles[rows - 1];
}
template <int Bits> static inline QStretchFn q_whole_of(const QTraits& t, int64_t rows) {
  using W = QWhole<Bits>;
  if (t.least != QLeast::none) return t.part ? q_stretch_of<W, true, true>(rows) : q_stretch_of<W, false, true>(rows);
  return t.part ? q_stretch_of<W, true, false>(rows) : q_stretch_of<W, false, false>(rows);
}
static inline QStretchFn q_stretch_of(const QTraits& t, bool split, int64_t rows) {
  if constexpr (kQSplitTiles > 0) {
    if (split) {
      const bool least = t.least != QLeast::none;
      return q_planes_of(t, [&](auto planes) {
        using P = decltype(planes);
        if (t.part) return least ? q_stretch_of<QSplit<P, true>, true, true>(rows) : q_stretch_of<QSplit<P, true>, true, false>(rows);
        return least ? q_stretch_of<QSplit<P, false>, false, true>(rows) : q_stretch_of<QSplit<P, false>, false, false>(rows);
      });
    }
  }
  if constexpr (kNarrowSums) {
    const int bits = t.book != QBook::none ? 8 : t.low + t.high;
    if (bits <= 4) return q_whole_of<4>(t, rows);
    if (bits <= 6) return q_whole_of<6>(t, rows);
  }
  return q_whole_of<8>(t, rows);
}

constexpr int64_t kQTogether = 16;  // tiles that meet a stretch one after the other: their sums stay in L1

template <class T> static void qgemm_stretches(const QGemmArgs<T>& args, const QBlock& block) {
  const QWeight& w = args.w;
  const QTraits& traits = kQTraits[(int)w.type];
  const int64_t most = q_tile_rows(w.type), tile_begin = block.tile_begin, tile_end = block.tile_end;
  const int64_t groups = q_groups(w.k, w.group), block_bytes = q_block_bytes(w.type, w.group);
  const int64_t low_bytes = q_low_bytes(w.type, w.group);
  const int64_t part = q_part(w.type, w.group), parts = w.group / part;  // of a group
  const int64_t starts = q_starts(w.type), together = kQStretch / w.group;
  const int64_t skipped = traits.part > kQMostGroup / kQSixteens ? kQSixteens : 0;  // starts of parts of 16
  const GemmEpilogue<T> epilogue = q_epilogue(args);
  QStretch stretch;
  alignas(64) float totals[kQTogether * kQGroupRows * kQCols];
  alignas(64) int32_t firsts[kQMostParts * kQGroupRows];
  alignas(64) float sums[kQMostParts * kQGroupRows];
  struct {
    int64_t row, height;
    QStretchFn run;
  } tiles[kQTogether];
  QStretchTile t;
  t.part = part, t.scales = stretch.scales, t.leasts = stretch.leasts, t.firsts = firsts, t.sums = sums;
  t.table = q_table(traits.book);
  for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
    const uint8_t* blocks = w.data + panel * groups * block_bytes;
    const int64_t col = panel * kQCols, cols = w.n - col < kQCols ? w.n - col : kQCols;
    for (int64_t batch = tile_begin; batch < tile_end; batch += kQTogether) {
      const int64_t tile_count = tile_end - batch < kQTogether ? tile_end - batch : kQTogether;
      const bool split = traits.low != 8 && tile_count <= kQSplitTiles;
      for (int64_t i = 0; i < tile_count; ++i) {
        const int64_t row = q_tile_row(args.m, most, batch + i), height = q_tile_row(args.m, most, batch + i + 1) - row;
        tiles[i] = {row, height, q_stretch_of(traits, split, height)};
      }
      const int64_t first = tiles[0].row, rows = tiles[tile_count - 1].row + tiles[tile_count - 1].height - first;
      t.b_step = split || traits.low == 8 ? block_bytes : part * kQCols;
      for (int64_t i = 0; i < rows * kQCols; i += kWidth) store(totals + i, zero());
      for (int64_t g = 0; g < groups; g += together) {
        const int64_t count = groups - g < together ? groups - g : together;
        q_expand_scales(w.type, blocks + g * block_bytes, count, w.group, stretch);
        if (!split && traits.low != 8) q_expand_codes(w.type, blocks + g * block_bytes, count, w.group, stretch);
        t.b = split || traits.low == 8 ? blocks + g * block_bytes : stretch.codes;
        t.high = t.b + low_bytes;
        t.parts = count * parts, t.own = blocks + g * block_bytes;
        const int64_t step = (count * block_bytes / t.parts + 63) / 64 * 64;
        for (int64_t i = 0; i < tile_count; ++i) {
          const int64_t row = tiles[i].row, height = tiles[i].height;
          t.a = args.codes + row * groups * w.group + g * w.group * height;
          t.x_scales = args.scales + row * groups + g * height;
          t.starts = args.starts + (row * groups + g * height) * starts + skipped * height;
          for (int64_t j = 0; j < t.parts * height; ++j) firsts[j] = t.starts[j] * traits.offset, sums[j] = (float)t.starts[j];
          t.out = totals + (row - first) * kQCols;
          t.own_step = i == 0 ? step : 0;
          tiles[i].run(t);
        }
      }
      for (int64_t i = 0; i < tile_count; ++i)
        gemm_finish(epilogue, totals + (tiles[i].row - first) * kQCols, kQCols, tiles[i].row, tiles[i].height, col, cols);
    }
  }
}
