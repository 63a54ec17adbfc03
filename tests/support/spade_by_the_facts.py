"""A second writing of the generator, from the paper and the released files' tensor names alone.

It is functional: it reads a state dict by name and shares no code with the package, so that a wiring mistake in one of
the two shows as a difference. Slow and plain on purpose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def weight_of(state, name):
    if f"{name}.weight_orig" not in state:
        return state[f"{name}.weight"]
    matrix = state[f"{name}.weight_orig"]
    flat = matrix.reshape(matrix.shape[0], -1)
    u = state[f"{name}.weight_u"]
    v = state.get(f"{name}.weight_v")
    if v is None:
        v = flat.t() @ u
        v = v / v.norm()
    return matrix / (u @ (flat @ v))


def spade(state, name, x, segmap):
    mean = state.get(f"{name}.param_free_norm.running_mean")
    if mean is None:
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        normalized = centred / torch.sqrt((centred**2).mean(dim=(2, 3), keepdim=True) + 1e-5)
    else:
        variance = state[f"{name}.param_free_norm.running_var"]
        normalized = (x - mean[:, None, None]) / torch.sqrt(variance + 1e-5)[:, None, None]
    rows = torch.arange(x.shape[2]) * segmap.shape[2] // x.shape[2]
    columns = torch.arange(x.shape[3]) * segmap.shape[3] // x.shape[3]
    picked = segmap[:, :, rows][:, :, :, columns]
    pad = state[f"{name}.mlp_shared.0.weight"].shape[2] // 2
    hidden = F.conv2d(picked, state[f"{name}.mlp_shared.0.weight"], state[f"{name}.mlp_shared.0.bias"], padding=pad)
    hidden = hidden.clamp(min=0)
    gamma = F.conv2d(hidden, state[f"{name}.mlp_gamma.weight"], state[f"{name}.mlp_gamma.bias"], padding=pad)
    beta = F.conv2d(hidden, state[f"{name}.mlp_beta.weight"], state[f"{name}.mlp_beta.bias"], padding=pad)
    return normalized + normalized * gamma + beta


def block(state, name, x, segmap):
    y = F.leaky_relu(spade(state, f"{name}.norm_0", x, segmap), 0.2)
    y = F.conv2d(y, weight_of(state, f"{name}.conv_0"), state[f"{name}.conv_0.bias"], padding=1)
    y = F.leaky_relu(spade(state, f"{name}.norm_1", y, segmap), 0.2)
    y = F.conv2d(y, weight_of(state, f"{name}.conv_1"), state[f"{name}.conv_1.bias"], padding=1)
    if f"{name}.norm_s.mlp_gamma.weight" in state:
        x = F.conv2d(spade(state, f"{name}.norm_s", x, segmap), weight_of(state, f"{name}.conv_s"))
    return x + y


def generate(state, label, instance, z, *, num_ids, upsampling, latent):
    """label, instance: N x H x W or None. latent: (height, width). Returns the image, N x 3 x H x W."""
    segmap = torch.stack([(label == index) for index in range(num_ids)], dim=1).to(state["conv_img.bias"].dtype)
    if instance is not None:
        padded = F.pad(instance[:, None].double(), (1, 1, 1, 1), mode="replicate")
        middle = padded[:, :, 1:-1, 1:-1]
        neighbours = [padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1], padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:]]
        edges = torch.stack([middle != other for other in neighbours]).any(dim=0)
        segmap = torch.cat([segmap, edges.to(segmap.dtype)], dim=1)
    if z is None:
        step_y, step_x = segmap.shape[2] // latent[0], segmap.shape[3] // latent[1]
        x = F.conv2d(segmap[:, :, ::step_y, ::step_x], state["fc.weight"], state["fc.bias"], padding=1)
    else:
        x = (z @ state["fc.weight"].t() + state["fc.bias"]).reshape(len(z), -1, *latent)

    def up(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    x = up(block(state, "head_0", x, segmap))
    x = block(state, "G_middle_0", x, segmap)
    if upsampling in ("more", "most"):
        x = up(x)
    x = up(block(state, "G_middle_1", x, segmap))
    x = up(block(state, "up_0", x, segmap))
    x = up(block(state, "up_1", x, segmap))
    x = up(block(state, "up_2", x, segmap))
    x = block(state, "up_3", x, segmap)
    if upsampling == "most":
        x = block(state, "up_4", up(x), segmap)
    return torch.tanh(F.conv2d(F.leaky_relu(x, 0.2), state["conv_img.weight"], state["conv_img.bias"], padding=1))
