"""What the fine-tuned model sees where in a whole slide or a large picture."""
