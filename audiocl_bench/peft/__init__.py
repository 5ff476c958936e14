"""What methods hang on a backbone: LoRA pairs per session, and the subspaces their updates are kept in."""
