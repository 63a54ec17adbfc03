"""The training loop as it was done in 2019, plainly: what `training_speed.py` measures ours against.

Written from the published facts, no line of it is another's. What makes it plain:

- float32, channels first; the one-hot map is made on the device, in each of the two halves of a step anew;
- the generator runs twice a step: for its own update, and again, without gradients, for the discriminator's;
- the discriminator runs twice a step, both times with generated and real images as one batch;
- the generator's backward pass also computes the gradients of the discriminator's weights, which nobody uses.

The networks, the losses and Adam are those of the trainer, on its weights: the function is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spade_deploy.networks.discriminator import Features, MultiscaleDiscriminator
from spade_deploy.networks.spade import SpadeGenerator, make_segmap
from spade_deploy.training import losses
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.perceptual import PerceptualLoss, load_vgg
from spade_deploy.training.steps import Learner


class PlainLoop:
    """Generator, discriminator and optimisers with the weights that `learner` begins with; no style vector."""

    def __init__(self, setup: Setup, learner: Learner, device: torch.device) -> None:
        config = setup.train
        self.setup, self.device = setup, device
        self.generator = SpadeGenerator(setup.generator).to(device).train()
        self.generator.load_state_dict(learner.generator.state_dict())
        self.discriminator = MultiscaleDiscriminator(config.discriminator, setup.generator.labels.num_channels)
        self.discriminator.to(device).train().load_state_dict(learner.discriminator.state_dict())
        self.perceptual = None
        if config.perceptual_file is not None:
            self.perceptual = PerceptualLoss(load_vgg(config.perceptual_file)).to(device)
        betas = (float(config.betas[0]), float(config.betas[1]))
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), config.lr_generator, betas)
        self.discriminator_adam = torch.optim.Adam(self.discriminator.parameters(), config.lr_discriminator, betas)

    def step(self, batch: Batch) -> dict[str, float]:
        """Improve the generator, then the discriminator. Returns each loss without its weight."""
        found = {**self._improve_generator(batch), **self._improve_discriminator(batch)}
        return {name: loss.item() for name, loss in found.items()}

    def _improve_generator(self, batch: Batch) -> dict[str, Tensor]:
        config = self.setup.train
        segmap, photo = self._inputs(batch)
        fake = self.generator(segmap)
        fakes, reals = self._judge(segmap, fake, photo)
        found = {
            "adversarial": losses.generator_loss(config.gan_mode, fakes),
            "feature_matching": losses.feature_matching(fakes, reals),
        }
        total = found["adversarial"] + config.weight_feature_matching * found["feature_matching"]
        if config.weight_l1:
            found["l1"] = losses.pixel_l1(fake, photo)
            total = total + config.weight_l1 * found["l1"]
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(fake, photo)
            total = total + config.weight_perceptual * found["perceptual"]
        self.generator_adam.zero_grad()
        torch.autograd.backward(total)
        self.generator_adam.step()
        return found

    def _improve_discriminator(self, batch: Batch) -> dict[str, Tensor]:
        segmap, photo = self._inputs(batch)
        with torch.no_grad():
            fake = self.generator(segmap)
        fakes, reals = self._judge(segmap, fake, photo)
        real, generated = losses.discriminator_losses(self.setup.train.gan_mode, fakes, reals)
        self.discriminator_adam.zero_grad()
        torch.autograd.backward(real + generated)
        self.discriminator_adam.step()
        return {"discriminator_real": real, "discriminator_fake": generated}

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = self.setup.generator.labels
        instance = None if batch.instance is None else batch.instance.to(self.device)
        return make_segmap(batch.label.to(self.device), instance, labels), batch.photo.to(self.device)

    def _judge(self, segmap: Tensor, fake: Tensor, real: Tensor) -> tuple[Features, Features]:
        return self.discriminator.compare(segmap, fake, real)
