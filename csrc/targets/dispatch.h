// Which target's kernels run: chosen once from the machine, or forced by MICROGPT_ISA.
#pragma once
#include <string>
#include <vector>

#include "kernels/list.h"
#include "runtime/cpu.h"

namespace mg {

struct Target {
  const char* name;
  const KernelTable<float>* (*table)();
  const KernelTable<bf16>* (*table_bf16)();
  bool supported;          // by the machine
  bool fast_bf16 = false;  // its bf16 product is faster than its float one
};

std::vector<Target> targets_of(const CpuFeatures& cpu);  // compiled into this build, best first; `supported` by such a machine
const std::vector<Target>& targets();          // by this one
const Target& current_target();                // throws Error("IsaError") if MICROGPT_ISA asks for what is missing
void force_target(const std::string& name);    // for tests; "auto" chooses again. Throws Error("IsaError")
const KernelTable<double>& reference_table();  // float64

template <class T> const KernelTable<T>& kernels();
template <> inline const KernelTable<float>& kernels<float>() { return *current_target().table(); }
template <> inline const KernelTable<bf16>& kernels<bf16>() { return *current_target().table_bf16(); }
template <> inline const KernelTable<double>& kernels<double>() { return reference_table(); }

}  // namespace mg
