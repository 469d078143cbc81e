"""The passes: from an opened checkpoint to the files to be. Everything that can fail by name, shape or type fails here.

`PASSES` is the whole way, in groups, because not everybody goes all of it: `convert verify` stops where types are
chosen, `convert compare` goes through what the model is once, and through the rest for every quant. A new stage
(checkpoints that arrive quantized, adapters, a search for types) is one more function in one group.
No pass reads a tensor byte, but the zero points and the like that tell what holds codes which arrive quantized.
"""

from __future__ import annotations

from converter.planning.asked import check, detach
from converter.planning.card import made_card
from converter.planning.files import describe, encode, lay_out, name_file, speak
from converter.planning.graph import write_graph
from converter.planning.model import map_names, merge, narrow, pack, unpack, widen
from converter.planning.types import choose, open_calibration, open_matrix, weigh

ASKED = (check, detach)
MODEL = (widen, unpack, merge, map_names, narrow, pack)
TYPES = (open_matrix, open_calibration, choose, weigh)
FILES = (encode, speak, describe, made_card, write_graph, name_file, lay_out)
PASSES = (*ASKED, *MODEL, *TYPES, *FILES)
