// Plans of quantized weights, and the packing of codes, which is moving bytes and the same on every machine.
#include "kernels/plan.h"
#include "kernels/qgemm_grid.h"
#include "kernels/tiles.h"

namespace mg {

namespace {
template <class T> Plan product(const QGemmArgs<T>& args) {
  if (args.m == 0 || args.w.n == 0) return {0, 0};
  const QGrid grid = q_grid(args.m, args.w.n, args.w.k);
  return {grid.row_blocks * grid.col_blocks, 0};
}
template <class T> Plan rows(const QRowsArgs<T>& args) {
  const int64_t tiles = q_tiles(args.m, q_tile_rows(args.type)), step = q_row_tiles(args.k);
  return {(tiles + step - 1) / step, 0};
}
}  // namespace

#define MG_PLAN(name, Args, plan)                            \
  Plan plan_##name(const Args<float>& args) { return plan; } \
  Plan plan_##name(const Args<bf16>& args) { return plan; }  \
  Plan plan_##name(const Args<double>&) { return {1, 0}; }
MG_PLAN(qgemm, QGemmArgs, product(args))
MG_PLAN(qrows, QRowsArgs, rows(args))
MG_PLAN(qdequantize, QDequantizeArgs, (Plan{shares_of(args.rows, rows_per_share(args.w.k)), 0}))
MG_PLAN(quantize, QuantizeArgs, (Plan{q_panels(args.rows), 0}))
#undef MG_PLAN

Plan plan_qpack(const QPackArgs& args) { return {q_panels(args.rows), 0}; }

void qpack(const QPackArgs& args, const Share& share) {
  const QWeight& w = args.w;
  const int64_t groups = q_groups(w.k, w.group), offset = kQTraits[(int)w.type].offset;
  uint8_t codes[kQChunk];
  for (int64_t r = share.index * kQCols; r < (share.index + 1) * kQCols; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const QColumn to = q_column(w, args.data, args.first + r, g);
      q_put_scale(w.type, to, r < args.rows ? args.scales[r * groups + g] : 0.0f);
      for (int64_t at = 0; at < w.group; at += kQChunk) {
        const int64_t now = w.group - at < kQChunk ? w.group - at : kQChunk, begin = g * w.group + at;
        const int64_t left = r < args.rows && begin < w.k ? w.k - begin : 0, count = left < now ? left : now;
        if (count > 0) memcpy(codes, args.codes + r * w.k + begin, (size_t)count);
        memset(codes + count, (int)offset, (size_t)(now - count));
        q_put_codes(w.type, to, codes, at, now);
      }
    }
  }
}

}  // namespace mg
