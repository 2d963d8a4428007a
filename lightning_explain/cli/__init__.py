"""The command line, ``lightning-explain`` or ``python -m lightning_explain``.

In: arguments and configuration files. Out: printed tables, and exit codes.
Must not contain more than parsing and printing, nor import Lightning, OmegaConf or Hydra itself.
Begin reading with ``main.py``; ``from_config.py`` builds what a configuration names.
"""
