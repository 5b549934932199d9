// Which nodes of a recording may run side by side. Pure functions.
#pragma once
#include <stddef.h>
#include <vector>

namespace mg {

// Memory that a node reads or writes, as numbers: an address, or a place in whatever stands for one.
struct Touch {
  size_t node, begin, bytes;
  bool written;
};

struct Stretch {
  size_t first, nodes;
};

// Stretches of two nodes and more, in order, in each of which nothing that one node writes is read or written by another.
// `touches` are in order of nodes; where `alone` the node is in no stretch. The longest has `most` nodes.
std::vector<Stretch> side_by_side(const std::vector<Touch>& touches, const std::vector<bool>& alone, size_t most);

}  // namespace mg
