"""RxNN's model class: its constructor, files and Hub methods around a :class:`sqat.model.Decoder`.

Shape letters: B batch, T tokens, V vocabulary.
"""

import json
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from sqat.checkpoint import load_model, read_config, write_folder, write_model
from sqat.checkpoint.model_files import CONFIG_FILE, WEIGHTS_FILE, native_tensors
from sqat.checkpoint.rxnn import config_from_rxnn, config_to_rxnn
from sqat.checksums import MANIFEST
from sqat.errors import ConfigError, TrainingError
from sqat.hub import download
from sqat.model import Decoder, DecoderOutput, RouterStats
from sqat.model.decoder import without_values
from sqat.store import write_files
from sqat.train.loss import router_loss

CARD_FILE = "README.md"

# Arguments that RxNN gained after 0.1.59, with their defaults: written to config.json only if they differ.
_LATER_ARGUMENTS = {
    "use_head_norm": False,
    "att_num_global_tokens": 16,
    "att_window_size": 128,
    "init_identity_norm": False,
}


_HUB_OPTIONS = ("force_download", "token", "cache_dir", "local_files_only", "revision")


class RoutedDecoder(Decoder):
    """A decoder with RxNN's `moe_router_loss()`: it remembers the router statistics of its last training pass."""

    last_router: tuple[RouterStats, ...] = ()

    def forward(self, tokens_BT: Tensor, **options: Any) -> DecoderOutput:
        """See :meth:`sqat.model.Decoder.forward`."""
        output = super().forward(tokens_BT, **options)
        if self.training:
            self.last_router = output.router
        return output

    def moe_router_loss(self) -> Tensor:
        """RxNN's router loss of the last training pass: a differentiable scalar, the mean over layers, with padding
        counted.

        Raises:
            TrainingError: the model has no experts, or there has been no forward pass in training mode.
        """
        if not self.last_router:
            needs = "experts (use_moe_ff) and a forward pass in training mode, model.train(); model(x)"
            raise TrainingError(f"no router loss: it needs {needs}")
        return router_loss(self.last_router, "rxnn")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the statistics out of copies and pickles: tensors inside a graph cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "last_router"}


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
        self.arguments = {
            name: value
            for name, value in passed.items()
            if name not in ("self", "kwargs", "__class__")
            and not (name in _LATER_ARGUMENTS and value == _LATER_ARGUMENTS[name])
        }
        self.model = RoutedDecoder(config_from_rxnn(self.arguments))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for token ids (B, T). As in RxNN, `attention_mask` has no effect: attention is causal, and
        padding comes last.
        """
        return self.model(x).logits

    def params_count(self) -> str:
        """The number of trainable parameters as text, such as "Model params 8.57M"."""
        count = sum(p.numel() for p in self.parameters() if p.requires_grad)
        rounded = float(f"{count:.3g}")  # before choosing the unit, so that 999,999 is 1M and not 1000K
        unit, suffix = next(((u, s) for u, s in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if rounded >= u), (1.0, ""))
        return f"Model params {rounded / unit:.3g}{suffix}"

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
        config, is_rxnn = read_config(folder)
        saved = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) if is_rxnn else config_to_rxnn(config)
        arguments = {**saved, **options}
        with without_values():
            model = cls(**arguments)
        model.arguments = arguments
        model.model.load_state_dict(tensors, assign=True)
        return model.to(map_location).eval()

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_options: Any,
    ) -> str | None:
        """Write `config.json`, `model.safetensors` and, unless there is one, `README.md`.

        A new folder appears complete or not at all. In an existing folder each file is replaced atomically, and other
        files stay.

        Args:
            config: a dictionary to write instead of the model's own arguments.
            push_to_hub, push_options: upload as well; `repo_id` defaults to the folder's name.
            model_card_kwargs: metadata for the card: `license`, `datasets` (Hub ids) and `base_model`, see
                :class:`sqat.model_card.Known`.

        Returns:
            the URL of the commit if the model was uploaded.

        Raises:
            ConfigError: `save_directory` is a file.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"save_directory is {str(folder)!r}, a file, but must be a folder, or not exist yet")
        write = write_files if folder.is_dir() else write_folder
        with write(folder) as temporary:
            write_model(self.model, temporary, layout="rxnn")
            text = json.dumps(self.arguments if config is None else config, indent=2, sort_keys=True)
            (temporary / CONFIG_FILE).write_text(text, encoding="utf-8")
            if not (folder / CARD_FILE).exists():
                self.generate_model_card(**(model_card_kwargs or {})).save(temporary / CARD_FILE)
        if not push_to_hub:
            return None
        options = {"repo_id": folder.name, "config": config, "model_card_kwargs": model_card_kwargs, **push_options}
        return self.push_to_hub(**options)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """As in `huggingface_hub`, but without the list of checksums, since the Hub keeps its own."""
        return str(super().push_to_hub(*args, **{"ignore_patterns": MANIFEST, **kwargs}))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README.md of :meth:`save_pretrained` and :meth:`push_to_hub`, which pass their `model_card_kwargs`."""
        from sqat.model_card import Known, model_card  # a second to import, and few need it

        datasets = kwargs.pop("datasets", None) or ()
        known = Known(datasets=(datasets,) if isinstance(datasets, str) else tuple(datasets), **kwargs)
        return ModelCard(model_card(self.model.config, "rxnn", known=known, tokenizer=False))
