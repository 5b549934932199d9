#include "runtime/program.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "runtime/platform.h"
#include "runtime/pool.h"

namespace mg {
namespace {

// A group is one node to the team: no more than this, so that dealing out stays cheap beside the work. Nodes of more shares
// wait little at their ends.
constexpr size_t kMostNodes = 8;
constexpr int64_t kMostShares = 256;
// Groups keep memory longer. By what part of it a plan may grow for them.
constexpr int64_t kGrowth = 24;

thread_local Program* t_recording = nullptr;
thread_local std::shared_ptr<Program> t_owner;  // of what is being recorded: it outlives whoever else holds it

Work work_of(const Node& node) {
  return {node.call, node.kernel, node.args, node.shares, node.scratch_bytes, node.ahead.begin ? &node.ahead : nullptr};
}

// Weights go through all caches, so what lies between them is no longer there when its turn comes.
void fetch(const Node& node) {
  const char* const begin = reinterpret_cast<const char*>(&node);
  for (size_t at = 0; at < offsetof(Node, args) + node.arg_bytes; at += 64) __builtin_prefetch(begin + at);
}

#ifdef MG_GUARD_BYTES
// Aborts if a kernel is given memory of an array that its binding does not name, or wrote to what it is said to read: groups
// rely on both.
class Reads {
 public:
  Reads(const Node& node, std::initializer_list<Use> uses) : name_(node.name) {
    for (size_t at = 0; at + sizeof(char*) <= node.arg_bytes; at += sizeof(char*)) {
      const char* word;
      memcpy(&word, node.args + at, sizeof word);
      if (!in_live_block(word) || named(word, uses)) continue;
      fprintf(stderr, "microgpt: %s is given an array that its uses do not name, at byte %zu of its arguments\n", name_, at);
      abort();
    }
    for (const Use& use : uses)
      if (use.array && use.array->data && use.kind != Use::written && !written(*use.array, uses))
        sums_.emplace_back(use.array, sum_of(*use.array));
  }
  void check() const {
    for (const auto& [array, sum] : sums_) {
      if (sum_of(*array) == sum) continue;
      fprintf(stderr, "microgpt: %s wrote to an array of %zu bytes that it is said to read\n", name_, array->bytes());
      abort();
    }
  }

 private:
  static bool named(const char* p, std::initializer_list<Use> uses) {
    return std::any_of(uses.begin(), uses.end(), [p](const Use& use) {
      return use.array && use.array->data && use.array->data <= p && p <= use.array->data + use.array->bytes();
    });
  }
  static bool written(const Array& array, std::initializer_list<Use> uses) {
    return std::any_of(uses.begin(), uses.end(), [&](const Use& use) {
      return use.kind == Use::written && use.array && use.array->data < array.data + array.bytes() &&
             array.data < use.array->data + use.array->bytes();
    });
  }
  static uint64_t sum_of(const Array& array) {
    uint64_t sum = 1;
    for (size_t i = 0; i < array.bytes(); ++i) sum = (sum ^ (unsigned char)array.data[i]) * 0x100000001b3;
    return sum;
  }
  const char* name_;
  std::vector<std::pair<const Array*, uint64_t>> sums_;
};
#else
struct Reads {
  Reads(const Node&, std::initializer_list<Use>) {}
  void check() const {}
};
#endif

}  // namespace

Program* recording() { return t_recording; }

Program::Program() : pool_(std::make_shared<Pool>(true)) {}
Program::~Program() {
  if (t_recording == this) drop();
}

// Of one thread at a time.
struct Program::Running {
  Program& program;
  Running(Program& p, const char* what) : program(p) {
    if (program.running_.exchange(true))
      throw recording_error(std::string(what) + ": the program is already running; it owns its memory and runs once at a time");
  }
  ~Running() { program.running_ = false; }
};

void Program::begin() {
  if (t_recording) throw recording_error("record: this thread is already recording a program");
  if (recorded_) throw recording_error("record: this program has been recorded already");
  if (recording_) throw recording_error("record: another thread is recording this program");
  pool_ = std::make_shared<Pool>(true);  // blocks of an abandoned recording are numbered by its log
  set_current_pool(nullptr);  // before t_owner: at a thread's end they go in the opposite order, and it needs the other
  t_recording = this;
  t_owner = weak_from_this().lock();
  recording_ = true;
  // Lifetimes seen while recording become the memory plan of the replay: a block freed now is reused by later nodes only.
  pool_->begin_log();
  set_current_pool(pool_);
}

void Program::end() {
  if (t_recording != this) throw recording_error("record: end() by a thread that is not recording this program");
  const std::shared_ptr<Program> owner = std::move(t_owner);
  t_recording = nullptr;
  recording_ = false;
  set_current_pool(nullptr);
  try {
    plan_memory();
    look_ahead();
    deal_out();
  } catch (...) {
    drop();
    throw;
  }
  recorded_ = true;
}

void Program::abandon() {
  if (recording_ && t_recording != this) throw recording_error("abandon: another thread is recording this program, or this one is in its callback");
  const std::shared_ptr<Program> owner = recording_ ? std::move(t_owner) : nullptr;
  const Running running(*this, "abandon");
  drop();
}

void Program::drop() noexcept {
  if (t_recording == this) {
    t_recording = nullptr;
    set_current_pool(nullptr);
  }
  recording_ = recorded_ = false;
  pool_->end_log();
  pointers_.clear();
  touched_.clear();
  clocks_.clear();
  groups_.clear();
  nodes_.clear();
  hosts_.clear();
  checks_.clear();
  keep_.clear();
  kept_.clear();
}

void Program::append(const Node& node, std::initializer_list<Use> uses) {
  nodes_.push_back(node);
  clocks_.resize(nodes_.size(), pool_->log_clock());
  find_pointers(node);
  for (const Use& use : uses) {
    const Array* const array = use.array;
    if (!array) continue;
    find_touched(*array, use.kind == Use::written);
    if (!array->block) continue;
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

void Program::find_touched(const Array& array, bool written) {
  if (!array.data) return;
  size_t offset;
  const int64_t block = pool_->logged(array.data, &offset);
  if (block < 0) offset = reinterpret_cast<size_t>(array.data);
  touched_.push_back({nodes_.size() - 1, block, offset, array.bytes(), written});
}

// While recording, a block was wherever one of its size was free. Now that all lifetimes are known, those that have
// ended get places in one arena, and the nodes follow. What still lives (results, constants) stays where it is.
void Program::plan_memory() {
  std::vector<char*> payloads;
  std::vector<Lifetime> blocks = pool_->end_log(&payloads);
  live_bytes_ = (int64_t)most_alive(blocks);
#ifdef MG_GUARD_BYTES  // guards stand around the blocks where they are
  std::vector<size_t> begins;
  for (char* const payload : payloads) begins.push_back(reinterpret_cast<size_t>(payload));
  find_groups(begins);
#else
  arena_bytes_ = place_groups(blocks, payloads);
  pool_->free_cached();  // first: both at once would be the peak of the whole run
  const size_t bytes = arena_bytes_;
  constexpr size_t kMapped = (size_t)4 << 20;  // as in the pool
  if (bytes >= kMapped) arena_ = std::shared_ptr<void>(take_pages(bytes), [bytes](void* p) { if (p) give_pages(p, bytes); });
  else if (bytes) arena_ = std::shared_ptr<void>(take_lines(bytes), give_lines);
  if (bytes && !arena_) throw std::bad_alloc();
  for (const Pointer& pointer : pointers_) {
    const Lifetime& block = blocks[(size_t)pointer.block];
    if (block.until == Lifetime::kAlive) continue;
    const char* const place = block.host == Lifetime::kArena ? static_cast<const char*>(arena_.get()) : payloads[block.host];
    const char* const moved = place + block.offset + pointer.offset;
    memcpy(nodes_[pointer.node].args + pointer.at, &moved, sizeof moved);
  }
#endif
  pointers_ = {};
  touched_ = {};
  clocks_ = {};
}

// Finds groups and a place in the arena for each block that ends; the size of the arena.
size_t Program::place_groups(std::vector<Lifetime>& blocks, const std::vector<char*>& payloads) {
  constexpr size_t kApart = (size_t)1 << 60;  // from what is outside
  std::vector<size_t> begins;
  size_t next = kApart;
  for (const Lifetime& block : blocks) begins.push_back(next), next += block.bytes + 1;
  find_groups(begins);
  if (groups_.empty()) return place(blocks);
  // Nodes side by side do not follow each other, so what one of them gives back is not another's yet.
  std::vector<Lifetime> longer = blocks;
  for (const Group& group : groups_) {
    const int64_t begin = clocks_[group.first], end = clocks_[group.first + group.nodes - 1];
    for (Lifetime& block : longer)
      if (block.until >= begin && block.until < end) block.until = end;
  }
  const size_t bytes = place(blocks), for_groups = place(longer);
  if (for_groups <= bytes + bytes / kGrowth) {
    blocks = std::move(longer);
    return for_groups;
  }
  // Then only those whose memory is apart as it is.
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Lifetime& block = blocks[i];
    begins[i] = block.until == Lifetime::kAlive      ? reinterpret_cast<size_t>(payloads[i])
                : block.host == Lifetime::kArena ? kApart + block.offset
                                                 : reinterpret_cast<size_t>(payloads[block.host]) + block.offset;
  }
  find_groups(begins);
  return bytes;
}

// `begins`: a place for each block of the log.
void Program::find_groups(const std::vector<size_t>& begins) {
  groups_.clear();
  std::vector<Touch> touches;
  for (const Touched& each : touched_)
    touches.push_back({each.node, each.at + (each.block < 0 ? 0 : begins[(size_t)each.block]), each.bytes, each.written});
  // Nothing is known of a node without arrays, or with a pointer to what is in none of its arrays.
  std::vector<bool> alone(nodes_.size(), true);
  for (const Touched& each : touched_) {
    const Node& node = nodes_[each.node];
    alone[each.node] = node.host >= 0 || node.shares > kMostShares;
  }
  auto from = touched_.begin();
  for (const Pointer& pointer : pointers_) {
    while (from != touched_.end() && from->node < pointer.node) ++from;
    bool known = false;
    for (auto each = from; each != touched_.end() && each->node == pointer.node; ++each)
      known |= each->block == pointer.block && each->at <= pointer.offset && pointer.offset <= each->at + each->bytes;
    if (!known) alone[pointer.node] = true;
  }
  for (const Stretch& stretch : side_by_side(touches, alone, kMostNodes)) {
    const auto begin = nodes_.begin() + (std::ptrdiff_t)stretch.first;
    // Where each node is one share, a thread is faster than a team.
    if (std::any_of(begin, begin + (std::ptrdiff_t)stretch.nodes, [](const Node& node) { return node.shares > 1; }))
      groups_.push_back({stretch.first, stretch.nodes, 0, {}});
  }
}

// Each worker's stretch of the shares has its own part of every node, as it would have without groups, node after node.
void Program::deal_out() {
  const int64_t workers = num_threads();
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    nodes_[group.first].group = (int32_t)g;
    for (int64_t worker = 0; worker < workers; ++worker)
      for (size_t i = group.first; i < group.first + group.nodes; ++i) {
        const Node& node = nodes_[i];
        group.scratch_bytes = std::max(group.scratch_bytes, node.scratch_bytes);
        for (int64_t share = node.shares * worker / workers; share < node.shares * (worker + 1) / workers; ++share)
          group.parts.push_back({&node, share});
      }
  }
}

void Program::call_part(void (*)(), const void* args, const Share& share) {
  const Group::Part& part = static_cast<const Group*>(args)->parts[(size_t)share.index];
  part.node->call(part.node->kernel, part.node->args, Share{part.share, part.node->shares, share.scratch});
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

void Program::append_check(const std::string& key, std::initializer_list<const Array*> arrays, std::function<void()> check) {
  if (std::any_of(checks_.begin(), checks_.end(), [&](const Check& other) { return other.key == key; })) return;
  for (const Array* array : arrays) {
    size_t offset;
    if (!array->data || pool_->logged(array->data, &offset) >= 0) return;
    const size_t begin = reinterpret_cast<size_t>(array->data), end = begin + array->bytes();
    for (const Touched& each : touched_)
      if (each.written && each.block < 0 && each.at < end && begin < each.at + each.bytes) return;
  }
  for (const Array* array : arrays) hold(*array);
  checks_.push_back({key, std::move(check)});
}

void Program::append_host(const char* name, std::function<void()> body) {
  Node node;
  node.name = name;
  node.host = (int32_t)hosts_.size();
  hosts_.push_back(std::move(body));
  nodes_.push_back(node);
}

template <class Each> void Program::run_nodes(Each each, bool grouped) {
  if (t_recording) throw recording_error("run: a program cannot be replayed while this thread is recording");
  const Running running(*this, "run");
  if (!recorded_) throw recording_error("run: the program has not been recorded");
  for (const Check& check : checks_) check.body();
  size_t i = 0;
  while (i < nodes_.size()) {
    if (nodes_[i].host >= 0) {
      // The team is not held while Python runs: the callback may launch work of its own.
      each([&] { hosts_[(size_t)nodes_[i++].host](); });
      continue;
    }
    Job job;
    while (i < nodes_.size() && nodes_[i].host < 0) {
      const Group* const group = grouped && nodes_[i].group >= 0 ? &groups_[(size_t)nodes_[i].group] : nullptr;
      Work work = work_of(nodes_[i]);
      if (group) {
        const Work last = work_of(nodes_[i + group->nodes - 1]);
        work = {call_part, work.kernel, group, (int64_t)group->parts.size(), group->scratch_bytes, last.ahead};
      }
      i += group ? group->nodes : 1;
      if (i < nodes_.size()) fetch(nodes_[i]);
      each([&] { job.run(work); });
    }
  }
}

void Program::run() {
  run_nodes([](auto node) { node(); }, true);
}

std::vector<double> Program::profile() {
  std::vector<double> seconds;
  seconds.reserve(nodes_.size());
  run_nodes([&](auto node) {
    const auto start = std::chrono::steady_clock::now();
    node();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }, false);
  return seconds;
}

std::string Program::dump() const {
  std::string text;
  size_t first = 0, end = 0;  // of the last group
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.group >= 0) first = i, end = i + groups_[(size_t)node.group].nodes;
    text += std::to_string(i) + " " + node.name;
    if (node.host >= 0)
      text += " [host]";
    else
      text += " shares=" + std::to_string(node.shares) + " scratch=" + std::to_string(node.scratch_bytes);
    if (first < i && i < end) text += " beside=" + std::to_string(first);
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
  const Reads reads(node, uses);
  if (node.shares == 1 && node.scratch_bytes == 0) {
    const DefaultFloats floats;
    node.call(node.kernel, node.args, Share{0, 1, nullptr});
  } else {
    Job job;
    job.run(work_of(node));
  }
  reads.check();
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
    std::shared_ptr<Program> owner;
    explicit Suspend(Program* p) : program(p), pool(current_pool()), owner(std::move(t_owner)) {
      t_recording = nullptr;
      set_current_pool(nullptr);
    }
    ~Suspend() {
      t_recording = program;
      t_owner = std::move(owner);
      set_current_pool(pool);
    }
  } suspend(program);
  body();
}

}  // namespace mg
