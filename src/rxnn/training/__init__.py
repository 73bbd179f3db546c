"""What RxNN trains with: tokenizer, data set, trainer, callbacks, schedule."""
