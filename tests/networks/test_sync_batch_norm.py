"""SyncBatchNorm2d in one process; what it does in two is in tests/training/processes/test_world.py."""

import copy

import pytest
import torch
from torch import Tensor, nn

from spade_deploy.networks import sync_batch_norm
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.networks.sync_batch_norm import SyncBatchNorm2d
from spade_deploy.spec import GeneratorSpec, LabelSpec, NormType


@pytest.fixture
def one_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of several processes, with a single one."""
    monkeypatch.setattr(sync_batch_norm, "_has_peers", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda rows, own: rows[0].copy_(own))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: None)


def both(**options: object) -> tuple[nn.BatchNorm2d, SyncBatchNorm2d]:
    return nn.BatchNorm2d(3, **options), SyncBatchNorm2d(3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"affine": False, "momentum": None}, {"eps": 1e-3}])
def test_alone_it_is_batch_norm_bit_for_bit(dtype: torch.dtype, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    layers = [layer.to(dtype) if dtype == torch.float64 else layer for layer in both(**options)]
    for _ in range(2):
        x, slope = torch.randn(4, 3, 5, 6).to(dtype), torch.randn(4, 3, 5, 6).to(dtype)
        found: list[tuple[Tensor, Tensor]] = []
        for layer in layers:
            own = x.clone().requires_grad_()
            output = layer(own)
            output.backward(slope)
            assert own.grad is not None
            found.append((output, own.grad))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
    plain, synchronised = (layer.state_dict() for layer in layers)
    assert all(torch.equal(plain[key], synchronised[key]) for key in plain)
    assert torch.equal(*(layer.eval()(x) for layer in layers))


def test_its_state_is_batch_norms() -> None:
    plain, synchronised = both(affine=False)
    assert list(plain.state_dict()) == list(synchronised.state_dict())
    assert list(synchronised.state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]
    assert isinstance(copy.deepcopy(synchronised), nn.BatchNorm2d)  # what the exporter's folds accept
    with pytest.raises(ValueError, match="4D input"):
        synchronised(torch.zeros(3, 4))


@pytest.mark.parametrize("norm", [NormType.BATCH, NormType.SYNC_BATCH, NormType.INSTANCE])
def test_the_generator_synchronises_where_its_spec_says_so(norm: NormType) -> None:
    spec = GeneratorSpec(LabelSpec(3), base_channels=2, hidden_channels=4, height=64, width=64, norm=norm)
    layers = [module for name, module in SpadeGenerator(spec).named_modules() if name.endswith("param_free_norm")]
    assert layers
    assert all(isinstance(layer, SyncBatchNorm2d) == (norm is NormType.SYNC_BATCH) for layer in layers)


@pytest.mark.usefixtures("one_of_one")
def test_the_gradient_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences in float64."""
    torch.manual_seed(0)
    layer = SyncBatchNorm2d(2).double()
    nn.init.uniform_(layer.weight, 0.5, 2.0)
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    # The counter-test: a backward that forgets how mean and deviation depend on x is found.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.zero_())
    assert not torch.autograd.gradcheck(layer, x, raise_exception=False)


@pytest.mark.usefixtures("one_of_one")
@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_the_running_statistics_are_those_of_batch_norm(momentum: float | None) -> None:
    """Of six values a channel: there the unbiased variance, which is kept, is 6 / 5 of the one that is divided by."""
    torch.manual_seed(0)
    plain, synchronised = (layer.double() for layer in both(momentum=momentum))
    batches = [torch.randn(2, 3, 3, 1, dtype=torch.float64) * scale + 5 for scale in (1, 2, 3)]
    for x in batches:
        # Measured 9e-16: the same sums in another order.
        torch.testing.assert_close(synchronised(x), plain(x), rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(synchronised.get_buffer(name), plain.get_buffer(name), rtol=1e-12, atol=1e-12)
    assert synchronised.num_batches_tracked == 3
    share = 1 if momentum is None else momentum
    variance = batches[0].transpose(0, 1).reshape(3, 6).var(dim=1, unbiased=True)
    first = SyncBatchNorm2d(3, momentum=momentum).double()
    first(batches[0])
    torch.testing.assert_close(first.running_var, (1 - share) + share * variance, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("one_of_one")
def test_channels_last_stays_channels_last() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    output = SyncBatchNorm2d(3, affine=False)(x)
    (slope,) = torch.autograd.grad(output.square().sum(), x)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert slope.is_contiguous(memory_format=torch.channels_last)
