"""MXFP4 as gpt-oss has it: experts' blocks and scales, which are the transpose of what the model calculates with.

`NAME_blocks` uint8 (experts, out, in / 32, 16), `NAME_scales` uint8 (experts, out, in / 32) become `NAME`
(experts, in, out). A GGUF takes the blocks themselves (`tensors.mxfp4`). Source: transformers' `integrations/mxfp4.py`.
"""

from __future__ import annotations

import numpy as np

from converter.quant.sources.floats import MICRO
from converter.quant.sources.scheme import Form, Module, Scheme
from converter.quant.sources.stored import Floats, Fours, Stored, Values
from converter.tensors.dtypes import BF16
from converter.tensors.mxfp4 import BLOCKS, SCALES

_BYTES = MICRO // 2
# A row is read through the whole of an expert's matrix, of which many rows take no more than one does.
_SLAB = 32 << 20


def _read(module: Module) -> Stored:
    given = module.shape(BLOCKS)
    if len(given) != 4 or given[-1] != _BYTES or 0 in given:
        raise module.corrupt(f"blocks are {list(given)}, not experts of rows of blocks of {_BYTES} bytes")
    experts, out, count, _ = given
    module.expect(SCALES, (experts, out, count))
    blocks, scales, row = module[BLOCKS], module[SCALES], count * MICRO

    def turned(expert: int, start: int, stop: int) -> Floats:
        """Columns [start, stop) of an expert's matrix as it is stored, as rows."""
        first, last = start // MICRO, -(-stop // MICRO)
        whole = blocks.rows(expert * out * count, (expert + 1) * out * count).reshape(out, count, _BYTES)
        codes = np.ascontiguousarray(whole[:, first:last]).reshape(out, -1)
        own = np.ascontiguousarray(scales.rows(expert * out, (expert + 1) * out)[:, first:last])
        part = Fours(module.where, (out, 2 * codes.shape[1]), lambda low, high: codes[low:high],
                     lambda low, high: own[low:high], MICRO)  # fmt: skip
        return part.values(0, out)[:, start - first * MICRO : stop - first * MICRO].T

    def read(start: int, stop: int) -> Floats:
        made = np.empty((stop - start, out), np.float32)
        for expert in range(start // row, -(-stop // row)):
            low, high = max(start, expert * row), min(stop, (expert + 1) * row)
            made[low - start : high - start] = turned(expert, low - expert * row, high - expert * row)
        return made

    return Values((experts, row, out), read, 16 * out, BF16, _SLAB)


SCHEME = Scheme("MXFP4", ("mxfp4",), (Form(BLOCKS, (SCALES,), _read, plain=""),))
