"""Spectral normalisation (Miyato et al., ICLR 2018) with PyTorch's state dict and results, in a third of its time.

The weight W, as a matrix of out_channels rows, is divided by an estimate of its largest singular value,

    sigma = u^T W v,    v <- normalize(W^T u), u <- normalize(W v)    once in each forward pass while it trains.

PyTorch's own hook copies a channels_last weight to get its rows, and autograd needs five passes over the weight for the
gradient. Here each row is read in the order in which it lies in memory, and v is permuted to match. With G the gradient
of W / sigma, the gradient of W is computed by its formula:

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
    """Normalise the module's weight before each of its passes; the parameters have the names of PyTorch's function."""
    torch_spectral_norm(module)
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, SpectralNorm):
            own = _InMemoryOrder(hook.name, hook.n_power_iterations, hook.dim, hook.eps)
            module._forward_pre_hooks[key] = own
    return module


class _InMemoryOrder(SpectralNorm):
    """A subclass of PyTorch's hook that is faster. Code that finds or removes PyTorch's hook finds it, too."""

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        weight: Tensor = getattr(module, self.name + "_orig")
        is_ordered = weight.is_contiguous() or _is_channels_last(weight)
        # Under torch.compile PyTorch's own code runs: the compiler merges its passes, and fails on this function.
        if self.dim != 0 or not is_ordered or torch.compiler.is_compiling():
            return SpectralNorm.compute_weight(self, module, do_power_iteration)
        u, v = module.get_buffer(self.name + "_u"), module.get_buffer(self.name + "_v")
        # In half precision the error of sigma, and so of every weight, would exceed the rounding error of the weights.
        with torch.autocast(weight.device.type, enabled=False):
            if do_power_iteration:
                with torch.no_grad():
                    rows = _rows(weight, weight)
                    for _ in range(self.n_power_iterations):
                        # In place, since other modules may share the buffers.
                        across = functional.normalize(torch.mv(rows.t(), u), dim=0, eps=self.eps)
                        functional.normalize(torch.mv(rows, across), dim=0, eps=self.eps, out=u)
                    v.copy_(_in_order_of_keys(across, weight))
            # The next pass changes the buffers, and this pass's gradient needs them as they are now.
            vectors = u.clone(), _in_order_of_memory(v, weight).clone()
            scaled: Tensor = _Scaled.apply(weight, *vectors)  # type: ignore[no-untyped-call]
        return scaled


class _Scaled(torch.autograd.Function):
    """W / (u^T W v), where u and v are constants; v is in the order in which the rows of W lie in memory."""

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
        result = torch.empty_like(weight)  # it lies in memory as the weight does, so that its rows are a view
        torch.div(grad, sigma, out=result)
        _rows(result, weight).addr_(u * along, v, alpha=-1)
        return result, None, None


def _is_channels_last(weight: Tensor) -> bool:
    """Whether a weight is stored with its channels last, and that differs from the usual order."""
    is_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return is_last and not weight.is_contiguous()


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Values of the weight's shape as out_channels rows, each in the order in which `like` lies in memory."""
    return (values.permute(0, 2, 3, 1) if _is_channels_last(like) else values).reshape(len(values), -1)


def _in_order_of_memory(v: Tensor, weight: Tensor) -> Tensor:
    """A row in the order of the state dict (input channel, then tap) -> in the order in which the weight's rows lie."""
    return v.view(weight.shape[1:]).permute(1, 2, 0).reshape(-1) if _is_channels_last(weight) else v


def _in_order_of_keys(v: Tensor, weight: Tensor) -> Tensor:
    """The inverse of `_in_order_of_memory`."""
    if not _is_channels_last(weight):
        return v
    channels, height, width = weight.shape[1:]
    return v.view(height, width, channels).permute(2, 0, 1).reshape(-1)
