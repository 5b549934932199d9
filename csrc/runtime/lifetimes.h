// Where the blocks of a recording lie: blocks that never live at the same time may share memory. Pure functions.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <vector>

namespace mg {

// A block, and the moments between which it lives, counted in takes and releases. `until` is kAlive for a block that
// outlives the recording.
struct Lifetime {
  static constexpr int64_t kAlive = INT64_MAX;
  size_t bytes = 0;
  int64_t from = 0, until = kAlive;
  size_t offset = 0;
};

// The most bytes that live at one moment: no placement needs less.
size_t most_alive(const std::vector<Lifetime>& blocks);
// Gives every block that ends an offset, a multiple of 64; the size of the whole. Blocks that outlive are left out.
size_t place(std::vector<Lifetime>& blocks);

}  // namespace mg
