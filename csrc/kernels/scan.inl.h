// Selective scan, forward. A block of channels at a time, lanes are channels: nothing is ever added across lanes. The
// states of a block stay in L1 beside its rows of A, which are turned to (N, kScanBlock) and scaled for powers of two.

constexpr int64_t kScanAhead = 8;  // rows that are asked for before their turn: no hardware foresees four lines of each
constexpr float kScanLog2E = 1.44269504f, kScanLn2 = 0.693147181f;

// 2^x within 2.6 u (polynomial 1.54): what the scan does most. 0 below -126.5, infinity from 128; NaN stays.
static inline Vec scan_exp2(Vec x) {
  static constexpr float c[] = {0.69314700f, 0.24022242f, 0.055507340f, 0.0096715130f, 0.0013264715f};
  const Vec low = max(set1(-127.0f), x);                      // pow2i(-127) is 0
  const Vec n = min(round_even(low), set1(127.0f));           // 127 for NaN, so that the conversion to integers is defined
  const Vec f = sub(low, n);
  return mul(fma(f, horner(f, c), set1(1.0f)), pow2i(n));
}

// log(1 + e^x) and its slope, the sigmoid. e^-|x| = e: log1p(e) = 2 atanh(s), s = e / (2 + e), keeps the digits of small e.
struct Softplus {
  Vec value, slope;
};
static inline Softplus softplus_of(Vec x) {
  static constexpr float c[] = {0.33333209f, 0.20010763f, 0.14000906f, 0.14005975f};
  const Vec e = scan_exp2(mul(abs(x), set1(-kScanLog2E)));
  const Vec s = div(e, add(e, set1(2.0f))), w = mul(s, s), twice = add(s, s);
  const Vec value = add(fma(mul(twice, w), horner(w, c), twice), max(zero(), x));
  const Vec one = div(set1(1.0f), add(e, set1(1.0f)));
  return {value, select(lt(x, zero()), mul(e, one), one)};
}

static inline Vec scan_sigmoid(Vec x) { return div(set1(1.0f), add(set1(1.0f), scan_exp2(mul(x, set1(-kScanLog2E))))); }

// Rows of (T, N) as floats: where they are, or widened into scratch.
static inline const float* scan_row(const float* rows, int64_t at, int64_t, float*) { return rows + at; }
static inline const float* scan_row(const bf16* rows, int64_t at, int64_t n, float* widened) {
  each_vec(0, n, [&](int64_t i, auto part) { put(widened + i, get(rows + at + i, part), part); });
  return widened;
}

// The block's rows of A: (width, N) -> (N, kScanBlock), times log2 e; zeros beyond.
static inline void scan_turn_a(const float* a, int64_t states, int64_t begin, int64_t width, float* turned) {
  for (int64_t n = 0; n < states; ++n)
    for (int64_t i = 0; i < kScanBlock; ++i)
      turned[n * kScanBlock + i] = i < width ? a[(begin + i) * states + n] * kScanLog2E : 0.0f;
}

// (N, kScanBlock) from or to (N, C).
static inline void scan_load_state(const float* from, int64_t states, int64_t channels, int64_t width, float* h) {
  for (int64_t n = 0; n < states; ++n)
    each_vec(0, width, [&](int64_t i, auto part) { store(h + n * kScanBlock + i, get(from + n * channels + i, part)); });
}
static inline void scan_store_state(const float* h, int64_t states, int64_t channels, int64_t width, float* to) {
  for (int64_t n = 0; n < states; ++n)
    each_vec(0, width, [&](int64_t i, auto part) { put(to + n * channels + i, load(h + n * kScanBlock + i), part); });
}

template <class T, class Lanes>
static inline Vec scan_delta(const ScanArgs<T>& args, int64_t at, int64_t channel, Lanes part) {
  const Vec raw = get(args.delta + at, part);
  return args.delta_bias ? add(raw, get(args.delta_bias + channel, part)) : raw;
}

// One row of a vector of channels: h is advanced, and the sum over states returned.
static inline Vec scan_step(const float* a, const float* b, const float* c, int64_t states, Vec d, Vec du, Vec sum, float* h) {
#pragma GCC unroll 4
  for (int64_t n = 0; n < states; ++n) {
    const Vec decay = scan_exp2(mul(d, load(a + n * kScanBlock)));
    const Vec next = fma(decay, load(h + n * kScanBlock), mul(du, set1(b[n])));
    store(h + n * kScanBlock, next);
    sum = fma(next, set1(c[n]), sum);
  }
  return sum;
}

template <class T> static void scan_rows(const ScanArgs<T>& args, int64_t seq, int64_t begin, int64_t width, float* scratch) {
  const int64_t states = args.states, channels = args.channels;
  float *a = scratch, *h = a + states * kScanBlock, *b_row = h + states * kScanBlock, *c_row = b_row + padded(states),
        *d = c_row + padded(states), *gate = d + kScanBlock;
  const int64_t first = args.q_start[seq], last = args.q_start[seq + 1];
  if (first == last) return;
  float* state = args.state ? args.state + seq * states * channels + begin : nullptr;
  if (state) scan_load_state(state, states, channels, width, h);
  else clear(h, states * kScanBlock);
  const int64_t ahead = kScanAhead * channels;
  for (int64_t t = first; t < last; ++t) {
    if (args.saved && (t - first) % kScanStride == 0) {
      const int64_t row = first / kScanStride + seq + (t - first) / kScanStride;
      scan_store_state(h, states, channels, width, args.saved + row * states * channels + begin);
    }
    const float* b = scan_row(args.b, t * states, states, b_row);
    const float* c = scan_row(args.c, t * states, states, c_row);
    // First what has long chains of its own, vector beside vector.
    each_vec(0, width, [&](int64_t i, auto part) {
      const int64_t at = t * channels + begin + i;
      __builtin_prefetch(args.u + at + ahead);
      __builtin_prefetch(args.delta + at + ahead);
      __builtin_prefetch(args.y + at + ahead, 1);
      const Vec raw = scan_delta(args, at, begin + i, part);
      store(d + i, args.softplus ? softplus_of(raw).value : raw);
      if (args.z) {
        __builtin_prefetch(args.z + at + ahead);
        const Vec z = get(args.z + at, part);
        store(gate + i, mul(z, scan_sigmoid(z)));
      }
    });
    each_vec(0, width, [&](int64_t i, auto part) {
      const int64_t at = t * channels + begin + i;
      const Vec u = get(args.u + at, part), step = load(d + i);
      const Vec skip = args.skip ? mul(get(args.skip + begin + i, part), u) : zero();
      const Vec y = scan_step(a + i, b, c, states, step, mul(step, u), skip, h + i);
      put(args.y + at, args.z ? mul(y, load(gate + i)) : y, part);
    });
  }
  if (state) scan_store_state(h, states, channels, width, state);
}

template <class T> void selective_scan(const ScanArgs<T>& args, const Share& share) {
  float* scratch = (float*)share.scratch;
  const Range blocks = range_of(share.index, scan_blocks(args.channels), scan_blocks_per_share(args));
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t begin = block * kScanBlock, width = at_most(args.channels - begin, kScanBlock);
    scan_turn_a(args.a, args.states, begin, width, scratch);
    for (int64_t seq = 0; seq < args.seqs; ++seq) scan_rows(args, seq, begin, width, scratch);
  }
}
