"""RxNN's model class: its constructor, files and Hub methods around a :class:`sqat.model.Decoder`.

Shape letters: B batch, T tokens, V vocabulary.
"""

import json
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from sqat.checkpoint import load_model, write_model
from sqat.checkpoint.model_files import CONFIG_FILE, WEIGHTS_FILE, native_tensors
from sqat.checkpoint.rxnn import config_from_rxnn
from sqat.hub import download
from sqat.model import Decoder
from sqat.model.decoder import without_values
from sqat.store import write_files

_HUB_OPTIONS = ("force_download", "token", "cache_dir", "local_files_only", "revision")


class ExperimentalAttentionTransformer(nn.Module, PyTorchModelHubMixin):
    """A causal language model that takes RxNN's keyword arguments, in RxNN's order and with its defaults.

    Args:
        att_type: "mha", "gqa", "mqa" or "sqa".
        att_heads: H, the heads of full attention; head_dim is `embed_dim / att_heads` for every attention type.
        att_groups: key/value heads, for "gqa" and "sqa".
        att_num_query_groups: query heads, for "sqa".
        use_flash_attention, att_num_experts, att_num_query_experts, att_num_global_tokens, att_window_size,
            init_identity_norm: kept in `config.json`, but without effect on these attention types.

    Raises:
        ConfigError: an unsupported `att_type` (such as RxNN's default, "gma"), an unknown argument, or sizes that do
            not fit together.
    """

    def __init__(
        self,
        num_layers: int = 6,
        vocab_size: int = 5000,
        embed_dim: int = 128,
        ff_dim: int = 384,
        att_heads: int = 16,
        seq_len: int = 256,
        use_flash_attention: bool = True,
        use_gated: bool = True,
        ff_activation: str = "swish",
        ff_dropout: float = 0.0,
        att_dropout: float = 0.0,
        use_rms_norm: bool = True,
        att_groups: int = 1,
        use_moe_ff: bool = False,
        ff_num_experts: int = 1,
        ff_moe_top_k: int = 1,
        att_type: str = "gma",
        att_num_experts: int | None = None,
        att_num_query_experts: int | None = None,
        att_num_query_groups: int | None = None,
        use_head_norm: bool = False,
        att_num_global_tokens: int = 16,
        att_window_size: int = 128,
        init_identity_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        passed = {**locals(), **kwargs}
        super().__init__()
        self.arguments = {name: value for name, value in passed.items() if name not in ("self", "kwargs", "__class__")}
        self.model = Decoder(config_from_rxnn(self.arguments))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for token ids (B, T). As in RxNN, `attention_mask` has no effect: attention is causal, and
        padding comes last.
        """
        return self.model(x).logits

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, map_location: torch.device | str = "cpu", **options: Any
    ) -> Self:
        """Load `config.json` and `model.safetensors` from a folder or the Hub, in evaluation mode. Pickles are never
        read.

        Args:
            map_location: the device to put the model on.
            options: `force_download`, `token`, `cache_dir`, `local_files_only`, `revision`, see
                :func:`sqat.hub.download`; and constructor arguments that replace those in the file, such as
                `ff_dropout`.

        Raises:
            CheckpointError: the model cannot be found or downloaded, or files are damaged.
            ConfigError: RxNN's arguments cannot describe the model.
        """
        hub = {name: options.pop(name) for name in _HUB_OPTIONS if name in options}
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download(str(pretrained_model_name_or_path), (CONFIG_FILE, WEIGHTS_FILE), **hub)
        tensors = native_tensors(load_model(folder))  # first, as it checks config.json against the tensors
        arguments = {**json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")), **options}
        with without_values():
            model = cls(**arguments)
        model.arguments = arguments
        model.model.load_state_dict(tensors, assign=True)
        return model.to(map_location).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the model's files, each whole or not at all; other files of the folder stay."""
        with write_files(save_directory) as temporary:
            write_model(self.model, temporary, layout="rxnn")
            text = json.dumps(self.arguments, indent=2, sort_keys=True)
            (temporary / CONFIG_FILE).write_text(text, encoding="utf-8")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README.md of `save_pretrained` and `push_to_hub`, which pass `model_card_kwargs`: `license`, `datasets`
        (Hub ids) and `base_model`, see :class:`sqat.model_card.Known`.
        """
        from sqat.model_card import Known, model_card  # a second to import, and few need it

        datasets = kwargs.pop("datasets", None) or ()
        known = Known(datasets=(datasets,) if isinstance(datasets, str) else tuple(datasets), **kwargs)
        return ModelCard(model_card(self.model.config, "rxnn", known=known, tokenizer=False))
