#include <doctest/doctest.h>

#include <algorithm>

#include "runtime/lifetimes.h"
#include "runtime/pool.h"

using namespace mg;

namespace {

uint32_t next_random(uint32_t* state) {
  *state = *state * 1664525 + 1013904223;
  return *state >> 8;
}

Lifetime life(size_t bytes, int64_t from, int64_t until = Lifetime::kAlive) {
  Lifetime block;
  block.bytes = bytes, block.from = from, block.until = until;
  return block;
}

// Whether blocks that live at the same time lie apart, guests leave before their host is needed, and all fit.
bool sound(const std::vector<Lifetime>& blocks, size_t arena) {
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Lifetime& a = blocks[i];
    if (a.until == Lifetime::kAlive) continue;
    if (a.offset % 64) return false;
    const bool hosted = a.host != Lifetime::kArena;
    const size_t room = hosted ? (blocks[a.host].bytes + 63) / 64 * 64 : arena;
    if (a.offset + a.bytes > room) return false;
    if (hosted && (blocks[a.host].until != Lifetime::kAlive || a.until > blocks[a.host].from)) return false;
    for (size_t j = 0; j < i; ++j) {
      const Lifetime& b = blocks[j];
      if (b.until == Lifetime::kAlive || b.host != a.host || b.until <= a.from || a.until <= b.from) continue;
      if (a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes) return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE("the most bytes alive at a moment") {
  CHECK(most_alive({}) == 0);
  CHECK(most_alive({life(100, 0, 3), life(50, 1, 2), life(70, 4, 5)}) == 150);
  CHECK(most_alive({life(100, 0, 1), life(70, 1, 2)}) == 100);  // given back before the next is taken
  CHECK(most_alive({life(100, 0), life(30, 5)}) == 130);
}

TEST_CASE("blocks that never meet share memory") {
  std::vector<Lifetime> chain;
  for (int64_t i = 0; i < 20; ++i) chain.push_back(life(6400, 2 * i, 2 * i + 3));
  CHECK(place(chain) == 2 * 6400);
  CHECK(sound(chain, 2 * 6400));
  // The last of the chain is the result: earlier ones lie in it while it is not needed.
  chain.back().until = Lifetime::kAlive;
  CHECK(place(chain) == 6400);
  CHECK(sound(chain, 6400));
  std::vector<Lifetime> none;
  CHECK(place(none) == 0);
}

// Activations live from their layer's forward to its backward, gradients and temporaries a moment.
TEST_CASE("a training step is placed within 5 % of its bound") {
  uint32_t random = 1;
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<Lifetime> blocks;
    const int64_t layers = 4 + (int64_t)next_random(&random) % 20, end = 100 * layers;
    for (int64_t layer = 0; layer < layers; ++layer)
      for (int64_t op = 0; op < 8; ++op) {
        const size_t bytes = 64 * (1 + next_random(&random) % (op % 3 ? 40 : 4000));
        const int64_t from = 10 * (8 * layer + op);
        blocks.push_back(life(bytes, from, 16 * end - from));
        blocks.push_back(life(bytes, 16 * end - from - 15, 16 * end - from - 3));
        if (op % 2) blocks.push_back(life(bytes / 2 + 1, from + 1, from + 4));
      }
    const size_t arena = place(blocks);
    CHECK(sound(blocks, arena));
    CHECK((double)arena <= 1.05 * (double)most_alive(blocks));
  }
}

// Workers have halves of the rows, so a line that changes hands is one in the first half of one block and the second of the next.
TEST_CASE("blocks of equal size share places, whose lines stay with their workers") {
  constexpr size_t kSmall = (size_t)1 << 17, kLarge = 4 * kSmall, kPart = 1 << 12;
  std::vector<Lifetime> blocks;
  const int64_t layers = 6, ops = 9, end = 4 * layers * ops;
  for (int64_t op = 0; op < layers * ops; ++op) {
    const size_t bytes = op % ops == 4 || op % ops == 5 ? kLarge : kSmall;
    blocks.push_back(life(bytes, 2 * op, end - 2 * op));
    blocks.push_back(life(bytes, end - 2 * op - 3, end - 2 * op + 1));
    if (op % 3 == 0) blocks.push_back(life(kSmall, 2 * op, 2 * op + 3));
  }
  const size_t arena = place(blocks);
  CHECK(sound(blocks, arena));
  CHECK((double)arena <= 1.05 * (double)most_alive(blocks));
  std::sort(blocks.begin(), blocks.end(), [](const Lifetime& a, const Lifetime& b) { return a.from < b.from; });
  std::vector<int> owner(arena / kPart + 1, -1);
  int64_t written = 0, moved = 0;
  for (const Lifetime& block : blocks)
    for (size_t part = 0; part < block.bytes / kPart; ++part) {
      const int half = part >= block.bytes / kPart / 2;
      int& now = owner[block.offset / kPart + part];
      moved += now >= 0 && now != half;
      now = half;
      ++written;
    }
  CHECK((double)moved <= 0.05 * (double)written);
}

// Sizes as in a training step: few, and multiples of each other. Of two blocks that a third one meets, but which do not meet each
// other, one may lie within the other's place: what is behind the inner one is not free.
TEST_CASE("blocks of few sizes are placed soundly") {
  uint32_t random = 11;
  for (int trial = 0; trial < 400; ++trial) {
    std::vector<Lifetime> blocks;
    const int64_t end = 400, count = 20 + trial % 60;
    for (int64_t i = 0; i < count; ++i) {
      constexpr size_t kParts[] = {1, 1, 1, 3, 4, 4, 12};
      const int64_t from = next_random(&random) % end, most = end - from;
      const int64_t lasts = next_random(&random) % 3 ? 2 : 1 + next_random(&random) % most;
      blocks.push_back(life(kParts[next_random(&random) % 7] << 16, from, from + lasts));
    }
    const size_t arena = place(blocks);
    CHECK(sound(blocks, arena));
    CHECK(arena >= most_alive(blocks));
  }
}

TEST_CASE("random lifetimes are placed soundly") {
  uint32_t random = 7;
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<Lifetime> blocks;
    for (int i = 0; i < 120; ++i) {
      const int64_t from = next_random(&random) % 1000;
      const size_t size = next_random(&random), bytes = trial % 2 ? size % 5000 : 40000 * (1 + size % 4);
      blocks.push_back(life(bytes, from, from + 1 + next_random(&random) % 200));
      if (i % 17 == 0) blocks.back().until = Lifetime::kAlive;
    }
    const size_t arena = place(blocks);
    CHECK(sound(blocks, arena));
  }
}

TEST_CASE("a pool's log") {
  Pool pool(true);
  char* const before = static_cast<char*>(pool.take(100));
  size_t offset = 0;
  CHECK(pool.logged(before, &offset) == -1);
  pool.begin_log();
  char* const a = static_cast<char*>(pool.take(1000));
  char* const b = static_cast<char*>(pool.take(1000));
  CHECK(pool.logged(a + 40, &offset) == 0);
  CHECK(offset == 40);
  CHECK(pool.logged(b + 1000, &offset) == 1);  // one past the end
  CHECK(pool.logged(before, &offset) == -1);
  pool.release(a);
  pool.release(before);  // older than the log
  CHECK(pool.logged(a, &offset) == -1);
  char* const c = static_cast<char*>(pool.take(1000));
  CHECK(pool.logged(c, &offset) == 2);
  pool.release(c);
  std::vector<char*> payloads;
  const std::vector<Lifetime> blocks = pool.end_log(&payloads);
  REQUIRE(blocks.size() == 3);
  CHECK(payloads == std::vector<char*>{a, b, c});
  CHECK(blocks[0].until == 2);
  CHECK(blocks[1].until == Lifetime::kAlive);
  CHECK(blocks[2].from == 3);
  CHECK(most_alive(blocks) == 2000);
  pool.free_cached();
  CHECK(pool.stats().cached_bytes == 0);
  pool.release(b);
}
