"""Bytes in and out: mapped files, archives, checksums, layouts, and the engine that fills them."""
