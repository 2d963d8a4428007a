"""The Lightning callback: when to explain during training, and what happens to failures and checkpoints.

In: the user's arguments, a Trainer and its module. Out: logged scalars and pictures, saved reports, state in
checkpoints. With ``loggers`` and ``demo`` the only packages that may import Lightning; only ``config.py`` imports
OmegaConf and Hydra. Must not import ``report``, ``demo`` or ``cli``, nor do any mathematics.
Begin reading with ``callback.py`` (when), then ``monitor_base.py`` (one explanation); ``replay.py`` explains finished trainings.
"""
