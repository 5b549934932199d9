// Which experts a token goes to, with what weight, and its rows on the way there and back. Scores are few: they are
// computed in double, so that every instruction set chooses alike.

static inline double route_sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }

// The largest of a row's numbers and the sum of exp(x - top), over all of them or those in ids.
struct RouteSoftmax {
  double top, sum;
};
template <class T> static inline RouteSoftmax route_softmax(const T* x, const int32_t* ids, int64_t n) {
  double top = -INFINITY, sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double value = (double)value_of(x[ids ? ids[i] : i]);
    if (value > top) top = value;
  }
  for (int64_t i = 0; i < n; ++i) sum += ::exp((double)value_of(x[ids ? ids[i] : i]) - top);
  return {top, sum};
}

// ids of the largest keys, each the next behind the last in the order of (key, number). Shares: rows_per_share(E) tokens.
template <class T> void route(const RouteArgs<T>& args, const Share& share) {
  const Range tokens = range_of(share.index, args.tokens, rows_per_share(args.experts));
  double* key = (double*)share.scratch;
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const T* x = args.logits + t * args.experts;
    const bool scores = args.score == Score::softmax && args.bias;  // without a bias logits have the same order
    const RouteSoftmax all = scores ? route_softmax(x, nullptr, args.experts) : RouteSoftmax{0.0, 1.0};
    for (int64_t e = 0; e < args.experts; ++e) {
      double value = (double)value_of(x[e]);
      if (args.score == Score::sigmoid) value = route_sigmoid(value);
      else if (scores) value = ::exp(value - all.top) / all.sum;
      if (args.bias) value += (double)args.bias[e];
      key[e] = value == value ? value : (double)INFINITY;
    }
    double last = INFINITY;
    int64_t before = -1;
    for (int64_t j = 0; j < args.chosen; ++j) {
      int64_t best = -1;
      for (int64_t e = 0; e < args.experts; ++e) {
        const bool left = key[e] < last || (key[e] == last && e > before);
        if (left && (best < 0 || key[e] > key[best])) best = e;
      }
      args.ids[t * args.chosen + j] = (int32_t)best;
      last = key[best];
      before = best;
    }
  }
}

// A weight is scale * value / divisor; the softmax of all and its share of the chosen's sum is the chosen's own softmax.
struct RouteRow {
  double top, divisor;
  bool softmax;
  double value(double x) const { return softmax ? ::exp(x - top) : route_sigmoid(x); }
};
template <class T> static inline RouteRow route_row(const RouteWeightsArgs<T>& args, int64_t t) {
  const T* x = args.logits + t * args.experts;
  const int32_t* ids = args.ids + t * args.chosen;
  if (args.score == Score::softmax) {
    const RouteSoftmax all = args.renormalize ? route_softmax(x, ids, args.chosen) : route_softmax(x, nullptr, args.experts);
    return {all.top, all.sum, true};
  }
  double sum = args.eps;
  for (int64_t j = 0; j < args.chosen; ++j) sum += route_sigmoid((double)value_of(x[ids[j]]));
  return {0.0, args.renormalize ? sum : 1.0, false};
}

// Shares: rows_per_share(E) tokens.
template <class T> void route_weights(const RouteWeightsArgs<T>& args, const Share& share) {
  const Range tokens = range_of(share.index, args.tokens, rows_per_share(args.experts));
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const RouteRow row = route_row(args, t);
    for (int64_t i = t * args.chosen; i < (t + 1) * args.chosen; ++i) {
      const double x = (double)value_of(args.logits[t * args.experts + args.ids[i]]);
      assign(args.y[i], (float)(args.scale * row.value(x) / row.divisor));
    }
  }
}

// With p = value / divisor: softmax gives p (g - sum(p g)) for those it is over, sigmoid (g - sum(p g)) / divisor * s (1 - s),
// without the sum where nothing is divided; g = scale * dy, 0 for those not chosen.
template <class T> void route_weights_backward(const RouteWeightsArgs<T>& args, const Share& share) {
  const Range tokens = range_of(share.index, args.tokens, rows_per_share(args.experts));
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const T* x = args.logits + t * args.experts;
    T* dx = args.dx + t * args.experts;
    const int32_t* ids = args.ids + t * args.chosen;
    const T* dy = args.dy + t * args.chosen;
    const RouteRow row = route_row(args, t);
    double inner = 0.0;
    if (row.softmax || args.renormalize)
      for (int64_t j = 0; j < args.chosen; ++j)
        inner += args.scale * (double)value_of(dy[j]) * (row.value((double)value_of(x[ids[j]])) / row.divisor);
    const bool everyone = row.softmax && !args.renormalize;
    for (int64_t e = 0; e < args.experts; ++e) {
      const double gradient = everyone ? -inner * (row.value((double)value_of(x[e])) / row.divisor) : 0.0;
      assign(dx[e], (float)(args.accumulate ? (double)value_of(dx[e]) + gradient : gradient));
    }
    for (int64_t j = 0; j < args.chosen; ++j) {
      const double value = row.value((double)value_of(x[ids[j]])), g = args.scale * (double)value_of(dy[j]);
      const double slope = row.softmax ? value : value * (1.0 - value);
      const double gradient = (everyone ? g : g - inner) * (slope / row.divisor);
      assign(dx[ids[j]], (float)((double)value_of(dx[ids[j]]) + gradient));
    }
  }
}

// A counting sort; offsets serve as cursors meanwhile. One share.
void sort_experts(const SortExpertsArgs<float>& args, const Share&) {
  int32_t* at = args.offsets;
  for (int64_t e = 0; e <= args.experts; ++e) at[e] = 0;
  for (int64_t i = 0; i < args.n; ++i) ++at[args.ids[i] + 1];
  for (int64_t e = 0; e < args.experts; ++e) {
    if (args.load) args.load[e] = (float)at[e + 1];
    at[e + 1] += at[e];
  }
  for (int64_t i = 0; i < args.n; ++i) {
    const int32_t place = at[args.ids[i]]++;
    args.order[place] = (int32_t)i;
    args.place[i] = place;
  }
  for (int64_t e = args.experts; e > 0; --e) at[e] = at[e - 1];
  at[0] = 0;
}

// Shares: rows_per_share(D) rows.
template <class T> void gather_rows(const GatherArgs<T>& args, const Share& share) {
  const Range rows = range_of(share.index, args.rows, rows_per_share(args.width));
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t from = args.order[r];
    const T* x = args.x + from / args.chosen * args.width;
    T* y = args.y + r * args.width;
    if (!args.weights) {
      each_vec(0, args.width, [&](int64_t i, auto part) { store_or_add(y + i, get(x + i, part), args.accumulate, part); });
      continue;
    }
    const Vec weight = set1(value_of(args.weights[from]));
    each_vec(0, args.width, [&](int64_t i, auto part) {
      store_or_add(y + i, mul(weight, get(x + i, part)), args.accumulate, part);
    });
  }
}

// Shares: rows_per_share(chosen * D) tokens.
template <class T> void combine_rows(const CombineArgs<T>& args, const Share& share) {
  const Range tokens = range_of(share.index, args.tokens, rows_per_share(args.chosen * args.width));
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const int32_t* place = args.place + t * args.chosen;
    const T* weights = args.weights ? args.weights + t * args.chosen : nullptr;
    const T* residual = args.residual ? args.residual + t * args.width : nullptr;
    T* y = args.y + t * args.width;
    each_vec(0, args.width, [&](int64_t i, auto part) {
      Vec sum = zero();
      for (int64_t j = 0; j < args.chosen; ++j) {
        const Vec x = get(args.x + place[j] * args.width + i, part);
        sum = weights ? fma(set1(value_of(weights[j])), x, sum) : add(sum, x);
      }
      if (residual) sum = add(get(residual + i, part), sum);
      store_or_add(y + i, sum, args.accumulate, part);
    });
  }
}
template <class T> void combine_dot(const CombineArgs<T>& args, const Share& share) {
  const Range tokens = range_of(share.index, args.tokens, rows_per_share(args.chosen * args.width));
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const T* dy = args.dy + t * args.width;
    for (int64_t i = t * args.chosen; i < (t + 1) * args.chosen; ++i) {
      const T* x = args.x + args.place[i] * args.width;
      const double dot = blocked_sum(args.width, [&](int64_t c, auto part) { return mul(get(dy + c, part), get(x + c, part)); });
      assign(args.dweights[i], args.accumulate ? value_of(args.dweights[i]) + (float)dot : (float)dot);
    }
  }
}

// C[e] (M) (+)= the sum of its rows, in order. Shares: kColumnBlock columns.
template <class T> void grouped_sum(const GroupedWeightArgs<T>& args, const Share& share) {
  const Range columns = range_of(share.index, args.m, kColumnBlock);
  for (int64_t e = 0; e < args.experts; ++e) {
    each_vec(columns.begin, columns.end, [&](int64_t i, auto part) {
      Vec sum = zero();
      for (int64_t r = args.offsets[e]; r < args.offsets[e + 1]; ++r) sum = add(sum, get(args.a + r * args.m + i, part));
      if (args.wide_c) store_or_add(args.wide_c + e * args.m + i, sum, args.accumulate, part);
      else store_or_add(args.c + e * args.m + i, sum, args.accumulate, part);
    });
  }
}
