"""Fine-tuning with LLaMA-Factory, scored by lm-eval."""
