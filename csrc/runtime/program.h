// Record and replay. Every kernel call goes through launch(); while a thread records, the node is also appended to its
// Program, whose run() walks the nodes with the team taken once and no allocation. Think of CUDA graphs, on a CPU.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <atomic>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/array.h"
#include "kernels/plan.h"
#include "runtime/lifetimes.h"
#include "runtime/neighbours.h"
#include "runtime/parallel.h"

namespace mg {

constexpr size_t kMaxArgs = 448;

struct Node {
  void (*call)(void (*kernel)(), const void* args, const Share& share) = nullptr;
  void (*kernel)() = nullptr;
  const char* name = "";
  int64_t shares = 1;
  size_t scratch_bytes = 0;
  int32_t host = -1;   // index of a host callback instead of a kernel
  int32_t group = -1;  // index of the group that begins with this node
  uint32_t arg_bytes = 0;
  const char* (*weights)(const void* args, int64_t share, int64_t shares) = nullptr;
  Weights ahead;  // of the next node that has some
  alignas(16) unsigned char args[kMaxArgs];
};

class Program : public std::enable_shared_from_this<Program> {
 public:
  Program();
  ~Program();
  void begin();  // the calling thread records from now on; throws recording_error if it already does
  void end();
  void abandon();  // stop recording and drop the nodes; throws recording_error if another thread records it, or while it runs
  void run();
  size_t size() const { return nodes_.size(); }
  std::vector<double> profile();  // run once, each node alone, seconds of each
  std::string dump() const;  // one line a node: name, shares, scratch, "beside" the first of its group
  std::vector<std::string> names() const;  // of the nodes
  int64_t bytes() const;       // memory held for replays: the arena and what lives on in the private pool
  int64_t live_bytes() const { return live_bytes_; }  // most bytes ever alive at once: no plan can be smaller
  // Number of nodes executed on the host (Python callbacks).
  size_t host_nodes() const { return hosts_.size(); }

  void append(const Node& node, std::initializer_list<Use> uses);
  void hold(const Array& array);  // data made outside any node (a constant) must survive for the replays
  // `check` looks at what `arrays` say and throws: before each replay, unless kernels of this recording write them. Once for
  // equal keys: layers share what they ask.
  void append_check(const std::string& key, std::initializer_list<const Array*> arrays, std::function<void()> check);
  void append_host(const char* name, std::function<void()> body);

 private:
  // A pointer among a node's arguments that points into a block of the private pool.
  struct Pointer {
    size_t node, at;  // the node, and the byte of its arguments
    int64_t block;    // its number in the pool's log
    size_t offset;
  };

  // Memory that a node touches: from byte `at` of a block of the private pool, or from the address `at` (block -1).
  struct Touched {
    size_t node;
    int64_t block;
    size_t at, bytes;
    bool written;
  };
  // Neighbours that run side by side, as one node with the shares of all: fewer ends at which workers wait for each other.
  struct Group {
    struct Part {
      const Node* node;
      int64_t share;
    };
    size_t first, nodes, scratch_bytes = 0;
    std::vector<Part> parts;
  };
  static void call_part(void (*kernel)(), const void* args, const Share& share);
  struct Check {
    std::string key;
    std::function<void()> body;
  };
  struct Running;
  void drop() noexcept;

  template <class Each> void run_nodes(Each each, bool grouped);
  void find_pointers(const Node& node);
  void find_touched(const Array& array, bool written);
  void plan_memory();
  void look_ahead();
  void find_groups(const std::vector<size_t>& begins);
  size_t place_groups(std::vector<Lifetime>& blocks, const std::vector<char*>& payloads);
  void deal_out();
  std::vector<Node> nodes_;
  std::vector<std::function<void()>> hosts_;
  std::vector<Check> checks_;
  std::unordered_set<void*> kept_;
  std::vector<Block> keep_;
  std::shared_ptr<class Pool> pool_;
  std::vector<Pointer> pointers_;  // these three while recording
  std::vector<Touched> touched_;
  std::vector<int64_t> clocks_;  // of the pool's log, when each node was recorded
  std::vector<Group> groups_;
  std::shared_ptr<void> arena_;    // of all blocks that did not outlive the recording
  size_t arena_bytes_ = 0;
  int64_t live_bytes_ = 0;
  bool recording_ = false, recorded_ = false;
  std::atomic<bool> running_{false};  // run() is called without the GIL
};

Program* recording();  // of the calling thread, or null

namespace detail {
template <class A> const char* weights_of(const void* args, int64_t share, int64_t shares) {
  return weights_begin(*static_cast<const A*>(args), share, shares);
}
template <class A> void call_kernel(void (*kernel)(), const void* args, const Share& share) {
  reinterpret_cast<void (*)(const A&, const Share&)>(kernel)(*static_cast<const A*>(args), share);
}
void launch(Node& node, std::initializer_list<Use> uses);
}  // namespace detail

// Run `kernel` on `args` now, and remember it if this thread is recording. `uses` are all arrays that the arguments point into
// and what becomes of them: a recording keeps them alive, and replays neighbours side by side that do not meet in them.
template <class A>
void launch(const char* name, void (*kernel)(const A&, const Share&), const A& args, Plan plan,
            std::initializer_list<Use> uses) {
  static_assert(sizeof(A) <= kMaxArgs, "raise kMaxArgs");
  Node node;
  node.call = &detail::call_kernel<A>;
  node.kernel = reinterpret_cast<void (*)()>(kernel);
  if constexpr (HasWeights<A>::value) node.weights = &detail::weights_of<A>;
  node.name = name;
  node.shares = plan.shares;
  node.scratch_bytes = plan.scratch_bytes;
  node.arg_bytes = sizeof(A);
  memcpy(node.args, &args, sizeof(A));
  detail::launch(node, uses);
}
// A host callback: run now, and again at every replay.
void launch_host(const char* name, std::function<void()> body);

}  // namespace mg
