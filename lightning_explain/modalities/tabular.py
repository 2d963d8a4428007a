"""Tables: rows of numbers and categories in; their columns, or groups of columns, as units out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import InputFacts, Modality
from lightning_explain.core.naming import nearest
from lightning_explain.core.panels import FeaturesPanel, Panel
from lightning_explain.modalities.plain import Plain


@dataclass(frozen=True)
class Tabular(Plain):
    """A table ``(N, F)``, or one column ``(N,)`` of it: its units are the columns, or groups of them.

    Args:
        feature_names: A name for each column. Default: those that the data set has (``feature_names``, ``columns``); the name of the
            argument or of the batch's entry; or ``x0``, ``x1``, ...
        groups: Columns that are one unit, such as one-hot columns: ``{"color": ["c_red", "c_blue"]}``, by name or index.
        categorical: Columns that hold codes of categories, by name or index; ``True``: all of them. In a table of integers another one
            of the probe's stands for a missing category. Default: columns of an integer dtype, and whole numbers that no gradient reaches
            although the output depends on them, as where a model casts them to look up an embedding.
        means: The mean of each column, from which the colors of a beeswarm are measured. Default: of the probe.
        stds: The standard deviation of each column, in which they are measured. Default: of the probe.

    Raises:
        ValueError: If the input is not ``(N, F)`` or ``(N,)``, has another number of columns, or has no such column.

    Example:
        >>> from lightning_explain.core.contracts import InputFacts
        >>> from lightning_explain.modalities import Tabular
        >>> table = Tabular(feature_names=["age", "red", "blue"], groups={"color": ["red", "blue"]})
        >>> table = table.bound(torch.tensor([[30.0, 0.0, 1.0]]), InputFacts())
        >>> table.units(torch.zeros(4, 3)), table.named(torch.zeros(4, 3))
        (torch.Size([4, 2]), ['age', 'color'])
    """

    on_input: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("beeswarm", "importance", "features", "waterfall")

    feature_names: Any = None
    groups: Any = None
    categorical: Any = None
    means: Any = None
    stds: Any = None

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """With the names of the columns, the groups by index, and the codes of each category."""
        if x.ndim not in (1, 2):
            raise ValueError(f"Tabular needs a table (N, F), or a column (N,), got {tuple(x.shape)}.")
        count = x[0].numel()
        if self.feature_names is not None and len(self.feature_names) != count:
            raise ValueError(
                f"Tabular has {len(self.feature_names)} feature_names for {tuple(x.shape)}; give a name for each column."
            )
        given = facts.names if self.feature_names is None and len(facts.names) == count else self.feature_names
        means, stds = (statistic.tolist() for statistic in _statistics(_table(x)))
        for argument in ("means", "stds"):
            if (own := getattr(self, argument)) is not None and len(own) != count:
                raise ValueError(f"Tabular has {len(own)} {argument} for {tuple(x.shape)}; give one for each column.")
        found = replace(
            self,
            feature_names=None if given is None else tuple(map(str, given)),
            means=tuple(means if self.means is None else self.means),
            stds=tuple(stds if self.stds is None else self.stds),
        )
        names = found.columns(count)
        groups = {str(name): _indices(own, names, "groups") for name, own in (self.groups or {}).items()}
        taken = [i for own in groups.values() for i in own]
        if len(set(taken)) != len(taken):
            raise ValueError(f"Tabular(groups={self.groups!r}) has a column twice; give each to one group.")
        return replace(found, groups=groups or None, categorical=found._codes(x, facts, taken) or None)

    def _codes(self, x: Tensor, facts: InputFacts, grouped: Sequence[int]) -> dict[str, list[float]]:
        """The codes of the probe in each column of categories, in order."""
        table, given = _table(x), self.categorical
        if isinstance(given, Mapping):
            return {str(i): list(codes) for i, codes in given.items()}
        if given is None:
            blind = [] if facts.blind is None else facts.blind.flatten().nonzero().flatten().tolist()
            given = range(table.shape[1]) if not x.is_floating_point() else blind
        elif isinstance(given, bool):
            given = range(table.shape[1]) if given else ()
        columns = _indices(given, self.columns(table.shape[1]), "categorical")
        return {str(i): table[:, i].unique().tolist() for i in columns if i not in grouped}

    def columns(self, count: int) -> list[str]:
        """The names of ``count`` columns."""
        return [f"x{i}" for i in range(count)] if self.feature_names is None else list(self.feature_names)

    def named(self, x: Tensor) -> list[str]:
        """The names of the units of the table ``(N, F)``."""
        names = self.columns(_table(x).shape[1])
        grouped = {i: name for name, own in (self.groups or {}).items() for i in own}
        return [grouped.get(columns[0], names[columns[0]]) for columns in self._members(x)]

    def by_name(self, values: Tensor, x: Tensor) -> Tensor:
        """Each unit is a feature."""
        return _table(values)

    def units(self, x: Tensor) -> torch.Size:
        """``(N, U)``, of the columns that are in no group and the groups; ``(N,)`` for one column."""
        return torch.Size([len(x), len(self._members(x))]) if self.groups and x.ndim == 2 else x.shape

    def features(self, x: Tensor) -> Tensor:
        """The number of each column's unit, ``(1, F)``."""
        numbers = torch.zeros(x[:1].shape, dtype=torch.long, device=x.device)
        for unit, columns in enumerate(self._members(x)):
            _table(numbers)[:, columns] = unit
        return numbers

    def by_unit(self, found: Tensor) -> Tensor:
        """A map ``(N, F)`` summed within each group, ``(N, U)``; one that is so already unchanged."""
        if not self.groups or max(map(max, self.groups.values())) >= found.shape[1] or not self._whole(found):
            return found
        numbers = self.features(found).expand_as(found)
        return found.new_zeros(self.units(found)).scatter_add(1, numbers, found)

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """Values of units ``(N, U)`` at the columns of each, ``(N, F)``."""
        return values[:, self.features(x)[0].to(values.device)] if self.groups else values

    def onto(self, placed: Tensor, x: Tensor) -> Tensor:
        """A map ``(N, U)`` in equal shares at the columns of each unit."""
        shares = torch.tensor([1 / len(own) for own in self._members(x)], dtype=placed.dtype, device=placed.device)
        return self.spread(placed * shares, x) if self.groups else super().onto(placed, x)

    def reference(self, x: Tensor) -> Tensor | None:
        """Zero; in a table of integers, :meth:`others`."""
        return None if x.is_floating_point() else self.others(x)

    def others(self, x: Tensor) -> Tensor | None:
        """For each category another one of the probe's, the one that is half of all further in their order; ``None`` without categories."""
        if not self.categorical:
            return None
        found = torch.zeros_like(x)
        for i, known in self.categorical.items():
            codes, column = torch.tensor(known, dtype=torch.float64, device=x.device), _table(x)[:, int(i)].double()
            place = torch.searchsorted(codes, column.contiguous()).clamp(max=len(codes) - 1)
            other = codes[(place + (len(codes) + 1) // 2) % len(codes)]
            _table(found)[:, int(i)] = other.to(x.dtype)
        return found

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """All samples as a beeswarm and as mean absolute attributions; bars and a waterfall of each."""
        x, values = _table(inputs[0]), _table(self.by_unit(found[0])).double()
        names, texts, levels = self.named(inputs[0]), self._texts(inputs[0]), torch.full_like(values, torch.nan)
        mean, std = _statistics(x)
        if self.means is not None and self.stds is not None:
            mean, std = (torch.tensor(known, dtype=torch.double) for known in (self.means, self.stds))
        scaled = (x.double() - mean) / std.clamp(min=torch.finfo(torch.double).tiny)
        for unit, columns in enumerate(self._members(inputs[0])):
            if len(columns) == 1 and str(columns[0]) not in (self.categorical or {}):
                levels[:, unit] = scaled[:, columns[0]]
        shown = [kind for kind, _ in asked if kind in self.kinds] or self.kinds
        return tuple(FeaturesPanel(kind, kind, values, names=names, texts=texts, levels=levels) for kind in shown)

    def _texts(self, x: Tensor) -> list[list[str]]:
        """The values of the units in words: numbers, and the name of the column of a group that is set."""
        names = self.columns(_table(x).shape[1])

        def words(sample: list[float], columns: list[int]) -> str:
            if len(columns) == 1:
                return f"{sample[columns[0]]:.4g}"
            largest = max(columns, key=lambda i: sample[i])
            return names[largest] if sample[largest] > 0 else ""

        return [[words(sample, own) for own in self._members(x)] for sample in _table(x).tolist()]

    def _whole(self, found: Tensor) -> bool:
        """Whether a map has all columns, and not only units."""
        return self.feature_names is None or found.shape[1] == len(self.feature_names)

    def _members(self, x: Tensor) -> list[list[int]]:
        """The columns of each unit, in the order of their first ones."""
        groups = {own[0]: list(own) for own in (self.groups or {}).values()}
        taken = {i for own in groups.values() for i in own[1:]}
        return [groups.get(i, [i]) for i in range(_table(x).shape[1]) if i not in taken]


def _table(x: Tensor) -> Tensor:
    """A column ``(N,)`` as a table ``(N, 1)`` on the same memory."""
    return x[:, None] if x.ndim == 1 else x


def _statistics(table: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of a table ``(N, F)``, each ``(F,)``, of its finite numbers."""
    known = table.double().nan_to_num(torch.nan, torch.nan, torch.nan)
    mean = known.nanmean(0)
    return mean.nan_to_num(0.0), (known - mean).square().nanmean(0).sqrt().nan_to_num(0.0)


def _indices(given: Any, names: Sequence[str], argument: str) -> list[int]:
    """The indices of columns that are given by name or index.

    Raises:
        ValueError: If there is no such column, or none is given.
    """
    if (
        isinstance(given, (str, bytes))
        or not isinstance(given, (Sequence, range))
        or (argument == "groups" and not given)
    ):
        raise ValueError(f"Tabular({argument}=...) has {given!r} where columns are; give a list of names or indices.")
    for one in given:
        if one not in names and not (type(one) is int and 0 <= one < len(names)):
            raise ValueError(f"Tabular({argument}=...) has no column {one!r}: {nearest(str(one), names)}")
    return sorted(names.index(one) if one in names else one for one in given)
