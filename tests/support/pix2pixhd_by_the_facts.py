"""A second writing of pix2pixHD's generators, from the paper and the released files' tensor names alone.

Like `spade_by_the_facts` it reads a state dict by name and shares no code with the package. The state dict is made here
as well, with the published names and shapes: numbered steps of sequences, `model`, `model1_1` and `model1_2`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def state_dict(channels, base, *, halvings=4, blocks=9, local_blocks=0, norm="instance", seed=0):
    """A state dict of random numbers. local_blocks: residual blocks of the local enhancer; 0: there is none."""
    numbers = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, out, inside, side, *, is_transposed=False, has_norm=True):
        shape = (inside, out, side, side) if is_transposed else (out, inside, side, side)
        # Weights of this size keep the size of the numbers, whatever the width.
        state[f"{name}.weight"] = torch.randn(shape, generator=numbers) / (inside * side * side) ** 0.5
        state[f"{name}.bias"] = 0.3 * torch.randn(out, generator=numbers)
        if norm == "batch" and has_norm:
            parent, _, number = name.rpartition(".")
            following = f"{parent}.{int(number) + 1}"
            state[f"{following}.weight"] = 1 + 0.2 * torch.randn(out, generator=numbers)
            state[f"{following}.bias"] = 0.2 * torch.randn(out, generator=numbers)
            state[f"{following}.running_mean"] = 0.2 * torch.randn(out, generator=numbers)
            state[f"{following}.running_var"] = 0.5 + torch.rand(out, generator=numbers)
            state[f"{following}.num_batches_tracked"] = torch.tensor(3)

    def residual(name, width):
        conv(f"{name}.conv_block.1", width, width, 3)
        conv(f"{name}.conv_block.5", width, width, 3)

    def last(name):
        conv(name, 3, base, 7, has_norm=False)

    width = base if local_blocks == 0 else 2 * base
    conv("model.1", width, channels, 7)
    number = 4
    for _ in range(halvings):
        conv(f"model.{number}", 2 * width, width, 3)
        number, width = number + 3, 2 * width
    for _ in range(blocks):
        residual(f"model.{number}", width)
        number += 1
    for _ in range(halvings):
        conv(f"model.{number}", width // 2, width, 3, is_transposed=True)
        number, width = number + 3, width // 2
    if local_blocks == 0:
        last(f"model.{number + 1}")
        return state
    conv("model1_1.1", base, channels, 7)
    conv("model1_1.4", 2 * base, base, 3)
    for block in range(local_blocks):
        residual(f"model1_2.{block}", 2 * base)
    conv(f"model1_2.{local_blocks}", base, 2 * base, 3, is_transposed=True)
    last(f"model1_2.{local_blocks + 4}")
    return state


def encoder_state_dict(base, *, halvings=4, norm="instance", features=3, seed=0):
    """A state dict of the encoder of instance features, netE: the global generator's names, without residual blocks."""
    state = state_dict(3, base, halvings=halvings, blocks=0, norm=norm, seed=seed)
    last = f"model.{5 + 6 * halvings}"
    numbers = torch.Generator().manual_seed(seed + 1)
    state[f"{last}.weight"] = torch.randn((features, base, 7, 7), generator=numbers) / (base * 49) ** 0.5
    state[f"{last}.bias"] = 0.3 * torch.randn(features, generator=numbers)
    return state


def normalized(state, name, x):
    parent, _, number = name.rpartition(".")
    following = f"{parent}.{int(number) + 1}"
    if f"{following}.weight" not in state:
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        return centred / torch.sqrt((centred**2).mean(dim=(2, 3), keepdim=True) + 1e-5)
    mean, variance = state[f"{following}.running_mean"], state[f"{following}.running_var"]
    x = (x - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-5)
    return x * state[f"{following}.weight"][:, None, None] + state[f"{following}.bias"][:, None, None]


def mirrored(state, name, x):
    weight = state[f"{name}.weight"]
    return F.conv2d(F.pad(x, (weight.shape[2] // 2,) * 4, mode="reflect"), weight, state[f"{name}.bias"])


def residual_block(state, name, x):
    y = normalized(state, f"{name}.conv_block.1", mirrored(state, f"{name}.conv_block.1", x)).relu()
    return x + normalized(state, f"{name}.conv_block.5", mirrored(state, f"{name}.conv_block.5", y))


def halved(state, name, x):
    x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)
    return normalized(state, name, x).relu()


def doubled(state, name, x):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return normalized(state, name, F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)).relu()


def features(state, x, halvings, blocks):
    """The global generator without its last convolution."""
    x = normalized(state, "model.1", mirrored(state, "model.1", x)).relu()
    number = 4
    for _ in range(halvings):
        x, number = halved(state, f"model.{number}", x), number + 3
    for _ in range(blocks):
        x, number = residual_block(state, f"model.{number}", x), number + 1
    for _ in range(halvings):
        x, number = doubled(state, f"model.{number}", x), number + 3
    return x


def averaged(x):
    """Half the size: means of 3 x 3 pixels around every second one, of those that are inside the image."""
    summed, counted = torch.zeros_like(x[:, :, ::2, ::2]), torch.zeros_like(x[:1, :1, ::2, ::2])
    padded, inside = F.pad(x, (1, 1, 1, 1)), F.pad(torch.ones_like(x[:1, :1]), (1, 1, 1, 1))
    for row in range(3):
        for column in range(3):
            place = (slice(None), slice(None), slice(row, row + x.shape[2], 2), slice(column, column + x.shape[3], 2))
            summed, counted = summed + padded[place], counted + inside[place]
    return summed / counted


def encode(state, photo, regions, *, halvings=4):
    """photo: N x 3 x H x W in -1..1; regions: N x H x W ids. Returns each region's mean features, N x 3 x H x W."""
    x = torch.tanh(mirrored(state, f"model.{5 + 6 * halvings}", features(state, photo, halvings, 0)))
    found = torch.empty_like(x)
    for number, ids in enumerate(regions):
        for region in ids.unique():
            inside = ids == region
            for channel in range(x.shape[1]):
                found[number, channel][inside] = x[number, channel][inside].mean()
    return found


def generate(state, label, instance, seen=None, *, num_ids, halvings=4, blocks=9, local_blocks=0):
    """label, instance: N x H x W or None; seen: instance features, N x 3 x H x W, or None. Returns N x 3 x H x W."""
    dtype = state["model.1.bias"].dtype
    maps = [(label == index).to(dtype) for index in range(num_ids)]
    if instance is not None:
        padded = F.pad(instance[:, None].double(), (1, 1, 1, 1), mode="replicate")[:, 0]
        middle = padded[:, 1:-1, 1:-1]
        around = [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
        maps.append(torch.stack([middle != other for other in around]).any(dim=0).to(dtype))
    segmap = torch.stack(maps, dim=1)
    if seen is not None:
        segmap = torch.cat([segmap, seen], dim=1)
    if local_blocks == 0:
        x = features(state, segmap, halvings, blocks)
        return torch.tanh(mirrored(state, f"model.{5 + 6 * halvings + blocks}", x))
    y = normalized(state, "model1_1.1", mirrored(state, "model1_1.1", segmap)).relu()
    x = features(state, averaged(segmap), halvings, blocks) + halved(state, "model1_1.4", y)
    for block in range(local_blocks):
        x = residual_block(state, f"model1_2.{block}", x)
    x = doubled(state, f"model1_2.{local_blocks}", x)
    return torch.tanh(mirrored(state, f"model1_2.{local_blocks + 4}", x))
