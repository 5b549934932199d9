#include "kernels/gemm.inl.h"
#include "kernels/attention.inl.h"

template <class T> static void attention(const AttentionArgs<T>& args, const Share& share) {
  attention_of<AttentionWords<T>>(args, share);
}
template <class T> static void attention_backward(const AttentionBackwardArgs<T>& args, const Share& share) {
  attention_backward_of<AttentionWords<T>>(args, share);
}
