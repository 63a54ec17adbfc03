"""One training step: the networks, their optimisers, and everything that must be saved to go on exactly.

A step in the order of the passes, for each part of the batch:

1. the generator runs once; its images serve both sides;
2. the discriminator runs once on generated and real images together. From that one pass come the gradients of its own
   weights (its loss) and those of the images (adversarial loss and feature matching), each where it is needed alone:
   `backward(inputs=...)` computes no gradient of a weight that is not learning from that loss;
3. the gradients of the images go back through the generator, with those of the losses on the images themselves.

The code of 2019 runs the generator twice and the discriminator twice a step. Losses and updates are the same, up to
the generator's images for the discriminator, which there are made after the generator's update.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spade_deploy.errors import CheckpointError, ConfigError, reason_of
from spade_deploy.files.reading import sha256_of
from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.networks.discriminator import Features, MultiscaleDiscriminator, at_least_float32
from spade_deploy.networks.encoder import StyleEncoder, reparameterize
from spade_deploy.networks.modulation import TrainingTables, training_tables
from spade_deploy.networks.spade import initialize, make_segmap, to_pixels
from spade_deploy.runs.checkpoint import TrainingState
from spade_deploy.runs.tensors import check_tensors
from spade_deploy.training import losses
from spade_deploy.training.config import Amp, Modulation, Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.ema import GeneratorAverage
from spade_deploy.training.host_memory import keep_freed_memory
from spade_deploy.training.perceptual import PerceptualLoss, load_vgg
from spade_deploy.training.processes.world import ALONE, World, parallel, without_averaging

_STYLE_NOISE, _SAMPLE_STYLE = 1, 2
"""Domains of the random numbers that styles are drawn with."""


class Learner:
    """Generator, discriminator, encoder (of a VAE) and their optimisers on one device.

    The weights follow from `setup.train.seed` alone: PyTorch's random state is set by it.
    statistics_batches: batches that an averaged generator's batch norm is estimated on, asked for when first needed.
    Raises ConfigError, CheckpointError (weights of the perceptual loss).
    """

    def __init__(
        self,
        setup: Setup,
        device: torch.device,
        statistics_batches: Callable[[], Sequence[Batch]] = tuple,
    ) -> None:
        self.setup = setup
        self.device = device
        self.steps_done = 0
        config = setup.train
        _set_determinism(config.deterministic)
        if device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(config.seed)
        self.generator: Generator = build_generator(setup.generator)
        self.discriminator = MultiscaleDiscriminator(config.discriminator, setup.generator.labels.num_channels)
        self.encoder: StyleEncoder | None = None
        if setup.has_encoder:
            assert setup.generator.z_dim is not None  # has_encoder
            self.encoder = StyleEncoder(setup.generator.z_dim, setup.generator.base_channels)
        for network in self.networks.values():
            initialize(network)
            network.to(device).train()
        self.perceptual: PerceptualLoss | None = None
        self.perceptual_sha256 = ""
        if config.perceptual_file is not None:
            self.perceptual = PerceptualLoss(load_vgg(config.perceptual_file)).to(device)
            self.perceptual_sha256 = sha256_of(config.perceptual_file)
        if config.channels_last:
            for network in (*self.networks.values(), *([self.perceptual] if self.perceptual else [])):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = GeneratorAverage(self.generator, config.ema_decay) if config.ema_decay is not None else None
        self._statistics_batches = statistics_batches
        learning = [*self.generator.parameters(), *(self.encoder.parameters() if self.encoder else ())]
        betas = (float(config.betas[0]), float(config.betas[1]))
        critical = self.discriminator.parameters()
        self._optimizers = {
            "generator": torch.optim.Adam(learning, config.lr_generator, betas, fused=True),
            "discriminator": torch.optim.Adam(critical, config.lr_discriminator, betas, fused=True),
        }
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.amp is Amp.FP16)
        self._last_losses: dict[str, float] = {}
        self.connect(ALONE)

    def connect(self, world: World) -> None:
        """Average gradients and losses over the processes of `world` from now on; each calls it, and gives its share.

        Weights and buffers become those of process 0.
        """
        self._world = world
        generator = parallel(self.generator, world)
        comparison = parallel(_Comparison(self.discriminator), world)
        self._run_encoder = parallel(self.encoder, world) if self.encoder is not None else None
        self._parallel = [generator, comparison, *([self._run_encoder] if self._run_encoder else [])]
        compiles = self.setup.train.compile
        self._run_generator: Callable[..., Tensor] = torch.compile(generator) if compiles else generator
        self._compare: Callable[..., Any] = torch.compile(comparison) if compiles else comparison

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What learns, by name."""
        encoder = {"encoder": self.encoder} if self.encoder is not None else {}
        return {"generator": self.generator, "discriminator": self.discriminator, **encoder}

    @property
    def weights(self) -> dict[str, float]:
        """The generator's losses that are computed, each with its weight."""
        config = self.setup.train
        weights = {
            "adversarial": 1.0,
            "feature_matching": config.weight_feature_matching,
            "l1": config.weight_l1,
            "perceptual": config.weight_perceptual if self.perceptual is not None else 0.0,
            "kl": config.weight_kl if self.encoder is not None else 0.0,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def loss_names(self) -> tuple[str, ...]:
        return (*self.weights, "discriminator_real", "discriminator_fake")

    def rates(self, factor: float) -> tuple[float, float]:
        """Learning rates of generator and discriminator."""
        return self.setup.train.lr_generator * factor, self.setup.train.lr_discriminator * factor

    def step(self, batch: Batch, rate_factor: float) -> dict[str, float]:
        """Improve the networks on a batch. Returns each loss as it was before the step, without its weight.

        With `discriminator_steps` above 1 the generator's losses are those of its own last step.
        Raises ConfigError where --compile cannot work here.
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

    @property
    def last_losses(self) -> dict[str, float]:
        """Of the last step that was done or restored; empty before the first."""
        return {name: self._last_losses[name] for name in self.loss_names if name in self._last_losses}

    def deployed(self) -> Generator:
        """The generator that is saved and shown: the average where there is one, its statistics up to date."""
        if self.average is None:
            return self.generator
        batches = self._statistics_batches()
        inputs = [(self._segmap(batch), self._styles(_SAMPLE_STYLE, len(batch.label))) for batch in batches]
        if inputs:
            self.average.estimate_statistics(inputs)
        else:
            self.average.copy_statistics(self.generator)
        return self.average.module

    @torch.no_grad()
    def generate(self, batch: Batch, style_seed: int | None = None) -> Tensor:
        """Images of a batch's label maps as deployment makes them, uint8 N x H x W x 3. Training is not disturbed.

        style_seed: of random styles; None is the mean style. Without a style vector it changes nothing.
        """
        network = self.deployed()
        was_training = network.training
        network.eval()
        try:
            return to_pixels(network(self._segmap(batch), self._sample_styles(len(batch.label), style_seed))).cpu()
        finally:
            network.train(was_training)

    def begin_from(self, generator: nn.Module) -> None:
        """Take the weights of a generator of the same spec. Raises CheckpointError where the tensors differ."""
        tensors = generator.state_dict()
        check_tensors(self.generator.state_dict(), tensors, Path(self.setup.train.init))
        self.generator.load_state_dict(tensors)
        if self.average is not None:
            self.average.module.load_state_dict(tensors)

    def state(self) -> TrainingState:
        """What resuming needs beside the generator that is deployed."""
        rest: dict[str, Any] = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        rest["random"] = torch.get_rng_state()
        rest["random_cuda"] = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        rest["scaler"] = self._scaler.state_dict()
        rest["losses"] = self._last_losses
        rest["trained_generator"] = self.generator.state_dict() if self.average is not None else None
        rest["average_updates"] = self.average.updates if self.average is not None else 0
        return TrainingState(self.discriminator.state_dict(), rest)

    def restore(
        self, generator: nn.Module, state: TrainingState, step: int = 0, encoder: nn.Module | None = None
    ) -> None:
        """Go on from saved networks and state. Raises CheckpointError where the state does not fit the networks."""
        try:
            trained = state.rest.get("trained_generator")
            self.generator.load_state_dict(generator.state_dict() if trained is None else trained)
            if self.average is not None:
                self.average.module.load_state_dict(generator.state_dict())
                self.average.updates = int(state.rest["average_updates"])
            if self.encoder is not None:
                if encoder is None:
                    raise CheckpointError("the checkpoint has no style encoder", hint="start a new run")
                self.encoder.load_state_dict(encoder.state_dict())
            self.discriminator.load_state_dict(state.discriminator)
            for name, optimizer in self._optimizers.items():
                _check_moments(name, self._learning(name), state.rest[name])
                optimizer.load_state_dict(state.rest[name])
            if state.rest.get("scaler"):
                self._scaler.load_state_dict(state.rest["scaler"])
            self._last_losses = dict(state.rest.get("losses", {}))
            self.steps_done = step
            torch.set_rng_state(state.rest["random"])
            if self.device.type == "cuda" and state.rest["random_cuda"] is not None:
                torch.cuda.set_rng_state(state.rest["random_cuda"], self.device)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the training state does not fit the networks ({reason_of(error)})") from error

    def _learning(self, name: str) -> dict[str, Tensor]:
        """The parameters of an optimiser by name, in its order: the generator's has the encoder's too."""
        networks = [self.discriminator] if name == "discriminator" else [self.generator, self.encoder]
        return {key: part for net in networks if net is not None for key, part in net.named_parameters()}

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, Tensor | None]]:
        """The parts that the batch is computed in, each with the random numbers of its styles."""
        # Drawn for the whole batch, so that a sample's noise does not depend on the number of processes.
        count = len(batch.label) * self._world.size
        noise = self._styles(_STYLE_NOISE, count, self.steps_done)
        if noise is not None:
            noise = noise[self._world.shard(self.setup.train.accumulate).positions(count)]
        size = len(batch.label) // self.setup.train.accumulate
        for first in range(0, len(batch.label), size):
            rows = slice(first, first + size)
            instance = None if batch.instance is None else batch.instance[rows]
            part = Batch(batch.label[rows], instance, batch.photo[rows], batch.stems[rows])
            yield part, None if noise is None else noise[rows]

    def _part(self, part: Batch, noise: Tensor | None, share: float, improves_generator: bool) -> dict[str, Tensor]:
        """Forward and backward of one part; gradients are added up, weighted with the part's share of the batch."""
        segmap, photo = self._segmap(part), self._image(part.photo)
        with self._autocast(), nullcontext() if improves_generator else torch.no_grad():
            z, statistics = self._style(photo, noise)
            fake = at_least_float32(self._compiled(self._run_generator, segmap, z, *self._tables(part)))
        # The discriminator sees the images alone: what it finds comes back as their gradient.
        images = fake.detach().requires_grad_(improves_generator)
        found: dict[str, Tensor] = {}
        with self._autocast():
            fakes, reals = self._compiled(self._compare, segmap, images, photo)
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
            with self._autocast():
                direct = self._direct_losses(fake, photo, statistics)
            assert images.grad is not None  # just computed
            total = share * self._weighted(direct) if direct else None
            outputs = [fake] if total is None else [fake, self._scaler.scale(total)]
            torch.autograd.backward(outputs, [images.grad, *([] if total is None else [None])])
            found |= direct
        found |= {"discriminator_real": real_loss, "discriminator_fake": fake_loss}
        return {name: loss.detach().float() for name, loss in found.items()}

    def _direct_losses(
        self, fake: Tensor, photo: Tensor, statistics: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """The losses that need no discriminator."""
        found = {}
        if "l1" in self.weights:
            found["l1"] = losses.pixel_l1(fake, photo)
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(fake, photo)
        if statistics is not None and "kl" in self.weights:
            found["kl"] = losses.kl_divergence(*map(at_least_float32, statistics))
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

    def _styles(self, domain: int, count: int, step: int = 0) -> Tensor | None:
        """Standard normal styles of a whole step's batch, count x z_dim; the same wherever and whenever it is drawn."""
        length = self.setup.generator.z_dim
        if length is None:
            return None
        numbers = torch.Generator().manual_seed(_mixed(self.setup.train.seed, domain, step))
        return torch.randn(count, length, generator=numbers).to(self.device)

    def _sample_styles(self, count: int, style_seed: int | None) -> Tensor | None:
        length = self.setup.generator.z_dim
        if length is None:
            return None
        if style_seed is None:
            return torch.zeros(count, length, device=self.device)
        return self._styles(_SAMPLE_STYLE, count, style_seed + 1)

    def _tables(self, part: Batch) -> tuple[TrainingTables, ...]:
        """The distinct patterns of the label maps, where the modulation looks them up."""
        if self.setup.train.modulation is Modulation.DENSE:
            return ()
        return (training_tables(self.setup.generator, part.label, part.instance).to(self.device),)

    def _segmap(self, batch: Batch) -> Tensor:
        labels = self.setup.generator.labels
        instance = batch.instance.to(self.device) if labels.has_edges and batch.instance is not None else None
        segmap = make_segmap(batch.label.to(self.device), instance, labels)
        return segmap.to(memory_format=torch.channels_last) if self.setup.train.channels_last else segmap

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
                f"--compile: torch.compile does not work here ({reason_of(error)})",
                hint="it needs a C++ compiler (and Triton on a GPU); train without --compile",
            ) from error


class _Comparison(nn.Module):
    """The discriminator's `compare` as a module's forward pass, which is what gradients are averaged after."""

    def __init__(self, discriminator: MultiscaleDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, segmap: Tensor, fake: Tensor, real: Tensor) -> tuple[Features, Features]:
        return self.discriminator.compare(segmap, fake, real)


def _check_moments(name: str, parameters: dict[str, Tensor], saved: Any) -> None:
    """Raises CheckpointError where an optimiser's saved moments belong to other parameters: PyTorch loads them all."""
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    if len(indices) != len(parameters):
        raise CheckpointError(
            f"the {name}'s optimiser state is of {len(indices)} parameters, the network has {len(parameters)}",
            hint="it belongs to a network of another spec: resume with the one it was saved with, or start a new run",
        )
    for index, (where, parameter) in zip(indices, parameters.items(), strict=True):
        for moment, values in saved["state"].get(index, {}).items():
            if moment != "step" and values.shape != parameter.shape:
                raise CheckpointError(
                    f"the {name}'s optimiser state: {moment} of {where} has the shape {tuple(values.shape)},"
                    f" the parameter {tuple(parameter.shape)}",
                    hint="it belongs to a network of another spec: resume with the one it was saved with,"
                    " or start a new run",
                )


def _mixed(seed: int, domain: int, step: int) -> int:
    """One 63-bit seed of three numbers; neighbours have nothing in common."""
    digest = hashlib.blake2b(f"{seed} {domain} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _set_determinism(wanted: bool) -> None:
    if wanted:
        # cuBLAS reads it when it is first used; without it PyTorch refuses to be deterministic on CUDA.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if wanted or torch.are_deterministic_algorithms_enabled():  # only asking imports PyTorch's compiler
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted
