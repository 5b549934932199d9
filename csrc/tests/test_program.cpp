// Replays: neighbours that run side by side have the bits of one after the other.
#include <doctest/doctest.h>
#include <string.h>
#include <memory>
#include <thread>

#include "core/error.h"
#include "kernels/plan.h"
#include "runtime/program.h"
#include "targets/dispatch.h"

using namespace mg;

namespace {

Array matrix(int64_t rows, int64_t cols, float first) {
  const int64_t shape[] = {rows, cols};
  Array array = make_array(DType::f32, shape, 2);
  for (int64_t i = 0; i < array.size; ++i) array.as<float>()[i] = (float)((int64_t)(first * 7) + i * 37 % 101) / 50.0f - 1.0f;
  return array;
}

void multiply(const KernelTable<float>& table, const Array& a, const Array& b, const Array& c) {
  GemmArgs<float> args{};
  args.a = a.as<float>(), args.b = b.as<float>(), args.c = c.as<float>();
  args.m = a.dim(0), args.n = b.dim(0), args.k = a.dim(1), args.batch = 1, args.trans_b = 1;
  args.lda = args.ldb = args.k, args.ldc = args.n;
  launch("gemm", table.gemm, args, plan_gemm(args), {&a, &b, {&c, Use::written}});
}

std::vector<float> numbers(const Array& array) { return {array.as<float>(), array.as<float>() + array.size}; }

}  // namespace

TEST_CASE("neighbours side by side") {
  const KernelTable<float>& table = *targets()[0].table();
  const Array x = matrix(200, 96, 1), u = matrix(160, 96, 2), v = matrix(96, 160, 3), w = matrix(48, 96, 4);
  const Array y = matrix(200, 96, 0), z = matrix(200, 48, 0);
  const int64_t wide[] = {200, 160}, narrow[] = {200, 48};
  std::vector<std::vector<float>> results[2];
  for (const int threads : {1, 3}) {
    set_num_threads(threads);
    Program program;
    program.begin();
    {
      // y = (x U^T) V^T beside z = x W^T; the temporary of the first must not become the second's.
      const Array first = make_array(DType::f32, wide, 2);
      multiply(table, x, u, first);
      {
        const Array second = make_array(DType::f32, narrow, 2);
        multiply(table, x, w, second);
        multiply(table, first, v, y);
        multiply(table, x, w, z);
      }
    }
    program.end();
    CHECK(program.dump().find("1 gemm shares=") != std::string::npos);
    CHECK(program.dump().find("beside=0\n2") != std::string::npos);  // the second with the first
    CHECK(program.dump().find("beside=2") != std::string::npos);     // the fourth with the third, which needs the first
    for (int replay = 0; replay < 50; ++replay) program.run();
    results[threads > 1] = {numbers(y), numbers(z)};
    memset(y.data, 0, y.bytes());
    const std::vector<double> seconds = program.profile();
    CHECK(seconds.size() == 4);
    CHECK(numbers(y) == results[threads > 1][0]);
  }
  CHECK(results[0] == results[1]);
}

TEST_CASE("a node that writes what its neighbour reads comes after it") {
  const KernelTable<float>& table = *targets()[0].table();
  const Array x = matrix(200, 96, 1), w = matrix(48, 96, 4), square = matrix(96, 96, 5);
  const Array y = matrix(200, 96, 0), z = matrix(200, 48, 0), other = matrix(200, 48, 0);
  Program program;
  program.begin();
  multiply(table, x, w, other);
  multiply(table, y, w, z);
  multiply(table, x, square, y);
  program.end();
  const std::string dump = program.dump();
  CHECK(dump.find("1 gemm") < dump.find("beside=0"));
  CHECK(dump.find("beside=0") < dump.find("2 gemm"));
  CHECK(dump.find("beside", dump.find("2 gemm")) == std::string::npos);
}

TEST_CASE("a recording that was abandoned leaves no numbers in the next") {
  Program program;
  program.begin();
  std::vector<Array> kept;
  for (int i = 0; i < 200; ++i) kept.push_back(matrix(10, 10, 0));
  program.abandon();
  program.begin();
  const KernelTable<float>& table = *targets()[0].table();
  const Array x = matrix(20, 96, 1), w = matrix(48, 96, 4), z = matrix(20, 48, 0);
  multiply(table, x, w, z);
  kept.clear();
  const std::vector<float> expected = numbers(z);
  program.end();
  memset(z.data, 0, z.bytes());
  program.run();
  CHECK(numbers(z) == expected);
}

TEST_CASE("what a check looks at is looked at before each replay, unless a node of the recording writes it") {
  const KernelTable<float>& table = *targets()[0].table();
  const Array x = matrix(20, 96, 1), w = matrix(48, 96, 4), square = matrix(48, 48, 5), z = matrix(20, 48, 0), y = matrix(20, 48, 0);
  int looked[4] = {};
  bool wrong = false;
  Program program;
  program.begin();
  const auto check = [&](int i) {
    return [&looked, &wrong, i] {
      ++looked[i];
      if (wrong) throw shape_error("wrong");
    };
  };
  program.append_check("x", {&x}, check(0));
  program.append_check("x", {&x}, check(1));  // once for equal keys
  multiply(table, x, w, z);
  program.append_check("z", {&x, &z}, check(2));
  {
    const Array inside = matrix(20, 48, 0);
    multiply(table, z, square, inside);
    program.append_check("inside", {&inside}, check(3));
    multiply(table, inside, square, y);
  }
  program.end();
  for (int i = 0; i < 3; ++i) program.run();
  CHECK(looked[0] == 3);
  CHECK(looked[1] + looked[2] + looked[3] == 0);
  memset(z.data, 0, z.bytes());
  wrong = true;
  CHECK_THROWS_AS(program.run(), Error);
  CHECK(numbers(z) == std::vector<float>(20 * 48, 0.0f));  // before any node
  wrong = false;
  program.run();
  CHECK(numbers(z) != std::vector<float>(20 * 48, 0.0f));
}

TEST_CASE("a program is recorded and dropped by one thread") {
  auto program = std::make_shared<Program>();
  std::weak_ptr<Program> watched = program;
  program->begin();
  std::thread([&] {
    CHECK_THROWS_AS(program->begin(), Error);
    CHECK_THROWS_AS(program->end(), Error);
    CHECK_THROWS_AS(program->abandon(), Error);
    program.reset();
  }).join();
  REQUIRE(!watched.expired());  // who records it owns it
  CHECK(recording() == watched.lock().get());
  recording()->abandon();
  CHECK(watched.expired());
  CHECK(recording() == nullptr);
}
