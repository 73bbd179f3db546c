"""The Hugging Face Hub: `transfer` moves files, `push` and `pull` move models."""
