"""Takes a configuration (a mapping, OmegaConf or a YAML file), and returns constructor arguments.

Only this module imports OmegaConf and Hydra; ``core/containers.py`` asks for OmegaConf's containers where it is imported already.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from lightning_explain.core.containers import resolved
from lightning_explain.core.naming import nearest
from lightning_explain.core.schema import brief
from lightning_explain.explainer.registry import construct
from lightning_explain.monitor.reach import Reach, check_file
from lightning_explain.probes.selection import ProbeSelection

Keys: TypeAlias = "tuple[str | int, ...]"

# A configuration is never code, so arguments that are functions must come from Python.
_FUNCTIONS = ("forward_fn", "output_fn", "batch_fn", "sinks")
_HYDRA_CODE = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def monitor_arguments(config: Any, monitor: type) -> dict[str, Any]:
    """The constructor arguments in a plain or OmegaConf mapping.

    Names of methods and metrics stay names: the monitor looks them up only in ``lightning_explain.methods`` and
    ``lightning_explain.metrics``. A mapping made in Python may hold a ``Probe`` under ``probe``.

    Args:
        config: Keys are the constructor's arguments; ``probe`` is a mapping of the arguments of ``ProbeSelection``, or
            indices.
        monitor: The class to construct.

    Raises:
        TypeError: If the configuration is not a mapping.
        ValueError: If a key is unknown, a value is missing or cannot be resolved, or a value asks for code.
    """
    Reach().check(config)
    found = resolved(config)
    if not isinstance(found, Mapping):
        raise TypeError(f"The configuration is a {type(found).__name__}; give a mapping of arguments to values.")
    found = {key: value for key, value in found.items() if key not in _FUNCTIONS or value is not None}
    allowed = [name for name in inspect.signature(monitor).parameters if name not in _FUNCTIONS]
    unknown = next((key for key in found if key not in (*allowed, *_FUNCTIONS)), None)
    if unknown is not None and "_target_" not in found:
        raise ValueError(
            f"Unknown key {brief(unknown)} in the configuration of the monitor: {nearest(str(unknown), allowed)}"
        )
    missing = [_path(keys) for keys, value in _nodes(found) if isinstance(value, str) and value == "???"]
    if missing:
        raise ValueError(f"The configuration has no value (???) for {', '.join(missing)}; give one for each.")
    for keys, value in _nodes(found):
        _check_is_data(keys, value)
    probe = found.get("probe")
    return {**found, "probe": construct(ProbeSelection, probe, "probe")} if isinstance(probe, Mapping) else found


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration in a YAML file, as Hydra composes it; interpolations are not resolved yet.

    Args:
        path: A YAML file; the groups of its ``defaults`` list lie in the same folder.
        overrides: As on the command line of a Hydra application.

    Raises:
        ImportError: If Hydra is not installed.
        ValueError: If Hydra cannot compose the file, or it is not a mapping.
    """
    try:
        from hydra import compose, initialize_config_dir
        from hydra.errors import HydraException
    except ImportError as error:
        raise ImportError("Models are built from files by Hydra: pip install 'lightning-explain[hydra]'") from error
    check_file(path, overrides)
    try:
        with initialize_config_dir(str(path.resolve().parent), version_base="1.3"):
            config = compose(path.name, list(overrides))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{path} cannot be composed: {error}") from error
    if not OmegaConf.is_dict(config):
        raise ValueError(f"{path} is not a mapping; write keys and values, such as model: {{...}}.")
    return {str(key): config[key] for key in config if key != "hydra"}


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration in overrides alone, without a file: ``model.num_classes=5``, ``monitor.methods=[Saliency]``.

    Raises:
        ValueError: If one of them is not ``key=value``, or its key is unknown.
    """
    known = ("model", "monitor", "input_shape", "data")
    for one in overrides:
        if "=" not in one or re.split(r"[.=\[]", one)[0] not in known:
            raise ValueError(f"{brief(one)} is not an override; write key=value, with a key of {', '.join(known)}.")
    try:
        config = OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{' '.join(overrides)} cannot be read: {error}") from error
    return {str(key): config[key] for key in config}


def imported(path: str, arguments: Any = None, saved: Mapping[str, Any] | None = None) -> Any:
    """What an import path names; called, unless it is a model already.

    Args:
        path: ``package.module:name``, or with a dot instead of the colon.
        arguments: Arguments, as a plain or OmegaConf mapping.
        saved: Arguments for what these leave out, as far as the object takes them.

    Raises:
        ValueError: If the path names nothing, or the object cannot be built.
        TypeError: If the arguments are not a mapping.
    """
    given = resolved(arguments or {})
    if not isinstance(given, Mapping):
        raise TypeError(f"model={brief(given)}; give arguments by name, such as model.num_classes=5.")
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path!r} cannot be imported: {error}; give package.module:name, such as torchvision.models:resnet18, or a YAML file."
        ) from error
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found(**_taken(found, saved or {}, given), **given)
    # A constructor may raise anything.
    except Exception as error:
        raise ValueError(
            f"{path!r} cannot be built: {type(error).__name__}: {error}; give arguments that it takes, such as model.num_classes=5."
        ) from error


def instantiated(config: Mapping[str, Any], key: str, saved: Mapping[str, Any] | None = None) -> Any:
    """The object that Hydra builds from the ``_target_`` (or LightningCLI's ``class_path``) under a key.

    This runs code, unlike what is under ``monitor``.

    Args:
        config: The configuration.
        key: The key.
        saved: Arguments for what the configuration leaves out, as far as the object takes them.

    Raises:
        ImportError: If Hydra is not installed.
        ValueError: If there is no ``_target_``, or its class cannot be found or built.
    """
    from hydra.errors import HydraException
    from hydra.utils import get_object, instantiate

    node: Any = config.get(key)
    if OmegaConf.is_dict(node) and "class_path" in node:
        node = _as_target(OmegaConf.to_container(node, resolve=True))
    if (not isinstance(node, Mapping) and not OmegaConf.is_dict(node)) or "_target_" not in node:
        raise ValueError(
            f"{key}={brief(node)} names no class; write {key}: {{_target_: package.module.Class, argument: value}}."
        )
    try:
        more = _taken(get_object(str(node["_target_"])), saved, node) if saved else {}
        return instantiate(node, **more)
    except (HydraException, OmegaConfBaseException) as error:
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        reason = str(error).replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception", "")
        raise ValueError(
            f"{key} cannot be built: {' '.join(reason.split())}{cause}. Give _target_ an import path, and arguments "
            "that it takes."
        ) from error


def _as_target(node: Any) -> Any:
    """LightningCLI's ``{class_path: ..., init_args: {...}}``, at any depth, as Hydra writes it."""
    if isinstance(node, Mapping):
        found = {str(key): _as_target(value) for key, value in node.items()}
        if "class_path" in found:
            more = {**(found.get("init_args") or {}), **(found.get("dict_kwargs") or {})}
            return {"_target_": found["class_path"], **more}
        return found
    return [_as_target(part) for part in node] if isinstance(node, list) else node


def _taken(called: Any, saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Of saved arguments, those that a class takes and that are not given."""
    parameters = inspect.signature(called).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in saved.items() if name not in given and (any_name or name in parameters)}


def _nodes(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The path of keys and the value of every node in nested mappings and lists."""
    if keys:
        yield keys, value
    parts = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, part in parts:
        yield from _nodes(part, (*keys, key))


def _path(keys: Keys) -> str:
    """The path as OmegaConf writes it: ``metrics[0].name``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def _check_is_data(keys: Keys, value: Any) -> None:
    where = _path(keys)
    if keys[-1] in _HYDRA_CODE or keys[0] in _FUNCTIONS or callable(value):
        raise ValueError(
            f"{where}={brief(value)} asks for code, and a configuration is never code: write {{name: ClassName, ...}} for "
            f"methods and metrics, and give functions ({', '.join(_FUNCTIONS)}, ...) to ExplanationMonitor in Python."
        )
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"{where}={brief(value)} is not resolved; give the OmegaConf configuration it comes from.")
    names_a_class = keys[0] in ("methods", "metrics") and (len(keys) == 2 or keys[-1] == "name")
    if isinstance(value, str) and "." in value and names_a_class:
        raise ValueError(
            f"{where}={brief(value)} is a path to code, and a configuration is never code: use a name from "
            f"lightning_explain.{keys[0]}, such as {value.rpartition('.')[2]!r}."
        )
