"""The Hugging Face Hub: files from it, folders to it, and the card beside a model.

Whatever fails there is a CheckpointError here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sqat.checkpoint.tokens import cause, require_sendable, without_tokens
from sqat.config import ModelConfig
from sqat.cost import parameters
from sqat.errors import CheckpointError, ConfigError
from sqat.variants import attention_name

# What the client raises: its HTTP library's errors, OSError for connections and files, RuntimeError from its upload
# threads, ValueError for ids and for answers that it cannot read.
FAILURES = (HTTPError, OSError, RuntimeError, ValueError)

TAGS = ("SparseQueryAttention", "SQA")
MIXIN_TAGS = ("RxNN", "pytorch_model_hub_mixin", "model_hub_mixin")


def require_repo_id(repo_id: str | None, field: str) -> str:
    """The id of a repository, unless it cannot be one: a ConfigError naming `field` then."""
    if repo_id is None:
        raise ConfigError(f'{field} is None, but must be a repository such as "owner/name"')
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{field} is {repo_id!r}: {error}") from error
    return repo_id


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
    """Fetch files of a model repository into the client's cache, all of one commit; returns the folder they are in.

    Args:
        repo_id: "owner/name".
        names: files at the top of the repository, at least one.
        revision: branch, tag or commit; the main branch by default.
        token: for private repositories; by default the one that `hf auth login` stored.
        cache_dir, force_download, local_files_only: as `huggingface_hub.hf_hub_download` takes them.

    Raises:
        CheckpointError: no such repository, revision or file, no access, or no connection.
        ConfigError: a token that cannot be one.
    """
    require_sendable(token)
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
        except FAILURES as error:
            problem = f"{repo_id!r} is no local folder, and its {name} cannot be had from the Hub"
            raise CheckpointError(f"{problem}: {without_tokens(error, token)}") from cause(error, token)
        folder = Path(path).parent
        revision = folder.name  # the commit, so that the next file is of the same
    return folder


def upload(
    folder: str | Path,
    repo_id: str,
    message: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Put the files of a folder into a model repository, made first if need be, in one commit; returns its address.

    Raises:
        CheckpointError: the Hub refused, or could not be reached.
        ConfigError: a token that cannot be one.
    """
    require_sendable(token)
    folder = Path(folder)
    api = HfApi(token=token)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        # Not upload_folder, which may spread what belongs together over several commits.
        return str(api.create_commit(repo.repo_id, files, commit_message=message).commit_url)
    except FAILURES as error:
        problem = f"{folder} cannot be uploaded to {repo_id!r}"
        raise CheckpointError(f"{problem}: {without_tokens(error, token)}") from cause(error, token)


def model_card(config: ModelConfig, loading: str, library: str = "sqat", tags: Sequence[str] = MIXIN_TAGS) -> str:
    """README.md for a model's repository: what it is, and `loading`, the code that loads it. It claims no results.

    Args:
        library, tags: for the Hub's index.
    """
    query_heads, kv_heads = config.num_query_heads, config.num_kv_heads
    experts = f"{config.num_experts} experts, {config.experts_per_token} per token, " if config.is_moe else ""
    gated = ", gated" if config.gated else ""
    rows = {
        "attention": f"{attention_name(config)}: {query_heads} query heads, {kv_heads} key/value heads "
        f"(full attention would have {config.num_heads})",
        "parameters": f"{parameters(config).total:,}",
        "layers": config.num_layers,
        "width": f"{config.hidden_size}, head_dim {config.head_dim}",
        "feed-forward": f"{experts}{config.activation}{gated}, hidden width {config.intermediate_size}",
        "vocabulary": config.vocab_size,
        "context length in training": config.context_length,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    names = "\n".join(f"- {tag}" for tag in (*TAGS, *tags))
    return _CARD.format(table=table, loading=loading.strip(), library=library, tags=names)


_CARD = """\
---
license: apache-2.0
library_name: {library}
pipeline_tag: text-generation
tags:
{tags}
---

# Sparse Query Attention transformer

A causal language model whose numbers of query and key/value heads are chosen apart from its width
([Sparse Query Attention](https://arxiv.org/abs/2510.01817)). This card was written with the checkpoint and records no
results.

| | |
|---|---|
{table}

```python
{loading}
```
"""
