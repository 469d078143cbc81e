/* Binding of the kernels: `converter._native`, on the stable ABI of Python 3.11.
 *
 * Everything is checked before the GIL is dropped; kernels themselves trust their arguments.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "grids.h"
#include "kernels.h"
#include "mapping.h"

/* Grids that encoding a type needs, -1 for none. */
static int grid_of(const char *name) {
    static const struct { const char *name; int which; } GRID_TYPES[] = {
        {"IQ2_XXS", GRID_IQ2_XXS}, {"IQ2_XS", GRID_IQ2_XS}, {"IQ2_S", GRID_IQ2_S},   {"IQ1_S", GRID_IQ1},
        {"IQ1_M", GRID_IQ1},       {"IQ3_XXS", GRID_IQ3_XXS}, {"IQ3_S", GRID_IQ3_S},
    };
    for (size_t i = 0; i < sizeof GRID_TYPES / sizeof *GRID_TYPES; ++i)
        if (strcmp(GRID_TYPES[i].name, name) == 0) return GRID_TYPES[i].which;
    return -1;
}

static const kernel *get_kernel(const char *name) {
    const kernel *k = find_kernel(name);
    if (!k) PyErr_Format(PyExc_ValueError, "no kernel for type '%s'", name);
    return k;
}

/* Takes a C-contiguous buffer; a float buffer must be of native binary32 values, aligned to four bytes. */
static bool get_buffer(PyObject *object, Py_buffer *view, bool writable, bool floats, const char *what) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be a C-contiguous%s buffer", what, writable ? " writable" : "");
        return false;
    }
    const char *format = view->format ? view->format : "B";
    const bool typed = strcmp(format, floats ? "f" : "B") == 0;
    const bool aligned = !floats || (uintptr_t)view->buf % sizeof(float) == 0;
    if (typed && aligned) return true;
    PyErr_Format(typed ? PyExc_ValueError : PyExc_TypeError, "%s must hold %s", what,
                 typed ? "aligned floats" : floats ? "float32 values" : "uint8 values");
    PyBuffer_Release(view);
    return false;
}

/* Whether the two share a byte; the kernels may write ahead of what they have read. */
static bool overlap(const Py_buffer *a, const Py_buffer *b) {
    const char *a0 = a->buf, *b0 = b->buf;
    return a->len && b->len && a0 < b0 + b->len && b0 < a0 + a->len;
}

static bool check_encode(const kernel *k, const Py_buffer *x, const Py_buffer *out, Py_ssize_t row,
                         const Py_buffer *weights) {
    const Py_ssize_t n = x->len / (Py_ssize_t)sizeof(float);
    if (!k->encode) {
        PyErr_Format(PyExc_ValueError, "%s has no encoder", k->name);
    } else if (row <= 0 || row % k->block != 0) {
        PyErr_Format(PyExc_ValueError, "a row of %zd elements does not divide into %s blocks of %d", row, k->name, k->block);
    } else if (n % row != 0) {
        PyErr_Format(PyExc_ValueError, "%zd elements are not a whole number of rows of %zd", n, row);
    } else if (out->len / k->size != n / k->block || out->len % k->size != 0) {
        PyErr_Format(PyExc_ValueError, "output of %zd bytes does not fit %zd elements of %s", out->len, n, k->name);
    } else if (weights && weights->len / (Py_ssize_t)sizeof(float) != row) {
        PyErr_Format(PyExc_ValueError, "weights must be as long as a row, %zd", row);
    } else if (!weights && k->needs_weights) {
        PyErr_Format(PyExc_ValueError, "%s cannot be encoded without importance weights", k->name);
    } else if (overlap(x, out) || (weights && overlap(weights, out))) {
        PyErr_SetString(PyExc_ValueError, "output overlaps an input");
    } else {
        return true;
    }
    return false;
}

PyDoc_STRVAR(encode_doc, "encode(name, x, out, row, weights=None, effort=0)\n\n"
                         "Encodes the float32 buffer `x`, rows of `row` elements, into the uint8 buffer `out`.\n"
                         "With `effort` 1 to 3, blocks are made better than the reference's where the type can be.");

static PyObject *encode(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    PyObject *x_object, *out_object, *weights_object = Py_None;
    Py_ssize_t row;
    int level = 0;
    if (!PyArg_ParseTuple(args, "sOOn|Oi:encode", &name, &x_object, &out_object, &row, &weights_object, &level)) return NULL;
    if (level < 0 || level > MOST_EFFORT) return PyErr_Format(PyExc_ValueError, "effort is 0 to %d, not %d", MOST_EFFORT, level);
    const kernel *k = get_kernel(name);
    if (!k) return NULL;
    Py_buffer x, out, weights;
    const bool weighted = weights_object != Py_None;
    bool ok = false;
    if (!get_buffer(x_object, &x, false, true, "x")) return NULL;
    if (!get_buffer(out_object, &out, true, false, "out")) goto release_x;
    if (weighted && !get_buffer(weights_object, &weights, false, true, "weights")) goto release_out;
    ok = check_encode(k, &x, &out, row, weighted ? &weights : NULL);
    const int which = grid_of(name);
    if (ok && which >= 0 && !ensure_grid(which)) {
        PyErr_NoMemory();
        ok = false;
    }
    if (ok) {
        const int64_t rows = x.len / (Py_ssize_t)sizeof(float) / row;
        Py_BEGIN_ALLOW_THREADS
        const float *given = weighted ? weights.buf : NULL;
        effort_fn *better = level ? find_effort(name) : NULL;
        if (better) better(x.buf, out.buf, rows, row, given, level);
        else k->encode(x.buf, out.buf, rows, row, given);
        Py_END_ALLOW_THREADS
    }
    if (weighted) PyBuffer_Release(&weights);
release_out:
    PyBuffer_Release(&out);
release_x:
    PyBuffer_Release(&x);
    return ok ? Py_NewRef(Py_None) : NULL;
}

/* Whether `factor`, bytes of BF16 numbers, is the triangle that a row needs. */
static bool check_factor(const Py_buffer *factor, Py_ssize_t row, const Py_buffer *out) {
    const Py_ssize_t count = row / 2 <= PY_SSIZE_T_MAX / 4 / (row + 1) ? row * (row + 1) / 2 : 0;
    if (factor->len != 2 * count || (uintptr_t)factor->buf % 2) {
        PyErr_Format(PyExc_ValueError, "factor must be %zd aligned BF16 numbers for a row of %zd", count, row);
    } else if (overlap(factor, out)) {
        PyErr_SetString(PyExc_ValueError, "output overlaps an input");
    } else {
        return true;
    }
    return false;
}

PyDoc_STRVAR(feedback_doc, "feedback(name, x, out, row, factor, effort=0)\n\n"
                           "Encodes as `encode`, with errors spread by the uint8 buffer `factor` (native/feedback.c).");

static PyObject *feedback(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    PyObject *x_object, *out_object, *factor_object;
    Py_ssize_t row;
    int level = 0;
    if (!PyArg_ParseTuple(args, "sOOnO|i:feedback", &name, &x_object, &out_object, &row, &factor_object, &level)) return NULL;
    if (level < 0 || level > MOST_EFFORT) return PyErr_Format(PyExc_ValueError, "effort is 0 to %d, not %d", MOST_EFFORT, level);
    const kernel *k = get_kernel(name);
    if (!k) return NULL;
    feedback_fn *encodes = find_feedback(name);
    if (!encodes) return PyErr_Format(PyExc_ValueError, "%s is not encoded with error feedback", name);
    Py_buffer x, out, factor;
    bool ok = false, done = true;
    if (!get_buffer(x_object, &x, false, true, "x")) return NULL;
    if (!get_buffer(out_object, &out, true, false, "out")) goto release_x;
    if (!get_buffer(factor_object, &factor, false, false, "factor")) goto release_out;
    ok = check_encode(k, &x, &out, row, NULL) && check_factor(&factor, row, &out);
    if (ok) {
        const int64_t rows = x.len / (Py_ssize_t)sizeof(float) / row;
        Py_BEGIN_ALLOW_THREADS
        done = encodes(x.buf, out.buf, rows, row, factor.buf, level);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&factor);
release_out:
    PyBuffer_Release(&out);
release_x:
    PyBuffer_Release(&x);
    if (!done) return PyErr_NoMemory();
    return ok ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(decode_doc, "decode(name, data, out)\n\nDecodes the uint8 buffer `data` into the float32 buffer `out`.");

static PyObject *decode(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    PyObject *data_object, *out_object;
    if (!PyArg_ParseTuple(args, "sOO:decode", &name, &data_object, &out_object)) return NULL;
    const kernel *k = get_kernel(name);
    if (!k) return NULL;
    Py_buffer data, out;
    if (!get_buffer(data_object, &data, false, false, "data")) return NULL;
    if (!get_buffer(out_object, &out, true, true, "out")) {
        PyBuffer_Release(&data);
        return NULL;
    }
    const int64_t n = out.len / (Py_ssize_t)sizeof(float);
    const bool fits = data.len % k->size == 0 && n % k->block == 0 && data.len / k->size == n / k->block;
    const bool apart = !overlap(&data, &out);
    if (fits && apart) {
        Py_BEGIN_ALLOW_THREADS
        k->decode(data.buf, out.buf, n);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_Format(PyExc_ValueError, fits ? "output overlaps the input" : "%zd bytes of %s do not decode to %zd elements",
                     data.len, k->name, (Py_ssize_t)n);
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&data);
    return fits && apart ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(nonfinite_doc, "nonfinite(name, data)\n\nCounts NaN and infinities in the uint8 buffer of a dense type.");

static PyObject *nonfinite(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    PyObject *object;
    if (!PyArg_ParseTuple(args, "sO:nonfinite", &name, &object)) return NULL;
    const kernel *k = get_kernel(name);
    if (!k) return NULL;
    Py_buffer data;
    if (!get_buffer(object, &data, false, false, "data")) return NULL;
    const bool ok = k->nonfinite && data.len % k->size == 0;
    int64_t count = 0;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        count = k->nonfinite(data.buf, data.len / k->size);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_Format(PyExc_ValueError, k->nonfinite ? "%zd bytes are not whole values of %s" : "cannot count in %zd bytes of %s",
                     data.len, k->name);
    }
    PyBuffer_Release(&data);
    return ok ? PyLong_FromLongLong(count) : NULL;
}

PyDoc_STRVAR(largest_doc, "largest(x) -> float\n\nThe largest magnitude in a float32 buffer: NaN where one is in it, 0 where nothing is.");

static PyObject *largest(PyObject *self, PyObject *object) {
    (void)self;
    Py_buffer x;
    if (!get_buffer(object, &x, false, true, "x")) return NULL;
    float found;
    Py_BEGIN_ALLOW_THREADS
    found = largest_in_use()(x.buf, x.len / (Py_ssize_t)sizeof(float));
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&x);
    return PyFloat_FromDouble(found);
}

PyDoc_STRVAR(compare_doc,
             "compare(a, b, at, histogram=None) -> tuple\n\n"
             "Compares two float32 buffers of the same length, whose first element is number `at`; adds\n"
             "|error| of one group of 256 in four to the uint8 buffer `histogram`, which holds uint64 counts. Returns the fields of `comparison`.");

static PyObject *compare(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *a_object, *b_object, *histogram_object = Py_None;
    Py_ssize_t at;
    if (!PyArg_ParseTuple(args, "OOn|O:compare", &a_object, &b_object, &at, &histogram_object)) return NULL;
    Py_buffer a, b, histogram = {0};
    comparison c = {.worst_at = -1};
    bool ok = false;
    if (!get_buffer(a_object, &a, false, true, "a")) return NULL;
    if (!get_buffer(b_object, &b, false, true, "b")) goto release_a;
    const bool counted = histogram_object != Py_None;
    if (counted && !get_buffer(histogram_object, &histogram, true, false, "histogram")) goto release_b;
    if (a.len != b.len) {
        PyErr_SetString(PyExc_ValueError, "a and b differ in length");
    } else if (counted && (histogram.len != ERROR_BUCKETS * 8 || (uintptr_t)histogram.buf % 8 ||
                           overlap(&histogram, &a) || overlap(&histogram, &b))) {
        PyErr_Format(PyExc_ValueError, "histogram must be %d aligned counts of 8 bytes, apart from a and b", ERROR_BUCKETS);
    } else {
        ok = true;
        Py_BEGIN_ALLOW_THREADS
        compare_in_use()(a.buf, b.buf, a.len / (Py_ssize_t)sizeof(float), at, counted ? histogram.buf : NULL, &c);
        Py_END_ALLOW_THREADS
    }
    if (counted) PyBuffer_Release(&histogram);
release_b:
    PyBuffer_Release(&b);
release_a:
    PyBuffer_Release(&a);
    if (!ok) return NULL;
    return Py_BuildValue("(dddddddLLLLL)", c.noise, c.energy_a, c.energy_b, c.product, c.max_abs, c.max_rel, c.worst,
                         (long long)c.worst_at, (long long)c.differing, (long long)c.nonfinite_a,
                         (long long)c.nonfinite_b, (long long)c.mismatched);
}

PyDoc_STRVAR(crc32c_doc, "crc32c(data, crc=0) -> int\n\nCRC-32C of the uint8 buffer `data` after bytes whose sum is `crc`.");

static PyObject *crc32c(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *object;
    unsigned long crc = 0;
    if (!PyArg_ParseTuple(args, "O|k:crc32c", &object, &crc)) return NULL;
    Py_buffer data;
    if (!get_buffer(object, &data, false, false, "data")) return NULL;
    Py_BEGIN_ALLOW_THREADS
    crc = crc32c_in_use()((uint32_t)crc, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

PyDoc_STRVAR(skip_strings_doc,
             "skip_strings(data, start, count) -> int\n\n"
             "The position after `count` strings of a GGUF file, each a little-endian u64 of its bytes and these;\n"
             "-1 where the buffer `data` ends before.");

static PyObject *skip_strings(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *object;
    Py_ssize_t start, count;
    if (!PyArg_ParseTuple(args, "Onn:skip_strings", &object, &start, &count)) return NULL;
    Py_buffer data;
    if (!get_buffer(object, &data, false, false, "data")) return NULL;
    const uint8_t *bytes = data.buf;
    uint64_t left = start < 0 || start > data.len ? 0 : (uint64_t)(data.len - start);
    bool inside = start >= 0 && start <= data.len;
    for (; inside && count > 0; --count) {
        uint64_t length = 0;
        inside = left >= 8;
        for (int i = 0; inside && i < 8; ++i) length |= (uint64_t)bytes[data.len - (Py_ssize_t)left + i] << 8 * i;
        inside = inside && length <= left - 8;
        if (inside) left -= 8 + length;
    }
    const Py_ssize_t end = inside ? data.len - (Py_ssize_t)left : -1;
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(end);
}

PyDoc_STRVAR(types_doc, "types() -> {name: (block, size, encodes, needs_weights)}\n\nEvery type there is a kernel for.");

static PyObject *types(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *all = PyDict_New();
    const kernel *k;
    for (int i = 0; all && (k = kernel_at(i)); ++i) {
        PyObject *row = Py_BuildValue("(iiNN)", k->block, k->size, PyBool_FromLong(k->encode != NULL),
                                      PyBool_FromLong(k->needs_weights));
        if (!row || PyDict_SetItemString(all, k->name, row) < 0) Py_CLEAR(all);
        Py_XDECREF(row);
    }
    return all;
}

PyDoc_STRVAR(isa_doc, "isa() -> str\n\nThe instruction set in use.");

static PyObject *isa(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyUnicode_FromString(current_isa());
}

PyDoc_STRVAR(available_doc, "available_isas() -> tuple\n\nInstruction sets this machine can run, best first.");

/* The names that `at` gives one after the other. */
static PyObject *names_of(const char *(*at)(int)) {
    PyObject *list = PyList_New(0);
    const char *name;
    for (int i = 0; list && (name = at(i)); ++i) {
        PyObject *text = PyUnicode_FromString(name);
        if (!text || PyList_Append(list, text) < 0) Py_CLEAR(list);
        Py_XDECREF(text);
    }
    PyObject *tuple = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return tuple;
}

static const char *isa_at(int i) { return available_isas()[i]; }

static PyObject *available(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return names_of(isa_at);
}

PyDoc_STRVAR(feedback_types_doc, "feedback_types() -> tuple\n\nTypes that `feedback` encodes.");

static PyObject *feedback_types(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return names_of(feedback_at);
}

PyDoc_STRVAR(select_doc, "select_isa(name)\n\nSwitches every kernel; ValueError where the machine cannot run it.");

static PyObject *select_one(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(args, "s:select_isa", &name)) return NULL;
    if (!select_isa(name)) return PyErr_Format(PyExc_ValueError, "instruction set '%s' is not available here", name);
    return Py_NewRef(Py_None);
}

static PyMethodDef METHODS[] = {
    {"encode", encode, METH_VARARGS, encode_doc},
    {"feedback", feedback, METH_VARARGS, feedback_doc},
    {"feedback_types", feedback_types, METH_NOARGS, feedback_types_doc},
    {"decode", decode, METH_VARARGS, decode_doc},
    {"nonfinite", nonfinite, METH_VARARGS, nonfinite_doc},
    {"largest", largest, METH_O, largest_doc},
    {"compare", compare, METH_VARARGS, compare_doc},
    {"crc32c", crc32c, METH_VARARGS, crc32c_doc},
    {"skip_strings", skip_strings, METH_VARARGS, skip_strings_doc},
    {"types", types, METH_NOARGS, types_doc},
    {"isa", isa, METH_NOARGS, isa_doc},
    {"available_isas", available, METH_NOARGS, available_doc},
    {"select_isa", select_one, METH_VARARGS, select_doc},
    {NULL, NULL, 0, NULL},
};

static int prepare(PyObject *module) {
    init_grids();
    init_crc32c();
    select_isa(available_isas()[0]);
    return add_mapping(module) ? 0 : -1;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, prepare}, {0, NULL}};

static PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "converter._native",
    .m_doc = "Quantization kernels and what else is too slow in Python; converter.tensors.kernels is the face of the kernels.",
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&MODULE); }
