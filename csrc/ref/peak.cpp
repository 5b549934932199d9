#include "ref/ref.h"

namespace mg::ref {

void peak(const PeakArgs<double>& args, const Share&) {
  for (int64_t share = 0; share < args.shares; ++share) {
    double x = 2.0;
    for (int64_t flops = 0; flops < kPeakGrain; flops += 2) x = x * 0.5 + 0.5;
    args.y[share] = x;
  }
}

void read(const ReadArgs<double>& args, const Share&) {
  for (int64_t chunk = 0; chunk * kReadGrain < args.n; ++chunk) {
    args.partial[chunk] = 0.0;
    for (int64_t i = chunk * kReadGrain; i < args.n && i < (chunk + 1) * kReadGrain; ++i) args.partial[chunk] += args.x[i];
  }
}

}  // namespace mg::ref
