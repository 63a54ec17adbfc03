"""Spectral normalisation (Miyato et al., ICLR 2018) as PyTorch's, of the same keys and values, at a third of the time.

The weight W, as a matrix of out_channels rows, is divided by an estimate of its largest singular value,

    sigma = u^T W v,    v <- normalize(W^T u), u <- normalize(W v)    once a pass in training.

PyTorch's own hook turns a channels_last weight into rows by copying it, and lets autograd find the gradient in five
passes over the weight. Here the rows keep the order that they have in memory, v is permuted instead, and with G the
gradient of W / sigma, that of W is written down:

    G / sigma - (<G, W> / sigma^2) u v^T
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import spectral_norm as torch_spectral_norm
from torch.nn.utils.spectral_norm import SpectralNorm

M = TypeVar("M", bound=nn.Module)


def spectral_norm(module: M) -> M:
    """Normalise the module's weight before each of its passes; the parameters are named as by PyTorch's function."""
    torch_spectral_norm(module)
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, SpectralNorm):
            own = _InMemoryOrder(hook.name, hook.n_power_iterations, hook.dim, hook.eps)
            module._forward_pre_hooks[key] = own
    return module


class _InMemoryOrder(SpectralNorm):
    """PyTorch's hook, which also knows how to be removed and found, with another way to the weight."""

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        weight: Tensor = getattr(module, self.name + "_orig")
        is_ordered = weight.is_contiguous() or _is_channels_last(weight)
        # torch.compile merges passes over a weight by itself, and fails on this function.
        if self.dim != 0 or not is_ordered or torch.compiler.is_compiling():
            return SpectralNorm.compute_weight(self, module, do_power_iteration)
        u, v = module.get_buffer(self.name + "_u"), module.get_buffer(self.name + "_v")
        # Half precision would make sigma, and with it every weight, worse than the weights' own rounding.
        with torch.autocast(weight.device.type, enabled=False):
            if do_power_iteration:
                with torch.no_grad():
                    rows = _rows(weight, weight)
                    for _ in range(self.n_power_iterations):
                        # In place: they are buffers, which others may share.
                        across = functional.normalize(torch.mv(rows.t(), u), dim=0, eps=self.eps)
                        functional.normalize(torch.mv(rows, across), dim=0, eps=self.eps, out=u)
                    v.copy_(_in_order_of_keys(across, weight))
            # The next pass changes the buffers; this pass's gradient needs them as they are now.
            vectors = u.clone(), _in_order_of_memory(v, weight).clone()
            scaled: Tensor = _Scaled.apply(weight, *vectors)  # type: ignore[no-untyped-call]
        return scaled


class _Scaled(torch.autograd.Function):
    """W / (u^T W v), the vectors taken as constants; v in the order of W's memory."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = torch.dot(u, torch.mv(_rows(weight, weight), v))
        ctx.save_for_backward(weight, u, v, sigma)
        return weight / sigma

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, u, v, sigma = ctx.saved_tensors
        along = torch.dot(_rows(grad, weight).reshape(-1), _rows(weight, weight).view(-1)) / sigma**2
        result = torch.empty_like(weight)  # of the weight's order in memory, so that its rows are a view
        torch.div(grad, sigma, out=result)
        _rows(result, weight).addr_(u * along, v, alpha=-1)
        return result, None, None


def _is_channels_last(weight: Tensor) -> bool:
    """Whether the channels vary fastest in memory; not where both orders are the same."""
    is_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return is_last and not weight.is_contiguous()


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Values of the weight's shape as out_channels rows in the order of the weight's memory; a view where it can be."""
    return (values.permute(0, 2, 3, 1) if _is_channels_last(like) else values).reshape(len(values), -1)


def _in_order_of_memory(v: Tensor, weight: Tensor) -> Tensor:
    """A row in the order of the keys (input channel, then tap) -> in that of the weight's memory."""
    return v.view(weight.shape[1:]).permute(1, 2, 0).reshape(-1) if _is_channels_last(weight) else v


def _in_order_of_keys(v: Tensor, weight: Tensor) -> Tensor:
    if not _is_channels_last(weight):
        return v
    channels, height, width = weight.shape[1:]
    return v.view(height, width, channels).permute(2, 0, 1).reshape(-1)
