"""spade-deploy: a trained SPADE (GauGAN) generator into something that runs fast, anywhere, and is proved equal."""

__version__ = "0.1.0"
