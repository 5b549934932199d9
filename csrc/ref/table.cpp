#include "ref/ref.h"

namespace mg::ref {

const KernelTable<double>& table() {
  static const KernelTable<double> kernels = {
#define X(name, Args) &name,
      MG_KERNELS(X)
#undef X
  };
  return kernels;
}

}  // namespace mg::ref
