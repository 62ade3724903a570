"""Deployment on NVIDIA Triton: model repository, its Python models, and a client.

options, limits, config, templates, repository: used by `save-deploy triton`
python_model, batch, frame, stream, film, graph: imported by the written model.py files, in the server
remote, verify: imported by the written verify_client.py
"""
