// The runtime seen from Python: record and replay, threads, instruction sets, memory.
#include <pybind11/stl.h>

#include "bindings/common.h"
#include "runtime/cpu.h"
#include "runtime/platform.h"
#include "runtime/pool.h"

#ifndef MG_VERSION
#define MG_VERSION "0"
#endif

namespace mg::bindings {
namespace {

// A Python callable that may be destroyed by a thread without the GIL.
struct HostCall {
  py::object body;
  explicit HostCall(py::object callable) : body(std::move(callable)) {}
  ~HostCall() {
    if (!Py_IsInitialized()) {
      body.release();
      return;
    }
    py::gil_scoped_acquire gil;
    body = py::object();
  }
};

void launch_python(const std::string& name, py::object body) {
  auto call = std::make_shared<HostCall>(std::move(body));
  // A node's name is a plain pointer and must outlive the program; names of host nodes are few and kept for good.
  static auto* names = new std::unordered_set<std::string>();
  const char* kept = names->insert(name).first->c_str();
  launch_host(kept, [call] {
    py::gil_scoped_acquire gil;
    call->body();
  });
}

// What Python holds of a program. A thread that records owns it too: let go by another, it is recorded to its end. Let go by
// the thread itself, the recording ends.
struct Held {
  std::shared_ptr<Program> program = std::make_shared<Program>();
  Held() = default;
  Held(const Held&) = delete;
  ~Held() {
    if (recording() == program.get()) program->abandon();
  }
};
template <auto Method> auto of_program() {
  return [](const Held& held) { return ((*held.program).*Method)(); };
}

struct Nothing {};
void do_nothing(const Nothing&, const Share&) {}

py::dict stats_of(const PoolStats& stats) {
  py::dict d;
  d["live_bytes"] = stats.live_bytes;
  d["peak_bytes"] = stats.peak_bytes;
  d["cached_bytes"] = stats.cached_bytes;
  d["blocks_made"] = stats.blocks_made;
  d["blocks_reused"] = stats.blocks_reused;
  return d;
}

}  // namespace

void register_runtime(py::module_& m) {
  py::class_<Held>(m, "Program", "A recorded sequence of kernel calls.")
      .def(py::init<>())
      .def("begin", of_program<&Program::begin>())
      .def("end", of_program<&Program::end>())
      .def("abandon", of_program<&Program::abandon>())
      .def("run", of_program<&Program::run>(), py::call_guard<py::gil_scoped_release>())
      .def("profile",
           [](const Held& held) {
             std::vector<double> seconds;
             {
               py::gil_scoped_release release;
               seconds = held.program->profile();
             }
             return seconds;
           },
           "Run once; seconds of each node.")
      .def("names", of_program<&Program::names>())
      .def("dump", of_program<&Program::dump>())
      .def_property_readonly("bytes", of_program<&Program::bytes>())
      .def_property_readonly("live_bytes", of_program<&Program::live_bytes>())
      .def_property_readonly("host_nodes", of_program<&Program::host_nodes>())
      .def("__len__", of_program<&Program::size>());
  m.def("recording", [] { return recording() != nullptr; });
  m.def("launch_nothing", [](int64_t shares) {
    if (shares < 0 || shares > INT16_MAX) throw usage_error("launch_nothing: `shares` must be in 0..32767, got " + std::to_string(shares));
    run_kernel("nothing", &do_nothing, Nothing{}, {shares, 0}, "", {});
  },
        py::arg("shares"), "A node of empty shares, to measure what a node costs.");
  m.def("launch_host", &launch_python, py::arg("name"), py::arg("body"));

  m.attr("VERSION") = MG_VERSION;
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("threads"));
  m.def("thread_choice", [] {
    const ThreadChoice choice = detect_threads();
    return py::make_tuple(choice.threads, choice.why, choice.quota);
  });
  m.def("openmp_runtime", &openmp_runtime);
  m.def("stop_team", &stop_team, py::call_guard<py::gil_scoped_release>());
  m.def("team_stats", [] {
    const TeamStats stats = team_stats();
    return py::make_tuple(stats.shared_nodes, stats.stolen_shares, stats.wakes);
  });
  m.def("cpu_model", &cpu_model);
  m.def("cpu_features", [] { return features_text(cpu_features()); });
  m.def("isa", [] { return current_target().name; });
  m.def("fast_bf16", [] { return current_target().fast_bf16; },
        "Whether the instruction set in use multiplies bfloat16 faster than float32.");
  m.def("set_isa", &force_target, py::arg("name"));
  m.def("isas", [] {
    std::vector<std::pair<std::string, bool>> list;
    for (const Target& target : targets()) list.emplace_back(target.name, target.supported);
    return list;
  }, "Instruction sets in this build, best first, and whether this machine has each.");
  m.def("pool_stats", [] { return stats_of(default_pool()->stats()); });
  m.def("trim_pool", [] { default_pool()->trim(); });
  m.def("trim_heap", &trim_heap, "Give back to the system what the C library holds and nobody uses.");
  // Workers must be gone before the interpreter frees what they might touch.
  py::module_::import("atexit").attr("register")(m.attr("stop_team"));
}

}  // namespace mg::bindings
