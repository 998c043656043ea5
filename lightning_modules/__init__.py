"""Training: the LightningModule, its models and teachers, views, packing, rollout engines and the objective."""
