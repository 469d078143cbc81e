"""What is done to a checkpoint that stays what it is: cut into shards and joined, hashed, edited, pruned, packed.

Tensors are taken as they are stored, quantized or not, and written by the formats' own writers.
"""
