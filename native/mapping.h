/* Files as memory that a truncated file does not take away. */
#ifndef CONVERTER_MAPPING_H
#define CONVERTER_MAPPING_H

#include <Python.h>
#include <stdbool.h>

/* Adds the type `Mapping` to the module where the system has bus errors; false with an exception set. */
bool add_mapping(PyObject *module);

#endif
