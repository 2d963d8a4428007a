"""Ranks: how they share samples, exchange results, and agree on failures.

In: samples, or values of one rank. Out: each rank's share, values gathered from all ranks, failures known to all.
All communication uses a gloo group of its own, so that no rank waits longer than a deadline.
Must not import any other package of lightning_explain, not even ``core``, nor Lightning or Captum.
Begin reading with ``ranks.py``; ``collectives.py`` exchanges Python objects, ``trees.py``
compares and copies tensors in dictionaries, ``fsdp.py`` holds what sharded weights need.
"""
