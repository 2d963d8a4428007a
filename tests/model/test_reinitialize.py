from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_explain.core.draws import KeyedDraws
from lightning_explain.model.reinitialize import randomized, top_down
from networks import samples, trained

DRAWS = KeyedDraws(0)


class Language(nn.Module):
    """An embedding tied to the head, a recurrent layer, attention, a layer of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 20, bias=False)
        self.embedding = nn.Embedding(20, 8)
        self.head.weight = self.embedding.weight
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.scale = nn.Parameter(torch.full((8,), 3.0))

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.recurrent(self.embedding(tokens))
        x, _ = self.attention(x, x, x)
        return self.head(x.mean(1) * self.scale)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}


def objects(model: nn.Module) -> dict[str, int]:
    return {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}


def digit_samples() -> Tensor:
    return samples()[0]


def tokens() -> Tensor:
    return torch.arange(12).reshape(3, 4)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "digits": (trained, digit_samples),
    "language": (Language, tokens),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_as_before_afterwards_also_after_an_exception(name: str) -> None:
    model, x = MODELS[name][0]().eval(), MODELS[name][1]()
    before, held, output = values(model), objects(model), model(x)
    layers = top_down(model, lambda: model(x))
    with pytest.raises(RuntimeError, match="inside"), randomized(layers, DRAWS, 0):  # noqa: PT012
        assert not torch.allclose(model(x), output)
        raise RuntimeError("inside")
    assert objects(model) == held, "the same tensors, which an optimizer holds"
    assert all(torch.equal(value, before[key]) for key, value in values(model).items())
    assert torch.equal(model(x), output)


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_is_random_alone_and_numbers_belong_to_seed_draw_and_place(name: str) -> None:
    model, x = MODELS[name][0]().eval(), MODELS[name][1]()
    layers = top_down(model, lambda: model(x))

    def outputs(count: int, seed: int = 0, draw: int = 0) -> Tensor:
        with randomized(layers[:count], KeyedDraws(seed), draw):
            return model(x)

    assert torch.equal(outputs(2), outputs(2))
    for other in (outputs(2, seed=1), outputs(2, draw=1), outputs(1), model(x)):
        assert not torch.allclose(outputs(2), other)


def test_more_layers_keep_what_fewer_have() -> None:
    model = trained()
    layers = top_down(model, lambda: model(digit_samples()))
    with randomized(layers[:2], DRAWS, 0):
        head = model.head.weight.clone()
    with randomized(layers, DRAWS, 0):
        assert torch.equal(model.head.weight, head)
        assert torch.equal(model.stem[1].running_mean, torch.zeros(8)), "statistics are reset as well"


def test_the_global_generator_is_not_moved() -> None:
    model, state = trained(), torch.get_rng_state()
    with randomized(top_down(model, lambda: model.eval()(digit_samples())), DRAWS, 0):
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_come_in_the_order_in_which_they_run_the_last_one_first() -> None:
    model = trained()
    names = {module: name for name, module in model.named_modules()}
    found = [names[layer] for layer in top_down(model, lambda: model(digit_samples()))]
    assert found == ["head", "block.bn2", "block.conv2", "block.bn1", "block.conv1", "stem.1", "stem.0"]


def test_the_order_of_definition_does_not_matter_and_a_weight_that_another_uses_runs_with_it() -> None:
    model = Language()
    names = {module: name for name, module in model.named_modules()}
    found = [names[layer] for layer in top_down(model, lambda: model(tokens()))]
    assert found == ["head", "attention.out_proj", "attention", "recurrent", "embedding", ""]


def test_who_shares_a_parameter_gets_the_same_new_one() -> None:
    model = Language()
    with randomized([model.head], DRAWS, 0):
        assert model.head.weight is model.embedding.weight


def test_a_parameter_without_a_way_to_reset_it_becomes_normal_of_its_size() -> None:
    model = Language()
    model.scale = nn.Parameter(torch.full((4000,), 3.0))
    with randomized([model], DRAWS, 0):
        assert model.scale.std().item() == pytest.approx(3, rel=0.05)
        assert abs(model.scale.mean().item()) < 0.2
    assert torch.equal(model.scale, torch.full((4000,), 3.0))
