"""A bundle on NVIDIA Triton: its model repository, the models in it that are Python, and a client.

options, limits -> repository: what `save-deploy triton` writes
model, frame, stream, film, graph: what the written model.py files import, inside the server
remote, verify: what the written verify_client.py imports
"""
