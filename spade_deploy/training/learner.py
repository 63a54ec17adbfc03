"""The networks of a run and their optimisers: how they are made, used for images, saved and restored.

How a training step changes them is in `steps.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spade_deploy.errors import CheckpointError, reason_of
from spade_deploy.files.reading import sha256_of
from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.networks.discriminator import MultiscaleDiscriminator
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.sims import bank_of_generator, give_bank
from spade_deploy.networks.spade import initialize, make_segmap, to_pixels
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.runs.checkpoint import TrainingState
from spade_deploy.runs.tensors import check_tensors
from spade_deploy.training.config import Amp, Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.device import set_determinism
from spade_deploy.training.ema import GeneratorAverage
from spade_deploy.training.first_weights import first_weights
from spade_deploy.training.host_memory import keep_freed_memory
from spade_deploy.training.perceptual import PerceptualLoss, load_vgg
from spade_deploy.training.styles import SAMPLE_STYLE, normal_styles


class LearningNetworks:
    """Generator, discriminator, encoder (of a VAE) and their optimisers on one device.

    The weights follow from `setup.train.seed` alone: PyTorch's random state is set by it.
    statistics_batches: returns the batches that an averaged generator's batch norm is estimated on; it is called when
    they are first needed. Raises ConfigError, CheckpointError (weights of the perceptual loss).
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
        set_determinism(config.deterministic)
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

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that learn, by name."""
        encoder = {"encoder": self.encoder} if self.encoder is not None else {}
        return {"generator": self.generator, "discriminator": self.discriminator, **encoder}

    @property
    def weights(self) -> dict[str, float]:
        """The generator's losses that are computed, each with its weight."""
        config = self.setup.train
        weights = {
            "adversarial": 1.0 if self.is_adversarial else 0.0,
            "feature_matching": config.weight_feature_matching if self.is_adversarial else 0.0,
            "l1": config.weight_l1,
            "perceptual": config.weight_perceptual if self.perceptual is not None else 0.0,
            "kl": config.weight_kl if self.encoder is not None else 0.0,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def is_adversarial(self) -> bool:
        """Whether a discriminator learns to tell the images from photos: it does where there are photos."""
        return not self.setup.data.labels_only

    @property
    def loss_names(self) -> tuple[str, ...]:
        return (*self.weights, *(("discriminator_real", "discriminator_fake") if self.is_adversarial else ()))

    def rates(self, factor: float) -> tuple[float, float]:
        """Learning rates of generator and discriminator."""
        return self.setup.train.lr_generator * factor, self.setup.train.lr_discriminator * factor

    @property
    def bank(self) -> MemoryBank | None:
        """The memory bank that the generator completes canvases of; None without one."""
        return bank_of_generator(self.generator)

    def take_bank(self, bank: MemoryBank | None) -> None:
        """Make canvases of this bank from now on, where the generator completes canvases."""
        for module in (self.generator, *([self.average.module] if self.average is not None else [])):
            give_bank(module, bank)

    @property
    def last_losses(self) -> dict[str, float]:
        """The losses of the last step that was made or restored; empty before the first."""
        return {name: self._last_losses[name] for name in self.loss_names if name in self._last_losses}

    def deployed(self) -> Generator:
        """The generator that is saved and shown: the average, if there is one, with statistics that are up to date."""
        if self.average is None:
            return self.generator
        batches = self._statistics_batches()
        inputs = [(self._segmap(batch), self._styles(SAMPLE_STYLE, len(batch.label))) for batch in batches]
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

    def beside(self, batch: Batch) -> Batch:
        """A batch of held-out samples with the images that generated ones are shown beside: its photos."""
        return batch

    def begin(self) -> tuple[str, ...]:
        """Take the weights that a new run of these settings begins with, where they are not random.

        Returns what the user should know, a sentence each. Raises CheckpointError.
        """
        name = self.setup.train.init
        if not name:
            return ()
        tensors, notes = first_weights(name, self.generator)
        self.begin_from(tensors)
        return notes

    def begin_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a generator's weights. Raises CheckpointError where they are of another network."""
        check_tensors(self.generator.state_dict(), tensors, Path(self.setup.train.init))
        self.generator.load_state_dict(tensors)
        if self.average is not None:
            self.average.module.load_state_dict(tensors)

    def state(self) -> TrainingState:
        """The state that resuming needs besides the deployed generator."""
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
            self.take_bank(bank_of_generator(generator))
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
        """The parameters of an optimiser by name, in its order. The generator's has those of the encoder, too."""
        networks = [self.discriminator] if name == "discriminator" else [self.generator, self.encoder]
        return {key: part for net in networks if net is not None for key, part in net.named_parameters()}

    def _styles(self, domain: int, count: int, step: int = 0) -> Tensor | None:
        """Standard normal styles of a whole step's batch, count x z_dim; the same in every process and every run."""
        length = self.setup.generator.z_dim
        if length is None:
            return None
        return normal_styles(self.setup.train.seed, domain, step, count, length).to(self.device)

    def _sample_styles(self, count: int, style_seed: int | None) -> Tensor | None:
        length = self.setup.generator.z_dim
        if length is None:
            return None
        if style_seed is None:
            return torch.zeros(count, length, device=self.device)
        return self._styles(SAMPLE_STYLE, count, style_seed + 1)

    def _segmap(self, batch: Batch) -> Tensor:
        labels = self.setup.generator.labels
        instance = batch.instance.to(self.device) if labels.has_edges and batch.instance is not None else None
        segmap = make_segmap(batch.label.to(self.device), instance, labels)
        return segmap.to(memory_format=torch.channels_last) if self.setup.train.channels_last else segmap


def _check_moments(name: str, parameters: dict[str, Tensor], saved: Any) -> None:
    """Raises CheckpointError where an optimiser's saved moments belong to other parameters: PyTorch would load them."""
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
