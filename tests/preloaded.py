"""What scripts of the tests import, once, for the process that is forked for each of them (``processes.py``)."""

from __future__ import annotations

import gc
from importlib import import_module

# Collections that look at what imports leave find nothing, there and in the forks.
gc.disable()

for _name in (
    "lightning.pytorch",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "torch.distributed.run",
    "captum.attr",
    "sklearn.datasets",
    "lightning_explain.monitor.callback",
):
    import_module(_name)

gc.freeze()
gc.enable()
gc.set_threshold(50_000, 20, 50)
