// Kernels of layers: embedding, norms, activations, rotary positions, softmax, attention, cross-entropy, dropout.
#include <algorithm>
#include <utility>
#include <vector>

#include "bindings/common.h"
#include "kernels/tiles.h"

namespace mg::bindings {
namespace {

void check_rows_of(const Array& x, int64_t cols, const char* op) {
  if (x.size % cols)
    throw shape_error(std::string(op) + ": " + shape_text(x.shape, x.rank) + " has no whole rows of " + std::to_string(cols));
}

void embedding(const Array& table, const Array& ids, const Array& y, int64_t width, bool accumulate) {
  by_dtype(table, "embedding", [&](auto t) {
    using T = decltype(t);
    const int64_t vocab = width > 0 ? table.size / width : 0;
    check_ids(ids, 0, vocab, "embedding", "ids");
    EmbeddingArgs<T> args{in<T>(&table, 0, "embedding", "table"), ids.as<int32_t>(),
                          out<T>(&y, checked_mul(ids.size, width), "embedding", "y"),
                          ids.size, width, vocab, accumulate};
    MG_RUN(embedding, T, args, &table, &ids, to(y));
  });
}

void embedding_backward(const Array& dy, const Array& ids, const Array& dtable, int64_t width, bool accumulate) {
  by_dtype(dy, "embedding_backward", [&](auto t) {
    using T = decltype(t);
    const int64_t vocab = width > 0 ? dtable.size / width : 0;
    check_ids(ids, 0, vocab, "embedding_backward", "ids");
    EmbeddingBackwardArgs<T> args{in<T>(&dy, checked_mul(ids.size, width), "embedding_backward", "dy"),
                                  ids.as<int32_t>(), out<Wide<T>>(&dtable, 0, "embedding_backward", "dtable"),
                                  ids.size, width, vocab, accumulate};
    MG_RUN(embedding_backward, T, args, &dy, &ids, to(dtable));
  });
}

void norm(const Array& x, const Array& y, const Array& rstd, int64_t cols, double eps, const Array* weight,
          const Array* bias, const Array* mean) {
  by_dtype(x, "norm", [&](auto t) {
    using T = decltype(t);
    if (cols < 1) throw shape_error("norm: the last axis must not be empty");
    check_rows_of(x, cols, "norm");
    const int64_t rows = x.size / cols;
    NormArgs<T> args{in<T>(&x, x.size, "norm", "x"), in_opt<T>(weight, cols, "norm", "weight"),
                     in_opt<T>(bias, cols, "norm", "bias"), out<T>(&y, x.size, "norm", "y"),
                     out_opt<Wide<T>>(mean, rows, "norm", "mean"), out<Wide<T>>(&rstd, rows, "norm", "rstd"),
                     rows, cols, not_negative(eps, "norm", "eps"), mean != nullptr};
    MG_RUN(norm, T, args, &x, weight, bias, to(y), to(mean), to(rstd));
  });
}

// (C) (+)= the sum of `parts` (shares, C).
template <class T> void add_parts(const Array& parts, const Array* sum, bool accumulate) {
  ReduceArgs<T> args{};
  args.x = parts.as<T>(), args.y = sum->as<T>();
  args.outer = 1, args.axis = parts.dim(0), args.inner = parts.dim(1);
  args.op = Reduce::sum, args.accumulate = accumulate;
  MG_RUN(reduce, T, args, &parts, to(sum));
}

// dx, dweight and dbias are each optional. Without dx the other two are one kernel that walks columns; with it they are
// summed up on the way, a part for each share, and then added.
void norm_backward(const Array& dy, const Array& x, const Array& rstd, int64_t cols, const Array* weight,
                   const Array* mean, const Array* dx, bool accumulate_dx, const Array* dweight,
                   bool accumulate_dweight, const Array* dbias, bool accumulate_dbias) {
  by_dtype(x, "norm_backward", [&](auto t) {
    using T = decltype(t);
    if (cols < 1) throw shape_error("norm_backward: the last axis must not be empty");
    check_rows_of(x, cols, "norm_backward");
    const int64_t rows = x.size / cols;
    NormBackwardArgs<T> args{};
    args.dy = in<T>(&dy, x.size, "norm_backward", "dy");
    args.x = in<T>(&x, x.size, "norm_backward", "x");
    args.weight = in_opt<T>(weight, cols, "norm_backward", "weight");
    args.mean = in_opt<Wide<T>>(mean, rows, "norm_backward", "mean");
    args.rstd = in<Wide<T>>(&rstd, rows, "norm_backward", "rstd");
    args.rows = rows, args.cols = cols, args.center = mean != nullptr;
    args.accumulate_dx = accumulate_dx;
    args.accumulate_dweight = accumulate_dweight, args.accumulate_dbias = accumulate_dbias;
    args.dweight = out_opt<Wide<T>>(dweight, cols, "norm_backward", "dweight");
    args.dbias = out_opt<Wide<T>>(dbias, cols, "norm_backward", "dbias");
    if (!dx || rows == 0) {
      args.weight = nullptr;  // not read
      if (dweight || dbias) MG_RUN(norm_backward_weight, T, args, &dy, &x, mean, &rstd, to(dweight), to(dbias));
      return;
    }
    args.dx = out<T>(dx, x.size, "norm_backward", "dx");
    args.dweight = args.dbias = nullptr;  // add_parts() writes them
    const int64_t shape[] = {plan_norm_backward(args).shares, cols};
    Array weights, biases;
    if (dweight) weights = make_array(dtype_of<Wide<T>>::value, shape, 2), args.part_dweight = weights.as<Wide<T>>();
    if (dbias) biases = make_array(dtype_of<Wide<T>>::value, shape, 2), args.part_dbias = biases.as<Wide<T>>();
    MG_RUN(norm_backward, T, args, &dy, &x, weight, mean, &rstd, to(dx), to(weights), to(biases));
    if (dweight) add_parts<Wide<T>>(weights, dweight, accumulate_dweight);
    if (dbias) add_parts<Wide<T>>(biases, dbias, accumulate_dbias);
  });
}

void act(const Array& x, const Array& y, int kind) {
  by_dtype(x, "act", [&](auto t) {
    using T = decltype(t);
    ActArgs<T> args{in<T>(&x, y.size, "act", "x"), nullptr, out<T>(&y, x.size, "act", "y"), x.size, choice(kind, Act::silu, "act", "kind"), 0};
    MG_RUN(act, T, args, each(x), to(y));
  });
}

void act_backward(const Array& x, const Array& dy, const Array& dx, int kind, bool accumulate) {
  by_dtype(x, "act_backward", [&](auto t) {
    using T = decltype(t);
    ActArgs<T> args{in<T>(&x, x.size, "act_backward", "x"), in<T>(&dy, x.size, "act_backward", "dy"),
                    out<T>(&dx, x.size, "act_backward", "dx"), x.size, choice(kind, Act::silu, "act_backward", "kind"), accumulate};
    MG_RUN(act_backward, T, args, each(x), each(dy), to(dx));
  });
}

void glu(const Array& gate, const Array& up, const Array& y, int kind) {
  by_dtype(gate, "glu", [&](auto t) {
    using T = decltype(t);
    GluArgs<T> args{};
    args.gate = in<T>(&gate, gate.size, "glu", "gate");
    args.up = in<T>(&up, gate.size, "glu", "up");
    args.y = out<T>(&y, gate.size, "glu", "y");
    args.n = gate.size, args.act = choice(kind, Act::silu, "glu", "kind");
    MG_RUN(glu, T, args, each(gate), each(up), to(y));
  });
}

void glu_backward(const Array& gate, const Array& up, const Array& dy, int kind, const Array* dgate,
                  bool accumulate_dgate, const Array* dup, bool accumulate_dup) {
  by_dtype(gate, "glu_backward", [&](auto t) {
    using T = decltype(t);
    GluArgs<T> args{};
    args.gate = in<T>(&gate, gate.size, "glu_backward", "gate");
    args.up = in<T>(&up, gate.size, "glu_backward", "up");
    args.dy = in<T>(&dy, gate.size, "glu_backward", "dy");
    args.dgate = out_opt<T>(dgate, gate.size, "glu_backward", "dgate");
    args.dup = out_opt<T>(dup, gate.size, "glu_backward", "dup");
    args.n = gate.size, args.act = choice(kind, Act::silu, "glu", "kind");
    args.accumulate_dgate = accumulate_dgate, args.accumulate_dup = accumulate_dup;
    MG_RUN(glu_backward, T, args, &gate, &up, &dy, to(dgate), to(dup));
  });
}

void rope(const Array& x, const Array& positions, const Array& cos, const Array& sin, const Array& y, int64_t heads,
          int64_t head_dim, int64_t half, bool interleaved, bool inverse, bool accumulate) {
  by_dtype(x, "rope", [&](auto t) {
    using T = decltype(t);
    if (half < 1 || heads < 1 || 2 * half > head_dim)
      throw shape_error("rope: needs 1 <= half <= head_dim / 2 and at least one head");
    const int64_t table_rows = cos.size / half, tokens = positions.size;
    check_ids(positions, 0, table_rows, "rope", "positions");
    const int64_t size = checked_mul(tokens, checked_mul(heads, head_dim));
    RopeArgs<T> args{in<T>(&x, size, "rope", "x"), positions.as<int32_t>(),
                     in<Wide<T>>(&cos, table_rows * half, "rope", "cos"), in<Wide<T>>(&sin, table_rows * half, "rope", "sin"),
                     out<T>(&y, size, "rope", "y"), tokens, heads, head_dim, half, table_rows,
                     interleaved, inverse, accumulate};
    MG_RUN(rope, T, args, each(x), &positions, &cos, &sin, to(y));
  });
}

void softmax(const Array& x, const Array& y, int64_t cols, double scale) {
  by_dtype(x, "softmax", [&](auto t) {
    using T = decltype(t);
    if (cols < 1) throw shape_error("softmax: the last axis must not be empty");
    check_rows_of(x, cols, "softmax");
    SoftmaxArgs<T> args{in<T>(&x, x.size, "softmax", "x"), nullptr, out<T>(&y, x.size, "softmax", "y"),
                        x.size / cols, cols, finite(scale, "softmax", "scale"), 0};
    MG_RUN(softmax, T, args, each(x), to(y));
  });
}

void softmax_backward(const Array& y, const Array& dy, const Array& dx, int64_t cols, double scale, bool accumulate) {
  by_dtype(y, "softmax_backward", [&](auto t) {
    using T = decltype(t);
    if (cols < 1) throw shape_error("softmax_backward: the last axis must not be empty");
    check_rows_of(y, cols, "softmax_backward");
    SoftmaxArgs<T> args{in<T>(&y, y.size, "softmax_backward", "y"), in<T>(&dy, y.size, "softmax_backward", "dy"),
                        out<T>(&dx, y.size, "softmax_backward", "dx"), y.size / cols, cols, scale, accumulate};
    MG_RUN(softmax_backward, T, args, &y, each(dy), to(dx));
  });
}

// packed: a token's queries, keys and values follow each other in one array, which stands for q (dq); k and v are not looked at.
struct AttentionShape {
  int64_t heads, kv_heads, k_dim, v_dim;
  bool packed;
};

KvType kv_type(const Array& cache, const char* op) {
  if (cache.dtype == DType::f32) return KvType::f32;
  if (cache.dtype == DType::bf16) return KvType::bf16;
  if (cache.dtype == DType::u8) return KvType::int8;
  throw dtype_error(std::string(op) + ": keys and values are float32, bfloat16 or codes in uint8, not " + dtype_name(cache.dtype));
}

// Throws if a sequence reaches outside its arrays.
template <class T> void check_sequences(const AttentionArgs<T>& args) {
  if (args.q_start[0] != 0 || args.q_start[args.seqs] != args.q_rows)
    throw shape_error("attention: `q_start` must run from 0 to the " + std::to_string(args.q_rows) + " query rows");
  for (int64_t s = 0; s < args.seqs; ++s) {
    const int64_t start = args.k_start[s], length = args.k_len[s];
    if (args.q_start[s + 1] < args.q_start[s])
      throw shape_error("attention: `q_start` falls at sequence " + std::to_string(s));
    if (start < 0 || length < 0 || start + length > args.k_rows)
      throw shape_error("attention: sequence " + std::to_string(s) + " has keys " + std::to_string(start) + ".." +
                        std::to_string(start + length) + " of " + std::to_string(args.k_rows));
    if (args.q_start[s + 1] - args.q_start[s] > length)
      throw shape_error("attention: sequence " + std::to_string(s) + " has more queries than keys");
  }
}

// Fills the arguments shared by forward and backward, and checks them.
template <class T>
AttentionArgs<T> attention_args(const Array& q, const Array& k, const Array& v, const Array& o, const Array* lse,
                                const Array& q_start, const Array& k_start, const Array& k_len, AttentionShape shape,
                                double scale, bool causal, int64_t window, double soft_cap, const Array* alibi) {
  const char* op = "attention";
  if (shape.heads < 1 || shape.kv_heads < 1 || shape.heads % shape.kv_heads || shape.k_dim < 1 || shape.v_dim < 1)
    throw shape_error("attention: query heads must be a multiple of key/value heads, widths at least 1");
  AttentionArgs<T> args{};
  args.heads = shape.heads, args.kv_heads = shape.kv_heads, args.k_dim = shape.k_dim, args.v_dim = shape.v_dim;
  args.q_stride = checked_mul(shape.heads, shape.k_dim), args.o_stride = checked_mul(shape.heads, shape.v_dim);
  args.k_stride = checked_mul(shape.kv_heads, shape.k_dim), args.v_stride = checked_mul(shape.kv_heads, shape.v_dim);
  args.seqs = k_len.size;
  if (shape.packed) {
    const int64_t queries = args.q_stride, keys = args.k_stride;
    args.q_stride = args.k_stride = args.v_stride = checked_add(checked_add(queries, keys), args.v_stride);
    args.q_rows = args.k_rows = q.size / args.q_stride;
    args.q = in<T>(&q, args.q_rows * args.q_stride, op, "qkv");
    args.k = args.q + queries, args.v = args.k + keys;
  } else {
    args.q_rows = q.size / args.q_stride;
    args.k_rows = k.size / args.k_stride;
    args.q = in<T>(&q, args.q_rows * args.q_stride, op, "q");
    args.kv = k.dtype == q.dtype ? KvType::same : kv_type(k, op);
    if (v.dtype != k.dtype) throw dtype_error("attention: `v` must be of `k`'s type");
    args.k = k.as<T>(), args.v = v.as<T>();  // which are of `kv`
    if (v.size < checked_mul(args.k_rows, args.v_stride))
      throw shape_error("attention: `v` needs " + std::to_string(args.k_rows * args.v_stride) + " elements, got shape " +
                        shape_text(v.shape, v.rank));
  }
  args.o = out<T>(&o, checked_mul(args.q_rows, args.o_stride), op, "o");
  args.lse = out_opt<Wide<T>>(lse, args.q_rows * shape.heads, op, "lse");
  args.q_start = in<int32_t>(&q_start, args.seqs + 1, op, "q_start");
  args.k_start = in<int32_t>(&k_start, args.seqs, op, "k_start");
  args.k_len = in<int32_t>(&k_len, args.seqs, op, "k_len");
  args.alibi = in_opt<Wide<T>>(alibi, shape.heads, op, "alibi");
  args.scale = scale, args.soft_cap = soft_cap, args.window = window, args.causal = causal;
  check_each_time("attention", {&q_start, &k_start, &k_len}, {args.q_rows, args.k_rows}, [args] { check_sequences(args); });
  return args;
}

void attention(const Array& q, const Array& k, const Array& v, const Array& o, const Array& q_start,
               const Array& k_start, const Array& k_len, int64_t heads, int64_t kv_heads, int64_t k_dim, int64_t v_dim,
               double scale, bool causal, int64_t window, double soft_cap, const Array* alibi, const Array* lse,
               const Array* k_scales, const Array* v_scales, bool packed) {
  by_dtype(q, "attention", [&](auto t) {
    using T = decltype(t);
    auto args = attention_args<T>(q, k, v, o, lse, q_start, k_start, k_len, {heads, kv_heads, k_dim, v_dim, packed}, scale, causal,
                                  window, soft_cap, alibi);
    if (args.kv == KvType::int8) {
      const int64_t scales = checked_mul(kv_heads, args.k_rows + kKeyChunk);
      args.k_scales = in<float>(k_scales, scales, "attention", "k_scales");
      args.v_scales = in<float>(v_scales, scales, "attention", "v_scales");
    }
    Array parts;
    const int64_t shape[] = {sizeof(T) < sizeof(double) ? attention_parts(args) : 0, heads, part_floats(v_dim)};
    if (shape[0] > 0) parts = make_array(dtype_of<Wide<T>>::value, shape, 3), args.parts = parts.as<Wide<T>>();
    MG_RUN(attention, T, args, &q, &k, &v, to(o), to(lse), &q_start, &k_start, &k_len, alibi, to(parts), k_scales, v_scales);
    if (!args.parts) return;
    args.merge = 1;
    MG_RUN(attention, T, args, &q, &k, &v, to(o), to(lse), &q_start, &k_start, &k_len, alibi, to(parts), k_scales, v_scales);
  });
}

// Each sequence writes the gradients of its keys: they must be of no other.
template <class T> void check_own_keys(const AttentionArgs<T>& args) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (int64_t s = 0; s < args.seqs; ++s)
    if (args.k_len[s] > 0) ranges.emplace_back(args.k_start[s], args.k_start[s] + args.k_len[s]);
  if (!std::is_sorted(ranges.begin(), ranges.end())) std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second)
      throw usage_error("attention_backward: sequences share the key at row " + std::to_string(ranges[i].first) +
                        "; there are gradients only where each has keys of its own");
}

void attention_backward(const Array& q, const Array& k, const Array& v, const Array& o, const Array& lse,
                        const Array& d_o, const Array& dq, const Array& dk, const Array& dv, const Array& q_start,
                        const Array& k_start, const Array& k_len, int64_t heads, int64_t kv_heads, int64_t k_dim,
                        int64_t v_dim, double scale, bool causal, int64_t window, double soft_cap, const Array* alibi,
                        bool accumulate_dq, bool accumulate_dk, bool accumulate_dv, bool packed) {
  by_dtype(q, "attention_backward", [&](auto t) {
    using T = decltype(t);
    const char* op = "attention_backward";
    AttentionBackwardArgs<T> args{};
    if (k.dtype != q.dtype) throw dtype_error("attention_backward: keys and values must be of the queries' type");
    args.fwd = attention_args<T>(q, k, v, o, &lse, q_start, k_start, k_len, {heads, kv_heads, k_dim, v_dim, packed}, scale,
                                 causal, window, soft_cap, alibi);
    check_each_time("own keys", {&k_start, &k_len}, {}, [fwd = args.fwd] { check_own_keys(fwd); });
    args.d_o = in<T>(&d_o, args.fwd.q_rows * args.fwd.o_stride, op, "d_o");
    args.dq = out<T>(&dq, args.fwd.q_rows * args.fwd.q_stride, op, "dq");
    if (packed) {
      args.dk = args.dq + (args.fwd.k - args.fwd.q), args.dv = args.dq + (args.fwd.v - args.fwd.q);
    } else {
      args.dk = out<T>(&dk, args.fwd.k_rows * args.fwd.k_stride, op, "dk");
      args.dv = out<T>(&dv, args.fwd.k_rows * args.fwd.v_stride, op, "dv");
    }
    args.accumulate_dq = accumulate_dq, args.accumulate_dk = accumulate_dk, args.accumulate_dv = accumulate_dv;
    const Array *own_dk = packed ? nullptr : &dk, *own_dv = packed ? nullptr : &dv;
    MG_RUN(attention_backward, T, args, &q, &k, &v, &o, &lse, &d_o, to(dq), to(own_dk), to(own_dv), &q_start, &k_start, &k_len, alibi);
  });
}

// x (T, heads, width) into rows ids of a cache; ids may be anything while a step is recorded, as in put_rows.
void kv_put(const Array& x, const Array& ids, const Array& cache, int64_t heads, int64_t width, const Array* scales) {
  const char* op = "kv_put";
  if (heads < 1 || width < 1) throw shape_error("kv_put: heads and width must be at least 1");
  if (!cache.writable) throw usage_error("kv_put: the cache is read-only");
  const int64_t row = checked_mul(heads, width), rows = cache.size / row;
  check_ids(ids, 0, rows, op, "ids", !recording());
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    KvPutArgs<T> args{};
    args.kv = kv_type(cache, op);
    args.x = in<T>(&x, checked_mul(ids.size, row), op, "x"), args.ids = in<int32_t>(&ids, 0, op, "ids"), args.data = cache.data;
    args.tokens = ids.size, args.heads = heads, args.width = width, args.scale_step = rows + kKeyChunk;
    if (args.kv == KvType::int8) args.scales = out<float>(scales, checked_mul(heads, args.scale_step), op, "scales");
    MG_RUN(kv_put, T, args, &x, &ids, to(cache), to(scales));
  });
}

void cross_entropy(const Array& logits, const Array& targets, const Array& losses, int64_t vocab,
                   const Array* dlogits, const Array* inv_count, double label_smoothing, double z_loss) {
  by_dtype(logits, "cross_entropy", [&](auto t) {
    using T = decltype(t);
    const char* op = "cross_entropy";
    if (vocab < 1) throw shape_error("cross_entropy: the vocabulary must not be empty");
    const int64_t rows = targets.size;
    check_ids(targets, INT32_MIN, vocab, op, "targets");
    CrossEntropyArgs<T> args{in<T>(&logits, checked_mul(rows, vocab), op, "logits"), targets.as<int32_t>(),
                             out<Wide<T>>(&losses, rows, op, "losses"),
                             out_opt<T>(dlogits, checked_mul(rows, vocab), op, "dlogits"),
                             in_opt<Wide<T>>(inv_count, 1, op, "inv_count"), rows, vocab, label_smoothing, z_loss};
    MG_RUN(cross_entropy, T, args, each(logits), &targets, to(losses), to(dlogits), inv_count);
  });
}

void count_targets(const Array& targets, const Array& inv_count) {
  by_wide_dtype(inv_count, "count_targets", [&](auto t) {
    using T = decltype(t);
    CountArgs<T> args{in<int32_t>(&targets, targets.size, "count_targets", "targets"),
                      out<T>(&inv_count, 1, "count_targets", "inv_count"), targets.size};
    MG_RUN(count_targets, T, args, &targets, to(inv_count));
  });
}

void dropout(const Array& x, const Array& y, const Array& step, double p, uint64_t seed, uint64_t stream,
             bool accumulate) {
  by_dtype(x, "dropout", [&](auto t) {
    using T = decltype(t);
    DropoutArgs<T> args{in<T>(&x, y.size, "dropout", "x"), out<T>(&y, x.size, "dropout", "y"),
                        in<int64_t>(&step, 1, "dropout", "step"), seed, stream, x.size, p, accumulate};
    MG_RUN(dropout, T, args, each(x), to(y), &step);
  });
}

}  // namespace

void register_layers(py::module_& m) {
  define<&embedding>(m, "embedding", py::arg("table"), py::arg("ids"), py::arg("y"), py::arg("width"),
        py::arg("accumulate") = false);
  define<&embedding_backward>(m, "embedding_backward", py::arg("dy"), py::arg("ids"), py::arg("dtable"), py::arg("width"),
        py::arg("accumulate") = false);
  define<&norm>(m, "norm", py::arg("x"), py::arg("y"), py::arg("rstd"), py::arg("cols"), py::arg("eps"),
        py::arg("weight") = nullptr, py::arg("bias") = nullptr, py::arg("mean") = nullptr,
        "LayerNorm where `mean` is given, RMSNorm where it is not.");
  define<&norm_backward>(m, "norm_backward", py::arg("dy"), py::arg("x"), py::arg("rstd"), py::arg("cols"),
        py::arg("weight") = nullptr, py::arg("mean") = nullptr, py::arg("dx") = nullptr,
        py::arg("accumulate_dx") = false, py::arg("dweight") = nullptr, py::arg("accumulate_dweight") = false,
        py::arg("dbias") = nullptr, py::arg("accumulate_dbias") = false);
  define<&act>(m, "act", py::arg("x"), py::arg("y"), py::arg("act"));
  define<&act_backward>(m, "act_backward", py::arg("x"), py::arg("dy"), py::arg("dx"), py::arg("act"),
        py::arg("accumulate") = false);
  define<&glu>(m, "glu", py::arg("gate"), py::arg("up"), py::arg("y"), py::arg("act"));
  define<&glu_backward>(m, "glu_backward", py::arg("gate"), py::arg("up"), py::arg("dy"), py::arg("act"),
        py::arg("dgate") = nullptr, py::arg("accumulate_dgate") = false, py::arg("dup") = nullptr,
        py::arg("accumulate_dup") = false);
  define<&rope>(m, "rope", py::arg("x"), py::arg("positions"), py::arg("cos"), py::arg("sin"), py::arg("y"),
        py::arg("heads"), py::arg("head_dim"), py::arg("half"), py::arg("interleaved") = false,
        py::arg("inverse") = false, py::arg("accumulate") = false);
  define<&softmax>(m, "softmax", py::arg("x"), py::arg("y"), py::arg("cols"), py::arg("scale") = 1.0);
  define<&softmax_backward>(m, "softmax_backward", py::arg("y"), py::arg("dy"), py::arg("dx"), py::arg("cols"),
        py::arg("scale") = 1.0, py::arg("accumulate") = false);
  define<&attention>(m, "attention", py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"), py::arg("q_start"), py::arg("k_start"), py::arg("k_len"), py::arg("heads"), py::arg("kv_heads"),
        py::arg("k_dim"), py::arg("v_dim"), py::arg("scale"), py::arg("causal") = true, py::arg("window") = -1,
        py::arg("soft_cap") = 0.0, py::arg("alibi") = nullptr, py::arg("lse") = nullptr, py::arg("k_scales") = nullptr,
        py::arg("v_scales") = nullptr, py::arg("packed") = false);
  define<&kv_put>(m, "kv_put", py::arg("x"), py::arg("ids"), py::arg("cache"), py::arg("heads"), py::arg("width"),
        py::arg("scales") = nullptr, "Rows x (T, heads, width) into rows ids of a cache of another type; uint8 holds int8 codes.");
  m.attr("KV_PAD") = kKeyChunk;  // scales of int8 keys lie (heads, rows + KV_PAD)
  define<&attention_backward>(m, "attention_backward", py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"),
        py::arg("lse"), py::arg("d_o"), py::arg("dq"), py::arg("dk"), py::arg("dv"), py::arg("q_start"),
        py::arg("k_start"), py::arg("k_len"), py::arg("heads"), py::arg("kv_heads"), py::arg("k_dim"),
        py::arg("v_dim"), py::arg("scale"), py::arg("causal") = true, py::arg("window") = -1,
        py::arg("soft_cap") = 0.0, py::arg("alibi") = nullptr, py::arg("accumulate_dq") = false,
        py::arg("accumulate_dk") = false, py::arg("accumulate_dv") = false, py::arg("packed") = false);
  define<&cross_entropy>(m, "cross_entropy", py::arg("logits"), py::arg("targets"), py::arg("losses"), py::arg("vocab"),
        py::arg("dlogits") = nullptr, py::arg("inv_count") = nullptr, py::arg("label_smoothing") = 0.0,
        py::arg("z_loss") = 0.0);
  define<&count_targets>(m, "count_targets", py::arg("targets"), py::arg("inv_count"));
  define<&dropout>(m, "dropout", py::arg("x"), py::arg("y"), py::arg("step"), py::arg("p"), py::arg("seed"),
        py::arg("stream") = 0, py::arg("accumulate") = false);
}

}  // namespace mg::bindings
