"""One step against the equations written out: which loss reaches which weights; what is fast changes nothing."""

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spade_deploy.errors import CheckpointError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.networks.spade import make_segmap
from spade_deploy.spec import DiscriminatorSpec, GeneratorSpec, LabelSpec, NormType
from spade_deploy.training import losses
from spade_deploy.training.config import Amp, GanMode, Setup, TrainConfig
from spade_deploy.training.dataset import Batch
from spade_deploy.training.steps import Learner

CPU = torch.device("cpu")
LABELS = LabelSpec(3)


def setup_of(spec: dict[str, Any] | None = None, **changes: Any) -> Setup:
    config = TrainConfig(
        **{
            "steps": 6,
            "batch_size": 4,
            "lr_generator": 1e-3,
            "lr_discriminator": 1e-3,
            "weight_l1": 1.0,
            "channels_last": False,
            "discriminator": DiscriminatorSpec(2, 2, 2),
            **changes,
        }
    )
    fields = {"labels": LABELS, "base_channels": 2, "hidden_channels": 4, "height": 32, "width": 32, **(spec or {})}
    spec_of = GeneratorSpec(**fields)
    return Setup(config, spec_of, DataConfig(crop_size=(spec_of.height, spec_of.width)))


def batch_of(count: int = 4, seed: int = 0, size: int = 32) -> Batch:
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (count, size // 4, size // 4), generator=random, dtype=torch.uint8)
    label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    photo = torch.rand(count, 3, size, size, generator=random) * 2 - 1
    return Batch(label, None, photo, ("x",) * count)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: part.grad for name, part in network.named_parameters() if part.grad is not None}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, over the largest value."""
    assert found.keys() == expected.keys()
    largest = max(float(part.abs().max()) for part in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / largest


class WideLearner(Learner):
    """All in float64, and no optimiser step: the gradients stay to be looked at."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, CPU)
        for network in self.networks.values():
            network.double()

    def _segmap(self, batch: Batch) -> Tensor:
        return make_segmap(batch.label, None, LABELS).double()

    def _image(self, photo: Tensor) -> Tensor:
        return photo.double()

    def _styles(self, domain: int, count: int, step: int = 0) -> Tensor | None:
        noise = super()._styles(domain, count, step)
        return None if noise is None else noise.double()

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """The gradients of a whole step, of every network."""
        parts = list(self._parts(batch))
        for part, noise in parts:
            self._part(part, noise, 1 / len(parts), improves_generator=True)
        return {f"{name}.{key}": grad for name, net in self.networks.items() for key, grad in gradients(net).items()}


def separate_gradients(learner: WideLearner, batch: Batch, weight_matching: float = 10.0) -> dict[str, Tensor]:
    """A graph for each network's loss, the discriminator run for each, as the equations are written."""
    config, segmap, photo = learner.setup.train, learner._segmap(batch), batch.photo.double()
    generator, discriminator = learner.generator, learner.discriminator
    state = copy.deepcopy(discriminator.state_dict())
    z = kl = None
    if learner.encoder is not None:
        mu, logvar = learner.encoder(photo)
        z = torch.distributions.Normal(mu, (logvar / 2).exp()).mean
        noise = learner._styles(1, len(batch.label), 0)
        assert noise is not None
        z = z + (logvar / 2).exp() * noise
        prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
        posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
        kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    fake = generator(segmap, z)
    fakes, reals = discriminator.compare(segmap, fake, photo)
    total = losses.generator_loss(config.gan_mode, fakes) + config.weight_l1 * (fake - photo).abs().mean()
    total = total + weight_matching * losses.feature_matching(fakes, reals)
    total = total if kl is None else total + config.weight_kl * kl
    learning = {"generator": generator, **({"encoder": learner.encoder} if learner.encoder is not None else {})}
    named = {f"{name}.{key}": part for name, net in learning.items() for key, part in net.named_parameters()}
    own = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
    discriminator.load_state_dict(state)  # the pass above moved u and v
    fakes, reals = discriminator.compare(segmap, fake.detach(), photo)
    loss = torch.stack(losses.discriminator_losses(config.gan_mode, fakes, reals)).sum()
    theirs = dict(discriminator.named_parameters())
    found = torch.autograd.grad(loss, list(theirs.values()))
    return own | {f"discriminator.{key}": grad for key, grad in zip(theirs, found, strict=True)}


@pytest.mark.parametrize("mode", list(GanMode))
def test_one_pass_of_the_discriminator_gives_the_gradients_of_separate_losses(mode: GanMode) -> None:
    setup, batch = setup_of(gan_mode=mode), batch_of()
    expected = separate_gradients(WideLearner(setup), batch)
    assert furthest(WideLearner(setup).learn(batch), expected) < 1e-12  # measured: 0
    wrong = separate_gradients(WideLearner(setup), batch, weight_matching=10.1)
    assert furthest(WideLearner(setup).learn(batch), wrong) > 1e-4


def test_the_encoder_learns_from_the_image_and_the_divergence() -> None:
    setup, batch = setup_of({"z_dim": 5}), batch_of()
    expected = separate_gradients(WideLearner(setup), batch)
    assert any(name.startswith("encoder.") for name in expected)
    assert furthest(WideLearner(setup).learn(batch), expected) < 1e-12  # measured: 8e-17
    other = separate_gradients(WideLearner(setup_of({"z_dim": 5}, weight_kl=0.06)), batch)
    assert furthest(WideLearner(setup).learn(batch), other) > 1e-6


def test_accumulated_parts_give_the_gradients_of_the_whole_batch() -> None:
    """With instance norm, whose statistics are a sample's own; batch norm sees a part at a time."""
    spec = {"spectral_norm": False, "height": 64, "width": 64}

    def learn(norm: NormType, parts: int) -> dict[str, Tensor]:
        learner = WideLearner(setup_of({**spec, "norm": norm}, accumulate=parts))
        for module in learner.discriminator.modules():
            if hasattr(module, "weight_orig"):
                nn.utils.remove_spectral_norm(module)  # it moves on with every part
        return learner.learn(batch_of(size=64))

    whole = learn(NormType.INSTANCE, 1)
    assert furthest(learn(NormType.INSTANCE, 4), whole) < 1e-12  # measured: 1.4e-16
    assert furthest(learn(NormType.BATCH, 4), learn(NormType.BATCH, 1)) > 1e-3


def test_a_step_of_parts_has_the_gradients_of_a_step_of_the_whole() -> None:
    """`step` itself, which says what share of the batch a part is. Adam hides a factor, so the gradients are asked."""
    spec = {"norm": NormType.INSTANCE, "spectral_norm": False, "height": 64, "width": 64}

    def stepped(parts: int) -> dict[str, Tensor]:
        learner = WideLearner(setup_of(spec, accumulate=parts))
        for module in learner.discriminator.modules():
            if hasattr(module, "weight_orig"):
                nn.utils.remove_spectral_norm(module)  # it moves on with every part
        learner.step(batch_of(size=64), 1.0)
        return {f"{name}.{key}": grad for name, net in learner.networks.items() for key, grad in gradients(net).items()}

    whole = stepped(1)
    for parts in (2, 4):
        assert furthest(stepped(parts), whole) < 1e-12  # measured: 1.5e-16; undivided parts are 1 and 3 away


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_part_has_the_styles_and_canvases_of_its_own_samples(accumulate: int) -> None:
    learner = Learner(setup_of({"z_dim": 5}, accumulate=accumulate), CPU)
    batch = replace(batch_of(), canvas=torch.arange(4.0).view(4, 1, 1, 1).expand(4, 4, 32, 32), stems=tuple("abcd"))
    parts = list(learner._parts(batch))
    assert len(parts) == accumulate
    assert torch.equal(torch.cat([noise for _, noise in parts if noise is not None]), learner._styles(1, 4, 0))  # type: ignore[arg-type]
    for name in ("label", "photo", "canvas"):
        assert torch.equal(torch.cat([getattr(part, name) for part, _ in parts]), getattr(batch, name))
    assert sum((part.stems for part, _ in parts), ()) == batch.stems


def test_the_generator_and_its_average_learn_in_every_third_step_only() -> None:
    learner = Learner(setup_of(discriminator_steps=3, ema_decay=0.25), CPU)
    for step in range(6):
        before = {name: copy.deepcopy(net.state_dict()) for name, net in learner.networks.items()}
        found = learner.step(batch_of(seed=step), 1.0)
        changed = {
            name: any(not torch.equal(before[name][key], part.detach()) for key, part in net.named_parameters())
            for name, net in learner.networks.items()
        }
        assert changed == {"generator": step % 3 == 0, "discriminator": True}
        assert learner.average is not None
        assert learner.average.updates == step // 3 + 1
        assert set(found) == set(learner.loss_names)


def test_the_average_follows_its_recurrence_and_is_what_is_deployed() -> None:
    learner = Learner(setup_of(ema_decay=0.25), CPU, lambda: [batch_of(seed=9)])
    name = "up_3.conv_0.weight_orig"
    expected = learner.generator.state_dict()[name].double().clone()
    for step in range(4):
        learner.step(batch_of(seed=step), 1.0)
        decay = (2 / 11, 3 / 12, 0.25, 0.25)[step]  # warms up to 0.25
        expected = decay * expected + (1 - decay) * learner.generator.state_dict()[name].double()
    deployed = learner.deployed()
    assert deployed is not learner.generator
    torch.testing.assert_close(deployed.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(deployed.state_dict()[name], learner.generator.state_dict()[name], atol=1e-5)


def test_the_averages_statistics_are_those_of_its_own_features() -> None:
    batches = [batch_of(seed=seed) for seed in (7, 8, 9)]
    learner = Learner(setup_of({"norm": NormType.SYNC_BATCH}, ema_decay=0.5), CPU, lambda: batches)
    for step in range(3):
        learner.step(batch_of(seed=step), 1.0)
    deployed = learner.deployed()
    seen: list[Tensor] = []
    norm = deployed.get_submodule("head_0.norm_0.param_free_norm")
    handle = norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            deployed(make_segmap(batch.label, None, LABELS))
    handle.remove()
    means = torch.stack([part.mean((0, 2, 3)) for part in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-6)
    trained = learner.generator.get_submodule("head_0.norm_0.param_free_norm")
    assert not torch.allclose(trained.running_mean, means, rtol=1e-4, atol=1e-6)
    assert norm.momentum == trained.momentum == 0.1  # the estimate's own way of adding up is over
    again = {key: part.clone() for key, part in deployed.state_dict().items()}
    assert all(torch.equal(part, again[key]) for key, part in learner.deployed().state_dict().items())


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"amp": Amp.BF16}, 16 * torch.finfo(torch.bfloat16).eps),  # measured: 0.0095, of 0.125
        ({"amp": Amp.FP16}, torch.finfo(torch.float16).eps),  # measured: 4.2e-5, of 9.8e-4
        ({"channels_last": True}, 32 * torch.finfo(torch.float32).eps),  # measured: 6e-8, of 3.8e-6
    ],
    ids=str,
)
def test_how_a_step_is_computed_changes_it_by_rounding_only(changes: dict[str, Any], limit: float) -> None:
    plain, other = Learner(setup_of(), CPU), Learner(setup_of(**changes), CPU)
    expected, found = plain.step(batch_of(), 1.0), other.step(batch_of(), 1.0)
    assert max(abs(found[name] - expected[name]) / abs(expected[name]) for name in expected) < limit
    assert all(part.dtype is torch.float32 for part in other.generator.parameters())
    apart = Learner(setup_of(seed=1), CPU).step(batch_of(), 1.0)
    assert max(abs(apart[name] - expected[name]) / abs(expected[name]) for name in expected) > limit


def test_fp16_leaves_a_step_out_where_its_gradients_overflow() -> None:
    learner = Learner(setup_of(amp=Amp.FP16), CPU)
    before = copy.deepcopy(learner.generator.state_dict())
    learner._scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    learner.step(batch_of(), 1.0)
    assert learner._scaler.get_scale() < 1e38
    names = [name for name, _ in learner.generator.named_parameters()]
    assert all(torch.equal(before[name], learner.generator.state_dict()[name]) for name in names)
    learner._scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    learner.step(batch_of(), 1.0)
    assert not all(torch.equal(before[name], learner.generator.state_dict()[name]) for name in names)


def test_styles_are_the_same_whenever_they_are_drawn_and_differ_from_step_to_step() -> None:
    learner = Learner(setup_of({"z_dim": 5}, encoder=False), CPU)
    assert learner.encoder is None
    assert "kl" not in learner.loss_names
    first = learner._styles(1, 4, 7)
    assert first is not None
    torch.randn(3)  # the global state plays no part
    assert torch.equal(first, learner._styles(1, 4, 7))  # type: ignore[arg-type]
    assert not torch.equal(first, learner._styles(1, 4, 8))  # type: ignore[arg-type]
    assert not torch.equal(first, learner._styles(2, 4, 7))  # type: ignore[arg-type]
    batch = batch_of()
    learner.step(batch, 1.0)
    seen: list[Tensor] = []
    learner.generator.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for style_seed in (3, 3, 4, None):
        learner.generate(batch, style_seed)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not seen[3].any()  # the mean style


def test_deterministic_is_switched_on_and_off() -> None:
    try:
        Learner(setup_of(deterministic=True), CPU)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        Learner(setup_of(), CPU)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_compiled_step_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by the compiler, without generating code, which takes minutes."""
    expected = Learner(setup_of(), CPU).step(batch_of(), 1.0)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = Learner(setup_of(compile=True), CPU).step(batch_of(), 1.0)
    worst = max(abs(found[name] - expected[name]) / abs(expected[name]) for name in expected)
    assert worst < 1e-4  # measured: 0


def test_moments_of_another_network_are_named() -> None:
    small, large = Learner(setup_of(), CPU), Learner(setup_of({"hidden_channels": 6}), CPU)
    for learner in (small, large):
        learner.step(batch_of(), 1.0)
    state = small.state()
    state = replace(state, rest={**state.rest, "generator": large.state().rest["generator"]})
    with pytest.raises(CheckpointError, match=r"exp_avg of [\w.]+mlp_shared\S+ has the shape") as found:
        Learner(setup_of(), CPU).restore(small.generator, state)
    assert "another spec" in str(found.value.hint)
