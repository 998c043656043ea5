"""vLLM beside two trainer processes on a CPU, against one process that samples with transformers."""

from __future__ import annotations

import pytest

from callbacks.removability_files import read_records
from tests.engines.test_deepspeed import EXACT, SETTINGS, TwoRanks, validated_run
from tests.integration.conftest import Runs

pytest.importorskip("vllm", reason="vllm is not installed: make test-engines installs it")

VLLM = ("--model.engine.kind", "vllm", "--model.engine.vllm.kv_cache_gib", "0.1")
LORA = ("--model.student.lora.r", "4")


@pytest.fixture(scope="module")
def one_process(vllm_model_dir, tmp_path_factory):
    runs = validated_run(tmp_path_factory.mktemp("one"), vllm_model_dir, "full")
    runs.fit("lora", *SETTINGS, *LORA)
    return runs


@pytest.fixture(scope="module", params=["ddp", "zero2", "zero3"])
def two_ranks(request, one_process, tmp_path_factory):
    """Five items to evaluate in a fit, two at a time: the ranks have different numbers of batches."""
    if request.param != "ddp":
        pytest.importorskip("deepspeed", reason="deepspeed is not installed: make test-engines installs it")
    ranks = TwoRanks(Runs(tmp_path_factory.mktemp(request.param), one_process.config), request.param)
    ranks.job("fit", "full", *VLLM)
    ranks.job("validate", "full", "--ckpt_path", "last", *VLLM)
    ranks.job("fit", "lora", *LORA, *VLLM)
    ranks.start()
    return ranks


def test_losses_are_those_of_one_process_with_transformers(one_process, two_ranks):
    for name in ("full", "lora"):
        ours, theirs = (runs.metrics(runs.root / name) for runs in (two_ranks.runs, one_process))
        assert len(ours) == len(theirs) == 3
        for own, other in zip(ours, theirs, strict=True):
            for key in EXACT:
                assert float(own[key]) == pytest.approx(float(other[key]), rel=1e-4), (name, key)
            assert 0.0 <= float(own["rollout/logprob_gap"]) < 2e-5


def test_evaluations_are_those_of_one_process(one_process, two_ranks):
    for file, num_items in (("removability/step=000003.jsonl", 5), ("removability/val-step=000003.jsonl", 24)):
        ours, theirs = (read_records(runs.root / "full" / file) for runs in (two_ranks.runs, one_process))
        assert len(ours) == num_items
        answers = [{r.id: (r.completion_no_context, r.completion_with_context) for r in rs} for rs in (ours, theirs)]
        assert answers[0] == answers[1]
