"""W&B sweep files, read for `cli sweep`: the same file goes to ``wandb sweep`` as it is.

Read are ``method``, ``metric``, ``parameters``, ``command``, ``program``, ``early_terminate`` and ``run_cap``; names,
project and entity say where W&B's server keeps a sweep. What that server would understand and this does not (nested
parameters, probabilities, other distributions, other macros) is refused by name, never ignored: a sweep that means
something else without a server would be worse than none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

Scalar = bool | int | float | str
Method = Literal["grid", "random", "bayes"]

_KEYS = {"program", "name", "description", "project", "entity", "method", "metric", "parameters", "command"}
_KEYS |= {"early_terminate", "run_cap"}
_MACROS = {"${env}", "${interpreter}", "${program}", "${args}", "${args_no_hyphens}"}


@dataclass(frozen=True, slots=True)
class Choices:
    """``value``, ``values``: one of these."""

    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """``min`` to ``max``, both included; in steps of `q` if given; uniform in the logarithm if `is_log`."""

    low: float
    high: float
    is_integer: bool = False
    is_log: bool = False
    q: float | None = None


Parameter = Choices | Range


@dataclass(frozen=True, slots=True)
class Hyperband:
    """``early_terminate``: an iteration is one evaluation of the metric."""

    min_iter: int
    eta: int = 3


@dataclass(frozen=True, slots=True)
class SweepFile:
    """One W&B sweep file."""

    method: Method
    metric: str
    goal: Literal["maximize", "minimize"]
    parameters: Mapping[str, Parameter]
    command: tuple[str, ...]
    program: str
    early_terminate: Hyperband | None
    run_cap: int | None = field(default=None, repr=False)  # a sweep may go on under another one
    """Most finished runs of the sweep."""

    def grid(self) -> list[dict[str, Scalar]]:
        """Every combination, in the file's order, the last parameter fastest.

        Raises:
            ValueError: if a parameter is a range.
        """
        ranges = [name for name, parameter in self.parameters.items() if isinstance(parameter, Range)]
        if ranges:
            raise ValueError(f"method: grid needs values for every parameter; {ranges} have min and max.")
        choices = [parameter.values for parameter in self.parameters.values() if isinstance(parameter, Choices)]
        return [dict(zip(self.parameters, values, strict=True)) for values in itertools.product(*choices)]

    def render(self, values: Mapping[str, Scalar], interpreter: str) -> list[str]:
        """The command of one run, as W&B's agent writes it.

        Args:
            values: by parameter.
            interpreter: what stands for ``${interpreter}``, and for a bare ``python``.
        """
        flags = [f"--{name}={value}" for name, value in values.items()]
        macros: dict[str, list[str]] = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [interpreter],
            "${program}": [self.program],
            "${args}": flags,
            "${args_no_hyphens}": [flag.removeprefix("--") for flag in flags],
            "python": [interpreter],
        }
        return [word for part in self.command for word in macros.get(part, [part])]


def read_sweep_file(path: Path) -> SweepFile:
    """Read `path`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the field that is missing or not understood.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No sweep file {path}; this project's are in configs/sweeps/.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a sweep file has the keys method, metric, parameters and command.")
    try:
        return _sweep(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _sweep(content: Mapping[str, Any]) -> SweepFile:
    unknown = content.keys() - _KEYS
    if unknown:
        raise ValueError(f"{sorted(unknown)} not understood; known are {sorted(_KEYS)}.")
    missing = [key for key in ("method", "metric", "parameters", "command", "program") if not content.get(key)]
    if missing:
        raise ValueError(f"{missing} missing.")
    if content["method"] not in ("grid", "random", "bayes"):
        raise ValueError(f"method is {content['method']!r}; it must be grid, random or bayes.")
    metric, parameters = content["metric"], content["parameters"]
    if not isinstance(metric, dict) or metric.get("goal") not in ("maximize", "minimize") or "name" not in metric:
        raise ValueError(f"metric is {metric!r}; it needs a name, and a goal: maximize or minimize.")
    if metric.keys() - {"name", "goal"}:
        raise ValueError(f"metric: {sorted(metric.keys() - {'name', 'goal'})} not understood; known: name, goal.")
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters is {parameters!r}; write NAME: {{values: [...]}} below it.")
    run_cap = content.get("run_cap")
    sweep = SweepFile(
        content["method"],
        str(metric["name"]),
        metric["goal"],
        {str(name): _parameter(str(name), fields) for name, fields in parameters.items()},
        _command(content["command"]),
        str(content["program"]),
        _early_terminate(content.get("early_terminate")),
        None if run_cap is None else _whole("run_cap", run_cap, 1),
    )
    if sweep.method == "grid":
        sweep.grid()
    return sweep


def _command(words: Any) -> tuple[str, ...]:
    if not isinstance(words, list):
        raise ValueError(f"command is {words!r}; write it as a list, a word each.")
    unknown = [word for word in map(str, words) if "${" in word and word not in _MACROS]
    if unknown:
        raise ValueError(f"command: {unknown} not understood; known are {sorted(_MACROS)}.")
    return tuple(map(str, words))


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {least}.")
    return value


def _parameter(name: str, fields: Any) -> Parameter:
    if not isinstance(fields, dict):
        raise ValueError(f"parameters.{name} is {fields!r}; write value, values, or min and max below it.")
    known = {"value", "values", "min", "max", "distribution", "q"}
    if fields.keys() - known:
        raise ValueError(f"parameters.{name}: {sorted(fields.keys() - known)} not understood; known: {sorted(known)}.")
    given = [key for key in ("value", "values", "min") if key in fields]
    if len(given) > 1:
        raise ValueError(f"parameters.{name} has {given}; write one of value, values, or min and max.")
    if "value" in fields:
        return Choices(_scalars(name, [fields["value"]]))
    if "values" in fields:
        return Choices(_scalars(name, fields["values"]))
    return _range(name, fields)


def _range(name: str, fields: Mapping[str, Any]) -> Range:
    low, high = _number(f"{name}.min", fields.get("min")), _number(f"{name}.max", fields.get("max"))
    if low > high:
        raise ValueError(f"parameters.{name}: min is {low!r} and max {high!r}; min must not be above max.")
    both_integers = isinstance(low, int) and isinstance(high, int)
    distribution = fields.get("distribution", "int_uniform" if both_integers else "uniform")
    match distribution:
        case "int_uniform" if both_integers:
            return Range(low, high, is_integer=True)
        case "int_uniform":
            raise ValueError(f"parameters.{name}: int_uniform from {low} to {high}; both must be whole numbers.")
        case "uniform":
            return Range(low, high)
        case "q_uniform":
            step = _number(f"{name}.q", fields.get("q", 1))
            if step <= 0:
                raise ValueError(f"parameters.{name}.q is {step}; it must be above 0.")
            return Range(low, high, q=step)
        case "log_uniform_values":
            if low <= 0:
                raise ValueError(f"parameters.{name}.min is {low}; with log_uniform_values it must be above 0.")
            return Range(low, high, is_log=True)
    raise ValueError(
        f"parameters.{name}.distribution is {distribution!r}; known are int_uniform, uniform, q_uniform and "
        "log_uniform_values."
    )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = " YAML reads 1e-6 as a word; write 1.0e-6." if isinstance(value, str) and "e" in value.lower() else ""
        raise ValueError(
            f"parameters.{name} is {value!r}; write value, values, or min and max, which must be numbers.{hint}"
        )
    return value


def _scalars(name: str, values: Any) -> tuple[Scalar, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"parameters.{name}.values is {values!r}; it must be a list.")
    for value in values:
        if value is None:
            # The agent would write --name=None, which a config reads as the word.
            raise ValueError(f'parameters.{name}: write "null" in quotes; W&B would pass null on as the word None.')
        if not isinstance(value, Scalar):
            raise ValueError(f"parameters.{name}: {value!r} is no plain value.")
    return tuple(values)


def _early_terminate(fields: Any) -> Hyperband | None:
    if fields is None:
        return None
    if not isinstance(fields, dict) or fields.get("type") != "hyperband" or "min_iter" not in fields:
        raise ValueError(f"early_terminate is {fields!r}; known is {{type: hyperband, min_iter: N, eta: N}}.")
    if fields.keys() - {"type", "min_iter", "eta"}:
        raise ValueError(f"early_terminate: {sorted(fields.keys() - {'type', 'min_iter', 'eta'})} not understood.")
    min_iter = _whole("early_terminate.min_iter", fields["min_iter"], 1)
    return Hyperband(min_iter, _whole("early_terminate.eta", fields.get("eta", 3), 2))
