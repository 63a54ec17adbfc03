"""One training step.

For each part of the batch:

1. The generator runs once; its images serve both sides.
2. The discriminator runs once, on generated and real images together. That one pass gives the gradients of its own
   weights (by its loss) and those of the images (by the adversarial loss and feature matching). `backward(inputs=...)`
   computes no gradient of a weight that does not learn from a loss.
3. The gradients of the images go back through the generator, with those of the losses on the images themselves.

The code of 2019 runs the generator twice and the discriminator twice a step. Losses and updates are the same, except
that it makes the images for the discriminator after the generator's update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.networks.discriminator import Comparison, at_least_float32
from spade_deploy.networks.encoder import reparameterize
from spade_deploy.networks.modulation import TrainingLookup, training_lookup
from spade_deploy.training import losses
from spade_deploy.training.config import Amp, Modulation, Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.learner import LearningNetworks
from spade_deploy.training.processes.averaging import parallel, without_averaging
from spade_deploy.training.processes.world import ALONE, World
from spade_deploy.training.styles import STYLE_NOISE

Beside = tuple[TrainingLookup | Tensor, ...]
"""What a generator may take beside segmap and styles: the windows of its label maps, or a canvas; often nothing."""


@dataclass(frozen=True)
class Made:
    """What the generator made of a part of a batch, and what it was made of."""

    part: Batch
    """The samples."""

    segmap: Tensor
    """The label maps as the networks take them."""

    photo: Tensor
    """N x 3 x H x W in [-1, 1], on the device."""

    z: Tensor | None
    """The styles; None without style vectors."""

    statistics: tuple[Tensor, Tensor] | None
    """The encoder's mean and log variance; None without an encoder."""

    beside: Beside
    """What the generator took beside them."""

    image: Tensor
    """N x 3 x H x W in [-1, 1], float32."""


class Learner(LearningNetworks):
    """The networks of a run, and how a batch improves them."""

    def __init__(
        self, setup: Setup, device: torch.device, statistics_batches: Callable[[], Sequence[Batch]] = tuple
    ) -> None:
        super().__init__(setup, device, statistics_batches)
        self.connect(ALONE)

    def connect(self, world: World) -> None:
        """Average gradients and losses over the processes of `world` from now on; each of them calls this.

        Each process then gives `step` its share of a batch. Weights and buffers become those of process 0.
        """
        self._world = world
        generator = parallel(self.generator, world)
        comparison = parallel(Comparison(self.discriminator), world)
        self._run_encoder = parallel(self.encoder, world) if self.encoder is not None else None
        self._parallel = [generator, comparison, *([self._run_encoder] if self._run_encoder else [])]
        compiles = self.setup.train.compile
        self._run_generator: Callable[..., Tensor] = torch.compile(generator) if compiles else generator
        self._compare: Callable[..., Any] = torch.compile(comparison) if compiles else comparison

    def step(self, batch: Batch, rate_factor: float) -> dict[str, float]:
        """Improve the networks on a batch. Returns each loss as it was before the step, without its weight.

        With `discriminator_steps` above 1 the generator's losses are those of its own last step.
        Raises ConfigError where `compile` cannot work here.
        """
        config = self.setup.train
        improves_generator = self.steps_done % config.discriminator_steps == 0
        for optimizer, rate in zip(self._optimizers.values(), self.rates(rate_factor), strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        parts = list(self._parts(batch))
        found = []
        for number, (part, noise) in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else without_averaging(self._parallel):
                found.append(self._part(part, noise, 1 / len(parts), improves_generator))
        if improves_generator:
            self._scaler.step(self._optimizers["generator"])
        if self.is_adversarial:
            self._scaler.step(self._optimizers["discriminator"])
        self._scaler.update()
        if improves_generator and self.average is not None:
            self.average.update(self.generator)
        self.steps_done += 1
        names = list(found[0])
        means = torch.stack([torch.stack([part[name] for name in names]) for part in found]).mean(0)
        values: list[float] = self._world.mean(means).tolist()  # one transfer from the device
        self._last_losses = {**self._last_losses, **dict(zip(names, values, strict=True))}
        return {name: self._last_losses[name] for name in self.loss_names}

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, Tensor | None]]:
        """The parts that the batch is computed in, each with the random numbers of its styles."""
        # Drawn for the whole batch, so that a sample's noise does not depend on the number of processes.
        count = len(batch.label) * self._world.size
        noise = self._styles(STYLE_NOISE, count, self.steps_done)
        if noise is not None:
            noise = noise[self._world.shard(self.setup.train.accumulate).positions(count)]
        size = len(batch.label) // self.setup.train.accumulate
        for first in range(0, len(batch.label), size):
            rows = slice(first, first + size)
            instance = None if batch.instance is None else batch.instance[rows]
            canvas = None if batch.canvas is None else batch.canvas[rows]
            part = Batch(batch.label[rows], instance, batch.photo[rows], batch.stems[rows], canvas=canvas)
            yield part, None if noise is None else noise[rows]

    def _part(self, part: Batch, noise: Tensor | None, share: float, improves_generator: bool) -> dict[str, Tensor]:
        """Forward and backward of one part; gradients are added up, weighted with the part's share of the batch."""
        segmap, photo, beside = self._segmap(part), self._image(part.photo), self._beside(part)
        with self._autocast(), nullcontext() if improves_generator else torch.no_grad():
            z, statistics = self._style(photo, noise)
            image = at_least_float32(self._generated(segmap, z, beside))
        made = Made(part, segmap, photo, z, statistics, beside, image)
        outputs: list[Tensor] = []
        gradients: list[Tensor | None] = []
        found: dict[str, Tensor] = {}
        if self.is_adversarial:
            found, gradient = self._judged(made, share, improves_generator)
            outputs, gradients = [image], [gradient]
        if improves_generator:
            with self._autocast():
                direct = self._direct_losses(made)
            if direct:
                outputs.append(self._scaler.scale(share * self._weighted(direct)))
                gradients.append(None)
            torch.autograd.backward(outputs, gradients)
            found = {**found, **direct}
        return {name: loss.detach().float() for name, loss in found.items()}

    def _generated(self, segmap: Tensor, z: Tensor | None, beside: Beside) -> Tensor:
        """The generator's images."""
        image: Tensor = self._compiled(self._run_generator, segmap, z, *beside)
        return image

    def _judged(self, made: Made, share: float, improves_generator: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """The losses that the discriminator decides, and the gradient of the images, where the generator learns.

        The discriminator's own gradients are added up.
        """
        # The images are detached: the discriminator's pass gives their gradient, which then goes through the generator.
        images = made.image.detach().requires_grad_(improves_generator)
        found: dict[str, Tensor] = {}
        with self._autocast():
            fakes, reals = self._compiled(self._compare, made.segmap, images, made.photo)
            mode = self.setup.train.gan_mode
            real_loss, fake_loss = losses.discriminator_losses(mode, fakes, reals)
            if improves_generator:
                found["adversarial"] = losses.generator_loss(mode, fakes)
                if "feature_matching" in self.weights:
                    found["feature_matching"] = losses.feature_matching(fakes, reals)
        own = list(self.discriminator.parameters())
        self._backward(share * (real_loss + fake_loss), own, keep=improves_generator)
        if improves_generator:
            self._backward(share * self._weighted(found), [images])
        return {**found, "discriminator_real": real_loss, "discriminator_fake": fake_loss}, images.grad

    def _direct_losses(self, made: Made) -> dict[str, Tensor]:
        """The losses that need no discriminator."""
        found = self._image_losses(made.image, made.photo)
        if made.statistics is not None and "kl" in self.weights:
            found["kl"] = losses.kl_divergence(*map(at_least_float32, made.statistics))
        return found

    def _image_losses(self, image: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """The losses between generated images and those that are wanted."""
        found = {}
        if "l1" in self.weights:
            found["l1"] = losses.pixel_l1(image, wanted)
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(image, wanted)
        return found

    def _weighted(self, found: dict[str, Tensor]) -> Tensor:
        weights = self.weights
        return torch.stack([weights[name] * loss for name, loss in found.items()]).sum()

    def _backward(self, loss: Tensor, inputs: list[Any], keep: bool = False) -> None:
        torch.autograd.backward([self._scaler.scale(loss)], inputs=inputs, retain_graph=keep)

    def _style(self, photo: Tensor, noise: Tensor | None) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """(z, the encoder's mean and log variance): from the photo with an encoder, else the noise itself."""
        if self._run_encoder is None or noise is None:
            return noise, None
        mu, logvar = self._run_encoder(photo)
        return reparameterize(mu, logvar, noise), (mu, logvar)

    def _beside(self, part: Batch) -> Beside:
        """What the generator takes beside segmap and style.

        It is the distinct windows of the label maps, where the modulation is looked up, or a canvas; else nothing.
        """
        if part.canvas is not None:
            return (self._image(part.canvas),)
        if self.setup.train.modulation is Modulation.DENSE:
            return ()
        return (training_lookup(self.setup.generator, part.label, part.instance).to(self.device),)

    def _image(self, photo: Tensor) -> Tensor:
        photo = photo.to(self.device, non_blocking=True)
        return photo.to(memory_format=torch.channels_last) if self.setup.train.channels_last else photo

    def _autocast(self) -> Any:
        amp = self.setup.train.amp
        if amp is Amp.OFF:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if amp is Amp.BF16 else torch.float16)

    def _compiled(self, run: Callable[..., Any], *inputs: Any) -> Any:
        try:
            return run(*inputs)
        except Exception as error:
            if not self.setup.train.compile or not type(error).__module__.startswith("torch."):
                raise
            raise ConfigError(
                f"`compile`: torch.compile does not work here ({reason_of(error)})",
                hint="it needs a C++ compiler (and Triton on a GPU); train without `compile`",
            ) from error
