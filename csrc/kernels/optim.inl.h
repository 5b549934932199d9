// The optimizers and what they need to know about the gradients.

// One block's sum of squares: in float, or in double where a square overflows, so that a huge but finite gradient is
// still measured.
static inline double block_squares(const float* x, int64_t n) {
  const double sum = blocked_sum(n, [&](int64_t i, auto part) {
    const Vec v = get(x + i, part);
    return mul(v, v);
  });
  if (sum < (double)INFINITY) return sum;
  double exact = 0.0;
  for (int64_t i = 0; i < n; ++i) exact += (double)x[i] * (double)x[i];
  return exact;
}

// partial[c] = sum of squares of chunk c. Shares: one chunk. Float sums run over 256 elements, then add up in double.
void sum_squares(const SumSquaresArgs<float>& args, const Share& share) {
  const Range range = range_of(share.index, args.n, kNormChunk);
  double sum = 0.0;
  for (int64_t i = range.begin; i < range.end; i += 256) {
    const int64_t left = range.end - i;
    sum += block_squares(args.x + i, left < 256 ? left : 256);
  }
  if (range.begin < range.end) args.partial[share.index] = sum;
}

// control = {norm, factor, finite}. A norm beyond float's range is written as the largest float and is still finite.
// The factor is 0 when not finite. One share.
void clip(const ClipArgs<float>& args, const Share&) {
  double squares = 0.0;
  for (int64_t i = 0; i < args.chunks; ++i) squares += args.partial[i];
  const double norm = ::sqrt(squares);
  const bool finite = norm < (double)INFINITY && (!args.loss || ::fabsf(args.loss[0]) < INFINITY);
  double factor = finite ? 1.0 : 0.0;
  if (finite && args.max_norm > 0.0 && args.max_norm < norm + 1e-6) factor = args.max_norm / (norm + 1e-6);
  constexpr double kLargest = 3.4028234663852886e38;
  args.control[0] = (float)(finite && norm > kLargest ? kLargest : norm);
  args.control[1] = (float)factor;
  args.control[2] = finite ? 1.0f : 0.0f;
}

// One pass over m, v and p in torch's order: decay, moments, step. The bias corrections are taken in double.
void adamw(const AdamWArgs<float>& args, const Share& share) {
  if (args.control && args.control[2] == 0.0f) return;
  const Range range = range_of(share.index, args.n, kGrain);
  const double lr = (double)args.hyper[0] * args.lr_scale, step = (double)args.step[0];
  const double correction1 = 1.0 - ::pow(args.beta1, step), correction2 = 1.0 - ::pow(args.beta2, step);
  const Vec factor = set1(args.control ? args.control[1] : 1.0f);
  const Vec keep = set1((float)(1.0 - lr * args.weight_decay)), rate = set1((float)(-lr / correction1));
  const Vec root = set1((float)(1.0 / ::sqrt(correction2))), eps = set1((float)args.eps);
  const Vec mix1 = set1((float)(1.0 - args.beta1)), mix2 = set1((float)(1.0 - args.beta2)), beta2 = set1((float)args.beta2);
  each_vec(range.begin, range.end, [&](int64_t i, auto part) {
    ask_to_write(args.param + i + kPutAhead, part);
    ask_to_write(args.m + i + kPutAhead, part);
    ask_to_write(args.v + i + kPutAhead, part);
    const Vec g = mul(get(args.grad + i, part), factor);
    const Vec old = get(args.m + i, part);
    const Vec m = fma(mix1, sub(g, old), old);
    const Vec v = fma(beta2, get(args.v + i, part), mul(mul(mix2, g), g));
    const Vec p = mul(get(args.param + i, part), keep);
    put(args.m + i, m, part);
    put(args.v + i, v, part);
    const Vec next = fma(rate, div(m, fma(sqrt(v), root, eps)), p);
    put(args.param + i, next, part);
    if (args.rounded) put(args.rounded + i, next, part);
  });
}

// g += weight_decay * p; buf = momentum * buf + g (g at step 1); p -= lr * (nesterov ? g + momentum * buf : buf).
void sgd(const SgdArgs<float>& args, const Share& share) {
  if (args.control && args.control[2] == 0.0f) return;
  const Range range = range_of(share.index, args.n, kGrain);
  const bool first = args.step[0] <= 1;
  const Vec factor = set1(args.control ? args.control[1] : 1.0f), decay = set1((float)args.weight_decay);
  const Vec momentum = set1((float)args.momentum), rate = set1((float)((double)args.hyper[0] * args.lr_scale));
  each_vec(range.begin, range.end, [&](int64_t i, auto part) {
    const Vec p = get(args.param + i, part);
    Vec g = fma(decay, p, mul(get(args.grad + i, part), factor));
    if (args.buf) {
      const Vec buf = first ? g : fma(momentum, get(args.buf + i, part), g);
      put(args.buf + i, buf, part);
      g = args.nesterov ? fma(momentum, buf, g) : buf;
    }
    const Vec next = fnma(rate, g, p);
    put(args.param + i, next, part);
    if (args.rounded) put(args.rounded + i, next, part);
  });
}
