#include "runtime/lifetimes.h"

#include <algorithm>
#include <utility>

namespace mg {
namespace {

constexpr size_t kLine = 64;
size_t rounded(size_t bytes) { return (std::max<size_t>(bytes, 1) + kLine - 1) / kLine * kLine; }

// Each block in the given order at the lowest gap that is free for its whole life.
size_t place_in(const std::vector<size_t>& order, const std::vector<Lifetime>& blocks, std::vector<size_t>& offsets) {
  size_t whole = 0;
  std::vector<size_t> placed;
  std::vector<std::pair<size_t, size_t>> taken;  // begin, end
  for (const size_t index : order) {
    const Lifetime& block = blocks[index];
    taken.clear();
    for (const size_t other : placed)
      if (blocks[other].from < block.until && block.from < blocks[other].until)
        taken.emplace_back(offsets[other], offsets[other] + rounded(blocks[other].bytes));
    std::sort(taken.begin(), taken.end());
    const size_t bytes = rounded(block.bytes);
    size_t at = 0;
    for (const auto& [begin, end] : taken) {
      if (begin >= at + bytes) break;
      at = std::max(at, end);
    }
    offsets[index] = at;
    placed.push_back(index);
    whole = std::max(whole, at + bytes);
  }
  return whole;
}

}  // namespace

size_t most_alive(const std::vector<Lifetime>& blocks) {
  std::vector<std::pair<int64_t, int64_t>> changes;
  for (const Lifetime& block : blocks) {
    changes.emplace_back(block.from, (int64_t)block.bytes);
    if (block.until != Lifetime::kAlive) changes.emplace_back(block.until, -(int64_t)block.bytes);
  }
  std::sort(changes.begin(), changes.end());
  int64_t alive = 0, most = 0;
  for (const auto& change : changes) most = std::max(most, alive += change.second);
  return (size_t)most;
}

size_t place(std::vector<Lifetime>& blocks) {
  std::vector<size_t> order;
  for (size_t i = 0; i < blocks.size(); ++i)
    if (blocks[i].until != Lifetime::kAlive) order.push_back(i);
  // Finding the least is hard (it is bin packing); the best of three simple orders comes within a few percent.
  auto lasts = [&](size_t i) { return blocks[i].until - blocks[i].from; };
  std::vector<size_t> offsets(blocks.size()), best;
  size_t least = SIZE_MAX;
  for (int attempt = 0; attempt < 3; ++attempt) {
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      if (attempt == 0) return blocks[a].bytes > blocks[b].bytes;
      if (attempt == 1) return lasts(a) > lasts(b);
      return (double)blocks[a].bytes * (double)lasts(a) > (double)blocks[b].bytes * (double)lasts(b);
    });
    const size_t whole = place_in(order, blocks, offsets);
    if (whole < least) least = whole, best = offsets;
  }
  for (const size_t index : order) blocks[index].offset = best[index];
  return order.empty() ? 0 : least;
}

}  // namespace mg
