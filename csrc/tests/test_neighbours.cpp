#include <doctest/doctest.h>
#include <stdint.h>

#include "runtime/neighbours.h"

using namespace mg;

namespace {

bool same(const std::vector<Stretch>& got, const std::vector<Stretch>& expected) {
  bool same = got.size() == expected.size();
  for (size_t i = 0; same && i < got.size(); ++i) same = got[i].first == expected[i].first && got[i].nodes == expected[i].nodes;
  return same;
}

bool apart(const std::vector<Touch>& touches, size_t a, size_t b) {
  for (const Touch& x : touches)
    for (const Touch& y : touches)
      if (x.node == a && y.node == b && (x.written || y.written))
        for (size_t i = x.begin; i < x.begin + x.bytes; ++i)
          if (i >= y.begin && i < y.begin + y.bytes) return false;
  return true;
}

}  // namespace

TEST_CASE("neighbours that touch nothing that the others write") {
  const std::vector<bool> free(3, false);
  // Two read what none writes; the third writes what the second read, or reads what the first wrote, or writes it again.
  const Touch first{0, 100, 10, false}, out{0, 200, 10, true}, second{1, 105, 10, false}, other{1, 210, 10, true};
  CHECK(same(side_by_side({first, out, second, other}, free, 8), {{0, 3}}));
  CHECK(same(side_by_side({first, out, second, other, {2, 114, 1, true}}, free, 8), {{0, 2}}));
  CHECK(same(side_by_side({first, out, second, other, {2, 209, 1, false}}, free, 8), {{0, 2}}));
  CHECK(same(side_by_side({first, out, second, other, {2, 195, 6, true}}, free, 8), {{0, 2}}));
  CHECK(same(side_by_side({first, out, second, other, {2, 115, 85, true}}, free, 8), {{0, 3}}));
  CHECK(same(side_by_side({{0, 200, 10, true}, {1, 200, 10, false}, {2, 0, 10, true}}, free, 8), {{1, 2}}));
  CHECK(same(side_by_side({}, free, 2), {{0, 2}}));
  CHECK(same(side_by_side({}, {false, true, false, false}, 8), {{2, 2}}));
  CHECK(side_by_side({}, {}, 8).empty());
}

TEST_CASE("stretches of random nodes are apart, and end where they must") {
  uint32_t random = 7;
  const auto next = [&](uint32_t below) { return (random = random * 1664525 + 1013904223) / 65536 % below; };
  for (int trial = 0; trial < 300; ++trial) {
    const size_t nodes = next(12), most = 2 + next(5);
    std::vector<Touch> touches;
    std::vector<bool> alone;
    for (size_t node = 0; node < nodes; ++node) {
      alone.push_back(next(10) == 0);
      for (uint32_t i = next(4); i > 0; --i) touches.push_back({node, next(60), next(8), next(3) == 0});
    }
    size_t at = 0;
    for (const Stretch& stretch : side_by_side(touches, alone, most)) {
      const size_t end = stretch.first + stretch.nodes;
      CHECK((stretch.first >= at && stretch.nodes > 1 && stretch.nodes <= most && end <= nodes));
      for (size_t b = stretch.first; b < end; ++b) {
        CHECK(!alone[b]);
        for (size_t a = stretch.first; a < b; ++a) CHECK(apart(touches, a, b));
      }
      if (end < nodes && stretch.nodes < most && !alone[end]) {
        bool meets = false;
        for (size_t a = stretch.first; a < end; ++a) meets |= !apart(touches, a, end);
        CHECK(meets);
      }
      at = end;
    }
  }
}
