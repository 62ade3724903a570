"""The SAVE model (arXiv 2407.02004): one implementation, every system of the paper a config of it."""
