"""PyTorch files, `.pt .pth .bin .ckpt`: zip archives, streams of before 1.6, TorchScript, sharded sets."""

from converter.formats.base import Format
from converter.formats.torch.checkpoint import EXTENSIONS, open_torch, open_torch_key, sniff
from converter.formats.torch.values import TYPES
from converter.formats.torch.writer import layout
from converter.tensors.dtypes import DTYPES

FORMATS = (
    Format(
        name="torch",
        extensions=EXTENSIONS,
        dialect="hf",
        description="PyTorch file (zip, stream before 1.6, TorchScript's tensors), or a sharded set by its .index.json",
        dtypes=frozenset(DTYPES[ours].name for ours in TYPES.values()),
        sniff=sniff,
        open=open_torch,
        layout=layout,
        shards=True,
        open_key=open_torch_key,
    ),
)
