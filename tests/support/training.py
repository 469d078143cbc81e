"""What PyTorch saves of a small model that several processes train: `python training.py RANK WORLD FOLDER`.

Into FOLDER: full.pt, the whole state; dcp/ and fsdp1/, distributed checkpoints of FSDP2 and FSDP1; ranks/ and ranks1/,
the state dict of each rank; with four processes mesh/, whose tensors are cut along two axes of the mesh.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn


def model() -> Any:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3, bias=False), nn.LayerNorm(3), nn.Linear(3, 8))
    layers.register_buffer("seen", torch.arange(7))
    return layers


def trained(rank: int, world: int, folder: Path) -> None:
    import torch.distributed as dist
    from torch.distributed import checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard

    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=world)
    if rank == 0:
        torch.save(model().state_dict(), folder / "full.pt")
    if world == 4:
        _mesh(rank, folder / "mesh")
    else:
        mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
        layers = model()
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(layers, mesh=mesh)
        state = layers.state_dict()
        torch.save(state, folder / "ranks" / f"model_world_size_{world}_rank_{rank}.pt")
        momentum = {name: torch.zeros_like(each) for name, each in state.items()}
        dcp.save({"model": state, "optim": momentum, "step": 3}, checkpoint_id=folder / "dcp")
        older = FullyShardedDataParallel(model(), use_orig_params=True, device_id=torch.device("cpu"))
        with FullyShardedDataParallel.state_dict_type(older, StateDictType.SHARDED_STATE_DICT):
            state = older.state_dict()
        torch.save(state, folder / "ranks1" / f"model_world_size_{world}_rank_{rank}.pt")
        dcp.save(state, checkpoint_id=folder / "fsdp1")
        with FullyShardedDataParallel.state_dict_type(older, StateDictType.LOCAL_STATE_DICT):
            dcp.save(older.state_dict(), checkpoint_id=folder / "flat")
        with FullyShardedDataParallel.state_dict_type(older, StateDictType.FULL_STATE_DICT):
            state = older.state_dict()
        if rank == 0:
            torch.save(state, folder / "gathered.pt")
    dist.destroy_process_group()


def _mesh(rank: int, folder: Path) -> None:
    """FSDP of what tensor parallelism has cut, on a mesh of two by two; and replicas."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    layers = _even()
    if rank == 0:
        torch.save(layers.state_dict(), folder / "full.pt")
    parallelize_module(layers, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(layers, mesh=mesh["fsdp"])
    torch.save(layers.state_dict(), folder / "ranks" / f"model_world_size_4_rank_{rank}.pt")
    dcp.save(layers.state_dict(), checkpoint_id=folder / "dcp")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ddp", "fsdp"))
    layers = _even()
    fully_shard(layers, mesh=mesh)
    torch.save(layers.state_dict(), folder / "replicas" / f"model_world_size_4_rank_{rank}.pt")


def _even() -> Any:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))


if __name__ == "__main__":
    trained(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
