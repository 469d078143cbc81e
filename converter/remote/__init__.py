"""Models that lie elsewhere: on the Hugging Face Hub, behind https, in object stores.

An address is a path before it gets here (`converter.address`). `mirror.reach` asks its host what lies there and makes
a folder of it: pointers for the files, whose bytes `blocks` fetches by ranges where a reader asks for them. What a host
is asked is in `hub`, `web` and `stores`; what goes wrong on the way, and how often it is tried again, in `attempts`.
"""
