"""What the card trains with: tokenizer, data set, trainer, callbacks, schedule."""
