"""The SAVE model (arXiv 2407.02004). Every system of the paper is a configuration of it."""
