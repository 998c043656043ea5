"""``python -m cli export CHECKPOINT --output FOLDER``: the student of any checkpoint as a Hugging Face folder.

CHECKPOINT is a file of one process or DDP, or a folder of DeepSpeed ZeRO at any stage, whose shares are put together
here without the ranks that wrote them. Weights are written in float32, which is what the optimizer works on; the folder
is what `HFExport` writes, ready for from_pretrained, ``--model.student.name`` and ``python -m cli evaluate``.

Of a run with LoRA the folder holds the adapter, as peft writes it; ``--merged true`` writes a plain model in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from callbacks.hf_export import export
from cli.config_sections import student_spec_of
from lightning_modules.adapters import AdapterRecord, add_adapters, merged_copy, without_base
from lightning_modules.models import load_model, load_tokenizer
from lightning_modules.zero_checkpoints import read_states, read_zero_checkpoint

STUDENT = "student."
"""Prefix of the student's weights in a checkpoint."""


def export_cli(args: Sequence[str]) -> int:
    """Run the command with the words after ``export``.

    Returns:
        0. Errors that a user can mend end the process with a message and status 2, as argparse's own do.
    """
    parser = ArgumentParser(prog="python -m cli export", description="A checkpoint's student as a Hugging Face folder.")
    parser.add_argument("checkpoint", type=Path, help="RUN/checkpoints/NAME.ckpt, a file or DeepSpeed's folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--config", type=Path, help="YAML with model.student; default: RUN/config.yaml")
    parser.add_argument("--merged", type=bool, default=False, help="of a run with LoRA: whole weights, not the adapter")
    options = parser.parse_args(args)
    try:
        config = options.config or options.checkpoint.absolute().parents[1] / "config.yaml"
        export_checkpoint(options.checkpoint, options.output, config, merged=options.merged)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    return 0


def export_checkpoint(checkpoint: Path, output: Path, config: Path, *, merged: bool = False) -> None:
    """Write the student of `checkpoint` to the folder `output`.

    Args:
        checkpoint: file or DeepSpeed's folder.
        output: new folder.
        config: of the run; says which model the weights belong to.
        merged: of a run with LoRA write a plain model, not the adapter.

    Raises:
        FileExistsError: if there is something at `output`.
        FileNotFoundError: if there is no such checkpoint or config.
        ValueError: if the checkpoint lacks weights of the student, or has others.
    """
    if output.exists():
        raise FileExistsError(f"--output {output} exists; name a folder that does not.")
    weights = student_weights(checkpoint)
    spec = student_spec_of(config)
    if merged and spec.lora is None:
        raise ValueError(f"--merged is true and {config} has no model.student.lora: there is nothing to merge.")
    # The base of adapters stays in the type that they were trained beside.
    model = load_model(replace(spec, dtype="float32") if spec.lora is None else spec)
    if spec.lora is not None:
        saved = _states(checkpoint).get("adapters")
        AdapterRecord.of(spec.lora, model, (saved or {}).get("held_in")).check(saved)
        add_adapters(model, spec.lora, spec.name)
    # Names by storage: tied weights have several, of which DeepSpeed's shares have one.
    state = model.state_dict() if spec.lora is None else without_base(model.state_dict())
    own = {name: value.data_ptr() for name, value in state.items()}
    present = {own[name] for name in weights if name in own}
    missing = sorted(name for name, place in own.items() if place not in present)
    unknown = sorted(weights.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            f"{checkpoint} does not fit model.student of {config}: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}. Pass the config of the run that wrote it with --config."
        )
    model.load_state_dict(weights, strict=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    export(merged_copy(model) if merged else model, load_tokenizer(spec), output)
    print(f"Wrote {output}")


def _states(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds beside the weights."""
    if checkpoint.is_dir():
        return read_states(checkpoint)
    return cast(dict[str, Any], torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True))


def student_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The student's weights by their names in the model.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if there is no student in it.
    """
    if checkpoint.is_dir():
        state = read_zero_checkpoint(checkpoint)
    elif checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    else:
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}.")
    weights = {name.removeprefix(STUDENT): value for name, value in state.items() if name.startswith(STUDENT)}
    if not weights:
        raise ValueError(f"{checkpoint} holds no weights of a student ({STUDENT}*).")
    return weights
