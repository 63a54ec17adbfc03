"""Small generators with believable statistics, and inputs for them."""

from __future__ import annotations

from typing import Any


def build_generator(*, seed: int = 0, gain: float = 1.0, training_steps: int = 3, **spec_fields: Any) -> Any:
    """A small generator whose batch-norm statistics and spectral-norm vectors come from training-mode passes.

    spec_fields: of GeneratorSpec; the default is 8 base channels, 12 hidden, 7 labels with dontcare and edges, 64 px.
    """
    import torch

    from spade_deploy.networks.spade import SpadeGenerator, initialize, make_segmap
    from spade_deploy.spec import GeneratorSpec, LabelSpec

    fields = {
        "labels": LabelSpec(7, has_dontcare=True, has_edges=True),
        "base_channels": 8,
        "hidden_channels": 12,
        "height": 64,
        "width": 64,
        **spec_fields,
    }
    spec = GeneratorSpec(**fields)
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        generator = SpadeGenerator(spec)
        initialize(generator, gain)
        # Biases of a trained model are not zero, and a fold that forgets one must be seen.
        for name, parameter in generator.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
        generator.train()
        with torch.no_grad():
            for _ in range(training_steps):
                label, instance, z = random_inputs(spec, 2)
                generator(make_segmap(label, instance, spec.labels), z)
        return generator.eval()
    finally:
        torch.random.set_rng_state(state)


def random_inputs(spec: Any, count: int, height: int | None = None, width: int | None = None) -> tuple[Any, Any, Any]:
    """Noise label maps, instance maps and styles: every pixel its own pattern, borders included."""
    import torch

    shape = (count, height or spec.height, width or spec.width)
    label = torch.randint(0, spec.labels.num_ids, shape, dtype=torch.int32).to(getattr(torch, spec.labels.id_type))
    instance = torch.randint(0, 3, shape, dtype=torch.int32)
    z = torch.randn(count, spec.z_dim) if spec.z_dim is not None else None
    return label, instance, z


def graph_inputs(spec: Any, label: Any, instance: Any, z: Any) -> list[Any]:
    """The tensors that the deploy model and the graph take, in their order."""
    return [label, *([instance] if spec.labels.has_edges else []), *([z] if spec.z_dim is not None else [])]
