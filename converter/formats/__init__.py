"""The formats, one file each; a new file in this folder is found by being there."""
