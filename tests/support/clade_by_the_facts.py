"""A second writing of CLADE's generator, from the paper and the released files' tensor names alone.

Like `spade_by_the_facts` it reads a state dict by name and shares no code with the package. The state dict is made here
as well, with the published names and shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.support.spade_by_the_facts import weight_of

BLOCKS = {
    "head_0": (16, 16),
    "G_middle_0": (16, 16),
    "G_middle_1": (16, 16),
    "up_0": (16, 8),
    "up_1": (8, 4),
    "up_2": (4, 2),
    "up_3": (2, 1),
}


def state_dict(classes, has_edges, base, *, norm="batch", positions=False, seed=0):
    """A state dict of random numbers; spectral norm's vectors are not those of a power iteration that converged."""
    numbers = torch.Generator().manual_seed(seed)
    extra = int(has_edges)
    state = {}

    def draw(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=numbers)

    def spectral(name, out, inside, side, bias=True):
        weight = draw(out, inside, side, side)
        flat = weight.flatten(1)
        u = F.normalize(draw(out), dim=0)
        v = F.normalize(flat.t() @ u, dim=0)
        u = F.normalize(flat @ v, dim=0)
        state[f"{name}.weight_orig"], state[f"{name}.weight_u"], state[f"{name}.weight_v"] = weight, u, v
        if bias:
            state[f"{name}.bias"] = draw(out, scale=0.2)

    def norm_layer(name, channels):
        if norm == "batch":
            state[f"{name}.param_free_norm.running_mean"] = draw(channels, scale=0.3)
            state[f"{name}.param_free_norm.running_var"] = 0.5 + torch.rand(channels, generator=numbers)
        state[f"{name}.class_specified_affine.weight"] = torch.rand(classes, channels, generator=numbers)
        state[f"{name}.class_specified_affine.bias"] = draw(classes, channels, scale=0.3)
        for part in ("dist_conv_w", "dist_conv_b") if positions else ():
            state[f"{name}.class_specified_affine.{part}.weight"] = draw(1, 2, 1, 1, scale=0.4)
            state[f"{name}.class_specified_affine.{part}.bias"] = draw(1, scale=0.2)
        if has_edges:
            state[f"{name}.inst_conv.weight"], state[f"{name}.inst_conv.bias"] = draw(1, 1, 1, 1), draw(1)

    state["fc.weight"], state["fc.bias"] = draw(16 * base, classes + extra, 3, 3, scale=0.5), draw(16 * base, scale=0.2)
    for name, (wide, narrow) in BLOCKS.items():
        inside, out = wide * base, narrow * base
        middle = min(inside, out)
        spectral(f"{name}.conv_0", middle, inside + extra, 3)
        spectral(f"{name}.conv_1", out, middle + extra, 3)
        norm_layer(f"{name}.norm_0", inside)
        norm_layer(f"{name}.norm_1", middle)
        if inside != out:
            spectral(f"{name}.conv_s", out, inside + extra, 1, bias=False)
            norm_layer(f"{name}.norm_s", inside)
    state["conv_img.weight"], state["conv_img.bias"] = draw(3, base, 3, 3, scale=0.2), draw(3, scale=0.1)
    return state


def positions_of(label):
    """H x W ids -> 2 x H x W: row and column from the centre of the pixel's region, one region after the other."""
    height, width = label.shape
    found, seen = torch.zeros(2, height, width, dtype=torch.float64), set()
    for start in ((row, column) for row in range(height) for column in range(width)):
        if start in seen:
            continue
        waiting, region = [start], []
        seen.add(start)
        while waiting:
            row, column = waiting.pop()
            region.append((row, column))
            for place in ((row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)):
                inside = 0 <= place[0] < height and 0 <= place[1] < width
                if inside and place not in seen and label[place] == label[start]:
                    seen.add(place)
                    waiting.append(place)
        if label[start] == 0:  # the published encoding leaves out the first class
            continue
        places = torch.tensor(region)
        offsets = places - places.double().mean(dim=0)
        found[:, places[:, 0], places[:, 1]] = (offsets / (offsets.abs().max(dim=0).values + 1e-5)).t()
    return found


def clade(state, name, x, label, edges, positions):
    mean = state.get(f"{name}.param_free_norm.running_mean")
    if mean is None:
        mean, variance = x.mean(dim=(2, 3), keepdim=True), x.var(dim=(2, 3), keepdim=True, unbiased=False)
    else:
        mean, variance = mean[:, None, None], state[f"{name}.param_free_norm.running_var"][:, None, None]
    x = (x - mean) / torch.sqrt(variance + 1e-5)
    step_y, step_x = label.shape[1] // x.shape[2], label.shape[2] // x.shape[3]
    gamma, beta = state[f"{name}.class_specified_affine.weight"], state[f"{name}.class_specified_affine.bias"]
    result = torch.zeros_like(x)
    for index in range(len(gamma)):
        mask = (label[:, ::step_y, ::step_x] == index)[:, None]
        scaled, shift = x * gamma[index][:, None, None], beta[index][:, None, None]
        if positions is not None:
            here = positions[:, :, ::step_y, ::step_x]
            factors = []
            for part in ("dist_conv_w", "dist_conv_b"):
                weight = state[f"{name}.class_specified_affine.{part}.weight"].reshape(2)
                bias = state[f"{name}.class_specified_affine.{part}.bias"].reshape(())
                factors.append(1 + here[:, :1] * weight[0] + here[:, 1:] * weight[1] + bias)
            scaled, shift = scaled * factors[0], shift * factors[1]
        result = torch.where(mask, scaled + shift, result)
    if edges is not None:
        weight, bias = state[f"{name}.inst_conv.weight"], state[f"{name}.inst_conv.bias"]
        result = torch.cat([result, edges[:, None, ::step_y, ::step_x] * weight.reshape(()) + bias.reshape(())], dim=1)
    return result


def block(state, name, x, label, edges, positions):
    y = F.leaky_relu(clade(state, f"{name}.norm_0", x, label, edges, positions), 0.2)
    y = F.conv2d(y, weight_of(state, f"{name}.conv_0"), state[f"{name}.conv_0.bias"], padding=1)
    y = F.leaky_relu(clade(state, f"{name}.norm_1", y, label, edges, positions), 0.2)
    y = F.conv2d(y, weight_of(state, f"{name}.conv_1"), state[f"{name}.conv_1.bias"], padding=1)
    if f"{name}.norm_s.class_specified_affine.weight" in state:
        x = F.conv2d(clade(state, f"{name}.norm_s", x, label, edges, positions), weight_of(state, f"{name}.conv_s"))
    return x + y


def edge_map(instance):
    """N x H x W ids -> N x H x W, 1.0 where one of the four neighbours has another id."""
    padded = F.pad(instance[:, None].double(), (1, 1, 1, 1), mode="replicate")[:, 0]
    middle = padded[:, 1:-1, 1:-1]
    neighbours = [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
    return torch.stack([middle != other for other in neighbours]).any(dim=0)


def generate(state, label, instance, *, upsampling="normal"):
    """label, instance: N x H x W or None. Returns the image, N x 3 x H x W."""
    dtype = state["conv_img.bias"].dtype
    classes = len(state["head_0.norm_0.class_specified_affine.weight"])
    edges = None if instance is None else edge_map(instance).to(dtype)
    positions = None
    if "head_0.norm_0.class_specified_affine.dist_conv_w.weight" in state:
        positions = torch.stack([positions_of(one) for one in label]).float().to(dtype)  # kept in float32 files
    maps = [(label == index).to(dtype) for index in range(classes)] + ([] if edges is None else [edges])
    step = {"normal": 32, "more": 64}[upsampling]
    x = F.conv2d(torch.stack(maps, dim=1)[:, :, ::step, ::step], state["fc.weight"], state["fc.bias"], padding=1)

    def up(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    for name in BLOCKS:
        if name not in ("head_0", "G_middle_1") or (name == "G_middle_1" and upsampling == "more"):
            x = up(x)
        x = block(state, name, x, label, edges, positions)
    return torch.tanh(F.conv2d(F.leaky_relu(x, 0.2), state["conv_img.weight"], state["conv_img.bias"], padding=1))
