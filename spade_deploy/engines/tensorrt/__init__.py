"""TensorRT and TensorRT for RTX: engines are built, named, proved and run."""
