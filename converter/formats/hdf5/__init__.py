"""HDF5: generic trees of datasets, and what Keras 1 to 3 keeps in them (`.h5`, `.weights.h5`, `.keras`)."""

from converter.formats.base import Format
from converter.formats.hdf5 import keras_archive
from converter.formats.hdf5.checkpoint import (
    EXTENSIONS,
    open_hdf5,
    open_hdf5_key,
    open_keras,
    open_keras_key,
    sniff,
    sniff_keras,
)
from converter.formats.hdf5.writer import WRITTEN, layout

FORMATS = (
    Format(
        name="hdf5",
        extensions=EXTENSIONS,
        dialect=None,
        description="HDF5 file: any tree of datasets, Keras .h5 and .weights.h5",
        dtypes=frozenset(WRITTEN),
        sniff=sniff,
        open=open_hdf5,
        layout=layout,
        free_metadata=None,
        open_key=open_hdf5_key,
    ),
    Format(
        name="keras",
        extensions=(".keras",),
        dialect=None,
        description="Keras 3 archive: weights, and its configuration as text",
        dtypes=frozenset(WRITTEN),
        sniff=sniff_keras,
        open=open_keras,
        layout=keras_archive.layout,
        free_metadata=None,
        open_key=open_keras_key,
    ),
)
