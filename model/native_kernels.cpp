// The memory-bound steps between the convolutions, on NHWC tensors: each reads and writes memory once.
//
// Plain C++17 with OpenMP and nothing to link against; model/native.py builds it with the machine's compiler in about
// two seconds. Statistics and arithmetic are float32 or wider in every precision. Work is cut into blocks whose size
// does not depend on the number of threads, and partial sums meet in a fixed order: results do not depend on it either.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr long LANES = 512;    // elements of an inner loop, at least
constexpr long BLOCK = 16384;  // elements summed in float32 before their sum goes on in float64
constexpr long CHUNK = 2048;   // pixels a task

inline float load(const float* p) { return *p; }
inline float load(const uint8_t* p) { return static_cast<float>(*p); }
inline float load(const int16_t* p) { return static_cast<float>(*p); }
inline float load(const uint16_t* p) { return static_cast<float>(*p); }

struct bf16 {
    uint16_t bits;
};

inline float load(const bf16* p) {
    const uint32_t wide = static_cast<uint32_t>(p->bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline void store(float* p, float value) { *p = value; }

// Round to nearest even; a NaN stays one, whatever its payload.
inline void store(bf16* p, float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    const uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    p->bits = static_cast<uint16_t>((wide & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// e^x to 2 ulp on [-87, 88], clamped beyond: argument reduction by ln 2 and Cephes' polynomial for expf.
inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float n = std::floor(x * 1.44269504088896341f + 0.5f);
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t power = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

// Count, mean and sum of squared deviations of each channel, merged by Chan, Golub and LeVeque (1983).
struct Partial {
    double count = 0;
    std::vector<double> mean, m2;
};

void merge(Partial& into, double count, const double* mean, const double* m2, long channels) {
    const double total = into.count + count;
    const double share = count / total, cross = into.count * share;
    for (long c = 0; c < channels; ++c) {
        const double delta = mean[c] - into.mean[c];
        into.mean[c] += delta * share;
        into.m2[c] += m2[c] + delta * delta * cross;
    }
    into.count = total;
}

// How often an image's channels repeat in one pass of an inner loop, so that narrow layers run as long loops too.
inline long repeats(long channels) { return std::max(1L, LANES / channels); }

// Statistics of pixels [from, to) of one image.
template <typename T>
void chunk_statistics(const T* x, long from, long to, long channels, Partial& found) {
    const long repeat = repeats(channels), lanes = repeat * channels;
    const long block = std::max(1L, BLOCK / lanes) * repeat;
    std::vector<float> sum(lanes), square(lanes);
    std::vector<double> mean(channels), m2(channels);
    found.mean.assign(channels, 0.0);
    found.m2.assign(channels, 0.0);
    float *s = sum.data(), *q = square.data();
    for (long start = from; start < to; start += block) {
        const long end = std::min(start + block, to), last = end * channels;
        std::fill(sum.begin(), sum.end(), 0.0f);
        std::fill(square.begin(), square.end(), 0.0f);
        for (long at = start * channels; at < last; at += lanes) {
            const long length = std::min(lanes, last - at);
            const T* row = x + at;
#pragma omp simd
            for (long i = 0; i < length; ++i) s[i] += load(row + i);
        }
        const float inverse = 1.0f / static_cast<float>(end - start);
        for (long c = 0; c < channels; ++c) {
            float total = 0;
            for (long r = 0; r < repeat; ++r) total += s[r * channels + c];
            for (long r = 0; r < repeat; ++r) s[r * channels + c] = total * inverse;
        }
        // A second look at the block, which is still in the nearest cache: no cancellation, however far from 0.
        for (long at = start * channels; at < last; at += lanes) {
            const long length = std::min(lanes, last - at);
            const T* row = x + at;
#pragma omp simd
            for (long i = 0; i < length; ++i) {
                const float d = load(row + i) - s[i];
                q[i] += d * d;
            }
        }
        for (long c = 0; c < channels; ++c) {
            float total = 0;
            for (long r = 0; r < repeat; ++r) total += q[r * channels + c];
            mean[c] = s[c];
            m2[c] = total;
        }
        merge(found, static_cast<double>(end - start), mean.data(), m2.data(), channels);
    }
}

template <typename T, bool SILU>
void affine_chunk(const T* x, T* out, long count, const float* centre, const float* scale, const float* shift,
                  long pattern) {
    for (long at = 0; at < count; at += pattern) {
        const long length = std::min(pattern, count - at);
        const T* from = x + at;
        T* to = out + at;
#pragma omp simd
        for (long i = 0; i < length; ++i) {
            // less the mean first: multiplied out into the shift, it would cancel against a large x * scale
            float y = (load(from + i) - centre[i]) * scale[i] + shift[i];
            if (SILU) y = y / (1.0f + exponential(-y));
            store(to + i, y);
        }
    }
}

template <typename T>
void group_norm(const T* x, T* out, const float* weight, const float* bias, long images, long pixels, long channels,
                long groups, double eps, bool silu, int threads) {
    const long chunks = (pixels + CHUNK - 1) / CHUNK, width = channels / groups;
    const long repeat = repeats(channels), pattern = repeat * channels;
    std::vector<Partial> partial(images * chunks);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long task = 0; task < images * chunks; ++task) {
        const long image = task / chunks, from = (task % chunks) * CHUNK;
        chunk_statistics(x + image * pixels * channels, from, std::min(from + CHUNK, pixels), channels, partial[task]);
    }
    std::vector<float> centre(images * pattern), scale(images * pattern), shift(images * pattern);
    for (long image = 0; image < images; ++image) {
        Partial whole = partial[image * chunks];
        for (long k = 1; k < chunks; ++k) {
            const Partial& next = partial[image * chunks + k];
            merge(whole, next.count, next.mean.data(), next.m2.data(), channels);
        }
        for (long g = 0; g < groups; ++g) {
            double mean = 0, m2 = 0;
            for (long c = g * width; c < (g + 1) * width; ++c) mean += whole.mean[c];
            mean /= static_cast<double>(width);
            for (long c = g * width; c < (g + 1) * width; ++c) {
                const double delta = whole.mean[c] - mean;
                m2 += whole.m2[c] + whole.count * delta * delta;
            }
            const double rstd = 1.0 / std::sqrt(m2 / (whole.count * static_cast<double>(width)) + eps);
            for (long c = g * width; c < (g + 1) * width; ++c) {
                for (long r = 0; r < repeat; ++r) {
                    const long at = image * pattern + r * channels + c;
                    centre[at] = static_cast<float>(mean);
                    scale[at] = static_cast<float>(rstd * weight[c]);
                    shift[at] = bias[c];
                }
            }
        }
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long task = 0; task < images * chunks; ++task) {
        const long image = task / chunks, from = (task % chunks) * CHUNK;
        const long offset = (image * pixels + from) * channels;
        const long count = (std::min(from + CHUNK, pixels) - from) * channels;
        const long at = image * pattern;
        const float *m = centre.data() + at, *a = scale.data() + at, *b = shift.data() + at;
        if (silu) affine_chunk<T, true>(x + offset, out + offset, count, m, a, b, pattern);
        else affine_chunk<T, false>(x + offset, out + offset, count, m, a, b, pattern);
    }
}

template <typename T>
void softmax(const T* x, T* out, long rows, long columns, float factor, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long r = 0; r < rows; ++r) {
        const T* from = x + r * columns;
        T* to = out + r * columns;
        std::vector<float> row(columns);
        float* e = row.data();
        float top = load(from);
#pragma omp simd reduction(max : top)
        for (long c = 0; c < columns; ++c) top = std::max(top, load(from + c));
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long c = 0; c < columns; ++c) {
            e[c] = exponential((load(from + c) - top) * factor);
            sum += e[c];
        }
        const float inverse = 1.0f / sum;
#pragma omp simd
        for (long c = 0; c < columns; ++c) store(to + c, e[c] * inverse);
    }
}

struct Taps {
    const int32_t *lower, *upper;
    const float* weight;
};

// One sampling group: bilinear to the window's grid, then value * scale + shift, into its channels of an NHWC tensor.
template <typename S, typename T>
void place(const S* source, T* out, long images, long bands, long height, long width, long out_height, long out_width,
           long channels, const int32_t* places, const float* scale, const float* shift, Taps rows, Taps columns,
           int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long image = 0; image < images; ++image) {
        for (long y = 0; y < out_height; ++y) {
            std::vector<float> between(width), line(out_width);
            T* to = out + (image * out_height + y) * out_width * channels;
            for (long band = 0; band < bands; ++band) {
                const S* plane = source + (image * bands + band) * height * width;
                const S *above = plane + rows.lower[y] * width, *below = plane + rows.upper[y] * width;
                const float w = rows.weight[y], a = scale[band], b = shift[band];
                for (long x = 0; x < width; ++x) {
                    const float top = load(above + x);
                    between[x] = top + w * (load(below + x) - top);
                }
                for (long x = 0; x < out_width; ++x) {
                    const float left = between[columns.lower[x]];
                    line[x] = (left + columns.weight[x] * (between[columns.upper[x]] - left)) * a + b;
                }
                T* column = to + places[band];
                for (long x = 0; x < out_width; ++x) store(column + x * channels, line[x]);
            }
        }
    }
}

// (images, h + 1, w + 1, 4 * channels) -> (images, 2h, 2w, channels): output pixel (2i + a, 2j + b) is channel block
// 2a + b of place (i + a, j + b).
template <typename T>
void interleave(const T* x, T* out, long images, long height, long width, long channels, int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long image = 0; image < images; ++image) {
        for (long y = 0; y < 2 * height; ++y) {
            const long a = y % 2, row = y / 2 + a;
            const T* from = x + (image * (height + 1) + row) * (width + 1) * 4 * channels;
            T* to = out + (image * 2 * height + y) * 2 * width * channels;
            for (long j = 0; j < width; ++j)
                for (long b = 0; b < 2; ++b)
                    std::memcpy(to + (2 * j + b) * channels, from + ((j + b) * 4 + 2 * a + b) * channels,
                                channels * sizeof(T));
        }
    }
}

template <typename S>
int place_as(int kind, const S* source, void* out, long images, long bands, long height, long width, long out_height,
             long out_width, long channels, const int32_t* places, const float* scale, const float* shift, Taps rows,
             Taps columns, int threads) {
    if (kind == 0)
        place(source, static_cast<float*>(out), images, bands, height, width, out_height, out_width, channels, places,
              scale, shift, rows, columns, threads);
    else
        place(source, static_cast<bf16*>(out), images, bands, height, width, out_height, out_width, channels, places,
              scale, shift, rows, columns, threads);
    return 0;
}

}  // namespace

extern "C" {

// x, out: (images, pixels, channels) of float32 (kind 0) or bfloat16 (kind 1); out may be x. Returns 1 for an unknown
// kind.
int eocube_group_norm(int kind, const void* x, void* out, const float* weight, const float* bias, int64_t images,
                      int64_t pixels, int64_t channels, int64_t groups, double eps, int silu, int threads) {
    if (kind == 0)
        group_norm(static_cast<const float*>(x), static_cast<float*>(out), weight, bias, images, pixels, channels,
                   groups, eps, silu != 0, threads);
    else if (kind == 1)
        group_norm(static_cast<const bf16*>(x), static_cast<bf16*>(out), weight, bias, images, pixels, channels, groups,
                   eps, silu != 0, threads);
    else return 1;
    return 0;
}

// Row-wise softmax of x * factor; x, out: (rows, columns). Returns 1 for an unknown kind.
int eocube_softmax(int kind, const void* x, void* out, int64_t rows, int64_t columns, float factor, int threads) {
    if (kind == 0) softmax(static_cast<const float*>(x), static_cast<float*>(out), rows, columns, factor, threads);
    else if (kind == 1) softmax(static_cast<const bf16*>(x), static_cast<bf16*>(out), rows, columns, factor, threads);
    else return 1;
    return 0;
}

// See `interleave`. Returns 1 for an unknown kind.
int eocube_interleave(int kind, const void* x, void* out, int64_t images, int64_t height, int64_t width,
                      int64_t channels, int threads) {
    if (kind == 0)
        interleave(static_cast<const float*>(x), static_cast<float*>(out), images, height, width, channels, threads);
    else if (kind == 1)
        interleave(static_cast<const bf16*>(x), static_cast<bf16*>(out), images, height, width, channels, threads);
    else return 1;
    return 0;
}

// source: (images, bands, height, width) of uint8 (0), uint16 (1), int16 (2) or float32 (3); out: (images, out_height,
// out_width, channels) of float32 (kind 0) or bfloat16 (kind 1), of which the channels `places` are written. A row of
// `out` lies between source rows row_lower and row_upper, at row_weight from the lower to the upper; columns likewise.
// Returns 1 for an unknown kind.
int eocube_place(int source_kind, int kind, const void* source, void* out, int64_t images, int64_t bands,
                 int64_t height, int64_t width, int64_t out_height, int64_t out_width, int64_t channels,
                 const int32_t* places, const float* scale, const float* shift, const int32_t* row_lower,
                 const int32_t* row_upper, const float* row_weight, const int32_t* column_lower,
                 const int32_t* column_upper, const float* column_weight, int threads) {
    const Taps rows{row_lower, row_upper, row_weight}, columns{column_lower, column_upper, column_weight};
    if (kind != 0 && kind != 1) return 1;
    const auto run = [&](auto* typed) {
        return place_as(kind, typed, out, images, bands, height, width, out_height, out_width, channels, places, scale,
                        shift, rows, columns, threads);
    };
    switch (source_kind) {
        case 0: return run(static_cast<const uint8_t*>(source));
        case 1: return run(static_cast<const uint16_t*>(source));
        case 2: return run(static_cast<const int16_t*>(source));
        case 3: return run(static_cast<const float*>(source));
        default: return 1;
    }
}
}
