"""Text becomes documents (`text`), documents become token ids (`tokenizer`, `tokens`), ids become batches (`batches`).

Nothing is imported here, so that importing one stage loads only what that stage needs.
"""
