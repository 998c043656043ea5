"""What can be said of the strategies without ranks: their settings and their refusals. Runs: tests/engines."""

from __future__ import annotations

from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch import nn

from cli.checkpoints import last_checkpoint
from cli.main import main
from lightning_modules.checkpoint_folders import seal
from lightning_modules.spread_weights import parameter_shapes
from lightning_modules.strategies import _check_lightning, whole_weights, zero_stage
from lightning_modules.updates import PlainUpdates, updates_for


def module_with(strategy: object) -> L.LightningModule:
    module = L.LightningModule()
    module._trainer = SimpleNamespace(strategy=strategy)
    module._fabric = None
    return module


@pytest.mark.parametrize("installed", ["2.6.1", "2.6.6", "2.6.7.dev0"])
def test_the_lightning_that_the_overrides_were_written_for(installed):
    _check_lightning(installed)


@pytest.mark.parametrize("installed", ["2.5.9", "2.7.0", "3.0"])
def test_another_lightning_is_refused(installed):
    with pytest.raises(ImportError, match=f"{installed} is installed"):
        _check_lightning(installed)


def test_updates_fit_the_strategy():
    for strategy in (SingleDeviceStrategy("cpu"), DDPStrategy()):
        assert isinstance(updates_for(module_with(strategy), 1.0), PlainUpdates)
        assert zero_stage(strategy) == 0
    with pytest.raises(ValueError, match="FSDPStrategy; accepted are auto, ddp and ZeROStrategy"):
        updates_for(module_with(FSDPStrategy()), 1.0)


def test_plain_updates_clip_to_the_norm_and_report_it_before():
    module = L.LightningModule()
    module.weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = torch.optim.SGD([module.weight], lr=1.0)
    module.optimizers = lambda: optimizer
    module.weight.grad = torch.tensor([3.0, 4.0])
    assert PlainUpdates(module, 0.5).step() == pytest.approx(5.0)
    assert module.weight.tolist() == pytest.approx([0.7, 0.6])
    module.weight.grad = torch.tensor([float("inf"), 0.0])
    assert PlainUpdates(module, 0.5).step() == float("inf")
    assert module.weight.tolist() == pytest.approx([0.7, 0.6])


def test_without_zero_weights_are_whole_anyway():
    model = nn.Linear(2, 3)
    with whole_weights(SingleDeviceStrategy("cpu"), model), whole_weights(DDPStrategy(), model):
        assert parameter_shapes(model) == {"weight": [3, 2], "bias": [3]}


def test_the_last_checkpoint_may_be_a_folder_but_no_unfinished_one(tmp_path):
    for name in ("step=000001.ckpt", "step=000002.ckpt", "step=000003.ckpt.unfinished"):
        (tmp_path / "checkpoints" / name / "checkpoint").mkdir(parents=True)
        seal(tmp_path / "checkpoints" / name)
    assert last_checkpoint(tmp_path).name == "step=000002.ckpt"


def test_export_of_a_file_and_its_refusals(tmp_path, tiny_model_dir, capsys):
    config, checkpoint = tmp_path / "run/config.yaml", tmp_path / "run/checkpoints/step=000001.ckpt"
    checkpoint.parent.mkdir(parents=True)
    config.write_text(f"model: {{student: {{name: {tiny_model_dir}}}}}\n")
    from lightning_modules.models import ModelSpec, load_model

    weights = load_model(ModelSpec(str(tiny_model_dir))).state_dict()
    changed = {f"student.{name}": value + 1.0 for name, value in weights.items()}
    torch.save({"state_dict": changed}, checkpoint)
    main(["export", str(checkpoint), "--output", str(tmp_path / "out")])
    again = load_model(ModelSpec(str(tmp_path / "out"))).state_dict()
    assert all(torch.equal(again[name], value + 1.0) for name, value in weights.items())
    for state, message in (
        ({name: value for name, value in changed.items() if "norm" not in name}, "weights are missing ['model.layers"),
        ({**changed, "student.extra": torch.ones(1)}, "1 are unknown ['extra']"),
        ({"teacher.weight": torch.ones(1)}, "no weights of a student"),
    ):
        torch.save({"state_dict": state}, checkpoint)
        with pytest.raises(SystemExit):
            main(["export", str(checkpoint), "--output", str(tmp_path / "other")])
        assert message in capsys.readouterr().err
        assert not (tmp_path / "other").exists()


def test_zero_strategy_says_what_is_wrong(tmp_path):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: make test-engines installs it")
    from lightning_modules.strategies import ZeROStrategy

    with pytest.raises(ValueError, match="offload_parameters is true at stage 2"):
        ZeROStrategy(stage=2, offload_parameters=True)
    file = tmp_path / "step=000001.ckpt"
    file.touch()
    with pytest.raises(ValueError, match="written without DeepSpeed"):
        ZeROStrategy(stage=2).load_checkpoint(file)


def test_mechanism_callbacks_are_refused_under_zero3_alone():
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: make test-engines installs it")
    from callbacks.weight_changes import WeightChanges
    from lightning_modules.strategies import ZeROStrategy

    WeightChanges().setup(SimpleNamespace(strategy=ZeROStrategy(stage=2)), L.LightningModule(), "fit")
    with pytest.raises(ValueError, match="WeightChanges looks into whole weights"):
        WeightChanges().setup(SimpleNamespace(strategy=ZeROStrategy(stage=3)), L.LightningModule(), "fit")
