"""A second writing of OASIS's generator, from the paper and the released files' tensor names alone.

Like `spade_by_the_facts` it reads a state dict by name and shares no code with the package. The state dict is made here
as well, with the published names and shapes.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from tests.support.spade_by_the_facts import weight_of

WIDTHS = (16, 16, 16, 8, 4, 2, 1)


def state_dict(channels, base, *, noise=64, hidden=7, seed=0):
    """A state dict of random numbers. channels: those of the one-hot map, the unknown one included."""
    numbers = torch.Generator().manual_seed(seed)
    seen = noise + channels
    state = {}

    def draw(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=numbers)

    def spectral(name, out, inside, side, bias=True):
        flat = draw(out, inside * side * side)
        u = F.normalize(draw(out), dim=0)
        v = F.normalize(flat.t() @ u, dim=0)
        state[f"{name}.weight_orig"] = flat.reshape(out, inside, side, side)
        state[f"{name}.weight_u"], state[f"{name}.weight_v"] = F.normalize(flat @ v, dim=0), v
        if bias:
            state[f"{name}.bias"] = draw(out, scale=0.2)

    def norm(name, width):
        state[f"{name}.first_norm.running_mean"] = draw(width, scale=0.3)
        state[f"{name}.first_norm.running_var"] = 0.5 + torch.rand(width, generator=numbers)
        state[f"{name}.first_norm.num_batches_tracked"] = torch.tensor(7)
        for part, out, inside in (
            ("mlp_shared.0", hidden, seen),
            ("mlp_gamma", width, hidden),
            ("mlp_beta", width, hidden),
        ):
            state[f"{name}.{part}.weight"] = draw(out, inside, 3, 3, scale=0.3 if inside == seen else 0.1)
            state[f"{name}.{part}.bias"] = draw(out, scale=0.2)

    state["conv_img.weight"], state["conv_img.bias"] = draw(3, base, 3, 3, scale=0.1), draw(3, scale=0.1)
    for number, (wide, narrow) in enumerate(itertools.pairwise(WIDTHS)):
        name, inside, out = f"body.{number}", wide * base, narrow * base
        spectral(f"{name}.conv_0", min(inside, out), inside, 3)
        spectral(f"{name}.conv_1", out, min(inside, out), 3)
        norm(f"{name}.norm_0", inside)
        norm(f"{name}.norm_1", min(inside, out))
        if inside != out:
            spectral(f"{name}.conv_s", out, inside, 1, bias=False)
            norm(f"{name}.norm_s", inside)
    state["fc.weight"], state["fc.bias"] = draw(16 * base, seen, 3, 3, scale=0.3), draw(16 * base, scale=0.2)
    for weight in state.values():
        if weight.dim() == 4 and weight.shape[1] == seen:
            weight[:, :noise] *= 0.1  # 64 numbers at every tap would drown the labels
    return state


def conv(state, name, x):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[2] // 2)


def spade(state, name, x, seen):
    mean, variance = state[f"{name}.first_norm.running_mean"], state[f"{name}.first_norm.running_var"]
    x = (x - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-5)
    step = seen.shape[2] // x.shape[2]
    hidden = conv(state, f"{name}.mlp_shared.0", seen[:, :, ::step, ::step]).clamp(min=0)
    return x + x * conv(state, f"{name}.mlp_gamma", hidden) + conv(state, f"{name}.mlp_beta", hidden)


def block(state, name, x, seen):
    y = F.leaky_relu(spade(state, f"{name}.norm_0", x, seen), 0.2)
    y = F.conv2d(y, weight_of(state, f"{name}.conv_0"), state[f"{name}.conv_0.bias"], padding=1)
    y = F.leaky_relu(spade(state, f"{name}.norm_1", y, seen), 0.2)
    y = F.conv2d(y, weight_of(state, f"{name}.conv_1"), state[f"{name}.conv_1.bias"], padding=1)
    if f"{name}.norm_s.mlp_gamma.weight" in state:
        x = F.conv2d(spade(state, f"{name}.norm_s", x, seen), weight_of(state, f"{name}.conv_s"))
    return x + y


def generate(state, label, z, channel_of):
    """label: N x H x W ids of ours; channel_of: the file's channel of each id. z: N x noise or None."""
    dtype = state["conv_img.bias"].dtype
    maps = torch.zeros(len(label), len(channel_of), *label.shape[1:], dtype=dtype)
    for index, channel in enumerate(channel_of):
        maps[:, channel] = (label == index).to(dtype)
    if z is not None:
        vectors = z.to(dtype).reshape(*z.shape, 1, 1) * torch.ones(1, 1, *label.shape[1:], dtype=dtype)
        maps = torch.cat([vectors, maps], dim=1)
    x = conv(state, "fc", maps[:, :, ::32, ::32])
    for number in range(6):
        if number:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = block(state, f"body.{number}", x, maps)
    return torch.tanh(conv(state, "conv_img", F.leaky_relu(x, 0.2)))
