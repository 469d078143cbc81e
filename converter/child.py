"""A process of ours that does what a stranger's file says: what bounds it."""

from __future__ import annotations


def limit_memory(nbytes: int) -> None:
    """Give this process so many bytes of memory of its own at most, where the system can (Windows cannot)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = nbytes if most == resource.RLIM_INFINITY else min(nbytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))
