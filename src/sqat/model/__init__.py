"""The model: everything here imports torch alone."""

from sqat.model.attention import Attention
from sqat.model.cache import KVCache
from sqat.model.decoder import Decoder, DecoderOutput
from sqat.model.dispatch import plain_torch
from sqat.model.mask import AttentionMask
from sqat.model.moe import RouterStats

__all__ = ["Attention", "AttentionMask", "Decoder", "DecoderOutput", "KVCache", "RouterStats", "plain_torch"]
