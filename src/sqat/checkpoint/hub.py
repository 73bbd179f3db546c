"""The Hugging Face Hub: files from it, folders to it, and the card beside a model. Whatever fails there is a CheckpointError here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the client is built on

from sqat.config import ModelConfig
from sqat.cost import parameters
from sqat.errors import CheckpointError
from sqat.variants import variant_name

# What the client raises: HTTP and connection errors, OSError for files, RuntimeError from upload threads, ValueError for ids and replies.
_FAILURES = (HTTPError, OSError, RuntimeError, ValueError)


def download(
    repo_id: str,
    names: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Fetch files of a model repository into the Hub client's cache, all of one commit; returns the folder they are in.

    Args:
        repo_id: "owner/name".
        names: files at the top of the repository.
        revision: branch, tag or commit; the main branch by default.
        token: for private repositories; by default the one stored by `hf auth login`.
        cache_dir, force_download, local_files_only: as `huggingface_hub.hf_hub_download` takes them.

    Raises:
        CheckpointError: no such repository, revision or file, no access, or no connection.
    """
    folder = Path()
    for name in names:
        try:
            path = hf_hub_download(
                repo_id,
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        except _FAILURES as error:
            raise CheckpointError(f"{repo_id!r} is no local folder, and {name} cannot be had from the Hub: {error}") from error
        folder = Path(path).parent
        revision = folder.name  # the commit, so that the next file is of the same
    return folder


def upload(
    folder: str | Path,
    repo_id: str,
    message: str,
    *,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Put the files of a folder into a model repository, made first if need be, in one commit; returns its address.

    Raises:
        CheckpointError: the Hub refused, or could not be reached.
    """
    folder = Path(folder)
    api = HfApi(token=token)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        # Not upload_folder, which may spread what belongs together over several commits.
        return str(api.create_commit(repo.repo_id, files, commit_message=message).commit_url)
    except _FAILURES as error:
        raise CheckpointError(f"{folder} cannot be uploaded to {repo_id!r}: {error}") from error


def model_card(config: ModelConfig, loading: str) -> str:
    """README.md for a model's repository: what it is, and `loading`, the code that loads it. It claims no results."""
    variant = variant_name(config)
    feedforward = f"{config.num_experts} experts, {config.experts_per_token} per token, " if config.is_moe else ""
    rows = {
        "attention": f"{variant or 'custom head counts'}: {config.num_query_heads} query heads, {config.num_kv_heads} key/value heads "
        f"(full attention would have {config.num_heads})",
        "parameters": f"{parameters(config).total:,}",
        "layers": config.num_layers,
        "width": f"{config.hidden_size}, head_dim {config.head_dim}",
        "feed-forward": f"{feedforward}{config.activation}{', gated' if config.gated else ''}, hidden width {config.intermediate_size}",
        "vocabulary": config.vocab_size,
        "context length in training": config.context_length,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return _CARD.format(table=table, loading=loading.strip())


_CARD = """\
---
license: apache-2.0
library_name: sqat
pipeline_tag: text-generation
tags:
- SparseQueryAttention
- SQA
- RxNN
- pytorch_model_hub_mixin
- model_hub_mixin
---

# Sparse Query Attention transformer

A causal language model whose attention has its numbers of query and key/value heads chosen apart from its width
([Sparse Query Attention](https://arxiv.org/abs/2510.01817)). This card was written with the checkpoint and records no results.

| | |
|---|---|
{table}

```python
{loading}
```
"""
