"""The command line: arguments, printing, exit codes. No logic.

A verb is one module in `commands/`; `verbs` finds them, and makes help and parsers of what they say about themselves.
"""
