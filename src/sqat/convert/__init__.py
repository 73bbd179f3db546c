"""Sparse Query Attention for pretrained models: a stock checkpoint with fewer heads, what it costs, how close it is."""

from sqat.convert.convert import choose_heads, convert
from sqat.convert.plan import ConversionPlan, Costs, plan_conversion
from sqat.convert.verify import Verification, verify

__all__ = ["ConversionPlan", "Costs", "Verification", "choose_heads", "convert", "plan_conversion", "verify"]
