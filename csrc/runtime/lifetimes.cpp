#include "runtime/lifetimes.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace mg {
namespace {

constexpr size_t kLine = 64;
size_t rounded(size_t bytes) { return (std::max<size_t>(bytes, 1) + kLine - 1) / kLine * kLine; }
// Behind a large block the next begins 5 lines further on: pool.cpp says why.
size_t end_of(const Lifetime& block) {
  return block.offset + rounded(block.bytes) + (block.bytes >= (size_t)1 << 20 ? 5 * kLine : 0);
}

// From this size on it counts who wrote a block's lines last: rows, and with them lines, are shared out alike among workers
// where sizes are equal, and a line that another worker wrote costs a trip to its cache.
constexpr size_t kShared = (size_t)1 << 16;

// A gap among the blocks that live at the same time: where, among those before `below`, one of the same size was, if there is
// such a place, else the lowest.
size_t gap_for(const Lifetime& block, const std::vector<size_t>& there, const std::vector<Lifetime>& blocks, size_t below) {
  std::vector<std::pair<size_t, size_t>> taken;  // begin, end
  for (const size_t other : there)
    if (blocks[other].from < block.until && block.from < blocks[other].until)
      taken.emplace_back(blocks[other].offset, end_of(blocks[other]));
  std::sort(taken.begin(), taken.end());
  // These need not live at the same time as each other, so one may lie within another: their union.
  size_t apart = 0;
  for (const auto& [begin, end] : taken) {
    if (apart > 0 && begin <= taken[apart - 1].second) taken[apart - 1].second = std::max(taken[apart - 1].second, end);
    else taken[apart++] = {begin, end};
  }
  taken.resize(apart);
  const size_t bytes = rounded(block.bytes);
  if (bytes >= kShared) {
    size_t best = SIZE_MAX;
    for (const size_t other : there) {
      const size_t at = blocks[other].offset;
      if (blocks[other].bytes != block.bytes || at >= best || at + bytes > below) continue;
      const auto next = std::lower_bound(taken.begin(), taken.end(), std::make_pair(at, (size_t)0));  // begins at `at` or later
      if (next != taken.end() && next->first < at + bytes) continue;
      if (next != taken.begin() && std::prev(next)->second > at) continue;
      best = at;
    }
    if (best != SIZE_MAX) return best;
  }
  size_t at = 0;
  for (const auto& [begin, end] : taken) {
    if (begin >= at + bytes) break;
    at = std::max(at, end);
  }
  return at;
}

// Each block in the given order at the lowest gap that is free for its whole life, in a host if one has room.
size_t place_in(const std::vector<size_t>& order, const std::vector<size_t>& hosts, std::vector<Lifetime>& blocks) {
  size_t whole = 0;
  std::vector<size_t> arena;
  std::vector<std::vector<size_t>> guests(hosts.size());
  for (const size_t index : order) {
    Lifetime& block = blocks[index];
    block.host = Lifetime::kArena;
    const size_t bytes = rounded(block.bytes);
    for (size_t i = 0; i < hosts.size() && block.host == Lifetime::kArena; ++i) {
      const Lifetime& host = blocks[hosts[i]];
      if (block.until > host.from || bytes > rounded(host.bytes)) continue;
      block.offset = gap_for(block, guests[i], blocks, rounded(host.bytes));
      if (block.offset + bytes > rounded(host.bytes)) continue;
      block.host = hosts[i];
      guests[i].push_back(index);
    }
    if (block.host != Lifetime::kArena) continue;
    block.offset = gap_for(block, arena, blocks, whole);
    arena.push_back(index);
    whole = std::max(whole, block.offset + bytes);
  }
  return whole;
}

// How much changes hands from block to block, in parts: workers have halves, or more, of each one's rows.
size_t moved_parts(const std::vector<Lifetime>& blocks, size_t whole) {
  constexpr size_t kPart = 4096, kWorkers = 4;
  std::vector<const Lifetime*> in_time;
  for (const Lifetime& block : blocks)
    if (block.until != Lifetime::kAlive && block.host == Lifetime::kArena && block.bytes >= kShared) in_time.push_back(&block);
  std::sort(in_time.begin(), in_time.end(), [](const Lifetime* a, const Lifetime* b) { return a->from < b->from; });
  std::vector<signed char> owner(whole / kPart + 1, -1);
  size_t moved = 0;
  for (const Lifetime* block : in_time) {
    const size_t first = block->offset / kPart, parts = block->bytes / kPart;
    for (size_t i = 0; i < parts; ++i) {
      const signed char now = (signed char)(i * kWorkers / parts);
      signed char& last = owner[first + i];
      moved += last >= 0 && last != now;
      last = now;
    }
  }
  return moved;
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
  std::vector<size_t> order, hosts;
  for (size_t i = 0; i < blocks.size(); ++i) (blocks[i].until == Lifetime::kAlive ? hosts : order).push_back(i);
  // Finding the least is hard (it is bin packing); the best of four simple orders comes within a few percent.
  auto lasts = [&](size_t i) { return blocks[i].until - blocks[i].from; };
  struct Attempt {
    std::vector<Lifetime> blocks;
    size_t whole, moved;
  };
  std::vector<Attempt> attempts;
  for (int attempt = 0; attempt < 4; ++attempt) {
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      if (attempt == 0) return blocks[a].bytes > blocks[b].bytes;
      if (attempt == 1) return lasts(a) > lasts(b);
      if (attempt == 2) return blocks[a].from > blocks[b].from;
      return (double)blocks[a].bytes * (double)lasts(a) > (double)blocks[b].bytes * (double)lasts(b);
    });
    const size_t whole = place_in(order, hosts, blocks);
    attempts.push_back({blocks, whole, moved_parts(blocks, whole)});
  }
  // Of those within 1 % of the least, the one whose lines move least.
  const auto smaller = [](const Attempt& a, const Attempt& b) { return a.whole < b.whole; };
  const size_t least = std::min_element(attempts.begin(), attempts.end(), smaller)->whole;
  const Attempt* best = nullptr;
  for (const Attempt& each : attempts)
    if (each.whole <= least + least / 100 && (!best || each.moved < best->moved)) best = &each;
  blocks = best->blocks;
  return best->whole;
}

}  // namespace mg
