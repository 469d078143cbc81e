/* The searches of search.h, LANES groups at a time: lane k works on group k, in scalar order.
 *
 * Groups come transposed: element i of lane k is at [i * LANES + k]. The result is the scalar one, except
 * for lanes in the returned mask (NaN, infinity, or codes beyond the range in which nearest_int is a
 * plain rounding): those must be searched by search.h. Lanes without data may hold zeros.
 */
#ifndef CONVERTER_LANES_SEARCH_H
#define CONVERTER_LANES_SEARCH_H

#include <stdbool.h>

#include "lanes.h"
#include "search.h"

#define MAGIC 12582912.0f     /* 1.5 * 2^23: adding it rounds to an integer */
#define ROUNDS_TO 4194303.0f  /* the largest magnitude it does so for */

/* nearest(v) in [low, high], where both ends are given plus MAGIC. */
static inline vf round_between(vf v, vf low, vf high) {
    const vf magic = splat(MAGIC);
    return vmax(vmin(v + magic, high), low) - magic;
}

/* Lanes where v is NaN or beyond the range of nearest_int. */
static inline vm out_of_range(vf v) { return inverse_of(less(vabs(v), splat(ROUNDS_TO))); }

static inline vf cost(vf diff, bool absolute) {
    if (absolute) return vabs(diff);
    return diff * diff;
}

/* What the codes of the best candidate are made with: nearest(inverse * (x - base)); all zero where inverse is. */
typedef struct {
    float inverse[LANES], base[LANES];
} code_maker;

/* As search_affine; `maker` may be NULL. */
static inline uint32_t affine_lanes(int n, int top, const float *x, const float *w, affine_grid grid, float *scale_out,
                                    float *minus_min, code_maker *maker) {
    const vf zero = splat(0.0f), low_end = splat(MAGIC), high_end = splat(MAGIC + (float)top);
    vf lowest[UNROLL], min[UNROLL], max[UNROLL], sum_w[UNROLL], sum_x[UNROLL], scale[UNROLL], best[UNROLL];
    vf inverse[UNROLL], codes[32 * UNROLL], best_inverse[UNROLL], base[UNROLL];
    vm bad[UNROLL], flat[UNROLL];
    EACH(u) {
        min[u] = max[u] = load(x + u * WIDTH);
        sum_w[u] = load(w + u * WIDTH);
        sum_x[u] = sum_w[u] * min[u];
    }
    for (int i = 1; i < n; ++i)
        EACH(u) {
            const vf xi = load(x + i * LANES + u * WIDTH), wi = load(w + i * LANES + u * WIDTH);
            min[u] = vmin(xi, min[u]);
            max[u] = vmax(xi, max[u]);
            sum_w[u] = sum_w[u] + wi;
            sum_x[u] = sum_x[u] + wi * xi;
        }
    EACH(u) {
        lowest[u] = min[u];
        min[u] = pick(less(zero, min[u]), zero, min[u]);
        flat[u] = equal(max[u], min[u]);
        inverse[u] = best_inverse[u] = splat((float)top) / (max[u] - min[u]);
        base[u] = min[u];
        scale[u] = splat(1.0f) / inverse[u];
        best[u] = zero;
        bad[u] = either(out_of_range(sum_x[u] * zero), out_of_range(inverse[u] * (max[u] - min[u])));
    }
    for (int i = 0; i < n; ++i)
        EACH(u) {
            const vf xi = load(x + i * LANES + u * WIDTH), wi = load(w + i * LANES + u * WIDTH);
            const vf code = round_between(inverse[u] * (xi - min[u]), low_end, high_end);
            const vf diff = scale[u] * code + min[u] - xi;
            best[u] = best[u] + wi * cost(diff, grid.absolute);
        }
    for (int step = 0; step <= grid.steps; ++step) {
        vf sum_l[UNROLL], sum_l2[UNROLL], sum_xl[UNROLL], error[UNROLL], trial_scale[UNROLL], trial_min[UNROLL];
        vm solved[UNROLL];
        EACH(u) {
            inverse[u] = splat(grid.first + grid.step * (float)step + (float)top) / (max[u] - min[u]);
            bad[u] = either(bad[u], either(out_of_range(inverse[u] * (lowest[u] - min[u])),
                                           out_of_range(inverse[u] * (max[u] - min[u]))));
            sum_l[u] = sum_l2[u] = sum_xl[u] = error[u] = zero;
        }
        for (int i = 0; i < n; ++i)
            EACH(u) {
                const vf xi = load(x + i * LANES + u * WIDTH), wi = load(w + i * LANES + u * WIDTH);
                const vf code = round_between(inverse[u] * (xi - min[u]), low_end, high_end);
                const vf wl = wi * code;
                codes[i * UNROLL + u] = code;
                sum_l[u] = sum_l[u] + wl;
                sum_l2[u] = sum_l2[u] + wl * code;
                sum_xl[u] = sum_xl[u] + wl * xi;
            }
        EACH(u) {
            const vf determinant = sum_w[u] * sum_l2[u] - sum_l[u] * sum_l[u];
            const vf fitted_scale = (sum_w[u] * sum_xl[u] - sum_x[u] * sum_l[u]) / determinant;
            const vf fitted_min = (sum_l2[u] * sum_x[u] - sum_l[u] * sum_xl[u]) / determinant;
            const vm above = less(zero, fitted_min);
            solved[u] = less(zero, determinant);
            trial_min[u] = pick(above, zero, fitted_min);
            trial_scale[u] = pick(above, sum_xl[u] / sum_l2[u], fitted_scale);
        }
        for (int i = 0; i < n; ++i)
            EACH(u) {
                const vf xi = load(x + i * LANES + u * WIDTH), wi = load(w + i * LANES + u * WIDTH);
                const vf diff = trial_scale[u] * codes[i * UNROLL + u] + trial_min[u] - xi;
                error[u] = error[u] + wi * cost(diff, grid.absolute);
            }
        EACH(u) {
            const vm better = both(solved[u], less(error[u], best[u]));
            best[u] = pick(better, error[u], best[u]);
            best_inverse[u] = pick(better, inverse[u], best_inverse[u]);
            base[u] = pick(better, min[u], base[u]);
            scale[u] = pick(better, trial_scale[u], scale[u]);
            min[u] = pick(better, trial_min[u], min[u]);
        }
    }
    uint32_t redo = 0;
    EACH(u) {
        store(scale_out + u * WIDTH, pick(flat[u], zero, scale[u]));
        store(minus_min + u * WIDTH, -min[u]);
        if (maker) {
            store(maker->inverse + u * WIDTH, pick(flat[u], zero, best_inverse[u]));
            store(maker->base + u * WIDTH, base[u]);
        }
        redo |= bits(both(bad[u], inverse_of(flat[u]))) << WIDTH * u;
    }
    return redo;
}

/* As search_symmetric, with weights `w`; `maker` may be NULL. */
static inline uint32_t symmetric_lanes(int n, int levels, const float *x, const float *w, float *scale_out,
                                       code_maker *maker) {
    const vf zero = splat(0.0f), low_end = splat(MAGIC - (float)levels), high_end = splat(MAGIC + (float)(levels - 1));
    vf magnitude[UNROLL], max[UNROLL], scale[UNROLL], best[UNROLL], defect[UNROLL], weighted[32 * UNROLL];
    vf best_inverse[UNROLL];
    EACH(u) magnitude[u] = max[u] = scale[u] = best[u] = defect[u] = zero;
    for (int i = 0; i < n; ++i)
        EACH(u) {
            const vf xi = load(x + i * LANES + u * WIDTH), a = vabs(xi);
            const vm larger = less(magnitude[u], a);
            magnitude[u] = pick(larger, a, magnitude[u]);
            max[u] = pick(larger, xi, max[u]);
            defect[u] = defect[u] + xi * zero;
            weighted[i * UNROLL + u] = load(w + i * LANES + u * WIDTH) * xi;
        }
    for (int step = 0; step <= 18; ++step) {
        const int shift = step == 0 ? 0 : step < 10 ? step - 10 : step - 9;
        vf inverse[UNROLL], sumlx[UNROLL], suml2[UNROLL];
        EACH(u) {
            inverse[u] = splat(-((float)levels + 0.1f * (float)shift)) / max[u];
            sumlx[u] = suml2[u] = zero;
        }
        for (int i = 0; i < n; ++i)
            EACH(u) {
                const vf xi = load(x + i * LANES + u * WIDTH), wi = load(w + i * LANES + u * WIDTH);
                const vf code = round_between(inverse[u] * xi, low_end, high_end);
                sumlx[u] = sumlx[u] + weighted[i * UNROLL + u] * code;
                suml2[u] = suml2[u] + wi * code * code;
            }
        EACH(u) {
            const vf ratio = sumlx[u] / suml2[u];
            const vm positive = less(zero, suml2[u]);
            const vm better = step == 0 ? inverse_of(equal(suml2[u], zero))
                                        : both(positive, less(best[u] * suml2[u], sumlx[u] * sumlx[u]));
            scale[u] = pick(better, ratio, scale[u]);
            best[u] = pick(better, ratio * sumlx[u], best[u]);
            if (step == 0) best_inverse[u] = inverse[u];
            best_inverse[u] = pick(better, inverse[u], best_inverse[u]);
        }
    }
    uint32_t redo = 0;
    EACH(u) {
        const vm empty = less(magnitude[u], splat(GROUP_EPS));
        if (maker) {
            store(maker->inverse + u * WIDTH, pick(empty, zero, best_inverse[u]));
            store(maker->base + u * WIDTH, zero);
        }
        store(scale_out + u * WIDTH, pick(empty, zero, scale[u]));
        redo |= bits(inverse_of(equal(defect[u], zero))) << WIDTH * u;
    }
    return redo;
}

/* One register of coordinate_lanes: codes and what follows from them, element by element. */
typedef struct {
    vf code[16], lx[16], l2[16];  /* the code, and its part in the sums of w * x * code and w * code^2 */
    vf below[16], above[16];      /* a quotient surely between these rounds to the code */
} coordinates;

static inline void set_code(coordinates *c, int i, vf x, vf code, vf low, vf high) {
    const vf w = x * x, infinity = splat(HUGE_VALF);
    c->code[i] = code;
    c->lx[i] = w * x * code;
    c->l2[i] = w * code * code;
    c->below[i] = pick(equal(code, low), -infinity, code - splat(0.4999f));
    c->above[i] = pick(equal(code, high), infinity, code + splat(0.4999f));
}

/* As search_coordinate. Most codes stay as they are, which a comparison with `below` and `above` tells
 * without the division; lanes that changed nothing in a pass change nothing in the next one either. */
static inline uint32_t coordinate_lanes(int n, int levels, const float *x, float *scale_out) {
    const vf zero = splat(0.0f), low = splat(-(float)levels), high = splat((float)(levels - 1));
    uint32_t redo = 0;
    EACH(u) {
        coordinates c;
        vf magnitude = zero, max = zero, defect = zero, sumlx = zero, suml2 = zero;
        for (int i = 0; i < n; ++i) {
            const vf xi = load(x + i * LANES + u * WIDTH), a = vabs(xi);
            const vm larger = less(magnitude, a);
            magnitude = pick(larger, a, magnitude);
            max = pick(larger, xi, max);
            defect = defect + xi * zero;
        }
        const vf inverse = low / max;
        vm bad = inverse_of(equal(defect, zero));
        for (int i = 0; i < n; ++i) {
            const vf xi = load(x + i * LANES + u * WIDTH);
            set_code(&c, i, xi, round_between(inverse * xi, low + splat(MAGIC), high + splat(MAGIC)), low, high);
            sumlx = sumlx + c.lx[i];
            suml2 = suml2 + c.l2[i];
        }
        for (int pass = 0; pass < 5; ++pass) {
            uint32_t changed = 0;
            for (int i = 0; i < n; ++i) {
                const vf xi = load(x + i * LANES + u * WIDTH);
                vf lx = sumlx - c.lx[i], l2 = suml2 - c.l2[i];
                const vf product = xi * l2;
                const vm exact = less(splat(1e-30f), lx); /* the products below are not subnormal */
                const vm kept = both(exact, both(less(c.below[i] * lx, product), less(product, c.above[i] * lx)));
                const vm open = both(less(zero, lx), inverse_of(kept));
                if (!bits(open)) continue;
                const vf wanted = product / lx, w = xi * xi;
                const vf code = round_between(wanted, low + splat(MAGIC), high + splat(MAGIC));
                const vm tried = both(open, inverse_of(equal(code, c.code[i])));
                bad = either(bad, both(open, out_of_range(wanted)));
                lx = lx + w * xi * code;
                l2 = l2 + w * code * code;
                const vm gains = both(less(zero, l2), less(sumlx * sumlx * l2, lx * lx * suml2));
                const vm better = both(tried, gains);
                set_code(&c, i, xi, pick(better, code, c.code[i]), low, high);
                sumlx = pick(better, lx, sumlx);
                suml2 = pick(better, l2, suml2);
                changed |= bits(better);
            }
            if (!changed) break;
        }
        const vm empty = less(magnitude, splat(GROUP_EPS));
        const vf scale = pick(less(zero, suml2), sumlx / suml2, zero);
        store(scale_out + u * WIDTH, pick(empty, zero, scale));
        redo |= bits(both(bad, inverse_of(empty))) << WIDTH * u;
    }
    return redo;
}

/* As search_positive; negative values are left to the scalar search. Codes come transposed, as floats. */
static inline uint32_t positive_lanes(int n, int top, const float *x, const float *w, float *codes, float *scale_out) {
    const vf zero = splat(0.0f), low_end = splat(MAGIC), high_end = splat(MAGIC + (float)top);
    uint32_t redo = 0;
    EACH(u) {
        vf max = zero, sumlx = zero, suml2 = zero, best = zero, code[16];
        vm bad = less(zero, zero);
        for (int i = 0; i < n; ++i) {
            const vf xi = load(x + i * LANES + u * WIDTH);
            max = vmax(max, xi);
            bad = either(bad, inverse_of(both(equal(xi * zero, zero), inverse_of(less(xi, zero)))));
        }
        vf inverse = zero;
        for (int step = 0; step <= 8; ++step) { /* 0 first, then -4..-1, 1..4 tenths of a level */
            const int shift = step < 5 ? step - 5 : step - 4;
            const vf trial = splat(step == 0 ? (float)top : 0.1f * (float)shift + (float)top) / max;
            const vf scale = splat(1.0f) / trial;
            vf error = zero;
            for (int i = 0; i < n; ++i) {
                const vf xi = load(x + i * LANES + u * WIDTH), wi = load(w + i * LANES + u * WIDTH);
                const vf diff = xi - scale * round_between(trial * xi, low_end, high_end);
                error = error + wi * diff * diff;
            }
            const vm better = step == 0 ? equal(max, max) : less(error, best);
            best = pick(better, error, best);
            inverse = pick(better, trial, inverse);
        }
        for (int i = 0; i < n; ++i) {
            const vf xi = load(x + i * LANES + u * WIDTH), wi = load(w + i * LANES + u * WIDTH);
            code[i] = round_between(inverse * xi, low_end, high_end);
            sumlx = sumlx + wi * xi * code[i];
            suml2 = suml2 + wi * code[i] * code[i];
        }
        for (int pass = 0; pass < 5; ++pass) {
            uint32_t changed = 0;
            for (int i = 0; i < n; ++i) {
                const vf xi = load(x + i * LANES + u * WIDTH), wi = load(w + i * LANES + u * WIDTH);
                vf lx = sumlx - wi * xi * code[i], l2 = suml2 - wi * code[i] * code[i];
                const vm open = both(less(zero, lx), less(zero, l2));
                const vf wanted = xi * l2 / lx, next = round_between(wanted, low_end, high_end);
                bad = either(bad, both(open, out_of_range(wanted)));
                lx = lx + wi * xi * next;
                l2 = l2 + wi * next * next;
                const vm gains = less(sumlx * sumlx * l2, lx * lx * suml2);
                const vm better = both(both(open, gains), inverse_of(equal(next, code[i])));
                code[i] = pick(better, next, code[i]);
                sumlx = pick(better, lx, sumlx);
                suml2 = pick(better, l2, suml2);
                changed |= bits(better);
            }
            if (!changed) break;
        }
        const vm empty = less(max, splat(GROUP_EPS));
        for (int i = 0; i < n; ++i) store(codes + i * LANES + u * WIDTH, pick(empty, zero, code[i]));
        store(scale_out + u * WIDTH, pick(both(less(zero, suml2), inverse_of(empty)), sumlx / suml2, zero));
        redo |= bits(bad) << WIDTH * u;
    }
    return redo;
}

#endif
