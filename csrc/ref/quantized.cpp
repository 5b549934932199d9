#include <cmath>
#include <vector>

#include "core/qblock.h"
#include "ref/ref.h"

namespace mg::ref {

namespace {
struct Place {  // where a row's word and numbers lie among the tiles
  int64_t first, height, row;
};
Place place_of(int64_t m, int64_t most, int64_t row) {
  int64_t tile = 0;
  while (q_tile_row(m, most, tile + 1) <= row) ++tile;
  const int64_t first = q_tile_row(m, most, tile);
  return {first, q_tile_row(m, most, tile + 1) - first, row - first};
}

// A column's group: its codes, and what they stand for, the scales of the parts, and what is added.
struct Group {
  std::vector<uint8_t> codes;
  float scales[kQMostParts], leasts[kQMostParts];
};
Group group_of(const QWeight& w, int64_t row, int64_t group) {
  Group made = {std::vector<uint8_t>((size_t)w.group), {}, {}};
  const QColumn at = q_column(w, const_cast<uint8_t*>(w.data), row, group);
  q_get_codes(w.type, at, made.codes.data(), 0, w.group);
  q_parts(w, at, made.scales, made.leasts);
  return made;
}
std::vector<float> values_of(const QWeight& w) {
  std::vector<float> values(256);
  q_values(w, values.data());
  return values;
}
}  // namespace

void kv_put(const KvPutArgs<double>& args, const Share&) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t h = 0; h < args.heads; ++h) {
      const double* x = args.x + (t * args.heads + h) * args.width;
      const int64_t to = (args.ids[t] * args.heads + h) * args.width;
      float largest = 0.0f, sum = 0.0f;
      for (int64_t i = 0; i < args.width; ++i) {
        largest = std::fmax(largest, std::fabs((float)x[i]));
        sum += (float)x[i] * 0.0f;  // NaN if one is not finite
      }
      if (largest < kQTiny) largest = 0.0f;
      const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
      for (int64_t i = 0; i < args.width; ++i) {
        if (args.kv == KvType::f32) static_cast<float*>(args.data)[to + i] = (float)x[i];
        else if (args.kv == KvType::bf16) assign(static_cast<bf16*>(args.data)[to + i], (float)x[i]);
        else static_cast<int8_t*>(args.data)[to + i] = (int8_t)(std::isnan(sum) ? 0.0f : std::nearbyint((float)x[i] * inverse));
      }
      if (args.kv == KvType::int8) args.scales[h * args.scale_step + args.ids[t]] = std::isnan(sum) ? NAN : largest / 127.0f;
    }
  }
}

// In float, as the kernels: a product of rounded activations is compared with one of the same.
void qrows(const QRowsArgs<double>& args, const Share&) {
  const int64_t groups = q_groups(args.k, args.group), parts = q_starts(args.type);
  for (int64_t i = 0; i < args.m; ++i) {
    const Place at = place_of(args.m, q_tile_rows(args.type), i);
    for (int64_t g = 0; g < groups; ++g) {
      float largest = 0.0f;
      bool nan = false;
      const auto value = [&](int64_t j) {
        const int64_t place = g * args.group + j;
        return place < args.k ? (float)args.x[i * args.k + (args.order ? args.order[place] : place)] : 0.0f;
      };
      for (int64_t j = 0; j < args.group; ++j) {
        largest = std::fmax(largest, std::fabs(value(j)));
        nan = nan || std::isnan(value(j));
      }
      if (nan || std::isinf(largest)) largest = NAN;  // what infinity times 127 / infinity is
      if (largest < kQTiny) largest = 0.0f;
      const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
      for (int64_t p = 0; p < parts; ++p) {  // all of it, or each 16, then each 32
        const int64_t length = parts == 1 ? args.group : p < kQSixteens ? 16 : 32, from = p < kQSixteens ? p * length : (p - kQSixteens) * 32;
        int32_t sum = 0;
        for (int64_t j = from; j < from + length; ++j) {
          const float q = std::nearbyint(value(j) * inverse);
          const int32_t code = std::isnan(q) ? 0 : (int32_t)q;
          const int64_t quad = (g * args.group + j) / 4;
          args.codes[at.first * groups * args.group + (quad * at.height + at.row) * 4 + j % 4] = (int8_t)code;
          sum += code;
        }
        args.starts[(at.first * groups + g * at.height) * parts + p * at.height + at.row] =
            std::isfinite(largest) ? q_start_factor(args.type) * sum : 0;
      }
      args.scales[at.first * groups + g * at.height + at.row] = largest / 127.0f;
    }
  }
}

namespace {
void product(const QGemmArgs<double>& args) {
  const QWeight& w = args.w;
  const QTraits& traits = kQTraits[(int)w.type];
  const int64_t groups = q_groups(w.k, w.group), part = q_part(w.type, w.group);
  const std::vector<float> values = values_of(w);
  for (int64_t i = 0; i < args.m; ++i) {
    const Place at = place_of(args.m, q_tile_rows(w.type), i);
    for (int64_t n = 0; n < w.n; ++n) {
      double y = 0.0;
      for (int64_t g = 0; g < groups; ++g) {
        const Group group = group_of(w, n, g);
        for (int64_t begin = 0; begin < w.group; begin += part) {
          double product = 0.0, sum = 0.0;
          for (int64_t j = begin; j < begin + part; ++j) {
            const int64_t quad = (g * w.group + j) / 4;
            const double x = args.codes[at.first * groups * w.group + (quad * at.height + at.row) * 4 + j % 4];
            product += x * (double)values[group.codes[(size_t)j]];
            sum += x;
          }
          if (traits.least == QLeast::none) sum = 0.0;
          y += (product * group.scales[begin / part] + sum * group.leasts[begin / part]) *
               args.scales[at.first * groups + g * at.height + at.row];
        }
      }
      const int64_t to = i * w.n + n;
      if (args.bias) y += args.bias[n];
      if (args.slope) args.slope[to] = act_slope(args.act, y);
      y = act_value(args.act, y);
      if (args.residual) y += args.residual[to];
      args.c[to] = y;
    }
  }
}
}  // namespace

void qgemm(const QGemmArgs<double>& args, const Share&) {
  product(args);
  for (int32_t i = 0; i < args.joined; ++i) {
    QGemmArgs<double> one = {};
    one.w = args.more[i].w, one.c = args.more[i].c, one.bias = args.more[i].bias;
    one.codes = args.codes, one.scales = args.scales, one.starts = args.starts, one.m = args.m;
    product(one);
  }
}

void qdequantize(const QDequantizeArgs<double>& args, const Share&) {
  const QWeight& w = args.w;
  const int64_t part = q_part(w.type, w.group);
  const std::vector<float> values = values_of(w);
  for (int64_t i = 0; i < args.rows; ++i) {
    const int64_t row = args.ids ? args.ids[i] : args.first + i;
    for (int64_t g = 0; g < q_groups(w.k, w.group); ++g) {
      const Group group = group_of(w, row, g);
      for (int64_t j = 0; j < w.group && g * w.group + j < w.k; ++j) {
        const int64_t k = g * w.group + j, p = j / part;
        args.y[i * w.k + (w.order ? w.order[k] : k)] =
            q_number(kQTraits[(int)w.type], values[group.codes[(size_t)j]], group.scales[p], group.leasts[p]);
      }
    }
  }
}

// Nearest integers for the plainest scale, max |x| / 127 or the largest to -8: what a search must not be worse than.
void quantize(const QuantizeArgs<double>& args, const Share&) {
  const QWeight& w = args.w;
  const QTraits& traits = kQTraits[(int)w.type];
  const int64_t groups = q_groups(w.k, w.group);
  for (int64_t r = 0; r < q_panels(args.rows) * kQCols; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      double largest = 0.0;
      bool finite = true;
      const auto value = [&](int64_t j) {
        return r < args.rows && g * w.group + j < w.k ? args.x[r * w.k + g * w.group + j] : 0.0;
      };
      for (int64_t j = 0; j < w.group; ++j) {
        if (!std::isfinite(value(j))) finite = false;
        if (std::fabs(value(j)) > std::fabs(largest)) largest = value(j);
      }
      const QColumn to = q_column(w, args.data, args.first + r, g);
      q_put_scale(w.type, to, finite ? (float)(traits.low == 8 ? std::fabs(largest) / 127.0 : largest / -8.0) : NAN);
      const double scale = q_get_scale(w.type, to);
      std::vector<uint8_t> codes((size_t)w.group, (uint8_t)traits.offset);
      for (int64_t j = 0; finite && scale != 0.0 && j < w.group; ++j) {
        const double most = (1 << traits.low) - 1 - traits.offset;
        const double q = std::fmin(std::fmax(std::nearbyint(value(j) / scale), -traits.offset), most);
        codes[(size_t)j] = (uint8_t)((int)q + traits.offset);
      }
      q_put_codes(w.type, to, codes.data(), 0, w.group);
    }
  }
}

void qfit(const QFitArgs<double>& args, const Share&) {
  for (int64_t g = 0; g < args.groups; ++g) {
    const double* x = args.x + g * args.length;
    const auto weight = [&](int64_t i) { return args.weights ? args.weights[g % args.kinds * args.length + i] : 1.0; };
    double largest = 0.0, lowest = args.bounded ? 0.0 : INFINITY, highest = args.bounded ? 0.0 : -INFINITY;
    for (int64_t i = 0; i < args.length; ++i) {
      largest = std::fmax(largest, std::fabs(x[i]));
      lowest = std::fmin(lowest, x[i]), highest = std::fmax(highest, x[i]);
    }
    const double span = args.least ? highest - lowest : largest, start = args.least ? -lowest : 0.0;
    double best = INFINITY, scale = span / args.high, least = start;
    for (int64_t tried = 0; tried < args.sides * args.count; ++tried) {
      double s = span / (args.high + args.steps[tried % args.count]) * (tried < args.count ? 1.0 : -1.0), m = start;
      for (int32_t round = 0; round <= args.rounds; ++round) {
        double error = 0.0, xq = 0.0, qq = 0.0, sum_q = 0.0, sum_x = 0.0, sum_w = 0.0;
        for (int64_t i = 0; i < args.length; ++i) {
          const double v = std::fabs(s) > kQTiny ? (x[i] + m) / s : 0.0, w = weight(i);
          double q = std::fmin(std::fmax(std::nearbyint(v), args.low), args.high);
          if (args.book == QBook::iq4) {
            q = kQIq4[0];
            for (const int8_t entry : kQIq4)
              if (std::fabs(v - entry) < std::fabs(v - q)) q = entry;
          }
          error += w * (x[i] + m - s * q) * (x[i] + m - s * q);
          xq += w * x[i] * q, qq += w * q * q, sum_q += w * q, sum_x += w * x[i], sum_w += w;
        }
        if (error < best) best = error, scale = s, least = m;
        if (!args.least) {
          if (qq > 0.0) s = xq / qq;
          continue;
        }
        const double across = sum_w * qq - sum_q * sum_q;
        double slope = (sum_w * xq - sum_q * sum_x) / across, shift = (xq * sum_q - qq * sum_x) / across;
        if (args.bounded && shift < 0.0) slope = xq / qq, shift = 0.0;
        if (slope > 0.0) s = slope, m = shift;
      }
    }
    args.scale[g] = scale;
    if (args.least) args.least[g] = least;
  }
}

}  // namespace mg::ref
