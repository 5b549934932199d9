// QSums of a tile, R rows of activations by V vectors of columns, where dot() adds up a lane's four products: a register each.
template <int R, int V, int> struct QSums {
  static constexpr bool kLess128 = false;
  static constexpr int64_t kQuads = INT64_MAX;
  Ints at[R][V];
  inline __attribute__((always_inline)) void start(int r, Ints x) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) at[r][v] = x;
  }
  template <int Stride, int N, class Take> inline __attribute__((always_inline)) void add(const Take& take, const int8_t* a) {
#pragma GCC unroll 8
    for (int q = 0; q < N; ++q) {
      forget_loads(kRegisters == 16 && R * V > 8);
      Ints parts[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) parts[v] = take(q, v);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Quads x = quads(a + 4 * (q * Stride + r));
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) at[r][v] = dot(at[r][v], parts[v], x);
      }
    }
  }
  inline void fold() {}
  inline Ints get(int r, int v) const { return at[r][v]; }
};
