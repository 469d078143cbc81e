"""HDF5: generic trees of datasets, and what Keras 1 to 3 keeps in them (`.h5`, `.weights.h5`, `.keras`)."""

from converter.formats.base import Format
from converter.formats.hdf5 import keras_archive
from converter.formats.hdf5.checkpoint import (
    EXTENSIONS,
    branch_hdf5,
    branch_keras,
    open_hdf5,
    open_keras,
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
        texts=None,
        branch=branch_hdf5,
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
        texts=None,
        branch=branch_keras,
    ),
)
