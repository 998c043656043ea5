"""What others do with the same tokens: the textbook loss in plain transformers or with Liger's kernels, and TRL.

All run each view of each example in full; all but Liger's hold the logits of every completion token. Every contestant
of a benchmark has the same student, the same optimizer, the same tokens and the same budget of trained tokens in a
micro-batch, and adds the gradient of mean_t OPD (+ coefficient x mean_t NCA) of one micro-batch in `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.workload import Shape, rows_in_budget


class Contestant(Protocol):
    """One way to compute a step's gradient."""

    name: str

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of a step; equal work each."""
        ...

    def run(self, index: int) -> float:
        """Add micro-batch `index`'s share of the step's gradient; return its share of the loss."""
        ...


class Textbook:
    """The definition, written down in plain transformers (as OPCD's published code computes it)."""

    way = "textbook"

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        shape: Shape,
        tokens: tuple[list[int], list[list[int]], list[list[int]]],
        max_tokens: int,
        consistency_coef: float,
    ) -> None:
        """Lay out the step's two views; a coefficient of 0 is OPD alone."""
        self.name = f"{self.way} OPD + NCA" if consistency_coef else f"{self.way} OPD"
        self.student, self.teacher, self.consistency_coef = student, teacher, consistency_coef
        self.completion = shape.completion
        context, prompts, completions = tokens
        device = student.device
        rows = list(zip(prompts, completions, strict=True))
        self.no_context = torch.tensor([[*prompt, *completion] for prompt, completion in rows], device=device)
        self.with_context = torch.tensor(
            [[*context, *prompt, *completion] for prompt, completion in rows], device=device
        )
        self.micro_batches = rows_in_budget(shape, max_tokens)

    @property
    def num_micro_batches(self) -> int:
        """See `Contestant`."""
        return len(self.micro_batches)

    def run(self, index: int) -> float:
        """See `Contestant`."""
        rows = list(self.micro_batches[index])
        q_x = self._log_probabilities(self.student, self.no_context[rows])
        with torch.no_grad():
            f = self._log_probabilities(self.teacher, self.with_context[rows])
        loss = (q_x.exp() * (q_x - f)).sum(-1).mean()
        if self.consistency_coef:
            q_c = self._log_probabilities(self.student, self.with_context[rows])
            anchor = q_x.detach()
            loss = loss + self.consistency_coef * (anchor.exp() * (anchor - q_c)).sum(-1).mean()
        loss = loss * len(rows) / len(self.no_context)
        loss.backward()
        return float(loss.detach())

    def _log_probabilities(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        logits = model(ids, use_cache=False, logits_to_keep=self.completion + 1).logits[:, :-1]
        return logits.float().log_softmax(-1)


class TwoKernels(Textbook):
    """OPD and NCA by two separate fused kernels: Liger's linear JSD, which takes hidden states and heads.

    beta = 1 is KL(student || teacher), OPD with q_x as its student and f as its teacher; beta = 0 is KL(teacher ||
    student), NCA with q_c as its student and the stopped q_x as its teacher. Liger compiles them on a GPU.
    """

    way = "two fused kernels"

    @cached_property
    def kernels(self) -> tuple[nn.Module, nn.Module]:
        """OPD's and NCA's.

        Raises:
            ImportError: if Liger is not installed.
        """
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        settings = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "compiled": self.student.device.type == "cuda"}
        return LigerFusedLinearJSDLoss(beta=1.0, **settings), LigerFusedLinearJSDLoss(beta=0.0, **settings)

    def run(self, index: int) -> float:
        """See `Contestant`."""
        rows = list(self.micro_batches[index])
        labels = self.no_context[rows][:, -self.completion :].flatten()
        opd, nca = self.kernels
        head, teacher_head = (model.get_output_embeddings().weight for model in (self.student, self.teacher))
        q_x = self._hidden(self.student, self.no_context[rows])
        with torch.no_grad():
            f = self._hidden(self.teacher, self.with_context[rows])
        loss = opd(q_x, head, f, teacher_head, labels)
        q_c = self._hidden(self.student, self.with_context[rows])
        loss = loss + self.consistency_coef * nca(q_c, head, q_x.detach(), head.detach(), labels)
        loss = loss * len(rows) / len(self.no_context)
        loss.backward()
        return float(loss.detach())

    def _hidden(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        hidden: Tensor = model.base_model(ids, use_cache=False).last_hidden_state
        return hidden[:, -self.completion - 1 : -1].flatten(0, 1)


class TRL:
    """TRL's SDFTTrainer (OPD alone, full logits), its own `training_step` on given completions."""

    name = "TRL OPD"

    def __init__(
        self,
        student: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        shape: Shape,
        tokens: tuple[list[int], list[list[int]], list[list[int]]],
        max_tokens: int,
    ) -> None:
        """Build the trainer; `folder` holds the student's weights, from which TRL loads its teacher.

        Raises:
            ImportError: if TRL is not installed.
        """
        from datasets import Dataset
        from trl.experimental.sdft import SDFTConfig, SDFTTrainer

        context, prompts, completions = tokens
        self.micro_batches = rows_in_budget(shape, max_tokens)
        student.config._name_or_path = str(folder)
        self.trainer: Any = SDFTTrainer(
            model=student,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "unused", "privileged_context": "unused"}] * shape.num_prompts),
            args=SDFTConfig(
                output_dir=str(folder / "trl"),
                use_cpu=student.device.type == "cpu",
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=len(self.micro_batches[0]),
                gradient_accumulation_steps=len(self.micro_batches),
                steps_per_generation=max(2, len(self.micro_batches)),  # so that a buffer of rollouts is kept at all
                num_generations=1,
                max_completion_length=shape.completion,
                distillation_mode="full_logits",
                distillation_alpha=1.0,
                distillation_is_clip=None,
                save_strategy="no",
                report_to="none",
            ),
        )
        self.trainer.current_gradient_accumulation_steps = len(self.micro_batches)
        self.inputs = [self._inputs(context, prompts, completions, rows) for rows in self.micro_batches]

    @property
    def num_micro_batches(self) -> int:
        """See `Contestant`."""
        return len(self.micro_batches)

    def run(self, index: int) -> float:
        """See `Contestant`."""
        trainer = self.trainer
        # Its own rollouts stand aside: the step finds a buffer that holds the given completions.
        trainer._step = 1
        trainer._buffered_inputs = [self.inputs[index]] * trainer.args.steps_per_generation
        return float(trainer.training_step(trainer.model, self.inputs[index], None))

    def _inputs(
        self, context: list[int], prompts: Sequence[list[int]], completions: Sequence[list[int]], rows: range
    ) -> dict[str, Tensor]:
        device = self.trainer.accelerator.device

        def made(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
            ids = torch.tensor(sequences, device=device)
            return ids, torch.ones_like(ids)

        prompt_ids, prompt_mask = made([prompts[row] for row in rows])
        completion_ids, completion_mask = made([completions[row] for row in rows])
        teacher_ids, teacher_mask = made([[*context, *prompts[row], *completions[row]] for row in rows])
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "teacher_input_ids": teacher_ids,
            "teacher_attention_mask": teacher_mask,
        }
