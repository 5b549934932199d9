// Kernels that walk sequences with a state: selective scan, causal convolution, linear recurrence.
#include "bindings/common.h"
#include "kernels/scan_tiles.h"

namespace mg::bindings {
namespace {

int64_t rows_of(const Array& x, int64_t channels, const char* op) {
  if (channels < 1) throw shape_error(std::string(op) + ": the number of channels must be at least 1");
  return x.size / channels;
}

template <class T>
ScanArgs<T> scan_args(const Array& u, const Array& delta, const Array& a, const Array& b, const Array& c, const Array& y,
                      const Array& q_start, int64_t states, const Array* skip, const Array* z, const Array* delta_bias,
                      bool softplus, const Array* saved) {
  const char* op = "selective_scan";
  if (states < 1) throw shape_error("selective_scan: a channel must have at least 1 state");
  ScanArgs<T> args{};
  args.states = states, args.channels = a.size / states, args.softplus = softplus;
  args.tokens = rows_of(u, args.channels, op);
  args.seqs = check_starts(q_start, args.tokens, op);
  const int64_t size = args.tokens * args.channels, width = args.tokens * states;
  args.u = in<T>(&u, size, op, "u"), args.delta = in<T>(&delta, size, op, "delta");
  args.a = in<Wide<T>>(&a, args.channels * states, op, "a");
  args.b = in<T>(&b, width, op, "b"), args.c = in<T>(&c, width, op, "c");
  args.skip = in_opt<Wide<T>>(skip, args.channels, op, "skip");
  args.z = in_opt<T>(z, size, op, "z");
  args.delta_bias = in_opt<Wide<T>>(delta_bias, args.channels, op, "delta_bias");
  args.q_start = q_start.as<int32_t>();
  const int64_t kept = checked_mul(args.tokens / kScanStride + args.seqs, checked_mul(args.channels, states));
  args.saved = out_opt<Wide<T>>(saved, kept, op, "saved");
  args.y = out<T>(&y, size, op, "y");
  return args;
}

void selective_scan(const Array& u, const Array& delta, const Array& a, const Array& b, const Array& c, const Array& y,
                    const Array& q_start, int64_t states, const Array* skip, const Array* z, const Array* delta_bias,
                    bool softplus, const Array* state, const Array* saved) {
  by_dtype(u, "selective_scan", [&](auto t) {
    using T = decltype(t);
    auto args = scan_args<T>(u, delta, a, b, c, y, q_start, states, skip, z, delta_bias, softplus, saved);
    args.state = out_opt<Wide<T>>(state, checked_mul(args.seqs, checked_mul(args.channels, states)), "selective_scan", "state");
    MG_RUN(selective_scan, T, args, &u, &delta, &a, &b, &c, to(y), &q_start, skip, z, delta_bias, to(state), to(saved));
  });
}

// (T, N) (+)= the sum of the parts (blocks, T, N).
template <class T> void add_parts(const Array& parts, const Array* sum, bool accumulate) {
  if (!sum) return;
  ReduceArgs<T> args{};
  args.x = parts.as<T>(), args.y = out<T>(sum, parts.dim(1), "selective_scan_backward", "db");
  args.outer = 1, args.axis = parts.dim(0), args.inner = parts.dim(1);
  args.op = Reduce::sum, args.accumulate = accumulate;
  MG_RUN(reduce, T, args, &parts, to(sum));
}

void selective_scan_backward(const Array& u, const Array& delta, const Array& a, const Array& b, const Array& c, const Array& y,
                             const Array& q_start, int64_t states, const Array* skip, const Array* z, const Array* delta_bias,
                             bool softplus, const Array& saved, const Array& dy, const Array* du, const Array* ddelta,
                             const Array* da, const Array* db, const Array* dc, const Array* dskip, const Array* dz, const Array* ddelta_bias,
                             int64_t accumulate) {
  by_dtype(u, "selective_scan_backward", [&](auto t) {
    using T = decltype(t);
    const char* op = "selective_scan_backward";
    ScanBackwardArgs<T> args{};
    ScanArgs<T>& fwd = args.fwd;
    fwd = scan_args<T>(u, delta, a, b, c, y, q_start, states, skip, z, delta_bias, softplus, &saved);
    fwd.y = nullptr;  // not read
    const int64_t size = fwd.tokens * fwd.channels;
    const auto adds = [&](int i) { return static_cast<int32_t>(accumulate >> i & 1); };
    args.dy = in<T>(&dy, size, op, "dy");
    args.du = out_opt<T>(du, size, op, "du"), args.accumulate_du = adds(0);
    args.ddelta = out_opt<T>(ddelta, size, op, "ddelta"), args.accumulate_ddelta = adds(1);
    args.da = out_opt<Wide<T>>(da, fwd.channels * states, op, "da"), args.accumulate_da = adds(2);
    args.dskip = out_opt<Wide<T>>(dskip, fwd.channels, op, "dskip"), args.accumulate_dskip = adds(5);
    args.dz = out_opt<T>(z ? dz : nullptr, size, op, "dz"), args.accumulate_dz = adds(6);
    args.ddelta_bias = out_opt<Wide<T>>(ddelta_bias, fwd.channels, op, "ddelta_bias"), args.accumulate_ddelta_bias = adds(7);
    const int64_t shape[] = {scan_blocks(fwd.channels), fwd.tokens * states};
    Array db_parts = make_array(dtype_of<Wide<T>>::value, shape, 2), dc_parts = make_array(dtype_of<Wide<T>>::value, shape, 2);
    args.part_db = db_parts.as<Wide<T>>(), args.part_dc = dc_parts.as<Wide<T>>();
    MG_RUN(selective_scan_backward, T, args, &u, &delta, &a, &b, &c, &q_start, skip, z, delta_bias, &saved, &dy, to(du), to(ddelta),
           to(da), to(dskip), to(dz), to(ddelta_bias), to(db_parts), to(dc_parts));
    add_parts<Wide<T>>(db_parts, db, adds(3));
    add_parts<Wide<T>>(dc_parts, dc, adds(4));
  });
}

template <class T>
ConvArgs<T> conv_args(const Array& x, const Array& weight, const Array& y, const Array& q_start, int64_t taps,
                      const Array* bias, int act) {
  const char* op = "causal_conv1d";
  if (taps < 1) throw shape_error("causal_conv1d: needs at least 1 tap");
  if ((Act)act != Act::none && (Act)act != Act::silu) throw usage_error("causal_conv1d: the activation is none or silu");
  ConvArgs<T> args{};
  args.taps = taps, args.channels = weight.size / taps, args.act = (Act)act;
  args.tokens = rows_of(x, args.channels, op);
  args.seqs = check_starts(q_start, args.tokens, op);
  args.x = in<T>(&x, args.tokens * args.channels, op, "x");
  args.weight = in<T>(&weight, args.channels * taps, op, "weight");
  args.bias = in_opt<T>(bias, args.channels, op, "bias");
  args.q_start = q_start.as<int32_t>();
  args.y = out<T>(&y, args.tokens * args.channels, op, "y");
  return args;
}

void causal_conv1d(const Array& x, const Array& weight, const Array& y, const Array& q_start, int64_t taps, const Array* bias,
                   int act, const Array* state) {
  by_dtype(x, "causal_conv1d", [&](auto t) {
    using T = decltype(t);
    auto args = conv_args<T>(x, weight, y, q_start, taps, bias, act);
    args.state = out_opt<Wide<T>>(state, checked_mul(args.seqs, (taps - 1) * args.channels), "causal_conv1d", "state");
    MG_RUN(causal_conv1d, T, args, &x, &weight, bias, to(y), &q_start, to(state));
  });
}

void causal_conv1d_backward(const Array& x, const Array& weight, const Array& dy, const Array& q_start, int64_t taps,
                            const Array* bias, int act, const Array* dx, bool accumulate_dx, const Array* dweight, bool accumulate_dweight,
                            const Array* dbias, bool accumulate_dbias) {
  by_dtype(x, "causal_conv1d_backward", [&](auto t) {
    using T = decltype(t);
    const char* op = "causal_conv1d_backward";
    ConvBackwardArgs<T> args{};
    args.fwd = conv_args<T>(x, weight, dy, q_start, taps, bias, act);
    args.fwd.y = nullptr;
    args.dy = in<T>(&dy, args.fwd.tokens * args.fwd.channels, op, "dy");
    args.dx = out_opt<T>(dx, args.fwd.tokens * args.fwd.channels, op, "dx");
    args.dweight = out_opt<Wide<T>>(dweight, args.fwd.channels * taps, op, "dweight");
    args.dbias = out_opt<Wide<T>>(dbias, args.fwd.channels, op, "dbias");
    args.accumulate_dx = accumulate_dx, args.accumulate_dweight = accumulate_dweight, args.accumulate_dbias = accumulate_dbias;
    MG_RUN(causal_conv1d_backward, T, args, &x, &weight, bias, &dy, &q_start, to(dx), to(dweight), to(dbias));
  });
}

template <class T>
RecurrenceArgs<T> recurrence_args(const Array& x, const Array& a, const Array& h, const Array& q_start, int64_t channels) {
  const char* op = "linear_recurrence";
  RecurrenceArgs<T> args{};
  args.channels = channels, args.tokens = rows_of(x, channels, op);
  args.seqs = check_starts(q_start, args.tokens, op);
  const int64_t size = args.tokens * channels;
  args.x = in<T>(&x, size, op, "x"), args.a = in<T>(&a, size, op, "a");
  args.q_start = q_start.as<int32_t>();
  args.h = out<T>(&h, size, op, "h");
  return args;
}

void linear_recurrence(const Array& x, const Array& a, const Array& h, const Array& q_start, int64_t channels, const Array* state) {
  by_dtype(x, "linear_recurrence", [&](auto t) {
    using T = decltype(t);
    auto args = recurrence_args<T>(x, a, h, q_start, channels);
    args.state = out_opt<Wide<T>>(state, checked_mul(args.seqs, channels), "linear_recurrence", "state");
    MG_RUN(linear_recurrence, T, args, &x, &a, to(h), &q_start, to(state));
  });
}

void linear_recurrence_backward(const Array& a, const Array& h, const Array& dh, const Array& q_start, int64_t channels,
                                const Array* dx, bool accumulate_dx, const Array* da, bool accumulate_da) {
  by_dtype(a, "linear_recurrence_backward", [&](auto t) {
    using T = decltype(t);
    const char* op = "linear_recurrence_backward";
    RecurrenceBackwardArgs<T> args{};
    args.fwd = recurrence_args<T>(a, a, h, q_start, channels);
    args.fwd.x = nullptr;
    const int64_t size = args.fwd.tokens * channels;
    args.dh = in<T>(&dh, size, op, "dh");
    args.dx = out_opt<T>(dx, size, op, "dx"), args.da = out_opt<T>(da, size, op, "da");
    args.accumulate_dx = accumulate_dx, args.accumulate_da = accumulate_da;
    MG_RUN(linear_recurrence_backward, T, args, &a, &h, &dh, &q_start, to(dx), to(da));
  });
}

template <class T>
RgLruArgs<T> rg_lru_args(const Array& x, const Array& input, const Array& recurrent, const Array& param, const Array& positions,
                         const Array& h, const Array& q_start) {
  const char* op = "rg_lru";
  RgLruArgs<T> args{};
  args.channels = param.size, args.tokens = rows_of(x, args.channels, op);
  args.seqs = check_starts(q_start, args.tokens, op);
  const int64_t size = args.tokens * args.channels;
  args.x = in<T>(&x, size, op, "x"), args.input = in<T>(&input, size, op, "input_gate");
  args.recurrent = in<T>(&recurrent, size, op, "recurrent_gate");
  args.param = in<Wide<T>>(&param, args.channels, op, "param");
  args.positions = in<int32_t>(&positions, args.tokens, op, "positions");
  args.q_start = q_start.as<int32_t>();
  args.h = out<T>(&h, size, op, "h");
  return args;
}

void rg_lru(const Array& x, const Array& input, const Array& recurrent, const Array& param, const Array& positions, const Array& h,
            const Array& q_start, const Array* state) {
  by_dtype(x, "rg_lru", [&](auto t) {
    using T = decltype(t);
    auto args = rg_lru_args<T>(x, input, recurrent, param, positions, h, q_start);
    args.state = out_opt<Wide<T>>(state, checked_mul(args.seqs, args.channels), "rg_lru", "state");
    MG_RUN(rg_lru, T, args, &x, &input, &recurrent, &param, &positions, to(h), &q_start, to(state));
  });
}

void rg_lru_backward(const Array& x, const Array& input, const Array& recurrent, const Array& param, const Array& positions,
                     const Array& h, const Array& q_start, const Array& dh, const Array* dx, const Array* dinput,
                     const Array* drecurrent, const Array* dparam, int64_t accumulate) {
  by_dtype(x, "rg_lru_backward", [&](auto t) {
    using T = decltype(t);
    const char* op = "rg_lru_backward";
    RgLruBackwardArgs<T> args{};
    args.fwd = rg_lru_args<T>(x, input, recurrent, param, positions, h, q_start);
    const int64_t size = args.fwd.tokens * args.fwd.channels;
    args.dh = in<T>(&dh, size, op, "dh");
    args.dx = out_opt<T>(dx, size, op, "dx"), args.accumulate_dx = accumulate & 1;
    args.dinput = out_opt<T>(dinput, size, op, "dinput"), args.accumulate_dinput = accumulate >> 1 & 1;
    args.drecurrent = out_opt<T>(drecurrent, size, op, "drecurrent"), args.accumulate_drecurrent = accumulate >> 2 & 1;
    args.dparam = out_opt<Wide<T>>(dparam, args.fwd.channels, op, "dparam"), args.accumulate_dparam = accumulate >> 3 & 1;
    MG_RUN(rg_lru_backward, T, args, &x, &input, &recurrent, &param, &positions, &h, &q_start, &dh, to(dx), to(dinput),
           to(drecurrent), to(dparam));
  });
}

}  // namespace

void register_scan(py::module_& m) {
  m.attr("SCAN_STRIDE") = kScanStride;
  define<&selective_scan>(m, "selective_scan", py::arg("u"), py::arg("delta"), py::arg("a"), py::arg("b"), py::arg("c"), py::arg("y"),
        py::arg("q_start"), py::arg("states"), py::arg("skip") = nullptr, py::arg("z") = nullptr, py::arg("delta_bias") = nullptr,
        py::arg("softplus") = false, py::arg("state") = nullptr, py::arg("saved") = nullptr);
  define<&selective_scan_backward>(m, "selective_scan_backward", py::arg("u"), py::arg("delta"), py::arg("a"), py::arg("b"), py::arg("c"),
        py::arg("y"), py::arg("q_start"), py::arg("states"), py::arg("skip"), py::arg("z"), py::arg("delta_bias"), py::arg("softplus"),
        py::arg("saved"), py::arg("dy"), py::arg("du") = nullptr, py::arg("ddelta") = nullptr, py::arg("da") = nullptr,
        py::arg("db") = nullptr, py::arg("dc") = nullptr, py::arg("dskip") = nullptr, py::arg("dz") = nullptr,
        py::arg("ddelta_bias") = nullptr, py::arg("accumulate") = 0,
        "Bit i of `accumulate` says that the i-th of du .. ddelta_bias is added to.");
  define<&causal_conv1d>(m, "causal_conv1d", py::arg("x"), py::arg("weight"), py::arg("y"), py::arg("q_start"), py::arg("taps"),
        py::arg("bias") = nullptr, py::arg("act") = 0, py::arg("state") = nullptr);
  define<&causal_conv1d_backward>(m, "causal_conv1d_backward", py::arg("x"), py::arg("weight"), py::arg("dy"), py::arg("q_start"),
        py::arg("taps"), py::arg("bias") = nullptr, py::arg("act") = 0, py::arg("dx") = nullptr, py::arg("accumulate_dx") = false,
        py::arg("dweight") = nullptr, py::arg("accumulate_dweight") = false, py::arg("dbias") = nullptr,
        py::arg("accumulate_dbias") = false);
  define<&linear_recurrence>(m, "linear_recurrence", py::arg("x"), py::arg("a"), py::arg("h"), py::arg("q_start"), py::arg("channels"),
        py::arg("state") = nullptr);
  define<&linear_recurrence_backward>(m, "linear_recurrence_backward", py::arg("a"), py::arg("h"), py::arg("dh"), py::arg("q_start"),
        py::arg("channels"), py::arg("dx") = nullptr, py::arg("accumulate_dx") = false, py::arg("da") = nullptr,
        py::arg("accumulate_da") = false);
  define<&rg_lru>(m, "rg_lru", py::arg("x"), py::arg("input_gate"), py::arg("recurrent_gate"), py::arg("param"), py::arg("positions"),
        py::arg("h"), py::arg("q_start"), py::arg("state") = nullptr);
  define<&rg_lru_backward>(m, "rg_lru_backward", py::arg("x"), py::arg("input_gate"), py::arg("recurrent_gate"), py::arg("param"),
        py::arg("positions"), py::arg("h"), py::arg("q_start"), py::arg("dh"), py::arg("dx") = nullptr, py::arg("dinput") = nullptr,
        py::arg("drecurrent") = nullptr, py::arg("dparam") = nullptr, py::arg("accumulate") = 0,
        "Bit i of `accumulate` says that the i-th of dx .. dparam is added to.");
}

}  // namespace mg::bindings
