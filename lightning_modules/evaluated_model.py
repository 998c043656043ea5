"""`EvaluatedModel`: a model that is trained elsewhere, answering in both views; no Trainer, no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.example import Example
from lightning_modules.comparison import ComparisonSpec, OpenGame, ViewComparer, ViewComparison
from lightning_modules.models import (
    ModelSpec,
    check_plain_head,
    check_same_tokenizer,
    freeze,
    load_model,
    load_tokenizer,
)
from lightning_modules.rollout.engine import SamplingSpec
from lightning_modules.rollout.hf import HFRolloutEngine
from lightning_modules.scoring import ViewScorer
from lightning_modules.views import ViewRenderer, ViewSpec


class EvaluatedModel:
    """A model that answers in both views: `comparison.ComparesViews` and `comparison.KnowsItsBase`, without Lightning.

    One that is being trained elsewhere may be given as it is: it answers with the weights that it has at that moment,
    in eval mode and without gradients, and is given back in the mode that it was in.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        views: ViewSpec,
        evaluation: SamplingSpec,
        *,
        base: PreTrainedModel | None = None,
        open_game: OpenGame = lambda example: None,
        batch_size: int = 64,
        max_tokens: int | None = None,
        completed_steps: int = 0,
        seed: int = 0,
    ) -> None:
        """Evaluate a model that is in memory, on the device that it is on.

        Args:
            model: causal language model; its weights must be whole, not shares of several ranks.
            tokenizer: its tokenizer, with a pad token.
            views: how its two prompts are rendered.
            evaluation: how it decodes.
            base: the model that training started from, with the same tokenizer; None: not to be compared with.
            open_game: opens the game of an example: `ContextDataModule.environment`.
            batch_size: prompts per call of generate.
            max_tokens: budget of a scoring pass in with-context tokens; None: one pass per context.
            completed_steps: optimizer steps behind the model, as far as known.
            seed: of sampled answers.

        Raises:
            ValueError: if a model has a head that can't be scored, or the tokenizer no pad token.
        """
        for network in (model, base):
            if network is not None:
                check_plain_head(network, network.config.name_or_path or type(network).__name__)
        if tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no pad token; set tokenizer.pad_token, for example to its eos_token.")
        self.evaluation, self.completed_steps = evaluation, completed_steps
        self._open_game, self._seed, self._base = open_game, seed, base
        positions = model.config.get_text_config().max_position_embeddings
        self._comparer = ViewComparer(
            ViewRenderer(tokenizer, views, positions, evaluation.max_completion_length),
            HFRolloutEngine(model, tokenizer, batch_size),
            ViewScorer(model, None, vocab_size=len(tokenizer), pad_id=tokenizer.pad_token_id),
            evaluation,
            max_tokens,
        )

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        views: ViewSpec,
        evaluation: SamplingSpec,
        *,
        base: ModelSpec | None = None,
        device: torch.device | str = "cpu",
        **others: Any,
    ) -> EvaluatedModel:
        """Load a model, to evaluate it.

        Args:
            spec: the model.
            views: how its two prompts are rendered.
            evaluation: how it decodes.
            base: the model that training started from, with the same tokenizer; None: not to be compared with.
            device: where the models run.
            others: as the constructor's.

        Raises:
            ValueError: if a model has a head that can't be scored or LoRA to train, or `base` another tokenizer.
            OSError: if a model or its tokenizer can't be loaded; the message says what to do.
        """
        if spec.lora is not None or (base is not None and base.lora is not None):
            raise ValueError("model.lora is for training; to evaluate a student with LoRA name its merged folder.")
        tokenizer = load_tokenizer(spec)
        model = _loaded(spec, device)
        loaded_base: PreTrainedModel | None = None
        if base is not None:
            check_same_tokenizer(tokenizer, load_tokenizer(base), base.name)
            loaded_base = _loaded(base, device)
        return cls(model, tokenizer, views, evaluation, base=loaded_base, **others)

    def compare_views(
        self, examples: Sequence[Example], spec: ComparisonSpec = ComparisonSpec()
    ) -> list[ViewComparison]:
        """Answer every example in both views, in order."""
        return self._comparer.compare(examples, spec, self._open_game, self._seed)

    def base_divergences(self, comparisons: Sequence[ViewComparison]) -> list[float] | None:
        """See `comparison.KnowsItsBase`."""
        return None if self._base is None else self._comparer.base_divergences(comparisons, self._base)


def _loaded(spec: ModelSpec, device: torch.device | str) -> PreTrainedModel:
    return cast(PreTrainedModel, cast(torch.nn.Module, freeze(load_model(spec))).to(device))
