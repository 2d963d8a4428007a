"""Laws of reading a batch."""

from __future__ import annotations

import inspect
import re
import tokenize
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_explain.core.call import arguments
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.probes.binding import bound, samples_of
from lightning_explain.probes.signature import signature_of

X, X2 = torch.rand(4, 3), torch.rand(4, 2, 2)
Y = torch.tensor([1, 0, 2, 1])
X3 = X[..., None]
TOKENS = torch.ones(4, 5, dtype=torch.int64)
Pair = namedtuple("Pair", "image label")


@dataclass
class Batch:
    image: Tensor
    mask: Tensor
    label: Tensor


def parts(probe: Probe) -> tuple[list[Tensor], Tensor | None, list[Any]]:
    return list(as_tuple(probe.inputs)), probe.targets, list(probe.forward_args)


@pytest.mark.parametrize(
    ("batch", "inputs", "targets", "forward_args"),
    [
        (X, [X], None, []),
        ((X,), [X], None, []),
        ([X], [X], None, []),
        ((X, Y), [X], Y, []),
        ([X, Y], [X], Y, []),
        (Pair(X, Y), [X], Y, []),
        ((X, X2, Y), [X, X2], Y, []),
        (((X, X2), Y), [X, X2], Y, []),
        ([[X, X2], Y], [X, X2], Y, []),
        (((X, X2),), [X, X2], None, []),
        ((X, X2), [X], X2, []),
        ((X, Y, ["a", "b", "c", "d"]), [X], Y, []),
        ((X, ["a", "b", "c", "d"]), [X], None, []),
        ((X, Y, {"size": X2}), [X], Y, []),
        ((X, TOKENS, Y), [X, TOKENS], Y, []),
        ((X3, TOKENS, Y), [X3], Y, [TOKENS]),
        ((TOKENS, X, Y), [TOKENS, X], Y, []),
        ((TOKENS, TOKENS + 1, Y), [TOKENS], Y, [TOKENS + 1]),
        ((TOKENS, Y), [TOKENS], Y, []),
        ({"image": X, "label": Y}, [X], Y, []),
        ({"b": X, "a": X2, "Labels": Y}, [X, X2], Y, []),
        ({"x": X, "y": X2, "path": ["a"] * 4}, [X], X2, []),
        ({"x": X}, [X], None, []),
        ({"label": ["cat"] * 4, "x": X, "target": Y}, [X], Y, []),
        (({"b": X, "a": TOKENS}, Y), [X, TOKENS], Y, []),
        ({"ids": TOKENS, "mask": Y, "label": Y}, [TOKENS], Y, [Y]),
        ({"in": {"b": X, "a": X2}, "targets": {"class": Y}}, [X, X2], Y, []),
        (Batch(X, TOKENS, Y), [X], Y, [TOKENS]),
        (UserDict(pixels=X, attention_mask=TOKENS, target=Y), [X], Y, [TOKENS]),
    ],
)
def test_a_batch_is_read_as_documented(
    batch: Any, inputs: list[Tensor], targets: Tensor | None, forward_args: list[Tensor]
) -> None:
    found = parts(samples_of(batch))
    assert [id(x) for x in found[0]] == [id(x) for x in inputs]
    assert found[1] is targets
    assert len(found[2]) == len(forward_args)
    assert all(map(torch.equal, found[2], forward_args))


def test_one_input_is_a_bare_tensor_and_several_are_a_tuple() -> None:
    assert isinstance(samples_of((X, Y)).inputs, Tensor)
    assert isinstance(samples_of((X, X2, Y)).inputs, tuple)


@pytest.mark.parametrize("batch", [(X, Y[:, None]), {"x": X, "y": Y[:, None]}])
def test_whole_numbered_columns_of_targets_become_flat(batch: Any) -> None:
    assert torch.equal(samples_of(batch).targets, Y)  # type: ignore[arg-type]
    assert torch.equal(samples_of(batch, lambda b: (X, Y[:, None])).targets, Y)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [Y[:, None].float(), TOKENS])
def test_other_targets_keep_their_shape(targets: Tensor) -> None:
    assert samples_of((X, targets)).targets is targets


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", "Cannot read a batch of type str"),
        (None, "Cannot read a batch of type NoneType"),
        ((), "Cannot read a tuple batch that starts with nothing"),
        ((["a", "b"], Y), "Cannot read a tuple batch that starts with list"),
        (({}, Y), "Cannot read a tuple batch that starts with dict"),
        ((X, (Y, Y[:2])), "which of the last 2 tensors of a batch is the targets"),
        ({"ids": ["a"] * 4, "label": Y}, r"no tensor to explain, only \{'ids': \"list of"),
        ({}, "no tensor to explain"),
        (torch.tensor(1.0), "A tensor does not read as samples"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_fix(batch: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"{message}.*Give batch_fn=") as caught:
        samples_of(batch)
    assert "batch_fn" in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y[:3]), r"A tuple batch does not read as samples.*targets.*\(3,\).*4 samples"),
        ((X, X2[:2], Y), r"inputs\[1\].*\(2, 2, 2\).*4 samples"),
        ({"x": X, "label": Y, "target": Y}, r"which of \['label', 'target'\] in a batch is the targets"),
        ({"x": X, "label": Y[:1]}, r"A batch with \['x', 'label'\] does not read as samples"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_the_fix(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*Give batch_fn="):
        samples_of(batch)


def test_a_function_of_the_user_reads_what_nothing_else_can() -> None:
    batch = {"a": {"deep": X}, "b": Y}
    assert parts(samples_of(batch, lambda b: (b["a"]["deep"], b["b"]))) == ([X], Y, [])
    assert parts(samples_of(batch, lambda b: ((X, X2), None))) == ([X, X2], None, [])
    probe = Probe(X, ids=torch.tensor([3, 1, 4, 5]))
    assert samples_of(batch, lambda b: probe) is probe


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (X, "batch_fn returned a Tensor"),
        ((X,), r"batch_fn returned a tuple of \['Tensor'\]"),
        ((X, Y, Y), r"batch_fn returned a tuple of \['Tensor', 'Tensor', 'Tensor'\]"),
        ([X, Y], r"batch_fn returned a list of \['Tensor', 'Tensor'\]"),
        ((X, [1, 0, 2, 1]), r"batch_fn returned a tuple of \['Tensor', 'list'\]"),
        ((None, Y), "What batch_fn returned does not read as samples"),
    ],
)
def test_what_a_function_of_the_user_may_return_is_checked(returned: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        samples_of(X, lambda batch: returned)


# -- bound to forward --------------------------------------------------------------------------------------------------


class _Made(nn.Module):
    """A module with that forward."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = forward


def called(batch: Any, forward: Callable[..., Any], **options: Any) -> Any:
    """What forward returns when it is called with a batch as it is bound."""
    net = _Made(forward)
    probe = samples_of(batch, forward=signature_of(net, options.get("forward_fn")))
    positional, keywords = arguments(probe.places, probe.arguments)
    return (options["forward_fn"] if options else lambda model, *a, **k: model(*a, **k))(net, *positional, **keywords)


def image_first(image: Tensor, reference: Tensor) -> Any:
    return image, reference


def by_key(batch: Any) -> Any:
    return batch["image"]


def by_keywords(batch: Any) -> Any:
    return image_first(**batch)


def given_anew(x: Any) -> Any:
    x = {"out": x}
    return x["out"]


def of_another(x: Any) -> Any:
    return (lambda x: x["out"])({"out": x})


def handed_on(batch: Any) -> Any:
    return len(batch) and batch


BOUND: dict[str, tuple[Any, Callable[..., Any], Any]] = {
    "names in another order": ({"reference": X2, "image": X, "label": Y}, image_first, (X, X2)),
    "names of a dataclass": (Batch(X, TOKENS, Y), lambda mask, image: (image, mask), (X, TOKENS)),
    "names of a named tuple": (Pair(X, Y), lambda image: image, X),
    "whole numbers that forward takes second": (
        {"token_type_ids": Y, "attention_mask": TOKENS, "inputs_embeds": X, "labels": Y},
        lambda inputs_embeds=None, attention_mask=None, token_type_ids=None, labels=None: (
            inputs_embeds,
            attention_mask,
            token_type_ids,
            labels,
        ),
        (X, TOKENS, Y, None),
    ),
    "one tensor, one argument": ({"picture": X, "label": Y}, lambda x: x, X),
    "one tensor left, one required": (
        {"mask": TOKENS, "picture": X, "y": Y},
        lambda x, mask=None: (x, mask),
        (X, TOKENS),
    ),
    "kwargs take all but the labels": (
        {"b": X, "a": X2, "labels": Y},
        lambda **batch: tuple(sorted(batch)),
        ("a", "b"),
    ),
    "one tensor beside kwargs": ({"picture": X, "label": Y}, lambda x, **more: (x, more), (X, {})),
    "one tensor by position": ({"picture": X, "label": Y}, lambda *x: x[0], X),
    "what forward has no name for": (
        {"image": X, "index": Y, "label": Y},
        lambda image, scale=1.0: (image, scale),
        (X, 1.0),
    ),
    "plain values that forward has a name for": (
        {"x": X, "flag": True, "label": Y},
        lambda x, flag: (x, flag),
        (X, True),
    ),
    "a label that forward needs": ({"x": X, "target": X2, "label": Y}, lambda x, target: (x, target), (X, X2)),
    "nested, by the names inside": (
        {"inputs": {"reference": X2, "image": X}, "label": Y},
        image_first,
        (X, X2),
    ),
    "nested, as one argument": (
        {"inputs": {"b": X2, "a": X}, "label": Y},
        lambda inputs: (inputs["a"], inputs["b"]),
        (X, X2),
    ),
    "a mapping first, by name": (({"reference": X2, "image": X}, Y), image_first, (X, X2)),
    "a mapping first, as one argument": (({"b": X2, "a": X}, Y), lambda x: (x["a"], x["b"]), (X, X2)),
    "a mapping second": ((X, {"a": X2}, Y), lambda x, more: (x, more["a"]), (X, X2)),
    "whole numbers first": ((TOKENS, X, Y), lambda cat, cont: (cat, cont), (TOKENS, X)),
    "whole numbers second": ((X, TOKENS, Y), lambda cont, cat: (cont, cat), (X, TOKENS)),
    "a tuple as several arguments": (((X, X2), Y), image_first, (X, X2)),
    "a tuple as one argument": (((X, X2), Y), lambda pair: (pair[0], pair[1]), (X, X2)),
    "tuples of images under a name": ({"pair": (X, X2), "label": Y}, lambda pair: (pair[0], pair[1]), (X, X2)),
    "one tensor in a mapping that forward reads by key": ({"image": X, "label": Y}, by_key, X),
    "one tensor in a mapping that forward hands on": ({"image": X, "label": Y}, handed_on, X),
    "one tensor under a name that gets a mapping": ({"image": X, "label": Y}, given_anew, X),
    "one tensor under the name of another's mapping": ({"image": X, "label": Y}, of_another, X),
    "a mapping first, read by key": (({"image": X}, Y), by_key, X),
    "a mapping as keywords": ({"image": X, "reference": X2, "label": Y}, by_keywords, (X, X2)),
    "two inputs and no labels": ((X, X2), image_first, (X, X2)),
    "a pair and no labels": (((X, X2),), image_first, (X, X2)),
    "two inputs and their labels": ((X, X2, Y), image_first, (X, X2)),
    "one input and labels in columns": ((X, X2), lambda x, scale=1.0: x, X),
    "boxes of each image": ((X, [X[:1], X[:2], X, X[:0]], Y), lambda x: x, X),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (not isinstance(b, Tensor) and bool(a == b))


@pytest.mark.parametrize(("batch", "forward", "expected"), BOUND.values(), ids=BOUND.keys())
def test_the_model_gets_each_part_of_a_batch_where_it_belongs(batch: Any, forward: Any, expected: Any) -> None:
    assert same(called(batch, forward), expected)


def test_a_function_of_the_user_is_bound_by_its_own_names_or_gets_what_is_explained_first() -> None:
    batch = {"mask": TOKENS, "reference": X2, "image": X, "label": Y}
    by_name = called(batch, len, forward_fn=lambda model, image, mask, reference: (image, mask, reference))
    assert same(by_name, (X, TOKENS, X2))
    assert same(called(batch, len, forward_fn=lambda model, a, b, c: (a, b, c)), (X2, X, TOKENS))
    with pytest.raises(TypeError, match=r"does not fit forward_fn\(image, b, c\)"):
        called(batch, len, forward_fn=lambda model, image, b, c: image)


MISFITS: dict[str, tuple[Any, Callable[..., Any], str]] = {
    "other names": (
        {"left": X, "right": X2, "label": Y},
        image_first,
        r"forward\(image, reference\).*\['left', 'right'\]",
    ),
    "one other name of two": ({"ref": X2, "image": X, "label": Y}, image_first, r"\['ref', 'image'\]"),
    "what may be optional": ({"image": X, "ref": X2}, lambda image, reference=None: 0, r"reference=None\).*'ref'"),
    "too few": ({"image": X, "label": Y}, image_first, r"forward\(image, reference\).*\['image'\]"),
    "names for positions": ({"a": X, "b": X2}, lambda *inputs: 0, r"forward\(\*inputs\).*\['a', 'b'\]"),
    "more tensors than arguments": ((X, Y, X2), lambda x: 0, r"forward\(x\): it has 2 tensors before the last one"),
    "images of unlike sizes": (
        (tuple(torch.rand(3, 4, 4 + i) for i in range(5)), tuple({"boxes": X} for _ in range(5))),
        lambda images: 0,
        r"starts with 5 tensors of the shapes \(3, 4, 4\), \(3, 4, 5\).*one for each sample.*pad or resize",
    ),
    "as many channels as images": (
        ([torch.rand(3, 4, 4)] * 3, [{"boxes": X}] * 3),
        lambda images: 0,
        "one for each sample",
    ),
    "ragged series": (([torch.rand(n, 2) for n in (3, 5, 2)], torch.arange(3)), lambda x: 0, "one for each sample"),
    "as many images as labels": (([torch.rand(3, 4, 4)] * 5, torch.arange(5)), lambda x: 0, "one for each sample"),
}


@pytest.mark.parametrize(("batch", "forward", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_forward_is_an_error_that_shows_both(batch: Any, forward: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"{message}.*batch_fn=..."):
        called(batch, forward)


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        (
            (TOKENS, X[..., None], Y),
            r"Explained: argument 1. Passed to the model, but not explained: argument 0 \(int64\).",
        ),
        (
            (X[..., None], TOKENS, Y),
            r"Explained: argument 0. Passed to the model, but not explained: argument 1 \(int64\).",
        ),
        (
            {"b": TOKENS, "a": X[..., None], "y": Y},
            r"Explained: 'a'. Passed to the model, but not explained: 'b' \(int64\).",
        ),
        ({"a": X, "b": X2, "index": Y}, r"Left out, because forward\(a, b\) does not take it: 'index'."),
    ],
)
def test_what_is_not_explained_is_named_in_one_line(batch: Any, line: str) -> None:
    lines: list[str] = []
    samples_of(batch, None, signature_of(_Made(lambda a, b: 0)), lines.append)
    assert len(lines) == 1
    assert re.search(line, lines[0])


def test_nothing_is_said_where_all_is_explained() -> None:
    samples_of({"b": X, "a": X2, "path": ["a"] * 4, "y": Y}, None, signature_of(_Made(lambda a, b: 0)), pytest.fail)


def test_texts_are_kept_with_the_samples() -> None:
    names = ["a.png", "b.png", "c.png", "d.png"]
    assert samples_of({"x": X, "path": names, "label": ["cat"] * 4}).meta == {
        "path": tuple(names),
        "label": ("cat",) * 4,
    }
    assert samples_of((X, Y, names)).meta == {"2": tuple(names)}
    with pytest.raises(ValueError, match="3 texts under 'path' for 4 samples"):
        Probe(X, meta={"path": names[:3]})


def test_a_mapping_of_inputs_names_the_arguments_of_the_model() -> None:
    net = _Made(lambda attention_mask, input_ids, flag=None: 0)
    probe = bound(Probe({"input_ids": TOKENS, "attention_mask": Y, "flag": True}), signature_of(net))
    assert parts(probe) == ([Y], None, [TOKENS, True])
    assert probe.parameters == (("attention_mask",), ("input_ids",), ("flag",))
    assert bound(probe, signature_of(net)).parameters == probe.parameters
    with pytest.raises(TypeError, match=r"does not fit forward\(attention_mask, input_ids, flag=None\).*'mask'"):
        bound(Probe({"input_ids": TOKENS, "mask": Y}), signature_of(net))
    with pytest.raises(TypeError, match="give all arguments of the model in the one mapping"):
        Probe({"x": X}, forward_args=(Y,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_scripted_and_compiled_modules_have_the_names_of_their_forward() -> None:
    net, compiled = nn.Bilinear(3, 3, 1), nn.Module()
    compiled._orig_mod = net  # as torch.compile, whose import takes seconds, wraps it
    for other in (torch.jit.script(net), compiled):
        found = signature_of(other)
        assert found is not None
        assert found.names == found.required == ("input1", "input2")


def test_a_source_that_has_changed_since_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(function: Any) -> str:
        raise tokenize.TokenError("EOF in multi-line statement", (7, 0))

    monkeypatch.setattr(inspect, "getsource", changed)
    assert called({"image": X, "label": Y}, handed_on) is X
