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
  static constexpr size_t kArena = SIZE_MAX;
  size_t host = kArena, offset = 0;  // where it is placed: within the arena or another block
};

// The most bytes that live at one moment: no placement needs less.
size_t most_alive(const std::vector<Lifetime>& blocks);
// Gives every block that ends a place, at a multiple of 64, where one of its size was if there is room; the size of the
// arena. Blocks that outlive the recording stay where they are, but others may lie in them (`host` is the index) before they
// are needed themselves.
size_t place(std::vector<Lifetime>& blocks);

}  // namespace mg
