// Drawing tokens from logits.
#include "kernels/sample.h"

#include "bindings/common.h"

namespace mg::bindings {
namespace {

template <class T> void check_history(const SampleArgs<T>& args, int64_t kept) {
  for (int64_t r = 0; r < args.rows; ++r) {
    const SampleRow& row = args.where[r];
    if (row.history < 0 || row.prompt < 0 || row.ids < row.prompt || row.ids > args.history_step || row.history >= kept)
      throw shape_error("sample: `where` names ids beyond `history`");
    for (int64_t i = 0; i < row.ids; ++i) {
      const int32_t id = args.history[row.history * args.history_step + i];
      if (id < 0 || id >= args.vocab)
        throw shape_error("sample: `history` expected ids below " + std::to_string(args.vocab) + ", got " + std::to_string(id));
    }
  }
}

void sample(const Array& logits, const Array& where, const Array* tokens, const Array* history, const Array* probabilities,
            int64_t vocab, double temperature, int64_t top_k, double top_p, double min_p, double repetition, double presence,
            double frequency, uint64_t seed) {
  const char* op = "sample";
  if (vocab < 1 || vocab > INT32_MAX || logits.size % vocab)
    throw shape_error("sample: `logits` expected rows of " + std::to_string(vocab) + ", got shape " + shape_text(logits.shape, logits.rank));
  by_wide_dtype(logits, op, [&](auto t) {
    using T = decltype(t);
    SampleArgs<T> args{};
    args.rows = logits.size / vocab, args.vocab = vocab;
    args.logits = logits.as<T>();
    args.where = reinterpret_cast<const SampleRow*>(in<int64_t>(&where, checked_mul(args.rows, kSampleRowNumbers), op, "where"));
    args.tokens = out_opt<int32_t>(tokens, args.rows, op, "tokens");
    args.history = in_opt<int32_t>(history, 0, op, "history");
    args.history_step = history && history->rank == 2 ? history->dim(1) : 0;
    args.probabilities = out_opt<double>(probabilities, checked_mul(args.rows, vocab), op, "probabilities");
    args.top_k = top_k, args.seed = seed, args.temperature = temperature, args.top_p = top_p, args.min_p = min_p;
    args.repetition = repetition, args.presence = presence, args.frequency = frequency;
    if (history) {  // fed anew before each replay
      const int64_t kept = args.history_step ? history->size / args.history_step : 0;
      check_each_time("sample", {&where, history}, {kept, vocab}, [args, kept] { check_history(args, kept); }, !recording());
    }
    void (*kernel)(const SampleArgs<T>&, const Share&) = &mg::sample;
    MG_RUN_THIS(op, kernel, plan_sample(args), args, &logits, &where, to(tokens), history, to(probabilities));
  });
}

}  // namespace

void register_sampling(py::module_& m) {
  m.attr("SAMPLE_ROW") = kSampleRowNumbers;
  m.def("sample_uniform", [](uint64_t seed, uint64_t row, uint64_t step) { return sample_uniform(seed, row, step); },
        py::arg("seed"), py::arg("row"), py::arg("step"), "The number in [0, 1) that token `step` of sequence `row` is drawn with.");
  define<&sample>(m, "sample", py::arg("logits"), py::arg("where"), py::arg("tokens"), py::arg("history"),
        py::arg("probabilities"), py::arg("vocab"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"),
        py::arg("repetition"), py::arg("presence"), py::arg("frequency"), py::arg("seed"),
        "tokens (R) from logits (R, V); where (R, 5) int64: number, step, row of history, ids of the prompt, all ids.\n"
        "A token is -1 where none can be drawn.");
}

}  // namespace mg::bindings
