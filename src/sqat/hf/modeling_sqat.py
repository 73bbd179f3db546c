"""SQAT models for `transformers`: the whole model in one file, which also travels beside checkpoints. There it runs
without sqat, so it imports torch and transformers alone.

Tensors have the names of :class:`sqat.Decoder`, with "model." before those of the base model. Caches, masks, attention
and expert back ends are those of transformers, which finds out by reading this file's text which ones a model supports.

Shape letters: B batch, T tokens, S keys, D width, H query heads, K key/value heads, C head_dim, N tokens of a batch, E
experts, k experts per token, F expert hidden, I = F (or 2F, gated), V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_sqat import SQATConfig


def make_norm(kind: str | None, config: SQATConfig) -> nn.Module:
    """RMSNorm, LayerNorm or, for `None`, nothing. An epsilon of `None` is torch's own default."""
    if kind is None:
        return nn.Identity()
    if kind == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=1e-5 if config.norm_eps is None else config.norm_eps)


def rotary_tables(position_ids: torch.Tensor, config: SQATConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (B, 1, T, C/2), float32. They are computed in each pass: a buffer would be lost when a model
    is built on the device "meta" and then filled from a checkpoint.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=position_ids.device, dtype=torch.float32) / config.head_dim
    angles = position_ids[:, None, :, None].float() / config.rope_theta**exponents
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x[j], x[j + C/2]) of every head by their position's angles, in float32; (B, H, T, C)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class SQATAttention(nn.Module):
    """Grouped attention with any number of query heads. With more key/value heads than query heads (reverse SQA), each
    query head is repeated, so that the back ends see as many of both.
    """

    def __init__(self, config: SQATConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        query_heads, kv_heads, self.head_dim = config.num_query_heads, config.num_kv_heads, config.head_dim
        self.query_repeats = max(1, kv_heads // query_heads)
        self.num_key_value_groups = max(1, query_heads // kv_heads)
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        width, bias = config.hidden_size, config.qkv_bias
        self.q_proj = nn.Linear(width, query_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * config.head_dim, bias=bias)
        self.out_proj = nn.Linear(max(query_heads, kv_heads) * config.head_dim, width, bias=config.attention_out_bias)
        self.out_proj.writes_residual = True  # type: ignore[assignment]  # for its initial weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if self.query_repeats > 1:
            query = query.repeat_interleave(self.query_repeats, dim=1)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.config.window,
            **kwargs,
        )
        return self.out_proj(output.flatten(2)), weights


def activate(hidden: torch.Tensor, config: SQATConfig, training: bool) -> torch.Tensor:
    """What comes between a feed-forward's two layers: (…, I) to (…, F). If gated, the first gives (linear, gate)."""
    function = ACT2FN[config.activation]
    if config.gated:
        linear, gate = hidden.chunk(2, dim=-1)
        hidden = linear * function(gate)
    else:
        hidden = function(hidden)
    return F.dropout(hidden, config.feedforward_dropout, training)


class SQATFeedForward(nn.Module):
    """The dense feed-forward."""

    def __init__(self, config: SQATConfig) -> None:
        super().__init__()
        self.config = config
        inner = config.intermediate_size * (2 if config.gated else 1)
        self.fc1 = nn.Linear(config.hidden_size, inner, bias=config.feedforward_bias)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.feedforward_bias)
        self.fc2.writes_residual = True  # type: ignore[assignment]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(activate(self.fc1(hidden_states), self.config, self.training))


class SQATRouter(nn.Module):
    """Softmax over all experts, the k largest weights renormalised to sum to one."""

    def __init__(self, config: SQATConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, D) to logits (N, E), and of the chosen experts the weights and numbers (N, k)."""
        with torch.autocast(hidden_states.device.type, enabled=False):  # decided in full precision
            logits = F.linear(hidden_states.float(), self.weight.float())
        weights, experts = logits.softmax(dim=-1).topk(self.experts_per_token, dim=-1)
        return logits, weights / (weights.sum(dim=-1, keepdim=True) + 1e-9), experts


@use_experts_implementation
class SQATExperts(nn.Module):
    """All experts, their weights stacked. The loop in `forward` is the "eager" implementation."""

    config: SQATConfig

    def __init__(self, config: SQATConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        width, hidden = config.hidden_size, config.intermediate_size
        inner = hidden * (2 if config.gated else 1)
        self.fc1_weight = nn.Parameter(torch.empty(self.num_experts, inner, width))
        self.fc2_weight = nn.Parameter(torch.empty(self.num_experts, width, hidden))
        biases = config.feedforward_bias
        self.fc1_bias = nn.Parameter(torch.empty(self.num_experts, inner)) if biases else None
        self.fc2_bias = nn.Parameter(torch.empty(self.num_experts, width)) if biases else None

    def forward(self, hidden_states: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The sum of weight · expert(x) over each token's experts, (N, D), in the type of the weights."""
        total = torch.zeros_like(hidden_states, dtype=weights.dtype)
        for expert in experts.unique().tolist():
            tokens, places = torch.where(experts == expert)
            fc1_bias = None if self.fc1_bias is None else self.fc1_bias[expert]
            fc2_bias = None if self.fc2_bias is None else self.fc2_bias[expert]
            hidden = F.linear(hidden_states[tokens], self.fc1_weight[expert], fc1_bias)
            output = F.linear(self._apply_gate(hidden), self.fc2_weight[expert], fc2_bias)
            total.index_add_(0, tokens, output * weights[tokens, places, None])
        return total

    def _apply_gate(self, hidden: torch.Tensor) -> torch.Tensor:
        return activate(hidden, self.config, self.training)

    # Other implementations call act_fn if there is no gate, and know the tensors by these names.
    act_fn = _apply_gate
    gate_up_proj = up_proj = property(lambda self: self.fc1_weight)
    gate_up_proj_bias = up_proj_bias = property(lambda self: self.fc1_bias)
    down_proj = property(lambda self: self.fc2_weight)
    down_proj_bias = property(lambda self: self.fc2_bias)


class SQATMoE(SQATExperts):
    """A router and its experts; no token is dropped."""

    def __init__(self, config: SQATConfig) -> None:
        super().__init__(config)
        self.has_gate, self.has_bias = config.gated, config.feedforward_bias  # for the implementations
        self.router = SQATRouter(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(B, T, D) to (B, T, D)."""
        flat = hidden_states.flatten(0, -2)
        _, weights, experts = self.router(flat)
        return super().forward(flat, experts, weights).to(flat.dtype).view_as(hidden_states)


class SQATDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: SQATConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, config)
        self.attention = SQATAttention(config, layer_idx)
        self.norm2 = make_norm(config.norm, config)
        self.feedforward = SQATMoE(config) if config.num_experts else SQATFeedForward(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """(B, T, D) to (B, T, D)."""
        update, _ = self.attention(
            self.norm1(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + update
        return hidden_states + self.feedforward(self.norm2(hidden_states))


class SQATPreTrainedModel(PreTrainedModel):
    config_class = SQATConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _input_embed_layer = "embedding"
    _no_split_modules = ["SQATDecoderLayer"]  # noqa: RUF012 (as transformers declares them)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(SQATRouter, index=0),
        "hidden_states": SQATDecoderLayer,
        "attentions": SQATAttention,
    }

    companion: Any = None  # sqat.hf puts its module `pretrained` here; this file alone does without

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: object, *args: object, **kwargs: Any) -> PreTrainedModel:
        """As transformers' own; where sqat is installed, also from folders and Hub ids in RxNN's layout."""
        if cls.companion is not None:
            pretrained_model_name_or_path, kwargs = cls.companion.resolve(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: object, *args: object, **kwargs: Any) -> object:
        """As transformers' own; where sqat is installed, with a model card, and with this code if `auto_map` names it.
        `known`, a `sqat.model_card.Known`, is what the card cannot know by itself.
        """
        if self.companion is None:
            return super().save_pretrained(save_directory, *args, **kwargs)
        return self.companion.save(self, super().save_pretrained, save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> object:
        """As transformers' own; where sqat is installed, with a model card and `known`, as :meth:`save_pretrained`."""
        if self.companion is None:
            return super().push_to_hub(repo_id, **kwargs)
        return self.companion.push(self, super().push_to_hub, repo_id, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The schemes of :mod:`sqat.model.decoder`: "normal" is N(0, 0.02), scaled by 1/sqrt(2·layers) for what writes
        to the residual stream; "torch" is uniform within ±1/sqrt(fan_in), with N(0, 1) for the embedding.
        """
        std = self.config.initializer_range
        residual_std = std / (2 * self.config.num_layers) ** 0.5
        if isinstance(module, SQATExperts):
            self._fill(module.fc1_weight, module.fc1_bias, std)
            self._fill(module.fc2_weight, module.fc2_bias, residual_std)
        elif isinstance(module, SQATRouter):
            self._fill(module.weight, None, std)
        elif isinstance(module, nn.Linear):
            writes_residual = getattr(module, "writes_residual", False)
            self._fill(module.weight, module.bias, residual_std if writes_residual else std)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std if self.config.init == "normal" else 1.0)
        else:
            super()._init_weights(module)

    def _fill(self, weight: torch.Tensor, bias: torch.Tensor | None, std: float) -> None:
        """A matrix, or a stack of them (the last axis is the input), and its bias."""
        bound = weight.shape[-1] ** -0.5
        if self.config.init == "normal":
            init.normal_(weight, std=std)
        else:
            init.uniform_(weight, -bound, bound)
        if bias is not None and self.config.init == "normal":
            init.zeros_(bias)
        elif bias is not None:
            init.uniform_(bias, -bound, bound)

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """By default grouped matrix products, which need rows of a multiple of 16 bytes; otherwise the loop."""
        odd = self.config.hidden_size % 8 or self.config.intermediate_size % 8
        if requested_experts is None and (odd or not self.config.num_experts):
            return "eager"
        return super().get_correct_experts_implementation(requested_experts)


class SQATModel(SQATPreTrainedModel):
    """Embedding, layers and final norm: from token ids to the head's input."""

    def __init__(self, config: SQATConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SQATDecoderLayer(config, i) for i in range(config.num_layers))
        self.final_norm = make_norm(config.final_norm, config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: object,
    ) -> MoeModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both")
        if inputs_embeds is None:
            inputs_embeds = self.embedding(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        mask = make_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0) + seen
        position_embeddings = rotary_tables(position_ids, self.config)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **kwargs,
            )
        return MoeModelOutputWithPast(last_hidden_state=self.final_norm(hidden_states), past_key_values=past_key_values)


def make_mask(
    config: SQATConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    **ignored: object,
) -> object:
    """The attention back end's mask; `None` for plain causality. `position_ids` tell packed documents apart."""
    common = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
    }
    if config.window is None:
        return create_causal_mask(**common)
    if not config.global_tokens:
        return create_sliding_window_causal_mask(**common)
    if "flash" in config._attn_implementation:
        raise ValueError(
            f"attn_implementation is {config._attn_implementation!r}, but must be sdpa or eager where there are global "
            "tokens"
        )
    seen = window_or_global(config, attention_mask, position_ids if past_key_values is None else None)
    return create_causal_mask(**common, and_mask_function=seen)


def window_or_global(
    config: SQATConfig, attention_mask: torch.Tensor | None, packed_ids: torch.Tensor | None
) -> Callable:
    """The mask function of windows with global tokens: the first tokens of a row, after its left padding, or of each of
    its packed documents, whose positions are `packed_ids` (B, T).
    """
    window, first = config.window or 0, None
    if packed_ids is None and attention_mask is not None and attention_mask.dim() == 2:
        first = attention_mask.long().argmax(dim=-1)  # the first real token

    def seen(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        if packed_ids is not None:
            own = packed_ids[batch if len(packed_ids) > 1 else 0, key]
        else:
            own = key if first is None else key - first[batch]
        return (query - key < window) | (own < config.global_tokens)

    return seen


def load_balancing_loss(
    router_logits: tuple[torch.Tensor, ...], experts_per_token: int, real: torch.Tensor | None
) -> torch.Tensor:
    """E · Σ f·P, where f is an expert's share of selections and P its mean probability over the tokens that are `real`
    (N,), averaged over layers: 1 when balanced, up to E when collapsed. Switch Transformer, arXiv 2101.03961, eq. 4.
    """
    losses = []
    for logits in router_logits:
        probabilities = logits.softmax(dim=-1)
        chosen = torch.zeros_like(logits).scatter_(1, logits.topk(experts_per_token, dim=-1).indices, 1.0)
        weights = torch.ones_like(logits[:, :1]) if real is None else real.to(logits).unsqueeze(1)
        tokens = weights.sum().clamp(min=1)
        share, mean = (chosen * weights).sum(dim=0) / tokens, (probabilities * weights).sum(dim=0) / tokens
        losses.append(logits.shape[1] / experts_per_token * (share * mean).sum())
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


class SQATForCausalLM(SQATPreTrainedModel, GenerationMixin):
    """The language model: :class:`SQATModel` and a head."""

    _tied_weights_keys = {"head.weight": "model.embedding.weight"}  # noqa: RUF012
    create_masks_for_generate = staticmethod(make_mask)  # `generate` builds masks for static caches ahead

    def __init__(self, config: SQATConfig) -> None:
        super().__init__(config)
        self.model = SQATModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: object,
    ) -> MoeCausalLMOutputWithPast:
        """Logits (B, T, V), or only those of the last `logits_to_keep` tokens (or at the given positions); and the loss
        if there are `labels` (B, T), which are -100 where nothing is to be predicted. With `output_router_logits`, the
        loss includes the routers' auxiliary loss times `router_aux_loss_coef`.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        output_router_logits = bool(output_router_logits and self.config.num_experts)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(outputs.last_hidden_state[:, kept])
        loss = aux_loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        if output_router_logits:
            tokens = outputs.last_hidden_state.shape[1]
            real = None
            if attention_mask is not None and attention_mask.dim() == 2:
                real = attention_mask[:, -tokens:].flatten()
            aux_loss = load_balancing_loss(outputs.router_logits, self.config.experts_per_token, real)
            if loss is not None:
                weight = self.config.router_aux_loss_coef
                if (total := kwargs.get("num_items_in_batch")) is not None:
                    # Trainer adds up the losses of a step's micro-batches, so each has the share of its own targets.
                    targets: Any = kwargs["shift_labels"] if labels is None else labels[..., 1:]
                    weight = weight * targets.ne(-100).sum() / total
                loss = loss + weight * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )


__all__ = ["SQATForCausalLM", "SQATModel", "SQATPreTrainedModel"]
