"""Flax checkpoints: one MessagePack map of maps whose leaves are arrays."""

from converter.formats.base import Format
from converter.formats.flax.reader import LEAVES, NAMES, open_flax, sniff
from converter.formats.flax.writer import layout

FORMATS = (
    Format(
        name="flax",
        extensions=(".msgpack",),
        dialect=None,
        description="Flax checkpoint: MessagePack tree of arrays, by flax.serialization",
        dtypes=frozenset(NAMES),
        sniff=sniff,
        open=open_flax,
        layout=layout,
        free_metadata=frozenset({LEAVES}),
    ),
)
