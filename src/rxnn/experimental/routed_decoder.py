"""The decoder with RxNN's way to ask for the router loss: of the last forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sqat.errors import ConfigError, TrainingError
from sqat.model import Decoder, DecoderOutput, RouterStats
from sqat.train.loss import router_loss


class RoutedDecoder(Decoder):
    """A decoder that remembers the router statistics of its last forward pass in training mode."""

    last_router: tuple[RouterStats, ...] = ()

    def forward(self, tokens_BT: Tensor, **options: Any) -> DecoderOutput:
        """As :meth:`sqat.model.Decoder.forward`."""
        output = super().forward(tokens_BT, **options)
        if self.training:
            self.last_router = output.router
        return output

    def moe_router_loss(self) -> Tensor:
        """RxNN's router loss, a scalar: mean over layers, padding counted; differentiable.

        Raises:
            ConfigError: the model has no experts.
            TrainingError: there was no forward pass in training mode yet.
        """
        if not self.config.is_moe:
            raise ConfigError("use_moe_ff is False: only a model with experts has a router loss")
        if not self.last_router:
            raise TrainingError(
                "no router loss yet: first run a forward pass in training mode, model.train(); model(x)"
            )
        return router_loss(self.last_router, "card")

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take along: not the statistics, since tensors inside a graph cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "last_router"}
