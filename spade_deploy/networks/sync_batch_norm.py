"""Batch norm whose statistics are taken over the samples of all processes, on CPUs (gloo) and on GPUs (nccl).

PyTorch's own nn.SyncBatchNorm refuses tensors on a CPU, so that a test would need several GPUs. This code serves both
devices, and the tests compare two processes with one.

**Forward.** Process r has n_r values a channel, their mean m_r and the sum S_r of their squared deviations from it.
One all-gather of (n_r, m_r, S_r) gives each process the statistics of the union (Chan, Golub and LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979):

    n = sum n_r     m = sum n_r m_r / n     S = sum S_r + sum n_r (m_r - m)^2     y = (x - m) / sqrt(S / n + eps)

No difference of two large sums is taken, so that a mean far from zero costs no digits; the n_r may differ.

**Backward.** m and S depend on every process's x. With g = dL/dy, x^ = y, and L the sum of all processes' losses:

    dL/dx = (g - sum(g) / n - x^ sum(g x^) / n) / sqrt(S / n + eps)

where the two sums run over all processes: one all-reduce.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_AXES = (0, 2, 3)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over the samples of all processes while it trains; arguments and state dict are the same.

    In eval mode, and where torch.distributed is not initialised or has one process, it is nn.BatchNorm2d, bit for bit.
    Every process must call it the same number of times: it waits for the others.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input: N x C x H x W; N may differ between the processes. Half precision gets float32 statistics.

        Raises ValueError where all processes together have a single value in each channel: its deviation would be zero.
        """
        if not (self.training and _has_peers()):
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, variance, count = _Normalize.apply(input, self.eps)  # type: ignore[no-untyped-call]
        self._track(mean, variance, count)
        result: Tensor = output
        if self.affine:
            result = result * _spread(self.weight).to(result.dtype) + _spread(self.bias).to(result.dtype)
        return result

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards a batch's; the variance that is kept is the unbiased one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        # momentum None is the mean of all batches so far, as in nn.BatchNorm2d.
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _Normalize(torch.autograd.Function):
    """(x, eps) -> (y, mean, biased variance, count), the last three over all processes and without a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            own_mean, own_deviations, own_count = _own_statistics(x)
            mean, deviations, count = _combined(own_mean, own_deviations, own_count)
            # The total is read only if it may be too small, since reading it makes the host wait for the GPU.
            if own_count < 2 and count.item() < 2:
                raise ValueError(f"batch norm needs 2 values a channel over all processes, and got {count.item():.0f}")
            variance = deviations / count
            y = functional.batch_norm(x, mean, variance, training=False, eps=eps)
        ctx.save_for_backward(x, mean, torch.rsqrt(variance + eps), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        x, mean, inverse_std, count = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad_ = grad.to(mean.dtype)
            x_hat = (x.to(mean.dtype) - _spread(mean)) * _spread(inverse_std)
            sums = torch.stack([grad_.sum(_AXES), (grad_ * x_hat).sum(_AXES)])
            distributed.all_reduce(sums)
            means = sums / count
            slope = (grad_ - _spread(means[0]) - x_hat * _spread(means[1])) * _spread(inverse_std)
        return slope.to(x.dtype), None


def _has_peers() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _own_statistics(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Each channel's mean and sum of squared deviations, and how many values it has. Float32, or float64 of float64."""
    count = x.numel() // x.shape[1]
    zeros = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if not count:  # a process without samples
        return zeros, zeros, 0
    # This is what nn.BatchNorm2d itself calls. The sums are float32 whatever x is, and on a CPU it takes a tenth of
    # var_mean's time. The zeros are running statistics that it would update; their type is the type of its result.
    mean, variance = torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)
    return mean, variance * count, count


def _combined(mean: Tensor, deviations: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviations and count of all processes together; each process adds in the same order and gets the same."""
    own = torch.cat([mean, deviations, mean.new_tensor([count])])
    rows = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(rows, own)
    gathered = torch.stack(rows)
    channels = mean.numel()
    means, squares, counts = gathered[:, :channels], gathered[:, channels:-1], gathered[:, -1:]
    total = counts.sum()
    together = (counts * means).sum(0) / total
    return together, squares.sum(0) + (counts * (means - together) ** 2).sum(0), total


def _spread(values: Tensor) -> Tensor:
    """One value for each channel, C -> 1 x C x 1 x 1."""
    return values[None, :, None, None]
