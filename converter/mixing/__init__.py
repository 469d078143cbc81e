"""Mixtures of types: read out of a file that has one."""
