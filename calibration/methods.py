"""Ways to choose a tensor's clip threshold, by name. Without numpy: --help names them."""

METHODS = ("minmax", "percentile", "entropy", "mse")
