"""What people train, in small, from text to segmentations and other tasks, each with a planted cause at a known place."""

from _setups import dense, detection, images, series, tabular, tasks, text, transformers, volumes
from _setups._base import Setup

SETUPS: dict[str, tuple[str, Setup]] = {
    name: (modality.__name__.rpartition(".")[2], setup)
    for modality in (text, tabular, series, images, dense, detection, transformers, tasks, volumes)
    for name, setup in modality.setups()
}
"""By name: the modality, and the set-up."""
