"""TensorRT engines: options, build in a separate process, and a receipt of the built kernels."""
