"""``torchrun`` whose workers are forks, which need not import anything: ``python torchrun.py [OPTION ...] SCRIPT [ARGUMENT ...]``.

The agent, the rendezvous and what the workers find in their environment are those of the command.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.launcher.api import elastic_launch


def main(arguments: Sequence[str]) -> None:
    given = run.parse_args(list(arguments))
    config = run.config_from_args(given)[0]
    config.start_method = "fork"
    elastic_launch(config, work)(given.training_script, *given.training_script_args)


def work(script: str, *arguments: str) -> None:
    """One worker."""
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
