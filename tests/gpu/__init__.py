"""Everything that needs an NVIDIA GPU: `python -m tests.gpu` runs it all and writes gpu_report.md."""
