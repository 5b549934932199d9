#include "runtime/program.h"

#include <chrono>

#include "core/error.h"
#include "runtime/platform.h"
#include "runtime/pool.h"

namespace mg {
namespace {

thread_local Program* t_recording = nullptr;

Work work_of(const Node& node) {
  return {node.call, node.kernel, node.args, node.shares, node.scratch_bytes, node.ahead.begin ? &node.ahead : nullptr};
}

// Weights go through all caches, so what lies between them is no longer there when its turn comes.
void fetch(const Node& node) {
  const char* const begin = reinterpret_cast<const char*>(&node);
  for (size_t at = 0; at < offsetof(Node, args) + node.arg_bytes; at += 64) __builtin_prefetch(begin + at);
}

}  // namespace

Program* recording() { return t_recording; }

Program::Program() : pool_(std::make_shared<Pool>(true)) {}
Program::~Program() {
  if (t_recording == this) abandon();
}

void Program::begin() {
  if (t_recording) throw recording_error("record: this thread is already recording a program");
  if (recorded_) throw recording_error("record: this program has been recorded already");
  t_recording = this;
  recording_ = true;
  // Lifetimes seen while recording become the memory plan of the replay: a block freed now is reused by later nodes only.
  pool_->begin_log();
  set_current_pool(pool_);
}

void Program::end() {
  if (t_recording != this) throw recording_error("record: end() by a thread that is not recording this program");
  t_recording = nullptr;
  recording_ = false;
  set_current_pool(nullptr);
  plan_memory();
  look_ahead();
  recorded_ = true;
}

void Program::abandon() noexcept {
  if (t_recording == this) {
    t_recording = nullptr;
    set_current_pool(nullptr);
  }
  recording_ = false;
  pool_->end_log();
  pointers_.clear();
  nodes_.clear();
  hosts_.clear();
  keep_.clear();
  kept_.clear();
}

void Program::append(const Node& node, std::initializer_list<Use> uses) {
  nodes_.push_back(node);
  find_pointers(node);
  for (const Use& use : uses) {
    const Array* const array = use.array;
    if (!array || !array->block) continue;
    // Blocks of the private pool live as long as the pool; only what comes from outside must be held.
    if (kept_.insert(array->block.get()).second && !pool_->owns(array->block.get())) keep_.push_back(array->block);
  }
}

// Arguments are plain structs, so a pointer is an aligned word that is an address inside a block. A number that looks
// like one would have to be a 64-bit seed that equals an address of this very process.
void Program::find_pointers(const Node& node) {
  for (size_t at = 0; at + sizeof(char*) <= node.arg_bytes; at += sizeof(char*)) {
    const char* word;
    memcpy(&word, node.args + at, sizeof word);
    size_t offset;
    const int64_t block = pool_->logged(word, &offset);
    if (block >= 0) pointers_.push_back({nodes_.size() - 1, at, block, offset});
  }
}

// While recording, a block was wherever one of its size was free. Now that all lifetimes are known, those that have
// ended get places in one arena, and the nodes follow. What still lives (results, constants) stays where it is.
void Program::plan_memory() {
  std::vector<char*> payloads;
  std::vector<Lifetime> blocks = pool_->end_log(&payloads);
  live_bytes_ = (int64_t)most_alive(blocks);
#ifndef MG_GUARD_BYTES  // guards stand around the blocks where they are
  arena_bytes_ = place(blocks);
  pool_->free_cached();  // first: both at once would be the peak of the whole run
  const size_t bytes = arena_bytes_;
  constexpr size_t kMapped = (size_t)4 << 20;  // as in the pool
  if (bytes >= kMapped) arena_ = std::shared_ptr<void>(take_pages(bytes), [bytes](void* p) { if (p) give_pages(p, bytes); });
  else if (bytes) arena_ = std::shared_ptr<void>(take_lines(bytes), give_lines);
  if (bytes && !arena_) {
    nodes_.clear();
    throw std::bad_alloc();
  }
  for (const Pointer& pointer : pointers_) {
    const Lifetime& block = blocks[(size_t)pointer.block];
    if (block.until == Lifetime::kAlive) continue;
    const char* const place = block.host == Lifetime::kArena ? static_cast<const char*>(arena_.get()) : payloads[block.host];
    const char* const moved = place + block.offset + pointer.offset;
    memcpy(nodes_[pointer.node].args + pointer.at, &moved, sizeof moved);
  }
#endif
  pointers_ = {};
}

// Each node is told whose weights come next; after the last ones those of the next replay.
void Program::look_ahead() {
  Weights next;
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = nodes_.size(); i-- > 0;) {
      Node& node = nodes_[i];
      node.ahead = next;
      if (node.weights) next = {node.weights, node.args, node.shares};
    }
  }
}

void Program::hold(const Array& array) {
  if (array.block) keep_.push_back(array.block);
}

void Program::append_host(const char* name, std::function<void()> body) {
  Node node;
  node.name = name;
  node.host = (int32_t)hosts_.size();
  hosts_.push_back(std::move(body));
  nodes_.push_back(node);
}

template <class Each> void Program::run_nodes(Each each) {
  if (!recorded_) throw recording_error("run: the program has not been recorded");
  if (t_recording) throw recording_error("run: a program cannot be replayed while this thread is recording");
  if (running_.exchange(true))
    throw recording_error("run: the program is already running; it owns its memory and runs once at a time");
  struct Running {
    std::atomic<bool>& flag;
    ~Running() { flag = false; }
  } guard{running_};
  size_t i = 0;
  while (i < nodes_.size()) {
    if (nodes_[i].host >= 0) {
      // The team is not held while Python runs: the callback may launch work of its own.
      each([&] { hosts_[(size_t)nodes_[i++].host](); });
      continue;
    }
    Job job;
    for (; i < nodes_.size() && nodes_[i].host < 0; ++i) {
      if (i + 1 < nodes_.size()) fetch(nodes_[i + 1]);
      each([&] { job.run(work_of(nodes_[i])); });
    }
  }
}

void Program::run() {
  run_nodes([](auto node) { node(); });
}

std::vector<double> Program::profile() {
  std::vector<double> seconds;
  seconds.reserve(nodes_.size());
  run_nodes([&](auto node) {
    const auto start = std::chrono::steady_clock::now();
    node();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  });
  return seconds;
}

std::string Program::dump() const {
  std::string text;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    text += std::to_string(i) + " " + node.name;
    if (node.host >= 0)
      text += " [host]";
    else
      text += " shares=" + std::to_string(node.shares) + " scratch=" + std::to_string(node.scratch_bytes);
    text += "\n";
  }
  return text;
}

std::vector<std::string> Program::names() const {
  std::vector<std::string> names;
  for (const Node& node : nodes_) names.emplace_back(node.name);
  return names;
}

int64_t Program::bytes() const {
  const PoolStats stats = pool_->stats();
  return (int64_t)arena_bytes_ + stats.live_bytes + stats.cached_bytes;
}

namespace detail {

void launch(Node& node, std::initializer_list<Use> uses) {
  if (t_recording) t_recording->append(node, uses);
  if (node.shares == 1 && node.scratch_bytes == 0) {
    const DefaultFloats floats;
    node.call(node.kernel, node.args, Share{0, 1, nullptr});
    return;
  }
  Job job;
  job.run(work_of(node));
}

}  // namespace detail

void launch_host(const char* name, std::function<void()> body) {
  Program* program = t_recording;
  if (!program) {
    body();
    return;
  }
  program->append_host(name, body);
  // The body is one node: what it launches or allocates itself belongs to the callback, not to the recording.
  struct Suspend {
    Program* program;
    std::shared_ptr<Pool> pool;
    explicit Suspend(Program* p) : program(p), pool(current_pool()) {
      t_recording = nullptr;
      set_current_pool(nullptr);
    }
    ~Suspend() {
      t_recording = program;
      set_current_pool(pool);
    }
  } suspend(program);
  body();
}

}  // namespace mg
