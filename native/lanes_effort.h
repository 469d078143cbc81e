/* The search of `--effort 2` and `3`, one lane per sub-block, sums in scalar order.
 *
 * A block is x ~ d * scale * code - dmin * min: the steps d and dmin are of the block, scale and min are small whole
 * numbers of each of its sub-blocks, a code is of one element. Whatever of these a type lacks is 1 (or 0, for a
 * min). Three things are done by turns: scales and mins move to the neighbour with the least error, codes follow, and
 * the steps are those of the least squares. Last, steps are multiplied by <x, x> / <x, y>, as in effort.c.
 *
 * What is NaN, or infinite, is no error that is less than another: such blocks are not improved.
 */
#ifndef CONVERTER_LANES_EFFORT_H
#define CONVERTER_LANES_EFFORT_H

#include <stdbool.h>

#include "kernels.h"
#include "lanes_nearest.h"
#include "lanes_search.h"

#define INLINE static inline __attribute__((always_inline))

/* What the blocks of a type are made of. */
typedef struct {
    int n, per;              /* elements of a sub-block, sub-blocks of a block */
    int low, high;           /* the codes */
    int scale_low, scale_high, min_low, min_high;
    bool uneven;             /* codes stand for IQ4_VALUES */
} layout;

#define MOST (LANES * 32)

/* LANES sub-blocks, transposed: element i of sub-block k at [i * LANES + k]. `w` are the weights of the errors,
 * `given` the importance of the columns; both are used only `weighted`. */
typedef struct {
    float x[MOST], w[MOST], given[MOST];
    float sum_w[LANES], sum_x[LANES], sum_xx[LANES]; /* sums of w, w * x, w * x * x */
} batch;

/* Of each lane; d and dmin are the same in all lanes of a block. */
typedef struct {
    float d[LANES], dmin[LANES], scale[LANES], min[LANES];
} steps;

/* Weighted squared error, and the sums of w * code, w * code^2, w * code * x. */
typedef struct {
    float error[LANES], q[LANES], qq[LANES], qx[LANES];
} moments;

INLINE bool affine(layout t) { return t.min_high > 0; }

/* A choice that the compiler makes. */
INLINE vf when(bool yes, vf a, vf b) {
    if (yes) return a;
    return b;
}

INLINE vf nearest_code(layout t, vf v) {
    if (t.uneven) return nearest_value(v);
    return round_between(v, splat(MAGIC + (float)t.low), splat(MAGIC + (float)t.high));
}

INLINE vf load_weight(bool weighted, const batch *b, int at) { return when(weighted, load(b->w + at), splat(1.0f)); }

INLINE vf inverse_step(vf step) { return pick(equal(step, splat(0.0f)), splat(0.0f), splat(1.0f) / step); }

/* Adds up each value over the lanes of a block; all of them get the sum. */
INLINE void share(layout t, float *v) {
    for (int k = 0; t.per > 1 && k < LANES; k += t.per) {
        float sum = v[k];
        for (int j = 1; j < t.per; ++j) sum += v[k + j];
        for (int j = 0; j < t.per; ++j) v[k + j] = sum;
    }
}

INLINE void sum_batch(layout t, bool weighted, batch *b) {
    EACH(u) {
        vf sum_w = splat(0.0f), sum_x = sum_w, sum_xx = sum_w;
        for (int i = 0; i < t.n; ++i) {
            const vf x = load(b->x + i * LANES + u * WIDTH);
            const vf w = load_weight(weighted, b, i * LANES + u * WIDTH), wx = when(weighted, w * x, x);
            if (weighted) sum_w = sum_w + w;
            sum_x = sum_x + wx;
            sum_xx = sum_xx + wx * x;
        }
        store(b->sum_w + u * WIDTH, when(weighted, sum_w, splat((float)t.n)));
        store(b->sum_x + u * WIDTH, sum_x);
        store(b->sum_xx + u * WIDTH, sum_xx);
    }
}

/* Rounds every element to its nearest code. */
INLINE void look(layout t, bool weighted, const batch *b, const steps *s, moments *m) {
    vf step[UNROLL], offset[UNROLL], inverse[UNROLL], error[UNROLL], sum_q[UNROLL], sum_qq[UNROLL], sum_qx[UNROLL];
    EACH(u) {
        step[u] = load(s->d + u * WIDTH) * load(s->scale + u * WIDTH);
        offset[u] = load(s->dmin + u * WIDTH) * load(s->min + u * WIDTH);
        inverse[u] = inverse_step(step[u]);
        error[u] = sum_q[u] = sum_qq[u] = sum_qx[u] = splat(0.0f);
    }
    for (int i = 0; i < t.n; ++i)
        EACH(u) {
            const vf x = load(b->x + i * LANES + u * WIDTH), v = when(affine(t), x + offset[u], x);
            const vf q = nearest_code(t, v * inverse[u]), diff = v - step[u] * q;
            const vf w = load_weight(weighted, b, i * LANES + u * WIDTH), wq = when(weighted, w * q, q);
            error[u] = error[u] + when(weighted, w * diff * diff, diff * diff);
            if (affine(t)) sum_q[u] = sum_q[u] + wq;
            sum_qq[u] = sum_qq[u] + wq * q;
            sum_qx[u] = sum_qx[u] + wq * x;
        }
    EACH(u) {
        store(m->error + u * WIDTH, error[u]);
        store(m->q + u * WIDTH, sum_q[u]);
        store(m->qq + u * WIDTH, sum_qq[u]);
        store(m->qx + u * WIDTH, sum_qx[u]);
    }
}

/* 0, -1, 1, -2, 2, ...: what stands in the middle is tried first, and stays where another is only as good. */
INLINE int neighbour(int i) { return i % 2 ? -(i + 1) / 2 : i / 2; }

INLINE vf moved(const float *codes, int by, int low, int high) {
    return vmin(vmax(load(codes) + splat((float)by), splat((float)low)), splat((float)high));
}

/* The scale and the min of every sub-block, of those at most `window` codes away, with the least error. */
INLINE void settle_scales(layout t, bool weighted, int window, const batch *b, steps *s) {
    const int count = 2 * window + 1, mins = affine(t) ? count : 1;
    vf least[UNROLL], best_scale[UNROLL], best_min[UNROLL];
    EACH(u) least[u] = splat(HUGE_VALF), best_scale[u] = load(s->scale + u * WIDTH), best_min[u] = load(s->min + u * WIDTH);
    for (int trial = 0; trial < count * mins; ++trial) {
        vf scale[UNROLL], min[UNROLL], step[UNROLL], offset[UNROLL], inverse[UNROLL], error[UNROLL];
        EACH(u) {
            scale[u] = moved(s->scale + u * WIDTH, neighbour(trial / mins), t.scale_low, t.scale_high);
            min[u] = moved(s->min + u * WIDTH, neighbour(trial % mins), t.min_low, t.min_high);
            step[u] = load(s->d + u * WIDTH) * scale[u];
            offset[u] = load(s->dmin + u * WIDTH) * min[u];
            inverse[u] = inverse_step(step[u]);
            error[u] = splat(0.0f);
        }
        for (int i = 0; i < t.n; ++i)
            EACH(u) {
                const vf x = load(b->x + i * LANES + u * WIDTH), v = when(affine(t), x + offset[u], x);
                const vf diff = v - step[u] * nearest_code(t, v * inverse[u]);
                const vf w = load_weight(weighted, b, i * LANES + u * WIDTH);
                error[u] = error[u] + when(weighted, w * diff * diff, diff * diff);
            }
        EACH(u) {
            const vm better = less(error[u], least[u]);
            least[u] = pick(better, error[u], least[u]);
            best_scale[u] = pick(better, scale[u], best_scale[u]);
            best_min[u] = pick(better, min[u], best_min[u]);
        }
    }
    EACH(u) store(s->scale + u * WIDTH, best_scale[u]), store(s->min + u * WIDTH, best_min[u]);
}

/* The steps of the least squares for codes as they are; what is not solved stays. Mins stay on their side of zero. */
INLINE void settle_steps(layout t, const batch *b, const moments *m, steps *s) {
    float pp[LANES], px[LANES], pm[LANES], mm[LANES], mx[LANES]; /* p = scale * code, m = min */
    EACH(u) {
        const int at = u * WIDTH;
        const vf scale = load(s->scale + at), min = load(s->min + at);
        store(pp + at, scale * scale * load(m->qq + at));
        store(px + at, scale * load(m->qx + at));
        store(pm + at, scale * min * load(m->q + at));
        store(mm + at, min * min * load(b->sum_w + at));
        store(mx + at, min * load(b->sum_x + at));
    }
    share(t, pp);
    share(t, px);
    if (affine(t)) share(t, pm), share(t, mm), share(t, mx);
    EACH(u) {
        const int at = u * WIDTH;
        const vf most = splat(65504.0f), a = load(pp + at), c = load(mm + at), cross = load(pm + at);
        const vf dx = load(px + at), mx_ = load(mx + at), old = load(s->dmin + at);
        vf d = dx / a, dmin = old;
        if (affine(t)) {
            const vf determinant = a * c - cross * cross;
            const vf both_d = (c * dx - cross * mx_) / determinant, both_min = (cross * dx - a * mx_) / determinant;
            vm solved = both(less(splat(0.0f), determinant), less(vabs(both_min), most));
            if (t.min_high > 1) solved = both(solved, less(splat(0.0f), both_min));
            d = pick(solved, both_d, (dx + old * cross) / a);
            dmin = pick(solved, both_min, old);
        }
        const vm stored = less(vabs(d), most);
        store(s->d + at, through_f16(pick(stored, d, load(s->d + at))));
        if (affine(t)) store(s->dmin + at, through_f16(pick(stored, dmin, old)));
    }
}

/* The sums of given * x * x and given * x * y. */
INLINE void products(layout t, const batch *b, const steps *s, float *xx_out, float *xy_out) {
    EACH(u) {
        const vf step = load(s->d + u * WIDTH) * load(s->scale + u * WIDTH);
        const vf offset = load(s->dmin + u * WIDTH) * load(s->min + u * WIDTH), inverse = inverse_step(step);
        vf xx = splat(0.0f), xy = xx;
        for (int i = 0; i < t.n; ++i) {
            const vf x = load(b->x + i * LANES + u * WIDTH), v = when(affine(t), x + offset, x);
            const vf gx = load(b->given + i * LANES + u * WIDTH) * x;
            xx = xx + gx * x;
            xy = xy + gx * (step * nearest_code(t, v * inverse) - offset);
        }
        store(xx_out + u * WIDTH, xx);
        store(xy_out + u * WIDTH, xy);
    }
}

/* Sums over a block with p = step * code and m = offset, so that y = p - m is what comes back, and r = x - y. */
typedef struct {
    float error[LANES], pp[LANES], pm[LANES], mm[LANES], rp[LANES], rm[LANES]; /* error: of r * r */
} residue;

/* What the error is when p gets longer by the share `by_p`, m by `by_m`. */
INLINE vf error_after(layout t, const residue *e, int at, vf by_p, vf by_m) {
    const vf two = splat(2.0f), pp = load(e->pp + at);
    const vf error = load(e->error + at) - two * by_p * load(e->rp + at) + by_p * by_p * pp;
    if (!affine(t)) return error;
    return error + two * by_m * load(e->rm + at) - two * by_p * by_m * load(e->pm + at) + by_m * by_m * load(e->mm + at);
}

/* By what share a step gets longer, as it is stored. */
INLINE vf lengthened(vf step, vf gain) {
    const vf zero = splat(0.0f);
    return pick(equal(step, zero), zero, through_f16(step * gain) / step - splat(1.0f));
}

/* The gain of each block, and what its error is with that. Steps that an F16 holds too coarsely stay, as in effort.c. */
INLINE void judge(layout t, bool weighted, const batch *b, const steps *s, const moments *m, float *gain_out, float *error_out) {
    residue e;
    float xx[LANES], xy[LANES];
    if (weighted) products(t, b, s, xx, xy);
    EACH(u) {
        const int at = u * WIDTH;
        const vf step = load(s->d + at) * load(s->scale + at), offset = load(s->dmin + at) * load(s->min + at);
        const vf px = step * load(m->qx + at), mx = offset * load(b->sum_x + at);
        const vf pp = step * step * load(m->qq + at), pm = step * offset * load(m->q + at);
        const vf mm = offset * offset * load(b->sum_w + at);
        store(e.error + at, load(m->error + at));
        store(e.pp + at, pp);
        store(e.rp + at, when(affine(t), px - pp + pm, px - pp));
        if (affine(t)) store(e.pm + at, pm), store(e.mm + at, mm), store(e.rm + at, mx - pm + mm);
        if (!weighted) store(xx + at, load(b->sum_xx + at)), store(xy + at, when(affine(t), px - mx, px));
    }
    share(t, xx), share(t, xy), share(t, e.error), share(t, e.pp), share(t, e.rp);
    if (affine(t)) share(t, e.pm), share(t, e.mm), share(t, e.rm);
    EACH(u) {
        const int at = u * WIDTH;
        const vf one = splat(1.0f), wanted = load(xx + at) / load(xy + at), error = load(e.error + at);
        const vf gain = pick(both(less(splat(0.5f), wanted), less(wanted, splat(2.0f))), wanted, one);
        const vf exact = error_after(t, &e, at, gain - one, gain - one);
        const vf by_p = lengthened(load(s->d + at), gain), by_m = when(affine(t), lengthened(load(s->dmin + at), gain), one);
        const vf stored = error_after(t, &e, at, by_p, by_m);
        const vm held = less(stored, splat(DEARER) * vmax(error, exact));
        store(gain_out + at, pick(held, gain, one));
        store(error_out + at, pick(held, stored, error));
    }
}

/* The steps by which the largest number gets the lowest code, or the smallest the lowest and the largest the highest:
 * those of a reference that does not search. */
INLINE void widest_steps(layout t, const batch *b, steps *s) {
    EACH(u) {
        vf most = load(b->x + u * WIDTH), least = most, magnitude = vabs(most);
        for (int i = 1; i < t.n; ++i) {
            const vf x = load(b->x + i * LANES + u * WIDTH), a = vabs(x);
            if (affine(t)) {
                most = vmax(x, most);
                least = vmin(x, least);
            } else {
                most = pick(less(magnitude, a), x, most);
                magnitude = vmax(a, magnitude);
            }
        }
        const vf d = when(affine(t), (most - least) / splat((float)t.high), most / splat((float)t.low));
        store(s->d + u * WIDTH, through_f16(d));
        store(s->dmin + u * WIDTH, when(affine(t), through_f16(splat(0.0f) - least), splat(0.0f)));
        store(s->scale + u * WIDTH, splat(1.0f));
        store(s->min + u * WIDTH, splat(1.0f));
    }
}

/* How far a search goes: by how many codes a scale or a min moves in a round, and from how many steps it starts: the
 * given ones times 1, 1 - SPREAD, 1 + SPREAD, 1 - 2 * SPREAD, ... */
typedef struct {
    int window, rounds, starts;
} reach;

#define SPREAD 0.033f

/* That of a level. Where there is one step to find, the second round brings the most; it is level 2 that must be fast. */
INLINE reach reach_of(layout t, int level) {
    const bool one_step = t.per == 1 || !affine(t);
    if (level == 2) return (reach){1, one_step ? 2 : 3, 1};
    return (reach){2, t.per == 1 ? 6 : 3, 7};
}

/* Steps times `factor`, with the codes of scales and mins that fit them. */
INLINE void scaled(layout t, const steps *from, float factor, steps *s) {
    const vf by = splat(factor), back = splat(1.0f / factor);
    EACH(u) {
        const int at = u * WIDTH;
        const vf scale = round_between(load(from->scale + at) * back, splat(MAGIC + (float)t.scale_low), splat(MAGIC + (float)t.scale_high));
        const vf min = round_between(load(from->min + at) * back, splat(MAGIC + (float)t.min_low), splat(MAGIC + (float)t.min_high));
        store(s->scale + at, scale);
        store(s->min + at, min);
        store(s->d + at, through_f16(load(from->d + at) * by));
        store(s->dmin + at, through_f16(when(t.min_high > 1, load(from->dmin + at) * by, load(from->dmin + at))));
    }
}

/* Of each lane, whether they are `better`: those that are known. */
INLINE void keep(vm better, int at, const steps *s, steps *best) {
    store(best->d + at, pick(better, load(s->d + at), load(best->d + at)));
    store(best->dmin + at, pick(better, load(s->dmin + at), load(best->dmin + at)));
    store(best->scale + at, pick(better, load(s->scale + at), load(best->scale + at)));
    store(best->min + at, pick(better, load(s->min + at), load(best->min + at)));
}

/* The best steps that are found from the `given` ones, which are among them, and their gain. Returns the lanes of
 * blocks that have an error, and one that is a number. */
INLINE uint32_t search_steps(layout t, bool weighted, reach r, const batch *b, const steps *given, steps *best, float *gain) {
    moments m;
    float least[LANES], error[LANES], own_gain[LANES];
    uint32_t usual = 0;
    look(t, weighted, b, given, &m);
    judge(t, weighted, b, given, &m, gain, least);
    EACH(u) {
        const vf error_of_given = load(least + u * WIDTH);
        usual |= bits(both(less(splat(0.0f), error_of_given), less(error_of_given, splat(HUGE_VALF)))) << WIDTH * u;
    }
    *best = *given;
    for (int start = 0; start < r.starts; ++start) {
        steps s = *given;
        if (start) scaled(t, given, 1.0f + SPREAD * (float)neighbour(start), &s);
        for (int round = 0; round < r.rounds; ++round) {
            if (t.per > 1) settle_scales(t, weighted, r.window, b, &s);
            if (t.per > 1 || start || round) look(t, weighted, b, &s, &m);
            settle_steps(t, b, &m, &s);
        }
        look(t, weighted, b, &s, &m);
        judge(t, weighted, b, &s, &m, own_gain, error);
        EACH(u) {
            const int at = u * WIDTH;
            const vm better = less(load(error + at), load(least + at));
            store(least + at, pick(better, load(error + at), load(least + at)));
            store(gain + at, pick(better, load(own_gain + at), load(gain + at)));
            keep(better, at, &s, best);
        }
    }
    return usual;
}

#endif
