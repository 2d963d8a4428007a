"""What methods at a layer have in common: how their maps lie on the image."""

from __future__ import annotations

from torch import Tensor

from lightning_explain.maps import Reshape, arrange, check_reshape
from lightning_explain.methods._captum import freeze
from lightning_explain.types import Attribution, Subject, as_tuple
from lightning_explain.visits import PLAIN, Spot, Want


class AtLayer:
    """A method whose maps are shaped as a layer's output or input. Its fields are the dataclass's own."""

    layer: str | None
    attribute_to_layer_input: bool
    reshape: Reshape

    @property
    def spot(self) -> Spot:
        """Where it looks."""
        return Spot(self.layer, self.attribute_to_layer_input)

    @property
    def wants(self) -> frozenset[Want]:
        """Gradient and activation there."""
        return frozenset({(PLAIN, self.spot), (None, self.spot)})

    def __post_init__(self) -> None:
        freeze(self)
        check_reshape(type(self).__name__, self.reshape)

    def arranged(self, subject: Subject, found: Attribution, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Where the map lies on the image, as :func:`lightning_explain.maps.arrange` says it.

        Raises:
            ValueError: If ``reshape`` does not fit the map.
        """
        layer = subject.layer(self.layer)
        return arrange(as_tuple(found), inputs, self.reshape, layer, self.attribute_to_layer_input)
