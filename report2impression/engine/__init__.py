"""T5 + LoRA on packed tokens: arithmetic on torch, nothing of ours below it."""
