"""The verbs of the command line, one module each.

A module has `VERB` (what help says about it, as data), `add_arguments(parser)` and `run(args) -> Outcome`. It imports
what is heavy inside functions, for `--help` imports all of them. `convert` is the verb where none is named.
"""
