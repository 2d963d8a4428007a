"""Whatever a configuration holds, the answer is a monitor or one short line, at once; the environment stays outside."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lightning_explain import ExplanationMonitor, ProbeSelection
from lightning_explain.cli.from_config import configured_model

SECRET = "hunter2-of-the-environment"


def nested(depth: int, inner: Any = 1, key: str = "") -> Any:
    for _ in range(depth):
        inner = {key: inner} if key else [inner]
    return inner


def endless() -> dict[str, Any]:
    found: dict[str, Any] = {"methods": {}}
    found["methods"]["ig"] = found
    return found


def bomb(levels: int = 30) -> Any:
    """What a YAML file of a few lines becomes: 2^levels values, if written out."""
    found: Any = ["x"]
    for _ in range(levels):
        found = [found, found]
    return found


def whole(text: str) -> Any:
    """A configuration with a monitor in it, as Hydra gives it."""
    return OmegaConf.create(text).monitor


def doubling(pattern: str) -> str:
    lines = [f"a{i}: {pattern.format(i - 1, i - 1)}" for i in range(1, 40)]
    return "\n".join(["a0: [x, y]" if "[" in pattern else "a0: xy", *lines, 'monitor: {class_names: "${a39}"}'])


METHOD = {"name": "IntegratedGradients"}
HOSTILE: dict[str, tuple[Any, str]] = {
    # shapes
    "a list": (["Saliency"], "mapping"),
    "a text": ("Saliency", "mapping"),
    "deep lists": (lambda: {"methods": nested(100_000)}, "too deeply"),
    "deep mappings": (lambda: {"methods": nested(100_000, key="a")}, "too deeply"),
    "deep names of classes": ({"methods": nested(60, METHOD, "attribution_method")}, "too deeply"),
    "itself": (endless(), "refers to itself"),
    "an alias bomb": ({"class_names": bomb()}, "too large"),
    "aliases of YAML": (
        {"methods": yaml.safe_load("[&a [x,x], &b [*a,*a], &c [*b,*b], [*c,*c]]") + bomb()},
        "too large",
    ),
    "10^6 values": (lambda: {"class_names": ["x"] * 10**6}, "too large"),
    "a text of 10^8 letters": (lambda: {"target": "x" * 10**8}, "too large"),
    "10^5 unknown keys": (lambda: {f"key {i}": 1 for i in range(90_000)}, "Unknown key"),
    "10^4 methods": (lambda: {"methods": {f"m{i}": "Saliency" for i in range(10_000)}}, "10000 of them"),
    "10^4 metrics": (lambda: {"metrics": ["Infidelity"] * 10_000}, "10000 of them"),
    "unknown, long": ({"x" * 10**6: 1}, "Unknown key"),
    "unknown, colored": ({"\x1b[31m\nmethods": 1}, "Unknown key '\\x1b[31m"),
    # numbers
    "count 1e20": ({"probe": {"count": 1e20}}, "count=1e+20"),
    "count 10^20": ({"probe": {"count": 10**20}}, "at most 1000000"),
    "count of 10^5 digits": ({"probe": {"count": 1 << 400_000}}, "an int of 400001 bits"),
    "n_steps 10^10": ({"methods": {"ig": {**METHOD, "n_steps": 10**10}}}, "at most 1000000"),
    "n_steps 1e10": ({"methods": {"ig": {**METHOD, "n_steps": 1e10}}}, "n_steps"),
    "n_samples 10^9": ({"methods": [{"name": "Lime", "n_samples": 10**9}]}, "at most 1000000"),
    "nt_samples 10^9": ({"methods": [{"name": "NoiseTunnel", "nt_samples": 10**9}]}, "nt_samples"),
    "n_perturb_samples 10^9": ({"metrics": [{"name": "Infidelity", "n_perturb_samples": 10**9}]}, "at most 1000000"),
    "a batch that is NaN": ({"max_examples_per_pass": float("nan")}, "max_examples_per_pass=nan"),
    "a batch of 10^12": ({"max_examples_per_pass": 10**12}, "at most"),
    "a seed of 10^30": ({"seed": 10**30}, "seed"),
    "a number that is a text": ({"every_n_epochs": "1"}, "every_n_epochs='1'"),
    "a share that is infinite": ({"max_overhead": float("inf")}, "max_overhead=inf"),
    # code
    "a target": ({"_target_": "os.system", "command": "true"}, "never code"),
    "a target in a method": ({"methods": {"a": {"_target_": "os.system"}}}, "never code"),
    "a target in the probe": ({"probe": {"_target_": "builtins.eval"}}, "never code"),
    "a class of Python": ({"methods": [{"name": "builtins.eval"}]}, "never code"),
    "a class of ours that is no method": ({"methods": [{"name": "ExplanationMonitor"}]}, "no method"),
    "a dunder": ({"methods": [{"name": "__import__"}]}, "no method"),
    "a name of 10^6 letters": ({"methods": ["x" * 10**6]}, "no method"),
    "a method that is a number": ({"methods": [3]}, "methods[0] is 3"),
    "a list where a mapping is due": ({"probe": {"count": [1, 2]}}, "count=[1, 2]"),
    # names
    "a name with a line": ({"name": "a\nb"}, "control character"),
    "a name in colors": ({"name": "\x1b[31m"}, "control character"),
    "a name above": ({"name": ".."}, "name='..'"),
    "a name that is a path": ({"name": "/etc"}, "name='/etc'"),
    "a key in colors": ({"methods": {"\x1b[31m": "Saliency"}}, "control character"),
    "half a character": ({"methods": {"\ud800": "Saliency"}}, "lone surrogate"),
    "alerts of nonsense": ({"alerts": [{"metric": "x" * 10**6, "above": 1}]}, "not logged"),
    # references
    "the environment": (lambda: whole('monitor: {class_names: ["${oc.env:SECRET}"]}'), "reads an environment variable"),
    "the environment, elsewhere": (
        lambda: whole('key: "${oc.env:SECRET}"\nmonitor: {name: "${key}"}'),
        "reads an environment variable",
    ),
    "the environment, decoded": (
        lambda: whole('monitor: {seed: "${oc.decode:${oc.env:SECRET}}"}'),
        "reads an environment variable",
    ),
    "the environment, twice removed": (
        lambda: whole('keys: {a: "${oc.env:SECRET}"}\nb: "${keys}"\nmonitor: {probe: "${b}"}'),
        "reads an environment variable",
    ),
    "the environment, by a name that is a reference": (
        lambda: whole('which: a\nkeys: {a: "${oc.env:SECRET}"}\nmonitor: {name: "${keys.${which}}"}'),
        "reads an environment variable",
    ),
    "the environment, by parts of its name": (
        lambda: whole('x: env\nmonitor: {name: "${oc.${x}:SECRET}"}'),
        "reads an environment variable",
    ),
    "a reference to itself": (lambda: whole('monitor: {name: "${monitor.name}"}'), "refers to itself"),
    "a circle": (lambda: whole('a: "${b}"\nb: "${a}"\nmonitor: {name: "${a}"}'), "refers to itself"),
    "its own parent": (lambda: whole('monitor: {methods: "${monitor}"}'), "refers to itself"),
    "texts that double": (lambda: whole(doubling('"${{a{}}}${{a{}}}"')), "too large"),
    "lists that double": (lambda: whole(doubling('["${{a{}}}", "${{a{}}}"]')), "too deeply"),
    "to nowhere": (lambda: whole('monitor: {name: "${nowhere}"}'), "cannot be resolved"),
    "of a plain mapping": ({"name": "${oc.env:SECRET}"}, "reads an environment variable"),
}


@pytest.mark.parametrize(("config", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_configuration_is_refused_in_one_short_line(
    config: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    given = config() if callable(config) else config
    begun = time.process_time()
    with pytest.raises((TypeError, ValueError)) as raised:
        ExplanationMonitor.from_config(given)
    assert time.process_time() - begun < 1
    text = str(raised.value)
    assert reason in text
    assert len(text) <= 300
    assert text.isprintable()
    assert SECRET not in text


def test_what_a_configuration_may_refer_to_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    text = (
        'root: "${oc.env:SECRET}"\nwhich: b\nseeds: {b: 5}\nsizes: [2, 3]\n'
        'monitor: {seed: "${seeds.${which}}", probe: {count: "${sizes[1]}"}, name: "${.word}-${word}", word: x}\nword: y'
    )
    config = OmegaConf.create(text)
    del config.monitor.word
    config.monitor.name = "${seeds.b}-${word}"
    watch = ExplanationMonitor.from_config(config.monitor)
    assert (watch._explainer.seed, watch.name, watch._selection) == (5, "5-y", ProbeSelection(count=3))
    asked = OmegaConf.create('monitor: {name: "${oc.env:SECRET}"}').monitor
    assert ExplanationMonitor.from_config(OmegaConf.to_container(asked, resolve=True)).name == SECRET  # type: ignore[arg-type]
    assert len(HOSTILE) > 50


FILES = {
    "aliases": (
        "a: &a [x, x]\n" + "".join(f"b{i}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)),
        "too large",
    ),
    "itself": ("monitor: &m {probe: *m}\n", "."),
    "tags of Python": ("model: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    "brackets": ("model: " + "[" * 100_000, "too deep"),
    "braces": ("model: " + "{" * 4_000, "too deep"),
    "ten megabytes": (lambda: "a: x\n" * 2_000_000, "too large"),
    "no text": (b"\xff\xfe\x00\x01\x02", "."),
    "a list": ("[1, 2]", "."),
    "in a group": ("defaults: [monitor: bomb, _self_]\n", "bomb.yaml cannot be composed: "),
    "a target that is no class": ("model: {_target_: os.nothing}\ninput_shape: [3]\n", "cannot be built"),
}


@pytest.mark.parametrize(("text", "reason"), FILES.values(), ids=FILES)
def test_a_file_is_read_at_once_or_refused(text: Any, reason: str, tmp_path: Path, monkeypatch: Any) -> None:
    given = text() if callable(text) else text
    (tmp_path / "config.yaml").write_bytes(given if isinstance(given, bytes) else given.encode())
    (tmp_path / "monitor").mkdir()
    (tmp_path / "monitor" / "bomb.yaml").write_text(FILES["aliases"][0])
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    with pytest.raises((TypeError, ValueError)) as raised:
        configured_model(Path("config.yaml"))
    assert time.process_time() - begun < 1.5
    assert reason in str(raised.value)
    assert len(str(raised.value)) <= 300
    assert str(raised.value).isprintable()
