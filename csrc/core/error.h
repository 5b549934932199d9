// Errors of the C++ core. `kind` is the name of the class in python/microgpt/errors.py that the binding raises.
#pragma once
#include <stdexcept>
#include <string>

namespace mg {

class Error : public std::runtime_error {
 public:
  Error(const char* kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  const char* kind() const { return kind_; }

 private:
  const char* kind_;
};

inline Error shape_error(const std::string& message) { return {"ShapeError", message}; }
inline Error dtype_error(const std::string& message) { return {"DTypeError", message}; }
inline Error usage_error(const std::string& message) { return {"UsageError", message}; }
inline Error recording_error(const std::string& message) { return {"RecordingError", message}; }

}  // namespace mg
