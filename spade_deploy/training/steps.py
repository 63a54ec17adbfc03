"""One training step: the two networks, their optimisers, and everything that must be saved to go on exactly."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError
from spade_deploy.training import losses
from spade_deploy.training.checkpoint import TrainingState
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.discriminator import MultiscaleDiscriminator
from spade_deploy.training.networks import SpadeGenerator, initialize, make_segmap, to_pixels
from spade_deploy.training.perceptual import PerceptualLoss, load_vgg


class Learner:
    """Generator, discriminator and their optimisers on one device.

    The weights follow from `setup.train.seed` alone: PyTorch's random state is set by it.
    """

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.setup = setup
        self.device = device
        config = setup.train
        torch.manual_seed(config.seed)
        self.generator = SpadeGenerator(setup.generator)
        self.discriminator = MultiscaleDiscriminator(config.discriminator, setup.generator.labels.num_channels)
        for network in (self.generator, self.discriminator):
            initialize(network)
            network.to(device).train()
        self.perceptual: PerceptualLoss | None = None
        self.perceptual_sha256 = ""
        if config.perceptual_file is not None:
            self.perceptual = PerceptualLoss(load_vgg(config.perceptual_file)).to(device)
            self.perceptual_sha256 = hashlib.sha256(config.perceptual_file.read_bytes()).hexdigest()
        self._optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), config.lr_generator, config.betas),
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), config.lr_discriminator, config.betas),
        }

    @property
    def weights(self) -> dict[str, float]:
        """The generator's losses that are computed, each with its weight."""
        config = self.setup.train
        weights = {
            "adversarial": 1.0,
            "feature_matching": config.weight_feature_matching,
            "l1": config.weight_l1,
            "perceptual": config.weight_perceptual if self.perceptual is not None else 0.0,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def loss_names(self) -> tuple[str, ...]:
        return (*self.weights, "discriminator_real", "discriminator_fake")

    def rates(self, factor: float) -> tuple[float, float]:
        """Learning rates of generator and discriminator."""
        return self.setup.train.lr_generator * factor, self.setup.train.lr_discriminator * factor

    def step(self, batch: Batch, rate_factor: float) -> dict[str, float]:
        """Improve both networks on a batch. Returns each loss as it was before the step, without its weight.

        The generator runs once: the discriminator learns from the images that the generator was just judged by.
        """
        for optimizer, rate in zip(self._optimizers.values(), self.rates(rate_factor), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
        segmap, photo = self._segmap(batch), batch.photo.to(self.device)
        fake = self.generator(segmap)
        found = self._improve_generator(segmap, fake, photo)
        found |= self._improve_discriminator(segmap, fake.detach(), photo)
        values: list[float] = torch.stack(list(found.values())).tolist()  # one transfer from the device
        return dict(zip(found, values, strict=True))

    @torch.no_grad()
    def generate(self, batch: Batch) -> Tensor:
        """Images of a batch's label maps as deployment makes them, uint8 N x H x W x 3. Training is not disturbed."""
        self.generator.eval()
        try:
            return to_pixels(self.generator(self._segmap(batch))).cpu()
        finally:
            self.generator.train()

    def state(self) -> TrainingState:
        """What resuming needs beside the generator's weights."""
        rest: dict[str, Any] = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        rest["random"] = torch.get_rng_state()
        rest["random_cuda"] = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return TrainingState(self.discriminator.state_dict(), rest)

    def restore(self, generator: SpadeGenerator, state: TrainingState) -> None:
        """Go on from saved networks and state. Raises CheckpointError where the state does not fit the networks."""
        try:
            self.generator.load_state_dict(generator.state_dict())
            self.discriminator.load_state_dict(state.discriminator)
            for name, optimizer in self._optimizers.items():
                optimizer.load_state_dict(state.rest[name])
            torch.set_rng_state(state.rest["random"])
            if self.device.type == "cuda" and state.rest["random_cuda"] is not None:
                torch.cuda.set_rng_state(state.rest["random_cuda"], self.device)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the training state does not fit the networks ({error})") from error

    def _segmap(self, batch: Batch) -> Tensor:
        labels = self.setup.generator.labels
        instance = batch.instance.to(self.device) if labels.has_edges and batch.instance is not None else None
        return make_segmap(batch.label.to(self.device), instance, labels)

    def _improve_generator(self, segmap: Tensor, fake: Tensor, photo: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)  # spares half of its backward pass
        fakes, reals = self.discriminator.compare(segmap, fake, photo)
        self.discriminator.requires_grad_(True)
        weights = self.weights
        found = {"adversarial": losses.hinge_generator(fakes)}
        if "feature_matching" in weights:
            found["feature_matching"] = losses.feature_matching(fakes, reals)
        if "l1" in weights:
            found["l1"] = losses.pixel_l1(fake, photo)
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(fake, photo)
        self._descend("generator", torch.stack([weights[name] * loss for name, loss in found.items()]).sum())
        return {name: loss.detach() for name, loss in found.items()}

    def _improve_discriminator(self, segmap: Tensor, fake: Tensor, photo: Tensor) -> dict[str, Tensor]:
        fakes, reals = self.discriminator.compare(segmap, fake, photo)
        real_loss, fake_loss = losses.hinge_real(reals), losses.hinge_fake(fakes)
        self._descend("discriminator", real_loss + fake_loss)
        return {"discriminator_real": real_loss.detach(), "discriminator_fake": fake_loss.detach()}

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
