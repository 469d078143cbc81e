/* `Mapping`: the bytes of a file as memory that can always be read.
 *
 * Where a file is cut short while it is mapped, or its disk fails, the kernel answers a read with SIGBUS. A handler puts
 * zeros in the place of what is lost and remembers which mapping it was; whoever relies on the bytes asks for `faulted`
 * first. A bus error anywhere else goes to the handler that was there before.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "mapping.h"

#if !defined(_WIN32)

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

/* A range of addresses that is ours. The handler walks the list at any time: regions are used again, never freed, and
 * `start` is 0 while one is not in use. */
typedef struct region {
    _Atomic uintptr_t start;
    _Atomic size_t size;
    atomic_bool faulted;
    struct region *next;
} region;

static _Atomic(region *) regions;
static atomic_long faults; /* of all regions, ever */
static struct sigaction previous;
static atomic_bool stepped_aside;
static uintptr_t page;

static region *region_at(uintptr_t address) {
    for (region *r = atomic_load(&regions); r; r = r->next) {
        const uintptr_t start = atomic_load(&r->start);
        const size_t size = atomic_load(&r->size);
        if (start && start <= address && address - start < size && atomic_load(&r->start) == start) return r;
    }
    return NULL;
}

/* Zeros from the page of `address` to the end: what follows a page that is not there is not there either. */
static bool fill_up(const region *r, uintptr_t address) {
    const uintptr_t from = address & ~(page - 1), end = atomic_load(&r->start) + atomic_load(&r->size);
    const int flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS;
    return mmap((void *)from, end - from, PROT_READ, flags, -1, 0) != MAP_FAILED;
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    const int saved = errno;
    const bool by_read = info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR;
    region *r = by_read ? region_at((uintptr_t)info->si_addr) : NULL;
    if (r && fill_up(r, (uintptr_t)info->si_addr)) {
        atomic_store(&r->faulted, true);
        atomic_fetch_add(&faults, 1);
    } else if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
    } else {
        /* Step aside: the read is tried again, and the one before us gets its signal; if that comes back, the default. */
        struct sigaction fallback = {.sa_handler = SIG_DFL};
        sigaction(number, atomic_exchange(&stepped_aside, true) ? &fallback : &previous, NULL);
        if (!by_read) raise(number); /* sent by somebody: nothing is tried again */
    }
    errno = saved;
}

/* Whoever set a handler after us comes after us again. */
static bool handle_bus_errors(void) {
    struct sigaction now;
    if (sigaction(SIGBUS, NULL, &now) < 0) return false;
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_bus_error) return true;
    struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    previous = now;
    atomic_store(&stepped_aside, false);
    return sigaction(SIGBUS, &ours, NULL) == 0;
}

/* A free region, or a new one; the GIL is held. */
static region *take_region(void) {
    region *r = atomic_load(&regions);
    while (r && atomic_load(&r->start)) r = r->next;
    if (!r && (r = calloc(1, sizeof *r))) {
        r->next = atomic_load(&regions);
        atomic_store(&regions, r);
    }
    return r;
}

typedef struct {
    PyObject_HEAD
    region *where;
} mapping;

static void *address_of(const region *r) { return (void *)atomic_load(&r->start); }

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int fd;
    Py_ssize_t size;
    if (kwargs && PyDict_Size(kwargs)) return PyErr_Format(PyExc_TypeError, "Mapping takes no keywords");
    if (!PyArg_ParseTuple(args, "in:Mapping", &fd, &size)) return NULL;
    if (size <= 0) return PyErr_Format(PyExc_ValueError, "cannot map %zd bytes", size);
    mapping *self = (mapping *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self) return NULL;
    page = (uintptr_t)sysconf(_SC_PAGESIZE);
    region *r = take_region();
    void *memory = r && handle_bus_errors() ? mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (memory == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    atomic_store(&r->faulted, false);
    atomic_store(&r->size, (size_t)size);
    atomic_store(&r->start, (uintptr_t)memory);
    self->where = r;
    return (PyObject *)self;
}

static void mapping_dealloc(PyObject *object) {
    mapping *self = (mapping *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->where) {
        void *memory = address_of(self->where);
        const size_t size = atomic_load(&self->where->size);
        atomic_store(&self->where->start, 0); /* before the address can be another's */
        munmap(memory, size);
    }
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int mapping_buffer(PyObject *object, Py_buffer *view, int flags) {
    const region *r = ((mapping *)object)->where;
    return PyBuffer_FillInfo(view, object, address_of(r), (Py_ssize_t)atomic_load(&r->size), 1, flags);
}

PyDoc_STRVAR(advise_doc, "advise(advice)\n\nA hint for the whole of it, one of mmap's MADV constants.");

static PyObject *mapping_advise(PyObject *object, PyObject *args) {
    const region *r = ((mapping *)object)->where;
    int advice;
    if (!PyArg_ParseTuple(args, "i:advise", &advice)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    madvise(address_of(r), atomic_load(&r->size), advice); /* a system that does not follow it is none the worse */
    Py_END_ALLOW_THREADS
    return Py_NewRef(Py_None);
}

static PyObject *mapping_faulted(PyObject *object, void *unused) {
    (void)unused;
    return PyBool_FromLong(atomic_load(&((mapping *)object)->where->faulted));
}

PyDoc_STRVAR(mapping_doc, "Mapping(fd, size)\n\nThe first `size` bytes of an open file, read-only; `fd` may be closed then.");

static PyMethodDef METHODS[] = {
    {"advise", mapping_advise, METH_VARARGS, advise_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ATTRIBUTES[] = {
    {"faulted", mapping_faulted, NULL, "Whether a part of it could not be read and was seen as zeros.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot SLOTS[] = {
    {Py_tp_doc, (void *)mapping_doc}, {Py_tp_new, mapping_new},           {Py_tp_dealloc, mapping_dealloc},
    {Py_tp_methods, METHODS},         {Py_tp_getset, ATTRIBUTES},         {Py_bf_getbuffer, mapping_buffer},
    {0, NULL},
};

static PyType_Spec SPEC = {
    .name = "converter._native.Mapping",
    .basicsize = sizeof(mapping),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = SLOTS,
};

static PyObject *count_faults(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromLong(atomic_load(&faults));
}

static PyMethodDef FUNCTIONS[] = {
    {"faults", count_faults, METH_NOARGS, "faults() -> int\n\nReads that found nothing, of all mappings there ever were."},
    {NULL, NULL, 0, NULL},
};

bool add_mapping(PyObject *module) {
    if (PyModule_AddFunctions(module, FUNCTIONS) < 0) return false;
    PyObject *type = PyType_FromModuleAndSpec(module, &SPEC, NULL);
    const bool added = type && PyModule_AddObjectRef(module, "Mapping", type) == 0;
    Py_XDECREF(type);
    return added;
}

#else

bool add_mapping(PyObject *module) { return module != NULL; } /* a file that is mapped there cannot be cut short */

#endif
