#include "runtime/neighbours.h"

#include <algorithm>

namespace mg {
namespace {

bool meet(const Touch& a, const Touch& b) {
  return (a.written || b.written) && a.bytes && b.bytes && a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes;
}

}  // namespace

std::vector<Stretch> side_by_side(const std::vector<Touch>& touches, const std::vector<bool>& alone, size_t most) {
  std::vector<Stretch> stretches;
  const auto of = [&](size_t node) {
    return std::lower_bound(touches.begin(), touches.end(), node, [](const Touch& touch, size_t n) { return touch.node < n; });
  };
  for (size_t first = 0, end; first < alone.size(); first = end) {
    const auto begin = of(first);
    auto last = of(first + 1);
    for (end = first + 1; !alone[first] && end < alone.size() && end - first < most && !alone[end]; ++end) {
      const auto next = of(end + 1);
      if (std::any_of(last, next, [&](const Touch& a) {
            return std::any_of(begin, last, [&](const Touch& b) { return meet(a, b); });
          }))
        break;
      last = next;
    }
    if (end - first > 1) stretches.push_back({first, end - first});
  }
  return stretches;
}

}  // namespace mg
