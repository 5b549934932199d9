// Rows of bytes to places in a table: what a recorded step does with the keys and values of its tokens, whose places
// change from replay to replay. The same on every machine.
#pragma once
#include <stdint.h>
#include <string.h>

#include "kernels/plan.h"
#include "kernels/tiles.h"

namespace mg {

// table[ids[t]] = x[t]. No two ids are the same.
struct PutRowsArgs {
  const char* x;       // (T, bytes)
  const int32_t* ids;  // (T)
  char* table;
  int64_t tokens, bytes;
};

inline Plan plan_put_rows(const PutRowsArgs& args) { return {shares_of(args.tokens, rows_per_share(args.bytes / 4)), 0}; }

inline void put_rows(const PutRowsArgs& args, const Share& share) {
  const Range range = range_of(share.index, args.tokens, rows_per_share(args.bytes / 4));
  for (int64_t t = range.begin; t < range.end; ++t)
    memcpy(args.table + args.ids[t] * args.bytes, args.x + t * args.bytes, (size_t)args.bytes);
}

}  // namespace mg
