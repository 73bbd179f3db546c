"""The configuration of an SQAT model, for `transformers`. This file also travels beside checkpoints, where it runs
without sqat, so it imports transformers alone.
"""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

CHOICES = {
    "activation": ("silu", "swish", "gelu", "relu", "sigmoid", "linear"),
    "norm": ("rmsnorm", "layernorm"),
    "final_norm": ("rmsnorm", "layernorm", None),
    "init": ("normal", "torch"),
}
AT_LEAST = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_layers", "num_query_heads", "num_kv_heads", "head_dim"), 1),
    "intermediate_size": 1,
    "context_length": 2,
    "num_experts": 0,
    "global_tokens": 0,
}


@strict
class SQATConfig(PreTrainedConfig):
    """A causal language model with Sparse Query Attention (arXiv 2510.01817): the numbers of query and key/value heads
    are chosen independently of the width.

    The fields are those of :class:`sqat.ModelConfig`, which explains them; the usual names of transformers
    (`num_attention_heads`, `num_hidden_layers`, …) work as well. Fields that only transformers needs come last.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, or an unusable value; the message names
            the field, its value and what would be right.
    """

    model_type = "sqat"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (as transformers declares it)
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_query_heads",
        "num_key_value_heads": "num_kv_heads",
        "max_position_embeddings": "context_length",
        "hidden_act": "activation",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
        "num_local_experts": "num_experts",
        "num_experts_per_tok": "experts_per_token",
        "sliding_window": "window",
    }

    vocab_size: int = 5000
    hidden_size: int = 512
    num_layers: int = 6
    num_query_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 1152
    context_length: int = 512
    num_experts: int = 0
    experts_per_token: int = 2
    activation: str = "silu"
    gated: bool = True
    norm: str = "rmsnorm"
    norm_eps: float | None = 1e-6
    final_norm: str | None = "rmsnorm"
    tie_embeddings: bool = True
    qkv_bias: bool = False
    attention_out_bias: bool = False
    feedforward_bias: bool = False
    head_bias: bool = False
    rope_theta: float | int = 10000.0
    attention_dropout: float | int = 0.0
    feedforward_dropout: float | int = 0.0
    init: str = "normal"
    window: int | None = None
    global_tokens: int = 0

    initializer_range: float = 0.02
    use_cache: bool = True
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.01
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3

    def validate_architecture(self) -> None:
        """Called by transformers when a configuration is built."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                right = ", ".join(map(str, choices))
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {right}")
        for name, least in AT_LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        for name in ("norm_eps", "rope_theta", "window"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}, but must be positive")
        for name in ("attention_dropout", "feedforward_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 0 and below 1")
        query_heads, kv_heads = self.num_query_heads, self.num_kv_heads
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            right = f"between 1 and num_experts ({self.num_experts})"
            raise ValueError(f"experts_per_token is {self.experts_per_token}, but must be {right}")
        if query_heads % kv_heads and kv_heads % query_heads:
            raise ValueError(
                f"num_kv_heads is {kv_heads}, but must divide num_query_heads ({query_heads}) or be a multiple"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, but must be even, since rotary embedding turns pairs")
        if self.global_tokens and self.window is None:
            raise ValueError(f"global_tokens is {self.global_tokens}, but must be 0 where window is None")

    @property
    def layer_types(self) -> list[str]:
        """Which positions transformers' caches keep: the window's, or with global tokens all of them."""
        rolls = self.window is not None and not self.global_tokens
        return ["sliding_attention" if rolls else "full_attention"] * self.num_layers


__all__ = ["SQATConfig"]
