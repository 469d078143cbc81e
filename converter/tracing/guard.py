"""What the process that traces a stranger's config may do: compute. No network, no other program, no file, no pickle.

An audit hook of Python's cannot be taken away again by anything that runs after it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from converter.child import limit_memory
from converter.errors import UnsupportedFeature

#: Memory of its own that the process may have, where the system can limit it.
MAX_NBYTES = 24 << 30
#: How many modules and parameters a model may have for each tensor of its checkpoint, and beside that.
PER_TENSOR, FREE = 16, 4096
REFUSED = (
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system",
    "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
    "shutil.rmtree", "pickle.find_class",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def close_doors() -> None:
    """Refuse, from here on, whatever tracing has no need of.

    Raises:
        PermissionError: later, where it is tried.
    """

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event in REFUSED or (event == "open" and _writes(*given[:3])):
            raise PermissionError(f"{event} {str(given[:1])[:80]}, while a model is traced")

    limit_memory(MAX_NBYTES)
    tempfile.gettempdir()  # libraries ask for its name, which is found by trying
    sys.addaudithook(watch)


def _writes(path: object, mode: object, flags: object) -> bool:
    return path != os.devnull and isinstance(flags, int) and bool(flags & _WRITING)


@contextmanager
def bounded(torch: Any, n_tensors: int) -> Iterator[None]:
    """No more modules and parameters than the checkpoint's tensors can be meant for.

    Raises:
        UnsupportedFeature: there are more.
    """
    left = PER_TENSOR * n_tensors + FREE

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UnsupportedFeature(f"config.json wants far more of a model than {n_tensors} tensors can fill")

    registered = torch.nn.modules.module
    handles = (
        registered.register_module_module_registration_hook(count),
        registered.register_module_parameter_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
