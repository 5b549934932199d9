// The extension module microgpt._kernels. One register_x per topic; nothing else here.
#include "bindings/common.h"

namespace py = pybind11;

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Kernels, arrays and the runtime of microgpt. Internal: the public interface is the Python package.";
  py::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const mg::Error&) {
      mg::bindings::set_python_error();
    }
  });
  mg::bindings::register_arrays(m);
  mg::bindings::register_checks(m);
  mg::bindings::register_calls(m);
  mg::bindings::register_math(m);
  mg::bindings::register_layers(m);
  mg::bindings::register_experts(m);
  mg::bindings::register_ssd(m);
  mg::bindings::register_delta(m);
  mg::bindings::register_rwkv(m);
  mg::bindings::register_training(m);
  mg::bindings::register_runtime(m);
  mg::bindings::register_peaks(m);
  mg::bindings::register_scan(m);
  mg::bindings::register_quantized(m);
  mg::bindings::register_sampling(m);
}
