"""Sparse Query Attention for pretrained models: fewer query heads, what that costs, how close the result is."""

from sqat.convert.conversion import choose_heads, convert
from sqat.convert.plan import ConversionPlan, Costs, plan_conversion
from sqat.convert.verify import Verification, verify

__all__ = ["ConversionPlan", "Costs", "Verification", "choose_heads", "convert", "plan_conversion", "verify"]
