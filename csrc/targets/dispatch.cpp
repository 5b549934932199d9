#include "targets/dispatch.h"

#include <stdlib.h>
#include <atomic>

#include "core/error.h"
#include "kernels/gemm_tiles.h"
#include "ref/ref.h"
#include "runtime/cpu.h"
#include "runtime/platform.h"
#include "targets/targets.h"

namespace mg {

// The tables of the targets that are compiled part by part.
#define X(part) fill_##part(&full, &narrow);
#define MG_DEFINE_TABLES(name)                                                  \
  namespace name {                                                              \
  namespace {                                                                   \
  struct Tables {                                                               \
    KernelTable<float> full;                                                    \
    KernelTable<bf16> narrow;                                                   \
    Tables() { MG_PARTS(X) }                                                    \
  };                                                                            \
  const Tables& tables() {                                                      \
    static const Tables all;                                                    \
    return all;                                                                 \
  }                                                                             \
  }                                                                             \
  const KernelTable<float>* table() { return &tables().full; }                  \
  const KernelTable<bf16>* table_bf16() { return &tables().narrow; }            \
  }
MG_DEFINE_TABLES(scalar)
#ifdef MG_TARGET_AVX2
MG_DEFINE_TABLES(avx2)
#endif
#ifdef MG_TARGET_AVX512
MG_DEFINE_TABLES(avx512)
#endif
#ifdef MG_TARGET_NEON
MG_DEFINE_TABLES(neon)
#endif
#undef X
#undef MG_DEFINE_TABLES

namespace {

std::atomic<const Target*> g_current{nullptr};

const Target& find(const std::string& name, const char* asked_by) {
  std::string known;
  for (const Target& target : targets()) {
    if (name == target.name) {
      if (target.supported) return target;
      throw Error("IsaError", std::string(asked_by) + "=" + name + ": this machine lacks it (it has " +
                                  features_text(cpu_features()) + ")");
    }
    known += std::string(known.empty() ? "" : ", ") + target.name;
  }
  throw Error("IsaError", std::string(asked_by) + "=" + name + ": not in this build, which has " + known);
}

const Target& choose() {
  const char* asked = getenv("MICROGPT_ISA");
  if (asked && *asked && std::string(asked) != "auto") return find(asked, "MICROGPT_ISA");
  for (const Target& target : targets())
    if (target.supported) return target;
  throw Error("IsaError", "no compiled instruction set runs on this machine");
}

}  // namespace

std::vector<Target> targets_of(const CpuFeatures& cpu) {
  (void)cpu;
  std::vector<Target> all;
  // The first two have products of their own, and with avx512vnni quantized ones; the rest is avx512's.
#ifdef MG_TARGET_AVX512AMX
  all.push_back({"avx512amx", &avx512vnni::table, &avx512amx::table_bf16,
                 cpu.amx_bf16 && cpu.avx512_bf16 && cpu.avx512_vnni && allow_tiles(), true});
#endif
#ifdef MG_TARGET_AVX512BF16
  const Target pairs = {"avx512bf16", &avx512vnni::table, &avx512bf16::table_bf16, cpu.avx512_bf16 && cpu.avx512_vnni,
                        cpu.pairs_pay};
  if (cpu.pairs_pay) all.push_back(pairs);
#endif
#ifdef MG_TARGET_AVX512VNNI
  all.push_back({"avx512vnni", &avx512vnni::table, &avx512vnni::table_bf16, cpu.avx512_vnni});
#endif
#ifdef MG_TARGET_AVX512
  all.push_back({"avx512", &avx512::table, &avx512::table_bf16, cpu.avx512});
#endif
#ifdef MG_TARGET_AVX512BF16
  if (!cpu.pairs_pay) all.push_back(pairs);
#endif
#ifdef MG_TARGET_AVX2VNNI
#ifdef MG_EVEX_VNNI
  const bool vnni = cpu.avx512_vnni;
#else
  const bool vnni = cpu.avx_vnni;
#endif
  all.push_back({"avx2vnni", &avx2vnni::table, &avx2vnni::table_bf16, cpu.avx2 && cpu.fma && vnni});
#endif
#ifdef MG_TARGET_AVX2
  all.push_back({"avx2", &avx2::table, &avx2::table_bf16, cpu.avx2 && cpu.fma});
#endif
#ifdef MG_TARGET_NEON_I8MM
  all.push_back({"neon_i8mm", &neon_i8mm::table, &neon_i8mm::table_bf16, cpu.neon && cpu.dotprod && cpu.i8mm});
#endif
#ifdef MG_TARGET_NEON_DOTPROD
  all.push_back({"neon_dotprod", &neon_dotprod::table, &neon_dotprod::table_bf16, cpu.neon && cpu.dotprod});
#endif
#ifdef MG_TARGET_NEON
  all.push_back({"neon", &neon::table, &neon::table_bf16, cpu.neon});
#endif
  all.push_back({"scalar", &scalar::table, &scalar::table_bf16, true});
  return all;
}

const std::vector<Target>& targets() {
  static const std::vector<Target> list = [] {
    gemm_far_caches = cpu_features().far_caches;
    return targets_of(cpu_features());
  }();
  return list;
}

const Target& current_target() {
  const Target* target = g_current.load(std::memory_order_acquire);
  if (!target) {
    target = &choose();
    g_current.store(target, std::memory_order_release);
  }
  return *target;
}

void force_target(const std::string& name) {
  g_current.store(name == "auto" ? &choose() : &find(name, "isa"), std::memory_order_release);
}

const KernelTable<double>& reference_table() { return ref::table(); }

}  // namespace mg
