"""What commands that need no Trainer share: parts of a fit's config (data, views, student), the device, errors.

Any YAML file that `fit` takes can be read, RUN/config.yaml included; other keys may be there and are not looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError

from datamodules.base import ContextDataModule
from lightning_modules.models import ModelSpec
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.views import ViewSpec


def run_command(parser: ArgumentParser, args: Sequence[str], command: Callable[[Namespace], object]) -> int:
    """Parse the words of a command and run it.

    Returns:
        0. Errors that a user can mend end the process with a message and status 2, as argparse's own do.
    """
    options = parser.parse_args(args)
    try:
        command(parser.instantiate_classes(options))
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    return 0


def data_module_of(config: Path, overrides: Sequence[str] = ()) -> ContextDataModule:
    """The DataModule under ``data`` of a config.

    Args:
        config: YAML file.
        overrides: words of the command line as a fit takes them, ``--data.num_val 100`` or ``--data CLASS``, which win
            over the config.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML mapping, has no ``data``, or ``data`` is no valid DataModule.
    """
    values = section_of(config, "data")
    if values is None:
        raise ValueError(f"{config} has no key data; give class_path and init_args of a ContextDataModule there.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ContextDataModule, "data", required=True)
    data: ContextDataModule = parsed(parser, {"data": values}, config, overrides).data
    return data


def data_section_of(config: Path, context: str | None = None) -> dict[str, Any]:
    """Class and every argument under ``data`` of a valid config, defaults filled in, as a fit saves them.

    Args:
        config: YAML file.
        context: stands in place of the DataModule's own; None: its own.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ContextDataModule, "data", required=True)
    found = parser.parse_object({"data": section_of(config, "data")})
    section: dict[str, Any] = yaml.safe_load(parser.dump(found))["data"]
    if context is not None:
        section["init_args"]["context"] = context
    return section


def view_spec_of(config: Path) -> ViewSpec:
    """The views under ``model.views`` of a config; the default ones where there are none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ``model.views`` are no valid views.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ViewSpec, "views")
    views: ViewSpec = parsed(parser, {"views": section_of(config, "model.views") or {}}, config).views
    return views


def student_spec_of(config: Path) -> ModelSpec:
    """The student under ``model.student`` of a config.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no ``model.student``, or it is no valid model.
    """
    values = section_of(config, "model.student")
    if values is None:
        raise ValueError(f"{config} has no key model.student; name the model there.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ModelSpec, "student")
    student: ModelSpec = parsed(parser, {"student": values}, config).student
    return student


def evaluation_spec_of(config: Path) -> SamplingSpec:
    """How evaluations decode: ``model.evaluation``, or greedily with the ``model.sampling`` of rollouts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the section is not valid.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SamplingSpec, "sampling")
    own = section_of(config, "model.evaluation")
    values = own or {**(section_of(config, "model.sampling") or {}), "temperature": 0.0}
    spec: SamplingSpec = parsed(parser, {"sampling": values}, config).sampling
    return spec


def section_of(config: Path, key: str) -> Any:
    """Plain values under a dotted key, with ``${...}`` resolved; None where there is no such key."""
    try:
        loaded = OmegaConf.load(config)
        if not isinstance(loaded, DictConfig):
            raise ValueError(f"{config} is no YAML mapping.")
        section = OmegaConf.select(loaded, key)
        return OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    except InterpolationKeyError as error:
        raise ValueError(
            f"{config}: {str(error).splitlines()[0]}. A file that is put over another one is read with it: make one of "
            f"both by python -m cli fit --config THE_OTHER --config {config} --print_config > ONE.yaml."
        ) from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{config}: {error}") from error


def device_of(name: str) -> str:
    """Where a model is to run; ``auto`` is the GPU where there is one.

    Raises:
        ValueError: if it is to be a GPU and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here; give cpu, or auto.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def parsed(parser: ArgumentParser, values: dict[str, Any], config: Path, overrides: Sequence[str] = ()) -> Any:
    """Check values as a fit would, and make the objects."""
    try:
        found = parser.parse_object(values)
        if overrides:
            found = parser.parse_args(list(overrides), namespace=found)
        return parser.instantiate_classes(found)
    except argparse.ArgumentError as error:
        raise ValueError(f"{config}: {error}") from error
