"""`cli plan` and DeepSpeed's own estimators say the same."""

from __future__ import annotations

import pytest

from lightning_modules.memory_plan import HOST_BUFFERS, Run, Shape, model_states

pytest.importorskip("deepspeed", reason="deepspeed is not installed: make test-engines installs it")

SIZES = ((134_515_008, 28_311_552), (8_190_735_360, 622_329_856), (70_553_706_496, 1_050_673_152))


@pytest.mark.parametrize(("parameters", "largest"), SIZES)
@pytest.mark.parametrize("num_gpus", [1, 2, 8])
@pytest.mark.parametrize("offload", ["none", "optimizer", "parameters"])
def test_states_are_deepspeeds(parameters, largest, num_gpus, offload):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    shape = Shape(parameters, largest, 64, 2, 64, 64, 64, 64)
    optimizer, spread = offload != "none", offload == "parameters"
    run = Run(
        shape, None, strategy="zero3", num_gpus=num_gpus, is_float32=False, offload_optimizer=optimizer,
        offload_parameters=spread,
    )  # fmt: skip
    host, gpu, _ = estimate_zero3_model_states_mem_needs(
        parameters, largest, num_gpus_per_node=num_gpus, cpu_offload=optimizer, cpu_offload_params=spread
    )
    states, own_host = model_states(run)
    assert sum(states.values()) == pytest.approx(gpu, abs=8)
    if optimizer:
        assert own_host == pytest.approx(host, abs=8)
    if spread:
        return
    host, gpu = estimate_zero2_model_states_mem_needs(parameters, num_gpus_per_node=num_gpus, cpu_offload=optimizer)
    run = Run(shape, None, strategy="zero2", num_gpus=num_gpus, is_float32=False, offload_optimizer=optimizer)
    states, own_host = model_states(run)
    assert sum(states.values()) == pytest.approx(gpu, abs=8)
    if optimizer and num_gpus <= 4:  # above, DeepSpeed counts the copies in which ranks load the model
        assert own_host == pytest.approx(host, abs=8)
    assert HOST_BUFFERS == 1.5
