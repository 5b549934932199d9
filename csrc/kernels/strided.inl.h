// Kernels over several axes: binary, copy, reduce. Included by elementwise.inl.h.

// A walk over up to kMaxDims axes, row-major, with an element offset into each of two arrays.
struct Walk {
  int64_t shape[kMaxDims], a[kMaxDims], b[kMaxDims];
  int dims;
  int64_t size;
};

// Drops axes of size 1 and joins neighbours that both arrays step through evenly. Always leaves at least one axis.
static inline Walk collapse(const int64_t* shape, const int64_t* a, const int64_t* b, int dims) {
  Walk walk;
  walk.dims = 0;
  walk.size = 1;
  for (int axis = 0; axis < dims; ++axis) {
    walk.size *= shape[axis];
    if (shape[axis] == 1) continue;
    const int last = walk.dims - 1;
    if (last >= 0 && walk.a[last] == a[axis] * shape[axis] && walk.b[last] == b[axis] * shape[axis]) {
      walk.shape[last] *= shape[axis];
      walk.a[last] = a[axis];
      walk.b[last] = b[axis];
    } else {
      walk.shape[walk.dims] = shape[axis];
      walk.a[walk.dims] = a[axis];
      walk.b[walk.dims++] = b[axis];
    }
  }
  if (walk.dims == 0) {
    walk.shape[0] = 1;
    walk.a[0] = walk.b[0] = 0;
    walk.dims = 1;
  }
  return walk;
}

// body(flat, at_a, at_b, n) for each run of n elements along the last axis, over the flat range.
template <class Body> static inline void each_run(const Walk& walk, Range range, const Body& body) {
  if (range.begin >= range.end) return;
  const int last = walk.dims - 1;
  int64_t index[kMaxDims], at_a = 0, at_b = 0;
  for (int64_t axis = last, rest = range.begin; axis >= 0; --axis) {
    index[axis] = rest % walk.shape[axis];
    rest /= walk.shape[axis];
    at_a += index[axis] * walk.a[axis];
    at_b += index[axis] * walk.b[axis];
  }
  for (int64_t flat = range.begin; flat < range.end;) {
    const int64_t left = walk.shape[last] - index[last], n = left < range.end - flat ? left : range.end - flat;
    body(flat, at_a, at_b, n);
    flat += n;
    at_a -= index[last] * walk.a[last];
    at_b -= index[last] * walk.b[last];
    index[last] = 0;
    for (int axis = last - 1; axis >= 0; --axis) {
      at_a += walk.a[axis];
      at_b += walk.b[axis];
      if (++index[axis] < walk.shape[axis]) break;
      at_a -= walk.shape[axis] * walk.a[axis];
      at_b -= walk.shape[axis] * walk.b[axis];
      index[axis] = 0;
    }
  }
}

static inline int64_t lane_count(Full) { return kWidth; }
static inline int64_t lane_count(Part part) { return part.n; }
template <class T, class Lanes> static inline Vec load_strided(const T* p, int64_t stride, Lanes part) {
  if (stride == 1) return get(p, part);
  if (stride == 0) return set1(value_of(p[0]));
  float lanes[kWidth] = {};
  for (int64_t i = 0; i < lane_count(part); ++i) lanes[i] = value_of(p[i * stride]);
  return load(lanes);
}

template <class T, class Map>
static inline void map_pairs(const BinaryArgs<T>& args, const Share& share, const Map& map) {
  const Walk walk = collapse(args.shape, args.stride_a, args.stride_b, args.dims);
  const int64_t step_a = walk.a[walk.dims - 1], step_b = walk.b[walk.dims - 1];
  each_run(walk, range_of(share.index, walk.size, kGrain), [&](int64_t flat, int64_t at_a, int64_t at_b, int64_t n) {
    const T *a = args.a + at_a, *b = args.b + at_b;
    T* y = args.y + flat;
    if (step_a == 1 && step_b == 1) {
      each_vec(0, n, [&](int64_t i, auto part) { put(y + i, map(get(a + i, part), get(b + i, part)), part); });
    } else {
      each_vec(0, n, [&](int64_t i, auto part) {
        put(y + i, map(load_strided(a + i * step_a, step_a, part), load_strided(b + i * step_b, step_b, part)), part);
      });
    }
  });
}

// y = a op b. max and min give NaN if either is NaN; comparisons give 1 or 0.
template <class T> void binary(const BinaryArgs<T>& args, const Share& share) {
  const Vec one = set1(1.0f);
  switch (args.op) {
    case Binary::add: return map_pairs(args, share, [](Vec a, Vec b) { return add(a, b); });
    case Binary::sub: return map_pairs(args, share, [](Vec a, Vec b) { return sub(a, b); });
    case Binary::mul: return map_pairs(args, share, [](Vec a, Vec b) { return mul(a, b); });
    case Binary::div: return map_pairs(args, share, [](Vec a, Vec b) { return div(a, b); });
    case Binary::max: return map_pairs(args, share, [](Vec a, Vec b) { return nan_max(a, b); });
    case Binary::min: return map_pairs(args, share, [](Vec a, Vec b) { return select(eq(a, a), min(a, b), a); });
    case Binary::less: return map_pairs(args, share, [=](Vec a, Vec b) { return select(lt(a, b), one, zero()); });
    case Binary::less_equal: return map_pairs(args, share, [=](Vec a, Vec b) { return select(le(a, b), one, zero()); });
    case Binary::equal: return map_pairs(args, share, [=](Vec a, Vec b) { return select(eq(a, b), one, zero()); });
  }
}

// One run of a copy: to[i * to_step] (+)= from[i * from_step].
template <class T>
static inline void copy_run(T* to, int64_t to_step, const T* from, int64_t from_step, int64_t n, bool accumulate) {
  if (to_step == 1) {
    each_vec(0, n, [&](int64_t i, auto part) {
      store_or_add(to + i, load_strided(from + i * from_step, from_step, part), accumulate, part);
    });
  } else {
    for (int64_t i = 0; i < n; ++i)
      assign(to[i * to_step], value_of(from[i * from_step]) + (accumulate ? value_of(to[i * to_step]) : 0.0f));
  }
}

// Shares: stretches of the contiguous side, whichever way the copy goes.
template <class T> void copy(const CopyArgs<T>& args, const Share& share) {
  const Walk walk = collapse(args.shape, args.stride, args.stride, args.dims);
  const int64_t step = walk.a[walk.dims - 1];
  each_run(walk, range_of(share.index, walk.size, kGrain), [&](int64_t flat, int64_t at, int64_t, int64_t n) {
    T *x = args.x + at, *y = args.y + flat;
    if (args.to_x)
      copy_run(x, step, y, 1, n, args.accumulate);
    else
      copy_run(y, 1, x, step, n, args.accumulate);
  });
}

template <class T> static inline float reduce_row(Reduce op, const T* x, int64_t n) {
  if (op == Reduce::sum) return (float)blocked_sum(n, [&](int64_t i, auto part) { return get(x + i, part); });
  return row_max(n, [&](int64_t i, auto part) { return lanes_or(get(x + i, part), part, -INFINITY); });
}

// kCount vectors of columns side by side, down the axis in order: y[j] = x[0][j] op x[1][j] op ... The order of each
// column does not depend on kCount, which only hides latency.
template <int kCount, class T, class Y, class Lanes>
static inline void reduce_columns(const ReduceArgs<T>& args, const T* x, Y* y, Lanes part) {
  Vec r[kCount];
  for (Vec& v : r) v = set1(args.op == Reduce::sum ? 0.0f : -INFINITY);
  for (int64_t k = 0; k < args.axis; ++k, x += args.inner)
    for (int v = 0; v < kCount; ++v) {
      const Vec next = get(x + v * kWidth, part);
      r[v] = args.op == Reduce::sum ? add(r[v], next) : nan_max(r[v], next);
    }
  for (int v = 0; v < kCount; ++v) store_or_add(y + v * kWidth, r[v], args.accumulate, part);
}

// Shares: reduce_outputs(axis, inner) outputs each. An empty axis gives 0 or -inf.
template <class T, class Y> static inline void reduce_to(Y* out, const ReduceArgs<T>& args, const Share& share) {
  const int64_t outputs = args.outer * args.inner;
  const Range range = range_of(share.index, outputs, reduce_outputs(args.axis, args.inner));
  if (args.inner == 1) {
    for (int64_t row = range.begin; row < range.end; ++row)
      assign(out[row], reduce_row(args.op, args.x + row * args.axis, args.axis) +
                           (args.accumulate ? value_of(out[row]) : 0.0f));
    return;
  }
  for (int64_t at = range.begin; at < range.end;) {
    const int64_t outer = at / args.inner, column = at % args.inner;
    const int64_t left = args.inner - column, n = left < range.end - at ? left : range.end - at;
    const T* x = args.x + outer * args.axis * args.inner + column;
    Y* y = out + at;
    int64_t j = 0;
    for (; j + 4 * kWidth <= n; j += 4 * kWidth) reduce_columns<4>(args, x + j, y + j, Full{});
    each_vec(j, n, [&](int64_t i, auto part) { reduce_columns<1>(args, x + i, y + i, part); });
    at += n;
  }
}

template <class T> void reduce(const ReduceArgs<T>& args, const Share& share) {
  if constexpr (kNarrow<T>) {
    if (args.wide_y) return reduce_to(args.wide_y, args, share);
  }
  reduce_to(args.y, args, share);
}
